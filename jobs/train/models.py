"""The model that a training starts from: made from nothing, from the hub, or from the bucket; and its tokenizer."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import BugurtError, ConfigError, DataError, SpecError, TemporaryError, TrainSpec
from jobs.style import Style
from jobs.train.presets import Settings
from jobs.train.surroundings import out_of_memory
from jobs.weights import check_config

log = logging.getLogger(__name__)

SCRATCH = "scratch:"
#: name -> (layers, width, heads) of a GPT-2 that starts from nothing
SHAPES: dict[str, tuple[int, int, int]] = {"tiny": (3, 128, 2), "small": (4, 256, 4)}
#: Positions that a model from nothing has at least: room for posts longer than a block.
MIN_POSITIONS = 512

MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


@dataclass
class Base:
    """A model to train: the network, what it came from in words, and whether it starts from nothing."""

    model: Any
    origin: str
    from_scratch: bool


def is_scratch(spec: TrainSpec) -> bool:
    """Whether the spec asks for a model that starts from nothing."""
    return spec.base_model is None and spec.model.startswith(SCRATCH)


def load_tokenizer(folder: Path) -> Any:
    """The dataset's tokenizer. Raises DataError when the folder holds none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the dataset's tokenizer cannot be read: {one_line(error)}") from error


def load_base(
    spec: TrainSpec, settings: Settings, style: Style, tokenizer: Any, store: ArtifactStore, folder: Path
) -> Base:
    """Build or load the model that ``spec`` names, ready for the dataset's tokenizer.

    ``folder``: where a model of the bucket is downloaded to. Raises SpecError for a model that there cannot be,
    ConfigError when the hub cannot give it, DataError when its tokenizer is not the dataset's.
    """
    if is_scratch(spec):
        return Base(_from_nothing(spec, settings, style), spec.model, True)
    if spec.base_model is not None:
        manifest = store.manifest(spec.base_model)
        if not manifest.matching("*.safetensors"):
            raise DataError(
                f"{spec.base_model} has no weights in safetensors; pickled weights are never loaded from a bucket: "
                "fetch the model again with 'bugurt mirror'"
            )
        store.download(spec.base_model, folder, *MODEL_FILES, *TOKENIZER_FILES, manifest=manifest)
        check_config(folder, spec.base_model)
        source, origin = str(folder), f"{spec.base_model} ({_described(manifest)})"
        model = _from_pretrained(source, None, settings, spec, local=True)
        theirs = _tokenizer_of(source, None, local=True)
    else:
        source, origin = spec.model, f"{spec.model}@{spec.revision}"
        model = _from_pretrained(source, spec.revision, settings, spec, local=False)
        theirs = _tokenizer_of(source, spec.revision, local=False)
    _fit_vocabulary(model, theirs, tokenizer, style, origin)
    model.config.bos_token_id = style.bos_token_id
    model.config.eos_token_id = style.eos_token_id
    model.config.pad_token_id = style.pad_token_id
    return Base(model, origin, False)


def _described(manifest: Manifest) -> str:
    return str(manifest.info.get("name") or manifest.spec.get("model") or manifest.stage)


def _from_nothing(spec: TrainSpec, settings: Settings, style: Style) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = spec.model.removeprefix(SCRATCH)
    if size not in SHAPES:
        raise SpecError(f"the spec: model: {spec.model!r} is not known; write scratch:{' or scratch:'.join(SHAPES)}")
    layers, width, heads = SHAPES[size]
    dropout = settings.dropout if settings.dropout is not None else 0.1  # GPT-2's own
    config = GPT2Config(
        vocab_size=style.vocab_size,
        n_positions=max(style.block_size, MIN_POSITIONS),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=style.bos_token_id,
        eos_token_id=style.eos_token_id,
        pad_token_id=style.pad_token_id,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention_of(spec))


def attention_of(spec: TrainSpec) -> str | None:
    """transformers' name of the attention implementation; None leaves the choice to the model."""
    return "sdpa" if spec.attn_implementation == "auto" else spec.attn_implementation


#: Names under which architectures keep their dropout rates.
_DROPOUTS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "embd_dropout",
)


def _from_pretrained(source: str, revision: str | None, settings: Settings, spec: TrainSpec, *, local: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if revision is not None:
        where["revision"] = revision
    try:
        config = AutoConfig.from_pretrained(source, **where)
        if settings.dropout is not None:
            for name in _DROPOUTS:
                if isinstance(getattr(config, name, None), int | float):
                    setattr(config, name, settings.dropout)
        wanted = attention_of(spec)
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                attn_implementation=wanted,
                use_safetensors=True if local else None,
                output_loading_info=True,
                **where,
            )
        except ValueError as error:
            if spec.attn_implementation != "auto" or "attention" not in str(error).lower():
                raise
            log.info("the model has no sdpa attention; it is trained with eager attention")
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True if local else None,
                output_loading_info=True,
                **where,
            )
    except BugurtError:
        raise
    except Exception as error:  # the hub's client, transformers and safetensors raise some thirty kinds
        raise explain_loading(error, source, revision, local=local) from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise DataError(
            f"{source} is not whole: it lacks the weights of {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return model


def _tokenizer_of(source: str, revision: str | None, *, local: bool) -> Any:
    from transformers import AutoTokenizer

    extra = {} if revision is None else {"revision": revision}
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False, **extra)
    except Exception as error:  # as above
        raise explain_loading(error, source, revision, local=local) from error


def explain_loading(error: Exception, source: str, revision: str | None, *, local: bool) -> BugurtError:
    """One sentence for what went wrong while a model was fetched or read, with what to do."""
    from huggingface_hub import errors as hf

    name = source if revision in (None, "main") else f"{source}@{revision}"
    causes = list(_causes(error))
    ours = next((c for c in causes if isinstance(c, BugurtError)), None)
    if ours is not None:
        return ours
    if out_of_memory(error):
        return ConfigError(f"there is not enough memory to load the model {name}")
    text = one_line(error)
    low = text.lower()
    if local:
        return DataError(f"the model in the bucket cannot be read: {text}")
    if "trust_remote_code" in low:
        return ConfigError(
            f"the model {name} brings code of its own, which is never run here; choose a model that transformers knows"
        )
    if any(isinstance(c, pickle.UnpicklingError) for c in causes):
        return DataError(f"the pickled weights of {name} hold more than weights and are refused: {text}")
    status = next((c.response.status_code for c in causes if isinstance(c, hf.HfHubHTTPError)), None)
    if any(isinstance(c, hf.GatedRepoError) for c in causes) or status == 403:
        return ConfigError(f"the hub does not give {name} to us: accept its terms there and set HF_TOKEN")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return ConfigError(
            f"the model {name} is not here and HF_HUB_OFFLINE forbids to fetch it: run 'bugurt mirror {source}' where "
            f"there is internet and train with --model {source}, or unset HF_HUB_OFFLINE"
        )
    if any(isinstance(c, hf.RevisionNotFoundError) for c in causes):
        return ConfigError(f"the hub's model {source} has no revision {revision}")
    if status in (401, 404) or any(isinstance(c, hf.RepositoryNotFoundError | hf.HFValidationError) for c in causes):
        return ConfigError(
            f"the hub has no model {name}; check the name (OWNER/NAME), or set HF_TOKEN if it is private"
        )
    if status is not None and (status >= 500 or status == 429):
        return TemporaryError(f"the hub is not well (HTTP {status}); fetch {name} later")
    if any(isinstance(c, hf.LocalEntryNotFoundError | hf.OfflineModeIsEnabled | ConnectionError) for c in causes):
        return ConfigError(
            f"the hub cannot be reached to fetch {name}: allow egress to huggingface.co, or run "
            f"'bugurt mirror {source}' where there is internet and train with --model {source}"
        )
    return ConfigError(f"the model {name} cannot be loaded: {text}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fit_vocabulary(model: Any, theirs: Any, ours: Any, style: Style, origin: str) -> None:
    """Check that the dataset's tokens are the model's; give the model rows for tokens that the dataset added."""
    known, used = theirs.get_vocab(), ours.get_vocab()
    differing = [t for t, i in used.items() if t in known and known[t] != i]
    added = sorted((i, t) for t, i in used.items() if t not in known)
    rows = model.get_input_embeddings().weight.shape[0]
    if differing or len(added) > 16 or any(i < len(known) and i in set(known.values()) for i, _ in added):
        raise DataError(
            f"the dataset was made with another tokenizer ({style.tokenizer or 'unknown'}) than that of {origin}: "
            "make it anew, with preprocess's 'model' or 'base_model' naming this model"
        )
    if json_text(theirs) != json_text(ours):
        raise DataError(
            f"the dataset's tokenizer ({style.tokenizer or 'unknown'}) splits text otherwise than that of {origin}: "
            "make the dataset anew, with preprocess's 'model' or 'base_model' naming this model"
        )
    if style.vocab_size > rows:
        log.info("the dataset adds %d tokens to the model's %d: new rows are set to their mean", len(added), rows)
        model.resize_token_embeddings(style.vocab_size, mean_resizing=True)


def json_text(tokenizer: Any) -> str:
    """What decides how text is split: the model and the splitter of a fast tokenizer, as JSON; else nothing."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    data = json.loads(backend.to_str())
    return json.dumps([data.get("pre_tokenizer"), data.get("normalizer"), data.get("model")], sort_keys=True)


def one_line(error: BaseException) -> str:
    """An exception's text on one line, cut to a readable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
