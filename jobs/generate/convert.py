"""From a model artefact to a CTranslate2 model, and the bucket's cache of what was converted.

GPT-2 and everything of its architecture (ruGPT3 too) is converted here, out of ``model.safetensors`` with numpy
alone, so that the image needs no torch. The layout is that of CTranslate2's own GPT-2 loader; a test compares the
logits with those of transformers. Other architectures go through CTranslate2's converter where torch and
transformers are installed.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.generate.language import Language
from jobs.specs import ConfigError, DataError
from jobs.weights import check_config

if TYPE_CHECKING:
    from jobs.generate.engines import Setting

log = logging.getLogger(__name__)

CONVERTER = 1  # raise when the same model would be converted into other files
WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")

#: CTranslate2's activations by the names of transformers' configurations.
_ACTIVATIONS = {
    "gelu_new": "GELUTanh",
    "gelu_pytorch_tanh": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "gelu": "GELU",
    "quick_gelu": "GELUSigmoid",
    "relu": "RELU",
    "silu": "SWISH",
    "swish": "SWISH",
}


def fetch_converted(setting: Setting, quantization: str) -> Path:
    """The converted model as a local folder: from the bucket's cache, or converted now and put there.

    ``quantization``: how weights are stored (int8, float16, float32 …). Raises DataError for a model that cannot
    be read and ConfigError for one that needs packages which are missing.
    """
    import ctranslate2

    store = setting.store
    cache = f"cache/ctranslate2/{setting.manifest.id}/{quantization}"
    folder = setting.folder / f"ctranslate2-{quantization}"
    # A model that was trained again by --force has its old id and other weights.
    wanted = {
        "converter": CONVERTER,
        "ctranslate2": ctranslate2.__version__.partition(".")[0],
        "weights": setting.manifest.digest(*WEIGHT_FILES),
    }
    with store.lease(cache, holder="a generate stage that converts the model", waiting=setting.waiting) as lease:
        try:
            found = store.find(cache)
            if found is not None and found.info == wanted:
                store.download(cache, folder, manifest=found)
                log.info("found the converted model in %s", cache)
                return folder
        except DataError as error:
            log.warning("the cached model cannot be used and is made again: %s", error)
            shutil.rmtree(folder, ignore_errors=True)
        log.info("converting %s for CTranslate2, %s", setting.manifest.ref, quantization)
        store.download(setting.manifest.ref, setting.folder, *WEIGHT_FILES, manifest=setting.manifest)
        convert(setting.folder, folder, setting.language, quantization, setting.manifest.ref)
        lease.ensure(ask=True)
        store.remove(cache)  # the manifest of what was there must not vouch for the new files
        writer = store.writer(cache, guard=lease.ensure)
        writer.put_folder(folder)
        lease.ensure(ask=True)
        writer.commit(
            stage="convert",
            spec={"quantization": quantization},
            inputs={"model": setting.manifest.ref},
            info=wanted,
        )
    return folder


def convert(source: Path, target: Path, language: Language, quantization: str, ref: str) -> None:
    """Convert the model in ``source`` (weights and text files) into the new folder ``target``."""
    check_config(source, ref)
    config = language.config
    if config.get("model_type") == "gpt2":
        model = _gpt2(source, language, ref)
        target.mkdir(parents=True)
        model.validate()
        model.optimize(quantization=None if quantization == "float32" else quantization)
        model.save(str(target))
        return
    missing = [p for p in ("torch", "transformers") if find_spec(p) is None]
    if missing:
        raise ConfigError(
            f"{ref} is of the architecture {config.get('model_type')!r}: converting it for CTranslate2 needs the"
            f" package {missing[0]}, which is not installed here; use an image that has it, or a GPT-2 model"
        )
    _by_ctranslate2(source, target, quantization, ref)


def _by_ctranslate2(source: Path, target: Path, quantization: str, ref: str) -> None:
    from ctranslate2.converters import TransformersConverter

    try:
        TransformersConverter(str(source)).convert(str(target), quantization=quantization)
    except (ValueError, KeyError, AttributeError, NotImplementedError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"CTranslate2 cannot convert {ref}: {text}; use engine=transformers") from error


def _gpt2(source: Path, language: Language, ref: str) -> Any:
    """CTranslate2's specification of a GPT-2 model, filled with the weights."""
    with _unseen("torch"):
        from ctranslate2.specs import common_spec, transformer_spec

    config = language.config
    layers, heads, width = (_number(config, k, ref) for k in ("n_layer", "n_head", "n_embd"))
    activation = _ACTIVATIONS.get(str(config.get("activation_function", "gelu_new")))
    problems = [
        text
        for text, bad in (
            (f"activation_function {config.get('activation_function')!r}", activation is None),
            ("scale_attn_weights false", not config.get("scale_attn_weights", True)),
            ("scale_attn_by_inverse_layer_idx", config.get("scale_attn_by_inverse_layer_idx", False)),
            ("add_cross_attention", config.get("add_cross_attention", False)),
            ("layer_norm_epsilon other than 1e-5", not _is_usual(config.get("layer_norm_epsilon", 1e-5))),
        )
        if bad
    ]
    if problems or activation is None:
        raise ConfigError(f"{ref}: CTranslate2 has no GPT-2 with {problems[0]}; use engine=transformers")
    with _Weights.open(source, ref) as weights:
        if width % heads:
            raise DataError(f"{ref}/config.json: n_embd {width} is no multiple of n_head {heads}")
        model = transformer_spec.TransformerDecoderModelSpec.from_config(
            layers, heads, pre_norm=True, activation=common_spec.Activation[activation]
        )

        def get(name: str, *shape: int) -> np.ndarray[Any, Any]:
            array = weights.get(name)
            if array.shape != shape:
                raise DataError(f"{ref}: {name} has the shape {array.shape}, but config.json says {shape}")
            return array

        def norm(spec: Any, name: str) -> None:
            spec.gamma, spec.beta = get(f"{name}.weight", width), get(f"{name}.bias", width)

        def linear(spec: Any, name: str, inner: int, outer: int) -> None:
            # transformers' Conv1D holds (in, out), CTranslate2 wants (out, in).
            spec.weight = np.ascontiguousarray(get(f"{name}.weight", inner, outer).T)
            spec.bias = get(f"{name}.bias", outer)

        decoder = model.decoder
        decoder.scale_embeddings = False
        embeddings = get("wte.weight", language.vocab_size, width)
        decoder.embeddings.weight = embeddings
        decoder.position_encodings.encodings = get("wpe.weight", _number(config, "n_positions", ref), width)
        norm(decoder.layer_norm, "ln_f")
        tied = config.get("tie_word_embeddings", True) or not weights.has("lm_head.weight")
        decoder.projection.weight = embeddings if tied else get("lm_head.weight", language.vocab_size, width)
        hidden = config.get("n_inner") or 4 * width
        for number, layer in enumerate(decoder.layer):
            block = f"h.{number}"
            norm(layer.self_attention.layer_norm, f"{block}.ln_1")
            linear(layer.self_attention.linear[0], f"{block}.attn.c_attn", width, 3 * width)
            linear(layer.self_attention.linear[1], f"{block}.attn.c_proj", width, width)
            norm(layer.ffn.layer_norm, f"{block}.ln_2")
            linear(layer.ffn.linear_0, f"{block}.mlp.c_fc", width, hidden)
            linear(layer.ffn.linear_1, f"{block}.mlp.c_proj", hidden, width)
    tokens = language.tokens()
    model.register_vocabulary(tokens)
    model.config.bos_token = tokens[language.begin if language.begin is not None else language.ends[0]]
    model.config.eos_token = tokens[language.ends[0]]
    # CTranslate2 insists on an unknown token; prompts are made of known ones, so that any will do.
    model.config.unk_token = "<unk>" if "<unk>" in tokens else model.config.eos_token
    return model


def _is_usual(epsilon: object) -> bool:
    return isinstance(epsilon, int | float) and abs(epsilon - 1e-5) <= 1e-9


@contextmanager
def _unseen(package: str) -> Iterator[None]:
    """Hide a package from imports: CTranslate2's specifications load torch where it is installed, which takes
    seconds, only to accept tensors of its own; the arrays here are numpy's."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    try:
        yield
    finally:
        del sys.modules[package]


def _number(config: dict[str, Any], key: str, ref: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise DataError(f"{ref}/config.json: {key} is {value!r}, not a positive number")
    return value


class _Weights:
    """Named float32 arrays out of one or several safetensors files, whether or not ``transformer.`` leads the names."""

    def __init__(self, where: dict[str, tuple[Path, Any, str]], ref: str) -> None:
        self._where, self._ref = where, ref

    @classmethod
    @contextmanager
    def open(cls, folder: Path, ref: str) -> Iterator[_Weights]:
        from contextlib import ExitStack

        from safetensors import SafetensorError, safe_open

        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise DataError(
                f"{ref} has no safetensors file; weights in other formats are not read, for they can run code"
            )
        with ExitStack() as stack:
            where: dict[str, tuple[Path, Any, str]] = {}
            for file in files:
                try:
                    opened = stack.enter_context(safe_open(file, framework="numpy"))
                except (SafetensorError, OSError) as error:
                    raise DataError(f"{ref}/{file.name} is damaged: {error}") from error
                for key in opened.keys():  # noqa: SIM118  # it is no mapping
                    where[key.removeprefix("transformer.")] = (file, opened, key)
            yield cls(where, ref)

    def has(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> np.ndarray[Any, Any]:
        if name not in self._where:
            raise DataError(f"{self._ref} is no GPT-2 language model: it has no weight {name}")
        file, opened, key = self._where[name]
        if opened.get_slice(key).get_dtype() == "BF16":
            return _bfloat16(file, key)
        return np.ascontiguousarray(opened.get_tensor(key), dtype=np.float32)


def _bfloat16(file: Path, key: str) -> np.ndarray[Any, Any]:
    """A bfloat16 tensor as float32; numpy has no such type, but it is the upper half of a float32.

    The safetensors layout: a header of JSON behind its length in 8 bytes, offsets count from the header's end.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(length))[key]
    start, stop = entry["data_offsets"]
    raw = np.fromfile(file, np.uint16, (stop - start) // 2, offset=8 + length + start)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
