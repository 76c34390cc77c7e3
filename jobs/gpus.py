"""How many GPUs a stage's Job holds, and what to say where a library sees none of them."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.specs import ConfigError

#: Set in Jobs that hold GPUs, to their number. Without it nobody has promised one: a Job for CPUs, or one machine.
VARIABLE = "BUGURT_GPUS"
#: The oldest branch of NVIDIA's driver that runs a release of CUDA.
DRIVERS = {"11": 450, "12": 525, "13": 580}


def held() -> int:
    """GPUs that this process's Job holds by its manifest; 0 where nothing is said. Raises ConfigError."""
    text = os.environ.get(VARIABLE) or "0"
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{VARIABLE} must be the number of the Job's GPUs, not {text[:60]!r}")
    return int(text)


def in_sight() -> bool:
    """Whether this machine shows a GPU of NVIDIA's, and CUDA_VISIBLE_DEVICES does not hide all of them."""
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() not in ("", "-1")


def driver_for(cuda: str) -> str:
    """What CUDA asks of the driver; ``cuda``: a version such as ``13.0``."""
    major = cuda.partition(".")[0]
    if major not in DRIVERS:
        return f"NVIDIA's driver may be too old for CUDA {major}"
    return f"NVIDIA's driver must be {DRIVERS[major]} or newer for CUDA {major}"


def unseen(stage: str, library: str, cuda: str | None) -> ConfigError:
    """The error of a Job that holds GPUs that ``library`` does not see; ``cuda`` is None where it is built for CPUs."""
    count = held()
    holds = f"this Job holds {count} GPU{'s' * (count > 1)}, but"
    instead = f"set gpu = 0 in [cluster.{stage}]"
    if cuda is None:
        return ConfigError(
            f"{holds} its image has {library} for CPUs: build it with one for CUDA (images/README.md), or {instead}"
        )
    return ConfigError(
        f"{holds} {library} (CUDA {cuda}) sees none: on the node {driver_for(cuda)}; on k3s set "
        f'runtime_class = "nvidia" in [cluster.{stage}]; or {instead}'
    )
