"""Each stage runs with the packages of its image alone: it says --help, and does a small piece of real work."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import AnyStageSpec

from . import sealed, work

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
    done = subprocess.run([python, "-c", "import arro3.io, pyarrow"], capture_output=True, text=True, check=False)
    assert "No module named 'pyarrow'" in done.stderr


def test_the_stages_work(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    def run(spec: AnyStageSpec) -> None:
        python = sealed.make(tmp_path / spec.stage, spec.stage)
        path = tmp_path / f"{uuid.uuid4().hex}.json"
        path.write_text(spec.model_dump_json(), encoding="utf-8")
        done = subprocess.run(
            [python, "-m", MODULES[spec.stage], "--spec", path],
            env={**sealed.environment(), **s3_env, "BUGURT_RUN": "sealed"},
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr

    work.do_all(store, run)
