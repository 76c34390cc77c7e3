"""The reference engine: transformers' ``generate`` with the same settings by their names.

Every session seeds torch and draws by itself, so only one may be open at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs import gpus
from jobs.generate.convert import WEIGHT_FILES
from jobs.generate.engines import Draw, Setting, room
from jobs.specs import ConfigError, DataError, GenerateSpec
from jobs.weights import check_config

if TYPE_CHECKING:
    from jobs.generate.language import Language


class TransformersEngine:
    """transformers over the model's own files."""

    sessions = 1

    def __init__(self, setting: Setting) -> None:
        import torch
        import transformers

        spec = setting.spec
        cuda = torch.cuda.is_available()
        if spec.device != "cpu" and not cuda and gpus.held():
            raise gpus.unseen("generate", f"torch {torch.__version__.partition('+')[0]}", torch.version.cuda)
        if spec.device == "cuda" and not cuda:
            raise ConfigError("device=cuda, but torch sees no GPU here; use device=cpu, or a node with a GPU")
        self._device = "cuda" if cuda and spec.device != "cpu" else "cpu"
        types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        wanted = spec.compute_type
        if wanted == "auto":
            wanted = "float32"
            if self._device == "cuda":  # bfloat16 where the GPU multiplies it itself
                wanted = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        if wanted not in types:
            raise ConfigError(f"compute_type={wanted}: the engine transformers has float32, float16 and bfloat16")
        setting.store.download(setting.manifest.ref, setting.folder, *WEIGHT_FILES, manifest=setting.manifest)
        check_config(setting.folder, setting.manifest.ref)
        try:
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                setting.folder,
                dtype=types[wanted],
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            ).to(self._device)
        except (OSError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise DataError(f"{setting.manifest.ref} cannot be loaded: {text}") from error
        self._model.eval()
        torch.set_num_threads(spec.threads if self._device == "cpu" else torch.get_num_threads())
        self._spec, self._language = spec, setting.language
        self.label = f"transformers {transformers.__version__}, {wanted} on {self._device}"

    def session(self, seed: int) -> TransformersSession:
        """A new random stream."""
        import torch

        torch.manual_seed(seed)
        return TransformersSession(self._model, self._language, self._spec)


class TransformersSession:
    """One random stream of torch."""

    def __init__(self, model: Any, language: Language, spec: GenerateSpec) -> None:
        from transformers import GenerationConfig

        self._model, self._language, self._spec = model, language, spec
        self._settings = GenerationConfig(
            do_sample=True,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            min_p=spec.min_p or None,
            repetition_penalty=spec.repetition_penalty,
            no_repeat_ngram_size=spec.no_repeat_ngram_size,
            eos_token_id=list(language.ends),
            pad_token_id=language.ends[0],
            return_dict_in_generate=True,
            output_logits=True,
        )

    def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
        """Draw a continuation of each prompt as one batch, padded on the left."""
        import torch

        longest = max(map(len, prompts))
        limit = room(self._spec, self._language.context, longest)
        pad = self._language.ends[0]
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        with torch.inference_mode():
            result = self._model.generate(
                ids, attention_mask=mask, generation_config=self._settings, max_new_tokens=limit
            )
        drawn = result.sequences[:, longest:]
        # The model's own probabilities, before temperature and truncation.
        scores = torch.stack(
            [
                torch.log_softmax(logits.float(), -1).gather(1, drawn[:, step : step + 1]).squeeze(1)
                for step, logits in enumerate(result.logits)
            ],
            dim=1,
        ).tolist()
        ends = set(self._language.ends)
        draws = []
        for row, values in zip(drawn.tolist(), scores, strict=True):
            stop = next((n for n, token in enumerate(row) if token in ends), None)
            tokens = row if stop is None else row[:stop]
            score = sum(values if stop is None else values[: stop + 1])
            draws.append(Draw(tokens, score, stop is not None))
        return draws
