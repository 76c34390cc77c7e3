"""The pages: what is made from the code is up to date, links lead somewhere, tests that are named are there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """``docs/generate.py``, which is no package's module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_those_of_the_code(generate: ModuleType) -> None:
    found = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += len(generate.BLOCK.findall(text))
        assert generate.render(text) == text, f"{page.name} is out of date: run python docs/generate.py"
    assert found == len(generate.blocks()), "every table that can be made stands in a page, once"


def test_drift_is_found(generate: ModuleType) -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    stale = text.replace("| `epochs` |", "| `epoch` |")
    assert stale != text
    assert generate.render(stale) == text


def test_the_menu_has_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert {name for entry in nav for name in entry.values()} == {p.name for p in PAGES}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_within_the_tree_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_promises_name_tests_that_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "reliability.md").read_text(encoding="utf-8"))
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_sentences_of_the_troubleshooting_page_are_the_codes() -> None:
    sources = [f for folder in ("cli", "jobs") for f in (ROOT / folder).rglob("*.py")]
    code = re.sub(r'"\s*f?"', "", "".join(f.read_text(encoding="utf-8") for f in sources))
    table = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## By symptom")[2]
    found = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert found
    for sentence in found:
        for part in re.split(r"…|\d+|validation", sentence):  # what the code fills in
            assert part.strip(" ;") in code, sentence


def test_benchmarks_that_are_named_are_there() -> None:
    for name in re.findall(r"python -m benchmarks\.(\w+)", (DOCS / "performance.md").read_text(encoding="utf-8")):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_they_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "settings" / "index.html").is_file()
