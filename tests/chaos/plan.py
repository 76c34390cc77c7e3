"""What a seed means: the work of a round and everything that goes wrong in it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.telegram.faults import CONNECT, HISTORY, Fault, close, cut, delay, flood, internal, short_page, transport

STAGES = ("scrape", "preprocess", "train", "generate")
#: Faults by how often they are drawn. All of them pass by themselves: no stage may call one of them final.
KINDS = {
    "error": 3,
    "slow_down": 3,
    "reset": 3,
    "lost": 3,
    "half_upload": 2,
    "corrupt_upload": 2,
    "truncate": 3,
    "corrupt": 3,
    "trickle": 1,
    "stall": 1,
    "full": 1,
    "outage": 2,
}
SKEWS = (0, 0, 0, 0, 5, -5, 90, -90, 3600, -3600)  # seconds by which the answers' Date differs from the storage's clock
DISKS = (150, 400, 1000, 3000)  # KiB: too little for a dataset, a tokenizer, a converted model, a checkpoint
OUTAGE = (2.0, 8.0)  # seconds that an outage takes


@dataclass(frozen=True)
class Plan:
    """One round. ``make``: the stages whose artefacts are not there yet; ``twins``: pipelines at once on the same
    artefacts; ``faults``: kind and probability for each request; ``kills``: signals at most, one each
    ``pause`` seconds on average; ``small_disk``: KiB for the Jobs' temporary files, 0 for a disk as large as ever;
    ``storm``: seconds after which everything works again."""

    seed: int
    make: tuple[str, ...]
    telegram: bool
    twins: int
    shards: int
    workers: int
    cache: bool
    faults: dict[str, float]
    skew: float
    kills: int
    pause: float
    small_disk: int
    storm: float

    @classmethod
    def of(cls, seed: int) -> Plan:
        """The plan of a seed."""
        rng = random.Random(seed)
        telegram = rng.random() < 0.2
        first = 0 if telegram else rng.choice((0, 0, 1, 2, 3))
        kinds = rng.sample(sorted(KINDS), rng.randint(0, 4), counts=[KINDS[k] for k in sorted(KINDS)])
        intensity = 10 ** rng.uniform(-2.3, -1.0)
        if not kinds and rng.random() < 0.7:
            kinds = ["lost"]
        return cls(
            seed=seed,
            make=("scrape",) if telegram else STAGES[first:],
            telegram=telegram,
            twins=2 if rng.random() < 0.3 else 1,
            shards=rng.choice((1, 1, 2, 3)),
            workers=rng.choice((1, 1, 1, 2)),
            cache=rng.random() < 0.5,
            faults={k: intensity * (0.2 if k == "outage" else 1.0) for k in sorted(set(kinds))},
            skew=rng.choice(SKEWS),
            kills=rng.choice((0, 2, 4, 8, 12)),
            pause=rng.uniform(0.1, 1.5),
            small_disk=rng.choice(DISKS) if rng.random() < 0.15 else 0,
            storm=rng.uniform(8, 25),
        )

    def at_telegram(self) -> list[Fault]:
        """What goes wrong at Telegram, as often for each plan, though at other calls; nothing, later on."""
        rng = random.Random(f"telegram {self.seed}")
        some = [
            cut(after_bytes=500, every=rng.randint(5, 9), times=rng.randint(1, 4)),
            cut(CONNECT, at=rng.randint(2, 4)),
            close(every=rng.randint(4, 8), times=rng.randint(1, 3)),
            flood(1, at=rng.randint(1, 6)),
            internal(at=(at := rng.randint(1, 6), at + 1)),
            short_page(rng.randint(5, 60), every=rng.randint(2, 4), times=3),
            transport(429, at=rng.randint(1, 6)),
        ]
        return [delay(rng.uniform(0.0, 0.03), HISTORY), *rng.sample(some, rng.randint(2, 4))]

    @property
    def plain(self) -> bool:
        """Whether each process loads its libraries itself, and is not forked from one that has them."""
        return self.seed % 10 == 0

    def __str__(self) -> str:
        work = "telegram" if self.telegram else f"{self.make[0]}-"
        more = [f"x{self.twins}"] * (self.twins > 1) + [f"{self.shards} shards"] * (self.shards > 1)
        more += [f"skew {self.skew:g} s"] * bool(self.skew) + [f"{self.small_disk} KiB disk"] * bool(self.small_disk)
        more += ["plain"] * self.plain
        faults = [f"{k} {100 * p:.1f}%" for k, p in self.faults.items()]
        return ", ".join([work, *more, *faults, f"{self.kills} kills"])


@dataclass
class Weather:
    """Decides for each request what goes wrong with it, by a plan; ``outages`` tells how many of these there were."""

    plan: Plan
    outages: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(f"weather {self.plan.seed}")
        self._lock = threading.Lock()
        self._dark_until = 0.0
        self._over = False

    def clear(self) -> None:
        """From now on everything works."""
        self._over = True

    def spot(self, length: int) -> int:
        """Which byte of a body is changed."""
        with self._lock:
            return self._random.randrange(length)

    def __call__(self, method: str, target: str) -> str | None:
        with self._lock:
            if self._over:
                return None
            kind = self._draw()
            if kind == "outage":
                self.outages["outage"] += 1
                self._dark_until = time.monotonic() + self._random.uniform(*OUTAGE)
            if time.monotonic() < self._dark_until:
                kind = "reset"
            return kind

    def _draw(self) -> str | None:
        dice = self._random.random()
        for kind, share in self.plan.faults.items():
            dice -= share
            if dice < 0:
                return kind
        return None
