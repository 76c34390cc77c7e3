"""From options and settings to a run's spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.assemble import build_run, mirrored_ref, parse_settings
from cli.estimate import SCRATCH
from cli.runs import run_name, slug, with_input
from cli.settings import Settings
from jobs.artifacts import ArtifactStore
from jobs.preprocess.profile import builtin_names
from jobs.specs import RUN_NAME, STAGES, RunSpec, ScrapeSpec, SpecError, TrainSpec
from jobs.train.models import SHAPES

REF = "source/" + "a" * 20


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train.epochs=3", {"train": {"epochs": 3}}),
        ("train.lora.r=8", {"train": {"lora": {"r": 8}}}),
        ('generate.prompts=["А", "Б"]', {"generate": {"prompts": ["А", "Б"]}}),
        ("train.model=scratch:small", {"train": {"model": "scratch:small"}}),
        ("train.max_steps=none", {"train": {"max_steps": None}}),
        ("preprocess.mask_pii=true", {"preprocess": {"mask_pii": True}}),
        ('generate.stop_words=["a=b"]', {"generate": {"stop_words": ["a=b"]}}),
    ],
)
def test_assignments(text: str, wanted: dict[str, Any]) -> None:
    assert parse_settings([text], STAGES) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "epochs=3",
        "train",
        "train=3",
        "=3",
        "moon.phase=1",
        "train..epochs=1",
        "train.epochs.=1",
        "train.lora=1|train.lora.r=2",
    ],
)
def test_assignments_that_mean_nothing(text: str) -> None:
    with pytest.raises(SpecError, match="--set"):
        parse_settings(text.split("|"), STAGES)


def test_a_stage_that_is_written_wrong_is_named() -> None:
    with pytest.raises(SpecError, match="there is no stage 'trian', but scrape, preprocess, train, generate"):
        parse_settings(["trian.epochs=3"], STAGES)


def test_one_stage_needs_no_name() -> None:
    assert parse_settings(["epochs=3"], ["train"]) == {"train": {"epochs": 3}}
    with pytest.raises(SpecError, match="no stage 'scrape'"):
        parse_settings(["scrape.limit=3"], ["train"])


def build(store: ArtifactStore, given: dict[str, dict[str, Any]], *assign: str, **sections: Any) -> RunSpec:
    settings = Settings(root=Path(), **sections)
    return build_run(store, settings, STAGES, {"scrape": {"source": REF}, **given}, assign)


def test_later_words_win(store: ArtifactStore) -> None:
    spec = build(store, {"train": {"epochs": 2.0}}, "train.epochs=3", train={"epochs": 1.0, "seed": 7})
    assert spec.train is not None and (spec.train.epochs, spec.train.seed) == (3.0, 7)
    spec = build(store, {"train": {"epochs": None}}, train={"epochs": 1.0})
    assert spec.train is not None and spec.train.epochs == 1.0, "an option that was not given changes nothing"


def test_both_stages_mean_one_model(store: ArtifactStore) -> None:
    spec = build(store, {"train": {"model": "scratch:small"}})
    assert spec.preprocess is not None and spec.preprocess.model == "scratch:small"
    with pytest.raises(SpecError, match="must be the same"):
        build(store, {"train": {"model": "scratch:small"}, "preprocess": {"model": "scratch:tiny"}})


def test_a_mirrored_model_is_taken_from_the_bucket(store: ArtifactStore) -> None:
    spec = build(store, {"train": {"model": "owner/name"}})
    assert spec.train is not None and spec.train.base_model is None
    ref = mirrored_ref("owner/name", "main")
    store.writer(ref).commit(stage="mirror", spec={})
    spec = build(store, {"train": {"model": "owner/name"}})
    assert spec.train is not None and spec.preprocess is not None
    assert spec.train.base_model == spec.preprocess.base_model == ref
    spec = build(store, {"train": {"model": ref[:12]}})
    assert spec.train is not None and spec.train.base_model == ref


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Бугурт-тред №5", "bugurt-tred-no5"),
        ("My Channel!", "my-channel"),
        ("ЙОЖ", "iozh"),
        ("日本", "run"),
        ("", "run"),
        ("a" * 99, "a" * 20),
    ],
)
def test_slugs(text: str, wanted: str) -> None:
    assert slug(text, 20) == wanted


def test_run_names_are_deterministic_and_fit() -> None:
    import re

    one = RunSpec(scrape=ScrapeSpec(source=REF))
    two = RunSpec(scrape=ScrapeSpec(source=REF, limit=3))
    assert run_name(one, "x" * 99) == run_name(one, "x" * 99) != run_name(two, "x" * 99)
    for serial in (1, 2, 99):
        assert re.fullmatch(RUN_NAME, run_name(one, "Очень-длинное_имя " * 9, serial=serial))


def test_names_are_apart_where_several_buckets_share_a_place() -> None:
    spec = RunSpec(scrape=ScrapeSpec(source=REF))
    names = {run_name(spec, "x", store=store) for store in (None, "0a1b2c3d", "4e5f6a7b", "4e5f6a7b")}
    assert len(names) == 3


def test_inputs_are_filled_in_where_they_are_open() -> None:
    made = "dataset/" + "b" * 20
    assert with_input(TrainSpec(), made).inputs() == {"dataset": made}
    own = TrainSpec(dataset="dataset/" + "c" * 20)
    assert with_input(own, made) is own
    assert with_input(ScrapeSpec(source=REF), made).inputs() == {"source": REF}


def test_ids_of_chats_and_channels_are_text_although_they_look_like_numbers(store: ArtifactStore) -> None:
    for field, value in (("chat", "1234567890"), ("channel", "-1001234567890")):
        spec = build_run(store, Settings(), ("scrape",), {}, [f"scrape.{field}={value}"])
        assert getattr(spec.scrape, field) == value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preprocess": {"profile": "nonsuch"}}, "no profile 'nonsuch'; give bugurt, plain, or a profile's .toml"),
        ({"preprocess": {"profile": "custom"}}, "no profile 'custom'"),
        ({"train": {"model": "scratch:huge"}}, "'scratch:huge' is not known; write scratch:tiny or scratch:small"),
    ],
)
def test_a_name_that_is_built_in_nowhere_is_told_before_anything_runs(
    store: ArtifactStore, given: dict[str, dict[str, Any]], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        build(store, given)


def test_the_names_that_are_checked_are_those_that_the_stages_know(store: ArtifactStore) -> None:
    assert set(SHAPES) == set(SCRATCH)
    for name in builtin_names():
        build(store, {"preprocess": {"profile": name}})
    build(store, {"preprocess": {"profile": "custom", "profile_file": REF}})
