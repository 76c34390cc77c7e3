"""The stage whole: as processes and as shards, on models that were really trained."""

from __future__ import annotations

import io
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.artifacts import ArtifactStore
from jobs.generate.overlap import words
from jobs.generate.parts import Plan
from jobs.generate.records import to_line
from jobs.generate.stage import folder_of_parts
from jobs.similarity import jaccard, shingles
from jobs.specs import ConfigError, GenerateSpec
from jobs.stage import StageContext
from tests.conftest import MadeOnce, RunStage, stage_env
from tests.generate.batches import files_of, quiet, records, spec_of
from tests.generate.models import MadeModel, channel, make_model, put_source

FIELDS = {
    "index", "text", "prompt", "seed", "attempts", "tokens", "score", "score_per_character", "ended", "gates",
    "overlap_words", "overlap", "similarity", "model",
}  # fmt: skip


def report_of(store: ArtifactStore, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read(ref, store.manifest(ref).file("report.json")))
    return found


@pytest.mark.plain
def test_a_batch(store: ArtifactStore, run_stage: RunStage, writer: MadeModel) -> None:
    spec = spec_of(writer.put(store))
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    manifest = store.manifest(spec.ref())
    assert [f.path for f in manifest.files] == [
        "batch.parquet", "index.html", "part-00000.jsonl", "part-00001.jsonl", "report.json",
    ]  # fmt: skip
    posts = records(store, spec.ref())
    assert [p["index"] for p in posts] == list(range(40))
    for post in posts:
        assert set(post) == FIELDS
        assert post["ended"]
        assert post["text"] == post["text"].upper()
        assert post["gates"]["form"] == "ok"
        assert (post["prompt"], post["model"]) == ("", spec.model)
        assert 0 < post["tokens"] <= 61
        assert post["score"] < 0
        assert post["overlap_words"] <= spec.max_overlap_words
        assert post["overlap_words"] == len(words(post["overlap"]))
        assert post["similarity"] < spec.max_similarity
    table = pq.read_table(io.BytesIO(store.read(spec.ref(), manifest.file("batch.parquet"))))
    assert table.column("text").to_pylist() == [p["text"] for p in posts]
    assert [json.loads(g) for g in table.column("gates").to_pylist()] == [p["gates"] for p in posts]
    report = report_of(store, spec.ref())
    assert (report["posts"], report["missing"], report["compared_with"]) == (40, 0, 800)
    assert report["drawn"] == 40 + sum(report["refused"].values()) + report["passed_but_not_needed"]
    assert report["batch"]["share_with_separator"] == report["training"]["share_with_separator"] == 1.0
    assert 0 < report["batch"]["distinct"]["1"] < report["batch"]["distinct"]["3"] <= 1
    assert manifest.counts["posts"] == 40
    assert not list(store.bucket.list(f"{spec.ref()}/parts/"))
    again = run_stage(spec, run="another")
    assert (again.code, "nothing to do" in again.last) == (0, True)


def test_forcing_makes_the_same_posts(store: ArtifactStore, run_stage: RunStage, writer: MadeModel) -> None:
    spec = spec_of(writer.put(store), count=20)
    assert run_stage(spec).code == 0
    first, created = files_of(store, spec.ref()), store.manifest(spec.ref()).created
    assert run_stage(spec, run="second", env={"BUGURT_FORCE": "1"}).code == 0
    assert store.manifest(spec.ref()).created > created
    assert files_of(store, spec.ref()) == first


def parts_there(store: ArtifactStore, ref: str) -> list[str]:
    return [o.path for o in store.bucket.list(f"{ref}/parts/") if o.path.endswith("/manifest.json")]


def until_a_part_is_there(store: ArtifactStore, ref: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not parts_there(store, ref):
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a bucket tells nobody what is put into it


def start(spec: GenerateSpec, env: dict[str, str], folder: Path, **extra: str) -> subprocess.Popen[Any]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.generate"],
        env=stage_env(env, "killed", {"BUGURT_SPEC": spec.model_dump_json(), **extra}),
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )


@pytest.mark.slow
def test_shards_kills_and_order_do_not_matter(
    store: ArtifactStore,
    run_stage: RunStage,
    in_shards: Callable[..., None],
    writer: MadeModel,
    s3_env: dict[str, str],
    tmp_path: Path,
) -> None:
    # Near-duplicates are common at 0.6, so that parts lose posts to each other and some are drawn anew.
    spec = spec_of(writer.put(store), count=220, micro_batch=4, near_duplicates=0.6)
    ref = spec.ref()
    assert len(Plan(spec.count, spec.micro_batch)) == 7

    killed = start(spec, s3_env, tmp_path)
    until_a_part_is_there(store, ref, killed)
    killed.kill()
    killed.wait()
    assert store.find(ref) is None
    kept = set(parts_there(store, ref))
    assert run_stage(spec).code == 0
    expected = files_of(store, ref)
    posts = records(store, ref)
    assert report_of(store, ref)["rounds"] > 1
    assert len(posts) > 210
    sets = [shingles(p["text"]) for p in posts]
    assert max(jaccard(a, b) for a, b in itertools.combinations(sets, 2)) < 0.6

    for shards, order in ((3, [2, 0, 1]), (7, [6, 5, 4, 3, 2, 1, 0])):
        store.remove(ref)
        sharded = spec.model_copy(update={"shards": shards})
        assert sharded.ref() == ref
        if shards == 3:  # one shard is killed in the middle of its work, and started again with the others
            killed = start(sharded, s3_env, tmp_path, JOB_COMPLETION_INDEX="1")
            until_a_part_is_there(store, ref, killed)
            killed.kill()
            killed.wait()
            kept = set(parts_there(store, ref))
            assert 1 <= len(kept) < 4
        in_shards(sharded, order)
        assert files_of(store, ref) == expected


@pytest.mark.plain
def test_a_signal_ends_it_and_the_rest_is_done_later(
    store: ArtifactStore, run_stage: RunStage, writer: MadeModel, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = spec_of(writer.put(store), count=400)
    process = start(spec, s3_env, tmp_path)
    until_a_part_is_there(store, spec.ref(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert store.find(spec.ref()) is None
    before = {o.path: o.modified for o in store.bucket.list(f"{spec.ref()}/parts/")}
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    drawn = [line["message"] for line in result.log if line["message"].startswith("part 00-")]
    assert len(drawn) == len(Plan(400, 16)) - len([p for p in before if p.endswith("manifest.json")])


def test_one_of_two_that_finish_together_commits(
    store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[str] = []
    commit = StageContext.commit

    def counted(self: StageContext[Any], *args: Any, **kwargs: Any) -> Any:
        commits.append(self.ref)
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(StageContext, "commit", counted)
    spec = spec_of(writer.put(store), count=64, shards=2)
    in_shards(spec)
    assert commits == [spec.ref()]
    assert len(records(store, spec.ref())) == 64


def longest_shared_run(text: str, posts: list[str]) -> int:
    """By trying every run of words: nothing of the stage's own search is in here."""
    own = words(text)
    padded = [f" {' '.join(words(p))} " for p in posts]
    for length in range(len(own), 0, -1):
        for at in range(len(own) - length + 1):
            if any(f" {' '.join(own[at : at + length])} " in p for p in padded):
                return length
    return 0


def test_a_model_that_knows_its_posts_by_heart(store: ArtifactStore, run_stage: RunStage, parrot: MadeModel) -> None:
    spec = spec_of(parrot.put(store), count=24, max_overlap_words=4, max_attempts=12)
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    posts = records(store, spec.ref())
    report = report_of(store, spec.ref())
    assert posts
    assert max(longest_shared_run(p["text"], parrot.texts) for p in posts) <= 4
    assert {p["overlap_words"] for p in posts} <= {longest_shared_run(p["text"], parrot.texts) for p in posts}
    assert all(p["text"] not in parrot.texts for p in posts)
    assert report["refused"]["overlap"] > report["drawn"] / 2
    assert report["missing"] == 24 - len(posts)
    if report["missing"]:
        assert "the bound on attempts" in " ".join(line["message"] for line in result.log)
    # Without the gate the same model hands out its training posts: the gate has something to do here.
    free = spec_of(parrot.put(store), count=24, max_overlap_words=500, max_similarity=1.0, near_duplicates=1.0)
    free = free.model_copy(update={"max_attempts": 2})
    assert run_stage(free).code == 0
    assert sum(longest_shared_run(p["text"], parrot.texts) > 4 for p in records(store, free.ref())) >= 1


@pytest.fixture(scope="session")
def endless(made_once: MadeOnce) -> MadeModel:
    """A model that goes on and on: in its training no post ended."""
    texts = channel(60)
    return MadeModel(made_once("endless", lambda folder: make_model(folder, texts, steps=40, ends=False)), texts)


def test_a_model_that_never_ends_a_post(store: ArtifactStore, run_stage: RunStage, endless: MadeModel) -> None:
    spec = spec_of(endless.put(store), count=1000)
    result = run_stage(spec)
    assert result.code == 65
    assert "drawn posts passed the gates" in result.last
    assert "did not end by themselves" in result.last
    assert store.find(spec.ref()) is None


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA failed with error out of memory"), RuntimeError("std::bad_alloc"), MemoryError("no room")],
    ids=str,
)
def test_no_memory_for_a_batch(
    store: ArtifactStore,
    in_shards: Callable[..., None],
    untrained: MadeModel,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def draw(self: Any, prompts: Any) -> Any:
        raise error

    monkeypatch.setattr("jobs.generate.engines.ct2.CTranslate2Session.draw", draw)
    spec = spec_of(untrained.put(store))
    with pytest.raises(ConfigError, match=rf"16 posts at once do not fit into memory \({error}\): lower 'micro_batch'"):
        in_shards(spec)
    assert store.find(spec.ref()) is None


def test_gates_that_refuse_everything(store: ArtifactStore, run_stage: RunStage, writer: MadeModel) -> None:
    spec = spec_of(writer.put(store), count=5, min_characters=4000, max_attempts=3)
    result = run_stage(spec)
    assert result.code == 65
    assert result.last == "none of 15 drawn posts passed the gates: " + result.last.partition(": ")[2]
    assert "were too short or too long" in result.last
    assert store.find(spec.ref()) is None


def test_prompts_that_cannot_be_used(store: ArtifactStore, run_stage: RunStage, untrained: MadeModel) -> None:
    model = untrained.put(store)
    empty = run_stage(spec_of(model, prompts_file=put_source(store, " \n\n")))
    assert (empty.code, empty.last) == (65, "prompts_file: prompts.txt has no prompt in it; write one a line")
    long = run_stage(spec_of(model, prompts=("КОТ", "Щ" * 300)))
    assert long.code == 64
    assert "context holds 128" in long.last
    lost = run_stage(spec_of("model/" + "1" * 20))
    assert (lost.code, "there is no artefact model/1111" in lost.last) == (65, True)


def test_prompts_stand_at_the_beginning(
    store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel
) -> None:
    model = writer.put(store)
    spec = spec_of(model, prompts=("КОТ @", "ДЕД МОЕТ"), count=24, form=False, max_attempts=50)
    in_shards(spec)
    posts = records(store, spec.ref())
    assert len(posts) == 24
    for post in posts:
        assert post["prompt"] == spec.prompts[post["index"] % 2]
        assert post["text"].startswith(("КОТ\n@\n", "ДЕД МОЕТ")[post["index"] % 2])
    file = put_source(store, "КОТ\n\nДЕД МОЕТ\n")
    from_file = spec_of(model, prompts_file=file, count=8, form=False, max_attempts=50)
    in_shards(from_file)
    assert [p["prompt"] for p in records(store, from_file.ref())] == ["КОТ", "ДЕД МОЕТ"] * 4
    drawn = spec_of(model, openings=True, count=24, max_attempts=50)
    in_shards(drawn.model_copy(update={"shards": 2}))
    posts = records(store, drawn.ref())
    assert len({p["prompt"] for p in posts}) > 10
    assert all(p["text"].startswith(p["prompt"]) for p in posts)


def test_a_model_whose_dataset_is_gone(store: ArtifactStore, run_stage: RunStage, writer: MadeModel) -> None:
    spec = spec_of(writer.put(store, with_dataset=False), count=8)
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    assert any("not compared with training posts" in line["message"] for line in result.log)
    report = report_of(store, spec.ref())
    assert (report["compared_with"], report["training"]) == (None, None)
    assert {p["overlap_words"] for p in records(store, spec.ref())} == {None}


def test_the_reference_engine(store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel) -> None:
    spec = spec_of(writer.put(store), count=12, engine="transformers")
    in_shards(spec)
    posts = records(store, spec.ref())
    assert len(posts) == 12
    assert "transformers" in report_of(store, spec.ref())["engine"]


def test_peak_memory_does_not_grow_with_the_count(
    store: ArtifactStore, untrained: MadeModel, s3_env: dict[str, str], tmp_path: Path
) -> None:
    """Parts are bounded by their size; what could grow is the end, so it is given many parts that are drawn."""
    model = untrained.put(store)
    peaks = {}
    for count in (1_000, 20_000):
        spec = spec_of(model, count=count, micro_batch=64)
        put_parts(store, spec)
        # From a small process: a peak that getrusage tells begins with what the parent held when it started the child.
        done = subprocess.run(
            [sys.executable, "-c", PEAK, sys.executable, "-m", "jobs.generate"],
            env=stage_env(s3_env, "peak", {"BUGURT_SPEC": spec.model_dump_json()}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        assert store.manifest(spec.ref()).counts["posts"] == count
        peaks[count] = int(done.stdout) / 1024
    assert peaks[1_000] > 40, peaks
    assert peaks[20_000] - peaks[1_000] < 48, peaks  # MiB, for 19,000 posts more


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def put_parts(store: ArtifactStore, spec: GenerateSpec) -> None:
    """All parts of a batch as if they had been drawn, of posts that are unlike each other."""

    def put(number: int) -> None:
        part = Plan(spec.count, spec.micro_batch)[number]
        lines = bytearray()
        for index in part.slots:
            digits = "".join(f"{(index * 7919 + k * 104729) ** 3 % 999983:06d}" for k in range(25))
            text = "".join("АБВГДЕЖЗИК"[int(d)] for d in digits)
            spaced = " ".join(text[i : i + 6] for i in range(0, len(text), 6))
            lines += to_line(
                {
                    "index": index, "text": spaced, "prompt": "", "seed": 1, "attempts": 1, "tokens": 50,
                    "score": -1.0, "score_per_character": -0.5, "ended": True, "gates": {"ended": True},
                    "overlap_words": 2, "overlap": "КОТ ДЕД", "similarity": 0.1, "model": spec.model,
                }
            )  # fmt: skip
        tally = {"drawn": len(part.slots), "tokens": 0, "spare": 0, "refused": {}, "form": {}}
        output = store.writer(f"{folder}/{part.name}")
        output.put_bytes("posts-0.jsonl", bytes(lines))
        output.commit(stage="generate-part", spec={}, info={"tally": tally, "engine": "test"})

    assert spec.model is not None
    context = StageContext(spec, store, run="r", shard=None, workdir=Path(), progress=quiet(store))
    folder = folder_of_parts(context, store, store.manifest(spec.model))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(len(Plan(spec.count, spec.micro_batch)))))
