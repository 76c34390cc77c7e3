"""What the benchmarks of training share: corpora, the reference method as a faithful port, and ours by our Trainer.

The reference method is the public notebook's: all posts' text in one string, cut into blocks of 128 tokens, 8 a
step, AdamW falling linearly after 2.5 % of warm-up (500 of its 19,735 steps), GPT-2's dropout of 0.1, eager
attention. It joins posts without a separator and turns newlines into spaces; here newlines are kept and one stands
between posts, so that both sides predict the same characters. Both sides have the same tokenizer and the same model.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from jobs.artifacts import ArtifactStore
from jobs.preprocess.packing import pack
from jobs.preprocess.tokenizer import train_bpe
from jobs.specs import TrainSpec
from jobs.style import QUANTILES, STYLE_FILE, Form, Style, quantile_key
from jobs.train.data import Blocks, Rows, steps_for
from jobs.train.head import choose_head, use_fused_gelu
from jobs.train.journal import Journal
from jobs.train.loop import quiet_transformers
from jobs.train.models import SHAPES, load_tokenizer
from jobs.train.plan import ENDLESS, Plan
from jobs.train.presets import PRESETS, Settings
from jobs.train.surroundings import precision_of
from jobs.train.trainer import PostTrainer, arguments
from jobs.train.warm_start import warm_start

FORTUNES = Path("/usr/share/games/fortunes/ru")
SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "posts.txt"
BLOCK, REFERENCE_BLOCK, REFERENCE_BATCH = 256, 128, 8
RUGPT3_SMALL = (12, 768, 12, 50264)  # layers, width, heads, vocabulary


def posts_of(name: str) -> list[str]:
    """The posts of ``fortunes`` (Debian's fortunes-ru) or ``sample`` (the example channel), each once."""
    if name == "sample":
        found = SAMPLE.read_text(encoding="utf-8").split("\n---\n")
    else:
        if not FORTUNES.is_dir():
            raise SystemExit(f"{FORTUNES} is missing: apt-get install fortunes-ru")
        files = sorted(f for f in FORTUNES.iterdir() if f.suffix not in (".dat", ".u8"))
        found = [p for f in files for p in re.split(r"(?m)^%\s*$", f.read_text(encoding="utf-8", errors="replace"))]
    return list(dict.fromkeys(p.strip() for p in found if len(p.strip()) >= 20))


def split(posts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(training, held out): every post goes by its own hash, one in 20 is held out."""
    out = [int(hashlib.sha256(p.encode()).hexdigest(), 16) % 20 == 0 for p in posts]
    return [p for p, o in zip(posts, out, strict=True) if not o], [p for p, o in zip(posts, out, strict=True) if o]


def tokenizer_of(texts: Sequence[str], vocabulary: int = 8192) -> Any:
    """A BPE made from ``texts``."""
    with tempfile.TemporaryDirectory() as folder:
        train_bpe([list(texts)], vocabulary, Path(folder), "benchmark")
        return load_tokenizer(Path(folder))


@dataclass(frozen=True)
class Corpus:
    """Texts of both splits and the tokenizer."""

    train: list[str]
    held_out: list[str]
    tokenizer: Any

    @property
    def characters(self) -> int:
        """Of the held-out posts."""
        return sum(map(len, self.held_out))

    @classmethod
    def named(cls, name: str) -> Corpus:
        """A corpus with a tokenizer of its own."""
        train, held_out = split(posts_of(name))
        return cls(train, held_out, tokenizer_of(train))

    def blocks(self, texts: Sequence[str], size: int = BLOCK) -> Blocks:
        """Framed posts, packed as preprocess does it."""
        t = self.tokenizer
        ids = [[t.bos_token_id, *t(x, add_special_tokens=False)["input_ids"], t.eos_token_id] for x in texts]
        cut = [i[s : s + size] for i in ids for s in range(0, len(i), size) if len(i) - s > 1]
        packed = pack([torch.tensor(c, dtype=torch.int32).numpy() for c in cut], size)
        return Blocks.from_lists(list(zip(packed.input_ids, packed.lengths, strict=True)))


def model_of(tokenizer: Any, *, dropout: float, attention: str, shape: str = "small", seed: int = 0) -> Any:
    """``scratch:SIZE`` with fresh weights."""
    quiet_transformers()
    torch.manual_seed(seed)
    layers, width, heads = SHAPES[shape]
    return gpt2(layers, width, heads, len(tokenizer), dropout=dropout, attention=attention)


def gpt2(layers: int, width: int, heads: int, vocabulary: int, *, dropout: float, attention: str) -> Any:
    """A GPT-2 with fresh weights."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=512,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention)


# -- the reference method


def reference_optimizer(model: Any, rate: float) -> torch.optim.Optimizer:
    """AdamW as it was: no weight decay, a loop over the parameters."""
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, foreach=False)


def reference_blocks(corpus: Corpus, texts: Sequence[str]) -> torch.Tensor:
    """All texts' tokens in one row."""
    return torch.tensor(corpus.tokenizer("\n".join(texts), add_special_tokens=False)["input_ids"])


def reference_step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """Forward, backward, clip, step."""
    loss = model(ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def train_reference(
    corpus: Corpus,
    *,
    seconds: float,
    rate: float,
    model: Any = None,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Train for so long; returns (held-out bits a character at the end, tokens a second, the fewest bits of an epoch).

    The last one is what the method would come to if it kept its best epoch, which it does not; the time of the
    evaluations for it does not count.
    """
    model = model or model_of(corpus.tokenizer, dropout=0.1, attention="eager", seed=seed)
    optimizer = reference_optimizer(model, rate)
    row = reference_blocks(corpus, corpus.train)
    blocks = row[: len(row) // REFERENCE_BLOCK * REFERENCE_BLOCK].view(-1, REFERENCE_BLOCK)
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = []
    model.train()
    began, steps, bits = clock(), 0, []
    while (done := (clock() - began) / seconds) < 1:
        factor = done / 0.025 if done < 0.025 else (1 - done) / 0.975
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        while len(order) < REFERENCE_BATCH:
            if steps:
                paused = clock()
                bits.append(reference_bits(model, corpus))
                model.train()
                began += clock() - paused
            order += torch.randperm(len(blocks), generator=draw).tolist()
        reference_step(model, optimizer, blocks[order[:REFERENCE_BATCH]])
        order = order[REFERENCE_BATCH:]
        steps += 1
    speed = steps * REFERENCE_BATCH * REFERENCE_BLOCK / (clock() - began)
    bits.append(reference_bits(model, corpus))
    return bits[-1], speed, min(bits)


def reference_bits(model: Any, corpus: Corpus) -> float:
    """Held-out bits a character, in blocks as the method sees text; a block's first token is counted at their mean."""
    row = reference_blocks(corpus, corpus.held_out)
    model.eval()
    nats, predicted = 0.0, 0
    with torch.no_grad():
        for part in row.split(REFERENCE_BLOCK):
            if len(part) > 1:
                nats += float(model(part[None], labels=part[None]).loss) * (len(part) - 1)
                predicted += len(part) - 1
    characters = corpus.characters + len(corpus.held_out) - 1  # the newline between posts
    return nats / predicted * len(row) / math.log(2) / characters


# -- ours


def chosen_precision(precision: str) -> str:
    """What the train stage would compute in here: ``auto`` decided."""
    return precision_of(TrainSpec.model_validate({"precision": precision}))


def train_ours(
    corpus: Corpus,
    *,
    seconds: float,
    rate: float,
    settings: Settings | None = None,
    model: Any = None,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
    steps: int | None = None,
    precision: str = "auto",
) -> tuple[float, float, Any]:
    """Train by our Trainer for so long; returns (best held-out bits a character, tokens a second, the model).

    ``steps``: so many instead of ``seconds``; ``precision``: as in a spec.
    """
    quiet_transformers()
    chosen = chosen_precision(precision)
    s = settings or PRESETS["default"][1]
    s = replace(s, learning_rate=rate, max_minutes=seconds / 60 if steps is None else None)
    from_nothing = model is None
    model = model or model_of(corpus.tokenizer, dropout=s.dropout or 0.0, attention="sdpa", seed=seed)
    use_fused_gelu(model)
    train, held_out = corpus.blocks(corpus.train), corpus.blocks(corpus.held_out)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal()
        plan = Plan(
            settings=s,
            seed=seed,
            train=train,
            held_out=held_out,
            characters=corpus.characters,
            collate=Rows(corpus.tokenizer.pad_token_id),
            head=choose_head(model, len(corpus.tokenizer)),
            total_steps=steps or ENDLESS,
            eval_every=steps_for(1, len(train), s.batch_size * s.gradient_accumulation_steps),
            batch_size=s.batch_size,
            accumulation=s.gradient_accumulation_steps,
            folder=Path(folder),
            journal=journal,
            report=lambda **_: None,
            stopped=lambda: False,
            uploader=None,
            checkpoint_steps=None,
            checkpoint_seconds=math.inf,
            clock=clock,
        )
        if from_nothing:
            warm_start(plan, model, chosen)
        trainer = PostTrainer(
            plan, model, arguments(plan, precision=chosen, compiled=False, activation_checkpointing=False), 0
        )
        trainer.train()
        speed = trainer.keeper.speed()
        plan.head.release()
        return min(r["bits_per_character"] for r in journal.history if "eval_loss" in r), speed, model


def best_of(rates: Sequence[float], train: Callable[[float], tuple[float, ...]]) -> tuple[float, ...]:
    """What ``train`` gave, bits first, for the rate with the fewest bits."""
    return min(train(rate) for rate in rates)


def commit_dataset(store: ArtifactStore, corpus: Corpus) -> str:
    """Put a corpus into the bucket as what the train stage needs of a dataset; returns its reference."""
    t = corpus.tokenizer
    key = "\n".join([*corpus.train, *corpus.held_out]).encode()
    writer = store.writer(f"dataset/{hashlib.sha256(key).hexdigest()[:20]}")
    counts: dict[str, int | float] = {"train": len(corpus.train), "validation": len(corpus.held_out)}
    i32 = pa.list_(pa.int32())
    for name, texts in (("train", corpus.train), ("validation", corpus.held_out)):
        blocks = corpus.blocks(texts)
        chosen = [blocks[i] for i in range(len(blocks))]
        table = {"input_ids": [b.ids for b in chosen], "lengths": [b.lengths.astype("int32") for b in chosen]}
        sink = io.BytesIO()
        pq.write_table(pa.table({k: pa.array(v, i32) for k, v in table.items()}), sink, compression="zstd")
        writer.put_bytes(f"blocks/{name}-00000.parquet", sink.getvalue())
        counts[f"characters_{name}"] = sum(map(len, texts))
    with tempfile.TemporaryDirectory() as folder:
        t.save_pretrained(folder)
        writer.put_folder(Path(folder), "tokenizer/")
    flat = {quantile_key(q): 1.0 for q in QUANTILES}
    names = ("characters", "lines", "segments", "line_characters", "tokens")
    shares = ("separator_share", "upper_share", "upper_posts", "multiline_share", "letter_share")
    form = {"posts": len(corpus.train), **dict.fromkeys(names, flat), **dict.fromkeys(shares, 0.5)}
    style = Style(
        profile="plain",
        case="keep",
        restore="none",
        bos_token_id=t.bos_token_id,
        eos_token_id=t.eos_token_id,
        pad_token_id=t.pad_token_id,
        vocab_size=len(t),
        block_size=BLOCK,
        form=Form.model_validate(form),
    )
    writer.put_bytes(STYLE_FILE, style.to_json())
    writer.commit(stage="preprocess", spec={}, counts=counts)
    return writer.ref
