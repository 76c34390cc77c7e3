"""First pass, in the workers: a batch of raw posts through the rules, and what the next passes need to know."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.preprocess.corpus import DROPPED, KEPT, POST, Ints, text_bytes, write_arrow
from jobs.preprocess.draft import Draft, Entity
from jobs.preprocess.measure import case_counts
from jobs.preprocess.profile import Profile, grown, parse_profile
from jobs.preprocess.rule_base import GrownError
from jobs.similarity import Banding, Hashes, normalise, shingle_many

#: What the first pass reads of the posts.
COLUMNS = [
    "id", "channel", "date", "text", "entities", "links", "media", "album_id",
    "forwarded_from", "via_bot", "poll", "invoice", "service",
]  # fmt: skip
EXAMPLES = 3  # a rule and kind
EXAMPLE_CHARACTERS = 700
NO_DATE = np.iinfo(np.int64).min
#: How often each 5-gram occurs is counted in so many buckets; see jobs.preprocess.leaks.
BUCKETS = 1 << 18


@dataclass(frozen=True, slots=True)
class CleanTask:
    """A batch to clean; ``number`` names its files in ``folder``."""

    number: int
    batch: pa.RecordBatch
    folder: Path
    profile: str
    where: str
    mask: bool
    banding: Banding


@dataclass(frozen=True, order=True, slots=True)
class Example:
    """A post that shows what a rule does. Those with the smallest ``key`` are shown, so that they do not depend
    on the order of the work."""

    key: int
    channel: str
    id: int
    before: str = field(compare=False)
    after: str = field(compare=False)


@dataclass(slots=True)
class Cleaned:
    """What became of a batch. Arrays have one entry a kept post, in the order of its file."""

    number: int
    posts: int
    ids: Ints
    sizes: Ints  # bytes of a post's texts
    channels: list[str]
    channel_codes: Ints
    dates: Ints  # seconds since 1970, NO_DATE without
    digests: Hashes  # (posts, 2): of the normalised text
    keys: Hashes  # (posts, bands)
    upper: Ints
    lower: Ints
    buckets: NDArray[np.int32]
    dropped_ids: Ints
    dropped_sizes: Ints
    dropped_channels: list[str]
    dropped_codes: Ints
    dropped: Counter[str]
    changed: Counter[str]
    examples: dict[tuple[str, str], list[Example]]  # by ("dropped" or "changed", rule)


@lru_cache(maxsize=2)
def load_profile(text: str, where: str, mask: bool) -> Profile:
    """A profile, compiled once a process."""
    profile = parse_profile(text, where)
    return profile.with_masking() if mask else profile


def example_key(channel: str, number: int) -> int:
    """A number that looks random and belongs to a post."""
    name = f"{channel}\0{number}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def clean_batch(task: CleanTask) -> Cleaned:
    """Apply the profile to a batch, write what is kept and what is dropped, and describe what is kept."""
    profile = load_profile(task.profile, task.where, task.mask)
    posts = _records(task.batch)
    kept: dict[str, list[Any]] = {name: [] for name in POST.names}
    gone: dict[str, list[Any]] = {name: [] for name in DROPPED.names}
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    examples: dict[tuple[str, str], list[Example]] = {}
    for number, channel, date, text, draft in posts:
        try:
            verdict = profile.clean(draft)
        except GrownError as error:
            raise grown(profile, error.rule, f"{channel}/{number}", task.profile, task.where) from error
        if verdict is not None:
            rule, detail = verdict
            dropped[rule] += 1
            for column, value in zip(DROPPED.names, (number, channel, text, rule, detail), strict=True):
                gone[column].append(value)
            _remember(examples, ("dropped", rule), channel, number, text, detail)
            continue
        after = draft.text
        same = after == text
        names = [] if same else list(dict.fromkeys(draft.changed_by))
        for rule in names:
            changed[rule] += 1
            _remember(examples, ("changed", rule), channel, number, text, after)
        row = (number, channel, date, after, None if same else text, names)
        for column, value in zip(POST.names, row, strict=True):
            kept[column].append(value)
    texts: list[str] = kept["text"]
    plain = [normalise(t) for t in texts]
    kept_table = pa.table({**kept, "plain": plain}, schema=KEPT)
    gone_table = pa.table(gone, schema=DROPPED)
    write_arrow(kept_table, task.folder / f"kept-{task.number:05d}.arrow")
    write_arrow(gone_table, task.folder / f"dropped-{task.number:05d}.arrow")
    flat, offsets = shingle_many(plain)
    upper, lower = case_counts(texts)
    channels, codes = _encode(kept["channel"])
    gone_channels, gone_codes = _encode(gone["channel"])
    return Cleaned(
        number=task.number,
        posts=task.batch.num_rows,
        ids=np.array(kept["id"], np.int64),
        sizes=text_bytes(kept_table, ["text", "before", "plain"]),
        channels=channels,
        channel_codes=codes,
        dates=np.array([NO_DATE if d is None else d for d in kept["date"]], np.int64),
        digests=_digests(plain),
        keys=task.banding.keys(flat, offsets),
        upper=upper,
        lower=lower,
        buckets=np.bincount(bucket_of(flat), minlength=BUCKETS).astype(np.int32),
        dropped_ids=np.array(gone["id"], np.int64),
        dropped_sizes=text_bytes(gone_table, ["text"]),
        dropped_channels=gone_channels,
        dropped_codes=gone_codes,
        dropped=dropped,
        changed=changed,
        examples=examples,
    )


def bucket_of(hashes: Hashes) -> Ints:
    """The bucket in which a 5-gram is counted."""
    return (hashes >> np.uint64(46)).astype(np.int64)


def _digests(plain: Sequence[str]) -> Hashes:
    """128 bits of each normalised text: equal texts are equal digests, and the other way round."""
    joined = b"".join(hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in plain)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def _encode(names: Sequence[str]) -> tuple[list[str], Ints]:
    distinct = sorted(set(names))
    code = {name: number for number, name in enumerate(distinct)}
    return distinct, np.array([code[n] for n in names], np.int64)


def _remember(
    examples: dict[tuple[str, str], list[Example]],
    place: tuple[str, str],
    channel: str,
    number: int,
    before: str,
    after: str,
) -> None:
    found = examples.setdefault(place, [])
    key = example_key(channel, number)
    if len(found) < EXAMPLES or key < found[-1].key:
        found.append(Example(key, channel, number, before[:EXAMPLE_CHARACTERS], after[:EXAMPLE_CHARACTERS]))
        found.sort()
        del found[EXAMPLES:]


def merge_examples(into: dict[tuple[str, str], list[Example]], more: dict[tuple[str, str], list[Example]]) -> None:
    """Keep the examples with the smallest keys of both."""
    for place, found in more.items():
        into[place] = heapq.nsmallest(EXAMPLES, [*into.get(place, ()), *found])


def _strings(column: pa.Array) -> list[str]:
    """Texts of a column, even where another program wrote bytes that are no UTF-8."""
    try:
        found: list[str] = column.to_pylist()
        return found
    except UnicodeDecodeError:
        return [b.decode("utf-8", "replace") for b in column.cast(pa.binary()).to_pylist()]


def _records(batch: pa.RecordBatch) -> list[tuple[int, str, int | None, str, Draft]]:
    """(id, channel, date in seconds, raw text, draft) of each row."""
    column = {name: batch.column(name) for name in COLUMNS}
    texts = _strings(column["text"])
    dates = column["date"].cast(pa.int64()).to_pylist()
    flags = {
        "service": column["service"].is_valid().to_pylist(),
        "forwarded": column["forwarded_from"].is_valid().to_pylist(),
        "via_bot": column["via_bot"].is_valid().to_pylist(),
        "poll": column["poll"].to_pylist(),
        "invoice": column["invoice"].to_pylist(),
        "album": column["album_id"].is_valid().to_pylist(),
    }
    kinds: list[set[str]] = [set() for _ in texts]
    for name, values in flags.items():
        for row, value in enumerate(values):
            if value:
                kinds[row].add(name)
    for row, media in enumerate(column["media"].to_pylist()):
        if media is not None:
            kinds[row].add(media)
    links = column["links"].to_pylist()
    entities = _entities(column["entities"])
    frozen: dict[frozenset[str], frozenset[str]] = {}
    found = []
    for row, (number, channel) in enumerate(zip(column["id"].to_pylist(), column["channel"].to_pylist(), strict=True)):
        kind = frozenset(kinds[row])
        draft = Draft.of(texts[row], entities[row], kinds=frozen.setdefault(kind, kind), links=links[row] or ())
        found.append((number, channel, dates[row], texts[row], draft))
    return found


def _entities(column: pa.ListArray) -> list[list[Entity]]:
    # Flattened by hand: to_pylist of a list of structs takes longer than all the rules together.
    offsets = column.offsets.to_pylist()
    first = offsets[0]
    flat = column.values.slice(first, offsets[-1] - first)
    names = ("type", "offset", "length", "url")
    fields = [flat.field(name).to_pylist() for name in names]
    rows = [
        Entity(type=kind, offset=offset, length=length, url=url)
        for kind, offset, length, url in zip(*fields, strict=True)
    ]
    return [rows[a - first : b - first] for a, b in pairwise(offsets)]
