"""``python -m jobs.preprocess``: the command of the preprocess container."""

from jobs.preprocess.pipeline import run
from jobs.specs import PreprocessSpec
from jobs.stage import main

if __name__ == "__main__":
    main(PreprocessSpec, run)
