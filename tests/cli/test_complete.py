"""Completion in the shell, as the shell asks for it: another process, its words in the environment."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cli.complete import PATIENCE
from tests.projects import Project, new_project

RUNS = ("cats-111111", "cats-222222", "dogs-333333")
REFS = {kind: f"{kind}/{n}{'a' * 19}" for n, kind in enumerate(("source", "posts", "dataset", "model", "batch"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose bucket has runs and artefacts; no server runs."""
    with new_project(tmp_path_factory.mktemp("complete") / "project") as made:
        for name in RUNS:
            write(made.bucket / "runs" / name / "run.json")
        for ref in REFS.values():
            write(made.bucket / ref / "manifest.json")
        write(made.bucket / "model" / ("f" * 20) / "half.bin")  # never committed
        yield made


def write(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("{}")


PROGRAM = """
import json, os, sys
import cli.complete, cli.settings
from cli.main import main
cli.complete.PATIENCE = float(sys.argv[1])
sys.argv = ["bugurt"]
for line in json.load(sys.stdin):
    print("=", flush=True)
    if os.fork() == 0:
        words = str(len(line.split(" ")) - 1)
        os.environ |= {"_BUGURT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": words}
        main()
    os.wait()
"""


def complete_all(
    project: Project, lines: Sequence[str], env: dict[str, str] | None = None, *, patience: float = 60.0
) -> list[list[str]]:
    """What bash would offer at the end of each line. Nothing else may be printed, and there is no failure.

    Each line has a process of its own, forked from one that has done the imports. They wait for ``patience`` seconds:
    what is offered must not depend on how busy this machine is, and how long a user waits has a test of its own.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(patience)], cwd=project.folder, env={**project.env, **(env or {})},
        input=json.dumps(lines), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert "rror" not in done.stdout
    return [part.split() for part in done.stdout.split("=\n")[1:]]


def complete(project: Project, line: str, env: dict[str, str] | None = None, **options: float) -> list[str]:
    """As ``complete_all``, for one line."""
    (found,) = complete_all(project, [line], env, **options)
    return found


def test_runs(place: Project) -> None:
    lines = [f"bugurt {command} cats" for command in ("status", "logs", "cancel", "rerun", "open")]
    assert complete_all(place, lines) == [["cats-111111", "cats-222222"]] * len(lines)


OFFERED = {
    "bugurt artifacts show ": list(REFS.values()),
    "bugurt artifacts pull mod": [REFS["model"]],
    "bugurt artifacts rm posts/x dataset/": [REFS["dataset"]],
    "bugurt artifacts show 3a": [REFS["model"].removeprefix("model/")],
    "bugurt artifacts show model/f": [],
    "bugurt batches show ": [REFS["batch"]],
    "bugurt batches pull 4": [REFS["batch"].removeprefix("batch/")],
    "bugurt batches open model": [],
    "bugurt batches compare x batch/4": [REFS["batch"]],
    "bugurt submit train --dataset ": [REFS["dataset"]],
    "bugurt submit generate --model m": [REFS["model"]],
    "bugurt submit preprocess --posts p": [REFS["posts"]],
    "bugurt logs cats-111111 pre": ["preprocess"],
    "bugurt status nobody": [],
}


def test_artefacts_and_stages(place: Project) -> None:
    found = complete_all(place, list(OFFERED))
    assert dict(zip(OFFERED, found, strict=True)) == OFFERED
    assert not (place.folder / ".bugurt" / "s3.json").exists(), "no server was started for it"


def test_a_bucket_elsewhere(place: Project, store: object, s3_env: dict[str, str]) -> None:
    store.bucket.put_bytes("runs/far-1/run.json", b"{}")  # type: ignore[attr-defined]
    assert complete(place, "bugurt status f", s3_env) == ["far-1"]


def test_nobody_waits_for_a_bucket_that_does_not_answer(place: Project, s3_env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {**s3_env, "BUGURT_S3_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        before = time.monotonic()
        assert complete(place, "bugurt status ", env, patience=PATIENCE) == []
        assert time.monotonic() - before < 20  # botocore's own patience is minutes


def test_wrong_settings_are_told_elsewhere(place: Project) -> None:
    file = place.folder / "bugurt.toml"
    file.write_text("[s3\n", encoding="utf-8")
    try:
        assert complete(place, "bugurt status ") == []
    finally:
        file.unlink()


def test_the_settings_file_of_the_line_counts(place: Project, tmp_path: Path) -> None:
    write(tmp_path / ".bugurt" / "bucket" / "bugurt" / "runs" / "other-1" / "run.json")
    (tmp_path / "bugurt.toml").write_text("", encoding="utf-8")
    assert complete(place, f"bugurt --config {tmp_path}/bugurt.toml status ") == ["other-1"]


def test_in_bash_itself(place: Project, tmp_path: Path) -> None:
    """The script that `--show-completion` prints, loaded into a bash that completes a line."""
    bash = shutil.which("bash")
    program = Path(sys.executable).parent / "bugurt"
    if bash is None or not program.exists():
        pytest.skip("no bash, or bugurt is not installed")
    script = (
        f'eval "$(_BUGURT_COMPLETE=source_bash {program})"\n'
        "COMP_WORDS=(bugurt status do) COMP_CWORD=2\n"
        f"shopt -s expand_aliases; set -- {program}\n"
        '_bugurt_completion "$1"\n'
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=place.folder, env={**os.environ, **place.env}, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "dogs-333333", done.stderr
    assert done.stderr == ""
