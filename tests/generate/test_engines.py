"""Conversion and engines, against transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jobs.artifacts import ArtifactStore
from jobs.generate.convert import convert
from jobs.generate.engines import Draw, Engine, Setting, open_engine
from jobs.generate.language import TEXT_FILES, read_language
from jobs.specs import ConfigError, DataError, GenerateSpec, SpecError
from tests.conftest import ROOT
from tests.generate.models import BEGIN, END, MadeModel

REF = "model/" + "0" * 20


def logits_of_ours(folder: Path, ids: Sequence[int], target: Path) -> Any:
    language = read_language(folder, REF)
    convert(folder, target, language, "float32", REF)
    generator = ctranslate2.Generator(str(target), device="cpu", compute_type="float32")
    tokens = language.tokens()
    return np.array(generator.forward_batch([[tokens[i] for i in ids]]))[0]


def logits_of_transformers(folder: Path, ids: Sequence[int]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def make_variant(folder: Path, source: Path, *, dtype: str = "float32", shards: bool = False, **config: Any) -> Path:
    """A GPT-2 of another configuration, saved by transformers, with the source's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    base = json.loads((source / "config.json").read_text("utf-8"))
    torch.manual_seed(3)
    settings = GPT2Config(
        vocab_size=base["vocab_size"], n_positions=64, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=BEGIN, eos_token_id=END, **config,
    )  # fmt: skip
    model = GPT2LMHeadModel(settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms, too, so that a mixed-up one shows
    model.to(getattr(torch, dtype)).save_pretrained(folder, **({"max_shard_size": "30KB"} if shards else {}))
    shutil.copy(source / "tokenizer.json", folder)
    return folder


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"tie_word_embeddings": False},
        {"activation_function": "relu", "n_inner": 48},
        {"activation_function": "gelu"},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"shards": True},
    ],
    ids=str,
)
def test_converted_logits_are_those_of_transformers(
    untrained: MadeModel, tmp_path: Path, variant: dict[str, Any]
) -> None:
    folder = make_variant(tmp_path / "m", untrained.folder, **variant)
    assert (len(list(folder.glob("*.safetensors"))) > 1) is bool(variant.get("shards"))
    ids = [BEGIN, 100, 200, 300, 50, 60, 400]
    theirs = logits_of_transformers(folder, ids)
    ours = logits_of_ours(folder, ids, tmp_path / "converted")
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=1e-3)


def test_names_without_the_leading_transformer(untrained: MadeModel, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_variant(tmp_path / "m", untrained.folder)
    weights = load_file(folder / "model.safetensors")
    assert any(k.startswith("transformer.") for k in weights)
    ids = [BEGIN, 5, 6, 7]
    before = logits_of_ours(folder, ids, tmp_path / "a")
    save_file({k.removeprefix("transformer."): v for k, v in weights.items()}, folder / "model.safetensors")
    np.testing.assert_array_equal(before, logits_of_ours(folder, ids, tmp_path / "b"))


def test_models_that_cannot_be_converted(untrained: MadeModel, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    odd = make_variant(tmp_path / "odd", untrained.folder, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ConfigError, match="scale_attn_by_inverse_layer_idx; use engine=transformers"):
        convert(odd, tmp_path / "x1", read_language(odd, REF), "int8", REF)
    holed = make_variant(tmp_path / "holed", untrained.folder)
    weights = load_file(holed / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "h.1.ln_2.weight" not in k}, holed / "model.safetensors")
    with pytest.raises(DataError, match=r"no weight h\.1\.ln_2\.weight"):
        convert(holed, tmp_path / "x2", read_language(holed, REF), "int8", REF)
    torn = make_variant(tmp_path / "torn", untrained.folder)
    data = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="is damaged"):
        convert(torn, tmp_path / "x3", read_language(torn, REF), "int8", REF)
    (torn / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no safetensors file"):
        convert(torn, tmp_path / "x4", read_language(torn, REF), "int8", REF)


def test_another_architecture_goes_through_ctranslate2s_own_converter(untrained: MadeModel, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "llama"
    size = json.loads((untrained.folder / "config.json").read_text("utf-8"))["vocab_size"]
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=BEGIN, eos_token_id=END,
        )
    ).save_pretrained(folder)  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(untrained.folder / name, folder)
    ids = [BEGIN, 100, 200, 300]
    ours = logits_of_ours(folder, ids, tmp_path / "converted")
    np.testing.assert_allclose(ours, logits_of_transformers(folder, ids), atol=2e-3, rtol=1e-3)


def test_conversion_and_drawing_need_no_torch(untrained: MadeModel, tmp_path: Path) -> None:
    script = f"""
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from pathlib import Path
import ctranslate2
from jobs.generate.language import read_language
from jobs.generate.convert import convert
folder, target = Path({str(untrained.folder)!r}), Path({str(tmp_path / "c")!r})
language = read_language(folder, "model/x")
convert(folder, target, language, "int8", "model/x")
from jobs.generate.engines import ct2
found = ct2.open_generator(target, "cpu", "int8", 1).generate_batch([[language.tokens()[2]]], max_length=3)
print(len(found[0].sequences_ids[0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


# -- sessions


def engine_of(store: ArtifactStore, model: str, folder: Path, **fields: Any) -> Engine:
    given: dict[str, Any] = {
        "model": model,
        "compute_type": "float32",
        "max_new_tokens": 40,
        "top_k": 0,
        "device": "cpu",
    }
    spec = GenerateSpec(**{**given, **fields})
    manifest = store.manifest(model)
    folder.mkdir(parents=True, exist_ok=True)
    store.download(model, folder, *TEXT_FILES, manifest=manifest)
    return open_engine(
        Setting(
            spec=spec,
            store=store,
            manifest=manifest,
            language=read_language(folder, model),
            folder=folder,
            workers=2,
            waiting=lambda _: None,
        )
    )


def draws_of(engine: Engine, seed: int, prompts: Sequence[Sequence[int]]) -> list[list[Draw]]:
    session = engine.session(seed)
    return [session.draw(prompts), session.draw(prompts[:3])]


@pytest.mark.parametrize("name", ["ctranslate2", "transformers"])
def test_a_session_is_a_function_of_its_seed(
    store: ArtifactStore, writer: MadeModel, tmp_path: Path, name: str
) -> None:
    engine = engine_of(store, writer.put(store), tmp_path / "m", engine=name)
    prompts = [[BEGIN]] * 5 + [[BEGIN, 100, 101]] * 3
    first = {seed: draws_of(engine, seed, prompts) for seed in (1, 2, 3)}
    assert first[1] != first[2] != first[3]
    for seed in (3, 1, 2):
        assert draws_of(engine, seed, prompts) == first[seed]
    if engine.sessions > 1:
        with ThreadPoolExecutor(engine.sessions) as pool:
            for _ in range(3):
                found = list(pool.map(lambda s: draws_of(engine, s, prompts), (1, 2, 3)))
                assert found == [first[1], first[2], first[3]]


def test_int8_too(store: ArtifactStore, writer: MadeModel, tmp_path: Path) -> None:
    engine = engine_of(store, writer.put(store), tmp_path / "m", compute_type="int8")
    prompts = [[BEGIN]] * 9
    first = draws_of(engine, 7, prompts)
    draws_of(engine, 8, prompts)
    assert draws_of(engine, 7, prompts) == first
    assert sum(d.ended for d in first[0]) >= 7


def test_the_most_probable_post_is_the_same_by_both_engines(
    store: ArtifactStore, writer: MadeModel, tmp_path: Path
) -> None:
    """Greedy choice (top_k=1) has no chance in it, so that tokens, ends and scores must agree."""
    model = writer.put(store)
    language = read_language(writer.folder, model)
    prompts = [
        language.frame(t) for t in ("", "КОТ", "БАТЯ ЧИНИТ", "ДЕД МОЕТ ЛЫЖИ\n@\n", "ТЁЩА КРАСИТ САМОВАР\n@\nКОТ")
    ]
    assert len({len(p) for p in prompts}) >= 3
    found = {
        name: engine_of(store, model, tmp_path / name, engine=name, top_k=1).session(0).draw(prompts)
        for name in ("ctranslate2", "transformers")
    }
    for ours, theirs in zip(found["ctranslate2"], found["transformers"], strict=True):
        assert ours.ended
        assert ours.tokens == theirs.tokens
        assert ours.ended == theirs.ended
        assert ours.score == pytest.approx(theirs.score, abs=2e-3)


def test_scores_are_the_models_own_whatever_the_sampling(
    store: ArtifactStore, writer: MadeModel, tmp_path: Path
) -> None:
    """Temperature and truncation change what is drawn, and not how probable the model finds it."""
    import torch
    from transformers import AutoModelForCausalLM

    engine = engine_of(store, writer.put(store), tmp_path / "m", temperature=0.6, top_k=20, top_p=0.9)
    prompts = [[BEGIN], [BEGIN, 120, 90], [BEGIN, 200]]
    model = AutoModelForCausalLM.from_pretrained(writer.folder)
    for prompt, draw in zip(prompts, engine.session(4).draw(prompts), strict=True):
        drawn = [*draw.tokens, *([END] if draw.ended else [])]
        with torch.inference_mode():
            logs = torch.log_softmax(model(torch.tensor([[*prompt, *drawn]])).logits[0], -1)
        expected = sum(float(logs[len(prompt) - 1 + n, token]) for n, token in enumerate(drawn))
        assert draw.score == pytest.approx(expected, abs=2e-3)


def tokens_of(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [d.tokens for d in engine.session(5).draw(prompts)]


@pytest.mark.parametrize("name", ["ctranslate2", "transformers"])
def test_the_settings_of_sampling_do_what_they_say(
    store: ArtifactStore, writer: MadeModel, untrained: MadeModel, tmp_path: Path, name: str
) -> None:
    model, prompts = writer.put(store), [[BEGIN], [BEGIN, 120], [BEGIN, 200, 90]]

    def drawn(of: str, **fields: Any) -> list[list[int]]:
        return tokens_of(
            engine_of(store, of, tmp_path / str(len(list(tmp_path.iterdir()))), engine=name, **fields), prompts
        )

    greedy = drawn(model, top_k=1)
    assert drawn(model) != greedy
    # Each of these leaves the most probable token alone in its way.
    assert drawn(model, top_p=1e-6) == greedy
    assert drawn(model, temperature=1e-4) == greedy
    if name == "transformers":
        assert drawn(model, min_p=0.999) == greedy

    def repeats(found: list[list[int]], size: int) -> int:
        grams = [[tuple(row[at : at + size]) for at in range(len(row) - size + 1)] for row in found]
        return sum(len(row) - len(set(row)) for row in grams)

    random = untrained.put(store)  # says what it likes, again and again, and never ends
    assert repeats(drawn(random, top_k=3), 2) > 0
    assert repeats(drawn(random, top_k=3, no_repeat_ngram_size=2), 2) == 0
    assert repeats(drawn(random, top_k=3, repetition_penalty=10.0), 1) < repeats(drawn(random, top_k=3), 1)


@pytest.mark.parametrize("name", ["ctranslate2", "transformers"])
def test_no_more_tokens_than_asked_for(store: ArtifactStore, untrained: MadeModel, tmp_path: Path, name: str) -> None:
    engine = engine_of(store, untrained.put(store), tmp_path / "m", engine=name, max_new_tokens=9)
    draws = engine.session(1).draw([[BEGIN], [BEGIN, 100, 101, 102, 103], [BEGIN, 100]])
    assert [len(d.tokens) for d in draws] == [9, 9, 9]
    assert not any(d.ended for d in draws)


@pytest.mark.parametrize("name", ["ctranslate2", "transformers"])
def test_the_context_is_never_exceeded(store: ArtifactStore, untrained: MadeModel, tmp_path: Path, name: str) -> None:
    engine = engine_of(store, untrained.put(store), tmp_path / "m", engine=name, max_new_tokens=500)
    draws = engine.session(1).draw([[BEGIN], [BEGIN] * 120])
    assert all(len(d.tokens) <= 127 for d in draws)
    assert len(draws[1].tokens) == 8


def test_settings_that_an_engine_does_not_have(store: ArtifactStore, untrained: MadeModel, tmp_path: Path) -> None:
    model = untrained.put(store)
    with pytest.raises(SpecError, match="min_p: CTranslate2 has no min-p"):
        engine_of(store, model, tmp_path / "a", min_p=0.1)
    with pytest.raises(ConfigError, match="compute_type=int8"):
        engine_of(store, model, tmp_path / "b", engine="transformers", compute_type="int8")
    if not ctranslate2.get_cuda_device_count():
        with pytest.raises(ConfigError, match="sees no GPU"):
            engine_of(store, model, tmp_path / "c", device="cuda")
    with pytest.raises(ConfigError, match="engine vllm needs the package vllm"):
        engine_of(store, model, tmp_path / "d", engine="vllm")


def test_the_converted_model_is_cached_and_mended(store: ArtifactStore, untrained: MadeModel, tmp_path: Path) -> None:
    model = untrained.put(store)
    cache = f"cache/ctranslate2/{model.partition('/')[2]}/int8"
    first = draws_of(engine_of(store, model, tmp_path / "a", compute_type="int8"), 1, [[BEGIN]])
    assert store.find(cache) is not None
    assert (tmp_path / "a" / "model.safetensors").exists()
    assert draws_of(engine_of(store, model, tmp_path / "b", compute_type="int8"), 1, [[BEGIN]]) == first
    assert not (tmp_path / "b" / "model.safetensors").exists()  # nothing was converted again
    store.bucket.put_bytes(f"{cache}/model.bin", b"rotten")
    assert draws_of(engine_of(store, model, tmp_path / "c", compute_type="int8"), 1, [[BEGIN]]) == first
    assert store.read(cache, store.manifest(cache).file("config.json"))
    assert store.bucket.head(f"{cache}/model.bin").size > 1000  # type: ignore[union-attr]


def test_a_model_trained_again_under_its_id_is_converted_again(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path
) -> None:
    """``--force`` gives a model other weights and the same id: the cache must not hide them."""
    ref = untrained.put(store)
    old = store.manifest(ref)
    cache = f"cache/ctranslate2/{old.id}/int8"
    engine_of(store, ref, tmp_path / "a", compute_type="int8")
    before = store.manifest(cache).file("model.bin").sha256
    store.download(ref, tmp_path / "changed")
    weights = load_file(tmp_path / "changed" / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"] * 0.5
    save_file(weights, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    store.remove(ref)
    writer = store.writer(ref)
    writer.put_folder(tmp_path / "changed")
    writer.commit(stage=old.stage, spec=old.spec, inputs=old.inputs, info=old.info)
    engine_of(store, ref, tmp_path / "b", compute_type="int8")
    assert store.manifest(cache).file("model.bin").sha256 != before
