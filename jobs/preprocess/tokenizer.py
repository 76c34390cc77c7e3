"""The dataset's tokenizer: the base model's own, or a byte-level BPE made from the train posts for scratch models."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.specs import ConfigError, DataError, PreprocessSpec, SpecError

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore

SCRATCH = "scratch:"
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
#: Files of a model artefact that make its tokenizer.
FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens*",
    "added_tokens*",
    "config.json",
    "*.model",
    "chat_template*",
)


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A tokenizer folder that AutoTokenizer can load, and its numbers."""

    folder: Path
    source: str
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    vocab_size: int

    @property
    def file(self) -> Path:
        """The ``tokenizers`` library's own file."""
        return self.folder / "tokenizer.json"


def is_scratch(spec: PreprocessSpec) -> bool:
    """Whether the tokenizer is made from the posts. Raises SpecError for a scratch model without a size."""
    if spec.base_model is not None or not spec.model.startswith(SCRATCH):
        return False
    if not spec.model.removeprefix(SCRATCH):
        raise SpecError("model: write scratch:SIZE, as in scratch:tiny")
    return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Have the ``tokenizers`` library work in the thread that calls it, and as before afterwards."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


#: How often two tokens must follow each other to become one. What is rarer is no token that a model could learn: on a
#: channel of 95,000 characters 2 gave a vocabulary of 6,047, and ``scratch:small`` came to more held-out bits with it
#: than with the 1,403 that 10 gives; on two million characters of fortunes-ru both fill a vocabulary of 8,192.
LEAST_PAIRS = 10

#: A trainer takes time quadratic in the length of a word; what is longer than this is no word to learn from.
_ENDLESS = re.compile(r"\S{65,}|\s{65,}")


def train_bpe(texts: Iterable[list[str]], vocab_size: int, folder: Path, source: str) -> TokenizerInfo:
    """Make a byte-level BPE of at most ``vocab_size`` tokens; there are fewer when no more pairs are frequent enough.

    Every text comes back unchanged from it: it has all bytes, no normaliser, and adds no space. ``texts`` comes
    in lists. The same texts give the same tokenizer, in any order and with any number of threads.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_PAIRS,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(([_ENDLESS.sub(" ", t) for t in part] for part in texts), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = {
        **SPECIAL,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        # A post that holds "</s>" means these characters, not the token.
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(
        json.dumps(SPECIAL, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    ids = {name: list(SPECIAL.values()).index(token) for name, token in SPECIAL.items()}  # they come first
    return TokenizerInfo(
        folder,
        source,
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
        vocab_size=tokenizer.get_vocab_size(),
    )


def load_pretrained(spec: PreprocessSpec, store: ArtifactStore, scratch: Path, folder: Path) -> TokenizerInfo:
    """The tokenizer of ``spec.base_model`` or of the hub's ``spec.model``, saved to ``folder``.

    Raises ConfigError when it cannot be had, DataError when the base model has none.
    """
    if spec.base_model is not None:
        source = spec.base_model
        store.download(spec.base_model, scratch, *FILES)
        if not any(scratch.iterdir() if scratch.is_dir() else ()):
            raise DataError(f"{spec.base_model} has no tokenizer files; mirror the model again")
        tokenizer = _auto_tokenizer(str(scratch), None, source)
    else:
        source = spec.model
        tokenizer = _auto_tokenizer(spec.model, spec.revision, source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"{source} has no fast tokenizer (tokenizer.json); choose a model that has one")
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    begin, end = (end if begin is None else begin), (begin if end is None else end)
    if begin is None or end is None:
        raise ConfigError(f"the tokenizer of {source} has neither a begin nor an end token; posts cannot be framed")
    tokenizer.save_pretrained(str(folder))
    _forget_origin(folder / "tokenizer_config.json")
    return TokenizerInfo(
        folder,
        source,
        bos_token_id=int(begin),
        eos_token_id=int(end),
        pad_token_id=int(end if pad is None else pad),
        vocab_size=len(tokenizer),
    )


def _auto_tokenizer(name: str, revision: str | None, source: str) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    options = {} if revision is None else {"revision": revision}
    try:
        return AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False, **options)
    except Exception as error:  # a dozen kinds, by what is missing: network, name, token, files, packages
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"cannot load the tokenizer of {source}: check the name and revision, the network and HF_TOKEN, or "
            f"mirror the model into the bucket and name that ({type(error).__name__}: {reason})"
        ) from error


def _forget_origin(path: Path) -> None:
    """Take out where the tokenizer was loaded from: a temporary folder here, another one next time."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return
    for name in ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "is_local", "local_files_only"):
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


_JOINED = 16  # pieces that are encoded in one go; the tokenizer is slower on longer texts
_CACHED = 400_000  # pieces
_CACHED_CHARACTERS = 16_000_000  # of them: a post can be one word of a megabyte
_CUT = "\x1f"  # white space to str.split, so that no text whose words stand apart has it

Ids = NDArray[np.int32]


class Encoder:
    """Texts to token ids, without frame; special tokens that are written out in a text are text."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._newline = self._plain(["\n"])[0]
        self._by_pieces = (
            splits_at_words(json.loads(file.read_text(encoding="utf-8")))
            and len(self._newline) == 1
            and self.decode(self._newline.tolist()) == "\n"  # and not what stands for all that is unknown
        )
        self._forget()

    def _forget(self) -> None:
        """Begin without any known piece but the line break."""
        self._characters = 0  # of the known pieces
        self._known = {"\n": 0}  # the number of each piece; its ids lie in ``_ids`` from ``_starts`` on
        self._ids = self._newline
        self._starts = np.array([0, len(self._newline)], np.int64)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        flat, sizes = self.encode_flat(texts)
        return [ids.tolist() for ids in np.split(flat, np.cumsum(sizes)[:-1])] if texts else []

    def encode_flat(self, texts: list[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Ids of the texts, one after the other, and how many each text has.

        GPT-2's kind of tokenizer cuts before a space and around a line break that stand between words, whatever
        the words are. So a word needs to be encoded only once, which is several times as fast, and the same.
        """
        apart = [self._by_pieces and _words_apart(t) for t in texts]
        quick = [t for t, yes in zip(texts, apart, strict=True) if yes]
        flat, sizes = self._by_words(quick)
        if len(quick) == len(texts):
            return flat, sizes
        words = iter(np.split(flat, np.cumsum(sizes)[:-1]))
        plain = iter(self._plain([t for t, yes in zip(texts, apart, strict=True) if not yes]))
        parts = [next(words if yes else plain) for yes in apart]
        return np.concatenate(parts), np.array([len(p) for p in parts], np.int64)

    def _by_words(self, texts: list[str]) -> tuple[Ids, NDArray[np.int64]]:
        """As ``encode_flat``, for texts whose words stand apart."""
        if not texts:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        marked = _CUT.join(texts).replace(" ", _CUT + " ").replace("\n", f"{_CUT}\n{_CUT}")
        pieces = marked.split(_CUT)
        self._learn(set(pieces))
        numbers = np.fromiter(map(self._known.__getitem__, pieces), np.int64, len(pieces))
        counts = np.fromiter((t.count(" ") + 2 * t.count("\n") + 1 for t in texts), np.int64, len(texts))
        begins, lengths = self._starts[numbers], self._starts[numbers + 1] - self._starts[numbers]
        ends = np.cumsum(lengths)
        flat = self._ids[np.repeat(begins - ends + lengths, lengths) + np.arange(ends[-1])]
        return flat, np.diff(ends[np.cumsum(counts) - 1], prepend=0)

    def _learn(self, pieces: set[str]) -> None:
        """Encode pieces that are not known yet, many in one text, with line breaks between them."""
        if len(self._known) > _CACHED or self._characters > _CACHED_CHARACTERS:
            self._forget()
        new = sorted(pieces - self._known.keys())
        if not new:
            return
        groups = ["\n".join(new[n : n + _JOINED]) + "\n" for n in range(0, len(new), _JOINED)]
        ids = np.concatenate(self._plain(groups))
        breaks = np.flatnonzero(ids == self._newline[0])
        # Without the line breaks the pieces lie one after the other; the n-th ends where n of them were left out.
        self._starts = np.concatenate([self._starts, len(self._ids) + breaks - np.arange(len(breaks))])
        self._ids = np.concatenate([self._ids, np.delete(ids, breaks)])
        self._characters += sum(map(len, new))
        self._known.update(zip(new, range(len(self._known), len(self._known) + len(new)), strict=True))

    def _plain(self, texts: list[str]) -> list[Ids]:
        return [np.array(e.ids, np.int32) for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def line_ends(self, size: int) -> NDArray[np.bool_]:
        """For each of the vocabulary's ``size`` tokens whether its text ends in a line break."""
        return np.array([self._tokenizer.decode([n], skip_special_tokens=False).endswith("\n") for n in range(size)])


def _words_apart(text: str) -> bool:
    """Whether the words stand apart by exactly one space or line break each, with none at the ends."""
    # U+180E was white space in older Unicode, and is to some tokenizers
    return bool(text) and " ".join(text.split()) == text.replace("\n", " ") and "\u180e" not in text


def splits_at_words(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) cuts as GPT-2 does: by its regular expression and nothing else."""
    cutter = tokenizer.get("pre_tokenizer") or {}
    model = tokenizer.get("model") or {}
    return (
        tokenizer.get("normalizer") is None
        and cutter.get("type") == "ByteLevel"
        and cutter.get("add_prefix_space") is False
        and cutter.get("use_regex", True) is True
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and all(token.get("special") for token in tokenizer.get("added_tokens", ()))
    )


@lru_cache(maxsize=2)
def encoder(file: Path) -> Encoder:
    """The encoder of a file, loaded once a process."""
    return Encoder(file)
