"""What docker's own reader makes of the bake file: no engine is needed for that, only the plugin buildx.

``apt-get install docker-buildx`` or docker's own packages bring it; BUGURT_BUILDX names the program elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs import __version__

from .imports import ROOT
from .test_dockerfiles import IMAGES, instructions

PLUGINS = [Path.home() / ".docker"]
PLUGINS += [Path(top, name, "docker") for top in ("/usr", "/usr/local") for name in ("libexec", "lib")]


def buildx() -> Path | None:
    """The program, if it is here."""
    found = os.environ.get("BUGURT_BUILDX") or shutil.which("docker-buildx")
    if found:
        return Path(found)
    return next((p for folder in PLUGINS if (p := folder / "cli-plugins" / "docker-buildx").is_file()), None)


BUILDX = buildx()
pytestmark = pytest.mark.skipif(BUILDX is None, reason="docker-buildx is not here")
#: A release candidate, so that its version holds a character that no tag may have.
CLUSTER = {
    "REGISTRY": "registry.example.org/bugurt",
    "VERSION": "0.2.0+rc1",
    "REVISION": "0123456789ab",
    "SOURCE": "https://example.org/bugurt",
    "BASE": "registry.example.org/python:3.12",
    "PLATFORMS": "linux/amd64,linux/arm64",
    "CACHE": "registry.example.org/bugurt/cache",
    "TORCH_INDEX": "https://example.org/cpu",
    "CUDA": "12",
}


def bake(*targets: str, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The targets that would be built, by name."""
    assert BUILDX is not None
    command = [BUILDX, "bake", "--print", "--file", "images/docker-bake.hcl", *targets]
    kept = {key: value for key, value in os.environ.items() if key not in CLUSTER}  # whatever this machine has set
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, **(env or {})}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["target"]
    return found


def arguments(image: str) -> set[str]:
    """The build arguments that a Dockerfile takes."""
    return {rest.partition("=")[0] for word, rest in instructions(image) if word == "ARG"}


def test_all_images_are_built_for_this_machine_by_default() -> None:
    found = bake()
    assert sorted(found) == IMAGES
    for image, target in found.items():
        assert target["dockerfile"] == f"images/{image}/Dockerfile"
        assert (ROOT / target["context"]).samefile(ROOT)
        assert target["tags"] == [f"bugurt/{image}:{__version__}"]
        assert "@sha256:" in target["args"]["BASE"]
        assert not {"platforms", "cache-from", "cache-to"} & set(target)


@pytest.mark.parametrize("image", IMAGES)
def test_one_image_is_a_target_by_its_name(image: str) -> None:
    assert list(bake(image)) == [image]


def test_a_dockerfile_takes_the_arguments_that_it_is_given() -> None:
    for image, target in {**bake(), "generate": bake("generate-cuda")["generate-cuda"]}.items():
        unused = set(target["args"]) - arguments(image)
        assert unused <= {"TORCH_INDEX", "CUDA"}, image
    assert "TORCH_INDEX" in arguments("train")
    assert "CUDA" in arguments("generate")


def test_every_variable_reaches_every_target() -> None:
    found = bake("image", "gpu", env=CLUSTER)
    assert sorted(found) == sorted([*IMAGES, "generate-cuda"])
    for name, target in found.items():
        image, _, variant = name.partition("-")
        suffix = f"-{variant}" if variant else ""
        repository = f"{CLUSTER['REGISTRY']}/{image}"
        assert target["tags"] == [f"{repository}:0.2.0-rc1{suffix}", f"{repository}:0123456789ab{suffix}"]
        assert target["platforms"] == ["linux/amd64", "linux/arm64"]
        passed = ("VERSION", "REVISION", "SOURCE", "BASE", "TORCH_INDEX", "CUDA")
        assert target["args"] == {key: CLUSTER[key] for key in passed}
        assert name in json.dumps(target["cache-from"]), "it reads another cache than it writes"
    caches = {json.dumps(target["cache-to"]) for target in found.values()}
    assert len(caches) == len(found), "two targets would overwrite one cache"


def test_the_group_for_gpus() -> None:
    found = bake("gpu")
    assert sorted(found) == ["generate-cuda", "train"]
    assert found["generate-cuda"]["args"]["CUDA"] == "12"
    assert bake("generate")["generate"]["args"]["CUDA"] == ""
