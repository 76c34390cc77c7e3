"""Drawing posts, with all gates, against other ways to draw from the same model: ``python -m benchmarks.generate``.

The model has the ruGPT3-small shape (12 layers, 768 wide, vocabulary 50,264), random weights, and an end token that
comes after ``--mean`` tokens on average, so that posts have lengths like posts (they vary) and every engine draws
from the same distribution. Peers, in the same run on the same cores:

- the reference method: transformers' ``model.generate``, one post at a time;
- batched transformers: the fastest of 16, 32 and 64 posts a batch;
- raw CTranslate2: the same converted model on all cores, no gates, no redrawing, nothing written; the faster of 128
  and 256 posts a batch.

Ours is the stage's own code: parts, sessions, every gate against ``--training`` posts, refused posts drawn again,
records written to a bucket. Tokens are counted up to and with the end token, refused posts included (they are drawn
by the peers as well); posts are those that pass. Ours and raw CTranslate2 are taken in turn, twice each (raw in either
size), and the best one of either counts: what else the machine does meanwhile hits both alike. The rows of the gates
give milliseconds a post beside the drawing, and so does the end of a batch: posts that are like those of other parts
drawn anew, and the rest (merging, table, gallery, report). All of it takes some five minutes.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import Row, arguments, report, row, say, timed
from jobs.artifacts import ArtifactStore
from jobs.generate.engines import Draw
from jobs.generate.form import FormGate
from jobs.generate.gates import Gates, _stop_words
from jobs.generate.heap import settle
from jobs.generate.overlap import fold
from jobs.generate.parts import Others, Part
from jobs.generate.pii import find_pii
from jobs.generate.stage import Generation, cores
from jobs.reporting import ProgressReporter
from jobs.specs import GenerateSpec, digest_id
from jobs.stage import StageContext
from jobs.style import QUANTILES, Form, Style, quantile_key

PAD, BEGIN, END, UNKNOWN = range(4)
FIRST = 4 + 256  # the first token that is a word; before it the special ones and the bytes
TOP_K = 50
RAW_SIZES = (128, 256)  # posts a batch of raw CTranslate2; at 512 posts, the larger is one batch for each of two cores
STOP_WORDS = ("чебурашк*", "третье слово", "щука")  # the gate has something to look for, and the model cannot say it


def syllables(count: int) -> list[str]:
    """Different short words to be tokens."""
    rng = random.Random(1)
    found: dict[str, None] = {}
    while len(found) < count:
        size = rng.randint(1, 3)
        found["".join(rng.choice("бвгдклмнпрст") + rng.choice("аеиоуы") for _ in range(size)) + rng.choice("йнтмс")] = (
            None
        )
    return list(found)


def make_model(folder: Path, *, vocabulary: int, layers: int, width: int, mean: int) -> None:
    """Write the model: weights, tokenizer, style."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=512, n_embd=width, n_layer=layers, n_head=width // 64,
        bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight[[PAD, BEGIN, *range(UNKNOWN, FIRST)]] = 0  # never among the top 50: no halves of letters
    direction = model.lm_head.weight[END].detach()

    def end_probability(boost: float) -> float:
        with torch.inference_mode():
            model.transformer.ln_f.bias.copy_(boost * direction / direction.square().sum())
            ids = torch.randint(4, vocabulary, (16, 24), generator=torch.Generator().manual_seed(1))
            logits = model(ids).logits.flatten(0, 1)
            top = logits.topk(TOP_K, dim=-1)
            share = top.values.softmax(-1)
            return float(torch.where(top.indices == END, share, 0.0).sum(-1).mean())

    low, high = 0.0, 12.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if end_probability(middle) < 1 / mean else (low, middle)
    end_probability(low)
    model.save_pretrained(folder)

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<pad>", "<s>", "</s>", "<unk>", *alphabet]
    names += [as_bytes.pre_tokenize_str(f" {w}")[0][0] for w in syllables(vocabulary - len(names))]
    tokenizer = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = as_bytes, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in names[:4]])
    tokenizer.save(str(folder / "tokenizer.json"))
    wide = {quantile_key(q): 1.0 + 5000 * q for q in QUANTILES}
    form = Form(
        posts=1, characters=wide, lines=wide, segments=wide, line_characters=wide, tokens=wide, separator_share=0.0,
        upper_share=1.0, upper_posts=1.0, multiline_share=0.5, letter_share=0.5,
    )  # fmt: skip
    style = Style(
        profile="benchmark", case="lower", restore="upper", separator="@", bos_token_id=BEGIN, eos_token_id=END,
        pad_token_id=PAD, vocab_size=vocabulary, block_size=512, form=form,
    )  # fmt: skip
    (folder / "style.json").write_bytes(style.to_json())


@contextmanager
def bucket(folder: Path) -> Iterator[ArtifactStore]:
    """An S3 server over a folder, as one machine uses it."""
    (folder / "bench").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert rclone, "rclone is not installed"
    server = subprocess.Popen(
        [
            rclone,
            "serve",
            "s3",
            str(folder),
            "--addr",
            f"127.0.0.1:{port}",
            "--force-path-style",
            "--config",
            os.devnull,
        ],
        env={**os.environ, "RCLONE_AUTH_KEY": '"key,secret-secret"'},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server did not start"
        yield ArtifactStore.from_env(
            {
                "BUGURT_S3_ENDPOINT": f"http://127.0.0.1:{port}",
                "BUGURT_S3_BUCKET": "bench",
                "BUGURT_S3_ACCESS_KEY_ID": "key",
                "BUGURT_S3_SECRET_ACCESS_KEY": "secret-secret",
            }
        )
    finally:
        server.terminate()
        server.wait(10)


def put_inputs(store: ArtifactStore, folder: Path, texts: Sequence[str]) -> str:
    """The model and its dataset as artefacts; returns the model's reference."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dataset = f"dataset/{digest_id('dataset', 'preprocess', 1, 'benchmark', {})}"
    path = folder.parent / "train-00000.parquet"
    pq.write_table(pa.table({"text": list(texts)}), path)
    writer = store.writer(dataset)
    writer.put_file(path)
    writer.commit(stage="preprocess", spec={})
    model = f"model/{digest_id('model', 'train', 1, 'benchmark', {'dataset': dataset})}"
    writer = store.writer(model)
    writer.put_folder(folder)
    writer.commit(stage="train", spec={}, inputs={"dataset": dataset})
    return model


def training_texts(count: int, vocabulary: int) -> list[str]:
    """Posts of the length of posts, out of the model's own words."""
    rng = random.Random(2)
    known = syllables(vocabulary - FIRST)
    return [" ".join(rng.choices(known, k=rng.randint(15, 90))).upper() for _ in range(count)]


# -- peers


def transformers_rates(folder: Path, cap: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[float, float, float]]:
    """(tokens/s, posts/s, tokens/s with padding) of transformers for each (batch size, batches).

    A batch goes on until its longest post ends; with padding, what is computed behind the others counts too, as
    if all posts were equally long."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.set_num_threads(cores())
    rates = []
    for size, batches in sizes:
        torch.manual_seed(size)

        def draw(size: int = size, batches: int = batches) -> tuple[int, int, int]:
            tokens = ended = computed = 0
            for _ in range(batches):
                with torch.inference_mode():
                    found = model.generate(
                        torch.full((size, 1), BEGIN), attention_mask=torch.ones(size, 1), do_sample=True,
                        top_k=TOP_K, temperature=1.0, max_new_tokens=cap, pad_token_id=PAD, eos_token_id=END,
                    )[:, 1:]  # fmt: skip
                computed += found.numel()
                for line in found.tolist():
                    length = line.index(END) + 1 if END in line else len(line)
                    tokens += length
                    ended += END in line
            return tokens, ended, computed

        seconds, (tokens, ended, computed) = timed(draw)
        say(f"transformers, {size} at a time: {tokens / seconds:.1f} tokens/s, {computed / seconds:.1f} with padding")
        rates.append((tokens / seconds, ended / seconds, computed / seconds))
    return rates


def raw_rate(generation: Generation, folder: Path, size: int) -> tuple[float, float]:
    """(tokens/s, posts/s) of CTranslate2 by itself, ``size`` posts a batch: one generator, a replica for each core."""
    import ctranslate2

    spec = generation.spec
    model: Any = ctranslate2.Generator(
        str(folder), device="cpu", compute_type="int8", inter_threads=max(1, cores() // spec.threads),
        intra_threads=spec.threads,
    )  # fmt: skip
    begin = generation.language.tokens()[BEGIN]

    def draw() -> tuple[int, int]:
        found = model.generate_batch(
            [[begin]] * (-(-spec.count // size) * size), max_batch_size=size, max_length=spec.max_new_tokens,
            sampling_topk=TOP_K, include_prompt_in_result=False, return_end_token=True,
        )  # fmt: skip
        ids = [r.sequences_ids[0] for r in found]
        return sum(map(len, ids)), sum(i[-1] == END for i in ids)

    seconds, (tokens, ended) = timed(draw)
    say(f"raw CTranslate2, {size} at a time: {tokens / seconds:.1f} tokens/s, {ended / seconds:.1f} posts/s")
    return tokens / seconds, ended / seconds


# -- ours


def open_generation(store: ArtifactStore, spec: GenerateSpec, workdir: Path) -> Generation:
    """The stage's work on a batch, in this process."""
    workdir.mkdir(parents=True)
    progress = ProgressReporter(store.bucket, "bench/progress.json", stage="generate", run="bench", shard=None)
    return Generation(StageContext(spec, store, run="bench", shard=None, workdir=workdir, progress=progress))


def our_rate(generation: Generation) -> tuple[float, float]:
    """(tokens/s, accepted posts/s) of drawing all parts; the model is loaded and converted already."""
    generation._tools()
    seconds, _ = timed(lambda: generation.draw(generation.plan))
    infos = [generation.ctx.store.manifest(f"{generation.parts}/{p.name}") for p in generation.plan]
    tokens = sum(m.info["tally"]["tokens"] for m in infos)
    posts = sum(m.counts["posts"] for m in infos)
    drawn = sum(m.info["tally"]["drawn"] for m in infos)
    say(f"ours: {tokens / seconds:.1f} tokens/s, {posts / seconds:.1f} posts/s, {posts} posts of {drawn} drawn")
    return tokens / seconds, posts / seconds


def end_of_batch(generation: Generation) -> tuple[float, float]:
    """Seconds from the last part to the commit, and how many of them went into drawing posts anew."""
    draw, spent = generation.draw, [0.0]

    def measured(parts: Iterable[Part]) -> None:
        spent[0] += timed(lambda: draw(parts))[0]

    with mock.patch.object(generation, "draw", measured):
        seconds, _ = timed(generation.finish)
    return seconds, spent[0]


def gate_rows(generation: Generation, draws: Sequence[Draw], drawing: float) -> list[Row]:
    """Milliseconds that each gate takes a post; ``drawing``: milliseconds that drawing a post takes."""
    language, spec, training = generation.language, generation.spec, generation.training
    assert training is not None
    assert language.style is not None
    prompt = generation._prompts[0]
    texts = [language.text([*prompt.ids, *d.tokens]) for d in draws]
    form, stop = FormGate(language.style), _stop_words(spec.stop_words)
    assert stop is not None
    runs = training.overlaps.longest(texts)

    def near() -> None:
        index = Others(spec.near_duplicates)
        index.prepare(texts)
        for text in texts:
            index.add_if_new(text)

    works: dict[str, Callable[[], object]] = {
        "decoding to text": lambda: [language.text([*prompt.ids, *d.tokens]) for d in draws],
        "form": lambda: [form.problem(t) for t in texts],
        "stop words": lambda: [stop.findall(fold(t)) for t in texts],
        "personal data": lambda: [find_pii(t) for t in texts],
        "shared runs of words": lambda: training.overlaps.longest(texts),
        "similarity with training": lambda: training.similarities(texts, [r.post for r in runs]),
        "near-duplicates in the batch": near,
        "all but near-duplicates": lambda: Gates(spec, language, training).judge([prompt] * len(draws), draws),
    }
    rows = []
    for name, work in works.items():
        seconds, _ = timed(work, repeat=3)
        each = 1000 * seconds / len(draws)
        rows.append(row(f"gate: {name}", each, drawing, peer_name="drawing a post", unit="ms/post", better="lower"))
    return rows


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__ or "",
        ("--posts", {"type": int, "default": 512, "help": "posts that ours draws"}),
        ("--mean", {"type": int, "default": 32, "help": "mean tokens of a post; three times as many at most"}),
        ("--vocabulary", {"type": int, "default": 50_264}),
        ("--layers", {"type": int, "default": 12}),
        ("--width", {"type": int, "default": 768}),
        ("--training", {"type": int, "default": 20_000, "help": "training posts to compare with"}),
        ("--micro-batch", {"type": int, "default": 160}),
    )
    cap = 3 * options.mean
    settle()  # as the stage's process does
    with tempfile.TemporaryDirectory() as name, bucket(Path(name) / "s3") as store:
        folder = Path(name) / "model"
        say("making the model and the training posts")
        make_model(folder, vocabulary=options.vocabulary, layers=options.layers, width=options.width, mean=options.mean)
        model = put_inputs(store, folder, training_texts(options.training, options.vocabulary))
        spec = GenerateSpec(
            model=model, count=options.posts, micro_batch=options.micro_batch, max_new_tokens=cap, top_k=TOP_K,
            min_characters=1, compute_type="int8", device="cpu", stop_words=STOP_WORDS,
        )  # fmt: skip
        generation = open_generation(store, spec, Path(name) / "work")
        converted = generation.ctx.workdir / "model" / "ctranslate2-int8"
        ours, our_posts, raw, raw_posts = 0.0, 0.0, 0.0, 0.0
        for _ in range(2):
            generation.clear()  # what was drawn before would be found
            ours, our_posts = max((ours, our_posts), our_rate(generation))
            for size in RAW_SIZES:
                found = raw_rate(generation, converted, size)
                raw, raw_posts = max(raw, found[0]), max(raw_posts, found[1])
        draws = generation._tools().engine.session(1).draw([[BEGIN]] * options.micro_batch)
        single, *batched = transformers_rates(folder, cap, [(1, 16), (16, 2), (32, 2), (64, 1)])
        best = max(range(3), key=lambda n: batched[n][0])
        best_posts, best_padded = max(b[1] for b in batched), max(b[2] for b in batched)
        gates = gate_rows(generation, draws, 1000 / our_posts)
        end, anew = end_of_batch(generation)
        posts = store.manifest(generation.ctx.ref).counts["posts"]
    for what, seconds in (("posts like those of other parts, drawn anew", anew), ("putting together", end - anew)):
        each = 1000 * seconds / posts
        gates.append(
            row(
                f"the end of the batch: {what}",
                each,
                1000 / our_posts,
                peer_name="drawing a post",
                unit="ms/post",
                better="lower",
            )
        )
    many = f"batched transformers ({(16, 32, 64)[best]} at a time)"
    rows = [
        row(
            "drawing",
            ours,
            single[0],
            peer_name="the reference method",
            unit="tokens/s",
            better="higher",
            at_least=25,
        ),
        row("drawing", ours, batched[best][0], peer_name=many, unit="tokens/s", better="higher", at_least=2.4),
        row(
            "drawing",
            ours,
            best_padded,
            peer_name="batched transformers, its padding counted as posts",
            unit="tokens/s",
            better="higher",
        ),
        row(
            "drawing",
            ours,
            raw,
            peer_name="raw CTranslate2, no gates",
            unit="tokens/s",
            better="higher",
            at_least=0.85,
        ),
        row("posts", our_posts, single[1], peer_name="the reference method", unit="posts/s", better="higher"),
        row("posts", our_posts, best_posts, peer_name="batched transformers, best", unit="posts/s", better="higher"),
        row("posts", our_posts, raw_posts, peer_name="raw CTranslate2, no gates", unit="posts/s", better="higher"),
        *gates,
    ]
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
