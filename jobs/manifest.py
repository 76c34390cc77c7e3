"""What ``manifest.json`` says: the record that makes a folder in the bucket an artefact."""

from __future__ import annotations

import hashlib
import posixpath
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jobs.specs import ID_LENGTH, NotFoundError

MANIFEST = "manifest.json"
MAX_FILES = 100_000


def safe_path(path: str) -> str:
    """The path, if it stays within its folder: a manifest may come from a bucket that others can write to."""
    clean = posixpath.normpath(path)
    bad = path != clean or path.startswith(("/", "..")) or "\\" in path or "\0" in path or path in (".", MANIFEST)
    if bad or len(path) > 512:
        raise ValueError(f"{path[:100]!r} is not a path inside an artefact")
    return path


class FileEntry(BaseModel):
    """One file: path within its artefact, size in bytes, SHA-256 in hex.

    ``artifact`` is set when the file lies in the folder of another artefact, as the shards of a posts
    artefact's ancestors do.
    """

    model_config = ConfigDict(frozen=True)

    path: Annotated[str, AfterValidator(safe_path)]
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    artifact: str | None = Field(default=None, pattern=rf"^[a-z]{{1,20}}/[0-9a-f]{{{ID_LENGTH}}}$")


class Manifest(BaseModel):
    """What an artefact is: the commit record, ``manifest.json``. Times are UTC."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(default=1, ge=1, le=1)
    kind: str
    id: str
    stage: str
    spec: dict[str, Any]
    inputs: dict[str, str] = Field(default_factory=dict)
    parent: str | None = None
    files: tuple[FileEntry, ...] = Field(max_length=MAX_FILES)
    counts: dict[str, int | float] = Field(default_factory=dict)
    info: dict[str, Any] = Field(default_factory=dict)
    run: str | None = None
    code_version: str
    made_from: dict[str, datetime] = Field(
        default_factory=dict, description="when each input had been made: by force it can be made again"
    )
    started: datetime
    created: datetime

    @model_validator(mode="after")
    def _each_path_once(self) -> Self:
        if len({f.path for f in self.files}) < len(self.files):
            raise ValueError("a path is listed twice")
        return self

    @property
    def ref(self) -> str:
        """``kind/id``."""
        return f"{self.kind}/{self.id}"

    @property
    def size(self) -> int:
        """Bytes of the artefact's own files."""
        return sum(f.size for f in self.files if f.artifact is None)

    def digest(self, *patterns: str) -> str:
        """A digest of what the matching files hold: an artefact that was made again by force has its old id."""
        text = "".join(f"{f.sha256} {f.path}\n" for f in sorted(self.matching(*patterns), key=lambda f: f.path))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def file(self, path: str) -> FileEntry:
        """The entry of one file; NotFoundError when the manifest does not list it."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise NotFoundError(f"artefact {self.ref} has no file {path}")

    def matching(self, *patterns: str) -> list[FileEntry]:
        """Entries whose path matches one of the shell patterns, in the manifest's order."""
        return [f for f in self.files if any(fnmatchcase(f.path, p) for p in patterns)]
