"""What a training tells of itself: the model card, ``report.html`` with curves, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.html import Markup, columns, details, facts, line_chart, link, page, preformatted, section, table
from jobs.specs import TrainSpec
from jobs.style import Style
from jobs.train.journal import Journal

#: journal names -> TensorBoard tags
TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "eval_loss": "held_out/loss",
    "bits_per_character": "held_out/bits_per_character",
}
EVENTS = "events.out.tfevents.0000000000.bugurt"


def write_events(folder: Path, journal: Journal) -> None:
    """Write the curves as TensorBoard events. Their clock is the step, so that equal trainings give equal files."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / EVENTS).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        for record in journal.history:
            values = [Summary.Value(tag=tag, simple_value=record[name]) for name, tag in TAGS.items() if name in record]
            step = int(record["step"])
            event = Event(wall_time=float(step), step=step, summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.flush()


def _headline(info: Mapping[str, Any]) -> dict[str, object]:
    return {
        "held-out bits per character": round(info["bits_per_character"], 3),
        "held-out loss (nats a token)": round(info["best_loss"], 3),
        "best step": info["best_step"],
        "parameters": info["parameters"],
        "precision": info["precision"],
        "layout": info["layout"],
    }


def _training_curve(info: Mapping[str, Any]) -> str:
    """What the training's loss is called: against soft targets it is no measure of the posts alone."""
    return "training, soft targets" if info["settings"].get("soft_targets") else "training"


def report_page(spec: TrainSpec, info: Mapping[str, Any], dataset: Mapping[str, int | float], journal: Journal) -> str:
    """``report.html``."""
    kept = {k.replace("_", " "): dataset[k] for k in sorted(dataset)}
    settings = [(k.replace("_", " "), v) for k, v in sorted(info["settings"].items()) if v is not None]
    origin = link(f"../../{info['dataset']}/report.html", info["dataset"])
    return page(
        f"Training of {info['name']}",
        section("Result", facts(_headline(info))),
        section(
            "Curves",
            columns(
                line_chart(
                    {_training_curve(info): journal.curve("loss"), "held out": journal.curve("eval_loss")},
                    x_label="step",
                    y_label="nats a token",
                    title="Loss",
                ),
                line_chart(
                    {"held out": journal.curve("bits_per_character")},
                    x_label="step",
                    y_label="bits",
                    title="Bits per character",
                ),
                line_chart(
                    {"learning rate": journal.curve("learning_rate")},
                    x_label="step",
                    y_label="",
                    title="Learning rate",
                ),
                line_chart(
                    {"norm": journal.curve("grad_norm")}, x_label="step", y_label="", title="Norm of the gradients"
                ),
            ),
        ),
        section("Data", Markup(f"<p>The dataset is {origin}.</p>"), facts(kept)),
        section(
            "Settings",
            table(("setting", "value"), settings),
            details(
                "the spec as it was given",
                preformatted(json.dumps({**spec.identity(), **spec.inputs()}, indent=1, sort_keys=True)),
            ),
        ),
    )


def model_card(spec: TrainSpec, info: Mapping[str, Any], dataset: Mapping[str, int | float], style: Style) -> str:
    """``README.md``: what the model is, from what, how good, and what it is not."""
    settings = info["settings"]
    shown = {k: v for k, v in settings.items() if v is not None}
    case = "lower case; generation restores capitals" if style.case == "lower" else "its own case"
    counts = "\n".join(f"| {name.replace('_', ' ')} | {value:,} |" for name, value in sorted(dataset.items()))
    rows = "\n".join(f"| {name} | {value} |" for name, value in sorted(shown.items()))
    adapter = (
        "\n\nThe LoRA adapter is merged into the weights, and kept beside them in `adapter/`." if spec.lora else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [bugurt, causal-lm]
---

# {info["name"]}, trained on a channel's posts

A causal language model that writes posts in the style of one Telegram channel. It started from
`{info["base"]}` and was trained on `{info["dataset"]}` (profile `{style.profile}`, text in {case}).{adapter}

| held out | |
|---|---|
| bits per character | {info["bits_per_character"]:.4f} |
| loss, nats a token | {info["best_loss"]:.4f} |
| best step | {info["best_step"]} |

These are the weights with the lowest held-out loss. Bits per character do not depend on the tokenizer, so they can
be compared between models on the same held-out posts. The curves are in `report.html`, `metrics.jsonl` and
`tensorboard/`.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
begin = tokenizer("", add_special_tokens=False, return_tensors="pt")
ids = model.generate(inputs=None, max_new_tokens=200)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

A post begins with token {style.bos_token_id} and ends with token {style.eos_token_id}; `style.json` says the rest.

## Data

| | |
|---|---|
{counts}

## Settings

Preset `{spec.preset}`, seed {spec.seed}, precision {info["precision"]}, posts {info["layout"]}.

| | |
|---|---|
{rows}

## Limits

- It imitates form and vocabulary. What it states is invented, about real people too; do not publish it as fact.
- It can repeat training posts, more so the fewer there were; the generate stage measures the longest overlap of each
  post and refuses near-copies.
- It knows one channel's voice, with that channel's prejudices and insults, and nothing filters them out.
- Whoever trains on a channel's posts needs the right to do so; this model carries no licence of its own.
- Held-out posts are of the same channel; on other text it is worse than the number above says.
"""
