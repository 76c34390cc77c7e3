"""A model's own words: its tokenizer, frame, end tokens, context and style, read from the artefact's files.

Needs neither torch nor transformers: ``tokenizer.json`` is read by the tokenizers library, and older models that
have only ``vocab.json`` and ``merges.txt`` (ruGPT3) get the byte-level BPE that these files describe.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.specs import DataError, load_json
from jobs.style import STYLE_FILE, Style

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: What this module reads; weights are fetched apart, by the engine that needs them.
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    STYLE_FILE,
)
_SPACES_BEFORE_BREAK = re.compile(r"[ \t]+(?=\n)|[ \t]+$")


@dataclass(frozen=True)
class Language:
    """How text becomes tokens for a model, and back.

    ``vocab_size``: tokens that the model can say; ``context``: longest sequence in tokens, or None where the
    architecture sets no limit; ``begin``: token that a post begins with; ``ends``: tokens that end a post;
    ``special``: ids that are no text; ``style``: how the dataset was framed, None for a model not trained here.
    """

    tokenizer: Tokenizer
    config: dict[str, Any]
    vocab_size: int
    context: int | None
    begin: int | None
    ends: tuple[int, ...]
    special: frozenset[int]
    style: Style | None

    @property
    def restores(self) -> bool:
        """Whether the output gets another case than the model writes."""
        return self.style is not None and self.style.restore != "none"

    def frame(self, prompt: str) -> list[int]:
        """The tokens that a post with this beginning starts with: begin token, then the prompt as in training."""
        text = self.style.training_text(prompt) if self.style else prompt
        ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return [*([self.begin] if self.begin is not None else []), *ids]

    def text(self, ids: list[int]) -> str:
        """The text of tokens, in the case that the channel writes, without spaces at the ends."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        text = _SPACES_BEFORE_BREAK.sub("", text).strip()
        return self.style.restored(text) if self.style else text

    def has_special(self, ids: list[int]) -> bool:
        """Whether a token that is no text (padding, unknown, begin) lies among these."""
        return not self.special.isdisjoint(ids)

    def tokens(self) -> list[str]:
        """The name of every token of the model, in the order of ids; all different."""
        names = {i: t for t, i in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        taken = set(names.values())
        found = []
        for number in range(self.vocab_size):
            name = names.get(number)
            if name is None:  # the model has more rows than the tokenizer has tokens
                name = f"<extra-{number}>"
                while name in taken:
                    name += "_"
            found.append(name)
        return found


def read_language(folder: Path, ref: str) -> Language:
    """Read a model's text files from ``folder``. Raises DataError, naming ``ref`` and the file."""
    config = _json(folder / "config.json", ref)
    if config is None:
        raise DataError(f"{ref} has no config.json: it is no causal language model")
    generation = _json(folder / "generation_config.json", ref) or {}
    style_file = folder / STYLE_FILE
    style = Style.from_json(style_file.read_bytes(), f"{ref}/{STYLE_FILE}") if style_file.is_file() else None
    tokenizer = _tokenizer(folder, ref)
    inner = config.get("text_config") or config
    vocab_size = inner.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise DataError(f"{ref}/config.json has no vocab_size")
    named = _json(folder / "tokenizer_config.json", ref) or {}
    named = {**(_json(folder / "special_tokens_map.json", ref) or {}), **named}

    def one(name: str) -> int | None:
        ids = many(name)
        return ids[0] if ids else None

    def many(name: str) -> list[int]:
        """Ids by the most specific source that has them: style, generation config, tokenizer, config."""
        token = named.get(name.removesuffix("_id"))
        token = token.get("content") if isinstance(token, dict) else token
        by_name = tokenizer.token_to_id(token) if isinstance(token, str) else None
        for value in (getattr(style, name, None), generation.get(name), by_name, inner.get(name), config.get(name)):
            ids = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int) and v < vocab_size]
            if ids:
                return ids
        return []

    ends = tuple(dict.fromkeys(many("eos_token_id")))
    if not ends:
        raise DataError(
            f"{ref} has no end token (eos_token_id in config.json or generation_config.json), so a post could never"
            " end; train the model on a dataset first"
        )
    begin = one("bos_token_id")
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    special |= {i for i in (begin, one("pad_token_id")) if i is not None}
    context = next(
        (inner[k] for k in ("n_positions", "max_position_embeddings", "n_ctx") if isinstance(inner.get(k), int)), None
    )
    return Language(
        tokenizer=tokenizer,
        config=config,
        vocab_size=vocab_size,
        context=context,
        begin=begin,
        ends=ends,
        special=frozenset(special - set(ends)),
        style=style,
    )


def _json(path: Path, ref: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = load_json(path.read_bytes())
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair, which JSON can spell, is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{ref}/{path.name} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{ref}/{path.name} is not a JSON object")
    return found


def _tokenizer(folder: Path, ref: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _byte_level_bpe(folder, ref)
        else:
            raise DataError(f"{ref} has no tokenizer.json, nor vocab.json and merges.txt")
    except DataError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise DataError(f"{ref}: the tokenizer cannot be read: {' '.join(str(error).split())[:200]}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A prompt that happens to hold "</s>" is text and must not become an end token.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_level_bpe(folder: Path, ref: str) -> Tokenizer:
    """The tokenizer of GPT-2's file format, as transformers' GPT2Tokenizer reads it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    settings = _json(folder / "tokenizer_config.json", ref) or {}
    named = {**(_json(folder / "special_tokens_map.json", ref) or {}), **settings}
    bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    added = _json(folder / "added_tokens.json", ref) or {}
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, _ in sorted(added.items(), key=lambda item: item[1])])
    special = []
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "additional_special_tokens"):
        values = named.get(name)
        for value in values if isinstance(values, list) else [values]:
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and tokenizer.token_to_id(text) is not None:
                special.append(AddedToken(text, special=True, normalized=False))
    tokenizer.add_special_tokens(special)
    return tokenizer
