"""The policies of ``examples/policies``: each one opens what its holder needs, and nothing else."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from cli.driver import drive
from cli.runs import with_input
from cli.sources import upload
from jobs.artifacts import ArtifactStore
from jobs.specs import STAGES, ConfigError, ExitCode, RunSpec, StageName
from tests.bucket_policies import FOLDER, Gate, Policy, gate, needs
from tests.cli.fake_cluster import FakeCluster
from tests.conftest import RunStage
from tests.projects import Project
from tests.test_pipeline import QUICK, SAMPLE

PREFIX = "team"
NAMES = (*STAGES, "driver", "user", "keeper")
KINDS_OF: dict[str, str] = {"scrape": "posts", "preprocess": "dataset", "train": "model", "generate": "batch"}
#: What each stage may read besides what it makes.
READS: dict[str, set[str]] = {
    "scrape": {"source"},
    "preprocess": {"posts", "source", "model"},
    "train": {"dataset"},
    "generate": {"model", "dataset", "source"},
}
Behind = Callable[[str], tuple[Gate, dict[str, str]]]


@pytest.fixture
def behind(s3_env: dict[str, str]) -> Iterator[Behind]:
    """``behind(name)``: a gate with that policy, and the variables of its client."""
    with ExitStack() as stack:

        def start(name: str) -> tuple[Gate, dict[str, str]]:
            made = stack.enter_context(gate(s3_env, name, PREFIX))
            return made, made.env(s3_env, PREFIX)

        yield start


def test_there_is_a_policy_for_everybody() -> None:
    assert {p.stem for p in FOLDER.glob("*.json")} == set(NAMES)


@pytest.mark.parametrize(
    ("method", "target", "body", "wanted"),
    [
        ("HEAD", "/b", b"", [("s3:ListBucket", "arn:aws:s3:::b")]),
        ("GET", "/b?list-type=2&prefix=team%2F", b"", [("s3:ListBucket", "arn:aws:s3:::b")]),
        ("GET", "/b/a%20b/c?x-id=GetObject", b"", [("s3:GetObject", "arn:aws:s3:::b/a b/c")]),
        ("POST", "/b/k?uploads", b"", [("s3:PutObject", "arn:aws:s3:::b/k")]),
        ("DELETE", "/b/k?uploadId=1", b"", [("s3:AbortMultipartUpload", "arn:aws:s3:::b/k")]),
        (
            "POST",
            "/b?delete",
            b'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>x</Key></Object>'
            b"<Object><Key>y/z</Key></Object></Delete>",
            [("s3:DeleteObject", "arn:aws:s3:::b/x"), ("s3:DeleteObject", "arn:aws:s3:::b/y/z")],
        ),
    ],
)
def test_what_requests_need(method: str, target: str, body: bytes, wanted: list[tuple[str, str]]) -> None:
    assert needs(method, target, body) == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_makes_its_own_kind_and_no_other(stage: StageName) -> None:
    policy = Policy.of(stage, "b", PREFIX)

    def may(action: str, path: str) -> bool:
        return policy.allows((f"s3:{action}", f"arn:aws:s3:::b/{path}"))

    for kind in ("source", *KINDS_OF.values()):
        own = kind == KINDS_OF[stage]
        for path in (f"{PREFIX}/{kind}/1/manifest.json", f"{PREFIX}/{kind}/1/a/b"):
            assert may("GetObject", path) == (own or kind in READS[stage]), (kind, path)
            assert may("PutObject", path) == may("DeleteObject", path) == may("AbortMultipartUpload", path) == own
    for other in STAGES:
        assert may("PutObject", f"{PREFIX}/runs/r/{other}/log.txt") == (other == stage)
        assert may("PutObject", f"{PREFIX}/leases/{KINDS_OF[other]}/1/x.json") == (other == stage)
    for path in ("runs/r/run.json", "runs/r/status.json", "runs/r/driver/log.txt", "telegram", "leases/x", "x"):
        assert not may("PutObject", f"{PREFIX}/{path}")
    assert not may("PutObject", f"{PREFIX}/submitted/0-r")
    for elsewhere in (f"other/{KINDS_OF[stage]}/1/x", f"{KINDS_OF[stage]}/1/x", f"{PREFIX}x/{KINDS_OF[stage]}/1/x"):
        assert not may("GetObject", elsewhere) and not may("PutObject", elsewhere)
    assert may("PutObject", f"{PREFIX}/runs/r/scrape-2/log.txt") == (stage == "scrape")
    assert may("GetObject", f"{PREFIX}/telegram/entities/1/2.json") == (stage == "scrape")
    assert not policy.allows(("s3:ListBucket", "arn:aws:s3:::other"))
    assert not policy.allows(("s3:PutBucketPolicy", "arn:aws:s3:::b"))


def _denied(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.exit_code == ExitCode.BAD_CONFIG
    return str(caught.value)


@pytest.mark.slow
def test_all_work_under_their_policies(
    behind: Behind, run_stage: RunStage, project: Project, s3_env: dict[str, str]
) -> None:
    """A user hands a channel in, the four stages and the driver do their work, a user fetches it, a keeper tidies."""
    export = json.loads((SAMPLE / "result.json").read_text(encoding="utf-8"))
    export["messages"] = export["messages"][:160]
    file = project.folder / "export.json"
    file.write_text(json.dumps(export, ensure_ascii=False), encoding="utf-8")
    asked = ("submit", "pipeline", "--source", file.name, "--model", "scratch:tiny", "--count", "8", *QUICK)

    user, user_env = behind("user")
    project.env.update(user_env)
    upload(ArtifactStore.from_env(user_env), file)
    spec = RunSpec.model_validate(json.loads(project.ok(*asked, "--dry-run"))["run"]["spec"])
    gates: list[Gate] = [user]
    ref: str | None = None
    for stage in STAGES:
        guarded, env = behind(stage)
        gates.append(guarded)
        wanted = with_input(spec.spec(stage), ref)
        result = run_stage(wanted, run="by-hand", env=env)
        assert result.code == 0, (stage, result.last, guarded.refused)
        ref = wanted.ref()
        assert f"arn:aws:s3:::{s3_env['BUGURT_S3_BUCKET']}/{PREFIX}/{ref}/manifest.json" in _written(guarded)
    run = project.ok(*asked, "--wait").split()[1]  # all is found, so no Job is needed
    pulled = project.folder / "pulled"
    project.ok("artifacts", "pull", str(ref), "-o", str(pulled))
    assert (pulled / "part-00000.jsonl").is_file()
    assert project.json("status", run)["stages"][-1]["artifact"] == ref
    said = json.loads(project.run("doctor", "--json").stdout)
    assert {f["result"] for f in said if f["check"].startswith("bucket")} == {"ok"}

    guarded, env = behind("driver")
    gates.append(guarded)
    assert drive(ArtifactStore.from_env(env), FakeCluster(), run) == 0
    place = f"arn:aws:s3:::{s3_env['BUGURT_S3_BUCKET']}/{PREFIX}/runs/{run}"
    assert _written(guarded) == {f"{place}/status.json", f"{place}/index.html"}

    assert [g.refused for g in gates] == [[]] * len(gates)
    assert "denies access" in project.fails(78, "gc", "--older-than", "0")
    project.fails(78, "artifacts", "rm", str(ref))
    keeper, env = behind("keeper")
    project.env.update(env)
    project.ok("gc", "--older-than", "0")
    project.ok("artifacts", "rm", str(ref))
    assert keeper.refused == []
    assert ArtifactStore.from_env(env).find(str(ref)) is None


def _written(guarded: Gate) -> set[str]:
    return {resource for action, resource in guarded.passed if action == "s3:PutObject"}


def test_what_a_policy_does_not_allow_is_one_sentence_and_78(
    behind: Behind, run_stage: RunStage, store: ArtifactStore, tmp_path: Path
) -> None:
    """A stage with another's key, and one that may do all but commit."""
    (tmp_path / "posts.txt").write_text("ЧАЙНИК УШЁЛ\n\nКОТ ПРИШЁЛ", encoding="utf-8")
    _, env = behind("keeper")
    whole = ArtifactStore.from_env(env)
    spec = {"stage": "scrape", "source": upload(whole, tmp_path / "posts.txt")}
    _, env = behind("preprocess")
    result = run_stage(spec, run="other", env=env)
    assert (result.code, result.last.count("\n")) == (78, 0)
    assert "denies access to bucket" in result.last and "check the key and its policy" in result.last
    assert "Traceback" not in result.stderr

    guarded, env = behind("scrape")
    text = (FOLDER / "scrape.json").read_text(encoding="utf-8").replace("/posts/*", "/posts/*/part-*")
    guarded.policy = Policy(text, env["BUGURT_S3_BUCKET"], PREFIX)
    result = run_stage(spec, run="nearly", env=env)
    assert (result.code, result.last.count("\n")) == (78, 0)
    assert "denies access to bucket" in result.last
    assert "Traceback" not in result.stderr
    assert list(whole.list("posts")) == []
    progress = json.loads(whole.bucket.get_bytes("runs/nearly/scrape/progress.json"))
    assert (progress["state"], progress["exit_code"], progress["message"]) == ("failed", 78, result.last)


def test_elsewhere_all_are_refused(behind: Behind) -> None:
    _, env = behind("keeper")
    whole = ArtifactStore.from_env(env)
    for kind in KINDS_OF.values():
        whole.bucket.put_bytes(f"{kind}/{'0' * 20}/manifest.json", b"{}")
    for name in NAMES:
        _, env = behind(name)
        elsewhere = ArtifactStore.from_env({**env, "BUGURT_S3_PREFIX": "other"}).bucket
        for call in (
            partial(elsewhere.put_bytes, "posts/x", b""),
            partial(elsewhere.get_bytes, "posts/x"),
            partial(elsewhere.head, "posts/x"),
        ):
            assert "denies access" in _denied(call)
        if name == "keeper":
            continue
        own = ArtifactStore.from_env(env).bucket
        for kind in {*KINDS_OF.values()} - {KINDS_OF.get(name)}:
            path = f"{kind}/{'0' * 20}/{uuid.uuid4().hex}"
            _denied(partial(own.put_bytes, path, b""))
            _denied(partial(own.delete, [path]))
            _denied(partial(own.upload_file, FOLDER / "user.json", path))
