"""Options that every command has, and the error handling of the whole program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.clusters.base import Cluster
    from cli.settings import Settings
    from jobs.artifacts import ArtifactStore


@dataclass
class Options:
    """Values of the options before the command."""

    config: Path | None = None
    debug: bool = False
    quiet: bool = False
    verbose: bool = False


OPTIONS = Options()


def settings() -> Settings:
    """The settings, with ``--config`` obeyed."""
    from cli.settings import load
    from jobs.specs import ConfigError

    if OPTIONS.config is not None and not OPTIONS.config.is_file():
        raise ConfigError(f"there is no settings file {OPTIONS.config}")
    return load(OPTIONS.config)


def places(*, making: bool = False) -> tuple[Settings, ArtifactStore, Cluster]:
    """Settings, bucket and cluster, as most commands need them; ``making``: see ``cli.places.open_store``."""
    from cli.places import open_cluster, open_store

    found = settings()
    return found, open_store(found, making=making), open_cluster(found)
