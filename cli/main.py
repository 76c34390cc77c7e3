"""The command line, ``bugurt``. One file a command; everything heavy is imported when a command runs."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.commands import (
    artifacts,
    batches,
    cancel,
    demo,
    doctor,
    down,
    gc,
    init,
    install,
    login,
    logs,
    mirror,
    open,
    rerun,
    runs,
    status,
    submit,
)
from cli.options import OPTIONS

# Plain help: drawing frames with rich would double the time of `bugurt --help`.
app = typer.Typer(
    name="bugurt",
    help="Give it a Telegram channel, get back new posts in its style.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from jobs import __version__

        typer.echo(f"bugurt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    config: Annotated[Path | None, typer.Option("--config", help="Settings file instead of bugurt.toml.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and say all there is to say.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only what was asked for.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""
    OPTIONS.config, OPTIONS.debug, OPTIONS.verbose, OPTIONS.quiet = config, debug, verbose, quiet
    from cli.talk import listen

    listen()


_COMMANDS = (
    *(init, login, doctor, install),
    *(submit, runs, status, open, logs, cancel, rerun),
    *(artifacts, batches, mirror, gc, demo, down),
)
for module in _COMMANDS:
    module.register(app)


def main() -> None:
    """Run the command line; every error is one sentence, unless ``--debug`` asks for more."""
    try:
        app()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as error:
        # The reader of our output has gone, as `head` does. Typer calls that 1, which is no code of ours.
        if isinstance(error.__context__, BrokenPipeError):
            sys.exit(141)
        raise
    except Exception as error:
        from jobs.specs import BugurtError

        if OPTIONS.debug:
            raise
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python's, of one that came while a class was made
            _interrupted()
        if isinstance(error, BugurtError):
            typer.echo(f"error: {error}", err=True)
            sys.exit(int(error.exit_code))
        if isinstance(error, OSError):
            place = f": {error.filename}" if error.filename else ""
            typer.echo(f"error: {error.strerror or error}{place}", err=True)
            # What is not there, or not ours to write, is so at the next try, too.
            lasting = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
            sys.exit(78 if isinstance(error, lasting) or error.errno == errno.EROFS else 75)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        typer.echo(f"internal error, please report it (--debug shows it whole): {text}", err=True)
        sys.exit(70)


def _interrupted() -> NoReturn:
    typer.echo("interrupted", err=True)
    sys.exit(130)


if __name__ == "__main__":
    main()
