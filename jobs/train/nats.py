"""Cross-entropies without the logits: products of hidden states with a matrix, and their loss, some rows at a time.

The logits of a batch and their gradient are by far its largest tensors (tokens x vocabulary). Here they exist for
a few rows at a time, small enough for a processor's cache, and the gradient of the hidden states is made in the
same pass, as in Liger's and Apple's fused losses (arXiv 2410.10989, 2411.09009), but in plain torch, so that it
works on any device. On two CPU cores this alone makes ``scratch:small`` some 10 % faster; see benchmarks/train.py.

Targets may be distributions over all tokens, which are never written out either: a few tokens with a value each, and
for the rest one distribution that is the same for all rows, up to a factor. That is what smoothed counts are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CPU_LOGITS = 1 << 21  # logits at a time: 8 MiB of float32, which stay in the cache
GPU_LOGITS = 1 << 26
LEAST_ROWS = 64  # below this, matrix products are slow for other reasons

Pairs = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Rest:
    """What rows have in common: row i has ``factors[i] * common``, where ``common`` is (vocabulary,)."""

    factors: torch.Tensor
    common: torch.Tensor


@dataclass(frozen=True)
class Targets:
    """Of row i, ``shares[i]`` in all: what ``pairs(start, stop)`` gives for some rows, and its part of ``rest``.

    Pairs are any number of (row, token, value); rows are counted from ``start``. Shares of None are 1.
    """

    pairs: Callable[[int, int], Pairs]
    rest: Rest | None = None
    shares: torch.Tensor | None = None


def hard(labels: torch.Tensor) -> Targets:
    """One token a row, and nothing else."""

    def pairs(start: int, stop: int) -> Pairs:
        part = labels[start:stop]
        return [(torch.arange(len(part), device=labels.device), part, torch.ones(len(part), device=labels.device))]

    return Targets(pairs)


def nats(hidden: torch.Tensor, weight: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Cross-entropies between ``targets`` and the softmax of ``hidden @ weight.T``, summed.

    ``hidden`` (rows, width), ``weight`` (vocabulary, width). Products are in the type that autocast says, and summed up
    in float32.
    """
    loss: torch.Tensor = _Nats.apply(hidden, weight, targets, torch.is_grad_enabled())
    return loss


def rows_at_a_time(vocabulary: int, cuda: bool) -> int:
    """Of how many rows the logits are made at once."""
    return max(LEAST_ROWS, (GPU_LOGITS if cuda else CPU_LOGITS) // vocabulary)


def _product_type(hidden: torch.Tensor) -> torch.dtype:
    """The type in which products are computed: autocast's where that is on, else the hidden states'."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _Nats(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: Targets, train: bool) -> torch.Tensor:
        """Gradients for a factor of 1 are made on the way."""
        for_hidden, for_weight = (train and need for need in ctx.needs_input_grad[:2])
        dtype = _product_type(hidden)
        vocabulary = weight.shape[0]
        rows = rows_at_a_time(vocabulary, hidden.is_cuda)
        used, cast = hidden.to(dtype), weight.detach().to(dtype)
        grad_hidden = torch.empty_like(used) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(used), rows):
            part = used[start : start + rows]
            logits = (part @ cast.T).float()
            normal = torch.logsumexp(logits, dim=1, keepdim=True)
            pairs = targets.pairs(start, start + len(part))
            if targets.shares is None:
                loss += normal.sum()
            else:
                share = targets.shares[start : start + rows, None]
                loss += (normal * share).sum()
                normal -= share.log()
            for row, column, value in pairs:
                loss -= (logits[row, column] * value).sum()
            if not for_hidden and not for_weight:
                continue
            error = logits.sub_(normal).exp_()
            for row, column, value in pairs:
                error.view(-1).index_add_(0, row * vocabulary + column, -value)
            small = error.to(dtype)
            if grad_hidden is not None:
                torch.mm(small, cast, out=grad_hidden[start : start + rows])
            if grad_weight is None:
                continue
            if grad_weight.dtype == dtype:
                grad_weight.addmm_(small.T, part)
            else:
                grad_weight += (small.T @ part).to(grad_weight.dtype)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.float()
        if targets.rest is not None:
            _take_rest(targets.rest, hidden, weight, loss, grad_hidden, grad_weight)
        ctx.save_for_backward(None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = (None if g is None else g * factor.to(g.dtype) for g in ctx.saved_tensors)
        return hidden, weight, None, None


def _take_rest(
    rest: Rest,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    loss: torch.Tensor,
    grad_hidden: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
) -> None:
    """Subtract what the common part of all targets gives, without a look at any logit."""
    # Sums over all rows, which are too large for float16 and too fine for bfloat16.
    with torch.autocast(hidden.device.type, enabled=False):
        mean = rest.common @ weight.detach().float()
        summed = rest.factors @ hidden.detach().float()
        loss -= mean @ summed
    if grad_hidden is not None:
        grad_hidden.addr_(rest.factors, mean, alpha=-1)
    if grad_weight is not None:
        grad_weight.addr_(rest.common, summed, alpha=-1)
