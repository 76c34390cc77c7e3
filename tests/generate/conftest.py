"""Trained models that several tests share; each is trained once a session, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp

import pytest

from jobs.artifacts import ArtifactStore
from jobs.generate.stage import run
from jobs.specs import GenerateSpec
from jobs.stage import StageContext
from tests.conftest import MadeOnce
from tests.generate.batches import quiet
from tests.generate.models import MadeModel, channel, make_model


@pytest.fixture(scope="session")
def writer(made_once: MadeOnce) -> MadeModel:
    """A model that has learnt the channel's form and mixes it into new posts."""
    texts = channel(800)
    return MadeModel(made_once("writer", lambda folder: make_model(folder, texts, steps=120)), texts)


@pytest.fixture(scope="session")
def untrained(made_once: MadeOnce) -> MadeModel:
    """Random weights with the writer's tokenizer and style."""
    texts = channel(800)
    return MadeModel(made_once("untrained", lambda folder: make_model(folder, texts, steps=0)), texts)


@pytest.fixture(scope="session")
def parrot(made_once: MadeOnce) -> MadeModel:
    """A model that knows 24 posts by heart and little else."""
    texts = channel(24)
    return MadeModel(made_once("parrot", lambda folder: make_model(folder, texts, steps=220)), texts)


@pytest.fixture
def in_shards(store: ArtifactStore, tmp_path: Path) -> Callable[..., None]:
    """Run a spec in so many shards in this process, two at a time; some of them, or all."""

    def work(spec: GenerateSpec, order: list[int] | None = None, *, name: str = "r", force: bool = False) -> None:
        def one(shard: int) -> None:
            folder = Path(mkdtemp(dir=tmp_path))
            progress = quiet(store, shard)
            run(StageContext(spec, store, run=name, shard=shard, workdir=folder, progress=progress, force=force))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, order or range(spec.shards)))

    return work
