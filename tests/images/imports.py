"""Which distributions a stage's code imports, read from its source: at the top of modules and inside functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OURS = ("jobs", "cli")
INSTALLED = metadata.packages_distributions()


def source(module: str) -> Path | None:
    """The file of one of our modules, None for a name in a module."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _checked_only(node: ast.AST) -> bool:
    """Whether a block is for type checkers only."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not _checked_only(child):
            yield from _statements(child)


def imported(module: str) -> set[str]:
    """The dotted names that one of our modules imports."""
    path = source(module)
    assert path is not None, f"there is no module {module}"
    names: set[str] = set()
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names.update(alias.name for alias in statement.names)
            continue
        base = statement.module or ""
        if statement.level:
            parts = module.split(".")[: -statement.level if path.name != "__init__.py" else 1 - statement.level or None]
            base = ".".join([*parts, *filter(None, [base])])
        names.add(base)
        names.update(f"{base}.{alias.name}" for alias in statement.names)
    return names


def reached(roots: list[str], leave_out: frozenset[str] = frozenset()) -> dict[str, set[str]]:
    """All of our modules that the roots lead to, with the top names of foreign packages that each imports."""
    found: dict[str, set[str]] = {}
    queue = list(roots)
    while queue:
        module = queue.pop()
        if module in found or module in leave_out or source(module) is None:
            continue
        names = imported(module)
        found[module] = {n.partition(".")[0] for n in names} - set(OURS) - sys.stdlib_module_names - {"__future__"}
        queue += [name for name in names if name.partition(".")[0] in OURS]
        queue += [module.rpartition(".")[0]] if "." in module else []
    return found


def modules(package: str) -> list[str]:
    """The names of all modules of one of our packages."""
    folder = ROOT.joinpath(*package.split("."))
    paths = sorted(folder.rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def distributions(top: str) -> set[str]:
    """The canonical names of the distributions that a package's top name comes from."""
    return {canonicalize_name(name) for name in INSTALLED.get(top, ())}


def pinned(image: str) -> set[str]:
    """The canonical names in an image's requirements.txt."""
    lines = (ROOT / "images" / image / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if not line.startswith("#")}
