"""What draws posts: one small protocol, three engines behind it.

A ``Session`` is one random stream. What it draws is a function of the model, the settings, the stream's seed and
the sequence of its calls; so whoever makes a part of a batch anew opens a new session with the part's seed and
makes the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.specs import ConfigError, GenerateSpec

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore, Manifest
    from jobs.generate.language import Language


@dataclass(frozen=True)
class Draw:
    """What was drawn after a prompt: ``tokens`` without the prompt and without the end token; ``score``: natural
    logarithm of the probability of these tokens and the end token, before temperature and truncation; ``ended``:
    whether the model ended it by an end token within the limit."""

    tokens: list[int]
    score: float
    ended: bool


class Session(Protocol):
    """One random stream."""

    def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
        """Draw a continuation of each prompt (token ids, at least one each, framed) as one batch."""
        ...


class Engine(Protocol):
    """A loaded model. ``label`` names it for the report; ``sessions`` may be open at the same time, each in a
    thread of its own."""

    label: str
    sessions: int

    def session(self, seed: int) -> Session:
        """A new random stream; ``seed`` has 32 bits."""
        ...


@dataclass(frozen=True)
class Setting:
    """What an engine needs to open: the model's folder holds the text files, weights are fetched on demand."""

    spec: GenerateSpec
    store: ArtifactStore
    manifest: Manifest
    language: Language
    folder: Path
    workers: int
    waiting: Callable[[str], None]


def room(spec: GenerateSpec, context: int | None, longest_prompt: int) -> int:
    """How many tokens may be drawn behind the longest prompt of a call."""
    return spec.max_new_tokens if context is None else min(spec.max_new_tokens, context - longest_prompt)


def open_engine(setting: Setting) -> Engine:
    """The engine that the spec names. Raises ConfigError when a package or a device is missing."""
    name = setting.spec.engine
    if name == "ctranslate2":
        from jobs.generate.engines.ct2 import CTranslate2Engine

        return CTranslate2Engine(setting)
    if name == "transformers":
        _needs("torch", "transformers", name=name)
        from jobs.generate.engines.reference import TransformersEngine

        return TransformersEngine(setting)
    _needs("vllm", name=name)
    from jobs.generate.engines.vllm_engine import VllmEngine

    return VllmEngine(setting)


def _needs(*packages: str, name: str) -> None:
    from importlib.util import find_spec

    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        raise ConfigError(
            f"the engine {name} needs the package {missing[0]}, which is not installed here;"
            " use an image that has it, or engine=ctranslate2"
        )
