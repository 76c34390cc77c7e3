"""Signals to the driver's process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import stage_env

#: A driver that gets SIGTERM when all is over but the interpreter, and perhaps another one in the midst of its work:
#: EARLIER says where.
DRIVER = """
import atexit, os, signal
import cli.driver, cli.places
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
opened = cli.places.open_store
def open_store(settings, **options):
    if os.environ.get("EARLIER") == "call":
        os.kill(os.getpid(), signal.SIGTERM)
    if os.environ.get("EARLIER") == "class":
        class Field:
            def __set_name__(self, owner, name):  # Python 3.11 makes a RuntimeError of what is raised here
                os.kill(os.getpid(), signal.SIGTERM)
        type("Owner", (), {"field": Field()})
    return opened(settings, **options)
cli.places.open_store = open_store
cli.driver.main()
"""


@pytest.mark.parametrize(
    ("env", "code", "words"),
    [
        ({}, 65, "there is no run"),
        ({"EARLIER": "call"}, 143, "interrupted by SIGTERM"),
        ({"EARLIER": "class"}, 143, "interrupted by SIGTERM"),
    ],
)
def test_a_signal_at_the_very_end_changes_nothing_and_one_before_it_ends_it(
    env: dict[str, str], code: int, words: str, s3_env: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "--run", "none"],
        env=stage_env(s3_env, "none", env),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert done.returncode == code
