"""Cross-entropy with distributions over all tokens as the targets, without their ever being written out.

A target is a few tokens with a value each, and for the rest one distribution that is the same for all rows, up to a
factor: what smoothed counts are. The logits exist for some rows at a time, as in ``head``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jobs.train.head import product_type, rows_at_a_time

Pairs = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Targets:
    """Of row i, ``shares[i]`` in all: ``rest[i] * common``, and what ``pairs(start, stop)`` gives for some rows.

    That is any number of (row, token, value); rows are counted from ``start``.
    """

    shares: torch.Tensor
    rest: torch.Tensor
    common: torch.Tensor
    pairs: Callable[[int, int], Pairs]


def soft_nats(hidden: torch.Tensor, weight: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Cross-entropies between ``targets`` and the softmax of ``hidden @ weight.T``, summed.

    ``hidden`` (rows, width), ``weight`` (vocabulary, width).
    """
    loss: torch.Tensor = _SoftNats.apply(hidden, weight, targets)
    return loss


class _SoftNats(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: Targets) -> torch.Tensor:
        dtype = product_type(hidden)
        vocabulary = weight.shape[0]
        rows = rows_at_a_time(vocabulary, hidden.is_cuda)
        used, cast = hidden.to(dtype), weight.detach().to(dtype)
        grad_hidden = torch.empty_like(used)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # not of an adapter's model
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(used), rows):
            part, share = used[start : start + rows], targets.shares[start : start + rows, None]
            logits = (part @ cast.T).float()
            normal = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += (normal * share).sum()
            pairs = targets.pairs(start, start + len(part))
            for row, column, value in pairs:
                loss -= (logits[row, column] * value).sum()
            error = logits.sub_(normal - share.log()).exp_()
            for row, column, value in pairs:
                error.view(-1).index_add_(0, row * vocabulary + column, -value)
            small = error.to(dtype)
            torch.mm(small, cast, out=grad_hidden[start : start + rows])
            if grad_weight is None:
                continue
            if dtype == weight.dtype:
                grad_weight.addmm_(small.T, part)
            else:
                grad_weight += small.T @ part
        # Sums over all rows, which are too large for float16 and too fine for bfloat16.
        with torch.autocast(hidden.device.type, enabled=False):
            mean = targets.common @ weight.detach().float()
            summed = targets.rest @ hidden.detach().float()
            loss -= mean @ summed
        if grad_weight is not None:
            grad_weight.addr_(targets.common, summed, alpha=-1)
        ctx.save_for_backward(grad_hidden.float().addr_(targets.rest, mean, alpha=-1).to(hidden.dtype), grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * factor.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * factor.to(grad_weight.dtype),
            None,
        )
