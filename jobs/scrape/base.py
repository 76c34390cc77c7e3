"""What a scrape builds upon: the posts artefact before it, and how its posts compare with what is there now."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jobs.artifacts import FileEntry, Manifest
from jobs.record import Post, fetch_shards
from jobs.scrape.parquet import read_shard, rows, values
from jobs.scrape.window import Window
from jobs.specs import DataError, ScrapeSpec, canonical_json
from jobs.stage import StageContext

#: Fields whose change makes a new version. Views and the like change all the time and make none.
CONTENT = (
    "text",
    "entities",
    "links",
    "edit_date",
    "media",
    "media_count",
    "forwarded_from",
    "via_bot",
    "poll",
    "invoice",
    "service",
    "author",
)
Row = tuple[int, bytes, str | None]  # version, content digest, service action


class Base:
    """The parent artefact, or the empty beginning when there is none.

    ``newest_id``: the greatest message id in it, albums' last parts included; ``channel``, ``channel_id``: whose
    posts they are; ``posts``, ``service``: how many.
    """

    def __init__(self, manifest: Manifest | None) -> None:
        self.manifest = manifest
        info = manifest.info if manifest else {}
        counts = manifest.counts if manifest else {}
        self.newest_id = int(info.get("newest_id", 0))
        self.channel: str | None = info.get("channel")
        self.channel_id: int | None = info.get("channel_id")
        self.posts = int(counts.get("posts", 0))
        self.service = int(counts.get("service", 0))

    @classmethod
    def of(cls, ctx: StageContext[ScrapeSpec]) -> Base:
        """The parent that the spec names. Raises NotFoundError or DataError."""
        ref = ctx.spec.parent
        if ref is None:
            return cls(None)
        manifest = ctx.store.manifest(ref)
        if manifest.kind != "posts" or "newest_id" not in manifest.info:
            raise DataError(f"parent: {ref} was not made by a scrape; name a posts artefact")
        return cls(manifest)

    @property
    def ref(self) -> str | None:
        """The parent's reference."""
        return self.manifest.ref if self.manifest else None

    def shards(self) -> list[FileEntry]:
        """The parent's shards and those of its ancestors, as the new manifest lists them."""
        if self.manifest is None:
            return []
        mine = self.manifest.ref
        return [e if e.artifact else e.model_copy(update={"artifact": mine}) for e in self.manifest.files]

    def check_channel(self, name: str, channel_id: int | None) -> str:
        """The name that new posts carry: the parent's, for a channel may be renamed. Raises DataError for another."""
        if self.manifest is None:
            return name
        same = channel_id == self.channel_id if None not in (channel_id, self.channel_id) else name == self.channel
        if not same:
            raise DataError(
                f"parent: {self.ref} holds the posts of {self.channel!r} and not of {name!r}; "
                "scrape another channel into an artefact of its own"
            )
        return self.channel or name

    def resync(self, ctx: StageContext[ScrapeSpec], window: Window) -> tuple[datetime | None, Known]:
        """From when on to walk again, and the posts of the parent since then that lie in the window."""
        days = ctx.spec.resync_days
        if self.manifest is None or not days:
            return None, Known({})
        try:
            start = (ctx.spec.as_of or datetime.now(UTC)) - timedelta(days=days)
        except OverflowError:
            start = datetime(1970, 1, 1, tzinfo=UTC)
        start = start if start.tzinfo else start.replace(tzinfo=UTC)
        found: dict[int, Row] = {}
        with tempfile.TemporaryDirectory(dir=ctx.workdir) as folder:
            for path in fetch_shards(ctx.store, self.manifest, Path(folder)):
                for batch in read_shard(path):
                    near: dict[int, int] = {}  # the batch's rows that may be their post's latest, by its id
                    heads = zip(*(values(batch, name) for name in ("id", "date", "deleted")), strict=True)
                    for index, (number, date, deleted) in enumerate(heads):
                        found.pop(number, None)
                        near.pop(number, None)
                        if not deleted and date is not None and date >= start and window.holds(number, date):
                            near[number] = index
                    for row in rows(batch, list(near.values())):
                        found[row["id"]] = (row["version"], content_digest(row), row["service"])
        return start, Known(found)


class Known:
    """Posts of the parent within the window that is walked again, by id."""

    def __init__(self, rows: Mapping[int, Row]) -> None:
        self._rows = dict(rows)
        self._order = sorted(rows)
        self._next = 0

    def skip_to(self, cursor: int) -> None:
        """Forget the posts up to an id: an earlier attempt has compared them."""
        while self._next < len(self._order) and self._order[self._next] <= cursor:
            self._rows.pop(self._order[self._next], None)
            self._next += 1

    def compare(self, post: Post) -> Post | None:
        """The row to add for a post that is there: itself, as a newer version when it changed, or None."""
        version, digest, _ = self._rows.pop(post.id, (0, b"", None))
        if version and digest == content_digest(post):
            return None
        post.version = version + 1
        return post

    def gone_before(self, number: int | None) -> Iterator[int]:
        """Ids below ``number`` (None: all) that were not met on the walk, each once."""
        while self._next < len(self._order) and (number is None or self._order[self._next] < number):
            current = self._order[self._next]
            self._next += 1
            if current in self._rows:
                yield current

    def deletion(self, number: int, like: Post) -> Post:
        """The row that says that a post is gone; ``like`` gives the channel."""
        version, _, service = self._rows.pop(number)
        return Post(
            number, like.channel, channel_id=like.channel_id, version=version + 1, deleted=True, service=service
        )


def content_digest(post: Post | Mapping[str, Any]) -> bytes:
    """Equal for rows of equal content; ``post``: a Post or a row of its schema."""
    values = [getattr(post, n) if isinstance(post, Post) else post[n] for n in CONTENT]
    plain = [int(v.timestamp()) if isinstance(v, datetime) else v for v in values]
    return hashlib.blake2b(canonical_json(plain).encode(), digest_size=16).digest()
