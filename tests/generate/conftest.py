"""Trained models that several tests share; each is trained once a session, in seconds."""

from __future__ import annotations

import pytest

from tests.generate.models import MadeModel, channel, make_model


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    """A model that has learnt the channel's form and mixes it into new posts."""
    return make_model(tmp_path_factory.mktemp("writer"), channel(800), steps=120)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    """Random weights with the writer's tokenizer and style."""
    return make_model(tmp_path_factory.mktemp("untrained"), channel(800), steps=0)


@pytest.fixture(scope="session")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    """A model that knows 24 posts by heart and little else."""
    return make_model(tmp_path_factory.mktemp("parrot"), channel(24), steps=220)
