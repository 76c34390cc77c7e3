"""One post of a batch as a record: a line of ``part-NNNNN.jsonl``, a row of ``batch.parquet``.

Fields of a record:

- ``index``: the post's place in the batch, from 0; a place whose post was given up is left out;
- ``text``: the whole post, prompt included, in the channel's case; ``prompt``: as it was given, may be empty;
- ``seed``: of the random stream that the post's part was drawn from; ``attempts``: draws until it was accepted;
- ``tokens``: drawn tokens, end token included; ``ended``: the model ended it by itself;
- ``score``: mean natural logarithm of the drawn tokens' probability, before temperature and truncation;
  ``score_per_character``: their sum divided by the characters of the text;
- ``gates``: what every gate measured; ``overlap_words``, ``overlap``: the longest run of words shared with one
  training post; ``similarity``: Jaccard similarity of character 5-grams with the most alike training post that
  was found; these three are null where there was nothing to compare with;
- ``model``: the model's ``kind/id``.
"""

from __future__ import annotations

import json
from typing import Any

from jobs.generate.parts import Accepted


def record(found: Accepted, *, seed: int, model: str) -> dict[str, Any]:
    """The record of an accepted post."""
    post = found.post
    tokens = len(post.draw.tokens) + post.draw.ended
    return {
        "index": found.index,
        "text": post.text,
        "prompt": post.prompt.given,
        "seed": seed,
        "attempts": found.attempts,
        "tokens": tokens,
        "score": round(post.draw.score / max(1, tokens), 4),
        "score_per_character": round(post.score_per_character, 4),
        "ended": post.draw.ended,
        "gates": post.values,
        "overlap_words": post.run.length if post.run else None,
        "overlap": post.run.text if post.run else None,
        "similarity": post.similarity,
        "model": model,
    }


def to_line(value: dict[str, Any]) -> bytes:
    """A record as a line of JSON Lines."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def parquet_schema() -> Any:
    """The pyarrow schema of ``batch.parquet``: the records' fields, gates as JSON text."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("seed", pa.int64(), nullable=False),
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("score_per_character", pa.float64(), nullable=False),
            pa.field("ended", pa.bool_(), nullable=False),
            pa.field("gates", pa.string(), nullable=False),
            pa.field("overlap_words", pa.int32()),
            pa.field("overlap", pa.string()),
            pa.field("similarity", pa.float64()),
            pa.field("model", pa.string(), nullable=False),
        ]
    )


def parquet_row(value: dict[str, Any]) -> dict[str, Any]:
    """A record as a row of that schema."""
    return {**value, "gates": json.dumps(value["gates"], ensure_ascii=False, sort_keys=True)}
