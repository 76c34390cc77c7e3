"""The gates that a drawn post must pass, in their order; the first one that it fails is counted.

======================  ==============================================================================
gate                    what it refuses
======================  ==============================================================================
``ended``               a post that the model did not end by itself within the limit
``clean``               special tokens, broken UTF-8 or control characters inside the text
``length``              fewer or more characters than allowed, or nothing behind the prompt
``form``                another form than the channel's posts have (``jobs.generate.form``)
``pii``                 phone numbers, e-mail addresses, @mentions, links, card numbers
``stop_words``          a word or phrase that the user does not want
``overlap``             a run of more than so many words shared with a training post
``similarity``          a Jaccard similarity of 5-grams with a training post from the threshold on
``near_duplicate``      as ``similarity``, with another post of the batch (``parts`` and ``merge`` apply it)
======================  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.generate.engines import Draw
from jobs.generate.form import FormGate
from jobs.generate.language import Language
from jobs.generate.overlap import Run, fold
from jobs.generate.pii import find_pii
from jobs.generate.prompts import Prompt
from jobs.generate.training import Training
from jobs.specs import GenerateSpec

GATES = (
    "ended",
    "clean",
    "length",
    "form",
    "pii",
    "stop_words",
    "overlap",
    "similarity",
    "near_duplicate",
)
# Everything that is no text: controls but the line break and the tab, surrogates, U+FFFD of broken UTF-8.
_DIRTY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffd\ufffe\uffff]")


@dataclass
class Judged:
    """A drawn post with what the gates found. ``refused``: the gate that refused it, or None; ``values``: what
    each gate measured, as far as it came."""

    draw: Draw
    prompt: Prompt
    text: str
    refused: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    run: Run | None = None
    similarity: float | None = None

    @property
    def score_per_character(self) -> float:
        """The score by which ``rerank`` compares: logarithm of the probability per character of the text."""
        return self.draw.score / max(1, len(self.text))


class Gates:
    """All gates but ``near_duplicate``, which depends on other posts. Safe to use from threads."""

    def __init__(self, spec: GenerateSpec, language: Language, training: Training | None) -> None:
        self._spec, self._language, self._training = spec, language, training
        self._form = FormGate(language.style) if spec.form and language.style is not None else None
        self._stop_words = _stop_words(spec.stop_words)

    def judge(self, prompts: Sequence[Prompt], draws: Sequence[Draw]) -> list[Judged]:
        """Judge the draws of one batch together: the search for shared runs pays by the batch."""
        judged = [self._alone(p, d) for p, d in zip(prompts, draws, strict=True)]
        training = self._training
        if training is None:
            return judged
        left = [j for j in judged if j.refused is None]
        for post, run in zip(left, training.overlaps.longest([j.text for j in left]), strict=True):
            post.run = run
            post.values["overlap"] = run.length
            if run.length > self._spec.max_overlap_words:
                post.refused = "overlap"
        left = [j for j in left if j.refused is None]
        nearest = [j.run.post if j.run else None for j in left]
        for post, similarity in zip(left, training.similarities([j.text for j in left], nearest), strict=True):
            post.similarity = round(similarity, 4)
            post.values["similarity"] = post.similarity
            if similarity >= self._spec.max_similarity:
                post.refused = "similarity"
        return judged

    def _alone(self, prompt: Prompt, draw: Draw) -> Judged:
        """The gates that look at the post alone, cheapest first."""
        spec = self._spec
        text = self._language.text([*prompt.ids, *draw.tokens])
        post = Judged(draw, prompt, text)
        values = post.values
        values["ended"] = draw.ended
        if not draw.ended:
            post.refused = "ended"
            return post
        values["clean"] = not (_DIRTY.search(text) or self._language.has_special(draw.tokens))
        if not values["clean"]:
            post.refused = "clean"
            return post
        values["length"] = len(text)
        if len(text) <= len(prompt.text) or not spec.min_characters <= len(text) <= spec.max_characters:
            post.refused = "length"
            return post
        if self._form is not None:
            values["form"] = self._form.problem(text) or "ok"
            if values["form"] != "ok":
                post.refused = "form"
                return post
        if spec.refuse_pii:
            values["pii"] = len(find_pii(text))
            if values["pii"]:
                post.refused = "pii"
                return post
        if self._stop_words is not None:
            values["stop_words"] = len(self._stop_words.findall(fold(text)))
            if values["stop_words"]:
                post.refused = "stop_words"
        return post


def _stop_words(words: Sequence[str]) -> re.Pattern[str] | None:
    """One pattern for all: whole words and phrases in any case, ``*`` at the end stands for any ending."""
    parts = []
    for word in words:
        pieces = re.findall(r"\w+", fold(word))
        if pieces:
            parts.append(r"[\W_]+".join(map(re.escape, pieces)) + (r"\w*" if word.rstrip().endswith("*") else ""))
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)") if parts else None
