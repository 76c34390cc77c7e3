"""Fine-tuning, with a stand-in for ruGPT3: what our method is worth when a model knows the language already.

    python -m benchmarks.transfer               10 minutes of pre-training, 9 fine-tunings of 2 minutes: half an hour
    python -m benchmarks.transfer --quick       2 minutes, 20 seconds each: 5 minutes

``scratch:small`` is pre-trained on fortunes-ru, mixed case, with a tokenizer made from it. Then it is fine-tuned on
the sample channel, which writes in capitals, as bugurt channels do: by the reference method, and by ours with the
case kept and in lower case; each with the best of three learning rates, all for the same time. As with ruGPT3's own
tokenizer, capitals cost more tokens here, and what the model knows, it knows of lower case.

Lower-cased text has one thing less to predict, its capitals. What they would cost is counted against ours: all of a
post's letters are capitals, or they are as they stand; the second kind is charged for every letter, at the share of
letters of the training posts that are capitals.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from typing import Any

from benchmarks._training import Corpus, best_of, model_of, posts_of, split, tokenizer_of, train_ours, train_reference
from benchmarks.common import Row, arguments, report, row, say
from jobs.train.presets import PRESETS

REFERENCE = "reference method"
OUR_RATES = (5e-4, 1e-3, 2e-3)
REFERENCE_RATES = (2e-4, 5e-4, 1e-3)


def case_bits(train: list[str], held_out: list[str]) -> float:
    """Bits a character that the capitals of the held-out posts cost, coded as the module's text says."""

    def letters(text: str) -> tuple[int, int]:
        cased = [c for c in text if c.lower() != c.upper()]
        return len(cased), sum(c == c.upper() for c in cased)

    def all_upper(text: str) -> bool:
        count, upper = letters(text)
        return count == upper

    whole = (sum(map(all_upper, train)) + 1) / (len(train) + 2)
    mixed = [letters(t) for t in train if not all_upper(t)]
    share = (sum(u for _, u in mixed) + 1) / (sum(n for n, _ in mixed) + 2)
    bits = 0.0
    for text in held_out:
        if all_upper(text):
            bits -= math.log2(whole)
            continue
        count, upper = letters(text)
        bits -= math.log2(1 - whole) + upper * math.log2(share) + (count - upper) * math.log2(1 - share)
    return bits / sum(map(len, held_out))


def main() -> None:
    options: Any = arguments(
        __doc__ or "",
        ("--quick", {"action": "store_true", "help": "shorter"}),
        ("--pretrain", {"type": float, "help": "seconds of pre-training, instead of 600 (quick: 120)"}),
        ("--seconds", {"type": float, "help": "of each fine-tuning, instead of 120 (quick: 20)"}),
        ("--clock", {"choices": ("wall", "cpu"), "default": "wall", "help": "cpu: a busy machine's best guess"}),
    )
    clock = time.monotonic if options.clock == "wall" else time.process_time
    pretrain = options.pretrain or (120 if options.quick else 600)
    seconds = options.seconds or (20 if options.quick else 120)

    general, general_held_out = split(posts_of("fortunes"))
    tokenizer = tokenizer_of(general)
    train, held_out = split(posts_of("sample"))
    texts = {
        "keep": (train, held_out),
        "lower": ([t.lower() for t in train], [t.lower() for t in held_out]),
    }
    kept, lower = (Corpus(a, b, tokenizer) for a, b in texts.values())
    tokens = [sum(len(tokenizer(t)["input_ids"]) for t in c.train) for c in (kept, lower)]
    say(f"tokens of the channel: {tokens[0]:,} in capitals, {tokens[1]:,} in lower case")
    found = train_ours(Corpus(general, general_held_out, tokenizer), seconds=pretrain, rate=4e-3, clock=clock)
    say(f"pre-trained: {found[0]:.4f} bits a character of fortunes-ru")
    before = {k: v.detach().clone() for k, v in found[2].state_dict().items()}

    def pretrained(dropout: float, attention: str) -> Any:
        model = model_of(tokenizer, dropout=dropout, attention=attention)
        model.load_state_dict(copy.deepcopy(before))
        return model

    settings = replace(PRESETS["default"][0], early_stopping_patience=None)  # all of the time is used

    def theirs(rate: float) -> tuple[float, ...]:
        made = train_reference(kept, seconds=seconds, rate=rate, model=pretrained(0.1, "eager"), clock=clock)
        say(f"{REFERENCE} at {rate:g}: {made[0]:.4f}")
        return made

    def ours(corpus: Corpus, name: str, extra: float) -> float:
        def one(rate: float) -> tuple[float, ...]:
            model = pretrained(settings.dropout or 0.0, "sdpa")
            made = train_ours(corpus, seconds=seconds, rate=rate, settings=settings, model=model, clock=clock)
            say(f"ours, case = {name}, at {rate:g}: {made[0]:.4f} + {extra:.4f}")
            return made[:2]

        return best_of(OUR_RATES, one)[0] + extra

    peer = best_of(REFERENCE_RATES, theirs)[0]
    rows: list[Row] = []
    for name, corpus, extra in (("keep", kept, 0.0), ("lower", lower, case_bits(train, held_out))):
        bits = ours(corpus, name, extra)
        rows.append(
            row(f"fine-tuned, case = {name}", bits, peer, peer_name=REFERENCE, unit="bits/character", better="lower")
        )
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
