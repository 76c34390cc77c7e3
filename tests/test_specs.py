"""Specs: what decides an artefact's id, and one sentence for whatever is wrong with them."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from jobs.specs import (
    ID_LENGTH,
    KINDS,
    MAKES,
    SPECS,
    STAGE_VERSIONS,
    STAGES,
    AnyStageSpec,
    LoraSettings,
    RunSpec,
    ScrapeSpec,
    SpecError,
    StageName,
    StageSpec,
    canonical_json,
    digest_id,
    input_ref,
    operational,
    parse_spec,
)

REFS = [f"{kind}/{digit * ID_LENGTH}" for kind in KINDS for digit in "0a"]
# Values of every kind that a field may take; for each field those count that it accepts.
POOL: list[Any] = [
    *REFS,
    *(True, False, 0, 1, 2, 3, 5, 17, 300, 1000, 5000, 70000, 0.25, 0.5, 0.85, 1.0, 1.5, 12.5),
    *("channel", "привет", "auto", "keep", "lower", "hash", "time", "desktop", "jsonl", "text", "cpu", "cuda"),
    *("default", "reference", "tiny", "linear", "cosine", "fp32", "bf16", "fp16", "sdpa", "eager", "float32", "int8"),
    *("transformers", "ctranslate2", "vllm", "own-profile"),
    date(2020, 1, 2),
    date(2031, 3, 4),
    datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
    datetime(2025, 5, 6, tzinfo=UTC),
    ("Купил гараж", "Проснулся"),
    ("слово",),
    LoraSettings(),
    LoraSettings(r=8, target_modules=("c_attn",)),
]
STAGE_FIELDS = [(stage, name) for stage in STAGES for name in SPECS[stage].model_fields if name != "stage"]


def accepted(stage: StageName, name: str) -> list[Any]:
    """Values of the pool that the field takes by itself, without two that come to the same."""
    spec_type = SPECS[stage]
    found = {}
    for value in POOL:
        try:
            spec = spec_type.model_validate({name: value})
        except ValidationError:
            continue
        found[canonical_json(spec.model_dump(mode="json")[name])] = getattr(spec, name)
    return list(found.values())


def role(spec_type: type[StageSpec], name: str) -> str:
    extra = spec_type.model_fields[name].json_schema_extra
    return str(extra.get("role", "identity")) if isinstance(extra, dict) else "identity"


@st.composite
def specs(draw: st.DrawFn) -> AnyStageSpec:
    """Any spec of any stage, from values that its fields take."""
    stage = draw(st.sampled_from(STAGES))
    names = [n for s, n in STAGE_FIELDS if s == stage]
    chosen = {n: draw(st.sampled_from(VALUES[stage, n])) for n in draw(st.lists(st.sampled_from(names), unique=True))}
    spec_type: Any = SPECS[stage]
    while True:
        try:
            return spec_type.model_validate(chosen)  # type: ignore[no-any-return]
        except ValidationError:  # two fields that exclude each other
            chosen.popitem()


VALUES = {(stage, name): accepted(stage, name) for stage, name in STAGE_FIELDS}


@pytest.mark.parametrize(("stage", "name"), STAGE_FIELDS)
def test_each_field_plays_its_role_in_the_id(stage: StageName, name: str) -> None:
    spec_type = SPECS[stage]
    values = VALUES[stage, name]
    made = [spec_type.model_validate({name: v}) for v in values]
    ids = {s.ref() for s in (spec_type(), *made)}
    contents = {canonical_json(s.model_dump(mode="json")) for s in (spec_type(), *made)}
    assert len(contents) > 1, f"the pool has no other value for {name}"
    assert len(ids) == (1 if role(spec_type, name) == "operational" else len(contents))
    default = spec_type.model_fields[name].default
    assert default is None or spec_type.model_validate({name: default}).ref() == spec_type().ref()
    for spec, value in zip(made, values, strict=True):
        assert (spec.inputs() == {name: value}) == (role(spec_type, name) == "input")
        assert (name in spec.identity()) == (role(spec_type, name) == "identity")


@settings(max_examples=60, deadline=None)
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_a_spec_survives_json_in_any_order(spec: AnyStageSpec, seed: int) -> None:
    items = list(json.loads(spec.model_dump_json()).items())
    random.Random(seed).shuffle(items)
    again = type(spec).model_validate_json(json.dumps(dict(items)))
    assert again == spec
    assert again.ref() == spec.ref()
    kind, _, name = spec.ref().partition("/")
    assert kind == MAKES[spec.stage]
    assert len(name) == ID_LENGTH


@settings(max_examples=60, deadline=None)
@given(first=specs(), second=specs())
def test_ids_are_equal_exactly_when_what_comes_out_is(first: AnyStageSpec, second: AnyStageSpec) -> None:
    def what(spec: AnyStageSpec) -> str:
        return canonical_json([spec.stage, spec.identity(), spec.inputs()])

    assert (first.ref() == second.ref()) == (what(first) == what(second))


@settings(max_examples=40, deadline=None)
@given(spec=specs(), name=st.from_regex(r"\A[a-z_]{1,12}\Z"))
def test_an_unknown_field_is_named(spec: AnyStageSpec, name: str) -> None:
    if name in type(spec).model_fields:
        return
    with pytest.raises(SpecError, match=rf"^here: {name}: unknown field$"):
        parse_spec(type(spec), {**spec.model_dump(mode="json"), name: 1}, "here")


class Sample(StageSpec):
    """Frozen for the golden ids below: never edit it, nor them."""

    stage: Literal["scrape"] = "scrape"
    source: str | None = input_ref("")
    text: str = "Бугурт «ё» 😀 \u2028"
    day: date = date(2020, 2, 29)
    moment: datetime = datetime(2021, 12, 31, 23, 59, 59, 123456, UTC)
    share: float = 0.1
    big: float = 1e22
    whole: float = 3
    number: int = 2**53 + 1
    flag: bool = True
    nothing: str | None = None
    words: tuple[str, ...] = ("б", "а")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    workers: int = operational(1, "")


GOLDEN_TEXT = (
    '{"big":1e+22,"day":"2020-02-29","flag":true,'
    '"lora":{"alpha":32,"dropout":0.05,"r":16,"target_modules":null},"moment":"2021-12-31T23:59:59.123456Z",'
    '"nothing":null,"number":9007199254740993,"share":0.1,"stage":"scrape",'
    '"text":"Бугурт «ё» 😀 \u2028","whole":3.0,"words":["б","а"]}'
)


def test_ids_are_the_same_on_every_platform_and_version() -> None:
    assert canonical_json(Sample(whole=3.0).identity()) == GOLDEN_TEXT
    assert digest_id("posts", "scrape", 1, {"б": [1, 0.1, None]}, {"source": "x"}) == "2165540c9637b58022d5"
    assert Sample(whole=3.0).ref() == "posts/c5f96ad1f767ed9946e1"
    assert Sample(whole=3.0, source=REFS[0], workers=9).ref() == "posts/253d01149f3c8c3aef71"


def test_a_stage_version_makes_other_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage: SPECS[stage]().ref() for stage in STAGES}
    monkeypatch.setitem(STAGE_VERSIONS, "train", STAGE_VERSIONS["train"] + 1)
    assert {stage for stage in STAGES if SPECS[stage]().ref() != before[stage]} == {"train"}


def test_equal_numbers_make_equal_ids() -> None:
    train = SPECS["train"]
    assert train.model_validate({"epochs": 3}).ref() == train.model_validate({"epochs": 3.0}).ref()
    assert len({SPECS[s]().ref() for s in STAGES}) == len(STAGES)


def test_one_moment_makes_one_id() -> None:
    moscow = datetime(2024, 1, 1, 3, tzinfo=timezone(timedelta(hours=3)))
    same = [moscow, datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1)]
    assert len({ScrapeSpec(as_of=moment).ref() for moment in same}) == 1


@pytest.mark.parametrize(
    ("stage", "data", "sentence"),
    [
        ("scrape", {"channel": "@a", "source": REFS[0]}, "give 'channel' or 'source', not both"),
        ("scrape", {"since": "2020-01-02", "until": "2020-01-02"}, "'since' must lie before 'until'"),
        ("scrape", {"min_id": 5, "max_id": 6}, "'min_id' must be smaller than 'max_id', with an id between them"),
        ("scrape", {"as_of": "0001-01-01T00:00:00+03:00"}, "as_of: the moment lies outside the calendar"),
        ("scrape", {"source": "posts/123"}, "source: String should match pattern"),
        ("scrape", {"source": REFS[0] + "\n"}, "source: String should match pattern"),
        ("preprocess", {"block_size": 8}, "block_size: Input should be greater than or equal to 16 (got 8)"),
        ("preprocess", {"validation": 0.5}, "validation: Input should be less than 0.5 (got 0.5)"),
        ("preprocess", {"profile": "../x"}, "profile: String should match pattern"),
        ("train", {"epochs": float("nan")}, "epochs: Input should be a finite number (got nan)"),
        ("train", {"epochs": True}, "epochs: Input should be a number (got True)"),
        ("train", {"lora": {"r": True}}, "lora: r: Input should be a number (got True)"),
        ("train", {"lora": {"r": 0}}, "lora.r: Input should be greater than or equal to 1 (got 0)"),
        ("train", {"learning_rate": "x" * 1000}, "learning_rate: Input should be a valid number"),
        ("generate", {"prompts": ["а"], "openings": True}, "give one of 'prompts', 'prompts_file' and 'openings'"),
        ("generate", {"min_characters": 9, "max_characters": 8}, "'min_characters' must not exceed"),
        ("generate", {"count": 0, "seed": -1}, "; and 1 more"),
        ("generate", {"prompts": ["\ud800"]}, "prompts.0: "),
        ("generate", [], "Input should be a table of fields"),
        ("generate", {"prompts": "x"}, "prompts: Input should be a list (got 'x')"),
    ],
)
def test_one_sentence_says_what_is_wrong(stage: StageName, data: Any, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(SPECS[stage], data, "spec.json")
    text = str(caught.value)
    assert sentence in text
    assert text.startswith("spec.json: ")
    assert "\n" not in text.replace(r"\n", "")
    assert len(text) < 300


def test_values_never_change() -> None:
    spec = ScrapeSpec(channel="@a")
    with pytest.raises(ValidationError):
        spec.channel = "@b"  # type: ignore[misc]


def test_what_must_be_set_before_a_stage_can_run() -> None:
    assert {s: SPECS[s]().missing_inputs() for s in STAGES} == {
        "scrape": ["source"],
        "preprocess": ["posts"],
        "train": ["dataset"],
        "generate": ["model"],
    }
    assert ScrapeSpec(channel="@a").missing_inputs() == []
    assert SPECS["train"].model_validate({"dataset": "dataset/" + "0" * ID_LENGTH}).missing_inputs() == []


def test_a_run_has_stages_without_a_gap() -> None:
    run = RunSpec.model_validate({"preprocess": {}, "train": {"epochs": 2}})
    assert run.stages() == ["preprocess", "train"]
    assert run.spec("train") == SPECS["train"].model_validate({"epochs": 2})
    with pytest.raises(KeyError):
        run.spec("scrape")
    for wrong, sentence in (
        ({}, "a run needs at least one stage"),
        ({"scrape": {}, "train": {}}, "without a gap, not scrape, train"),
        ({"train": {"epoch": 1}}, "train.epoch: unknown field"),
        ({"train": {"stage": "scrape"}}, "train.stage"),
    ):
        with pytest.raises(SpecError, match=sentence):
            parse_spec(RunSpec, wrong, "run")
