"""What a user hands in: which kind of source it is, and how its files get into the bucket."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from jobs.artifacts import ArtifactStore, hash_file
from jobs.specs import MAKES, STAGE_VERSIONS, DataError, SpecError, digest_id

_CHANNEL = re.compile(r"^(@\w{4,32}|(https?://)?(t\.me|telegram\.me)/\S+|-100\d{5,16})$")
_NAME = re.compile(r"^(?:@|(?:https?://)?(?:t\.me|telegram\.me)/(?:s/)?)([A-Za-z]\w{3,31})/?$")
#: What a file is called in the bucket, by its suffix: the id then depends on content and kind alone.
_NAMES = {
    ".json": "result.json",
    ".zip": "export.zip",
    ".jsonl": "posts.jsonl",
    ".ndjson": "posts.jsonl",
    ".txt": "posts.txt",
    ".toml": "profile.toml",
}


@dataclass(frozen=True)
class Source:
    """A source in the user's words: a channel at Telegram, or a file on this machine."""

    text: str
    channel: str | None = None
    file: Path | None = None

    @property
    def label(self) -> str:
        """A short name for runs."""
        if self.channel:
            return re.sub(r"^(https?://)?(t\.me|telegram\.me)/|^@", "", self.channel)
        assert self.file is not None
        return self.file.parent.name if self.file.name == "result.json" else self.file.stem


def legible(text: str) -> str:
    """A name as it can be stored: bytes that are no UTF-8, as old archives leave them in names, become ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def channel_key(channel: str) -> str:
    """The same text for all ways to write a public channel: ``@Name``, ``t.me/name``, ``https://t.me/name/``."""
    found = _NAME.match(channel)
    return f"@{found[1].lower()}" if found else channel


def local_path(text: str) -> Path:
    """A path in the user's words. Raises SpecError when it cannot be one."""
    try:
        path = Path(text).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (RuntimeError, ValueError) as error:  # nobody's home; a zero byte
        raise SpecError(f"{text[:200]!r}: no such file or folder: {error}") from error
    except PermissionError as error:
        raise _closed(path, error) from error
    except OSError as error:
        raise SpecError(f"{text[:200]!r}: {error.strerror}") from error
    return path


def _closed(path: Path, error: OSError) -> DataError:
    """The same sentence and exit code for a file, its folder, and a folder above it that may not be looked into."""
    return DataError(f"cannot read {path}: {error.strerror}; let yourself read it (chmod u+rX), or give a copy")


def parse_source(text: str) -> Source:
    """Tell what ``--source`` means. Raises SpecError with what would be right."""
    if not text:
        raise SpecError("--source is empty: give an export (.json, .zip, a folder), .jsonl, .txt, or a channel")
    path = local_path(text)
    if not path.exists() and _CHANNEL.match(text):
        return Source(text, channel=text)
    if path.is_dir():
        found = path / "result.json"
        try:
            found.stat()
        except PermissionError as error:
            raise _closed(path, error) from error
        except OSError:
            pass  # it is not there, as the next lines tell
        if not found.is_file():
            raise SpecError(f"there is no result.json in {text}; {_instead(path)}")
        if not found.resolve().is_relative_to(path.resolve()):  # in a folder from elsewhere it may lead to a secret
            raise SpecError(f"{found} is a link to {found.resolve()}, out of the folder; give the file itself")
        return Source(text, file=found)
    if not path.exists():
        raise SpecError(f"source {text!r}: no such file or folder, and not a channel (@name, https://t.me/name)")
    if path.suffix.lower() in (".html", ".htm"):
        raise SpecError(f"source {text!r} is an HTML page; {_AGAIN}")
    if path.suffix.lower() not in _NAMES or path.suffix.lower() == ".toml":
        raise SpecError(f"source {text!r}: give an export (.json, .zip, a folder), .jsonl or .txt")
    if not path.is_file():  # a pipe or a device may never end
        raise SpecError(f"source {text!r} is no ordinary file; save what it gives and hand that in")
    return Source(text, file=path)


_AGAIN = "export again and choose the format 'machine-readable JSON'"


def _instead(folder: Path) -> str:
    """What to do where a folder is no export."""
    if any(folder.glob("messages*.html")):
        return f"it holds an HTML export: {_AGAIN}"
    inner = sorted(folder.glob("*/result.json"))[:3]  # Desktop puts each export into a folder of its own
    if inner:
        return "give one of the exports in it: " + ", ".join(str(found.parent) for found in inner)
    return "choose the folder that Telegram Desktop made, with result.json in it"


@dataclass(frozen=True)
class Addressed:
    """A file as a ``source`` artefact, whether it is in the bucket or not; ``name``: there; ``size`` in bytes."""

    ref: str
    name: str
    sha256: str
    size: int
    identity: dict[str, list[list[str]]]


def address(file: Path) -> Addressed:
    """Where a file lies, or would lie, in the bucket: its content says so. Raises DataError."""
    name = _NAMES.get(file.suffix.lower(), file.name)
    try:
        sha256, size = hash_file(file)
    except OSError as error:
        raise _closed(file, error) from error
    if size == 0:
        raise DataError(f"{file} is empty")
    kind, version = MAKES["upload"], STAGE_VERSIONS["upload"]
    identity = {"files": [[name, sha256]]}
    ref = f"{kind}/{digest_id(kind, 'upload', version, identity, {})}"
    return Addressed(ref, name, sha256, size, identity)


@dataclass
class Uploads:
    """The way of a user's files into the bucket. ``dry``: their addresses are told, and nothing is sent.

    ``unsent``: the files that a dry one would have sent, by reference, with their sizes in bytes.
    """

    store: ArtifactStore
    dry: bool = False
    unsent: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def put(self, file: Path) -> str:
        """The reference of a file's artefact. Raises DataError for a file that cannot be read, or is empty."""
        if not self.dry:
            return upload(self.store, file)
        found = address(file)
        if self.store.find(found.ref) is None:
            self.unsent[found.ref] = (file, found.size)
        return found.ref


def upload(store: ArtifactStore, file: Path) -> str:
    """Put a file into the bucket as a ``source`` artefact, unless the same content is there; returns its ref."""
    found = address(file)
    ref = found.ref
    if store.find(ref) is not None:
        return ref
    with store.lease(ref, holder="another upload") as lease:
        if store.find(ref) is None:
            writer = store.writer(ref, guard=lease.ensure)
            entry = writer.put_file(file, found.name)
            if entry.sha256 != found.sha256:
                raise DataError(f"{file} changed while it was uploaded; try again when nobody writes to it")
            lease.ensure(ask=True)
            info = {"name": legible(file.name)}
            writer.commit(stage="upload", spec=found.identity, counts={"bytes": found.size}, info=info)
    return ref
