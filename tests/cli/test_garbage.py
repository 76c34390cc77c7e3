"""gc takes what nobody vouches for, and nothing else."""

from __future__ import annotations

from cli.garbage import collect
from jobs.artifacts import ArtifactStore


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
