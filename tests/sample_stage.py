"""A small stage that does what the tests of the stage contract need: ``python -m tests.sample_stage --spec …``."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from jobs.specs import (
    ArtifactRef,
    DataError,
    StageSpec,
    TemporaryError,
    input_ref,
    operational,
)
from jobs.stage import StageContext, main


class SampleSpec(StageSpec):
    """Write some files; ``action`` says how it goes."""

    stage: Literal["upload"] = "upload"
    source: ArtifactRef | None = input_ref("an input")
    name: str = Field("a", max_length=40)
    size: int = Field(1000, ge=1, le=2**30)
    action: str = operational("work", "what to do")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "data": lambda: DataError("post 17: the text is wrong"),
    "later": lambda: TemporaryError("Telegram asks to wait", retry_after=33),
    "bug": lambda: KeyError("нет\nтакого"),
    "exit": lambda: SystemExit(0),
}


def run(ctx: StageContext[SampleSpec]) -> str | None:
    """Do it."""
    ctx.log.info("working in %s", ctx.workdir)
    if ctx.spec.source is not None:
        ctx.store.download(ctx.spec.source, ctx.workdir / "source", manifest=ctx.input("source"))
    action = ctx.spec.action
    if action in ERRORS:
        raise ERRORS[action]()
    if action == "secrets":
        _leak(ctx)
    if action == "thread":
        threading.Thread(target=threading.Event().wait).start()  # not a daemon, and never ends
        threading.Thread(target=lambda: 1 / 0).start()
        sys.stdout.write("x" * 1_000_000 + "end\n")
    if action == "wait":  # blocked, as in a library that knows nothing of signals
        ctx.log.info("ready")
        threading.Event().wait()
    if action == "turned":  # as an extension module does while it is imported
        ctx.log.info("ready")
        try:
            threading.Event().wait()
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
    if action == "swallowed":  # in a callback of a weak reference, whatever is raised goes nowhere
        thing = threading.Event()
        weakref.finalize(thing, lambda: (ctx.log.info("ready"), threading.Event().wait()))
        del thing
        threading.Event().wait()
    if action == "loop":
        ctx.progress.update(loss=float("nan"))
        while True:
            ctx.check_stop()
            ctx.progress.update(message="looping", done=1, total=2, unit="posts", rate=2.5)
            ctx.log.info("ready")  # a signal often comes in the middle of a log line
    if action == "graceful":
        ctx.handle_stop()
        ctx.log.info("ready")
        ctx.stop.wait()
        ctx.store.bucket.put_bytes(f"{ctx.folder}/saved", b"1")
        ctx.check_stop()
    if action == "nothing":
        return None
    if action == "other":
        return ctx.spec.source
    writer = ctx.writer()
    if action == "half":
        writer.put_bytes(f"half-{os.getpid()}", b"1")
        raise TemporaryError("half of it is there")
    if action == "disk":
        with (ctx.workdir / "full").open("wb") as file:
            while True:
                file.write(bytes(2**20))
    for number in range(3):
        path = ctx.workdir / f"{number}.bin"
        path.write_bytes(os.urandom(1) * ctx.spec.size)
        writer.put_file(path)
        ctx.progress.update(message="writing", done=number + 1, total=3, unit="files")
        if action == "slow":
            ctx.check_stop()
            time.sleep(0.05)
    if action == "lost":
        ctx.store.bucket.delete([o.path for o in ctx.store.bucket.list(f"leases/{ctx.ref}/")])
    ctx.commit(writer, counts={"files": 3})
    return None


def _leak(ctx: StageContext[SampleSpec]) -> None:
    secret = os.environ["HF_TOKEN"]
    ctx.log.warning("a library prints %s", secret)
    logging.getLogger("some.library").warning("header: Bearer %s", secret)
    ctx.progress.update(message=f"using {secret}", token=secret)
    raise DataError(f"refused by https://user:{secret}@host")


if __name__ == "__main__":
    if os.environ.get("SAMPLE_QUICK"):
        from tests.s3_faults import retry_without_pauses

        retry_without_pauses()
    main(SampleSpec, run)
