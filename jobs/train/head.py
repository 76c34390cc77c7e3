"""A model's head: what the loss is taken of, its logits or its hidden states; and a faster GELU."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from jobs.train.data import IGNORE
from jobs.train.nats import hard, nats

log = logging.getLogger(__name__)

TOLERANCE = 1e-4


def counted(output: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of ``output`` (…, width) whose label counts, and their numbers; ``labels``: one after the other."""
    kept = (labels != IGNORE).nonzero()[:, 0]
    rows = output.reshape(-1, output.shape[-1])
    return (rows if len(kept) == len(rows) else rows.index_select(0, kept)), kept


class PlainHead:
    """The model makes its logits itself; the loss is taken of them."""

    name = "plain"

    def nats(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over all labels that count; ``output`` is what the model gives as logits."""
        return cross_entropy(
            output.reshape(-1, output.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORE, reduction="sum"
        )

    def release(self) -> None:
        """Leave the model as it was."""


class ChunkedHead(PlainHead):
    """The model's output layer passes hidden states through; the loss multiplies them with its weights.

    That layer keeps its place and its weights, so that saving, tying and distributed training know of no
    difference. ``release`` makes it a head again.
    """

    name = "chunked"

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        layer.forward = lambda hidden: hidden

    def nats(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = labels.reshape(-1)
        hidden, kept = counted(output, labels)
        return nats(hidden, self.layer.weight, hard(labels[kept]))

    def release(self) -> None:
        vars(self.layer).pop("forward", None)


def choose_head(model: Any, vocab_size: int) -> PlainHead:
    """A chunked head where the model's logits are nothing but its hidden states times a matrix; else a plain one.

    It is tried: models that cap or shift their logits give others than the product, and keep their own head. (A
    factor does no harm: it is applied to what passes through.)
    """
    layer = model.get_output_embeddings()
    capped = getattr(model.config, "final_logit_softcapping", None)  # too little to be seen while weights are small
    if not isinstance(layer, torch.nn.Linear) or layer.bias is not None or capped:
        return PlainHead()
    ids = torch.arange(8, device=layer.weight.device)[None] % vocab_size
    was_training = model.training
    model.eval()
    head = None
    try:
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits
            head = ChunkedHead(layer)
            hidden = model(input_ids=ids, use_cache=False).logits
            found = hidden @ layer.weight.T if hidden.shape[-1] == layer.weight.shape[1] else None
    finally:
        model.train(was_training)
    if found is not None and torch.allclose(found.float(), expected.float(), atol=TOLERANCE, rtol=TOLERANCE):
        return head
    head.release()
    log.info("this model's logits are more than a product; the loss is taken of them whole")
    return PlainHead()


def use_fused_gelu(model: Any) -> int:
    """Replace transformers' ``gelu_new``, some ten operations on large tensors, by torch's kernel of the same function.

    Returns how many were replaced. The configuration keeps its word for it.
    """
    from transformers.activations import NewGELUActivation

    count = 0
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
                count += 1
    return count
