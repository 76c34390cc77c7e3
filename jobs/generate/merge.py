"""All parts of a batch together: near-duplicates between parts, and the records in order.

Posts of one part are unlike each other already. Here the posts of all parts are gone through in the order
(round, index); a post that is alike to one kept before it is dropped, and ``lost`` names it so that another can take
its place. The order does not depend on who made which part, so neither does the outcome; and what a later round brings
changes nothing about the rounds before it, so that each post is read and compared once.

What is kept of a post lies in files of the working folder: where its line is (24 bytes), the band keys of its MinHash
signature and what leads to earlier posts with the same keys (12 bytes a band, some 250). They are read in pieces. In
memory there are two bytes a post, four more while one band is looked at, and bounded pieces.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jobs.similarity import Banding, jaccard, normalise, shingle_many, shingles

_ROWS = np.dtype([("file", "<i4"), ("attempts", "<i4"), ("offset", "<i8"), ("index", "<i8")])
_BATCH = 2048  # posts read together
_PIECE = 1 << 16  # rows or keys read together
_SORTED = 1 << 17  # keys sorted together, about


class Merge:
    """Near-duplicates among the posts of many JSON Lines files, and what is left in order.

    ``kept``: for each post in the order of adding whether it is; ``dropped``: how many are not.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        folder.mkdir(parents=True)
        self._threshold = threshold
        self._banding = Banding.for_threshold(threshold)
        bands = range(self._banding.bands)
        self._paths: list[Path] = []
        self._bounds = [0]  # of the rounds
        self._rows = _Column(folder / "rows.bin", _ROWS)
        self._keys = [_Column(folder / f"keys-{band}.bin", np.dtype("<u8")) for band in bands]
        # One more than the number of the post before with the same key; 0: there is none.
        self._links = [_Column(folder / f"links-{band}.bin", np.dtype("<i4")) for band in bands]
        self.kept: NDArray[np.bool_] = np.zeros(0, bool)
        self.dropped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for column in (self._rows, *self._keys, *self._links):
            column.close()

    @property
    def rounds(self) -> int:
        """How many rounds were added."""
        return len(self._bounds) - 1

    def add(self, files: Sequence[Path]) -> None:
        """Add a round's posts and decide about them. ``files`` in the order of the parts; indexes rise."""
        first = self._bounds[-1]
        for path in files:
            self._read(path)
        self._bounds.append(len(self._rows))
        self.kept = np.concatenate([self.kept, np.ones(len(self._rows) - first, bool)])
        linked = np.zeros(len(self._rows) - first, bool)
        for keys, links in zip(self._keys, self._links, strict=True):
            column = _earlier(keys, first)
            links.append(column)
            linked |= column > 0
        for number in (np.flatnonzero(linked) + first).tolist():
            earlier = self._earlier(number)
            if not earlier:
                continue
            own = self._shingles(number)
            if any(jaccard(own, self._shingles(other)) >= self._threshold for other in sorted(earlier)):
                self.kept[number] = False
                self.dropped += 1

    def _read(self, path: Path) -> None:
        file, offset = len(self._paths), 0
        self._paths.append(path)
        rows: list[tuple[int, int, int, int]] = []
        texts: list[str] = []

        def flush() -> None:
            self._rows.append(np.array(rows, _ROWS))
            found = self._banding.keys(*shingle_many(texts))
            for band, column in enumerate(self._keys):
                column.append(found[:, band])
            rows.clear()
            texts.clear()

        with path.open("rb") as stream:
            for line in stream:
                post = json.loads(line)
                rows.append((file, post["attempts"], offset, post["index"]))
                texts.append(normalise(post["text"]))
                offset += len(line)
                if len(rows) == _BATCH:
                    flush()
        if rows:
            flush()

    def _earlier(self, number: int) -> set[int]:
        """Posts before this one that are kept and share a key with it.

        Links are shortened on the way: that of a post gone through leads to one that is kept, or nowhere.
        """
        found: set[int] = set()
        for links in self._links:
            link = int(links[number])
            if link and not self.kept[link - 1]:
                link = int(links[link - 1])
                links[number] = link
            while link:
                found.add(link - 1)
                link = int(links[link - 1])
        return found

    def _line(self, row: Any) -> bytes:
        with self._paths[int(row["file"])].open("rb") as stream:
            stream.seek(int(row["offset"]))
            line: bytes = stream.readline()
        return line

    def _shingles(self, number: int) -> NDArray[np.uint64]:
        return shingles(json.loads(self._line(self._rows[number]))["text"])

    def lost(self, since: int) -> dict[int, int]:
        """Indexes that have posts in rounds from ``since`` on, but none in any round that is kept, with the attempts
        that all their posts have taken."""
        first = self._bounds[since]
        dropped = np.unique(
            np.concatenate(
                [rows["index"][~self.kept[at : at + len(rows)]] for at, rows in self._rows.pieces(first)]
                or [np.zeros(0, np.int64)]
            )
        )
        attempts, alive = np.zeros(len(dropped), np.int64), np.zeros(len(dropped), bool)
        for at, rows in self._rows.pieces():
            mine = np.flatnonzero(np.isin(rows["index"], dropped))
            places = np.searchsorted(dropped, rows["index"][mine])
            np.add.at(attempts, places, rows["attempts"][mine])
            alive[places[self.kept[at + mine]]] = True
        return dict(zip(dropped[~alive].tolist(), attempts[~alive].tolist(), strict=True))

    def lines(self) -> Iterator[bytes]:
        """The kept records in the order of their indexes."""
        rounds = [self._of_round(*bounds) for bounds in zip(self._bounds, self._bounds[1:], strict=False)]
        for _, line in heapq.merge(*rounds, key=lambda item: item[0]):
            yield line

    def _of_round(self, first: int, after: int) -> Iterator[tuple[int, bytes]]:
        current, stream = -1, None
        try:
            for at, rows in self._rows.pieces(first, after):
                for row in rows[self.kept[at : at + len(rows)]]:
                    if row["file"] != current:
                        if stream is not None:
                            stream.close()
                        current = int(row["file"])
                        stream = self._paths[current].open("rb")
                    assert stream is not None
                    stream.seek(int(row["offset"]))
                    yield int(row["index"]), stream.readline()
        finally:
            if stream is not None:
                stream.close()


class _Column:
    """An array in a file that grows at its end; what is read or written of it is no memory of this process's."""

    def __init__(self, path: Path, kind: np.dtype[Any]) -> None:
        self._kind, self._size = kind, 0
        self._file = path.open("w+b", buffering=0)

    def __len__(self) -> int:
        return self._size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, values: NDArray[Any]) -> None:
        """Write these behind what there is."""
        data = memoryview(values.astype(self._kind).tobytes())
        at = self._size * self._kind.itemsize
        while data:
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written
        self._size += len(values)

    def __getitem__(self, place: int) -> Any:
        return self._at(place, place + 1)[0]

    def __setitem__(self, place: int, value: int) -> None:
        os.pwrite(self._file.fileno(), np.array(value, self._kind).tobytes(), place * self._kind.itemsize)

    def pieces(self, first: int = 0, after: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """(place, values from there on) until all from ``first`` to before ``after`` are through."""
        after = self._size if after is None else after
        for at in range(first, after, _PIECE):
            yield at, self._at(at, min(after, at + _PIECE))

    def _at(self, first: int, after: int) -> NDArray[Any]:
        size = self._kind.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), (after - first) * size, first * size), self._kind)


def _earlier(keys: _Column, first: int) -> NDArray[np.int32]:
    """For each key from ``first`` on, one more than the place of the last equal one before it; 0 where there is none.

    Keys are hashes, evenly spread, so that those of a range of values are sorted by themselves.
    """
    found = np.zeros(len(keys) - first, np.int32)
    ranges = -(-len(keys) // _SORTED)
    for number in range(ranges):
        low, high = ((1 << 32) * n // ranges for n in (number, number + 1))
        values, places = [], []
        for at, piece in keys.pieces():
            top = piece >> np.uint64(32)
            chosen = np.flatnonzero((top >= low) & (top < high))
            values.append(piece[chosen])
            places.append((chosen + at).astype(np.int32))
        value, place = np.concatenate(values), np.concatenate(places)
        order = np.argsort(value, kind="stable")
        value, place = value[order], place[order]
        second = np.flatnonzero(value[1:] == value[:-1]) + 1
        second = second[place[second] >= first]
        found[place[second] - first] = place[second - 1] + 1
    return found
