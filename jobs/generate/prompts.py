"""What posts begin with: nothing, given beginnings, lines of a file, or openings drawn from the training posts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.specs import DataError, GenerateSpec, SpecError

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore
    from jobs.generate.language import Language
    from jobs.generate.training import Training

MAX_FILE = 16 * 1024 * 1024  # bytes of a prompts file
OPENING_WORDS = 4  # at most so many words of a training post


@dataclass(frozen=True)
class Prompt:
    """A beginning: ``given`` as the user wrote it, ``ids``: the framed tokens that the model sees, ``text``: these
    as a post's text would show them."""

    given: str
    ids: tuple[int, ...]
    text: str


class Prompts:
    """The prompt of every post, by the post's index alone."""

    def __init__(self, given: Sequence[str], language: Language, spec: GenerateSpec) -> None:
        """``given``: beginnings used in turn; ``[""]`` for none. Raises SpecError as ``framed`` does."""
        self._all = [framed(text, language, spec) for text in given]

    def __getitem__(self, index: int) -> Prompt:
        return self._all[index % len(self._all)]

    def all(self) -> list[Prompt]:
        """The different prompts, for checks before anything is drawn."""
        return self._all


class Openings(Prompts):
    """The first one to ``OPENING_WORDS`` words of a training post, drawn by the seed and the post's index."""

    def __init__(self, training: Training, language: Language, spec: GenerateSpec) -> None:
        self._openings = training.openings(OPENING_WORDS)
        self._language, self._spec = language, spec
        if not self._openings:
            raise DataError("openings: the model's dataset has no training posts to draw from")

    def __getitem__(self, index: int) -> Prompt:
        digest = hashlib.sha256(f"opening/{self._spec.seed}/{index}".encode()).digest()
        line = self._openings[int.from_bytes(digest[:8], "big") % len(self._openings)]
        words = line.split()
        count = 1 + int.from_bytes(digest[8:12], "big") % min(OPENING_WORDS, len(words))
        return framed(" ".join(words[:count]), self._language, self._spec)

    def all(self) -> list[Prompt]:
        """Openings are short and the posts' own: nothing to check."""
        return []


def framed(text: str, language: Language, spec: GenerateSpec) -> Prompt:
    """A prompt as the model was trained. Raises SpecError when it has no token or leaves no room for a post."""
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    ids = language.frame(laid_out(text, language.style.separator if language.style else None))
    if not ids:
        raise SpecError("the model has no begin token (bos_token_id), so it needs a beginning: give prompts")
    high = max(ids)
    if high >= language.vocab_size:
        raise DataError(f"the tokenizer has a token {high}, but the model knows only {language.vocab_size} tokens")
    if language.context is not None and len(ids) >= language.context:
        raise SpecError(
            f"the prompt {shown!r} has {len(ids)} tokens, but the model's context holds {language.context};"
            " shorten it so that a post has room"
        )
    return Prompt(text, tuple(ids), language.text(ids))


def laid_out(text: str, separator: str | None) -> str:
    """The prompt's line structure as in training: ``\\n`` is a line break, a separator has a line of its own."""
    text = text.replace("\\n", "\n").replace("\r\n", "\n")
    if separator:
        mark = re.escape(separator)
        text = re.sub(rf"(?:(?<=\s)|^){mark}(?=\s|$)", f"\n{separator}\n", text)
        text = re.sub(r"[ \t]*\n[ \t\n]*", "\n", text)
    return text.strip(" \t").lstrip("\n")


def read_prompts(store: ArtifactStore, ref: str) -> list[str]:
    """The beginnings in a source artefact's text file, one a line; empty lines are left out.

    Raises DataError when there is no such file, when it is no UTF-8 text or when it holds no beginning.
    """
    manifest = store.manifest(ref)
    if len(manifest.files) != 1:
        raise DataError(f"prompts_file: {ref} has {len(manifest.files)} files; give one text file, one prompt a line")
    name = str(manifest.info.get("name", manifest.files[0].path))
    try:
        text = store.read(ref, manifest.files[0], max_size=MAX_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"prompts_file: {name} is not UTF-8 text") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"prompts_file: {name} has no prompt in it; write one a line")
    return lines


def open_prompts(spec: GenerateSpec, store: ArtifactStore, language: Language, training: Training | None) -> Prompts:
    """The prompts that the spec asks for. Raises SpecError or DataError when they cannot be used."""
    if spec.openings:
        if training is None:
            raise DataError("openings: the dataset that the model was trained on is not in the bucket")
        return Openings(training, language, spec)
    given = read_prompts(store, spec.prompts_file) if spec.prompts_file else (list(spec.prompts) or [""])
    prompts = Prompts(given, language, spec)
    if training is not None:
        runs = training.overlaps.longest([p.given for p in prompts.all()])
        for prompt, run in zip(prompts.all(), runs, strict=True):
            if run.length > spec.max_overlap_words:
                raise SpecError(
                    f"the prompt {prompt.given[:60]!r} shares a run of more than {spec.max_overlap_words} words with a"
                    " training post, so every post would be refused: shorten it, or raise max_overlap_words"
                )
    return prompts
