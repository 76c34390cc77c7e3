"""Write what the documentation takes from the code: ``python docs/generate.py`` (``--check`` only compares).

The tables stand in the pages between ``<!-- generated: NAME -->`` and ``<!-- end -->``; all else is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
LIMITS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "min_length": "length ≥ ", "max_length": "length ≤ "}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; pipes within cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in line) + " |" for line in lines)


def type_of(annotation: Any) -> str:
    """A field's type in words."""
    if annotation is type(None):
        return "unset"
    if str(getattr(annotation, "__origin__", "")) == "typing.Literal":
        return ", ".join(f"`{v}`" for v in get_args(annotation))
    arguments = [a for a in get_args(annotation) if a is not Ellipsis]
    origin = getattr(annotation, "__origin__", None)
    if origin in (tuple, list):
        return f"list of {type_of(arguments[0])}"
    if origin is dict:
        return "table"
    if hasattr(annotation, "__metadata__"):
        return type_of(arguments[0])
    if arguments:
        return " or ".join(dict.fromkeys(type_of(a) for a in arguments if a is not type(None)))
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = str(annotation.__name__)
    return names.get(name, name)


def limits_of(field: FieldInfo) -> str:
    """Bounds of a field's values."""
    found = [
        f"{words}{v:,}" for m in field.metadata for n, words in LIMITS.items() if (v := getattr(m, n, None)) is not None
    ]
    return ", ".join(found)


def default_of(field: FieldInfo) -> str:
    """A field's default as it is written in TOML or JSON."""
    value = field.get_default(call_default_factory=False)
    if value is PydanticUndefined:
        return "needed" if field.is_required() else "–"
    if value is None or isinstance(value, BaseModel) or value in ("", ()):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def fields(model: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    """The fields of a model."""
    rows = []
    for name, field in model.model_fields.items():
        if name in leave_out:
            continue
        extra = field.json_schema_extra
        role = str(extra.get("role", "")) if isinstance(extra, dict) else ""
        words = [field.description or "", limits_of(field), f"*{role}*" if role else ""]
        kind = type_of(field.annotation)
        rows.append((f"`{field.alias or name}`", kind, default_of(field), "; ".join(w for w in words if w)))
    return table(("field", "value", "default", "meaning"), rows)


def columns(schema: Any) -> str:
    """The columns of a Parquet file."""
    return table(
        ("column", "type", "null"), [(f"`{f.name}`", f"`{f.type}`", "yes" if f.nullable else "") for f in schema]
    )


def rules() -> str:
    """Every kind of rule with its parameters."""
    from jobs.preprocess.rules import AnyRule

    parts = []
    for rule in get_args(get_args(AnyRule)[0]):
        kind = get_args(rule.model_fields["use"].annotation)[0]
        words = " ".join((rule.__doc__ or "").split()).replace("``", "`")
        lines = rule.__mro__[1].__doc__ or "" if rule.__mro__[1].__name__ in ("Lines", "Condition") else ""
        more = " ".join(lines.split()).replace("``", "`").partition(". ")[2]
        parts += [f"### {kind}", words, more, fields(rule, ("use", "name")) if len(rule.model_fields) > 2 else ""]
    return "\n\n".join(p for p in parts if p)


def estimates() -> str:
    """Memory of one GPU and hours of one epoch, by the formulas of ``cli.estimate``."""
    from cli.estimate import GPUS, SHAPES, Work, estimate

    rows = []
    for name in ("rugpt3small_based_on_gpt2", "rugpt3medium_based_on_gpt2", "rugpt3large_based_on_gpt2"):
        work = Work(tokens=10_000_000, epochs=1, block_size=256, batch_size=8)
        for label, rank in (("all weights", None), ("LoRA, r = 16", 16)):
            found = {g: estimate(SHAPES[name], work, on=GPUS[g], lora_rank=rank) for g in ("t4", "rtx4090", "a100")}
            one = next(iter(found.values()))
            hours = [f"{e.hours:.2f}" + ("" if e.fits else " (does not fit)") for e in found.values()]
            rows.append(
                (
                    name.partition("_")[0],
                    label,
                    f"{one.parameters / 1e6:.0f} M",
                    f"{one.memory_total / 1e9:.1f}",
                    *hours,
                )
            )
    return table(("model", "trained", "weights", "memory, GB", "T4, h", "RTX4090, h", "A100, h"), rows)


def blocks() -> dict[str, Callable[[], str]]:
    """What can stand between the marks."""
    from cli.settings import ClusterSection, S3Section, Settings, StageResources
    from jobs.generate.records import parquet_schema
    from jobs.manifest import FileEntry, Manifest
    from jobs.posts import POST_SCHEMA
    from jobs.preprocess.corpus import DROPPED
    from jobs.preprocess.output import BLOCKS, CHANGED, POSTS
    from jobs.preprocess.profile import Profile
    from jobs.specs import GenerateSpec, LoraSettings, PreprocessSpec, ScrapeSpec, TrainSpec
    from jobs.style import Form, Style

    stages = ("scrape", "preprocess", "train", "generate")
    return {
        "settings": lambda: fields(Settings, ("s3", "cluster", "root", *stages)),
        "s3": lambda: fields(S3Section, ("access_key_id", "secret_access_key", "session_token")),
        "cluster": lambda: fields(ClusterSection, (*stages, "driver")),
        "resources": lambda: fields(StageResources),
        "scrape": lambda: fields(ScrapeSpec, ("stage",)),
        "preprocess": lambda: fields(PreprocessSpec, ("stage",)),
        "train": lambda: fields(TrainSpec, ("stage",)),
        "lora": lambda: fields(LoraSettings),
        "generate": lambda: fields(GenerateSpec, ("stage",)),
        "manifest": lambda: fields(Manifest),
        "entry": lambda: fields(FileEntry),
        "posts": lambda: columns(POST_SCHEMA),
        "entity": lambda: columns(POST_SCHEMA.field("entities").type.value_type),
        "reaction": lambda: columns(POST_SCHEMA.field("reactions").type.value_type),
        "dataset": lambda: columns(POSTS),
        "blocks": lambda: columns(BLOCKS),
        "changed": lambda: columns(CHANGED),
        "excluded": lambda: columns(DROPPED),
        "style": lambda: fields(Style),
        "form": lambda: fields(Form),
        "batch": lambda: columns(parquet_schema()),
        "profile": lambda: fields(Profile),
        "rules": rules,
        "estimates": estimates,
    }


def render(text: str) -> str:
    """A page with its generated parts as the code has them now. Raises KeyError for a name that there is not."""
    known = blocks()
    return BLOCK.sub(lambda m: f"{m[1]}\n{known[m[2]]()}\n\n{m[3]}", text)


def main() -> int:
    """Write the pages, or with ``--check`` name those that are out of date and return 1."""
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (made := render(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(made, encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'out of date' if '--check' in sys.argv else 'written'}: {', '.join(stale)}\n")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    raise SystemExit(main())
