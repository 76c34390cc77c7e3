"""The scripts of ``images/``, which is no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from .imports import ROOT


def load(name: str) -> ModuleType:
    """``images/NAME.py`` as a module."""
    spec = importlib.util.spec_from_file_location(f"images_{name}", ROOT / "images" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
