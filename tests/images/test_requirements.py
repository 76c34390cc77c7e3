"""Each image's requirements: made from what pyproject.toml and constraints.txt say, and what the stage imports."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from .imports import ROOT, distributions, modules, pinned, reached
from .scripts import load

STAGES = ["scrape", "preprocess", "train", "generate"]
#: What a stage imports only where the user asks for another engine than the image's.
OPTIONAL = {"generate": {"torch", "transformers", "vllm"}}
#: What a library of ours imports itself, if it is there: telethon for speed and for proxies, transformers' reports.
THROUGH_OTHERS = {"scrape": {"cryptg", "python-socks"}, "train": {"tensorboard"}}
DRIVER = ["cli.driver", "cli.clusters.kubernetes"]


@pytest.fixture(scope="module")
def requirements() -> ModuleType:
    return load("requirements")


@pytest.mark.parametrize("image", [*STAGES, "driver", "s3"])
def test_the_committed_file_is_what_the_command_makes(requirements: ModuleType, image: str) -> None:
    path = ROOT / "images" / image / "requirements.txt"
    text = requirements.render(requirements.IMAGES[image])
    assert path.read_text(encoding="utf-8") == text, "run `make requirements`"


def test_every_image_has_a_dockerfile_and_requirements(requirements: ModuleType) -> None:
    folders = {path.parent.name for path in (ROOT / "images").glob("*/Dockerfile")}
    assert folders == set(requirements.IMAGES)


def test_none_but_train_has_torch() -> None:
    assert {image for image in [*STAGES, "driver"] if "torch" in pinned(image)} == {"train"}
    assert "transformers" not in pinned("generate")


@pytest.mark.parametrize("image", STAGES)
def test_the_image_has_all_that_its_code_imports(image: str) -> None:
    missing = {
        (module, name)
        for module, names in reached(modules(f"jobs.{image}")).items()
        for name in names - OPTIONAL.get(image, set())
        if not distributions(name) & pinned(image)
    }
    assert not missing


def test_the_driver_has_all_that_its_code_imports() -> None:
    missing = {
        (module, name)
        for module, names in reached(DRIVER).items()
        for name in names
        if not distributions(name) & pinned("driver")
    }
    assert not missing


@pytest.mark.parametrize("image", STAGES)
def test_the_image_has_nothing_that_its_code_does_not_import(requirements: ModuleType, image: str) -> None:
    """Among what pyproject.toml names: what comes with that is not ours to choose."""
    names = set().union(*reached(modules(f"jobs.{image}")).values())
    used = set().union(*(distributions(name) for name in names)) | THROUGH_OTHERS.get(image, set())
    assert {requirements.canonicalize_name(r.name) for r in requirements.direct(requirements.IMAGES[image])} <= used


def test_a_pin_that_is_missing_or_another_version_is_named(
    requirements: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = requirements.read_pins()
    for change, sentence in (
        ({"urllib3": None}, "does not pin urllib3 (needed by botocore)"),
        ({"urllib3": "0.1"}, "pins urllib3==0.1, but "),
    ):
        changed = {k: v for k, v in {**pins, **change}.items() if v}
        monkeypatch.setattr(requirements, "read_pins", lambda changed=changed: changed)
        with pytest.raises(requirements.RequirementsError) as caught:
            requirements.render(requirements.IMAGES["scrape"])
        assert sentence in str(caught.value)


def test_a_line_that_pins_nothing_is_named(requirements: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# versions\nboto3==1.0\nurllib3>=2\n")
    with pytest.raises(requirements.RequirementsError, match=r"constraints.txt:3: .*urllib3>=2"):
        requirements.read_pins(path)


def test_what_only_some_interpreters_need_gets_a_marker(
    requirements: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"six": [], "ijson": ["six>=1; python_version < '3.12' and platform_machine == 'aarch64'"]}
    monkeypatch.setattr(requirements.metadata, "requires", lambda name: needs.get(name, []))
    text = requirements.render(requirements.IMAGES["scrape"])
    line = next(line for line in text.splitlines() if line.startswith("six=="))
    assert line.endswith('; python_version in "3.11" and platform_machine in "aarch64"  # for ijson')
