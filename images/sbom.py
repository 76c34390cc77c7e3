"""Write a software bill of materials (CycloneDX) and a list of licences for each image.

    python images/sbom.py CYCLONEDX_PY [FOLDER]      (default: build/sbom)

``make sbom`` calls it. cyclonedx-py reads what is installed beside this interpreter; this script leaves of that what
an image's requirements.txt lists. The base image's own packages are not in it: docker buildx adds those with
``--sbom=true``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def pins(requirements: Path) -> dict[str, str]:
    """``NAME==VERSION`` lines of a requirements file, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    found = (line.partition(";")[0].partition("==") for line in lines if line)
    return {canonicalize_name(name): version.strip() for name, _, version in found}


def licences(component: dict[str, Any]) -> str:
    """A component's licences in words."""
    names = []
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        name = entry.get("expression") or licence.get("id") or licence.get("name") or ""
        # Some packages give the whole text where a name belongs; its first line is the name.
        names.append(name.strip().partition("\n")[0].removeprefix("License :: OSI Approved :: "))
    return " AND ".join(dict.fromkeys(filter(None, names))) or "not declared"


def narrow(whole: dict[str, Any], image: str, wanted: dict[str, str]) -> dict[str, Any]:
    """The bill of one image. Raises ValueError when a package of it is not installed in the pinned version."""
    components: dict[str, Any] = {canonicalize_name(c["name"]): c for c in whole["components"]}
    for name, version in wanted.items():
        found = components.get(name, {}).get("version", "none")
        if found.partition("+")[0] != version:
            raise ValueError(f"{image} pins {name}=={version}, but {found} is installed: run `make .venv/.installed`")
    kept = [components[name] for name in sorted(wanted)]
    root = {**whole["metadata"]["component"], "name": f"bugurt-{image}"}
    refs = {c["bom-ref"] for c in kept}
    needs = [
        {**entry, "dependsOn": [ref for ref in entry.get("dependsOn", []) if ref in refs]}
        for entry in whole["dependencies"]
        if entry["ref"] in refs
    ]
    needs.append({"ref": root["bom-ref"], "dependsOn": sorted(refs)})
    return {
        **whole,
        "components": kept,
        "dependencies": needs,
        "metadata": {**whole["metadata"], "component": root},
    }


def main() -> int:
    """Write the files and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("cyclonedx", help="the program cyclonedx-py")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "sbom")
    options = parser.parse_args()
    command = [options.cyclonedx, "environment", sys.executable, "--pyproject", ROOT / "pyproject.toml"]
    done = subprocess.run([*command, "--output-reproducible", "-o", "-"], stdout=subprocess.PIPE, check=True)
    whole = json.loads(done.stdout)
    options.folder.mkdir(parents=True, exist_ok=True)
    for requirements in sorted((ROOT / "images").glob("*/requirements.txt")):
        image = requirements.parent.name
        try:
            bill = narrow(whole, image, pins(requirements))
        except ValueError as error:
            print(f"sbom: {error}", file=sys.stderr)  # noqa: T201
            return 1
        (options.folder / f"{image}.cdx.json").write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
        lines = [f"{c['name']}\t{c['version']}\t{licences(c)}\n" for c in bill["components"]]
        (options.folder / f"{image}.licences.tsv").write_text("".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
