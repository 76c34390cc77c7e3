"""The default engine: CTranslate2, int8 on CPUs, float16 on GPUs, without torch.

CTranslate2's random generator lives in the worker thread and is seeded once, when that thread first samples; a
seed set later does not reach it. So every session is a ``Generator`` of its own (its threads are new; loading an
int8 model takes 0.05 s at the ruGPT3-small shape), made and made to sample once while a lock keeps other
sessions from setting the process-wide seed. On a GPU a session's random states are made anew, from that seed, when a
batch has more rows than any before it: so it samples with as many rows as a batch may have.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2

from jobs import gpus
from jobs.generate.convert import fetch_converted
from jobs.generate.engines import Draw, Setting, room
from jobs.specs import ConfigError, GenerateSpec, SpecError

if TYPE_CHECKING:
    from jobs.generate.language import Language

log = logging.getLogger(__name__)

_SEEDING = threading.Lock()

#: CTranslate2 has CUDA 12 in itself but for these, the first of which the second needs. It asks the dynamic linker for
#: them by name when they are first used, and is given what a process has loaded already.
_CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
_INSTALL = "pip install 'nvidia-cublas-cu12<13'"
_CUDA = "12"


def load_cublas() -> str | None:
    """Load cuBLAS, from beside CTranslate2 where pip has put it, else from where the system has it; or say why not."""
    beside = Path(ctranslate2.__file__).parents[1] / "nvidia" / "cublas" / "lib"
    for name in _CUBLAS:
        file = beside / name
        try:
            ctypes.CDLL(str(file) if file.is_file() else name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return " ".join(str(error).split())[:200]
    return None


def device_of(spec: GenerateSpec) -> str:
    """``cuda`` or ``cpu``. Raises ConfigError where a GPU is asked for, or held by the Job, and cannot be used."""
    if spec.device == "cpu":
        return "cpu"
    if not ctranslate2.get_cuda_device_count():
        if gpus.held():
            raise gpus.unseen("generate", f"CTranslate2 {ctranslate2.__version__}", _CUDA)
        if spec.device == "cuda":
            raise ConfigError("device=cuda, but CTranslate2 sees no GPU here; use device=cpu, or a node with a GPU")
        return "cpu"
    missing = load_cublas()
    if missing is None:
        return "cuda"
    if gpus.held():
        raise ConfigError(
            f"CTranslate2 needs cuBLAS of CUDA 12 for this Job's GPU ({missing}): build the generate image with "
            "CUDA=12, or set device=cpu, or gpu = 0 in [cluster.generate]"
        )
    if spec.device == "cuda":
        raise ConfigError(f"CTranslate2 needs cuBLAS of CUDA 12 for the GPU ({missing}): {_INSTALL}, or use device=cpu")
    log.warning("the GPU is not used, for CTranslate2 needs cuBLAS of CUDA 12 (%s): %s", missing, _INSTALL)
    return "cpu"


def compute_type(spec: GenerateSpec) -> tuple[str, str]:
    """(device, compute type) for this machine. Raises ConfigError when it cannot do what the spec asks for."""
    device = device_of(spec)
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
        rows = self._spec.micro_batch if self._device == "cuda" else 1
        with _SEEDING:
            ctranslate2.set_random_seed(seed)
            # Sampling once makes the worker thread take the seed while it is ours.
            generator.generate_batch([[self._tokens[self._language.ends[0]]]] * rows, max_length=1, sampling_topk=2)
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
