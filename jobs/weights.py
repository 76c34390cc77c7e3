"""Whether a model's ``config.json`` fits the weights beside it, looked at before anything of its size is made.

A number of layers costs nothing to write down, and libraries make so many before they look at the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.specs import DataError, load_json

#: What architectures call the number of their layers and the width of their embeddings.
LAYERS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "decoder_layers", "num_decoder_layers")
WIDTHS = ("n_embd", "hidden_size", "d_model", "word_embed_proj_dim")
TABLES = ("vocab_size", "n_positions", "n_inner", "intermediate_size", "ffn_dim")


def check_config(folder: Path, ref: str) -> None:
    """Raises DataError, naming ``ref``, when the configuration speaks of more than the weights can hold.

    Every layer has one tensor at least, every row of a table one byte at least, and a table of embeddings one byte
    at least for each of its numbers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = load_json((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{ref}/config.json cannot be read: {str(error)[:200]}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise DataError(f"{ref}/config.json names no model_type")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return  # whoever reads the weights says in his own words that there are none
    tensors = size = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                tensors += len(weights.keys())
        except (SafetensorError, OSError) as error:
            raise DataError(f"{ref}/{file.name} is damaged: {error}") from error
        size += file.stat().st_size
    inner = config.get("text_config")
    for part in (config, inner) if isinstance(inner, dict) else (config,):
        for name, value, most in _claims(part, tensors, size):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise DataError(f"{ref}/config.json: {name} is {str(value)[:40]}, which its weights do not bear out")


def _claims(config: dict[str, Any], tensors: int, size: int) -> list[tuple[str, Any, int]]:
    """(name, value, the most that it can be) of all that is set."""
    found = [(name, config.get(name), tensors) for name in LAYERS]
    found += [(name, config.get(name), size) for name in (*WIDTHS, *TABLES)]
    width = next((config[n] for n in WIDTHS if isinstance(config.get(n), int) and config[n] > 0), 1)
    found.append(("vocab_size", config.get("vocab_size"), size // width))
    return [claim for claim in found if claim[1] is not None]
