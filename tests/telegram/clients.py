"""Telethon clients for the test server, in this process and in others.

A client that has a logged-in session (`TelegramServer.session_string()`) needs nothing else: the string holds
the server's address and the auth key. Only a new auth key, for a login or another data centre, takes trust in
the server's RSA key and, with no session yet, its address. A process gets both from this launcher, so that the
program under test carries no hook for tests:

    python -m tests.telegram.clients --key public.pem --server 127.0.0.1:2021 -m cli.main login
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telethon import TelegramClient
from telethon.client import telegrambaseclient
from telethon.crypto import rsa
from telethon.sessions import Session, StringSession

from .api import Account


def new_client(session: Session | str, *, account: Account | None = None, **options: Any) -> TelegramClient:
    """A real client, with short waits between its attempts.

    Telethon keeps the list of data centres in the class, for the life of the process: each client gets a class
    of its own, or it would meet the ports of another test's server.
    """
    account = account or Account()
    if isinstance(session, str):
        session = StringSession(session)
    fresh = type("TelegramClient", (TelegramClient,), {"_config": None})
    defaults: dict[str, Any] = {"retry_delay": 0, "connection_retries": 5, "raise_last_call_error": True}
    return fresh(session, account.api_id, account.api_hash, **{**defaults, **options})


def trust(pem: str, address: tuple[str, int] | None = None, dc: int = 2) -> None:
    """Make this process accept the server that holds the key, and go to `address` where it has no session."""
    rsa.add_key(pem, old=False)
    if address is not None:
        telegrambaseclient.DEFAULT_DC_ID = dc
        telegrambaseclient.DEFAULT_IPV4_IP, telegrambaseclient.DEFAULT_PORT = address


def main(argv: Sequence[str] | None = None) -> None:
    """Trust a test server, then run a module as `python -m` would."""
    parser = argparse.ArgumentParser(prog="python -m tests.telegram.clients", description=main.__doc__)
    parser.add_argument("--key", type=Path, required=True, help="the server's public key, PEM")
    parser.add_argument("--server", metavar="HOST:PORT", help="where a client without a session goes")
    parser.add_argument("--dc", type=int, default=2, help="the data centre at that address")
    parser.add_argument("-m", dest="module", required=True)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="the arguments of the module")
    found = parser.parse_args(argv)
    host, _, port = (found.server or "").rpartition(":")
    trust(found.key.read_text(encoding="ascii"), (host, int(port)) if found.server else None, found.dc)
    sys.argv = [found.module, *found.args]
    runpy.run_module(found.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
