"""What the settings do, and that the numbers that a model is given are its own."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs.artifacts import ArtifactStore
from jobs.specs import ConfigError, SpecError, TrainSpec
from jobs.train.journal import Journal
from jobs.train.plan import ENDLESS, schedule
from jobs.train.presets import PRESETS, Settings, resolve, warmup_of
from jobs.train.surroundings import precision_of
from jobs.train.trainer import PostTrainer
from tests.conftest import MadeOnce
from tests.train import hooks
from tests.train.datasets import invented_posts, make_dataset
from tests.train.forks import Fork

# In fp32 on any machine: what is compared here differs by less than bf16 rounds.
SPEC: dict[str, Any] = {
    "model": "scratch:tiny", "preset": "tiny", "batch_size": 4, "max_steps": 20, "eval_steps": 5, "precision": "fp32",
}  # fmt: skip


def trained(
    store: ArtifactStore, s3_env: dict[str, str], folder: Path, *, hook: Any = None, **fields: Any
) -> tuple[TrainSpec, Path]:
    """A finished training's spec and the folder with its model."""
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store), **fields})
    done = Fork(spec, s3_env, folder, hook=hook)
    assert done.end() == 0, done.text
    target = folder / spec.ref().replace("/", "-")
    store.download(spec.ref(), target)
    return spec, target


@pytest.fixture
def plain(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, made_once: MadeOnce) -> TrainSpec:
    """The spec of a finished training of ``SPEC``: it is done once a session, and put into this test's bucket."""
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store)})

    def make(folder: Path) -> None:
        trained(store, s3_env, tmp_path)
        for entry in store.bucket.list(f"{spec.ref()}/"):
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.bucket.get_bytes(entry.path))

    made = made_once("plain-training", make)
    for file in (p for p in made.rglob("*") if p.is_file()):
        store.bucket.put_bytes(str(file.relative_to(made)), file.read_bytes())
    return spec


def test_bits_per_character_are_those_of_the_model_on_the_held_out_posts(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    spec, folder = trained(store, s3_env, tmp_path, learning_rate=0.02)  # so high that the last step is not the best
    info = store.manifest(spec.ref()).info
    assert spec.dataset is not None
    store.download(spec.dataset, tmp_path / "data", "validation-*")
    table = pq.read_table(tmp_path / "data" / "validation-00000.parquet").to_pydict()
    model = AutoModelForCausalLM.from_pretrained(folder)
    nats = 0.0
    with torch.no_grad():
        for ids in table["input_ids"]:
            row = torch.tensor([ids])
            nats += float(model(row, labels=row).loss) * (len(ids) - 1)
    bits = nats / math.log(2) / sum(map(len, table["text"]))
    assert info["bits_per_character"] == pytest.approx(bits, rel=1e-4)
    assert info["best_step"] in (5, 10, 15, 20)
    assert f"{info['bits_per_character']:.4f}" in (folder / "README.md").read_text()


def test_lora_is_merged_and_kept(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, plain: TrainSpec
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = {"r": 4, "alpha": 8}
    spec, folder = trained(
        store, s3_env, tmp_path, base_model=plain.ref(), lora=lora, learning_rate=0.01, checkpoint_steps=7
    )
    before, after = (store.manifest(s.ref()).info for s in (plain, spec))
    assert after["best_loss"] < before["best_loss"]
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {f.name for f in (folder / "adapter").iterdir()}
    store.download(plain.ref(), tmp_path / "base")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == plain.ref()
    assert not [f for f in folder.rglob("*") if f.is_file() and b"bugurt-train-" in f.read_bytes()]  # folders of then


def test_lora_resumes(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, plain: TrainSpec) -> None:
    spec = TrainSpec.model_validate(
        {
            **SPEC,
            "dataset": make_dataset(store),
            "base_model": plain.ref(),
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "checkpoint_steps": 3,
        }
    )
    whole = Fork(spec, s3_env, tmp_path, run="whole")
    assert whole.end() == 0, whole.text
    expected = {f.path: f.sha256 for f in store.manifest(spec.ref()).files}
    store.remove(spec.ref())
    killed = Fork(spec, s3_env, tmp_path, run="killed")
    killed.wait_for("checkpoint 6 is in the bucket")
    assert killed.end(Fork.KILL) < 0
    again = Fork(spec, s3_env, tmp_path, run="killed")
    assert again.end() == 0, again.text
    assert "resuming at step" in again.text
    assert {f.path: f.sha256 for f in store.manifest(spec.ref()).files} == expected


@pytest.mark.parametrize(
    ("processor", "expected"), [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")]
)
def test_auto_is_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert precision_of(TrainSpec()) == expected
    assert precision_of(TrainSpec(precision="fp32")) == "fp32"
    assert precision_of(TrainSpec(precision="bf16")) == "bf16"
    with pytest.raises(ConfigError, match="needs a GPU"):
        precision_of(TrainSpec(precision="fp16"))


def test_early_stopping_keeps_the_best(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    posts = invented_posts(20)
    other = [p[::-1] for p in invented_posts(5, seed=9)]  # held out is something else: it only gets worse
    spec, _ = trained(
        store,
        s3_env,
        tmp_path,
        dataset=make_dataset(store, posts, held_out=other),
        max_steps=400,
        learning_rate=0.01,
        early_stopping_patience=2,
    )
    manifest = store.manifest(spec.ref())
    assert manifest.info["stopped_early"]
    assert manifest.counts["steps"] < 400
    assert manifest.info["best_step"] == manifest.counts["steps"] - 2 * 5


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_checkpointing": True},
        {"precision": "bf16"},
        {"attn_implementation": "eager"},
        {"torch_compile": True},
    ],
    ids=str,
)
def test_other_ways_to_compute_come_to_nearly_the_same(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, plain: TrainSpec, fields: dict[str, Any]
) -> None:
    # Without the compiler's own work, which takes minutes: what is traced is all of our code.
    hook = hooks.compiled_by_nothing if "torch_compile" in fields else None
    other, _ = trained(store, s3_env, tmp_path, hook=hook, **fields)
    a, b = (store.manifest(s.ref()).info["best_loss"] for s in (plain, other))
    assert b == pytest.approx(a, rel=0.02 if "precision" in fields else 1e-4)


def test_a_limit_of_time_ends_it_with_an_evaluation(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec, folder = trained(store, s3_env, tmp_path, max_steps=None, max_minutes=0.05, eval_steps=100_000)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert store.manifest(spec.ref()).info["training_seconds"] >= 3.0
    assert "eval_loss" in records[-1]


def test_a_limit_of_time_has_the_schedule_of_so_many_steps() -> None:
    journal = Journal()
    settings = Settings(max_minutes=1.0, lr_scheduler_type="cosine", warmup_ratio=0.05)
    plan = SimpleNamespace(settings=settings, total_steps=ENDLESS, journal=journal)
    rates = []
    for step in range(1, 101):
        journal.seconds = 0.6 * step  # a hundred steps fit into the minute
        rates.append(PostTrainer.rate(SimpleNamespace(plan=plan), step))  # type: ignore[arg-type]
    expected = [schedule(settings, step, step / 100, 100) for step in range(1, 101)]
    assert rates == pytest.approx(expected)
    assert max(rates) > 0.99
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)


def test_the_spec_goes_over_the_preset() -> None:
    spec = TrainSpec.model_validate({"preset": "reference", "learning_rate": 1e-3, "warmup_ratio": 0.1})
    found = resolve(spec, from_scratch=False)
    assert (found.epochs, found.batch_size, found.learning_rate) == (5.0, 8, 1e-3)
    assert warmup_of(found, 200) == 20
    with pytest.raises(SpecError):
        resolve(TrainSpec.model_validate({"warmup_steps": 1, "warmup_ratio": 0.1}), from_scratch=True)
    reference = PRESETS["reference"][0]  # the public notebook's numbers
    assert (reference.epochs, reference.batch_size, reference.learning_rate, reference.warmup_steps) == (
        5,
        8,
        5e-5,
        500,
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_schedules_rise_and_fall(name: Any) -> None:
    settings = Settings(lr_scheduler_type=name, warmup_steps=10)
    rates = [schedule(settings, step, step / 100, 100) for step in range(101)]
    if name != "constant":
        assert rates[0] == 0.0
        assert rates[5] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1.0 if name.startswith("constant") else 0.0)
