"""The embedded bucket before anything was put into it: whoever only looks needs no folder and no server for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from jobs.artifacts import Bucket, ObjectInfo, S3Settings
from jobs.specs import NotFoundError


class EmptyBucket(Bucket):
    """Holds nothing and takes nothing; only what reads can be asked of it."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.prefix = settings.prefix.strip("/")

    def check(self) -> None:
        """It is always within reach."""

    def get_bytes(self, path: str, *, max_size: int = 0) -> bytes:
        """Raises NotFoundError."""
        raise NotFoundError(f"reading {path}: nothing is here yet")

    def find_bytes(self, path: str) -> None:
        """Not there."""

    def head(self, path: str) -> ObjectInfo | None:
        """None."""
        return None

    def list(self, under: str = "") -> Iterator[ObjectInfo]:
        """No objects."""
        return iter(())

    def folders(self, under: str) -> Iterator[str]:
        """No folders."""
        return iter(())

    def open_uploads(self, under: str = "") -> Iterator[tuple[str, str, datetime]]:
        """No uploads."""
        return iter(())

    def server_time(self) -> datetime:
        """This machine's clock: there is no other."""
        return datetime.now(UTC)

    def storage_time(self) -> datetime:
        """As ``server_time``."""
        return self.server_time()
