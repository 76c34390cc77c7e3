"""The stage as a whole, against a real S3 server: what it writes, that it is always the same, how it fails."""

from __future__ import annotations

import json
import random
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.artifacts import ArtifactStore, Manifest
from jobs.preprocess import gather, output, pipeline
from jobs.preprocess.clean import clean_batch
from jobs.preprocess.select import select
from jobs.preprocess.tokenizer import train_bpe
from jobs.record import Post
from jobs.scrape.parquet import write_shard
from jobs.similarity import jaccard, shingles
from jobs.specs import ConfigError, DataError, Interrupted, PreprocessSpec, SpecError
from jobs.stage import StageContext
from jobs.style import Style
from tests.conftest import RunStage
from tests.preprocess.texts import fortunes, near, posts

POSTS = "posts/" + "0" * 20
START = datetime(2020, 1, 1, tzinfo=UTC)


def channel(count: int, seed: int = 0) -> list[Post]:
    """A channel with everything in it that a rule or the search for duplicates takes out."""
    draw = random.Random(seed)
    made: list[Post] = []
    for number, text in enumerate(posts(count, seed), 1):
        post = Post(id=number, channel="bt", text=text, date=START + timedelta(hours=7 * number))
        kind = draw.random()
        if kind < 0.6:
            post.text += "\nБУГУРТ-ТРЕД"
        elif kind < 0.64:
            post.text = "#БТnews\n" + text
        elif kind < 0.67:
            post.forwarded_from = "сосед"
        elif kind < 0.69:
            post.text, post.service = "", "pin_message"
        elif kind < 0.72 and made:
            post.text = draw.choice(made).text
        elif kind < 0.76 and made:
            post.text = near(draw.choice(made).text, draw)
        made.append(post)
    return made


def upload(store: ArtifactStore, made: list[Post], folder: Path, *, shard: int = 100, shuffled: bool = False) -> None:
    writer = store.writer(POSTS)
    parts = [made[n : n + shard] for n in range(0, len(made), shard)]
    if shuffled:
        random.Random(1).shuffle(parts)
        for part in parts:
            random.Random(2).shuffle(part)
    for number, part in enumerate(parts):
        path = folder / f"part-{number:05d}.parquet"
        write_shard(part, path)
        writer.put_file(path)
        path.unlink()
    writer.commit(stage="scrape", spec={}, counts={"posts": len(made)})


def run_here(store: ArtifactStore, spec: PreprocessSpec, folder: Path) -> Manifest:
    """The stage's work in this process: as ``main`` would, without the start of another Python."""
    folder.mkdir(parents=True)
    progress: Any = SimpleNamespace(update=lambda **fields: None)
    pipeline.run(StageContext(spec, store, run="test", shard=None, workdir=folder, progress=progress))
    return store.manifest(spec.ref())


def table(store: ArtifactStore, ref: str, folder: Path, name: str) -> list[dict[str, Any]]:
    store.download(ref, folder, name)
    rows: list[dict[str, Any]] = pq.read_table(folder / name).to_pylist()
    return rows


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches, chunks, files and windows out of few posts."""
    monkeypatch.setattr(gather, "BATCH_POSTS", 128)
    monkeypatch.setattr(gather, "FIRST_POSTS", 64)
    monkeypatch.setattr(output, "ROWS_A_GROUP", 60)
    monkeypatch.setattr(pipeline, "CHUNK_POSTS", 50)
    monkeypatch.setattr(output, "POSTS_A_FILE", 200)
    monkeypatch.setattr(output, "WINDOW_TOKENS", 4000)
    monkeypatch.setattr(output, "ROWS_A_CHUNK", 40)


SPEC = PreprocessSpec(posts=POSTS, vocab_size=500, block_size=64, workers=1)


@pytest.mark.plain
def test_what_a_dataset_is(store: ArtifactStore, run_stage: RunStage, tmp_path: Path) -> None:
    made = channel(600)
    upload(store, made, tmp_path)
    done = run_stage(SPEC.model_copy(update={"workers": 2}))
    assert done.code == 0, done.stderr
    ref = SPEC.ref()
    manifest = store.manifest(ref)
    names = {f.path for f in manifest.files}
    assert {
        "train-00000.parquet", "validation-00000.parquet", "blocks/train-00000.parquet",
        "blocks/validation-00000.parquet", "changed.parquet", "excluded.parquet", "style.json", "report.html",
        "report.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    } <= names  # fmt: skip
    train = table(store, ref, tmp_path, "train-00000.parquet")
    held = table(store, ref, tmp_path, "validation-00000.parquet")
    excluded = table(store, ref, tmp_path, "excluded.parquet")
    changed = table(store, ref, tmp_path, "changed.parquet")
    counts = manifest.counts

    # every post is somewhere, once
    ids = sorted(r["id"] for rows in (train, held, excluded) for r in rows)
    assert ids == [p.id for p in made]
    assert counts["train"] == len(train)
    assert counts["validation"] == len(held) == round(0.05 * counts["posts"])
    assert counts["excluded"] == len(excluded)
    assert counts["posts_read"] == len(made)

    # what was dropped, by which rule
    raw = {p.id: p for p in made}
    rules = {r["rule"] for r in excluded}
    assert {"service", "forwarded", "news", "duplicate", "near_duplicate"} == rules
    for row in excluded:
        assert row["text"] == raw[row["id"]].text
        assert row["detail"]
        if row["rule"] in ("duplicate", "near_duplicate"):
            assert row["detail"].startswith("of bt/")
        assert (row["rule"] == "news") == row["text"].startswith("#БТnews")
        assert (row["rule"] == "forwarded") == (raw[row["id"]].forwarded_from is not None)

    # what was changed, before and after
    kept = {r["id"]: r for r in train + held}
    assert {r["id"] for r in changed} == {n for n, r in kept.items() if r["text"] != raw[n].text}
    for row in changed:
        assert row["before"] == raw[row["id"]].text
        assert row["after"] == kept[row["id"]]["text"] == row["before"].removesuffix("\nБУГУРТ-ТРЕД")
        assert row["rules"] == ["footer"]

    # tokens, framed, in training case
    style = Style.from_json(store.read(ref, manifest.file("style.json")))
    assert (style.case, style.restore, style.separator, style.block_size) == ("lower", "upper", "@", 64)
    assert style.form.posts == len(kept)
    assert style.form.separator_share == 1.0
    from transformers import AutoTokenizer

    store.download(ref, tmp_path, "tokenizer/*")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    assert style.vocab_size == len(tokenizer) <= 500
    for row in kept.values():
        begin, *body, end = row["input_ids"]
        assert (begin, end) == (style.bos_token_id, style.eos_token_id)
        assert tokenizer.decode(body) == row["text"].lower()
        assert style.restored(tokenizer.decode(body)) == row["text"]
    assert counts["tokens_train"] == sum(len(r["input_ids"]) for r in train)
    assert counts["characters_validation"] == sum(len(r["text"]) for r in held)

    # blocks hold exactly the posts
    for side, rows in (("train", train), ("validation", held)):
        blocks = table(store, ref, tmp_path, f"blocks/{side}-00000.parquet")
        assert counts[f"blocks_{side}"] == len(blocks)
        segments = []
        for block in blocks:
            assert sum(block["lengths"]) == len(block["input_ids"]) <= 64
            segments += [s.tolist() for s in np.split(np.array(block["input_ids"]), np.cumsum(block["lengths"])[:-1])]
        whole = [s for s in segments if s[0] == style.bos_token_id and s[-1] == style.eos_token_id]
        short = [r["input_ids"] for r in rows if len(r["input_ids"]) <= 64]
        assert sorted(whole) == sorted(short)
        assert sum(map(len, segments)) == sum(len(r["input_ids"]) for r in rows)

    # the report
    facts = json.loads(store.read(ref, manifest.file("report.json")))
    assert facts["counts"] == counts
    assert facts["funnel"][0]["left"] == len(made)
    assert facts["funnel"][-1]["left"] == len(kept)
    assert sum(step["dropped"] for step in facts["funnel"]) == len(excluded)
    assert len(facts["examples"]["dropped by news"]) == 3
    assert facts["tokens_per_character"]["lower case"] < facts["tokens_per_character"]["capitals"]
    page = store.read(ref, manifest.file("report.html")).decode()
    assert page.count("<svg") >= 5
    assert "src=" not in page


def test_datasets_opens_it(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, channel(200), tmp_path)
    manifest = run_here(store, SPEC, tmp_path / "work")
    store.download(manifest.ref, tmp_path / "dataset")
    from datasets import load_dataset

    files = {side: str(tmp_path / "dataset" / f"{side}-*.parquet") for side in ("train", "validation")}
    loaded = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == manifest.counts["train"]
    assert {"id", "channel", "date", "text", "input_ids", "cluster"} == set(loaded["train"].column_names)


def test_the_same_bytes_by_any_number_of_workers_and_any_order_of_shards(
    s3_env: dict[str, str], tmp_path: Path, small_pieces: None
) -> None:
    made = channel(900, seed=7)
    found: list[dict[str, str]] = []
    for number, (workers, shuffled) in enumerate(((1, False), (2, False), (1, True), (2, True))):
        store = ArtifactStore.from_env({**s3_env, "BUGURT_S3_PREFIX": f"same-{number}"})
        upload(store, made, tmp_path, shuffled=shuffled)
        spec = SPEC.model_copy(update={"workers": workers, "max_repeats": 2})
        manifest = run_here(store, spec, tmp_path / f"work-{number}")
        found.append({f.path: f.sha256 for f in manifest.files})
        assert len(manifest.matching("train-*.parquet")) > 2  # the small pieces are at work
    assert found[1:] == found[:1] * 3


def test_no_held_out_post_has_a_near_duplicate_in_train(store: ArtifactStore, tmp_path: Path) -> None:
    draw = random.Random(11)
    texts = fortunes()[:700] or posts(700, seed=11)
    texts += [near(draw.choice(texts), draw) for _ in range(350)]
    made = [Post(id=n, channel="x", text=t, date=START + timedelta(hours=n)) for n, t in enumerate(texts, 1)]
    upload(store, made, tmp_path)
    for split in ("hash", "time"):
        spec = SPEC.model_copy(update={"split": split, "validation": 0.2, "max_repeats": 3, "profile": "plain"})
        manifest = run_here(store, spec, tmp_path / split)
        train = table(store, manifest.ref, tmp_path / split, "train-00000.parquet")
        held = table(store, manifest.ref, tmp_path / split, "validation-00000.parquet")
        sets = [shingles(r["text"]) for r in train]
        for row in held:
            own = shingles(row["text"])
            assert max(jaccard(own, s) for s in sets) < 0.8
        assert not {r["cluster"] for r in train} & {r["cluster"] for r in held}
        assert len(held) > 100


def test_the_check_mends_what_minhash_misses(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a search that finds nothing at all, the split is still clean."""
    from jobs.preprocess import duplicates, select

    compared: list[int] = []
    leaks = select.leaks

    def counted(train: Any, held: Any, *rest: Any) -> Any:
        compared.append(len(train) * len(held))
        return leaks(train, held, *rest)

    made = channel(500, seed=3)
    upload(store, made, tmp_path)
    monkeypatch.setattr(duplicates, "candidate_pairs", lambda keys, members: np.zeros((0, 2), np.int64))
    monkeypatch.setattr(select, "leaks", counted)
    manifest = run_here(store, SPEC.model_copy(update={"validation": 0.3}), tmp_path / "work")
    facts = json.loads(store.read(manifest.ref, manifest.file("report.json")))
    assert facts["split"]["pairs_mended"] > 0
    assert len(compared) >= 4 and compared[1] == 0, "what was mended is checked again"
    assert sum(compared[2:4]) < compared[0], "and what has been compared is not"
    train = table(store, manifest.ref, tmp_path, "train-00000.parquet")
    held = table(store, manifest.ref, tmp_path, "validation-00000.parquet")
    sets = [shingles(r["text"]) for r in train]
    assert all(jaccard(shingles(r["text"]), s) < 0.8 for r in held for s in sets)


def test_time_split_holds_out_the_newest(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, channel(300), tmp_path)
    manifest = run_here(store, SPEC.model_copy(update={"split": "time", "validation": 0.1}), tmp_path / "work")
    train = table(store, manifest.ref, tmp_path, "train-00000.parquet")
    held = table(store, manifest.ref, tmp_path, "validation-00000.parquet")
    assert min(r["date"] for r in held) > max(r["date"] for r in train)


def test_case_is_kept_where_a_channel_does_not_shout(store: ArtifactStore, tmp_path: Path) -> None:
    made = [Post(id=n, channel="x", text=t.capitalize()) for n, t in enumerate(posts(120), 1)]
    upload(store, made, tmp_path)
    style: Callable[[Manifest], Style] = lambda m: Style.from_json(store.read(m.ref, m.file("style.json")))  # noqa: E731
    kept = style(run_here(store, SPEC.model_copy(update={"profile": "plain"}), tmp_path / "keep"))
    assert (kept.case, kept.restore, kept.separator) == ("keep", "none", None)
    lower = style(run_here(store, SPEC.model_copy(update={"profile": "plain", "case": "lower"}), tmp_path / "lower"))
    assert (lower.case, lower.restore) == ("lower", "none")


def test_long_posts_are_cut_and_not_dropped(store: ArtifactStore, tmp_path: Path) -> None:
    texts = posts(40) + posts(5, seed=9, lines=(60, 80))
    upload(store, [Post(id=n, channel="x", text=t) for n, t in enumerate(texts, 1)], tmp_path)
    manifest = run_here(store, SPEC, tmp_path / "work")
    assert manifest.counts["split_posts"] >= 5
    style = Style.from_json(store.read(manifest.ref, manifest.file("style.json")))
    tokens = 0
    begins = ends = 0
    for side in ("train", "validation"):
        for block in table(store, manifest.ref, tmp_path, f"blocks/{side}-00000.parquet"):
            tokens += len(block["input_ids"])
            begins += block["input_ids"].count(style.bos_token_id)
            ends += block["input_ids"].count(style.eos_token_id)
    assert tokens == manifest.counts["tokens_train"] + manifest.counts["tokens_validation"]
    assert begins == ends == manifest.counts["posts"]


def test_hostile_posts_go_through(store: ArtifactStore, tmp_path: Path) -> None:
    texts = [
        *posts(20),
        "а" + "\u0301\u0323" * 250_000,
        "\u202e\u200f" * 250_000 + "x",
        "кот\x00\x01\x02" * 100_000,
        "<s></s><pad><script>alert(1)</script>",
        "ы" * 500_000,
        "".join(map(chr, range(0xD800))),
    ]
    upload(store, [Post(id=n, channel="x\x00<b>", text=t) for n, t in enumerate(texts, 1)], tmp_path)
    manifest = run_here(store, SPEC.model_copy(update={"mask_pii": True}), tmp_path / "work")
    assert manifest.counts["posts"] + manifest.counts["excluded"] == len(texts)
    assert "<script>alert" not in store.read(manifest.ref, manifest.file("report.html")).decode()


def test_masking(store: ArtifactStore, tmp_path: Path) -> None:
    texts = [*posts(20), "ЗВОНИТЕ МНЕ: +79123456789 ИЛИ @VASYA_PUPKIN"]
    upload(store, [Post(id=n, channel="x", text=t) for n, t in enumerate(texts, 1)], tmp_path)
    manifest = run_here(store, SPEC.model_copy(update={"mask_pii": True}), tmp_path / "work")
    rows = [r for s in ("train", "validation") for r in table(store, manifest.ref, tmp_path, f"{s}-00000.parquet")]
    assert "ЗВОНИТЕ МНЕ: [телефон] ИЛИ [имя]" in {r["text"] for r in rows}


# -- profiles and tokenizers from elsewhere


def source(store: ArtifactStore, data: bytes, name: str) -> str:
    ref = "source/" + "1" * 20
    writer = store.writer(ref)
    writer.put_bytes(name, data)
    writer.commit(stage="upload", spec={}, info={"name": name})
    return ref


def test_a_profile_of_the_users_own(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, channel(60), tmp_path)
    ref = source(store, 'name = "mine"\n[[rule]]\nuse = "tidy"\nmax_blank_lines = 0\n'.encode("utf-8-sig"), "mine.toml")
    manifest = run_here(store, SPEC.model_copy(update={"profile_file": ref}), tmp_path / "work")
    assert manifest.info["profile"] == "mine"
    assert manifest.inputs == {"posts": POSTS, "profile_file": ref}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'name = "mine"\n[[rule]]\nuse = "explode"\n', "mine.toml, line 3: rule 1 (explode): there is no rule"),
        (b'name = "mine"\n[[rule]]\nuse = "drop_post"\ntext = "("\n', "mine.toml, line 4: rule 1 (drop_post): text: "),
        (b'name = "mine"\n# \xff\n', "mine.toml, line 2: this is not UTF-8 text"),
    ],
)
def test_a_wrong_profile_ends_the_stage_with_a_sentence(
    store: ArtifactStore, run_stage: RunStage, tmp_path: Path, data: bytes, words: str
) -> None:
    upload(store, channel(10), tmp_path)
    spec = SPEC.model_copy(update={"profile_file": source(store, data, "mine.toml")})
    done = run_stage(spec)
    assert done.code == 64
    assert done.last.startswith(words)
    assert "Traceback" not in done.stderr
    assert store.find(spec.ref()) is None


def test_a_rule_that_makes_too_much_of_a_post_is_named_with_its_line(
    store: ArtifactStore, run_stage: RunStage, tmp_path: Path
) -> None:
    upload(store, [Post(id=7, channel="x", text="а" * 100_000)], tmp_path)
    data = (
        b'name = "mine"\n[[rule]]\nuse = "tidy"\n[[rule]]\nuse = "replace"\npattern = "."\nwith = "'
        + b"x" * 500
        + b'"\n'
    )
    done = run_stage(SPEC.model_copy(update={"profile_file": source(store, data, "mine.toml"), "workers": 2}))
    assert done.code == 64, done.stderr
    assert done.last.startswith(
        "mine.toml, line 4: rule 2 (replace): makes more than 8388608 characters of the post x/7;"
    )
    assert "Traceback" not in done.stderr


def test_the_tokenizer_of_a_base_model(store: ArtifactStore, tmp_path: Path) -> None:
    made = train_bpe([[t.lower() for t in posts(200, seed=5)]], 350, tmp_path / "tokenizer", "x")
    base = "model/" + "2" * 20
    writer = store.writer(base)
    writer.put_folder(made.folder)
    writer.put_bytes("model.safetensors", b"large")
    writer.commit(stage="mirror", spec={})
    upload(store, channel(100), tmp_path)
    spec = SPEC.model_copy(update={"base_model": base, "model": "some/hub-model"})
    found = [run_here(store, spec, tmp_path / f"work-{n}") for n in range(2)]
    style = Style.from_json(store.read(found[0].ref, found[0].file("style.json")))
    assert style.tokenizer == base
    assert style.vocab_size == made.vocab_size
    assert (style.bos_token_id, style.eos_token_id, style.pad_token_id) == (2, 3, 0)
    assert not (tmp_path / "work-0" / "base" / "model.safetensors").exists()
    # loaded from another temporary folder each time, and the same
    assert {f.path: f.sha256 for f in found[0].files} == {f.path: f.sha256 for f in found[1].files}


def test_a_base_model_without_a_tokenizer(store: ArtifactStore, tmp_path: Path) -> None:
    base = "model/" + "3" * 20
    writer = store.writer(base)
    writer.put_bytes("model.safetensors", b"large")
    writer.commit(stage="mirror", spec={})
    upload(store, channel(10), tmp_path)
    with pytest.raises(DataError, match="has no tokenizer files"):
        run_here(store, SPEC.model_copy(update={"base_model": base}), tmp_path / "work")


def test_a_hub_model_that_cannot_be_had(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, channel(10), tmp_path)
    with pytest.raises(ConfigError, match=r"cannot load the tokenizer of nobody/nothing: .*mirror the model"):
        run_here(store, SPEC.model_copy(update={"model": "nobody/nothing"}), tmp_path / "work")


# -- too little to work with


def test_no_posts(store: ArtifactStore, run_stage: RunStage, tmp_path: Path) -> None:
    upload(store, [], tmp_path)
    done = run_stage(SPEC)
    assert done.code == 65
    assert "holds no posts" in done.last
    assert store.find(SPEC.ref()) is None


def test_nothing_is_left(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, [Post(id=n, channel="x", text="БУГУРТ-ТРЕД") for n in range(1, 6)], tmp_path)
    with pytest.raises(DataError, match=r"no post is left of 5: .*\(nothing_left 5\)"):
        run_here(store, SPEC, tmp_path / "work")


def test_one_post_over_and_over(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, [Post(id=n, channel="x", text="КОТ ПРИШЁЛ") for n in range(1, 6)], tmp_path)
    with pytest.raises(DataError, match="at least two different posts"):
        run_here(store, SPEC, tmp_path / "work")


def test_two_posts_are_enough(store: ArtifactStore, tmp_path: Path) -> None:
    upload(store, [Post(id=1, channel="x", text="КОТ ПРИШЁЛ"), Post(id=2, channel="x", text="ПЁС УШЁЛ")], tmp_path)
    manifest = run_here(store, SPEC, tmp_path / "work")
    assert (manifest.counts["train"], manifest.counts["validation"]) == (1, 1)


def test_missing_posts(store: ArtifactStore, run_stage: RunStage) -> None:
    done = run_stage(SPEC)
    assert done.code == 65
    assert done.last.startswith(f"there is no artefact {POSTS}")


def test_a_scratch_model_without_a_size() -> None:
    from jobs.preprocess.tokenizer import is_scratch

    with pytest.raises(SpecError, match="write scratch:SIZE"):
        is_scratch(SPEC.model_copy(update={"model": "scratch:"}))


def test_counts_of_a_batch_are_not_held(
    store: ArtifactStore, tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a megabyte, whatever the batch's size."""
    upload(store, channel(400), tmp_path)
    counts: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watching(task: Any) -> Any:
        done = clean_batch(task)
        counts.append(weakref.ref(done.buckets))
        alive.append(sum(count() is not None for count in counts))
        return done

    monkeypatch.setattr(gather, "clean_batch", watching)
    run_here(store, SPEC, tmp_path / "work")
    assert len(alive) > 3
    assert set(alive) == {1}


def test_a_tokenizer_is_made_for_the_last_selection_only(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A selection that is given up before its tokenizer was begun costs nothing."""
    upload(store, channel(200), tmp_path)
    begun, chosen = threading.Event(), threading.Event()
    made: list[list[str]] = []

    def choosing(ctx: Any, corpus: Any, workers: Any, chose: Callable[[Any], None]) -> Any:
        def several(selection: Any) -> None:
            chose(selection)
            assert begun.wait(20)
            chose(selection)
            chose(selection)
            chosen.set()

        return select(ctx, corpus, workers, several)

    def training(texts: Any, *rest: Any) -> Any:
        begun.set()
        assert chosen.wait(20)
        made.append([t for part in texts for t in part])
        return train_bpe([made[-1]], *rest)

    monkeypatch.setattr(pipeline, "select", choosing)
    monkeypatch.setattr(pipeline, "train_bpe", training)
    manifest = run_here(store, SPEC, tmp_path / "work")
    assert len(made) == 2
    assert len(made[-1]) == manifest.counts["train"]


def test_a_signal_does_not_wait_for_the_tokenizer(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On words that hardly repeat training takes many seconds, and nothing can end it before its time."""
    upload(store, channel(200), tmp_path)
    go_on, begun = threading.Event(), threading.Event()

    def training(*args: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        done.set()

    def interrupted(*args: Any, **options: Any) -> Any:
        assert begun.wait(60)
        raise Interrupted("interrupted by a signal")

    done = threading.Event()
    monkeypatch.setattr(pipeline, "train_bpe", training)
    monkeypatch.setattr(pipeline, "write_excluded", interrupted)
    with pytest.raises(Interrupted):
        run_here(store, SPEC, tmp_path / "work")
    assert not done.is_set()
    go_on.set()
    assert done.wait(60)


def test_a_step_in_two_pieces_is_the_sum_of_them() -> None:
    clock = pipeline.Clock()
    for started in (10.0, 20.0):
        clock.started -= started
        clock.lap("tokenizer")
    assert 30 <= clock.steps["tokenizer"] < 40
