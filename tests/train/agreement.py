"""``python -m tests.train.agreement RANK FOLDER BATCH STEPS``: one of two processes that know different batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from jobs.train.loop import agreed


def main(rank: str, folder: str, batch: str, steps: str) -> None:
    """Meet the other one, and write down what both have agreed on."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
    Path(folder, f"agreed-{rank}").write_text(json.dumps(agreed((int(batch), int(steps)), 2)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
