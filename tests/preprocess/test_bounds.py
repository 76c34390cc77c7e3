"""What is worked on at once is bounded by bytes: posts may be of any length. And nobody waits for what is given up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.preprocess import leaks, tokenizer
from jobs.preprocess.corpus import PIECE_BYTES, Rows, pieces
from jobs.preprocess.duplicates import PAIRS_A_TASK, verified
from jobs.preprocess.pool import Workers, aside
from jobs.preprocess.tokenizer import Encoder, one_thread, train_bpe
from tests.preprocess.texts import posts

MIB = 2**20

#: Tokenises long posts, each said to be of a megabyte, in tasks as the second pass makes them, of at most ``argv[2]``
#: bytes, and prints by how many MiB the process has grown at most.
ENCODES = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from jobs.preprocess import corpus
from jobs.preprocess.encode import EncodeTask, encode_rows

folder = Path(sys.argv[1])
corpus.PIECE_BYTES = int(sys.argv[2])
size = np.full(32, 2**20, np.int64)
rows = corpus.Rows(folder, "kept", np.zeros(32, np.int64), np.arange(32), size)

def peak():
    (line,) = [l for l in open("/proc/self/status") if l.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

def encode(number, part):
    cluster, held_out = np.arange(32)[part], np.zeros(32, bool)[part]
    encode_rows(EncodeTask(number, rows.part(part), cluster, held_out, folder / "tokenizer.json", (2, 3), True, "@"))

encode(0, slice(0, 1))
before = peak()
for number, part in enumerate(rows.pieces(4096)):
    encode(number, part)
print(peak() - before)
"""


def grown(folder: Path, most: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", ENCODES, str(folder), str(most)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_posts_of_a_megabyte_are_not_all_tokenised_at_once(tmp_path: Path) -> None:
    import pyarrow as pa

    from jobs.preprocess.corpus import KEPT, write_arrow

    words = "\n".join(posts(300))
    train_bpe([[words.lower()]], 500, tmp_path, "scratch:tiny")
    text = (words + "\n") * 200
    texts = [text[n : n + 150_000] for n in range(0, 3200, 100)]
    columns = {"id": list(range(32)), "channel": ["x"] * 32, "text": texts}
    table = pa.table({n: columns.get(n, pa.nulls(32, KEPT.field(n).type)) for n in KEPT.names}, schema=KEPT)
    write_arrow(table, tmp_path / "kept-00000.arrow")
    bounded, whole = grown(tmp_path, 4 * MIB), grown(tmp_path, 4096 * MIB)
    assert bounded < whole / 3


def test_pieces_are_bounded_by_rows_and_by_bytes() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.choice([0, 300, 5 * MIB, PIECE_BYTES + 1], 2000, p=[0.1, 0.85, 0.04, 0.01])
    found = list(pieces(sizes, 100))
    assert [n for p in found for n in range(p.start, p.stop)] == list(range(2000))
    for piece, following in zip(found, [*found[1:], None], strict=True):
        rows, size = piece.stop - piece.start, int(sizes[piece].sum())
        assert rows == 1 or (rows <= 100 and size <= PIECE_BYTES)
        if following is not None:  # and no smaller than they must be
            assert rows == 100 or size + int(sizes[following.start]) > PIECE_BYTES
    assert list(pieces(np.zeros(0, np.int64), 5)) == []


def test_pairs_of_long_posts_are_verified_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = np.array([100] * 50 + [9 * MIB] * 4)
    rows = Rows(tmp_path, "kept", np.zeros(54, np.int64), np.arange(54), sizes)
    pairs = np.array([(a, b) for a in range(54) for b in range(a + 1, 54)])
    seen: list[int] = []

    def looking(task: object) -> object:
        seen.append(int(task.rows.sizes.sum()))  # type: ignore[attr-defined]
        return np.zeros(len(task.pairs), bool)  # type: ignore[attr-defined]

    monkeypatch.setattr("jobs.preprocess.duplicates.verify_pairs", looking)
    with Workers(1, "") as workers:
        looked = [done for done, _ in verified(rows, pairs, 0.8, workers)]
    assert looked[-1] == len(pairs) < PAIRS_A_TASK
    assert max(seen) <= 18 * MIB  # one pair of the longest


def test_long_words_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A post can be one word of a megabyte, and thousands of them are no reason to hold them all."""
    monkeypatch.setattr(tokenizer, "_CACHED_CHARACTERS", 1_000_000)
    encoder = Encoder(train_bpe([posts(100)], 400, tmp_path, "scratch:tiny").file)
    for number in range(30):
        encoder.encode_flat([f"{number}".ljust(100_000, "x")])
        assert sum(map(len, encoder._known)) <= 1_100_001


def test_an_error_does_not_wait_for_the_thread_beside() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return go_on.wait(60)

    with pytest.raises(KeyboardInterrupt), aside() as thread:
        running, waiting = thread.submit(work), thread.submit(work)
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert running.running()
    assert waiting.cancelled()
    go_on.set()
    assert running.result() is True


def test_work_beside_is_done_when_there_is_no_error() -> None:
    with aside() as thread:
        done = thread.submit(sum, [1, 2])
    assert done.done()
    assert done.result() == 3


@pytest.mark.parametrize("before", [None, "true"])
def test_the_setting_of_the_library_stays_as_it_was(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with pytest.raises(ValueError, match="x"), one_thread():
        assert os.environ[name] == "false"
        raise ValueError("x")
    assert os.environ.get(name) == before


def test_pairs_with_the_held_out_posts_are_counted_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    owned = rng.integers(1, 40, 200)  # held-out posts of each of 200 rare 5-grams
    starts = np.concatenate([[0], np.cumsum(owned)])
    owners = rng.integers(0, 60, starts[-1])
    posts, places = np.sort(rng.integers(0, 300, 5000)), rng.integers(0, 200, 5000)
    needed = rng.integers(1, 12, 60)
    whole = leaks._suspects(posts, starts[places], owned[places], owners, needed)
    shared = np.zeros((300, 60), np.int64)
    for post, place in zip(posts, places, strict=True):
        np.add.at(shared[post], owners[starts[place] : starts[place + 1]], 1)
    assert whole.tolist() == np.flatnonzero((shared > 0) & (shared >= needed)).tolist()
    sizes: list[int] = []
    repeat = np.repeat

    def measured(values: Any, count: Any) -> Any:
        sizes.append(int(np.sum(count)))
        return repeat(values, count)

    monkeypatch.setattr("jobs.preprocess.corpus.PIECE_BYTES", 16_000)
    monkeypatch.setattr(np, "repeat", measured)
    assert leaks._suspects(posts, starts[places], owned[places], owners, needed).tolist() == whole.tolist()
    assert max(sizes) <= 2_000, "pairs that are held at once, of eight bytes each"
