"""The fixed parts of a batch, and how one of them is drawn.

Why a batch does not depend on how it is shared out: its posts 0 … count-1 are cut into parts by the spec alone.
A part is drawn by one session whose seed comes from (the spec's seed, round, part), in rounds whose batches depend
on what this part drew before, and on nothing else. So any process that makes a part makes the same posts, and it
does not matter which process makes which part, in which order, or how often.

Within a part, posts that a gate refuses are drawn again. A step of a batch of a few posts costs nearly as much as
one of many, so what counts is how many batches a part takes. What is refused is drawn again beside posts that have not
been drawn yet, not in small batches afterwards: a part has room for that, so that all of its batches are full but the
last. In that one some more are drawn than are missing, by the share that has passed so far. Those of them that pass and
are not needed stay with the part, as spares: they stand in for posts that turn out to be like those of other parts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jobs.generate.engines import Draw, Session
from jobs.generate.gates import Gates, Judged
from jobs.generate.prompts import Prompt, Prompts
from jobs.similarity import Banding, Hashes, jaccard, normalise, shingle_many, shingles
from jobs.specs import GenerateSpec

_PARTS = 8  # a small batch is cut into at most so many parts, so that cores and shards have something to share
_LEAST = 2  # micro-batches in a part where the batch has enough: the last draws of a part are in small batches
_FULL = 4  # micro-batches in the parts of a large batch
_ROOM = 0.8  # of a micro-batch that the plan fills; the rest is for what is refused and drawn again
_SMALLEST = 32  # posts in a part
STUBBORN = 5  # times max_attempts that a missing post may take out of what all are allowed together
_MARGIN = 2.0  # standard deviations of what passes that are drawn on top of what is missing
_PRIOR, _GUESS = 0.9, 10  # the share that passes as long as nothing is known, and how many draws that counts for
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
        filled = _ROOM * micro_batch
        largest = max(_SMALLEST, int(_FULL * filled))
        size = max(_SMALLEST, min(largest, max(int(_LEAST * filled), math.ceil(count / _PARTS))))
        parts = max(math.ceil(count / size), 2 if count > _SMALLEST else 1)
        if 1 < parts < _PARTS and parts % 2 and count <= (parts - 1) * largest:
            parts -= 1  # of three parts, one would keep one core of two waiting
        self._count, self._parts = count, parts

    def __len__(self) -> int:
        return self._parts

    def __getitem__(self, number: Any) -> Any:
        if not isinstance(number, int) or not 0 <= number < self._parts:
            raise IndexError(number)
        first, after = (self._count * n // self._parts for n in (number, number + 1))
        return Part(0, number, range(first, after))

    def part_of(self, index: int) -> Part:
        """The part that a post of the batch is in."""
        found: Part = self[((index + 1) * self._parts - 1) // self._count]
        return found


def again(round_: int, slots: Sequence[int], micro_batch: int) -> list[Part]:
    """The parts that draw some posts anew, of at most one full part each; at least two, where there is enough to do
    for two cores."""
    full = max(_SMALLEST, int(_FULL * _ROOM * micro_batch))
    parts = max(math.ceil(len(slots) / full), min(2, len(slots) // _SMALLEST), 1)
    bounds = [len(slots) * n // parts for n in range(parts + 1)]
    return [Part(round_, n, slots[bounds[n] : bounds[n + 1]]) for n in range(parts)]


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


def worth_drawing(lost: Mapping[int, int], spec: GenerateSpec, tally: Tally) -> list[int]:
    """The indexes of a batch that are drawn anew, of those whose post was lost to another part's.

    ``lost``: the draws that each has taken. ``max_attempts`` is a mean over the batch, so that one post may take more
    than that as long as all together have not, and none may take for ever.
    """
    if tally.drawn >= spec.max_attempts * spec.rerank * spec.count:
        return []
    return [index for index, attempts in lost.items() if attempts < STUBBORN * spec.max_attempts * spec.rerank]


@dataclass(frozen=True)
class Accepted:
    """A post that passed: its index in the batch, the draws that it took, and the post."""

    index: int
    attempts: int
    post: Judged


class Drawing:
    """Draws one part. ``check`` gets the tally and the number of accepted posts between micro-batches and may
    raise to stop. ``spares``: posts that passed when no more were missing, each with the index of the first post that
    it could stand for."""

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
        self._groups = _groups(part, prompts, alone=spec.rerank > 1)
        self._others = Others(spec.near_duplicates)
        self._judged: list[int] = []  # the groups of the batch that is being judged, one entry a draw
        self.tally = Tally()
        self.accepted: dict[int, Accepted] = {}
        self.spares: list[Accepted] = []

    def run(self) -> list[Accepted]:
        """The part's posts in order; fewer than its slots when attempts ran out."""
        # One batch is judged while the next is drawn: the engine, a GPU above all, need not wait for the gates. What a
        # batch consists of follows from the batches before the one that is being judged, however fast that goes.
        with ThreadPoolExecutor(1, thread_name_prefix="judge") as pool:
            judging: Future[list[Judged]] | None = None
            while True:
                batch, last = self._next()
                if last and judging is not None:  # how many are missing in the end is worth waiting for
                    self._settle(judging.result())
                    judging = None
                    continue
                if not batch:
                    break
                self._check(self.tally, len(self.accepted))
                prompts = [self._groups[number].prompt for number in batch]
                draws = self._session.draw([p.ids for p in prompts])
                if judging is not None:
                    self._settle(judging.result())
                judging = pool.submit(self._judge, prompts, draws)
                self._judged = batch
        for group in self._groups:  # the allowance may end before a post has had all draws to choose from
            self._accept(group, group.waiting)
        return [self.accepted[s] for s in self._part.slots if s in self.accepted]

    def _next(self) -> tuple[list[int], bool]:
        """The groups to draw for in the next batch, one entry a draw, and whether it is probably the last.

        Batches are full until one can hold all that has to be drawn until the part is, by the share that has passed.
        """
        spec, tally, judged = self._spec, self.tally, Counter(self._judged)
        left = spec.max_attempts * spec.rerank * len(self._part.slots) - tally.drawn - len(self._judged)
        if left <= 0 or (not self.accepted and tally.drawn >= max(HOPELESS, spec.rerank)):
            return [], True
        stubborn = STUBBORN * spec.max_attempts * spec.rerank
        missing = {
            number: count
            for number, group in enumerate(self._groups)
            if (count := sum(s not in self.accepted for s in group.slots)) and group.refused < stubborn * count
        }
        passing = (tally.drawn - sum(tally.refused.values()) + _PRIOR * _GUESS) / (tally.drawn + _GUESS)
        if spec.rerank > 1:
            open_ = {n: spec.rerank - len(self._groups[n].waiting) - judged[n] for n in missing}
            likely = wanted = sum(open_.values())
        else:
            open_ = {n: max(0, count - judged[n]) for n, count in missing.items()}
            still = max(0.0, sum(missing.values()) - passing * len(self._judged))
            likely, wanted = math.ceil(still / passing), _enough(still, passing)
        total = sum(open_.values())
        size = min(left, spec.micro_batch, wanted)
        batch: list[int] = []
        # Batches of prompts of about one length: what exceeds the shortest is computed token by token.
        for number in sorted(open_, key=lambda n: (len(self._groups[n].prompt.ids), n)):
            count = open_[number]
            if spec.rerank == 1 and 0 < total < size:  # more than is missing, for some of it will be refused
                count = max(count, min(_enough(count, passing), count * size // total))
            batch += [number] * count
        return batch[:size], likely <= spec.micro_batch or not batch

    def _judge(self, prompts: Sequence[Prompt], draws: Sequence[Draw]) -> list[Judged]:
        judged = self._gates.judge(prompts, draws)
        self._others.prepare([post.text for post in judged if post.refused is None])
        return judged

    def _settle(self, judged: Sequence[Judged]) -> None:
        """Count and accept what has been judged."""
        drawn: dict[int, list[Judged]] = {}
        for number, post in zip(self._judged, judged, strict=True):
            self.tally.add(post)
            drawn.setdefault(number, []).append(post)
        self._judged = []
        for number in sorted(drawn):
            group = self._groups[number]
            group.waiting += drawn[number]
            if len(group.waiting) >= self._spec.rerank:
                self._accept(group, group.waiting)

    def _accept(self, group: _Group, posts: Sequence[Judged]) -> None:
        """Give a group's missing posts what passes and is like no other post; with ``rerank`` the best of it."""
        missing = [s for s in group.slots if s not in self.accepted]
        before = group.refused
        if self._spec.rerank > 1:
            posts = sorted(posts, key=lambda p: -p.score_per_character)  # stable: the first drawn among equals
        for post in posts:
            if post.refused is None and not missing:
                self.tally.spare += 1
                if self._spec.rerank == 1:
                    self.spares.append(Accepted(group.slots[0], 1, post))
            elif post.refused is None and self._others.add_if_new(post.text):
                post.values["near_duplicate"] = False
                slot = missing.pop(0)
                attempts = before + len(posts) if self._spec.rerank > 1 else group.refused + 1
                self.accepted[slot] = Accepted(slot, attempts, post)
                group.refused = 0
            else:
                if post.refused is None:
                    post.refused = "near_duplicate"
                    self.tally.refused["near_duplicate"] += 1
                group.refused += 1
        group.waiting = []


@dataclass
class _Group:
    """Posts of a part that begin with the same tokens: what is drawn for one may serve another. With ``rerank``
    each post is alone. ``refused``: draws since the last one that was accepted; ``waiting``: draws to choose from."""

    prompt: Prompt
    slots: list[int]
    refused: int = 0
    waiting: list[Judged] = field(default_factory=list)


def _groups(part: Part, prompts: Prompts, *, alone: bool) -> list[_Group]:
    found: dict[Any, _Group] = {}
    for slot in part.slots:
        prompt = prompts[slot]
        group = found.setdefault(slot if alone else (prompt.given, prompt.ids), _Group(prompt, []))
        group.slots.append(slot)
    return list(found.values())


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


def _enough(missing: float, passing: float) -> int:
    """How many to draw so that so many very probably pass."""
    return math.ceil((missing + _MARGIN * math.sqrt(missing * (1 - passing))) / passing)
