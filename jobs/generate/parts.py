"""The fixed parts of a batch, and how one of them is drawn.

Why a batch does not depend on how it is shared out: its posts 0 … count-1 are cut into parts by the spec alone.
A part is drawn by one session whose seed comes from (the spec's seed, round, part), in rounds whose batches depend
on what this part drew before, and on nothing else. So any process that makes a part makes the same posts, and it
does not matter which process makes which part, in which order, or how often.

Within a part, posts that a gate refuses are drawn again, all missing ones of the part together so that batches
stay full. A step of a batch of a few posts costs nearly as much as one of many, so when few are missing some more
than that are drawn at once, by the share that has passed so far, and one such small batch mostly is the last one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_SMALLEST = 32  # posts in a part
STUBBORN = 5  # times max_attempts that a missing post may take out of what all are allowed together
_MARGIN = 1.3  # standard deviations of what passes that are drawn on top of what is missing
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
        self._groups = _groups(part, prompts, alone=spec.rerank > 1)
        self._others = Others(spec.near_duplicates)
        self.tally = Tally()
        self.accepted: dict[int, Accepted] = {}

    def run(self) -> list[Accepted]:
        """The part's posts in order; fewer than its slots when attempts ran out."""
        spec = self._spec
        allowance = spec.max_attempts * spec.rerank * len(self._part.slots)
        while True:
            left = allowance - self.tally.drawn
            hopeless = not self.accepted and self.tally.drawn >= max(HOPELESS, spec.rerank)
            wanted = [] if hopeless or left <= 0 else self._wanted()
            if not wanted:
                return [self.accepted[s] for s in self._part.slots if s in self.accepted]
            self._round(wanted[:left])

    def _wanted(self) -> list[int]:
        """The groups to draw for in the next round, one entry a draw; in the order of their first missing posts."""
        spec = self._spec
        stubborn = STUBBORN * spec.max_attempts * spec.rerank
        opened = {
            number: missing
            for number, group in enumerate(self._groups)
            if (missing := [s for s in group.slots if s not in self.accepted])
            and group.refused < stubborn * len(missing)
        }
        total = sum(map(len, opened.values()))
        passing = (self.tally.drawn - sum(self.tally.refused.values()) + 1) / (self.tally.drawn + 2)
        wanted = []
        for number, missing in sorted(opened.items(), key=lambda item: item[1][0]):
            times = len(missing)
            if spec.rerank > 1:
                times = spec.rerank
            elif self.tally.drawn:
                # So many that all will probably be found at once, as long as they fit one micro-batch.
                spread = _MARGIN * math.sqrt(len(missing) * (1 - passing))
                enough = math.ceil((len(missing) + spread) / passing)
                times = max(times, min(enough, len(missing) * spec.micro_batch // total))
            wanted += [number] * times
        return wanted

    def _round(self, wanted: list[int]) -> None:
        """Draw for each entry of ``wanted`` (numbers of groups), judge, and accept."""
        drawn: dict[int, list[Judged]] = {}

        def judge(batch: Sequence[int], prompts: Sequence[Prompt], draws: Sequence[Draw]) -> None:
            for number, post in zip(batch, self._gates.judge(prompts, draws), strict=True):
                self.tally.add(post)
                drawn.setdefault(number, []).append(post)

        # Batches of prompts of about one length: what exceeds the shortest is computed token by token.
        ordered = sorted(wanted, key=lambda n: len(self._groups[n].prompt.ids))
        # One batch is judged while the next is drawn: the engine, a GPU above all, need not wait for the gates.
        with ThreadPoolExecutor(1, thread_name_prefix="judge") as pool:
            judging: Future[None] | None = None
            for batch in _batches(ordered, self._spec.micro_batch):
                self._check(self.tally, len(self.accepted))
                prompts = [self._groups[number].prompt for number in batch]
                draws = self._session.draw([p.ids for p in prompts])
                if judging is not None:
                    judging.result()
                judging = pool.submit(judge, batch, prompts, draws)
            if judging is not None:
                judging.result()
        self._others.prepare([p.text for posts in drawn.values() for p in posts if p.refused is None])
        for number in sorted(drawn):
            self._accept(self._groups[number], drawn[number])

    def _accept(self, group: _Group, posts: list[Judged]) -> None:
        """Give a group's missing posts what passes and is like no other post; with ``rerank`` the best of it."""
        missing = [s for s in group.slots if s not in self.accepted]
        before = group.refused
        if self._spec.rerank > 1:
            posts = sorted(posts, key=lambda p: -p.score_per_character)  # stable: the first drawn among equals
        for post in posts:
            if post.refused is None and not missing:
                self.tally.spare += 1
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


@dataclass
class _Group:
    """Posts of a part that begin with the same tokens: what is drawn for one may serve another. With ``rerank``
    each post is alone. ``refused``: draws since the last one that was accepted."""

    prompt: Prompt
    slots: list[int]
    refused: int = 0


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


def _batches(slots: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for at in range(0, len(slots), size):
        yield slots[at : at + size]
