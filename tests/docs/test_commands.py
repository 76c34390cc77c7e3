"""What the pages tell people to type: cheap commands are run, all others are parsed; TOML blocks are loaded."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from typer.main import get_command

from cli.assemble import parse_settings
from cli.main import app
from cli.settings import load
from jobs.preprocess.profile import parse_profile
from jobs.specs import SPECS
from tests.projects import Project, new_project

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    run: bool


def blocks(*languages: str) -> Iterator[Block]:
    for page in PAGES:
        for run, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                yield Block(page, language, text, bool(run))


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of all ``bugurt`` lines of a block."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["bugurt"]:
            yield words[1 : words.index("|") if "|" in words else None]


LINES = [(b.page.name, words) for b in blocks("sh", "") for words in commands(b.text)]


def parse(words: list[str]) -> None:
    """Parse a command line as the program would, without running it. Raises click's UsageError."""
    command = get_command(app)
    context = command.make_context("bugurt", list(words))
    while hasattr(command, "commands"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)  # type: ignore[attr-defined]
        context = command.make_context(name, rest, parent=context)
    stages = [words[1]] if words[1:2] and words[1] in SPECS else list(SPECS)
    assignments = [after for option, after in pairwise(words) if option == "--set"]
    for stage, given in parse_settings(assignments, stages).items():  # type: ignore[arg-type]
        assert set(given) <= set(SPECS[stage].model_fields), f"{stage} has no such field: {given}"


def test_the_pages_have_commands() -> None:
    assert len(LINES) > 50
    assert sum(b.run for b in blocks("sh")) >= 2


@pytest.mark.parametrize(("page", "words"), LINES, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_every_command_parses(page: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize("words", [["submit", "pipeline", "--sauce", "x"], ["explode"], ["runs", "--set"]])
def test_what_is_no_command_is_found_out(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such (option|command)"):
        parse(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with the sample channel."""
    with new_project(tmp_path_factory.mktemp("docs") / "project") as made:
        shutil.copytree(ROOT / "examples" / "channel", made.folder / "examples" / "channel")
        yield made


@pytest.mark.slow
def test_marked_commands_run(place: Project) -> None:
    for block in blocks("sh"):
        for words in commands(block.text) if block.run else ():
            known = {}
            if {"RUN", "posts/ID"} & set(words):
                known["RUN"] = place.json("runs")[0]["run"]
                known["posts/ID"] = place.json("artifacts", "list", "posts")[0]["ref"]
            place.ok(*(known.get(word, word) for word in words))


def test_settings_and_profiles_of_the_pages_load(tmp_path: Path) -> None:
    found = list(blocks("toml"))
    assert found
    for block in found:
        if "[[rule]]" in block.text:
            parse_profile(block.text, block.page.name)
            continue
        file = tmp_path / "bugurt.toml"
        file.write_text(block.text, encoding="utf-8")
        load(file)


def test_json_has_the_fields_of_the_page(place: Project) -> None:
    place.ok("submit", "scrape", "--source", "posts.txt", "--wait")
    run = place.json("runs")[0]
    status = place.json("status", run["run"])
    pages = {
        "bugurt runs --json": run,
        "bugurt status RUN --json": status,
        "bugurt doctor --json": json.loads(place.run("doctor", "--json").stdout)[0],
    }
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    for command, found in pages.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{command}`"))
        named = set(re.findall(r"`(\w+)`", row.split("|")[2])) - {"ok", "warn", "fail"}
        assert named == set(found), command
    assert set(re.findall(r"`(\w+)`", text.split("of `status`: ")[1].split(". ")[0])) == set(status["stages"][0])
