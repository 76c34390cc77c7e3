"""The finished model's folder: weights, tokenizer, card, curves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.specs import TrainSpec
from jobs.style import STYLE_FILE, Style
from jobs.train import report
from jobs.train.journal import Journal

MAX_NEW_TOKENS = 256  # of the generation config: what model.generate does without being told


@dataclass
class Story:
    """What card and report tell: the spec, the manifest's info, the dataset's counts, the journal."""

    spec: TrainSpec
    info: dict[str, Any]
    dataset: dict[str, int | float]
    journal: Journal


def load_weights(model: Any, folder: Path) -> None:
    """Load the weights that ``save_pretrained`` wrote to ``folder`` into ``model``; tied ones stay tied."""
    from safetensors.torch import load_file

    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(adapter))
        return
    for file in sorted(folder.glob("*.safetensors")):
        result = model.load_state_dict(load_file(file), strict=False)
        if result.unexpected_keys:
            raise RuntimeError(f"the kept weights have a name that the model lacks: {result.unexpected_keys[0]}")
    model.tie_weights()


def write(out: Path, model: Any, tokenizer: Any, style: Style, story: Story) -> None:
    """Write everything below ``out``: the folder loads with ``from_pretrained``."""
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out / "adapter")
        (out / "adapter" / "README.md").unlink(missing_ok=True)  # peft's empty card; ours is one folder up
        model = model.merge_and_unload()
    model.config.use_cache = True  # the Trainer switches it off
    model.generation_config = GenerationConfig(
        bos_token_id=style.bos_token_id,
        eos_token_id=style.eos_token_id,
        pad_token_id=style.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=50,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    model.save_pretrained(out, max_shard_size="100GB")
    tokenizer.save_pretrained(out)
    (out / STYLE_FILE).write_bytes(style.to_json())
    lines = (json.dumps(r, sort_keys=True) for r in story.journal.history)
    (out / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    report.write_events(out / "tensorboard", story.journal)
    (out / "README.md").write_text(report.model_card(story.spec, story.info, story.dataset, style), encoding="utf-8")
    (out / "report.html").write_text(
        report.report_page(story.spec, story.info, story.dataset, story.journal), encoding="utf-8"
    )
