"""Training: tokens a second, peak memory and held-out bits per character, against the reference method.

    python -m benchmarks.train                  5 minutes a training: 12 of them, an hour
    python -m benchmarks.train --quick          40 seconds a training, and fewer steps for the speed
    python -m benchmarks.train --only speed     or memory, bits

- *speed*: steps of both sides in turn, so that whatever else the machine does falls on both; the median counts. At
  ``scratch:small`` and at the shape of ruGPT3-small, with the dropout that the default preset begins with for each,
  and its soft targets: the first one starts from nothing, the second one is fine-tuned.
- *memory*: peak resident memory of a process that does one step at the shape of ruGPT3-small.
- *bits*: both sides train ``scratch:small`` for the same wall time on the same corpus, with each of three learning
  rates; the best of each counts. Ours keeps the best evaluation, for it has one; the reference has none and ends
  where its time ends; a second row tells what it would come to if it kept its best epoch. Lower is better, and
  neither counts anything that the other does not have to predict, but ours predicts the end of each post besides.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks._training import (
    BLOCK,
    REFERENCE_BATCH,
    REFERENCE_BLOCK,
    RUGPT3_SMALL,
    Corpus,
    best_of,
    chosen_precision,
    gpt2,
    reference_optimizer,
    reference_step,
    train_ours,
    train_reference,
)
from benchmarks.common import Row, arguments, report, row, say
from jobs.train.data import Rows, count_targets
from jobs.train.head import choose_head, use_fused_gelu
from jobs.train.models import SHAPES
from jobs.train.presets import PRESETS, Settings
from jobs.train.soft_targets import training_nats
from jobs.train.surroundings import resident_mib

REFERENCE = "reference method"
OUR_RATES = (5e-4, 1e-3, 2e-3)  # lower than of a cold start: higher ones undo the warm one
REFERENCE_RATES = (1e-3, 2e-3, 4e-3)


def our_step(shape: tuple[int, int, int, int], corpus: Corpus, preset: Settings, precision: str) -> Callable[[], int]:
    """A function that does one step of ours on 1,024 tokens of packed posts; it returns how many it saw.

    ``preset``: its dropout, as it begins, and its soft targets.
    """
    layers, width, heads, vocabulary = shape
    dropout = 0.0 if preset.dropout_after else preset.dropout or 0.0
    model = gpt2(layers, width, heads, vocabulary, dropout=dropout, attention="sdpa")
    use_fused_gelu(model)
    head = choose_head(model, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    blocks = corpus.blocks(corpus.train[:2000])
    nats = training_nats(blocks, vocabulary, preset.soft_targets, head)
    collate = Rows(corpus.tokenizer.pad_token_id)
    count = REFERENCE_BATCH * REFERENCE_BLOCK // BLOCK
    at = 0

    def step() -> int:
        nonlocal at
        chosen = [blocks[(at + i) % len(blocks)] for i in range(count)]
        at += count
        batch = collate(chosen)
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = model(**inputs, use_cache=False).logits.float()  # as accelerate gives them to the Trainer
            loss = nats(hidden, batch) / count_targets(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return sum(len(b.ids) for b in chosen)

    model.train()
    return step


def their_step(shape: tuple[int, int, int, int]) -> Callable[[], int]:
    """As ``our_step``, of the reference method: 8 blocks of 128 tokens."""
    layers, width, heads, vocabulary = shape
    model = gpt2(layers, width, heads, vocabulary, dropout=0.1, attention="eager")
    optimizer = reference_optimizer(model, 1e-4)

    def step() -> int:
        ids = torch.randint(0, vocabulary, (REFERENCE_BATCH, REFERENCE_BLOCK))
        reference_step(model, optimizer, ids)
        return ids.numel()

    model.train()
    return step


def speed(
    name: str, shape: tuple[int, int, int, int], corpus: Corpus, rounds: int, *,
    preset: Settings, goal: float, precision: str,
) -> Row:  # fmt: skip
    """Tokens a second of both, in turn; the reference in float32."""
    sides: dict[str, Callable[[], int]] = {
        "ours": our_step(shape, corpus, preset, precision),
        "theirs": their_step(shape),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, step in sides.items():
            began = time.perf_counter()
            tokens = step()
            if number:  # the first one warms up
                found[side].append(tokens / (time.perf_counter() - began))
    mine, theirs = (statistics.median(found[s]) for s in ("ours", "theirs"))
    return row(
        f"training in {precision}, {name}",
        mine,
        theirs,
        peer_name=REFERENCE,
        unit="tokens/s",
        better="higher",
        at_least=goal,
    )


def memory(precision: str) -> Row:
    """Peak resident memory of both, each in a process of its own."""
    peaks = []
    for side in ("ours", "theirs"):
        code = f"from benchmarks.train import peak; print(peak({side!r}, {precision!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    return row("peak memory, ruGPT3-small", peaks[0], peaks[1], peer_name=REFERENCE, unit="MiB", better="lower")


def peak(side: str, precision: str) -> float:
    """MiB that this process has held at most after two steps."""
    corpus = Corpus.named("sample")
    tuned = PRESETS["default"][0]
    step = our_step(RUGPT3_SMALL, corpus, tuned, precision) if side == "ours" else their_step(RUGPT3_SMALL)
    step()
    step()
    return resident_mib()


def bits(name: str, seconds: float, clock: Callable[[], float], precision: str) -> list[Row]:
    """Held-out bits a character of both after the same time."""
    corpus = Corpus.named(name)
    kept: list[float] = []  # the reference's best epochs, one for each rate

    def ours(rate: float) -> tuple[float, ...]:
        found = train_ours(corpus, seconds=seconds, rate=rate, clock=clock, precision=precision)
        say(f"{name}: ours in {precision} at {rate:g}: {found[0]:.4f} bits a character, {found[1]:,.0f} tokens/s")
        return found[:2]

    def theirs(rate: float) -> tuple[float, ...]:
        found = train_reference(corpus, seconds=seconds, rate=rate, clock=clock)
        said = f"{found[0]:.4f} bits a character at the end, {found[2]:.4f} at its best, {found[1]:,.0f} tokens/s"
        say(f"{name}: {REFERENCE} at {rate:g}: {said}")
        kept.append(found[2])
        return found

    what = f"held out, {name}, {seconds:.0f} s"
    best, peer = best_of(OUR_RATES, ours)[0], best_of(REFERENCE_RATES, theirs)[0]
    unit = "bits/character"
    return [
        # A tenth fewer bits.
        row(what, best, peer, peer_name=REFERENCE, unit=unit, better="lower", at_least=1 / 0.9),
        row(what, best, min(kept), peer_name=f"{REFERENCE}, if it kept its best epoch", unit=unit, better="lower"),
    ]


def main() -> None:
    options: Any = arguments(
        __doc__ or "",
        ("--quick", {"action": "store_true", "help": "shorter"}),
        ("--seconds", {"type": float, "help": "of each training, instead of 300 (quick: 40)"}),
        ("--only", {"choices": ("speed", "memory", "bits"), "help": "one part"}),
        ("--corpora", {"default": "fortunes,sample", "help": "for the bits"}),
        (
            "--precision",
            {"choices": ("auto", "fp32", "bf16"), "default": "auto", "help": "ours; the reference's: fp32"},
        ),
        ("--clock", {"choices": ("wall", "cpu"), "default": "wall", "help": "cpu: a busy machine's best guess"}),
    )
    clock = time.monotonic if options.clock == "wall" else time.process_time
    precision = chosen_precision(options.precision)
    rows: list[Row] = []
    if options.only in (None, "speed"):
        corpus = Corpus.named("fortunes")
        rounds = 8 if options.quick else 30
        tuned, scratch = PRESETS["default"]
        rows.append(
            speed(
                "scratch:small", (*SHAPES["small"], 8192), corpus, rounds, preset=scratch, goal=1.2, precision=precision
            )
        )
        rounds = 2 if options.quick else 9
        rows.append(
            speed("ruGPT3-small's shape", RUGPT3_SMALL, corpus, rounds, preset=tuned, goal=1.1, precision=precision)
        )
    if options.only in (None, "memory"):
        rows.append(memory(precision))
    if options.only in (None, "bits"):
        seconds = options.seconds or (40 if options.quick else 300)
        for name in options.corpora.split(","):
            rows += bits(name, seconds, clock, precision)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
