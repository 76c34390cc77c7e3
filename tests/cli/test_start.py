"""The first moments of ``bugurt``: before the command line is there, and with streams that the caller closed."""

from __future__ import annotations

import importlib
import importlib.abc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from cli import start
from cli.redaction import hide_secrets
from tests.conftest import ROOT
from tests.projects import Project

START = "from cli.start import main; main()"


class _Field:
    def __set_name__(self, owner: type, name: str) -> None:  # Python 3.11 makes a RuntimeError of what is raised here
        raise KeyboardInterrupt


def make_class() -> None:
    type("Owner", (), {"field": _Field()})


def press() -> None:
    raise KeyboardInterrupt


class _Interrupted(importlib.abc.MetaPathFinder):
    """Ctrl-C while the command line is imported."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.happens = happens

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "cli.main":
            self.happens()
        return None


@pytest.mark.parametrize("happens", [press, make_class])
def test_ctrl_c_during_the_imports_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]
) -> None:
    monkeypatch.delitem(sys.modules, "cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Interrupted(happens), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        start.main()
    assert caught.value.code == 130


def test_ctrl_c_while_a_class_is_made_is_no_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line = importlib.import_module("cli.main")
    monkeypatch.setattr(command_line, "app", make_class)
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_were_closed_are_no_trouble(project: Project, closed: str) -> None:
    command = f'"$0" -c "{START}" artifacts list {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable], cwd=project.folder, capture_output=True, text=True,
                          env={**project.env, "PYTHONPATH": str(ROOT)}, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "error" not in done.stderr


def test_a_reader_that_leaves_early_ends_it_by_141(project: Project) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-c", START, "runs", "--json"], cwd=project.folder, stdout=theirs,
                          stderr=subprocess.PIPE, env={**project.env, "PYTHONPATH": str(ROOT)}, timeout=60,
                          check=False)  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


SHOW = "from cli.start import *; open_streams(); set_encoding(); print(chr(0x401), end='')"


@pytest.mark.parametrize(("named", "wanted"), [({}, "Ё".encode()), ({"PYTHONIOENCODING": "ascii"}, b"?")])
def test_no_locale_keeps_posts_from_being_printed(named: dict[str, str], wanted: bytes) -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT), **named}
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (wanted, b"")


def test_what_is_opened_next_does_not_become_standard_output(project: Project) -> None:
    code = "from cli.start import open_streams; open_streams(); import os, sys; f = os.open('x', 65); " \
           "open('found', 'w').write(f'{f} {os.readlink(\"/proc/self/fd/1\")}'); print('lost')"  # fmt: skip
    subprocess.run(["bash", "-c", '"$0" -c "$1" 0<&- 1>&- 2>&-', sys.executable, code], cwd=project.folder,
                   env={**project.env, "PYTHONPATH": str(ROOT)}, timeout=60, check=True)  # fmt: skip
    number, output = (project.folder / "found").read_text().split()
    assert int(number) > 2 and output == "/dev/null"
    assert (project.folder / "x").read_bytes() == b""


def test_a_librarys_warning_hides_what_signs_an_address() -> None:
    hide_secrets()
    said = "Failed to parse headers (url=http://127.0.0.1/b/k?X-Amz-Signature=0f0f&X-Amz-Expires=900)"
    record = logging.LogRecord("urllib3.connection", logging.WARNING, __file__, 1, said, None, None)
    assert logging.lastResort is not None
    assert "X-Amz-Signature=[redacted]&X-Amz-Expires=900)" in logging.lastResort.format(record)
