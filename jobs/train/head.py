"""The loss without the logits: the head and the cross-entropy, some rows at a time; and a faster GELU.

The logits of a batch and their gradient are by far its largest tensors (tokens x vocabulary). Here they exist for
a few rows at a time, small enough for a processor's cache, and the gradient of the hidden states is made in the
same pass, as in Liger's and Apple's fused losses (arXiv 2410.10989, 2411.09009), but in plain torch, so that it
works on any device. On two CPU cores this alone makes ``scratch:small`` some 10 % faster; see benchmarks/train.py.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

from jobs.train.data import IGNORE

log = logging.getLogger(__name__)

CPU_LOGITS = 1 << 21  # logits at a time: 8 MiB of float32, which stay in the cache
GPU_LOGITS = 1 << 26
LEAST_ROWS = 64  # below this, matrix products are slow for other reasons
TOLERANCE = 1e-4


def rows_at_a_time(vocabulary: int, cuda: bool) -> int:
    """Of how many rows the logits are made at once."""
    return max(LEAST_ROWS, (GPU_LOGITS if cuda else CPU_LOGITS) // vocabulary)


def product_type(hidden: torch.Tensor) -> torch.dtype:
    """The type in which the head's products are computed: autocast's where that is on, else the hidden states'."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


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
        loss: torch.Tensor = _ChunkedNats.apply(
            output.reshape(-1, output.shape[-1]), self.layer.weight, labels.reshape(-1), torch.is_grad_enabled()
        )
        return loss

    def release(self) -> None:
        vars(self.layer).pop("forward", None)


class _ChunkedNats(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, train: bool
    ) -> torch.Tensor:
        """Sum of cross-entropies of ``hidden @ weight.T``; gradients for a factor of 1 are made on the way.

        Products are in the type that autocast says, and summed up in float32.
        """
        for_hidden, for_weight = (train and need for need in ctx.needs_input_grad[:2])
        kept = (labels != IGNORE).nonzero()[:, 0]
        dtype = product_type(hidden)
        used = (hidden if len(kept) == len(hidden) else hidden[kept]).to(dtype)
        targets = labels[kept]
        vocabulary = weight.shape[0]
        rows = rows_at_a_time(vocabulary, hidden.is_cuda)
        cast = weight.to(dtype)
        grad_hidden = torch.empty_like(used) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(used), rows):
            part, wanted = used[start : start + rows], targets[start : start + rows, None]
            logits = linear(part, cast).float()
            normal = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += (normal - logits.gather(1, wanted)).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            probabilities = logits.sub_(normal).exp_()
            probabilities.scatter_add_(1, wanted, -torch.ones_like(normal))
            error = probabilities.to(dtype)
            if grad_hidden is not None:
                torch.mm(error, cast, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                if grad_weight.dtype == error.dtype:
                    grad_weight.addmm_(error.T, part)
                else:
                    grad_weight += (error.T @ part).to(grad_weight.dtype)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
            if len(kept) != len(hidden):
                whole = torch.zeros_like(hidden)
                whole[kept] = grad_hidden
                grad_hidden = whole
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * factor.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * factor.to(grad_weight.dtype),
            None,
            None,
        )


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
