"""Estimates: the arithmetic by hand, and agreement with what the train stage really does."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cli import estimate as e
from jobs.specs import LoraSettings, SpecError, TrainSpec

MEDIUM = "ai-forever/rugpt3medium_based_on_gpt2"


def test_parameters_of_known_models() -> None:
    """The hub's own counts: 125 M, 356 M and 760 M."""
    found = [round(e.SHAPES[f"rugpt3{s}_based_on_gpt2"].parameters / 1e6) for s in ("small", "medium", "large")]
    assert found == [125, 356, 760]
    assert e.SHAPES["gpt2"].parameters == 124_439_808  # transformers' own count


def test_names_of_the_same_model_by_others() -> None:
    assert e.known_shape("sberbank-ai/rugpt3medium_based_on_gpt2") == e.known_shape(MEDIUM)
    assert e.known_shape("somebody/unknown") is None
    assert e.known_shape("scratch:huge") is None


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_scratch_models_are_what_the_stage_builds(size: str) -> None:
    from jobs.train.models import MIN_POSITIONS, SHAPES

    layers, width, _ = SHAPES[size]
    assert e.known_shape(f"scratch:{size}", vocab_size=1000, block_size=128) == e.Shape(
        layers, width, 1000, MIN_POSITIONS
    )
    assert set(e.SCRATCH) == set(SHAPES)


def test_presets_are_the_stages_own() -> None:
    from jobs.train.presets import PRESETS

    theirs = {(n, bool(i)): (s[i].epochs, s[i].batch_size) for n, s in PRESETS.items() for i in (0, 1)}
    assert theirs == e.PRESETS


def test_the_count_of_weights_is_transformers_own() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = e.known_shape("scratch:tiny", vocab_size=700)
    assert shape is not None
    config = GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.positions, n_embd=shape.width, n_layer=shape.layers, n_head=2
    )
    assert sum(p.numel() for p in GPT2LMHeadModel(config).parameters()) == shape.parameters


def test_steps_and_tokens() -> None:
    work = e.Work(tokens=10_000, epochs=2, block_size=100, batch_size=8)
    assert work.steps == 26  # 100 blocks, 13 batches an epoch
    assert work.total_tokens == 20_000
    assert e.Work(10_000, 2, 100, 8, accumulation=2, processes=2).steps == 8
    capped = e.Work(10_000, 2, 100, 8, max_steps=5)
    assert (capped.steps, capped.total_tokens) == (5, 4_000)


def test_hours_by_hand() -> None:
    """6·N·tokens / (peak · utilisation), for round numbers."""
    shape = e.SHAPES["gpt2"]
    work = e.Work(tokens=1_000_000, epochs=3, block_size=256, batch_size=8)
    found = e.estimate(shape, work, on=e.gpu("A100"))
    assert found.hours == pytest.approx(6 * shape.parameters * 3_000_000 / (312e12 * 0.30) / 3600)
    assert "not measured" in found.basis and found.as_json()["measured"] is False
    twice = e.estimate(shape, e.Work(1_000_000, 3, 256, 8, processes=2), on=e.gpu("A100"))
    assert twice.hours == pytest.approx(found.hours / 2)


@pytest.mark.parametrize(
    ("name", "precision", "computes", "peak"),
    [
        ("A100", "auto", "bf16", 312e12),
        ("A100", "fp16", "fp16", 312e12),
        ("A100", "fp32", "fp32", 19.5e12),
        ("T4", "auto", "fp32", 8.1e12),
        ("T4", "fp16", "fp16", 65e12),
        ("T4", "bf16", "bf16", 8.1e12),  # emulated
        ("V100", "auto", "fp32", 15.7e12),
    ],
)
def test_the_peak_is_that_of_what_is_computed_in(name: str, precision: Any, computes: str, peak: float) -> None:
    spec = TrainSpec(model=MEDIUM, precision=precision)
    found = e.estimate_training(spec, tokens=1_000_000, gpu_name=name)
    assert found.tokens_per_second == pytest.approx(peak * 0.30 / (6 * found.parameters))
    assert f"of its peak in {computes}, not measured" in found.basis
    told = f'fp32, for {name} has no bf16; train.precision = "fp16" would use its tensor cores'
    assert (told in found.assumptions) is (computes == "fp32" and precision == "auto")


def test_auto_is_what_the_stage_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of the table's kind; the stage asks torch."""
    import torch

    from jobs.train.surroundings import precision_of

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpu in e.GPUS.values():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, gpu=gpu: gpu.bf16)
        assert e.computes_in("auto", gpu) == precision_of(TrainSpec())
    assert e.computes_in("auto", None) == "bf16"


def test_fp32_takes_more_memory_for_activations() -> None:
    shape = e.SHAPES["rugpt3medium_based_on_gpt2"]
    half, full = (e.memory(shape, batch_size=8, block_size=256, precision=p) for p in ("bf16", "fp32"))
    assert half == e.memory(shape, batch_size=8, block_size=256)
    assert full["activations"] == pytest.approx(half["activations"] * 66 / 34)
    assert full["logits"] == 8 * 8 * 256 * shape.vocab
    assert full["weights and optimiser"] == half["weights and optimiser"]
    kept = [
        e.memory(shape, batch_size=8, block_size=256, checkpointing=True, precision=p)["activations"]
        for p in ("bf16", "fp32")
    ]
    assert 1.9 < kept[1] / kept[0] < 2


def test_a_measured_speed_is_believed() -> None:
    work = e.Work(tokens=36_000, epochs=1, block_size=100, batch_size=8)
    found = e.estimate(e.SHAPES["gpt2"], work, measured_tokens_per_second=10.0)
    assert (found.hours, found.basis) == (1.0, "measured before")
    assert found.as_json()["measured"] is True and found.fits is None


def test_checkpointing_costs_time_and_saves_memory_and_lora_saves_both() -> None:
    n = 1000
    assert [
        e.operations_per_token(n),
        e.operations_per_token(n, checkpointing=True),
        e.operations_per_token(n, lora=True),
    ] == [6000, 8000, 4000]
    shape = e.SHAPES["rugpt3medium_based_on_gpt2"]
    plain = e.memory(shape, batch_size=8, block_size=512)
    kept = e.memory(shape, batch_size=8, block_size=512, checkpointing=True)
    adapters = e.memory(shape, batch_size=8, block_size=512, lora_rank=16)
    assert plain["weights and optimiser"] == 16 * shape.parameters
    assert kept["activations"] < plain["activations"] / 5
    assert adapters["weights and optimiser"] < plain["weights and optimiser"] / 3


def test_adapters_are_counted_as_peft_counts_them() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = e.Shape(layers=2, width=32, vocab=100, positions=64)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=2))
    config = LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    adapted = get_peft_model(model, config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert e.lora_parameters(shape, 4) == trained


def test_what_does_not_fit_is_told() -> None:
    spec = TrainSpec(model="ai-forever/rugpt3large_based_on_gpt2", batch_size=32)
    found = e.estimate_training(spec, tokens=5_000_000, block_size=1024, gpu_name="T4")
    assert found.fits is False
    assert "does NOT fit" in dict(found.rows())["memory"]
    small = TrainSpec(model="ai-forever/rugpt3large_based_on_gpt2", batch_size=1, lora=LoraSettings(r=8))
    assert e.estimate_training(small, tokens=5_000_000, gpu_name="T4").fits is True


def test_the_reference_use() -> None:
    """Some 30,000 posts on ruGPT-3 medium: minutes on a large GPU, and everything assumed is said."""
    found = e.estimate_training(TrainSpec(model=MEDIUM), characters=30_000 * 250, gpu_name="NVIDIA GeForce RTX 4090")
    assert 0.01 < found.hours < 1
    assert found.work.epochs == 5.0
    assert len(found.assumptions) == 2
    assert all("computed" in v or "not measured" in v for k, v in found.rows() if k in ("speed", "time", "memory"))
    assert math.isclose(found.as_json()["memory_bytes"]["total"], found.memory_total, abs_tol=2)


@pytest.mark.parametrize("name", ["a100", "A100", "NVIDIA A100", "nvidia-a100"])
def test_gpu_names_are_forgiving(name: str) -> None:
    assert e.gpu(name).name == "A100"


def test_a_shape_for_a_count_of_parameters() -> None:
    for count in (10_000_000, 125_000_000, 1_300_000_000):
        assert 0.9 * count <= e.shape_of(count).parameters <= 2.2 * count


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: e.gpu("Voodoo 2"), "GPU 'Voodoo 2' is not known; there are T4"),
        (lambda: e.estimate_training(TrainSpec(), gpu_name="T4"), "needs a dataset"),
        (lambda: e.estimate_training(TrainSpec(), tokens=1), "needs a GPU's name or a measured speed"),
        (
            lambda: e.estimate_training(TrainSpec(model="a/b"), tokens=1, gpu_name="T4"),
            "size of model 'a/b' is not known",
        ),
        (
            lambda: e.estimate(e.SHAPES["gpt2"], e.Work(1, 1, 1, 1), measured_tokens_per_second=0),
            "must be greater than 0",
        ),
        (lambda: e.estimate(e.SHAPES["gpt2"], e.Work(1, 1, 1, 1), on=e.gpu("T4"), utilisation=2), "between 0 and 1"),
    ],
)
def test_what_cannot_be_told_is_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        call()  # type: ignore[operator]
    assert sentence in str(caught.value)
