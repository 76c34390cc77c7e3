"""vLLM on a GPU, an optional extra: continuous batching for large models.

Every draw has a seed of its own, made from the session's and the draw's number, because vLLM decides itself what
it computes together. vLLM promises equal output for equal seeds on one GPU model and version only, and rounding
may differ with the load: the same batch drawn again may then have other posts. ``VLLM_BATCH_INVARIANT=1`` in the
stage's environment removes that at some cost in speed, where the version, the GPU and the attention backend support
it; others refuse to start with it, so that it is not set here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.generate.convert import WEIGHT_FILES
from jobs.generate.engines import Draw, Setting, room
from jobs.specs import ConfigError, DataError, GenerateSpec
from jobs.weights import check_config

if TYPE_CHECKING:
    from jobs.generate.language import Language


class VllmEngine:
    """vLLM over the model's own files."""

    sessions = 1

    def __init__(self, setting: Setting) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import vllm

        spec = setting.spec
        if spec.device == "cpu":
            raise ConfigError("device=cpu: the engine vllm is for GPUs; use engine=ctranslate2")
        if spec.no_repeat_ngram_size:
            raise ConfigError("no_repeat_ngram_size: vLLM does not have it; use engine=ctranslate2 or transformers")
        if spec.compute_type in ("int8", "int8_float16"):
            raise ConfigError(f"compute_type={spec.compute_type}: the engine vllm has float32, float16 and bfloat16")
        setting.store.download(setting.manifest.ref, setting.folder, *WEIGHT_FILES, manifest=setting.manifest)
        check_config(setting.folder, setting.manifest.ref)
        try:
            self._model: Any = vllm.LLM(
                model=str(setting.folder),
                skip_tokenizer_init=True,
                dtype=spec.compute_type,
                seed=spec.seed,
                enable_prefix_caching=False,
                trust_remote_code=False,
            )
        except RuntimeError as error:  # the driver, the memory, the settings: its own log above tells more
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"vLLM {vllm.__version__} does not start here ({text}): see what it logged before this, or use "
                "engine=ctranslate2"
            ) from error
        except ValueError as error:
            text = " ".join(str(error).split())[:300]
            raise DataError(f"vLLM cannot load {setting.manifest.ref}: {text}") from error
        self._spec, self._language = spec, setting.language
        self.label = f"vllm {vllm.__version__}, {spec.compute_type} on cuda"

    def session(self, seed: int) -> VllmSession:
        """A new random stream."""
        return VllmSession(self._model, self._language, self._spec, seed)


class VllmSession:
    """One random stream: draw n has the seed that (stream, n) gives."""

    def __init__(self, model: Any, language: Language, spec: GenerateSpec, seed: int) -> None:
        self._model, self._language, self._spec, self._seed = model, language, spec, seed
        self._drawn = 0

    def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
        """Draw a continuation of each prompt."""
        from vllm import SamplingParams

        spec = self._spec
        limit = room(spec, self._language.context, max(map(len, prompts)))
        settings = []
        for _ in prompts:
            digest = hashlib.sha256(f"{self._seed}/{self._drawn}".encode()).digest()
            self._drawn += 1
            settings.append(
                SamplingParams(
                    temperature=spec.temperature,
                    top_k=spec.top_k,
                    top_p=spec.top_p,
                    min_p=spec.min_p,
                    repetition_penalty=spec.repetition_penalty,
                    max_tokens=limit,
                    seed=int.from_bytes(digest[:4], "big"),
                    stop_token_ids=list(self._language.ends),
                    logprobs=0,  # of the drawn token alone
                    detokenize=False,
                )
            )
        requests = [{"prompt_token_ids": list(p)} for p in prompts]
        ends = set(self._language.ends)
        draws = []
        for result in self._model.generate(requests, settings, use_tqdm=False):
            output = result.outputs[0]
            ids = list(output.token_ids)
            score = sum(step[token].logprob for step, token in zip(output.logprobs or [], ids, strict=False))
            ended = bool(ids) and ids[-1] in ends
            draws.append(Draw(ids[:-1] if ended else ids, float(score), ended))
        return draws
