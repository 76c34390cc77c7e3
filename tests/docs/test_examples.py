"""The files in ``examples/`` are ones that the program takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.settings import Settings, load
from jobs.preprocess.draft import Draft
from jobs.preprocess.profile import parse_profile
from jobs.specs import SPECS
from tests.projects import Project

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STORY = (
    "вчера я весь вечер искал очки, чтобы найти телефон, на котором записано, где лежат очки.\n\n"
    "нашёл кота. кот знал всё, но молчал."
)


@pytest.mark.parametrize("name", ["laptop", "k3s", "team"])
def test_settings(name: str) -> None:
    settings = load(EXAMPLES / f"{name}.toml")
    for stage, spec in SPECS.items():
        spec.model_validate(getattr(settings, stage))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (STORY, STORY),
        (f"{STORY}\n\nваш сосед сверху\n#подъезд #коты", STORY),
        ("Дайджест недели: 3 истории\n" + STORY, None),
        ("всем доброе утро", None),
    ],
)
def test_the_profile_of_long_posts(before: str, after: str | None) -> None:
    file = EXAMPLES / "long-posts.toml"
    profile = parse_profile(file.read_text(encoding="utf-8"), file.name)
    draft = Draft.of(before)
    verdict = profile.clean(draft)
    assert (None if verdict else draft.text) == after


def test_the_store_from_python(project: Project) -> None:
    from cli.places import open_store

    store = open_store(load_of(project), making=True)
    ref = "batch/" + "0a" * 10
    writer = store.writer(ref)
    writer.put_bytes("part-00000.jsonl", (json.dumps({"text": "ЧАЙНИК УШЁЛ"}, ensure_ascii=False) + "\n").encode())
    writer.commit(stage="generate", spec={}, counts={"posts": 1})

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLES / "read_batch.py"), *arguments]
        return subprocess.run(
            command, cwd=project.folder, env=project.env, capture_output=True, text=True, check=False, timeout=60
        )

    assert ref in script().stdout
    assert "ЧАЙНИК УШЁЛ" in script("batch/0a0a").stdout
    wrong = script("batch/ffff")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")


def load_of(project: Project) -> Settings:
    (project.folder / "bugurt.toml").write_text('[cluster]\nkind = "local"\n', encoding="utf-8")
    return load(project.folder / "bugurt.toml")
