"""The vLLM engine against a stand-in with vLLM's interface, for it runs on GPUs only.

What is tested is what we ask for and what we make of the answers; that vLLM itself does as asked is not.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.generate.language import read_language
from jobs.specs import ConfigError, DataError
from tests.generate.models import BEGIN, END, MadeModel
from tests.generate.test_engines import engine_of


@dataclass
class SamplingParams:
    """The fields of ``vllm.SamplingParams`` that exist; another one is a TypeError, as there."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] = field(default_factory=list)
    logprobs: int | None = None
    detokenize: bool = True


class LLM:
    """Draws numbers by each request's seed; ends a text at a stop token, which is part of the answer."""

    made: list[dict[str, Any]] = []  # noqa: RUF012  # what all of them were made with
    asked: list[tuple[list[int], SamplingParams]] = []  # noqa: RUF012

    def __init__(
        self, model: str, *, skip_tokenizer_init: bool, dtype: str, seed: int, enable_prefix_caching: bool,
        trust_remote_code: bool,
    ) -> None:  # fmt: skip
        assert (Path(model) / "model.safetensors").is_file()
        self.made.append({"dtype": dtype, "trust_remote_code": trust_remote_code})

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        answers = []
        for prompt, wanted in zip(prompts, params, strict=True):
            self.asked.append((prompt["prompt_token_ids"], wanted))
            draw = random.Random(wanted.seed)
            ids: list[int] = []
            while len(ids) < (wanted.max_tokens or 0) and not (ids and ids[-1] in wanted.stop_token_ids):
                ids.append(draw.choice([*range(100, 130), END]))
            logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs)]))
        return answers


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    from importlib.machinery import ModuleSpec

    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.__version__ = "0.12"  # type: ignore[attr-defined]
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made.clear()
    LLM.asked.clear()
    return LLM


def test_draws_are_asked_for_and_read_rightly(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, vllm: type[LLM]
) -> None:
    fields: dict[str, Any] = {"temperature": 0.9, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2}
    engine = engine_of(
        store, untrained.put(store), tmp_path / "m", engine="vllm", device="cuda", compute_type="auto", **fields
    )
    prompts = [[BEGIN], [BEGIN, 100, 101], [BEGIN] * 120]
    draws = engine.session(3).draw(prompts)
    assert vllm.made == [{"dtype": "auto", "trust_remote_code": False}]
    assert [ids for ids, _ in vllm.asked] == prompts
    for (_, wanted), draw in zip(vllm.asked, draws, strict=True):
        assert {name: getattr(wanted, name) for name in fields} == fields
        assert wanted.max_tokens == 8  # what the context leaves behind the longest prompt
        assert wanted.stop_token_ids == list(read_language(untrained.folder, "model/x").ends)
        assert END not in draw.tokens
        assert draw.ended or len(draw.tokens) == 8
        assert draw.score == pytest.approx(-0.5 * (len(draw.tokens) + draw.ended))
    assert len({wanted.seed for _, wanted in vllm.asked}) == 3


def test_a_stream_is_a_function_of_its_seed(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, vllm: type[LLM]
) -> None:
    engine = engine_of(store, untrained.put(store), tmp_path / "m", engine="vllm", device="auto", compute_type="auto")

    def drawn(seed: int) -> list[Any]:
        session = engine.session(seed)
        return [*session.draw([[BEGIN]] * 4), *session.draw([[BEGIN]] * 2)]

    first = drawn(1)
    assert len({tuple(d.tokens) for d in first}) > 1
    assert drawn(2) != first
    assert drawn(1) == first


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"no_repeat_ngram_size": 2}, "vLLM does not have it"),
        ({"device": "cpu"}, "is for GPUs"),
        ({"compute_type": "int8"}, "float32, float16 and bfloat16"),
    ],
)
def test_what_it_does_not_have(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, vllm: type[LLM], fields: dict[str, Any], said: str
) -> None:
    given = {"engine": "vllm", "device": "cuda", "compute_type": "auto", **fields}
    with pytest.raises(ConfigError, match=said):
        engine_of(store, untrained.put(store), tmp_path / "m", **given)
    assert not vllm.made


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            RuntimeError("Engine core initialization failed. See root cause above."),
            ConfigError,
            r"vLLM 0\.12 does not start here \(Engine core initialization failed.*\): see what it logged before this",
        ),
        (ValueError("no such architecture"), DataError, "vLLM cannot load model/.*: no such architecture"),
    ],
    ids=["starts not", "loads not"],
)
def test_a_vllm_that_does_not_start(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, vllm: type[LLM], monkeypatch: pytest.MonkeyPatch,
    error: Exception, kind: type[Exception], said: str,
) -> None:  # fmt: skip
    def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(vllm, "__init__", fails)
    with pytest.raises(kind, match=said):
        engine_of(store, untrained.put(store), tmp_path / "m", engine="vllm", device="cuda", compute_type="auto")


@pytest.mark.parametrize("given", [None, "1"])
def test_batch_invariance_is_the_users_to_choose(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, vllm: type[LLM], monkeypatch: pytest.MonkeyPatch,
    given: str | None,
) -> None:  # fmt: skip
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    if given is not None:
        monkeypatch.setenv("VLLM_BATCH_INVARIANT", given)
    engine_of(store, untrained.put(store), tmp_path / "m", engine="vllm", device="cuda", compute_type="auto")
    assert os.environ.get("VLLM_BATCH_INVARIANT") == given
