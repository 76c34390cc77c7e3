"""Small real models for the tests: a GPT-2 trained in seconds on a made-up channel, as artefacts in a bucket."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.specs import digest_id
from jobs.style import QUANTILES, Form, Style, quantile_key

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNK, BEGIN, END = range(4)

_WHO = ("ТЫ", "БАТЯ", "СОСЕД", "КОТ", "ДЕД", "ЗАВХОЗ", "ТЁЩА", "БРАТ")
_DOES = ("ЧИНИТ", "КРАСИТ", "ВЕЗЁТ", "ТЕРЯЕТ", "НАХОДИТ", "ПРЯЧЕТ", "МОЕТ", "ХВАЛИТ")
_WHAT = ("ЧАЙНИК", "ЗАБОР", "ДЕВЯТКУ", "УДОЧКУ", "КОВЁР", "ТЕПЛИЦУ", "САМОВАР", "ЛЫЖИ")
_END = ("ДОВОЛЕН", "БУГУРТ", "ПЬЁТ ЧАЙ", "ИДЁТ СПАТЬ", "ЗОВЁТ ВСЕХ ОБЕДАТЬ", "НИКТО НЕ ЗАМЕТИЛ")


def channel(count: int) -> list[str]:
    """Posts of a made-up channel: capitals, lines parted by ``@``."""
    posts = []
    for n, (who, does, what, end) in enumerate(itertools.product(_WHO, _DOES, _WHAT, _END)):
        if n % 7 == 3:
            posts.append(f"{who} {does} {what}\n@\n{who} {end}")
        else:
            other = _WHO[(n * 5 + 1) % len(_WHO)]
            again = _DOES[(n * 3 + 2) % len(_DOES)]
            posts.append(f"{who} {does} {what}\n@\n{other} {again} {_WHAT[(n + 3) % len(_WHAT)]}\n@\n{who} {end}")
    step = max(1, len(posts) // count)
    return posts[::step][:count]


def make_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE with the four special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
    return tokenizer


def make_style(texts: Sequence[str], vocab_size: int, block_size: int, **changes: Any) -> Style:
    """The style of these posts, measured as plainly as can be."""

    def quantiles(values: Sequence[int]) -> dict[str, float]:
        ordered = sorted(values)
        return {quantile_key(q): float(ordered[round(q * (len(ordered) - 1))]) for q in QUANTILES}

    form = Form(
        posts=len(texts),
        characters=quantiles([len(t) for t in texts]),
        lines=quantiles([t.count("\n") + 1 for t in texts]),
        segments=quantiles([t.split("\n").count("@") + 1 for t in texts]),
        line_characters=quantiles([len(line) for t in texts for line in t.split("\n") if line != "@"]),
        tokens=quantiles([len(t) // 2 for t in texts]),
        separator_share=1.0,
        upper_share=1.0,
        upper_posts=1.0,
        multiline_share=1.0,
        letter_share=0.9,
        language="ru",
    )
    fields: dict[str, Any] = {
        "profile": "bugurt",
        "case": "lower",
        "restore": "upper",
        "separator": "@",
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "vocab_size": vocab_size,
        "block_size": block_size,
        "form": form,
    }
    return Style(**{**fields, **changes})


@dataclass(frozen=True)
class MadeModel:
    """A model's folder, its training posts, and its references once it is in a bucket."""

    folder: Path
    texts: list[str]

    def put(self, store: ArtifactStore, *, with_dataset: bool = True) -> str:
        """Put the model (and its dataset) into a bucket; returns the model's reference."""
        inputs = {}
        if with_dataset:
            inputs["dataset"] = put_dataset(store, self.texts)
        ref = f"model/{digest_id('model', 'train', 1, str(self.folder), inputs)}"
        writer = store.writer(ref)
        writer.put_folder(self.folder)
        writer.commit(stage="train", spec={}, inputs=inputs)
        return ref


def put_dataset(store: ArtifactStore, texts: Sequence[str]) -> str:
    """A dataset artefact with what generation reads of it."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    ref = f"dataset/{digest_id('dataset', 'preprocess', 1, list(texts), {})}"
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": list(texts)}), buffer)
    writer = store.writer(ref)
    writer.put_bytes("train-00000.parquet", buffer.getvalue())
    writer.commit(stage="preprocess", spec={}, counts={"train": len(texts)})
    return ref


def put_source(store: ArtifactStore, text: str | bytes, name: str = "prompts.txt") -> str:
    """A text file as a source artefact."""
    data = text.encode() if isinstance(text, str) else text
    ref = f"source/{digest_id('source', 'upload', 1, data.hex(), {})}"
    writer = store.writer(ref)
    writer.put_bytes(name, data)
    writer.commit(stage="upload", spec={}, info={"name": name})
    return ref


def make_model(
    folder: Path,
    texts: Sequence[str],
    *,
    steps: int,
    width: int = 64,
    layers: int = 2,
    vocab_size: int = 600,
    context: int = 128,
    learning_rate: float = 3e-3,
    ends: bool = True,
    seed: int = 0,
    dropout: float = 0.0,
    style: dict[str, Any] | None = None,
) -> MadeModel:
    """Train a GPT-2 on the posts, lower-cased and framed, and save it as a model artefact's files.

    ``ends``: whether posts end with the end token in training; without it the model never ends one.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True, exist_ok=True)
    lowered = [t.lower() for t in texts]
    tokenizer = make_tokenizer(lowered, vocab_size)
    size = tokenizer.get_vocab_size()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other over such small matrices
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=size,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    model = GPT2LMHeadModel(config)
    rows = []
    for text in lowered:
        ids = [BEGIN, *tokenizer.encode(text).ids, *([END] if ends else [])]
        if not ends:
            ids = (ids[:1] + ids[1:] * (1 + context // max(1, len(ids))))[:context]
        rows.append(ids[:context])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(2, steps))
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(rows), (32,), generator=order).tolist()
        longest = max(len(rows[i]) for i in chosen)
        batch = torch.full((len(chosen), longest), PAD)
        labels = torch.full_like(batch, -100)
        for line, i in enumerate(chosen):
            batch[line, : len(rows[i])] = torch.tensor(rows[i])
            labels[line, : len(rows[i])] = torch.tensor(rows[i])
        loss = model(input_ids=batch, attention_mask=(batch != PAD).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "style.json").write_bytes(make_style(texts, size, context, **(style or {})).to_json())
    return MadeModel(folder, list(texts))
