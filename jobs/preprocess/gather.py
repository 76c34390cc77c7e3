"""The first pass as a whole: posts from the bucket through the workers, then into the order of (channel, id)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.posts import read_posts
from jobs.preprocess.clean import BUCKETS, COLUMNS, Cleaned, CleanTask, Example, clean_batch, merge_examples
from jobs.preprocess.corpus import Ints, Rows
from jobs.preprocess.pool import Workers
from jobs.similarity import Banding, Hashes
from jobs.specs import PreprocessSpec
from jobs.stage import StageContext

BATCH_POSTS = 4096
BATCH_BYTES = 32 * 1024 * 1024
#: The first batches are small, so that the workers end at about the same time where there are no more of them.
FIRST_BATCHES, FIRST_POSTS = 16, 1024

Context = StageContext[PreprocessSpec]


@dataclass(slots=True)
class Corpus:
    """All posts that the rules kept, in the order of (channel, id), one entry a post; and what was counted."""

    rows: Rows
    ids: Ints
    channels: list[str]
    channel_codes: Ints
    dates: Ints
    digests: Hashes
    keys: Hashes
    upper: Ints
    lower: Ints
    buckets: Ints
    dropped: Rows
    posts: int
    dropped_by: Counter[str]
    changed_by: Counter[str]
    examples: dict[tuple[str, str], list[Example]]

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, number: int) -> str:
        """CHANNEL/ID of a post."""
        return f"{self.channels[self.channel_codes[number]]}/{self.ids[number]}"

    def in_time(self) -> Ints:
        """Each post's rank by (date, channel, id); posts without a date come first."""
        order = np.lexsort((np.arange(len(self)), self.dates))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank


def batches(ctx: Context) -> Iterator[pa.RecordBatch]:
    """The posts in batches of bounded size, whatever the sizes of the shards."""
    assert ctx.spec.posts is not None
    waiting: list[pa.RecordBatch] = []
    rows = given = 0
    for batch in read_posts(ctx.store, ctx.spec.posts, COLUMNS):
        ctx.check_stop()
        most = FIRST_POSTS if given < FIRST_BATCHES else BATCH_POSTS
        pieces = max(1, -(-batch.nbytes // BATCH_BYTES))
        step = min(most, max(1, -(-batch.num_rows // pieces)))
        for start in range(0, batch.num_rows, step):
            waiting.append(batch.slice(start, step))
            rows += waiting[-1].num_rows
            if rows >= most // 2 or pieces > 1:
                yield _one(waiting)
                waiting, rows, given = [], 0, given + 1
    if waiting:
        yield _one(waiting)


def _one(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def first_pass(ctx: Context, profile: str, where: str, workers: Workers) -> Corpus:
    """Clean all posts and put what is known of them into the canonical order."""
    folder = ctx.workdir / "rows"
    folder.mkdir()
    banding = Banding.for_threshold(ctx.spec.near_duplicates)
    tasks = (
        CleanTask(number, batch, folder, profile, where, ctx.spec.mask_pii, banding)
        for number, batch in enumerate(batches(ctx))
    )
    parts: list[Cleaned] = []
    buckets = np.zeros(BUCKETS, np.int64)
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    examples: dict[tuple[str, str], list[Example]] = {}
    posts = 0
    for part in workers.map(clean_batch, tasks):
        buckets += part.buckets
        part.buckets = np.zeros(0, np.int32)  # a slice of it would keep a megabyte for each batch
        dropped.update(part.dropped)
        changed.update(part.changed)
        merge_examples(examples, part.examples)
        posts += part.posts
        parts.append(part)
        ctx.progress.update(message="applying the rules", done=posts, unit="posts")
        ctx.check_stop()
    ctx.log.info("%d posts read; the rules keep %d", posts, posts - dropped.total())

    channels = sorted({c for p in parts for c in (*p.channels, *p.dropped_channels)})
    code = {name: number for number, name in enumerate(channels)}

    def recode(names: list[str], codes: Ints) -> Ints:
        return np.array([code[n] for n in names], np.int64)[codes] if len(codes) else codes

    kept_codes = join([recode(p.channels, p.channel_codes) for p in parts])
    ids = join([p.ids for p in parts])
    order = np.lexsort((ids, kept_codes))
    gone_codes = join([recode(p.dropped_channels, p.dropped_codes) for p in parts])
    gone_ids = join([p.dropped_ids for p in parts])
    gone_order = np.lexsort((gone_ids, gone_codes))
    wide = [np.zeros((0, banding.bands), np.uint64)]
    return Corpus(
        rows=_rows(folder, "kept", [(p.number, p.sizes) for p in parts]).part(order),
        ids=ids[order],
        channels=channels,
        channel_codes=kept_codes[order],
        dates=join([p.dates for p in parts])[order],
        digests=np.concatenate([p.digests for p in parts] or [np.zeros((0, 2), np.uint64)])[order],
        keys=np.concatenate([p.keys for p in parts] or wide)[order],
        upper=join([p.upper for p in parts])[order],
        lower=join([p.lower for p in parts])[order],
        buckets=buckets,
        dropped=_rows(folder, "dropped", [(p.number, p.dropped_sizes) for p in parts]).part(gone_order),
        posts=posts,
        dropped_by=dropped,
        changed_by=changed,
        examples=examples,
    )


def join(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _rows(folder: Path, stem: str, parts: list[tuple[int, Ints]]) -> Rows:
    """All rows of these files; ``parts``: the number of each file and the bytes of its rows."""
    files = join([np.full(len(sizes), number, np.int64) for number, sizes in parts])
    rows = join([np.arange(len(sizes), dtype=np.int64) for _, sizes in parts])
    return Rows(folder, stem, files, rows, join([sizes for _, sizes in parts]))
