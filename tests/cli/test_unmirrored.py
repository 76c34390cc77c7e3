"""Pods that may not load from the hub, and a hub model that is not in the bucket: told at once, and mended by rerun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.assemble import mirrored_ref
from cli.runs import load_record
from cli.sending import check_model
from cli.submission import plan
from jobs.artifacts import ArtifactStore
from jobs.specs import ConfigError, RunSpec, TrainSpec
from tests.cli.api_server import ApiServer, serve
from tests.cli.fake_cluster import cluster_settings
from tests.cli.fake_kubernetes import ControlPlane
from tests.conftest import clean_env
from tests.projects import POSTS, Project

MODEL = "ai-forever/rugpt3small_based_on_gpt2"
SUBMIT = ("submit", "pipeline", "--source", "posts.txt", "--model", MODEL, "--name", "big")
SENTENCE = (
    f"{MODEL} is not in the bucket, and pods may not load from the hub: run `bugurt mirror {MODEL}`, "
    "or set hub = true in [cluster] and run `bugurt install`"
)
HUB = {"BUGURT_CLUSTER_HUB": "true"}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serve(ControlPlane()) as found:
        yield found


@pytest.fixture
def project(tmp_path: Path, s3_env: dict[str, str], server: ApiServer) -> Project:
    (tmp_path / "posts.txt").write_text(POSTS, encoding="utf-8")
    (tmp_path / "bugurt.toml").write_text('[cluster]\nkind = "kubernetes"\n')
    return Project(tmp_path, {**clean_env(), **s3_env, "KUBECONFIG": str(server.kubeconfig(tmp_path))})


def mirror(store: ArtifactStore) -> str:
    ref = mirrored_ref(MODEL, "main")
    store.writer(ref).commit(stage="mirror", spec={})
    return ref


def test_it_is_told_before_anything_runs(project: Project, server: ApiServer, store: ArtifactStore) -> None:
    assert f"error: {SENTENCE}\n" in project.fails(78, *SUBMIT)
    assert not server.plane.jobs() and project.json("runs") == []
    mirror(store)
    project.ok(*SUBMIT)
    assert list(server.plane.jobs()) == ["big-driver"]


def test_another_revision_is_another_mirror(project: Project, store: ArtifactStore) -> None:
    mirror(store)
    other = project.fails(78, *SUBMIT, "--set", "train.revision=v2", "--set", "preprocess.revision=v2")
    assert f"run `bugurt mirror {MODEL} --revision v2`" in other


def test_where_pods_may_load_from_the_hub_nothing_is_in_the_way(project: Project, server: ApiServer) -> None:
    project.ok(*SUBMIT, env={**project.env, **HUB})
    assert list(server.plane.jobs()) == ["big-driver"]


@pytest.mark.parametrize("model", ["scratch:tiny", "artefact"])
def test_models_that_need_no_hub(project: Project, server: ApiServer, store: ArtifactStore, model: str) -> None:
    ref = mirror(store) if model == "artefact" else model
    project.ok("submit", "pipeline", "--source", "posts.txt", "--model", ref, "--name", "big")
    assert list(server.plane.jobs()) == ["big-driver"]


def test_what_only_looks_is_warned(project: Project) -> None:
    dry = project.run(*SUBMIT, "--dry-run")
    assert dry.returncode == 0 and "kind: Job" in dry.stdout and SENTENCE not in dry.stdout
    estimate = project.run(*SUBMIT, "--estimate", "--tokens-per-second", "1000")
    assert estimate.returncode == 0, estimate.stderr
    for done in (dry, estimate):
        assert f"warning: {SENTENCE}\n" in done.stderr


def test_what_is_found_needs_no_model(store: ArtifactStore) -> None:
    spec = TrainSpec(dataset="dataset/" + "a" * 20, model=MODEL)
    store.writer(spec.ref()).commit(stage="train", spec=spec.identity())
    plans = plan(store, RunSpec(train=spec))
    check_model(cluster_settings(), plans, force=False)
    with pytest.raises(ConfigError, match="is not in the bucket"):
        check_model(cluster_settings(), plans, force=True)


def test_rerun_looks_for_the_mirror_again(project: Project, server: ApiServer, store: ArtifactStore) -> None:
    """A run of before, or of a time when pods might load from the hub."""
    server.plane.fault("driver", "exit", code=78)
    project.ok(*SUBMIT, env={**project.env, **HUB})
    server.plane.settle()
    for force in ((), ("--force",)):
        assert f"error: {SENTENCE}\n" in project.fails(78, "rerun", "big", *force)
    assert load_record(store, "big").attempt == 1
    ref = mirror(store)
    project.ok("rerun", "big")
    record = load_record(store, "big")
    assert record.attempt == 2 and record.spec.train is not None and record.spec.preprocess is not None
    assert record.spec.train.base_model == record.spec.preprocess.base_model == ref
    assert "big-driver-2" in server.plane.jobs()


def test_rerun_stays_with_the_hub_where_it_is_open(project: Project, server: ApiServer, store: ArtifactStore) -> None:
    """With the mirror it would be other work, and none of its checkpoints be found."""
    server.plane.fault("driver", "exit", code=75, times=99)
    hub = {**project.env, **HUB}
    project.ok(*SUBMIT, env=hub)
    server.plane.settle()
    mirror(store)
    before = load_record(store, "big").spec
    project.ok("rerun", "big", env=hub)
    assert load_record(store, "big").spec == before


@pytest.mark.parametrize("made", [2, 3])
def test_rerun_finds_what_was_made_with_the_hub_open(
    store: ArtifactStore, project: Project, server: ApiServer, made: int
) -> None:
    """What is there needs no mirror, though there is one now; only what is to be made takes it."""
    server.plane.fault("driver", "exit", code=75, times=99)
    project.ok(*SUBMIT, env={**project.env, **HUB})
    server.plane.settle()
    before = load_record(store, "big").spec
    for _ in range(made):
        item = next(item for item in plan(store, before) if item.found is None)
        assert item.ref is not None
        store.writer(item.ref).commit(stage=item.spec.stage, spec=item.spec.identity())
    ref = mirror(store)
    project.ok("rerun", "big")
    after = load_record(store, "big").spec
    assert after.preprocess == before.preprocess
    assert after.train is not None and after.train.base_model == (ref if made == 2 else None)


def test_rerun_by_force_makes_what_is_damaged_again(store: ArtifactStore, project: Project, server: ApiServer) -> None:
    project.ok("submit", "scrape", "--source", "posts.txt", "--name", "small")
    scrape = load_record(store, "small").spec.scrape
    assert scrape is not None
    store.bucket.put_bytes(f"{scrape.ref()}/manifest.json", b"{")
    server.plane.settle()
    assert "--force makes it again" in project.fails(65, "rerun", "small")
    project.ok("rerun", "small", "--force")
