"""``python -m jobs.train``: the command of the train container."""

import os

from jobs.specs import ConfigError, TrainSpec
from jobs.stage import main
from jobs.train import peer
from jobs.train.run import run
from jobs.train.topology import Topology


def _is_peer() -> bool:
    try:
        return Topology.from_env(os.environ).node > 0
    except ConfigError:
        return False  # the stage says what is wrong


if __name__ == "__main__":
    if _is_peer():
        peer.main()
    main(TrainSpec, run)
