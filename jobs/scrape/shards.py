"""Posts on their way into the bucket: shard after shard, with a cursor from which a killed scrape goes on.

While an artefact is being made, ``.state.json`` lies beside its shards and says which of them are whole and which
message was the last one in them; ``.partial-N.parquet`` holds the posts after them when the scrape was stopped in
good order. Neither is in the manifest, both go with the commit. A shard's bytes depend on its posts alone, so
that a scrape that was interrupted ends with the same shards as one that was not.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.artifacts import FileEntry
from jobs.record import BATCH_ROWS, Post
from jobs.scrape.base import Base
from jobs.scrape.parquet import Shard, read_shard, rows
from jobs.specs import BugurtError, DataError, NotFoundError, ScrapeSpec, canonical_json, load_json
from jobs.stage import StageContext

STATE = ".state.json"
#: Characters of posts that are held before they are written: real batches, 4096 times Telegram's 4096 characters at
#: most, stay below; a hostile file's do not, and end their shard, whose last group of rows has to fit into memory.
MAX_HELD = 32 * 1024 * 1024
ENTITY_COST = 100  # characters that an entity, a link or a reaction weighs as much as
_PART = re.compile(r"part-(\d+)\.parquet")


class ShardWriter:
    """Collects posts into shards of ``spec.shard_posts`` rows, fewer of huge ones, and uploads each once it is whole.

    ``cursor``: the last message id (0 = none) whose post is in the rows added so far; ``counts``: what was added
    (posts, service, edited, deleted, deleted_service).
    """

    def __init__(self, ctx: StageContext[ScrapeSpec], base: Base) -> None:
        self._ctx = ctx
        self._out = ctx.writer()
        self._size = ctx.spec.shard_posts
        self._batch = min(BATCH_ROWS, self._size)
        self.cursor = 0
        self.counts: Counter[str] = Counter()
        self._own: list[FileEntry] = []
        self._number = 0
        for entry in base.shards():
            self._out.adopt(entry)
            if match := _PART.fullmatch(entry.path):
                self._number = max(self._number, int(match[1]) + 1)
        self._rows: list[Post] = []  # not yet in the shard's file
        self._held = 0  # their weight in characters
        self._heavy = False  # a batch of the shard's file was written because of its weight
        self._file: Shard | None = None
        self._written = 0  # rows in the shard's file
        self._partial: str | None = None

    @property
    def rows(self) -> int:
        """Rows of this artefact's own so far."""
        return sum(self.counts.values())

    # -- going on where an earlier attempt stopped

    def resume(self) -> bool:
        """Take up what an earlier attempt left. False when there is nothing that can be used."""
        bucket, ref = self._ctx.store.bucket, self._ctx.ref
        try:
            state = load_json(bucket.get_bytes(f"{ref}/{STATE}"))
            own = [FileEntry.model_validate(e) for e in state["shards"]]
            cursor, counts, partial = int(state["cursor"]), dict(state["counts"]), state["partial"]
        except NotFoundError:
            return False
        except (ValueError, KeyError, TypeError, ValidationError, DataError) as error:
            self._ctx.log.warning("the state of an earlier attempt cannot be read, beginning anew: %s", error)
            return False
        for entry in own:
            found = bucket.head(f"{ref}/{entry.path}")
            if found is None or found.size != entry.size:
                self._ctx.log.warning("a shard of an earlier attempt is gone, beginning anew: %s", entry.path)
                return False
        rest = self._ctx.workdir / "resumed.parquet"
        if partial is not None:
            try:
                self._fetch(FileEntry.model_validate(partial), rest)
            except (BugurtError, ValidationError) as error:
                self._ctx.log.warning("the rest of an earlier attempt cannot be read, beginning anew: %s", error)
                return False
        for entry in own:
            self._out.adopt(entry)
        self._own = own
        self._number += len(own)
        if partial is not None:
            for batch in read_shard(rest):
                for row in rows(batch):
                    self._hold(Post(**row))
                    if self._batch_is_full():
                        self._spill()
            rest.unlink()
        self.cursor = cursor
        self.counts.update({str(k): int(v) for k, v in counts.items()})
        self._partial = partial["path"] if partial else None
        if self._written + len(self._rows) >= self._size or self._heavy:  # its upload failed
            self._end_shard()
            self._store_state(partial=False)
        return True

    def _fetch(self, entry: FileEntry, local: Path) -> None:
        """Download and verify; raises before anything of it is used."""
        with self._ctx.store.open(self._ctx.ref, entry) as source, local.open("wb") as target:
            shutil.copyfileobj(source, target, 1024 * 1024)
        for _ in read_shard(local):
            pass

    def save(self) -> None:
        """Keep everything added so far for the next attempt; this one can add no more."""
        self._store_state(partial=True)

    def _store_state(self, *, partial: bool) -> None:
        bucket, ref = self._ctx.store.bucket, self._ctx.ref
        if self._ctx.lease is not None:
            self._ctx.lease.ensure()  # another process may have taken the artefact over
        before, entry = self._partial, None
        if partial and (self._rows or self._written):
            local = self._close_file()
            path = f".partial-{self.cursor}-{self.rows}.parquet"
            entry = self._ctx.writer().put_file(local, path)  # another writer: the manifest must not list it
            local.unlink()
        state = {
            "shards": [e.model_dump(mode="json") for e in self._own],
            "partial": entry.model_dump(mode="json") if entry else None,
            "cursor": self.cursor,
            "counts": dict(self.counts),
        }
        bucket.put_bytes(f"{ref}/{STATE}", canonical_json(state).encode())
        self._partial = entry.path if entry else None
        if before is not None and before != self._partial:
            bucket.delete([f"{ref}/{before}"])

    # -- adding

    def add(self, post: Post, cursor: int) -> None:
        """Add a row; ``cursor``: the last message id that it covers. Writes and uploads what is due."""
        if self.hold(post, cursor):
            self.write()

    def hold(self, post: Post, cursor: int) -> bool:
        """As ``add``, but leaves the work to its caller: True when ``write`` has to be called before the next row."""
        self._hold(post)
        self.counts[_kind(post)] += 1
        self.cursor = cursor
        return self._batch_is_full() or self._written + len(self._rows) >= self._size

    def write(self) -> None:
        """Write the rows that are held, and upload the shard once it is whole."""
        if self._batch_is_full():
            self._spill()
        if self._written + len(self._rows) >= self._size or self._heavy:
            self._end_shard()
            self._store_state(partial=False)

    def _hold(self, post: Post) -> None:
        self._rows.append(post)
        self._held += len(post.text) + ENTITY_COST * (len(post.entities) + len(post.links) + len(post.reactions))
        self._heavy = self._held > MAX_HELD

    def _batch_is_full(self) -> bool:
        return len(self._rows) >= self._batch or self._heavy

    def _path(self) -> Path:
        return self._ctx.workdir / f"part-{self._number:05d}.parquet"

    def _spill(self) -> None:
        if self._file is None:
            self._file = Shard(self._path())
        self._file.add(self._rows)
        self._written += len(self._rows)
        self._rows.clear()
        self._held = 0

    def _close_file(self) -> Path:
        if self._written and self._file is None:  # it is complete, but its upload failed
            return self._path()
        if self._rows or self._file is None:
            self._spill()
        assert self._file is not None
        self._file.close()
        self._file = None
        return self._path()

    def _end_shard(self) -> None:
        local = self._close_file()
        self._own.append(self._out.put_file(local))
        local.unlink()
        self._number += 1
        self._written = 0
        self._heavy = False

    # -- the end

    def commit(self, *, info: dict[str, Any], base: Base) -> None:
        """Upload what is left and commit the artefact."""
        if self._rows or self._written:
            self._end_shard()
        bucket, ref = self._ctx.store.bucket, self._ctx.ref
        total = base.posts + self.counts["posts"] - self.counts["deleted"]
        counts = {
            "posts": total,
            "new": self.counts["posts"],
            "service": base.service + self.counts["service"] - self.counts["deleted_service"],
            "edited": self.counts["edited"],
            "deleted": self.counts["deleted"],
            "shards": len(base.shards()) + len(self._own),
        }
        self._ctx.commit(self._out, counts=counts, info=info, parent=base.ref)
        bucket.delete(o.path for o in list(bucket.list(f"{ref}/.")))


def _kind(post: Post) -> str:
    if post.deleted:
        return "deleted" if post.service is None else "deleted_service"
    if post.version > 1:
        return "edited"
    return "service" if post.service is not None else "posts"
