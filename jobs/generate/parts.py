"""The fixed parts of a batch, and how one of them is drawn.

Why a batch does not depend on how it is shared out: its posts 0 … count-1 are cut into parts by the spec alone.
A part is drawn by one session whose seed comes from (the spec's seed, round, part), in rounds whose batches depend
on what this part drew before, and on nothing else. So any process that makes a part makes the same posts, and it
does not matter which process makes which part, in which order, or how often.

Within a part, posts that a gate refuses are drawn again, all missing ones of the part together so that batches
stay full; when only a few are missing, each is drawn several times in one batch and the first that passes counts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.generate.engines import Session
from jobs.generate.gates import Gates, Judged
from jobs.generate.prompts import Prompts
from jobs.similarity import Banding, Hashes, jaccard, normalise, shingle_many, shingles
from jobs.specs import GenerateSpec

_PARTS = 8  # a small batch is cut into at most so many parts, so that cores and shards have something to share
_LEAST = 2  # micro-batches in a part where the batch has enough: the last draws of a part are in small batches
_FULL = 8  # micro-batches in the parts of a large batch
_SMALLEST = 32  # posts in a part
_STUBBORN = 5  # times max_attempts that a single post may take out of its part's allowance
_LEFT = 0.5  # missing posts are drawn so often at once that about so many of them stay missing
HOPELESS = 256  # draws without a single post that passes after which the batch is given up


@dataclass(frozen=True)
class Part:
    """A part of a batch: ``slots`` are the indexes of its posts. Round 0 makes the batch; later rounds draw posts
    anew that turned out to be near-duplicates of other parts' posts."""

    round: int
    number: int
    slots: Sequence[int]

    @property
    def name(self) -> str:
        """Its folder below ``parts/``."""
        return f"{self.round:02d}-{self.number:05d}"

    def seed(self, seed: int) -> int:
        """The 32-bit seed of its random stream."""
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.round}/{self.number}".encode()).digest()[:4], "big")


class Plan(Sequence[Part]):
    """All parts of round 0, by the spec alone."""

    def __init__(self, count: int, micro_batch: int) -> None:
        size = max(_SMALLEST, min(_FULL * micro_batch, max(_LEAST * micro_batch, math.ceil(count / _PARTS))))
        self._count = count
        self._parts = max(math.ceil(count / size), 2 if count > _SMALLEST else 1)

    def __len__(self) -> int:
        return self._parts

    def __getitem__(self, number: Any) -> Any:
        if not isinstance(number, int) or not 0 <= number < self._parts:
            raise IndexError(number)
        first, after = (self._count * n // self._parts for n in (number, number + 1))
        return Part(0, number, range(first, after))


def again(round_: int, slots: Sequence[int], micro_batch: int) -> list[Part]:
    """The parts that draw some posts anew, of at most one full part each."""
    size = max(_SMALLEST, _FULL * micro_batch)
    return [Part(round_, n, slots[at : at + size]) for n, at in enumerate(range(0, len(slots), size))]


@dataclass
class Tally:
    """What drawing took: draws, tokens drawn, refusals by gate, passing draws that were not needed."""

    drawn: int = 0
    tokens: int = 0
    spare: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    form: Counter[str] = field(default_factory=Counter)

    def add(self, post: Judged) -> None:
        """Count one draw that has been judged."""
        self.drawn += 1
        self.tokens += len(post.draw.tokens) + post.draw.ended
        if post.refused is not None:
            self.refused[post.refused] += 1
        if post.refused == "form":
            self.form[str(post.values["form"])] += 1

    def merge(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.drawn += other.drawn
        self.tokens += other.tokens
        self.spare += other.spare
        self.refused.update(other.refused)
        self.form.update(other.form)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "drawn": self.drawn,
            "tokens": self.tokens,
            "spare": self.spare,
            "refused": dict(sorted(self.refused.items())),
            "form": dict(sorted(self.form.items())),
        }

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Tally:
        """The inverse of ``plain``."""
        return cls(plain["drawn"], plain["tokens"], plain["spare"], Counter(plain["refused"]), Counter(plain["form"]))


@dataclass(frozen=True)
class Accepted:
    """A post that passed: its index in the batch, how often it was drawn until then, and the post."""

    index: int
    attempts: int
    post: Judged


class Drawing:
    """Draws one part. ``check`` gets the tally and the number of accepted posts between micro-batches and may
    raise to stop."""

    def __init__(
        self,
        part: Part,
        session: Session,
        prompts: Prompts,
        gates: Gates,
        spec: GenerateSpec,
        check: Callable[[Tally, int], None],
    ) -> None:
        self._part, self._session, self._gates, self._spec, self._check = part, session, gates, spec, check
        self._prompts = {slot: prompts[slot] for slot in part.slots}
        self._others = Others(spec.near_duplicates)
        self._attempts = Counter[int]()
        self.tally = Tally()
        self.accepted: dict[int, Accepted] = {}

    def run(self) -> list[Accepted]:
        """The part's posts in order; fewer than its slots when attempts ran out."""
        spec = self._spec
        allowance = spec.max_attempts * spec.rerank * len(self._part.slots)
        stubborn = spec.max_attempts * spec.rerank * _STUBBORN
        while True:
            missing = [s for s in self._part.slots if s not in self.accepted and self._attempts[s] < stubborn]
            left = allowance - self.tally.drawn
            if not missing or left <= 0 or (not self.accepted and self.tally.drawn >= max(HOPELESS, spec.rerank)):
                break
            times = self._times(len(missing))
            missing = missing[: max(1, left // times)]
            self._round([slot for slot in missing for _ in range(min(times, left))])
        return [self.accepted[s] for s in self._part.slots if s in self.accepted]

    def _times(self, missing: int) -> int:
        """How often each missing post is drawn in the next round."""
        spec = self._spec
        passing = (self.tally.drawn - sum(self.tally.refused.values()) + 1) / (self.tally.drawn + 2)
        enough = math.ceil(math.log(_LEFT / missing) / math.log1p(-passing)) if self.tally.drawn else 1
        return max(spec.rerank, min(spec.micro_batch // missing, enough))

    def _round(self, slots: list[int]) -> None:
        """Draw a post for each entry of ``slots`` (one may occur several times), judge, and accept."""
        drawn: dict[int, list[Judged]] = {}
        # Batches of prompts of about one length: what exceeds the shortest is computed token by token.
        for batch in _batches(sorted(slots, key=lambda s: len(self._prompts[s].ids)), self._spec.micro_batch):
            self._check(self.tally, len(self.accepted))
            prompts = [self._prompts[slot] for slot in batch]
            draws = self._session.draw([p.ids for p in prompts])
            for slot, post in zip(batch, self._gates.judge(prompts, draws), strict=True):
                self.tally.add(post)
                drawn.setdefault(slot, []).append(post)
        self._others.prepare([p.text for posts in drawn.values() for p in posts if p.refused is None])
        for slot in sorted(drawn):
            self._accept(slot, drawn[slot])

    def _accept(self, slot: int, posts: list[Judged]) -> None:
        """Take the first (with ``rerank`` the best) of a post's draws that passes and is like no other post."""
        before = self._attempts[slot]
        self._attempts[slot] += len(posts)
        passing = [(n, p) for n, p in enumerate(posts, start=1) if p.refused is None]
        if self._spec.rerank > 1:
            passing.sort(key=lambda item: (-item[1].score_per_character, item[0]))
        for tried, (number, post) in enumerate(passing, start=1):
            if not self._others.add_if_new(post.text):
                post.refused = "near_duplicate"
                self.tally.refused["near_duplicate"] += 1
                continue
            post.values["near_duplicate"] = False
            self.tally.spare += len(passing) - tried
            attempts = before + (number if self._spec.rerank == 1 else len(posts))
            self.accepted[slot] = Accepted(slot, attempts, post)
            return


class Others:
    """The accepted posts of a part. Signatures are made for many texts at once (``prepare``), which costs a
    twentieth of making them one by one."""

    def __init__(self, threshold: float) -> None:
        self._banding = Banding.for_threshold(threshold)
        self._tables: list[dict[int, list[Hashes]]] = [{} for _ in range(self._banding.bands)]
        self._keys: dict[str, list[int]] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        """Make the signatures of the texts that ``add_if_new`` will be asked about next."""
        keys = self._banding.keys(*shingle_many([normalise(t) for t in texts]))
        self._keys = dict(zip(texts, keys.tolist(), strict=True))

    def add_if_new(self, text: str) -> bool:
        """Whether a prepared text is like none that was added before; it is added then."""
        own, keys = shingles(text), self._keys[text]
        seen: set[int] = set()
        for table, key in zip(self._tables, keys, strict=True):
            for other in table.get(key, ()):
                if id(other) not in seen:
                    seen.add(id(other))
                    if jaccard(own, other) >= self._banding.threshold:
                        return False
        for table, key in zip(self._tables, keys, strict=True):
            table.setdefault(key, []).append(own)
        return True


def _batches(slots: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for at in range(0, len(slots), size):
        yield slots[at : at + size]
