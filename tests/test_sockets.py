"""Worker processes start, however long the path of the folder for temporary files is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

WORK = """
from jobs.preprocess.pool import Workers

if __name__ == "__main__":
    with Workers(2, "jobs.preprocess.packing") as workers:
        print(sum(workers.map(abs, range(-9, 0))))
"""
LISTEN = """
import threading
from jobs.train.launch import Parent

print(len(Parent(print, threading.Event()).address) < 108)
"""


@pytest.mark.parametrize(("code", "said"), [(WORK, "45"), (LISTEN, "True")])
@pytest.mark.parametrize("length", [20, 200])
def test_workers_below_a_folder_of_any_length(tmp_path: Path, code: str, said: str, length: int) -> None:
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    script = tmp_path / "work.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == (said, 0), done.stderr
    assert not list(Path("/tmp").glob(f"pymp-*{os.getpid()}*"))
