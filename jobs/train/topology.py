"""How many processes train together, and where: from the environment, as Kubernetes or a shell sets it.

- ``BUGURT_TRAIN_PROCESSES``: processes on this machine; by default one for each GPU, or one;
- ``BUGURT_TRAIN_NODES``: machines that train together (pods of an Indexed Job), each with as many processes;
- ``JOB_COMPLETION_INDEX``: which of them this is;
- ``BUGURT_TRAIN_RENDEZVOUS``: ``HOST:PORT`` of the first one, where all of them meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.specs import ConfigError


@dataclass(frozen=True)
class Topology:
    """``processes`` on each of ``nodes`` machines, of which this is number ``node``."""

    processes: int | None
    nodes: int = 1
    node: int = 0
    host: str = "127.0.0.1"
    port: int = 0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Topology:
        """Read the environment; ``processes`` stays None where the GPUs decide. Raises ConfigError."""
        processes = _number(env, "BUGURT_TRAIN_PROCESSES", None, 1)
        nodes = _number(env, "BUGURT_TRAIN_NODES", 1, 1) or 1
        if nodes == 1:
            return cls(processes)
        node = _number(env, "JOB_COMPLETION_INDEX", None, 0)
        if node is None or node >= nodes:
            raise ConfigError(
                f"BUGURT_TRAIN_NODES is {nodes}: JOB_COMPLETION_INDEX must be a number from 0 to {nodes - 1}"
            )
        meeting = env.get("BUGURT_TRAIN_RENDEZVOUS", "")
        host, _, port = meeting.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"BUGURT_TRAIN_RENDEZVOUS must be HOST:PORT of the first node, not {meeting!r}")
        return cls(processes, nodes, node, host, int(port))

    def local_processes(self) -> int:
        """Processes on this machine: what was said, else one for each GPU, else one. Raises ConfigError.

        ``device_count`` asks the driver and counts GPUs, too, that torch cannot use.
        """
        import torch

        gpus = int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
        if self.processes is None:
            return max(1, gpus)
        if gpus and self.processes > gpus:
            raise ConfigError(
                f"BUGURT_TRAIN_PROCESSES is {self.processes}, but there {'is' if gpus == 1 else 'are'} {gpus} "
                f"GPU{'s' * (gpus > 1)} here: give each process one, or leave the variable out"
            )
        return self.processes


def _number(env: Mapping[str, str], name: str, default: int | None, least: int) -> int | None:
    text = env.get(name)
    if not text:
        return default
    if not text.isdigit() or int(text) < least:
        raise ConfigError(f"{name} must be a number of at least {least}, not {text!r}")
    return int(text)
