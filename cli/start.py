"""Where ``bugurt`` begins: what may go wrong before the command line is there to tell of it."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback from the first imports on."""
    open_streams()
    set_encoding()
    try:
        from cli.main import main as command_line
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python's, of one that came while a class was made
            sys.exit(130)
        raise
    command_line()


def set_encoding() -> None:
    """Let no character end a command, whatever the locale.

    A terminal gets what its locale knows, and a question mark for all else. Everything that is not a terminal is read
    by programs, to which we promise UTF-8, unless the user has named another encoding.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ours = not stream.isatty() and not os.environ.get("PYTHONIOENCODING")
            lenient = "replace" if stream.errors == "strict" else stream.errors
            stream.reconfigure(encoding="utf-8" if ours else None, errors=lenient)


def open_streams() -> None:
    """Open what the caller closed of the three standard streams.

    Writing to it would fail, and the next file that is opened would take its place, for the children as well.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
