"""Where this machine keeps the Telegram session: a JSON file that only its owner may read.

``~/.config/bugurt/telegram.json``, or what ``BUGURT_TELEGRAM_FILE`` names. Whoever reads it has the account.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from jobs.specs import ConfigError, load_json

FILE_VARIABLE = "BUGURT_TELEGRAM_FILE"
#: What the file (and the Kubernetes Secret) holds: the scrape stage's own variables.
VARIABLES = ("BUGURT_TELEGRAM_SESSION", "BUGURT_TELEGRAM_API_ID", "BUGURT_TELEGRAM_API_HASH", "BUGURT_TELEGRAM_PROXY")
NEEDED = VARIABLES[:3]


def telegram_file(env: Mapping[str, str] = os.environ) -> Path:
    """The file's path, whether it is there or not."""
    named = env.get(FILE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "bugurt" / "telegram.json"


def load_telegram_env(path: Path | None = None) -> dict[str, str]:
    """The variables that the scrape stage needs: from the environment if it has them all, else from the file.

    Raises ConfigError with what to do when there is no session, or when others can read it.
    """
    given = {n: os.environ[n] for n in VARIABLES if os.environ.get(n)}
    if all(n in given for n in NEEDED):
        return given
    found = read_telegram_file(path or telegram_file())
    if found is None:
        raise ConfigError("there is no Telegram session on this machine; run 'bugurt login' first")
    # the proxy is this machine's matter, so that the environment wins
    return found | ({VARIABLES[3]: given[VARIABLES[3]]} if VARIABLES[3] in given else {})


def read_telegram_file(path: Path) -> dict[str, str] | None:
    """The file's variables; None when there is no file. Raises ConfigError when it is not to be trusted."""
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077:
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise ConfigError(
                    f"{path} holds a Telegram session and others can read it (mode {mode}); run: chmod 600 {path}"
                )
            if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0):
                raise ConfigError(f"{path} belongs to another user; run 'bugurt login' to make your own")
            data = load_json(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the Telegram session in {path}: {error.strerror}") from error
    except ValueError as error:  # JSON and UTF-8
        raise ConfigError(f"{path} is damaged; run 'bugurt login --force' to make it anew") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(n), str) and data[n] for n in NEEDED):
        raise ConfigError(f"{path} holds no whole Telegram session; run 'bugurt login --force' to make it anew")
    return {n: data[n] for n in VARIABLES if isinstance(data.get(n), str) and data[n]}


def write_telegram_file(values: Mapping[str, str], path: Path | None = None) -> Path:
    """Write the file, all or nothing, with mode 0600 from its first byte on. Raises ConfigError."""
    path = path or telegram_file()
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dict(values), file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write the Telegram session to {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def remove_telegram_file(path: Path | None = None) -> bool:
    """Remove it; False when there was none."""
    path = path or telegram_file()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"cannot remove {path}: {error.strerror}") from error
    return True
