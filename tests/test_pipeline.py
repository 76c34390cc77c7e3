"""The whole way on one machine, with the real stages.

What kills do to it: ``tests/chaos``. With processes that load their libraries themselves: ``tests/test_network.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.projects import Project

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "channel"
#: A pipeline that takes seconds: a few steps of training say nothing of quality, and all of the plumbing.
#: The learning rate is such that after them the model ends a post now and then: one without an end is refused.
QUICK = (
    "--set", "preprocess.vocab_size=1000",
    "--set", "preprocess.workers=1",
    "--set", "train.max_steps=10",
    "--set", "train.learning_rate=0.005",
    "--set", "train.batch_size=4",
    "--set", "train.eval_steps=3",
    "--set", "train.checkpoint_steps=2",
    "--set", "generate.micro_batch=8",
    "--set", "generate.max_new_tokens=64",
    "--set", "generate.form=false",
    "--set", "generate.min_characters=1",
)  # fmt: skip


def submit(project: Project, *more: str) -> tuple[str, ...]:
    """The arguments of the quick pipeline over the project's small export."""
    return ("submit", "pipeline", "--source", "export.json", "--model", "scratch:tiny", "--count", "16", *QUICK, *more)


@pytest.fixture
def small(project: Project) -> Project:
    """A project with the first posts of the sample channel."""
    export = json.loads((SAMPLE / "result.json").read_text(encoding="utf-8"))
    export["messages"] = export["messages"][:160]
    (project.folder / "export.json").write_text(json.dumps(export, ensure_ascii=False), encoding="utf-8")
    return project


def contents(project: Project) -> dict[str, dict[str, str]]:
    """All artefacts: their files' digests. Volatile ones (curves with times) count by name only."""
    found: dict[str, dict[str, str]] = {}
    for manifest in project.bucket.glob("*/*/manifest.json"):
        body = json.loads(manifest.read_text(encoding="utf-8"))
        if body["kind"] not in ("posts", "dataset", "model", "batch"):
            continue
        files = {f["path"]: f["sha256"] for f in body["files"]}
        if body["kind"] == "model":
            files = {p: d for p, d in files.items() if p.endswith((".safetensors", "tokenizer.json", "style.json"))}
        found[f"{body['kind']}/{body['id']}"] = files
    return found


def assert_whole(project: Project) -> None:
    """Every manifest's files are there with their size; nobody holds a lease; no process or temporary file is left."""
    for manifest in project.bucket.glob("*/*/manifest.json"):
        body = json.loads(manifest.read_text(encoding="utf-8"))
        for entry in body["files"]:
            place = project.bucket / entry["artifact"] if entry.get("artifact") else manifest.parent
            assert (place / entry["path"]).stat().st_size == entry["size"], entry
    assert list((project.bucket / "leases").rglob("*.json")) == []
    assert list((project.folder / ".bugurt" / "jobs").glob("*/tmp")) == []


@pytest.mark.slow
def test_the_whole_way(small: Project) -> None:
    said = small.ok(*submit(small), "--wait")
    run = said.split()[1]
    status = small.json("status", run)
    assert [s["state"] for s in status["stages"]] == ["succeeded"] * 4
    assert_whole(small)

    batch = status["stages"][-1]["artifact"]
    model = status["stages"][-2]["artifact"]
    records = [json.loads(line) for line in small.ok("batches", "show", batch, "--json").splitlines()]
    assert len(records) == 16 and [r["index"] for r in records] == sorted(r["index"] for r in records)
    for record in records:
        assert {"text", "prompt", "seed", "index", "tokens", "model", "overlap_words"} <= set(record)
        assert record["model"] == model
        assert not any(c.islower() for c in record["text"]), "an upper-case channel gets upper-case posts"

    for ref in (s["artifact"] for s in status["stages"]):
        assert ref in small.ok("artifacts", "show", ref)
    pulled = small.folder / "pulled"
    small.ok("artifacts", "pull", model, "-o", str(pulled / "model"))
    small.ok("artifacts", "pull", status["stages"][1]["artifact"], "-o", str(pulled / "dataset"))
    open_with_other_tools(pulled)

    again = small.ok(*submit(small), "--wait")
    assert "everything was found" in again
    for ref in (s["artifact"] for s in status["stages"]):
        assert ref in again
    more = small.ok(*submit(small, "--seed", "1"), "--wait", "--dry-run")
    assert json.loads(more)["run"]["spec"]["generate"]["seed"] == 1


def open_with_other_tools(pulled: Path) -> None:
    """``datasets`` and ``transformers`` read what was pulled, without a word from us."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = load_dataset(
        "parquet", data_files=str(pulled / "dataset" / "train-*.parquet"), cache_dir=str(pulled / "cache")
    )["train"]
    assert rows.num_rows > 50 and isinstance(rows[0]["text"], str)
    model = AutoModelForCausalLM.from_pretrained(pulled / "model")
    tokenizer = AutoTokenizer.from_pretrained(pulled / "model")
    ids = tokenizer("привет", return_tensors="pt").input_ids
    assert model(ids).logits.shape[-1] == len(tokenizer) == model.config.vocab_size


@pytest.mark.slow
def test_cancel_and_rerun(small: Project) -> None:
    small.ok(*submit(small), "--detach")
    run = small.json("runs")[0]["run"]
    small.ok("cancel", run)
    assert small.json("status", run)["state"] == "cancelled"
    assert list((small.folder / ".bugurt" / "jobs").glob(f"{run}-driver*")) == []
    small.ok("rerun", run, "--wait")
    status = small.json("status", run)
    assert status["state"] == "succeeded" and status["attempt"] == 2
    assert_whole(small)


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ('{"name": "x", "messages": []}', "no"),
        ('{"name": "x", "type": "public_channel", "id": 1, "messages": [{"id": 1, "ty', ""),
        ("[]", ""),
        ("not json", ""),
    ],
)
def test_a_useless_export_stops_the_run_at_scrape(project: Project, export: str, words: str) -> None:
    (project.folder / "export.json").write_text(export, encoding="utf-8")
    said = project.fails(65, *submit(project), "--wait")
    assert "export.json" in said and words in said
    assert contents(project) == {}


def test_a_channel_whose_posts_are_all_dropped_stops_at_preprocess(project: Project) -> None:
    message: dict[str, Any] = {"id": 1, "type": "message", "date": "2020-01-01T00:00:00", "text": "", "photo": "x.jpg"}
    export = {"name": "x", "type": "public_channel", "id": 1, "messages": [message, {**message, "id": 2}]}
    (project.folder / "export.json").write_text(json.dumps(export), encoding="utf-8")
    project.fails(65, *submit(project), "--wait")
    assert [ref for ref in contents(project) if not ref.startswith("posts/")] == []
