"""Project folders in which tests run ``bugurt``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.main import main
from tests.conftest import ROOT, clean_env

POSTS = """ПОСТАВИЛ ЧАЙНИК
@
УШЁЛ СМОТРЕТЬ СЕРИАЛ
@
ЧАЙНИК ДОСМОТРЕЛ БЕЗ ТЕБЯ

КУПИЛ НОВЫЕ НОСКИ
@
СТАРЫЕ СОБРАЛИ ПРОФСОЮЗ

ПОШЁЛ ЗА ХЛЕБОМ
@
ХЛЕБ ПОШЁЛ ЗА ТОБОЙ
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Project:
    """A folder in which ``bugurt`` is run."""

    folder: Path
    env: dict[str, str]

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Done:
        """``bugurt ARGUMENTS`` in this process, which saves a second of imports each time."""
        out, err = io.StringIO(), io.StringIO()
        before = dict(os.environ)
        with contextlib.chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            os.environ.clear()
            os.environ.update({**self.env, **(env or {})})
            argv, sys.argv = sys.argv, ["bugurt", *arguments]
            try:
                main()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(bool(error.code))
            finally:
                sys.argv = argv
                os.environ.clear()
                os.environ.update(before)
        return Done(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str, **options: Any) -> str:
        """As ``run``; the command must succeed. Returns its standard output."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"bugurt {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """As ``ok``, with ``--json``, parsed."""
        return json.loads(self.ok(*arguments, "--json"))

    def fails(self, code: int, *arguments: str, **options: Any) -> str:
        """The command must fail with this code, one sentence, and no traceback. Returns standard error."""
        done = self.run(*arguments, **options)
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr + done.stdout
        assert any(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
        return done.stderr

    @property
    def bucket(self) -> Path:
        """The bucket's folder."""
        return self.folder / ".bugurt" / "bucket" / "bugurt"


@contextlib.contextmanager
def new_project(folder: Path) -> Iterator[Project]:
    """An empty project with a small text source, ``posts.txt``; everything in it is stopped at the end."""
    folder.mkdir()
    (folder / "posts.txt").write_text(POSTS, encoding="utf-8")
    made = Project(folder, {**clean_env(), "PYTHONPATH": str(ROOT), "BUGURT_LOCAL_BACKOFF": "0.1", "COLUMNS": "200"})
    yield made
    (folder / "bugurt.toml").unlink(missing_ok=True)  # some tests break it
    done = made.run("down", "--force")
    assert done.returncode == 0, done.stderr
    for job in (folder / ".bugurt" / "jobs").glob("*/pid"):
        command = Path(f"/proc/{job.read_text().strip()}/cmdline")
        assert not (command.exists() and str(folder).encode() in command.read_bytes()), f"{job} still runs"


def kill_group(pattern: str) -> list[int]:
    """SIGKILL all processes whose command line has ``pattern``; returns their numbers."""
    killed = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if pattern in command:
            os.kill(int(entry.name), signal.SIGKILL)
            killed.append(int(entry.name))
    return killed
