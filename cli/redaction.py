"""What libraries say of themselves on standard error, without secrets. The driver, too, needs it."""

from __future__ import annotations

import logging


class _Redacted(logging.Formatter):
    """A library's warning, without what would let others use a signed address, which some of them name whole."""

    def format(self, record: logging.LogRecord) -> str:
        from jobs.artifacts import without_signatures  # which takes boto3, and most commands end without a warning

        return without_signatures(super().format(record))


def hide_secrets() -> None:
    """From now on, in what libraries say of themselves."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Redacted())
