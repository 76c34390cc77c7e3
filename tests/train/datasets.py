"""Small datasets in the contract's form, made without the preprocess stage."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jobs.artifacts import ArtifactStore
from jobs.similarity import normalise
from jobs.style import QUANTILES, STYLE_FILE, Form, Style, quantile_key
from jobs.train.data import Blocks

SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>")

_WHO = ("кот", "дед", "сосед", "бабушка", "студент", "дворник", "начальник", "чайник", "голубь", "вахтёр")
_WHAT = ("несёт", "ищет", "продаёт", "прячет", "чинит", "варит", "хвалит", "делит", "красит", "теряет")
_THING = ("борщ", "диван", "лыжи", "самовар", "отчёт", "зонт", "пирог", "шкаф", "тапки", "огурец")
_WHERE = ("на даче", "в лифте", "под мостом", "на балконе", "в гостях", "у подъезда", "в очереди", "на крыше")
_END = ("все рады", "никто не понял", "опять дождь", "вечер удался", "соседи хлопают", "чай остыл")


def invented_posts(count: int, seed: int = 0) -> list[str]:
    """Posts of a made-up channel: lines parted by ``@``, lower case."""
    draw = random.Random(seed)

    def line() -> str:
        return " ".join(draw.choice(words) for words in (_WHO, _WHAT, _THING, _WHERE))

    return ["\n@\n".join([line() for _ in range(draw.randint(1, 4))] + [draw.choice(_END)]) for _ in range(count)]


def byte_bpe(texts: Sequence[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as preprocess makes one for scratch models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[2]
    )


def pack(pieces: Sequence[list[int]], block_size: int) -> list[tuple[list[int], list[int]]]:
    """First fit in order: (token ids, lengths) of blocks of at most ``block_size`` tokens."""
    blocks: list[tuple[list[int], list[int]]] = []
    for post in pieces:
        for start in range(0, len(post), block_size):
            piece = post[start : start + block_size]
            if len(piece) < 2:
                continue
            if not blocks or len(blocks[-1][0]) + len(piece) > block_size:
                blocks.append(([], []))
            blocks[-1][0].extend(piece)
            blocks[-1][1].append(len(piece))
    return blocks


def blocks_of(posts: Sequence[str], vocabulary: int = 300) -> tuple[Blocks, int]:
    """Framed posts in blocks of 64 tokens, and how many tokens there are."""
    tokenizer = byte_bpe(posts, vocabulary)
    ids = [[0, *tokenizer(p, add_special_tokens=False)["input_ids"], 1] for p in posts]
    return Blocks.from_lists(pack(ids, 64)), len(tokenizer)


def _parquet(table: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, compression="zstd")
    return sink.getvalue()


def make_dataset(
    store: ArtifactStore,
    posts: Sequence[str] | None = None,
    *,
    held_out: Sequence[str] | None = None,
    tokenizer: Any = None,
    block_size: int = 64,
    vocab_size: int = 512,
    case: str = "keep",
    name: str = "tests",
) -> str:
    """Commit a dataset; returns its ``dataset/ID``."""
    posts = list(posts) if posts is not None else invented_posts(120)
    if held_out is None:
        posts, held_out = posts[: -max(1, len(posts) // 10)], posts[-max(1, len(posts) // 10) :]
    tokenizer = tokenizer or byte_bpe([p if case == "keep" else p.lower() for p in posts], vocab_size)
    key = json.dumps([posts, list(held_out), block_size, case, name, tokenizer.get_vocab()], sort_keys=True)
    ref = f"dataset/{hashlib.sha256(key.encode()).hexdigest()[:20]}"
    writer = store.writer(ref)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    counts: dict[str, int | float] = {"posts": len(posts) + len(held_out), "train": len(posts), "excluded": 0}
    counts["validation"] = len(held_out)
    for split, texts in (("train", posts), ("validation", held_out)):
        cased = [t if case == "keep" else t.lower() for t in texts]
        ids = [[begin, *tokenizer(t, add_special_tokens=False)["input_ids"], end] for t in cased]
        blocks = pack(ids, block_size)
        i32 = pa.list_(pa.int32())
        writer.put_bytes(
            f"blocks/{split}-00000.parquet",
            _parquet(
                {"input_ids": pa.array([b[0] for b in blocks], i32), "lengths": pa.array([b[1] for b in blocks], i32)}
            ),
        )
        writer.put_bytes(
            f"{split}-00000.parquet",
            _parquet({"id": list(range(len(texts))), "text": list(texts), "input_ids": pa.array(ids, i32)}),
        )
        counts[f"tokens_{split}"] = sum(len(i) for i in ids)
        counts[f"characters_{split}"] = sum(len(t) for t in texts)
        counts[f"blocks_{split}"] = len(blocks)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            writer.put_file(file, f"tokenizer/{file.name}")
    flat = {quantile_key(q): 1.0 for q in QUANTILES}
    style = Style(
        profile="bugurt",
        case="lower" if case == "lower" else "keep",
        restore="upper" if case == "lower" else "none",
        separator="@",
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        block_size=block_size,
        tokenizer="scratch:tests",
        form=Form(
            posts=len(posts),
            characters=flat,
            lines=flat,
            segments=flat,
            line_characters=flat,
            tokens=flat,
            separator_share=1.0,
            upper_share=0.0,
            upper_posts=0.0,
            multiline_share=1.0,
            letter_share=0.9,
        ),
    )
    writer.put_bytes(STYLE_FILE, style.to_json())
    writer.commit(stage="preprocess", spec={"stage": "preprocess", "profile": name}, counts=counts)
    return ref


def distinct(texts: Sequence[str]) -> int:
    """How many texts differ after normalisation."""
    return len({normalise(t) for t in texts})
