"""From options and settings to a RunSpec: defaults < ``bugurt.toml`` < environment < options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import ValidationError

from cli.estimate import SCRATCH
from cli.settings import Settings, origin
from jobs.artifacts import ArtifactStore
from jobs.specs import (
    ID_LENGTH,
    MAKES,
    SPECS,
    STAGE_VERSIONS,
    STAGES,
    AnyStageSpec,
    PreprocessSpec,
    RunSpec,
    ScrapeSpec,
    SpecError,
    StageName,
    StageSpec,
    TrainSpec,
    describe,
    digest_id,
    load_json,
    parse_spec,
)

_MODEL_REF = re.compile(rf"^model/[0-9a-f]{{4,{ID_LENGTH}}}$")


def parse_settings(assignments: Sequence[str], stages: Sequence[StageName]) -> dict[str, dict[str, Any]]:
    """``["train.epochs=3"]`` as ``{"train": {"epochs": 3}}``; with one stage its name may be left out.

    A value is JSON if it parses as such, else text; ``none`` unsets. Raises SpecError.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path) or (path[0] in SPECS and len(path) == 1 and len(stages) > 1):
            raise SpecError(f"--set {text!r}: write STAGE.FIELD=VALUE, as in --set train.epochs=3")
        if path[0] in SPECS and len(path) > 1:
            stage, *path = path
        elif len(stages) == 1:
            stage = stages[0]
        elif len(path) > 1:
            raise SpecError(f"--set {text!r}: there is no stage {path[0]!r}, but {', '.join(stages)}")
        else:
            raise SpecError(f"--set {text!r}: begin with a stage, as in --set train.{'.'.join(path)}={value}")
        if stage not in stages:
            raise SpecError(f"--set {text!r}: this run has no stage {stage!r}, but {', '.join(stages)}")
        target = found.setdefault(stage, {})
        for part in path[:-1]:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SpecError(f"--set {text!r}: {part!r} was given a value before")
            target = inner
        target[path[-1]] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.strip().lower() in ("none", "null"):
        return None
    try:
        return load_json(text)
    except ValueError:
        return text


def mirrored_ref(model: str, revision: str) -> str:
    """The reference under which ``bugurt mirror`` keeps a hub model."""
    kind = MAKES["mirror"]
    identity = {"model": model, "revision": revision}
    return f"{kind}/{digest_id(kind, 'mirror', STAGE_VERSIONS['mirror'], identity, {})}"


def resolve_model(store: ArtifactStore, fields: Mapping[str, Any]) -> dict[str, Any]:
    """``model`` and ``base_model`` for a spec: an artefact that was named, or the mirror of a hub model."""
    model = str(fields.get("model", ""))
    if _MODEL_REF.match(model):
        ref = store.resolve(model)
        return {"model": ref, "base_model": ref}
    if not model or model.startswith("scratch:") or fields.get("base_model"):
        return {}
    ref = mirrored_ref(model, str(fields.get("revision", "main")))
    return {"base_model": ref} if store.find(ref) is not None else {}


def offline(settings: Settings) -> bool:
    """Whether the stages have no way to the hub: their models must be in the bucket."""
    return settings.cluster.kind == "kubernetes" and not settings.cluster.hub


def remirrored(store: ArtifactStore, spec: RunSpec, stages: Iterable[StageName]) -> RunSpec:
    """The run whose ``stages`` take the mirror of their hub model, where that has come to the bucket since."""
    found: dict[str, PreprocessSpec | TrainSpec] = {}
    for stage in stages:
        asked = spec.spec(stage)
        if isinstance(asked, PreprocessSpec | TrainSpec) and asked.base_model is None:
            found[stage] = asked.model_copy(update=resolve_model(store, asked.model_dump()))
    return spec.model_copy(update=found)


def unmirrored(specs: Iterable[AnyStageSpec]) -> PreprocessSpec | TrainSpec | None:
    """The first of these stages that would load its model from the hub."""
    for spec in specs:
        if isinstance(spec, PreprocessSpec | TrainSpec) and not (spec.base_model or spec.model.startswith("scratch:")):
            return spec
    return None


def build_run(
    store: ArtifactStore,
    settings: Settings,
    stages: Sequence[StageName],
    options: Mapping[str, Mapping[str, Any]],
    assignments: Sequence[str],
    also: Sequence[Mapping[str, Any]] = (),
) -> RunSpec:
    """The run's spec, validated.

    ``options``: values of the command's own options, by stage; ``also``: the sources of further scrapes, which are
    like the first in all else.
    """
    given = parse_settings(assignments, stages)
    specs: dict[str, Any] = {}
    named = [n for n in ("channel", "source") if n in given.get("scrape", {})]
    if also and named:
        raise SpecError(f"--set scrape.{named[0]} names one channel, and there are several --source; leave it out")
    for stage in stages:
        fields: dict[str, Any] = {**getattr(settings, stage), **_set(options.get(stage, {})), **given.get(stage, {})}
        if stage in ("preprocess", "train"):
            fields.update(resolve_model(store, fields))
        specs[stage] = fields
    others = [{**specs["scrape"], "channel": None, "source": None, **found} for found in also]
    if "preprocess" in specs and "train" in specs:
        _agree(specs["preprocess"], specs["train"])
    for stage in stages:
        specs[stage] = _checked(settings, stage, specs[stage])
    _check_names(specs)
    specs["also"] = tuple(parse_spec(ScrapeSpec, fields, "scrape") for fields in others)
    return parse_spec(RunSpec, specs, "the run")


def mistakes(settings: Settings) -> Iterator[str]:
    """What the stages' sections of the settings hold that no run can be made of: one sentence for each section."""
    sections: dict[str, dict[str, Any]] = {stage: dict(getattr(settings, stage)) for stage in STAGES}
    right: dict[str, Any] = {}
    for stage in STAGES:
        try:
            right[stage] = _checked(settings, stage, sections[stage])
        except SpecError as error:
            yield str(error)
    try:
        _agree(sections["preprocess"], sections["train"])
    except SpecError as error:
        yield str(error)
    try:
        _check_names(right)
    except SpecError as error:
        yield str(error)


def _checked(settings: Settings, stage: StageName, fields: dict[str, Any]) -> StageSpec:
    """A stage's spec. Raises SpecError, which names the file or the variable where the mistake stands in one."""
    try:
        return parse_spec(SPECS[stage], fields, stage)
    except SpecError:
        section = {name: value for name, value in getattr(settings, stage).items() if fields.get(name) is value}
        try:
            SPECS[stage].model_validate(section)
        except ValidationError as error:
            place = [stage, *(str(part) for part in error.errors()[0]["loc"])]
            raise SpecError(describe(error, f"{origin(settings, place)}: {stage}")) from error
        raise


def _check_names(specs: Mapping[str, Any]) -> None:
    """Raises SpecError for a built-in profile or model that is none: here, and not after hours of scraping."""
    for model in {specs[s].model for s in ("preprocess", "train") if s in specs}:
        if model.startswith("scratch:") and model.removeprefix("scratch:") not in SCRATCH:
            raise SpecError(f"model: {model!r} is not known; write {' or '.join(f'scratch:{s}' for s in SCRATCH)}")
    spec = specs.get("preprocess")
    if spec is None or spec.profile_file is not None:
        return
    folder = resources.files("jobs") / "preprocess" / "profiles"
    if not (folder / f"{spec.profile}.toml").is_file():
        names = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
        raise SpecError(f"there is no profile {spec.profile!r}; give {', '.join(names)}, or a profile's .toml file")


def _set(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v is not None}


def _agree(preprocess: dict[str, Any], train: dict[str, Any]) -> None:
    """A dataset is tokenised for one model: both stages must mean the same."""
    names = ("model", "revision", "base_model")
    for name in names:
        if preprocess.get(name) is None and train.get(name) is not None:
            preprocess[name] = train[name]
        elif train.get(name) is None and preprocess.get(name) is not None:
            train[name] = preprocess[name]
    different = [n for n in names if preprocess.get(n) != train.get(n)]
    if different:
        name = different[0]
        raise SpecError(
            f"train.{name} ({train.get(name)}) and preprocess.{name} ({preprocess.get(name)}) must be the same: "
            "the dataset is tokenised for the model"
        )
