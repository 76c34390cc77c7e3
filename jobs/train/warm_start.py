"""A model from nothing begins as a bigram model: what may follow each token is counted, and fitted, before it trains.

In its first minute a network sees a part of its posts once and learns little more from it than which token follows
which. Counting tells the same, better, of all posts at once, in a tenth of a second. So the token pairs of the
training posts are counted and smoothed (modified Kneser-Ney; Chen and Goodman 1999), and the network *without its
attention* is fitted to them: embedding, the blocks' MLPs, last normalisation, tied head. One context of a batch stands
for all of its occurrences, with its whole distribution as the target, so that a batch tells what thousands of tokens
would. Attention's outputs then begin at zero: training goes on exactly from the bigram model.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.specs import Interrupted
from jobs.train.data import Blocks
from jobs.train.head import product_type, rows_at_a_time
from jobs.train.plan import ENDLESS, Plan

log = logging.getLogger(__name__)

CONTEXTS = (32, 128)  # of a batch, on average: at least and at most; a small vocabulary needs as many steps
RATE = 2e-3
WARM_UP = 0.05  # of the steps
SHARE = 0.25  # of the tokens, or the time, of the whole training, at most
REPORTS = 50  # steps between them


@dataclass(frozen=True)
class Bigrams:
    """Smoothed p(next | token): ``seen[i]`` for the pair (``contexts[i]``, ``following[i]``), and besides, for any
    next token, ``rest[token] * unigram[next]``.

    Pairs are sorted; those of token t are ``starts[t]:starts[t + 1]``. ``counts``: how often a token has a next one.
    """

    starts: torch.Tensor
    following: torch.Tensor
    seen: torch.Tensor
    rest: torch.Tensor
    unigram: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, blocks: Blocks, vocabulary: int) -> Bigrams:
        """Count and smooth the pairs within posts."""
        first, second = blocks.pairs()
        pairs, times = np.unique(first * vocabulary + second, return_counts=True)
        context, following = np.divmod(pairs, vocabulary)
        total = np.bincount(context, weights=times, minlength=vocabulary)
        taken = discounts(times)[np.minimum(times, 3)]
        rest = np.bincount(context, weights=taken, minlength=vocabulary) / np.maximum(total, 1)
        # A next token counts as often as it has different tokens before it; one that has none gets its share as well.
        kinds = np.bincount(following, minlength=vocabulary).astype(np.float64)
        unigram = (kinds + 0.5) / (kinds + 0.5).sum()
        return cls(
            torch.from_numpy(np.searchsorted(context, np.arange(vocabulary + 1))),
            torch.from_numpy(following),
            torch.from_numpy((times - taken) / total[context]).float(),
            torch.from_numpy(rest).float(),
            torch.from_numpy(unigram).float(),
            torch.from_numpy(total).float(),
        )

    def to(self, device: torch.device) -> Bigrams:
        """The same on another device."""
        return Bigrams(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def discounts(times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What is taken from pairs that occur 0, 1, 2, 3 and more times; 0.75 of each where there is too little to tell."""
    n1, n2, n3, n4 = (int((times == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    found = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(min(max(d, 0.1), k - 0.1) for k, d in enumerate(found) if k)])


def without_attention(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The last hidden states of a GPT-2 for single tokens, (tokens, width), as if attention gave nothing."""
    body = model.transformer
    hidden = body.wte(tokens)
    for block in body.h:
        hidden = hidden + block.mlp(block.ln_2(hidden))
    last: torch.Tensor = body.ln_f(hidden)
    return last


class _SoftNats(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, shares: torch.Tensor, of: Bigrams
    ) -> torch.Tensor:
        """Cross-entropies between ``of``'s distributions after ``tokens`` and the model's, summed with ``shares``."""
        dtype = product_type(hidden)
        vocabulary = weight.shape[0]
        rows = rows_at_a_time(vocabulary, hidden.is_cuda)
        used, cast = hidden.to(dtype), weight.detach().to(dtype)
        grad_hidden = torch.empty_like(used)
        grad_weight = torch.zeros_like(weight)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        begin, end = of.starts[tokens], of.starts[tokens + 1]
        for start in range(0, len(used), rows):
            part, share = used[start : start + rows], shares[start : start + rows, None]
            low, size = begin[start : start + rows], (end - begin)[start : start + rows]
            row = torch.repeat_interleave(torch.arange(len(part), device=part.device), size)
            pair = torch.arange(len(row), device=part.device) + (low - size.cumsum(0) + size)[row]
            column, seen = of.following[pair], of.seen[pair] * share[row, 0]
            logits = (part @ cast.T).float()
            normal = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += (normal * share).sum() - (logits[row, column] * seen).sum()
            error = logits.sub_(normal - share.log()).exp_()
            error.view(-1).index_add_(0, row * vocabulary + column, -seen)
            small = error.to(dtype)
            torch.mm(small, cast, out=grad_hidden[start : start + rows])
            if dtype == weight.dtype:
                grad_weight.addmm_(small.T, part)
            else:
                grad_weight += small.T @ part
        # The part of the distributions that is the same for all contexts, up to a factor.
        left = of.rest[tokens] * shares
        mean = of.unigram @ weight.detach()
        summed = left @ hidden.detach().float()
        loss -= mean @ summed
        grad_weight.addr_(of.unigram, summed, alpha=-1)
        ctx.save_for_backward(grad_hidden.float().addr_(left, mean, alpha=-1), grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * factor, grad_weight * factor, None, None, None


def drawn(counts: torch.Tensor, size: int) -> torch.Tensor:
    """The probability that a context is in a batch: as the root of its count, at most 1; they add up to ``size``."""
    root = counts.sqrt()
    low, high = 0.0, float(size)
    for _ in range(60):  # the factor, by halving
        factor = (low + high) / 2
        low, high = (factor, high) if float((root * factor).clamp(max=1.0).sum()) < size else (low, factor)
    return (root * high).clamp(max=1.0)


def warm_start(plan: Plan, model: Any, precision: str) -> None:
    """Make ``model``, a GPT-2 that starts from nothing, a bigram model of the training posts.

    It takes ``warm_start_passes``, but no more than a share of the training's tokens, or of its time, would. The same
    plan gives the same weights, unless time ends it. All processes do the same. Raises Interrupted on a signal.
    """
    settings, journal = plan.settings, plan.journal
    steps = steps_of(plan)
    if not steps:
        return
    began = plan.clock()
    limit = math.inf if settings.max_minutes is None else SHARE * 60 * settings.max_minutes
    plan.report(message="counting which token follows which")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()  # without dropout
    fit = Fit(model, Bigrams.of(plan.train, model.config.vocab_size).to(device), plan.seed)
    step, done = 0, 0.0
    while done < 1:
        stop, seconds = agreed(plan, device, plan.stopped(), plan.clock() - began)
        if stop:
            if plan.world > 1:
                torch.distributed.barrier()  # torchrun ends all processes when the first one is gone
            raise Interrupted("interrupted at step 0, before the first one")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = fit.step(done)
        step += 1
        done = max(step / steps, seconds / limit)
        if plan.rank == 0 and step % REPORTS == 0:
            plan.report(message=f"fitting the bigrams, {min(1.0, done):.0%}", loss=round(loss, 4))
    fit.attention_begins_at_zero()
    model.train()
    journal.warm_start(step, fit.mean_loss)
    (seconds,) = agreed(plan, device, plan.clock() - began)
    journal.seconds = journal.warm_start_seconds = seconds
    log.info("a bigram model after %d steps: %.4f nats a token of the training posts", step, fit.mean_loss)


def steps_of(plan: Plan) -> int:
    """Steps of the warm start, before the time is looked at."""
    settings = plan.settings
    known = len(np.unique(plan.train.pairs()[0]))
    contexts = settings.warm_start_passes * known
    if plan.total_steps < ENDLESS:
        blocks = plan.total_steps * plan.batch_size * plan.accumulation * plan.world
        contexts = min(contexts, SHARE * blocks * plan.train.tokens / len(plan.train))
    return math.ceil(contexts / batch_of(known))


def batch_of(known: int) -> int:
    """Contexts in a batch, when so many occur."""
    return max(CONTEXTS[0], min(CONTEXTS[1], known // 16))


def agreed(plan: Plan, device: torch.device, *values: float) -> list[float]:
    """The largest of each value over all processes."""
    if plan.world == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return [float(v) for v in tensor.tolist()]


class Fit:
    """The network without its attention on its way to the bigrams' distributions."""

    def __init__(self, model: Any, bigrams: Bigrams, seed: int) -> None:
        self._model, self._bigrams = model, bigrams
        counts = bigrams.counts.cpu()
        self._chance = drawn(counts, batch_of(int((counts > 0).sum())))
        # What a context counts for, by how rarely it is drawn: the mean over batches is that over all tokens.
        shares = torch.where(self._chance > 0, counts / self._chance.clamp(min=1e-30), 0) / counts.sum()
        self._shares = shares.to(bigrams.counts.device)
        body = model.transformer
        self._weights = [body.wte.weight, *body.ln_f.parameters()]
        self._weights += [p for block in body.h for part in (block.ln_2, block.mlp) for p in part.parameters()]
        self._optimizer = torch.optim.AdamW(self._weights, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self._draw = torch.Generator().manual_seed(seed)
        self.mean_loss = 0.0

    def step(self, done: float) -> float:
        """One batch, when ``done`` of the whole is behind; returns its loss, nats a token."""
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (done + 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        chosen = torch.rand(len(self._chance), generator=self._draw) < self._chance
        tokens = chosen.nonzero()[:, 0].to(self._shares.device)
        hidden = without_attention(self._model, tokens)
        weight = self._model.transformer.wte.weight
        loss = _SoftNats.apply(hidden, weight, tokens, self._shares[tokens], self._bigrams)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        value = float(loss.detach())
        self.mean_loss = value if not self.mean_loss else 0.95 * self.mean_loss + 0.05 * value
        return value

    def attention_begins_at_zero(self) -> None:
        """The network with its attention gives what it gave without, at all positions."""
        body = self._model.transformer
        with torch.no_grad():
            body.wpe.weight.zero_()
            for block in body.h:
                block.attn.c_proj.weight.zero_()
                block.attn.c_proj.bias.zero_()
