"""What is taken out of an image's packages, and that a library which strip(1) would break stays as it was."""

from __future__ import annotations

import shutil
import struct
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from .scripts import load


@pytest.fixture(scope="module")
def slim() -> ModuleType:
    return load("slim")


def library() -> Path:
    """Some shared library of this interpreter's packages."""
    return next(Path(sysconfig.get_path("platlib")).glob("pydantic_core/*.so"))


FILES = {
    "botocore/data/s3/2006-03-01/service-2.json.gz": True,
    "botocore/data/sts/2011-06-15/service-2.json.gz": True,
    "botocore/data/ec2/2016-11-15/service-2.json.gz": False,
    "botocore/data/endpoints.json": True,
    "numpy/_core/tests/test_x.py": False,
    "numpy/testing/__init__.py": True,
    "numpy/_core/include/numpy/ndarrayobject.h": True,
    "pyarrow/include/arrow/api.h": False,
    "pyarrow/libarrow.so.2600": True,
    "pyarrow/libarrow_python.so": False,
    "pyarrow/libarrow_python.so.2600": True,
    "pyarrow/libarrow_python.so.2600.1.0": False,
    "pyarrow/lib.pyx": False,
    "pydantic/main.py": True,
    "torch/bin/torch_shm_manager": True,
    "torch/bin/protoc": False,
    "transformers/models/auto/modeling_auto.py": True,
    "transformers/models/gpt2/configuration_gpt2.py": True,
    "kubernetes/aio/client/__init__.py": False,
    "kubernetes/client/__init__.py": True,
}


@pytest.mark.parametrize(("image", "kept"), [("preprocess", False), ("train", True)])
def test_what_stays(slim: ModuleType, tmp_path: Path, image: str, kept: bool) -> None:
    files = {**FILES, "transformers/models/gpt2/modeling_gpt2.py": kept}
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    slim.remove(tmp_path, image)
    assert {name: (tmp_path / name).exists() for name in files} == files


def test_a_library_whose_segments_are_misplaced_is_found(slim: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    shutil.copy(library(), path)
    assert slim.sound(path)
    data = bytearray(path.read_bytes())
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    place = next(p for p in range(table, table + size * count, size) if struct.unpack_from("<I", data, p)[0] == 1)
    (offset,) = struct.unpack_from("<Q", data, place + 8)
    struct.pack_into("<Q", data, place + 8, offset + 1)
    path.write_bytes(data)
    assert not slim.sound(path)


@pytest.mark.parametrize("breaks", [False, True])
def test_strip_keeps_what_it_would_break(
    slim: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    path = tmp_path / "package" / "x.so.1"
    path.parent.mkdir()
    shutil.copy(library(), path)
    before = path.read_bytes()

    def strip(command: list[str | Path], *, check: bool) -> None:
        assert check
        target, source = command[-2:]
        Path(target).write_bytes(Path(source).read_bytes() + b"\0")

    monkeypatch.setattr(slim.subprocess, "run", strip)
    monkeypatch.setattr(slim, "sound", lambda found: not breaks)
    slim.strip(tmp_path)
    assert path.read_bytes() == before + (b"" if breaks else b"\0")
    assert [p.name for p in path.parent.iterdir()] == ["x.so.1"]
    assert path.stat().st_mode == library().stat().st_mode
