"""What the program says besides what it was asked for: with ``-v`` where it looks, with ``--debug`` all there is."""

from __future__ import annotations

import logging

from cli.options import OPTIONS
from cli.output import say
from cli.redaction import hide_secrets


class _Talk(logging.Handler):
    """Lines on standard error as they come."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.name}: {record.getMessage()}" if OPTIONS.debug else record.getMessage(), err=True)


def listen() -> None:
    """Say what the options ask for; warnings are always said."""
    hide_secrets()
    level = logging.DEBUG if OPTIONS.debug else logging.INFO if OPTIONS.verbose else logging.WARNING
    for name in ("cli", "jobs"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(h, _Talk) for h in logger.handlers):
            logger.addHandler(_Talk())
