"""``python -m jobs.generate``: the container's command."""

from jobs.generate.stage import run
from jobs.specs import GenerateSpec
from jobs.stage import main

if __name__ == "__main__":
    # Shards of one batch run side by side; the stage takes the lease itself when it puts the batch together.
    main(GenerateSpec, run, exclusive=False)
