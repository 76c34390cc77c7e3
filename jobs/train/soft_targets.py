"""Soft targets: a share of what a network learns is not what a post goes on with, but what it may go on with.

A network from nothing that sees the posts of a small channel again and again learns them by heart. What posts of the
same channel would have put there instead is told, if roughly, by the triples of tokens that were counted and smoothed
in the same posts: a part of each target is their distribution. It is a teacher that costs nothing to train (Hinton et
al. 2015, "Distilling the Knowledge in a Neural Network"; Xie et al. 2017, "Data Noising as Smoothing in Neural Network
Language Models", draw such targets where they stand whole here).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from jobs.train.data import Blocks
from jobs.train.head import ChunkedHead, PlainHead, counted
from jobs.train.nats import nats
from jobs.train.ngrams import Trigrams
from jobs.train.presets import Settings

log = logging.getLogger(__name__)

MOST = 20_000_000  # tokens that are counted: more take gigabytes meanwhile, and so much text needs no smoothing


class SoftTargets:
    """The loss of batches of packed posts, with ``share`` of each target from the ``trigrams`` of the same posts."""

    def __init__(self, head: ChunkedHead, trigrams: Trigrams, share: float) -> None:
        self._head, self._trigrams, self._share = head, trigrams, share
        self._none = len(trigrams.unigram)  # what stands before a post's first token

    def nats(self, output: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Cross-entropy summed over all labels of ``inputs``, which are as ``Rows`` makes them.

        ``output``: the hidden states that the head lets pass, (blocks, tokens, width).
        """
        labels = inputs["labels"].reshape(-1)
        if self._trigrams.unigram.device != labels.device:
            self._trigrams = self._trigrams.to(labels.device)
        ids, first = inputs["input_ids"], inputs["position_ids"] == 0
        before = ids.roll(1, dims=1).masked_fill(first, self._none).reshape(-1)
        hidden, kept = counted(output, labels)
        targets = self._trigrams.targets(before[kept], ids.reshape(-1)[kept], labels[kept], self._share)
        return nats(hidden, self._head.layer.weight, targets)


def share_of(settings: Settings, blocks: Blocks) -> float:
    """``settings.soft_targets``, or 0 where there are more than ``MOST`` tokens."""
    if not settings.soft_targets or blocks.tokens <= MOST:
        return settings.soft_targets
    log.warning("no soft targets: the posts have %d tokens, and more than %d are not counted", blocks.tokens, MOST)
    return 0.0


def training_nats(
    blocks: Blocks, vocabulary: int, share: float, head: PlainHead
) -> Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]:
    """What a model with this head learns from: of its output and a batch of ``blocks``, the cross-entropies' sum.

    With a ``share`` the trigrams of ``blocks`` are counted now.
    """
    if not share:
        return lambda output, inputs: head.nats(output, inputs["labels"])
    assert isinstance(head, ChunkedHead)  # every model from nothing has it
    return SoftTargets(head, Trigrams.of(blocks, vocabulary), share).nats
