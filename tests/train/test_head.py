"""The chunked loss is the plain one, and its gradients are, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from jobs.train import nats as module
from jobs.train.data import IGNORE
from jobs.train.head import ChunkedHead, PlainHead, choose_head, use_fused_gelu
from tests.train.networks import small_gpt2

VOCABULARY = 60
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def gpt2() -> Any:
    """A GPT-2 whose head is tied to its embeddings."""
    return small_gpt2(VOCABULARY).eval()


def llama() -> Any:
    """A Llama with a head of its own."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()


def gradients(model: Any, head: PlainHead, ids: torch.Tensor, labels: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """Loss, and the gradient of each parameter."""
    model.zero_grad()
    loss = head.nats(model(input_ids=ids).logits, labels) / 7
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("make", ["gpt2", "llama", "cohere"])
def test_loss_and_gradients_are_equal(make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", 5)  # several chunks, the last one not full
    monkeypatch.setattr(module, "CPU_LOGITS", 1)
    model = globals()[make]()
    ids = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    labels = ids.roll(-1, 1)
    labels[0, 4] = labels[2, -3:] = IGNORE
    expected = gradients(model, PlainHead(), ids, labels)
    chunked = choose_head(model, VOCABULARY)
    assert isinstance(chunked, ChunkedHead)
    found = gradients(model, chunked, ids, labels)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(expected[1], found[1], strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert float(chunked.nats(model(input_ids=ids).logits, labels)) / 7 == pytest.approx(expected[0], rel=1e-5)
    chunked.release()
    assert model(input_ids=ids).logits.shape[-1] == VOCABULARY


def test_bf16_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.roll(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(model, PlainHead(), ids, labels)
        found = gradients(model, choose_head(model, VOCABULARY), ids, labels)
    assert found[0] == pytest.approx(expected[0], rel=1e-2)
    for a, b in zip(expected[1], found[1], strict=True):
        assert float((a - b).norm()) <= 0.03 * float(a.norm()) + 1e-3


def test_products_follow_autocast_and_gradients_do_not() -> None:
    weight = torch.randn(VOCABULARY, 8, requires_grad=True)
    hidden = torch.randn(5, 8, requires_grad=True)
    labels = torch.tensor([1, -100, 3, 4, 5])

    def nats() -> torch.Tensor:
        layer = torch.nn.Linear(8, VOCABULARY, bias=False)
        layer.weight = torch.nn.Parameter(weight.detach().clone())
        found = ChunkedHead(layer).nats(hidden, labels)
        found.backward()
        assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
        assert hidden.grad is not None and hidden.grad.dtype == torch.float32
        assert torch.equal(hidden.grad[1], torch.zeros(8)), "what does not count has no gradient"
        hidden.grad = None
        return found.detach()

    whole = nats()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = nats()
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, whole) and float(rounded) == pytest.approx(float(whole), rel=1e-2)


def cohere() -> Any:
    """A model that scales its logits."""
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)).eval()


def test_a_model_that_caps_its_logits_keeps_its_own_head() -> None:
    gemma = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=30.0))
    assert type(choose_head(gemma, VOCABULARY)) is PlainHead
    gemma.config.final_logit_softcapping = None
    gemma.lm_head.register_forward_hook(lambda module, given, made: made + 1.0)  # nothing that a name gives away
    assert type(choose_head(gemma, VOCABULARY)) is PlainHead
    assert gemma(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 2, VOCABULARY)


def test_the_fused_gelu_is_the_same_function() -> None:
    model = gpt2()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert use_fused_gelu(model) == 2
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-5, rtol=1e-5)
    assert model.config.activation_function == "gelu_new"
