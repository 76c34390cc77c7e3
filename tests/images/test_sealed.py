"""Each stage runs with the packages of its image alone: it says --help, and does a small piece of real work."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import ScrapeSpec
from tests.conftest import stage_env

from . import sealed
from .imports import ROOT

MODULES = {
    "scrape": "jobs.scrape",
    "preprocess": "jobs.preprocess",
    "train": "jobs.train",
    "generate": "jobs.generate",
    "driver": "cli.driver",
}


@pytest.mark.parametrize("image", MODULES)
def test_help(image: str, tmp_path: Path) -> None:
    python = sealed.make(tmp_path / image, image)
    done = subprocess.run(
        [python, "-m", MODULES[image], "--help"],
        env=sealed.environment(),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {MODULES[image]}" in done.stdout


def test_a_package_that_is_not_listed_is_not_found(tmp_path: Path) -> None:
    python = sealed.make(tmp_path / "scrape", "scrape")
    done = subprocess.run([python, "-c", "import pyarrow, numpy"], capture_output=True, text=True, check=False)
    assert "No module named 'numpy'" in done.stderr
