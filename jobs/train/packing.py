"""How posts are laid out in a batch, chosen by a test of the model itself.

Packing wastes no computing on padding, but a post must not see the post before it. Models tell posts apart by
position ids that begin again at 0 (transformers makes the block-diagonal causal mask from them). Not every
architecture of the hub does: some ignore position ids, some have no mask. So each model is tried: if posts that
are packed give other logits than the same posts on their own, they are not packed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from jobs.train.data import Block, Rows, Separate

log = logging.getLogger(__name__)

Collate = Callable[[Sequence[Block]], dict[str, torch.Tensor]]
TOLERANCE = 2e-3  # on logits in float32, of some units' size


def choose_layout(model: Any, pad_token_id: int, vocab_size: int) -> tuple[str, Collate]:
    """The layout that this model computes rightly: ``packed``, or ``separate`` when it mixes packed posts up."""
    if packs_rightly(model, pad_token_id, vocab_size):
        return "packed", Rows(pad_token_id)
    log.warning("this model does not keep packed posts apart; each post is padded to a row of its own, which is slower")
    return "separate", Separate(pad_token_id)


def packs_rightly(model: Any, pad_token_id: int, vocab_size: int) -> bool:
    """Whether two packed posts (and padding) get the logits that they get alone."""
    draw = np.random.Generator(np.random.PCG64(0))
    posts = [draw.integers(0, vocab_size, size).astype(np.int32) for size in (7, 12, 5)]
    packed = [
        Block(np.concatenate(posts[:2]), np.array([7, 12])),
        Block(posts[2], np.array([5])),
    ]
    alone = [Block(p, np.array([len(p)])) for p in posts]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            rows = logits_of(model, Rows(pad_token_id)(packed))
            single = [logits_of(model, Separate(pad_token_id)([b]))[0] for b in alone]
    except (TypeError, ValueError, RuntimeError) as error:
        log.info("packing was tried and refused: %s", " ".join(str(error).split())[:200])
        return False
    finally:
        model.train(was_training)
    pairs = [(rows[0, :7], single[0]), (rows[0, 7:19], single[1]), (rows[1, :5], single[2])]
    return all(torch.allclose(a.float(), b.float(), atol=TOLERANCE, rtol=TOLERANCE) for a, b in pairs)


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits for a collated batch, (rows, tokens, vocabulary)."""
    device = next(model.parameters()).device
    inputs = {n: v.to(device) for n, v in batch.items() if n != "labels"}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits
