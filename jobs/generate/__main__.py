"""``python -m jobs.generate``: the container's command."""

from jobs.generate.heap import settle
from jobs.generate.stage import run
from jobs.specs import GenerateSpec
from jobs.stage import main

if __name__ == "__main__":
    settle()
    main(GenerateSpec, run)
