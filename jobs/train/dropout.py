"""Dropout that begins when the posts are seen again, and not before.

In the first passes over its posts a network has nothing to overfit to, and dropout costs time and learning; on a small
channel, whose posts it sees often, it is lost without (Liu et al. 2023, "Dropout Reduces Underfitting", call it late
dropout; Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", measure that two to four passes are nearly
as good as new text). The rate follows from the step alone, so that a training that is resumed has the same.
"""

from __future__ import annotations

import torch


class LateDropout:
    """Dropout of ``model`` at ``rate``, but none in the first ``passes`` over the training posts; 0: as it is.

    Knows ``torch.nn.Dropout`` modules, which is all that a GPT-2 from nothing has.
    """

    def __init__(self, model: torch.nn.Module, rate: float, passes: float) -> None:
        self._rate, self._passes = rate, passes
        self._modules = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)] if passes else []

    def at(self, epochs: float) -> None:
        """Set the rate for a step before which all posts were seen ``epochs`` times."""
        rate = self._rate if epochs >= self._passes else 0.0
        for module in self._modules:
            module.p = rate
