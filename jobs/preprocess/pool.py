"""Worker processes: work in, results out in the order of the work, a bounded number of pieces on their way."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TypeVar

from jobs.sockets import make_room
from jobs.specs import TemporaryError

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """Runs first in every worker."""
    # Ctrl-C reaches the whole group; only the stage itself decides what it means. A worker has nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Each worker works alone on its piece; threads of the libraries would only fight for the cores.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Workers make millions of short-lived lists and no cycles to speak of: looking for these costs a tenth of the time.
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a stage that is killed must not leave workers behind
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def aside() -> Iterator[ThreadPoolExecutor]:
    """A thread for work that goes on beside. Whoever leaves by an error (or a signal) does not wait for its end."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def share_size(total: int, most: int) -> int:
    """Items of a task out of ``total``: ``most`` where there are many, fewer where the workers would end unevenly.

    It does not depend on the number of workers, so that neither does what they write.
    """
    return min(most, max(256, -(-total // 16)))


_KILLED = "a worker process was killed, most likely for lack of memory; give the stage more memory or set workers=1"


def _submitted(pool: ProcessPoolExecutor, work: Callable[[T], R], item: T) -> Future[R]:
    try:
        return pool.submit(work, item)
    except (EOFError, ConnectionError) as error:  # what starts the workers was killed while one was to start
        raise TemporaryError(_KILLED) from error


class Workers:
    """A pool of ``count`` processes; with one, the work is done in this process. Use it with ``with``."""

    def __init__(self, count: int, preload: str) -> None:
        """``preload``: the module whose functions will be called, imported once for all workers."""
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            make_room()
            context = multiprocessing.get_context("forkserver")  # this process has threads: a plain fork may hang
            context.set_forkserver_preload([preload])
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """``work(item)`` for every item, in their order; items are taken only as results are called for.

        Raises what the work raises, and TemporaryError when a worker was killed (by lack of memory, mostly).
        """
        if self._pool is None:
            yield from map(work, items)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(_submitted(self._pool, work, item))
                if len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise TemporaryError(_KILLED) from error
        finally:
            for future in waiting:
                future.cancel()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
