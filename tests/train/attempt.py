"""``python -m tests.train.attempt HOOK --spec …``: the train stage, which a function of ``tests.train.hooks`` precedes.

``-`` stands for no function.
"""

from __future__ import annotations

import sys

from jobs.specs import TrainSpec
from jobs.stage import main
from jobs.train.run import run

if __name__ == "__main__":
    hook = sys.argv[1]
    if hook != "-":
        from tests.train import hooks

        getattr(hooks, hook)()
    main(TrainSpec, run, argv=sys.argv[2:])
