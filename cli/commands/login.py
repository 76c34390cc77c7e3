"""``bugurt login`` and ``bugurt logout``: make, keep and end the Telegram session that scrapes use."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import options

if TYPE_CHECKING:
    from cli.settings import Settings

INI = "config.ini"
MAX_INI = 8192  # bytes; its parser takes time quadratic in the length of a line
FIELDS = ("api_id", "api_hash", "phone", "username")
Target = Literal["local", "kubernetes"]
_TARGET_HELP = "Where the session is kept: this machine's file or the cluster's Secret; unset: as [cluster] kind."


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.command("login")(login)
    root.command("logout")(logout)


def login(
    api_id: Annotated[str | None, typer.Option("--api-id", help="From https://my.telegram.org.")] = None,
    api_hash: Annotated[str | None, typer.Option("--api-hash", help="From the same page.")] = None,
    phone: Annotated[str | None, typer.Option("--phone", help="With the country's code: +79991234567.")] = None,
    username: Annotated[str | None, typer.Option("--username", help="The account that you mean, to be sure.")] = None,
    ini: Annotated[Path | None, typer.Option("--ini", help="A config.ini with a [Telegram] section.")] = None,
    qr: Annotated[bool, typer.Option("--qr", help="Scan a QR code with the app instead of typing a code.")] = False,
    target: Annotated[str | None, typer.Option("--target", help=_TARGET_HELP)] = None,
    force: Annotated[bool, typer.Option("--force", help="Log in anew although there is a session.")] = False,
) -> None:
    """Log in to Telegram once; scrapes use the session. Options win over BUGURT_TELEGRAM_* and over config.ini."""
    import asyncio

    from cli.output import next_commands, say
    from jobs.specs import ConfigError

    need_telethon()
    from cli.telegram_login import Login, log_in, who
    from jobs.telegram import check_api, parse_proxy

    settings = options.settings()
    place = _target(target, settings)
    proxy = os.environ.get("BUGURT_TELEGRAM_PROXY") or None
    parse_proxy(proxy)
    kept = None if force else load_session(place, settings)
    if kept is not None:
        account = asyncio.run(who(kept))
        if account is not None:
            say(f"already logged in as {account.name} ({describe(place, settings)}); --force logs in anew")
            return
        say("the session that was kept has ended; logging in anew", err=True)
    given = {"api_id": api_id, "api_hash": api_hash, "phone": phone, "username": username}
    found = gather(given, ini)
    if not found.get("api_id") or not found.get("api_hash"):
        say("api_id and api_hash come from https://my.telegram.org ('API development tools').", err=True)
    numbers = check_api(found.get("api_id") or ask("api_id"), found.get("api_hash") or ask_secretly("api_hash"))
    number = None if qr else found.get("phone") or ask("phone number, with the country's code")
    account = asyncio.run(
        log_in(Login(*numbers, proxy, number), ask=ask, ask_secretly=_password, show_qr=show_qr),
    )
    wanted = (found.get("username") or "").lstrip("@")
    if username and wanted.lower() != (account.username or "").lower():
        asyncio.run(_undo(account.session, *numbers, proxy))
        raise ConfigError(
            f"this is the account {account.name} (@{account.username}) and not @{wanted}; nothing is kept"
        )
    values = {
        "BUGURT_TELEGRAM_SESSION": account.session,
        "BUGURT_TELEGRAM_API_ID": str(numbers[0]),
        "BUGURT_TELEGRAM_API_HASH": numbers[1],
    }
    save_session(values | ({"BUGURT_TELEGRAM_PROXY": proxy} if proxy else {}), place, settings)
    say(f"logged in as {account.name}; the session is in {describe(place, settings)}")
    say("whoever has it has the account: keep it to yourself, and use it from one place at a time", err=True)
    next_commands("bugurt submit scrape --source @name", "bugurt logout")


def logout(
    target: Annotated[str | None, typer.Option("--target", help=_TARGET_HELP)] = None,
) -> None:
    """End the session at Telegram and remove it."""
    import asyncio

    from cli.output import say

    need_telethon()
    from cli.telegram_login import log_out

    settings = options.settings()
    place = _target(target, settings)
    kept = load_session(place, settings)
    if kept is None:
        say(f"there is no session in {describe(place, settings)}")
        return
    ended = asyncio.run(log_out(kept))
    remove_session(place, settings)
    how = "logged out at Telegram" if ended else "the session had ended at Telegram already"
    say(f"{how}, and removed from {describe(place, settings)}")


async def _undo(session: str, api_id: int, api_hash: str, proxy: str | None) -> None:
    from cli.telegram_login import log_out

    values = {
        "BUGURT_TELEGRAM_SESSION": session,
        "BUGURT_TELEGRAM_API_ID": str(api_id),
        "BUGURT_TELEGRAM_API_HASH": api_hash,
    }
    await log_out(values | ({"BUGURT_TELEGRAM_PROXY": proxy} if proxy else {}))


# -- where the session is kept


def _target(text: str | None, settings: Settings) -> Target:
    from jobs.specs import SpecError

    chosen = text or settings.cluster.kind
    if chosen == "local":
        return "local"
    if chosen == "kubernetes":
        return "kubernetes"
    raise SpecError(f"--target: {chosen!r} is neither 'local' nor 'kubernetes'")


def need_telethon() -> None:
    """Raise ConfigError where Telegram's client is not installed: the CLI alone does without it."""
    from importlib.util import find_spec

    from jobs.specs import ConfigError

    if find_spec("telethon") is None or find_spec("segno") is None:
        raise ConfigError("Telegram's client is not installed on this machine: pip install 'bugurt[login]'")


def describe(target: Target, settings: Settings) -> str:
    """The place in words."""
    from cli.telegram_file import telegram_file

    return str(telegram_file()) if target == "local" else f"Secret {settings.cluster.telegram_secret} of the cluster"


def load_session(target: Target, settings: Settings) -> dict[str, str] | None:
    """The variables that were kept, or None. Raises ConfigError when they are not to be trusted."""
    if target == "local":
        from cli.telegram_file import read_telegram_file, telegram_file

        return read_telegram_file(telegram_file())
    from cli.clusters.kubernetes_api import connect
    from cli.telegram_secret import read_secret

    access = connect(settings.cluster.context, settings.cluster.namespace)
    return read_secret(access, settings.cluster.telegram_secret)


def save_session(values: Mapping[str, str], target: Target, settings: Settings) -> None:
    """Keep the variables of the scrape stage: in a file of mode 0600, or in the cluster's Secret."""
    if target == "local":
        from cli.telegram_file import write_telegram_file

        write_telegram_file(values)
        return
    from cli.clusters.kubernetes_api import connect
    from cli.telegram_secret import write_secret

    access = connect(settings.cluster.context, settings.cluster.namespace)
    write_secret(access, settings.cluster.telegram_secret, values)


def remove_session(target: Target, settings: Settings) -> None:
    """Remove what ``save_session`` kept."""
    if target == "local":
        from cli.telegram_file import remove_telegram_file

        remove_telegram_file()
        return
    from cli.clusters.kubernetes_api import connect
    from cli.telegram_secret import remove_secret

    remove_secret(connect(settings.cluster.context, settings.cluster.namespace), settings.cluster.telegram_secret)


# -- what the user is asked


def gather(given: Mapping[str, str | None], ini: Path | None) -> dict[str, str]:
    """api_id, api_hash, phone and username: options, then the environment, then the [Telegram] section of an ini."""
    found = {n: v for n in FIELDS if (v := given.get(n) or os.environ.get(f"BUGURT_TELEGRAM_{n.upper()}"))}
    path = ini or Path(INI)
    if ini is not None or (path.is_file() and len(found) < len(FIELDS)):
        for name, value in read_ini(path).items():
            found.setdefault(name, value)
    return found


def read_ini(path: Path) -> dict[str, str]:
    """The fields of the [Telegram] section. Raises ConfigError that names the file and the line."""
    from jobs.specs import ConfigError

    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INI + 1)
        if len(data) > MAX_INI:
            raise ConfigError(f"{path} has more than {MAX_INI} bytes; it holds four short lines below [Telegram]")
        parser.read_string(data.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except configparser.Error as error:
        # the parser's own sentence quotes the line, and with it perhaps the hash
        line = getattr(error, "lineno", None) or next((n for n, _ in getattr(error, "errors", ())), None)
        at = f" at line {line}" if line else ""
        raise ConfigError(f"{path} is broken{at}; write 'name = value' lines below [Telegram]") from None
    section = next((parser[s] for s in parser.sections() if s.lower() == "telegram"), None)
    if section is None:
        raise ConfigError(f"{path} has no section [Telegram]")
    return {n: section[n].strip().strip("'\"") for n in FIELDS if section.get(n, "").strip()}


def ask(what: str) -> str:
    """A line from the user. Raises ConfigError at the end of the input."""
    from jobs.specs import ConfigError

    print(f"{what}: ", end="", file=sys.stderr, flush=True)  # noqa: T201
    line = sys.stdin.readline()
    if not line:
        raise ConfigError(f"no answer: the input ended where the login asked for {what}; run it in a terminal")
    return line.strip()


def ask_secretly(what: str) -> str:
    """As ``ask``, without an echo on a terminal."""
    import getpass

    from jobs.specs import ConfigError

    if not sys.stdin.isatty():
        return ask(what)
    try:
        return getpass.getpass(f"{what}: ").strip()
    except EOFError:
        raise ConfigError(f"no answer: the input ended where the login asked for {what}") from None


def _password(what: str) -> str:
    """Once from the environment, for those who log in by a script; asked for otherwise."""
    return os.environ.pop("BUGURT_TELEGRAM_PASSWORD", "") or ask_secretly(what)


def show_qr(url: str) -> None:
    """Draw the code in the terminal."""
    import segno

    print("scan this in the app: Settings > Devices > Link Desktop Device", file=sys.stderr)  # noqa: T201
    segno.make(url, error="l").terminal(out=sys.stderr, compact=True)
    sys.stderr.flush()
