"""Small networks with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def small_gpt2(
    vocabulary: int,
    *,
    width: int = 16,
    layers: int = 2,
    positions: int = 64,
    dropout: float = 0.1,
    attention: str = "sdpa",
) -> Any:
    """A GPT-2 with two attention heads, as it is before its training; the same one each time."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=2,
        bos_token_id=0, eos_token_id=1, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention)
