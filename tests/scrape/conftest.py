"""Fixtures of the scrape tests: a Telegram on the loopback, and what a stage must know to use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.telegram.api import Api
from tests.telegram.channel import Channel
from tests.telegram.server import ServerThread, TelegramServer

Serve = Callable[..., ServerThread]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(channel, …, faults=…)`` starts a server in a thread; its own mistakes fail the test at the end."""
    with ExitStack() as stack:

        def start(*channels: Channel, **options: object) -> ServerThread:
            return stack.enter_context(ServerThread(TelegramServer(Api(*channels), **options)))  # type: ignore[arg-type]

        yield start


def telegram_env(server: TelegramServer, **options: object) -> dict[str, str]:
    """The variables of a logged-in session."""
    account = server.api.account
    return {
        "BUGURT_TELEGRAM_SESSION": server.session_string(**options),
        "BUGURT_TELEGRAM_API_ID": str(account.api_id),
        "BUGURT_TELEGRAM_API_HASH": account.api_hash,
    }
