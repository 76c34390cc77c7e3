"""``python -m jobs.train``: the command of the train container."""

from jobs.specs import TrainSpec
from jobs.stage import main
from jobs.train.run import run

if __name__ == "__main__":
    main(TrainSpec, run)
