"""Which posts a scrape wants: the spec's limits by date, id and number, in one place for all sources."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from jobs.record import Post
from jobs.specs import ScrapeSpec


@dataclass(frozen=True)
class Window:
    """``start`` <= date < ``end``, ``after`` < id < ``before``; ``limit`` posts, service messages not counted."""

    start: datetime | None = None
    end: datetime | None = None
    after: int = 0
    before: int | None = None
    limit: int | None = None

    @classmethod
    def of(cls, spec: ScrapeSpec) -> Window:
        """The spec's limits; ``as_of`` is one of them, for a channel as it was then has no later posts."""
        ends = [_midnight(spec.until)] if spec.until else []
        if spec.as_of is not None and spec.channel is not None:
            as_of = spec.as_of if spec.as_of.tzinfo else spec.as_of.replace(tzinfo=UTC)
            ends.append(as_of)
        return cls(
            start=_midnight(spec.since) if spec.since else None,
            end=min(ends, default=None),
            after=spec.min_id or 0,
            before=spec.max_id,
            limit=spec.limit,
        )

    def accepts(self, post: Post) -> bool:
        """Whether the post lies within the limits by date and id."""
        return self.holds(post.id, post.date)

    def holds(self, number: int, date: datetime | None) -> bool:
        """As ``accepts``. What has no date meets no limit by date."""
        if number <= self.after or (self.before is not None and number >= self.before):
            return False
        if self.start is not None and (date is None or date < self.start):
            return False
        return not (self.end is not None and (date is None or date >= self.end))

    def passed(self, post: Post) -> bool:
        """Whether this post, in a source whose posts come in order, and all after it are too late."""
        if self.before is not None and post.id >= self.before:
            return True
        return self.end is not None and post.date is not None and post.date >= self.end


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
