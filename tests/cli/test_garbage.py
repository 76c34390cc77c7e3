"""gc takes what nobody vouches for, and nothing else."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import pytest

from cli import garbage
from cli.garbage import collect
from jobs.artifacts import ArtifactStore
from tests.conftest import S3Server
from tests.s3_faults import faulty_s3


def paths(store: ArtifactStore) -> set[str]:
    return {o.path for o in store.bucket.list()}


def test_what_goes_and_what_stays(store: ArtifactStore) -> None:
    done, half, busy = (f"posts/{c * 20}" for c in "abc")
    writer = store.writer(done)
    writer.put_bytes("part-00000.parquet", b"x")
    writer.commit(stage="scrape", spec={})
    store.bucket.put_bytes(f"{half}/part-00000.parquet", b"xyz")
    store.bucket.put_bytes(f"{busy}/part-00000.parquet", b"x")
    model = "model/" + "d" * 20
    for step, artifact in ((10, model), (20, "model/" + "e" * 20)):
        checkpoint = store.writer(f"runs/r/train/checkpoints/{step}")
        checkpoint.put_bytes("weights", b"x")
        checkpoint.commit(stage="train", spec={}, info={"artifact": artifact})
    store.writer(model).commit(stage="train", spec={})
    store.bucket.put_bytes("runs/r/train/checkpoints/30/weights", b"x")
    store.bucket.put_bytes("runs/r/run.json", b"{}")
    upload = store.bucket.client.create_multipart_upload(
        Bucket=store.bucket.settings.bucket, Key=store.bucket.key("batch/x/part")
    )["UploadId"]
    before = paths(store)

    with store.lease(busy, holder="run r"):
        assert collect(store, 3600.0, dry_run=False).lines == [], "everything is new"
        assert paths(store) >= before
        seen = collect(store, 0.0, dry_run=True)
        assert paths(store) >= before, "a dry run removes nothing"
        assert not any(busy in line for line in seen.lines), "somebody is at work on it"
    found = collect(store, 0.0, dry_run=False)
    assert set(found.lines) > set(seen.lines)
    gone = before - paths(store)
    assert gone == {
        f"{half}/part-00000.parquet",
        f"{busy}/part-00000.parquet",
        "runs/r/train/checkpoints/10/weights",
        "runs/r/train/checkpoints/10/manifest.json",
        "runs/r/train/checkpoints/30/weights",
    }
    assert found.size > 0
    assert upload not in {u for _, u, _ in store.bucket.open_uploads()}


def test_what_the_embedded_server_left_goes_when_it_is_old(store: ArtifactStore, s3_server: S3Server) -> None:
    """An upload lies under a name that no listing shows until it is whole."""
    folder = s3_server.folder / store.bucket.settings.bucket
    store.bucket.put_bytes("leases/posts/a/claim.json", b"{}")
    names = (".rclone_temp_put_new", ".rclone_temp_put_old", ".rclone_temp_multipart_old")
    new, old, large = (folder / "leases" / "posts" / "a" / name for name in names)
    for path in (new, old, large):
        path.write_bytes(b"half of it")
    for path in (old, large):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert {o.path for o in store.bucket.list("leases/posts/a/")} == {"leases/posts/a/claim.json"}
    seen = collect(store, 0, dry_run=True, embedded=folder)
    assert old.exists()
    found = collect(store, 0, dry_run=False, embedded=folder)
    litter = [line for line in found.lines if "server left" in line]
    assert litter == [f"leases/posts/a/{p.name}  (an upload that the server left)" for p in (large, old)]
    assert set(litter) < set(seen.lines) or litter == [line for line in seen.lines if "server left" in line]
    assert (new.exists(), old.exists(), large.exists()) == (True, False, False)


def test_work_in_progress_is_left_alone(store: ArtifactStore) -> None:
    ref = "batch/" + "a" * 20
    store.bucket.put_bytes(f"{ref}/part-00000.jsonl", b"{}")
    with store.lease(f"{ref}/part-00001", holder="shard 1"):
        collect(store, 0.0, dry_run=False)
        assert f"{ref}/part-00000.jsonl" in paths(store)


def test_what_was_left_behind_a_commit_goes(store: ArtifactStore) -> None:
    """A batch's parts and a scrape's cursor go with the commit; a process that is killed right there leaves them."""
    batch, posts, child = "batch/" + "a" * 20, "posts/" + "b" * 20, "posts/" + "c" * 20
    writer = store.writer(batch)
    writer.put_bytes("part-00000.jsonl", b"{}")
    writer.commit(stage="generate", spec={})
    part = store.writer(f"{batch}/parts/00-00000")
    part.put_bytes("posts.jsonl", b"{}")
    part.commit(stage="generate-part", spec={})
    writer = store.writer(posts)
    shard = writer.put_bytes("part-00000.parquet", b"x")
    writer.commit(stage="scrape", spec={})
    writer = store.writer(child)
    writer.adopt(shard.model_copy(update={"artifact": posts}))
    writer.commit(stage="scrape", spec={}, parent=posts)
    store.bucket.put_bytes(f"{posts}/.state.json", b"{}")
    damaged = "model/" + "d" * 20
    store.bucket.put_bytes(f"{damaged}/manifest.json", b"{")
    store.bucket.put_bytes(f"{damaged}/model.safetensors", b"x")
    before = paths(store)
    assert collect(store, 3600.0, dry_run=False).lines == [], "everything is new"
    with store.lease(batch, holder="run r"):
        found = collect(store, 0.0, dry_run=False)
    assert before - paths(store) == {f"{posts}/.state.json"}, "somebody may be at work on the batch"
    assert found.lines == [f"{posts}/  (1 file that it does not list)"]
    collect(store, 0.0, dry_run=False)
    assert before - paths(store) == {
        f"{posts}/.state.json",
        f"{batch}/parts/00-00000/posts.jsonl",
        f"{batch}/parts/00-00000/manifest.json",
    }


@pytest.mark.parametrize("way", ["goes on", "commits"])
def test_whoever_begins_while_it_looks_around_is_not_robbed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    ref = "posts/" + "a" * 20
    store.bucket.put_bytes(f"{ref}/part-00000.parquet", b"x")
    held = contextlib.ExitStack()

    def looked(*args: Any) -> Any:
        found = garbage_of(*args)
        if not begun:
            begun.append(True)
            lease = held.enter_context(store.lease(ref, holder="run r"))
            lease.ensure(ask=True)
            if way == "commits":
                writer = store.writer(ref)
                writer.put_bytes("part-00000.parquet", b"x")
                writer.commit(stage="scrape", spec={})
                held.close()
        return found

    begun: list[bool] = []
    garbage_of = garbage._of_artifact
    monkeypatch.setattr(garbage, "_of_artifact", looked)
    with held:
        found = collect(store, 0.0, dry_run=False)
    assert (begun, found.lines) == ([True], [])
    assert f"{ref}/part-00000.parquet" in paths(store)
    assert not [p for p in paths(store) if p.startswith("leases/")]


def test_shards_at_work_keep_the_parts_of_a_batch(store: ArtifactStore) -> None:
    ref = "batch/" + "a" * 20
    store.bucket.put_bytes(f"{ref}/parts/x/00-00000/manifest.json", b"{}")
    with (
        store.lease(f"{ref}/parts/x/shard-1-of-2", holder="run r"),
        garbage._undisturbed(store, ref, lambda moment: False, dry_run=False) as alone,
    ):
        assert not alone
    with garbage._undisturbed(store, ref, lambda moment: False, dry_run=False) as alone:
        assert alone


def test_checkpoints_of_a_training_that_goes_on_stay_whatever_their_age(store: ArtifactStore) -> None:
    store.bucket.put_bytes("runs/r/train/checkpoints/10/weights", b"x")  # on its way: no manifest yet
    store.bucket.put_bytes("runs/other/train/checkpoints/10/manifest.json", b"{")
    with store.lease("model/" + "a" * 20, holder="run r"):
        found = collect(store, 0.0, dry_run=False)
    assert found.lines == ["runs/other/train/checkpoints/10/  (checkpoint)"]
    assert "runs/r/train/checkpoints/10/weights" in paths(store)
    collect(store, 0.0, dry_run=False)
    assert "runs/r/train/checkpoints/10/weights" not in paths(store)


def test_many_artefacts_are_all_looked_at_and_files_beside_them_stay(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However their ids begin, and more of them than one request lists."""
    monkeypatch.setattr(garbage, "TOGETHER", 2)
    names = [*(f"{n:x}" * 20 for n in range(16)), "0" * 19 + "1", "ab" * 10, "no-id"]
    for name in names:
        store.bucket.put_bytes(f"posts/{name}/part-00000.parquet", b"x")
    store.bucket.put_bytes("posts/note.txt", b"not ours")
    found = collect(store, 0.0, dry_run=False)
    assert sorted(found.lines) == sorted(f"posts/{name}/  (never committed)" for name in names)
    assert paths(store) == {"posts/note.txt"}


@pytest.mark.parametrize("beside", [1, 64])
def test_many_runs_are_looked_at_by_few_requests(
    s3_env: dict[str, str], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, beside: int
) -> None:
    """Where they have little else in them; checkpoints of a training that goes on stay."""
    monkeypatch.setattr(garbage, "TOGETHER", 16)
    monkeypatch.setattr(garbage, "BESIDE", beside)
    runs = ["demo", "demo-2", "demo-23", *(f"load-{n:03}" for n in range(60)), "ы"]
    for run in runs:
        store.bucket.put_bytes(f"runs/{run}/train/log.txt", b"x")
        for step in (10, 20):
            store.bucket.put_bytes(f"runs/{run}/train/checkpoints/{step}/weights", b"x")
    with faulty_s3(s3_env["BUGURT_S3_ENDPOINT"]) as s3:
        behind = ArtifactStore.from_env({**s3_env, "BUGURT_S3_ENDPOINT": s3.endpoint})
        found = collect(behind, 0.0, dry_run=True)
        assert sorted(found.lines) == sorted(
            f"runs/{run}/train/checkpoints/{step}/  (checkpoint)" for run in runs for step in (10, 20)
        )
        asked = sum("prefix=runs" in target for _, target in s3.requests)
        assert asked < 20 if beside > 1 else asked > len(runs)
    with store.lease("model/" + "1" * 20, holder="run load-007"):
        collect(store, 0.0, dry_run=False)
    assert {p for p in paths(store) if "checkpoints" in p} == {
        f"runs/load-007/train/checkpoints/{step}/weights" for step in (10, 20)
    }


def test_names_that_go_on_from_others_are_looked_at_once(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "TOGETHER", 2)
    names = ["a", "ab", "abc", "abcd", "abcde", "b"]
    assert [start for start, _ in garbage._starts(names)] == ["a/", "ab/", "abc/", "abcd", "b"]
    for name in names:
        store.bucket.put_bytes(f"runs/{name}/train/checkpoints/10/weights", b"x")
    found = collect(store, 0.0, dry_run=True)
    assert sorted(found.lines) == [f"runs/{name}/train/checkpoints/10/  (checkpoint)" for name in names]
    assert found.size == len(names)


def cached(store: ArtifactStore, model: str, *, whole: bool = True) -> str:
    """A converted model; its folder."""
    folder = f"cache/ctranslate2/{model.partition('/')[2]}/int8"
    writer = store.writer(folder)
    writer.put_bytes("model.bin", b"x")
    if whole:
        writer.commit(stage="convert", spec={}, inputs={"model": model})
    return folder


def test_converted_models_go_with_their_model(store: ArtifactStore) -> None:
    there, gone, broken_off, busy, coming = (f"model/{c * 20}" for c in "abcde")
    for model in (there, broken_off):
        store.writer(model).commit(stage="train", spec={})
    kept = cached(store, there)
    folders = [cached(store, gone), cached(store, broken_off, whole=False)]
    in_use = [cached(store, busy), cached(store, coming)]
    assert collect(store, 3600.0, dry_run=False).lines == [], "everything is new"
    with store.lease(in_use[0], holder="a stage that reads it"), store.lease(coming, holder="a training"):
        assert collect(store, 0.0, dry_run=True).lines == [f"{folder}/  (converted)" for folder in folders]
        assert f"{folders[0]}/model.bin" in paths(store), "a dry run removes nothing"
        found = collect(store, 0.0, dry_run=False)
        assert found.lines == [f"{folder}/  (converted)" for folder in folders]
        left = {path.rpartition("/")[0] for path in paths(store) if path.startswith("cache/")}
        assert left == {kept, *in_use}
    collect(store, 0.0, dry_run=False)
    assert {path.rpartition("/")[0] for path in paths(store) if path.startswith("cache/")} == {kept}


def test_a_model_that_is_converted_while_gc_looks_around_is_kept(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "model/" + "a" * 20
    folder = cached(store, model, whole=False)
    held = contextlib.ExitStack()
    undisturbed = garbage._undisturbed

    def late(store_: ArtifactStore, ref: str, *args: Any, **more: Any) -> Any:
        if ref == folder:
            held.enter_context(store.lease(folder, holder="a generate stage that converts the model"))
        return undisturbed(store_, ref, *args, **more)

    monkeypatch.setattr(garbage, "_undisturbed", late)
    with held:
        assert collect(store, 0.0, dry_run=False).lines == []
    assert f"{folder}/model.bin" in paths(store)
