"""A model from nothing begins as a bigram model: what may follow each token is counted, and fitted, before it trains.

In its first minute a network sees a part of its posts once and learns little more from it than which token follows
which. Counting tells the same, better, of all posts at once, in a tenth of a second. So the token pairs of the
training posts are counted and smoothed (``ngrams``), and the network *without its attention* is fitted to them:
embedding, the blocks' MLPs, last normalisation, tied head. One context of a batch stands for all of its occurrences,
with its whole distribution as the target, so that a batch tells what thousands of tokens would. Attention's outputs
then begin at zero: training goes on exactly from the bigram model.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch

from jobs.specs import Interrupted
from jobs.train.nats import nats
from jobs.train.ngrams import Bigrams
from jobs.train.plan import ENDLESS, Plan

log = logging.getLogger(__name__)

CONTEXTS = (32, 128)  # of a batch, on average: at least and at most; a small vocabulary needs as many steps
RATE = 2e-3
WARM_UP = 0.05  # of the steps
SHARE = 0.25  # of the tokens, or the time, of the whole training, at most
REPORTS = 50  # steps between them


def without_attention(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The last hidden states of a GPT-2 for single tokens, (tokens, width), as if attention gave nothing."""
    body = model.transformer
    hidden = body.wte(tokens)
    for block in body.h:
        hidden = hidden + block.mlp(block.ln_2(hidden))
    last: torch.Tensor = body.ln_f(hidden)
    return last


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
        counts = bigrams.pairs.counts.cpu()
        self._chance = drawn(counts, batch_of(int((counts > 0).sum())))
        # What a context counts for, by how rarely it is drawn: the mean over batches is that over all tokens.
        shares = torch.where(self._chance > 0, counts / self._chance.clamp(min=1e-30), 0) / counts.sum()
        self._shares = shares.to(bigrams.unigram.device)
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
        loss = nats(hidden, weight, self._bigrams.targets(tokens, self._shares[tokens]))
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
