"""The style of a dataset: what ``style.json`` says, so that generation can frame, restore and gate posts.

preprocess measures and writes it, train copies it beside the model, generate reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.specs import DataError, describe

STYLE_FILE = "style.json"

#: Quantiles that ``Form`` gives, as the keys of its mappings.
QUANTILES: tuple[float, ...] = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def quantile_key(q: float) -> str:
    """The key of a quantile: 0.05 is ``p05``, 1 is ``p100``."""
    return f"p{round(q * 100):02d}"


class Form(BaseModel):
    """The measured form of the training posts (cleaned, original case).

    The mappings give quantiles by ``p00 p01 p05 p25 p50 p75 p95 p99 p100``; shares lie between 0 and 1.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    posts: int = Field(ge=0, description="how many posts were measured")
    characters: Mapping[str, float] = Field(description="characters a post")
    lines: Mapping[str, float] = Field(description="lines a post, separators included")
    segments: Mapping[str, float] = Field(description="parts between separator lines; 1 without separators")
    line_characters: Mapping[str, float] = Field(description="characters a line, separators left out")
    tokens: Mapping[str, float] = Field(description="tokens a post, frame included")
    separator_share: float = Field(ge=0, le=1, description="posts with a separator line")
    upper_share: float = Field(ge=0, le=1, description="capitals among cased letters")
    upper_posts: float = Field(ge=0, le=1, description="posts of which at least nine letters in ten are capitals")
    multiline_share: float = Field(ge=0, le=1, description="posts of more than one line")
    letter_share: float = Field(ge=0, le=1, description="letters among characters that are not spaces")
    language: str | None = Field(None, description="most frequent language (ISO 639), None when not measured")


class Style(BaseModel):
    """How text becomes tokens of this dataset, and what its posts look like.

    Training text is the post in ``case``; a post's tokens are ``bos_token_id``, the text's tokens,
    ``eos_token_id``. A post longer than a block is split: a piece that continues has no begin token, a piece
    that is continued no end token.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    profile: str = Field(description="the profile's name")
    case: Literal["keep", "lower"] = Field(description="the case of the training text")
    restore: Literal["none", "upper"] = Field(description="what generation does to the case of its output")
    separator: str | None = Field(None, description="the line that parts a post's segments")
    bos_token_id: int = Field(ge=0)
    eos_token_id: int = Field(ge=0)
    pad_token_id: int = Field(ge=0)
    vocab_size: int = Field(ge=1, description="tokens of the tokenizer, added ones included")
    block_size: int = Field(ge=1)
    tokenizer: str = Field("", description="where the tokenizer is from: a hub name, an artefact, scratch:SIZE")
    form: Form

    def training_text(self, text: str) -> str:
        """A text (a prompt) as the model saw such texts in training."""
        return text.lower() if self.case == "lower" else text

    def restored(self, text: str) -> str:
        """A generated text in the case that the channel writes."""
        return text.upper() if self.restore == "upper" else text

    def to_json(self) -> bytes:
        """The bytes of ``style.json``."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes | str, where: str = STYLE_FILE) -> Style:
        """Read ``style.json``; raises DataError, naming ``where``, when it is not one."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise DataError(describe(error, f"{where} is no style of a dataset")) from error
