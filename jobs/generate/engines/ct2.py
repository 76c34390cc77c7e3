"""The default engine: CTranslate2, int8 on CPUs, float16 on GPUs, without torch.

CTranslate2's random generator lives in the worker thread and is seeded once, when that thread first samples; a
seed set later does not reach it. So every session is a ``Generator`` of its own (its threads are new; loading an
int8 model takes 0.05 s at the ruGPT3-small shape), made and made to sample once while a lock keeps other
sessions from setting the process-wide seed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2

from jobs.generate.convert import fetch_converted
from jobs.generate.engines import Draw, Setting, room
from jobs.specs import ConfigError, GenerateSpec, SpecError

if TYPE_CHECKING:
    from jobs.generate.language import Language

log = logging.getLogger(__name__)

_SEEDING = threading.Lock()


def compute_type(spec: GenerateSpec) -> tuple[str, str]:
    """(device, compute type) for this machine. Raises ConfigError when it cannot do what the spec asks for."""
    gpus = ctranslate2.get_cuda_device_count()
    device = ("cuda" if gpus else "cpu") if spec.device == "auto" else spec.device
    if device == "cuda" and not gpus:
        raise ConfigError("device=cuda, but CTranslate2 sees no GPU here; use device=cpu, or a node with a GPU")
    supported = ctranslate2.get_supported_compute_types(device)
    wanted = spec.compute_type
    if wanted == "auto":
        wanted = "int8" if device == "cpu" else "float16"
        if wanted not in supported:
            wanted = "float32"
    if wanted not in supported:
        raise ConfigError(
            f"compute_type={wanted} is not supported by this {device}; it has {', '.join(sorted(supported))}"
        )
    return device, wanted


class CTranslate2Engine:
    """CTranslate2 over the converted model."""

    def __init__(self, setting: Setting) -> None:
        spec = setting.spec
        if spec.min_p > 0:
            raise SpecError("min_p: CTranslate2 has no min-p sampling; use engine=transformers, or top_p")
        self._device, self._type = compute_type(spec)
        self._spec = spec
        self._folder = fetch_converted(setting, "float16" if self._type == "bfloat16" else self._type)
        self._language = setting.language
        self._tokens = setting.language.tokens()
        self.sessions = setting.workers if self._device == "cpu" else 1
        self.label = f"ctranslate2 {ctranslate2.__version__}, {self._type} on {self._device}"

    def session(self, seed: int) -> CTranslate2Session:
        """A new random stream: a Generator with threads of its own."""
        generator = open_generator(self._folder, self._device, self._type, self._spec.threads)
        with _SEEDING:
            ctranslate2.set_random_seed(seed)
            # Sampling once makes the worker thread take the seed while it is ours.
            generator.generate_batch([[self._tokens[self._language.ends[0]]]], max_length=1, sampling_topk=2)
        return CTranslate2Session(generator, self._tokens, self._language, self._spec)


def open_generator(folder: Path, device: str, kind: str, threads: int) -> Any:
    """One replica of the model with one worker thread."""
    return ctranslate2.Generator(str(folder), device=device, compute_type=kind, inter_threads=1, intra_threads=threads)


class CTranslate2Session:
    """One random stream of CTranslate2."""

    def __init__(self, generator: Any, tokens: Sequence[str], language: Language, spec: GenerateSpec) -> None:
        self._generator, self._tokens, self._language, self._spec = generator, tokens, language, spec
        self._draw = partial(
            generator.generate_batch,
            sampling_topk=spec.top_k if spec.top_k < language.vocab_size else 0,
            sampling_topp=spec.top_p,
            sampling_temperature=spec.temperature,
            repetition_penalty=spec.repetition_penalty,
            no_repeat_ngram_size=spec.no_repeat_ngram_size,
            end_token=list(language.ends),
            return_end_token=True,
            include_prompt_in_result=False,
            return_scores=True,
            length_penalty=0,  # the sum of the logarithms, not their mean
        )

    def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
        """Draw a continuation of each prompt as one batch."""
        shortest, longest = min(map(len, prompts)), max(map(len, prompts))
        limit = room(self._spec, self._language.context, longest)
        named = [[self._tokens[i] for i in prompt] for prompt in prompts]
        # The prompts' common length is computed at once; what longer prompts have beyond it is forced step by
        # step, counts towards the limit and comes back as if it were drawn, but is not part of the score.
        results = self._draw(named, max_length=limit + longest - shortest)
        ends = set(self._language.ends)
        draws = []
        for prompt, result in zip(prompts, results, strict=True):
            ids = list(result.sequences_ids[0])[len(prompt) - shortest :]
            ended = bool(ids) and ids[-1] in ends and len(ids) <= limit
            tokens = ids[:-1] if ended else ids[:limit]
            draws.append(Draw(tokens, float(result.scores[0]), ended))
        return draws
