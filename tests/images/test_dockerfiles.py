"""What the Dockerfiles, the bake file and .dockerignore promise, read from their text."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from .imports import ROOT

IMAGES = sorted(path.parent.name for path in (ROOT / "images").glob("*/Dockerfile"))
BAKE = (ROOT / "images" / "docker-bake.hcl").read_text(encoding="utf-8")


def instructions(image: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, continued lines joined."""
    text = (ROOT / "images" / image / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines.splitlines()) if word]


def stages(image: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage of a Dockerfile, from its FROM on."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(image):
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def copied(stage: list[tuple[str, str]]) -> list[str]:
    """What a stage copies out of the checkout."""
    copies = [rest.split() for word, rest in stage if word == "COPY" and not rest.startswith("--from")]
    return [source for words in copies for source in words[:-1]]


@pytest.mark.parametrize("image", IMAGES)
def test_a_change_of_code_leaves_the_packages_alone(image: str) -> None:
    packages = next(stage for stage in stages(image) if stage[0][1].endswith("AS packages"))
    assert all(source.startswith("images/") for source in copied(packages))
    for word, rest in stages(image)[-1]:
        assert not (word == "COPY" and not rest.startswith("--from")), "the last stage takes only what others made"
    names = [word for word, _ in stages(image)[-1]]
    assert names.index("ARG") > max(i for i, word in enumerate(names) if word in ("COPY", "RUN", "ENTRYPOINT"))


@pytest.mark.parametrize("image", IMAGES)
def test_the_user_is_a_number_that_is_not_root(image: str) -> None:
    assert [rest for word, rest in stages(image)[-1] if word == "USER"] == ["10001:10001"]


@pytest.mark.parametrize("image", IMAGES)
def test_all_that_is_copied_is_in_the_context(image: str) -> None:
    patterns = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    for stage in stages(image):
        for source in copied(stage):
            assert list(ROOT.glob(source)), f"{source} does not exist"
            assert any(fnmatch.fnmatch(source, pattern) for pattern in patterns), f"{source} is ignored"


def test_the_bake_file_builds_all_images() -> None:
    matrix = re.search(r"matrix\s*= \{ image = \[(.*?)\] \}", BAKE)
    assert matrix
    assert sorted(re.findall(r'"([a-z0-9]+)"', matrix[1])) == IMAGES


def test_the_base_is_pinned_by_digest_where_all_are_built() -> None:
    pinned = re.search(r'variable "BASE" \{\s*default = "(\S+)@sha256:[0-9a-f]{64}"', BAKE)
    assert pinned
    for image in IMAGES:
        assert next(rest for word, rest in instructions(image) if word == "ARG") == f"BASE={pinned[1]}"


def test_the_version_is_the_project_s() -> None:
    project = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    baked = re.search(r'variable "VERSION" \{\s*default = "(.*)"', BAKE)
    assert project
    assert baked
    assert baked[1] == project[1]


def test_the_job_templates_name_these_images() -> None:
    named = {
        name
        for path in (ROOT / "k8s").rglob("*.yaml")
        for name in re.findall(r"image: bugurt/([a-z0-9]+)", path.read_text(encoding="utf-8"))
    }
    assert named == set(IMAGES)


def test_no_registry_s_host_is_named() -> None:
    for path in [*(ROOT / "images").rglob("*"), ROOT / "constraints.txt"]:
        if path.is_file() and path.suffix not in (".pyc", ".md"):
            hosts = set(re.findall(r"https?://([^/\s\"')]+)", Path(path).read_text(encoding="utf-8")))
            assert not hosts, path
