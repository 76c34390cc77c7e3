"""The dataset's packed blocks: reading, checking, order, batches.

The data order is a function of the seed and the step alone: the blocks are drawn from an endless row of
permutations, one an epoch, cut into global batches. So a step's blocks do not depend on how many processes share
them or on how a batch is split up, no epoch drops its rest, and resuming means to start at the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from jobs.artifacts import ArtifactStore, Manifest
from jobs.parquet import reading
from jobs.specs import DataError

IGNORE = -100  # a label that no loss is taken of

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Block:
    """Some posts one after the other: token ids, and how many of them each post (or piece of one) has."""

    ids: Tokens
    lengths: npt.NDArray[np.int64]


class Blocks(Dataset[Block]):  # type: ignore[misc]
    """All blocks of a split, in memory: four bytes a token."""

    def __init__(self, ids: Tokens, block_ends: npt.NDArray[np.int64], lengths: Sequence[Sequence[int]]) -> None:
        self._ids, self._ends = ids, block_ends
        self._lengths = [np.asarray(part, dtype=np.int64) for part in lengths]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Block:
        start = int(self._ends[index - 1]) if index else 0
        return Block(self._ids[start : self._ends[index]], self._lengths[index])

    @property
    def tokens(self) -> int:
        """Tokens of the split."""
        return len(self._ids)

    @property
    def targets(self) -> int:
        """Tokens that are predicted: all but the first of each post or piece."""
        return len(self._ids) - sum(len(part) for part in self._lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest post or piece."""
        return max((int(part.max()) for part in self._lengths), default=0)

    def pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All tokens that have a next one in their post or piece, and those next ones."""
        at = self._with_a_next()
        return self._ids[at].astype(np.int64), self._ids[at + 1].astype(np.int64)

    def triples(self, none: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """As ``pairs``, and first of all the tokens before them; ``none`` before the first one of a post or piece."""
        at = self._with_a_next()
        before = self._ids[np.maximum(at - 1, 0)].astype(np.int64)
        before[np.diff(at, prepend=-2) != 1] = none  # the place before has no next one: a post or piece ends there
        return before, self._ids[at].astype(np.int64), self._ids[at + 1].astype(np.int64)

    def _with_a_next(self) -> npt.NDArray[np.int64]:
        inner = np.ones(len(self._ids), dtype=bool)
        if self._lengths:
            inner[np.cumsum(np.concatenate(self._lengths)) - 1] = False
        return np.flatnonzero(inner)

    @classmethod
    def from_lists(cls, blocks: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Blocks:
        """From (token ids, lengths) pairs."""
        ids = np.concatenate([np.asarray(b[0], dtype=np.int32) for b in blocks]) if blocks else np.empty(0, np.int32)
        ends = np.cumsum([len(b[0]) for b in blocks], dtype=np.int64)
        return cls(ids.astype(np.int32), ends, [b[1] for b in blocks])


def fetch_blocks(store: ArtifactStore, manifest: Manifest, split: str, folder: Path, vocab_size: int) -> Blocks:
    """Download and read ``blocks/SPLIT-*.parquet``. Raises DataError when they are missing or make no sense."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "lengths")])
    pattern = f"blocks/{split}-*.parquet"
    entries = manifest.matching(pattern)
    if not entries:
        raise DataError(f"{manifest.ref} has no {pattern}: it is no dataset that can be trained on")
    store.download(manifest.ref, folder, pattern, manifest=manifest)
    ids: list[Tokens] = []
    sizes: list[npt.NDArray[np.int64]] = []
    lengths: list[list[int]] = []
    for entry in entries:
        where = f"{manifest.ref}/{entry.path}"
        with reading(where, "is not a file of packed blocks"), pq.ParquetFile(folder / entry.path) as file:
            for raw in file.iter_batches(batch_size=4096, columns=schema.names):
                if missing := set(schema.names) - set(raw.schema.names):
                    raise DataError(f"{where} is not a file of packed blocks: it has no column {min(missing)!r}")
                batch = raw.select(schema.names).cast(schema)
                if any(c.null_count or c.flatten().null_count for c in batch.columns):
                    raise DataError(f"{where} is not a file of packed blocks: some of it is empty")
                column = batch.column("input_ids")
                ids.append(column.flatten().to_numpy())
                sizes.append(column.value_lengths().to_numpy().astype(np.int64))
                parts = batch.column("lengths").to_pylist()
                if any(sum(p) != s or min(p, default=0) < 1 for p, s in zip(parts, sizes[-1].tolist(), strict=True)):
                    raise DataError(f"{where}: the column 'lengths' does not add up to the blocks' tokens")
                lengths.extend(parts)
    blocks = Blocks(np.concatenate(ids), np.cumsum(np.concatenate(sizes)), lengths)
    if not len(blocks) or not blocks.targets:
        raise DataError(f"{manifest.ref} has no {split} posts: give preprocess more posts, or a larger 'validation'")
    low, high = int(blocks._ids.min()), int(blocks._ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{manifest.ref}: token id {high if high >= vocab_size else low} of the {split} blocks lies outside the "
            f"vocabulary of {vocab_size}: it was made with another tokenizer"
        )
    return blocks


class GlobalBatches(Sampler[list[int]]):  # type: ignore[misc]
    """Batches of one process: lists of block numbers, beginning with optimiser step ``first_step``.

    ``batch_size`` blocks a batch, ``accumulation`` batches a step, ``world`` processes of which this is number
    ``rank``. Step *t* is positions ``t*G … (t+1)*G`` of the endless row, G = batch_size * accumulation * world.
    """

    def __init__(
        self,
        blocks: int,
        *,
        seed: int,
        batch_size: int,
        accumulation: int,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._blocks, self._seed = blocks, seed
        self._batch_size, self._accumulation, self._steps = batch_size, accumulation, steps
        self.first_step = first_step
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        per_process = self._batch_size * self._accumulation
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.first_step, self._steps):
            start = (step * self._world + self._rank) * per_process
            chosen = []
            for position in range(start, start + per_process):
                if position // self._blocks != epoch:
                    epoch = position // self._blocks
                    order = epoch_order(self._blocks, self._seed, epoch)
                chosen.append(int(order[position % self._blocks]))
            for i in range(0, per_process, self._batch_size):
                yield chosen[i : i + self._batch_size]


def epoch_order(blocks: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the blocks in one epoch: a function of the seed and the epoch's number."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(blocks)


def steps_for(epochs: float, blocks: int, global_batch: int) -> int:
    """Optimiser steps that see ``epochs`` times all blocks."""
    return max(1, math.ceil(epochs * blocks / global_batch - 1e-9))


class Rows:
    """Collates blocks to rows of equal length; posts are told apart by position ids that begin at 0 again.

    Gives ``input_ids``, ``position_ids``, ``labels`` of shape (blocks, tokens of the longest). ``labels`` are
    shifted already: what is predicted *at* a position, IGNORE at a post's last token and on padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
        width = max(len(b.ids) for b in blocks)
        shape = (len(blocks), width)
        ids = np.full(shape, self._pad, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        for row, block in enumerate(blocks):
            size = len(block.ids)
            ids[row, :size] = block.ids
            positions[row, :size] = _positions(block.lengths)
            positions[row, size:] = np.arange(width - size)  # a piece of its own, which nothing looks at
            labels[row, : size - 1] = block.ids[1:]
            labels[row, np.cumsum(block.lengths) - 1] = IGNORE
        return {
            n: torch.from_numpy(v) for n, v in (("input_ids", ids), ("position_ids", positions), ("labels", labels))
        }


class Separate:
    """Collates each post to a row of its own, for models that cannot tell packed posts apart.

    Gives ``input_ids``, ``attention_mask``, ``labels`` of shape (posts, tokens of the longest).
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
        posts = [p for b in blocks for p in np.split(b.ids, np.cumsum(b.lengths)[:-1])]
        shape = (len(posts), max(len(p) for p in posts))
        ids = np.full(shape, self._pad, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        for row, post in enumerate(posts):
            ids[row, : len(post)] = post
            mask[row, : len(post)] = 1
            labels[row, : len(post) - 1] = post[1:]
        return {n: torch.from_numpy(v) for n, v in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}


def _positions(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.arange(len(starts)) - starts


def count_targets(batch: dict[str, Any]) -> int:
    """Predicted tokens of a batch."""
    return int(batch["labels"].ne(IGNORE).sum())
