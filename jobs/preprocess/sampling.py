"""What is measured on a sample of the posts: languages, and how many tokens capitals cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.preprocess.corpus import Ints
from jobs.preprocess.measure import share
from jobs.preprocess.rules_select import language_detector
from jobs.preprocess.tokenizer import encoder

if TYPE_CHECKING:
    from jobs.preprocess.gather import Corpus

SAMPLE = 500  # posts
MOST_CHARACTERS = 1000  # of a post
MIN_SCORE = 0.3


def sample_texts(corpus: Corpus, kept: Ints) -> list[str]:
    """Texts of evenly spread posts."""
    places = np.unique(np.linspace(0, len(kept) - 1, min(SAMPLE, len(kept))).round().astype(np.int64))
    rows = corpus.rows.part(kept[places])
    return [t[:MOST_CHARACTERS] for piece in rows.pieces(SAMPLE) for t in rows.part(piece).texts()]


def language_shares(texts: list[str]) -> list[tuple[str, float]]:
    """(ISO 639 code, share) by frequency; ``?`` for posts that do not tell."""
    detect = language_detector()
    counts: Counter[str] = Counter()
    for text in texts:
        language, score = detect(text)
        counts[language if language and score >= MIN_SCORE else "?"] += 1
    return [(name, share(count, len(texts))) for name, count in sorted(counts.items(), key=lambda i: (-i[1], i[0]))]


@dataclass(frozen=True, slots=True)
class EconomyTask:
    """Texts, and the file of the tokenizer."""

    texts: list[str]
    tokenizer: Path


def token_economy(task: EconomyTask) -> dict[str, float]:
    """Tokens a character of the texts as they are, in lower case and in capitals."""
    texts = task.texts
    encode = encoder(task.tokenizer).encode_flat
    forms = {"as written": texts, "lower case": [t.lower() for t in texts], "capitals": [t.upper() for t in texts]}
    return {name: share(int(encode(form)[1].sum()), max(1, sum(map(len, form)))) for name, form in forms.items()}
