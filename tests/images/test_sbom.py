"""Bills of materials: of all that is installed, an image's is what its requirements list, in those versions."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .scripts import load


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return load("sbom")


def component(name: str, version: str, **more: Any) -> dict[str, Any]:
    return {"type": "library", "bom-ref": f"{name}=={version}", "name": name, "version": version, **more}


@pytest.fixture
def whole() -> dict[str, Any]:
    """What cyclonedx-py says of an environment of four packages."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"component": {"type": "application", "bom-ref": "root-component", "name": "bugurt"}},
        "components": [
            component("Telethon", "1.45.0", licenses=[{"license": {"id": "MIT"}}]),
            component("rsa", "4.9.1"),
            component("torch", "2.13.0+cpu"),
            component("pytest", "9.0"),
        ],
        "dependencies": [
            {"ref": "Telethon==1.45.0", "dependsOn": ["rsa==4.9.1", "pytest==9.0"]},
            {"ref": "rsa==4.9.1"},
            {"ref": "pytest==9.0"},
        ],
    }


def test_an_image_has_what_it_lists_and_nothing_else(sbom: ModuleType, whole: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text('# Made\ntelethon==1.45.0  # for bugurt\nrsa==4.9.1 ; python_version in "3.11"  # for telethon\n')
    bill = sbom.narrow(whole, "scrape", sbom.pins(path))
    assert [c["name"] for c in bill["components"]] == ["rsa", "Telethon"]
    assert bill["metadata"]["component"]["name"] == "bugurt-scrape"
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert needs == {
        "Telethon==1.45.0": ["rsa==4.9.1"],
        "rsa==4.9.1": [],
        "root-component": ["Telethon==1.45.0", "rsa==4.9.1"],
    }
    assert bill["specVersion"] == "1.6"


def test_a_build_of_torch_is_torch(sbom: ModuleType, whole: dict[str, Any]) -> None:
    assert [c["version"] for c in sbom.narrow(whole, "train", {"torch": "2.13.0"})["components"]] == ["2.13.0+cpu"]


@pytest.mark.parametrize(("name", "version", "found"), [("rsa", "4.9.2", "4.9.1"), ("boto3", "1.0", "none")])
def test_what_is_installed_otherwise_is_named(
    sbom: ModuleType, whole: dict[str, Any], name: str, version: str, found: str
) -> None:
    with pytest.raises(ValueError, match=f"driver pins {name}=={version}, but {found} is installed"):
        sbom.narrow(whole, "driver", {name: version})


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ([], "not declared"),
        ([{"expression": "MIT OR Apache-2.0"}], "MIT OR Apache-2.0"),
        ([{"license": {"id": "ISC"}}, {"license": {"name": "License :: OSI Approved :: BSD"}}], "ISC AND BSD"),
        ([{"license": {"name": "BSD 3-Clause\n\nCopyright (c) …"}}], "BSD 3-Clause"),
        ([{"license": {"id": "MIT"}}, {"license": {"id": "MIT"}}], "MIT"),
    ],
)
def test_licences_in_words(sbom: ModuleType, declared: list[dict[str, Any]], words: str) -> None:
    assert sbom.licences({"licenses": declared}) == words
