"""Posts that passed without being needed stand in for posts that are like those of other parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.generate.parts import Drawing, Plan
from jobs.generate.records import to_line
from jobs.generate.spares import Spares
from jobs.generate.stage import folder_of_parts
from jobs.specs import GenerateSpec
from jobs.stage import StageContext
from tests.generate.batches import quiet, records, spec_of
from tests.generate.models import MadeModel
from tests.generate.test_parts import unlike
from tests.generate.test_stage import report_of


class Two:
    """Prompts of two kinds, in turn."""

    def __getitem__(self, index: int) -> Any:
        return type("Prompt", (), {"given": ("КОТ", "ДЕД")[index % 2]})


def read(path: Path) -> list[tuple[int, str]]:
    return [(post["index"], post["text"]) for post in map(json.loads, path.read_bytes().splitlines())]


def test_a_spare_post_is_of_the_same_part_and_prompt_and_is_taken_once(tmp_path: Path) -> None:
    plan = Plan(100, 16)
    assert len(plan) == 4
    spares = Spares(plan, Two())  # type: ignore[arg-type]
    for part, prompts in ((1, ("ДЕД", "КОТ", "ДЕД")), (3, ("КОТ",))):
        path = tmp_path / f"{part}.jsonl"
        lines = [to_line({"index": 0, "prompt": p, "text": f"{p} {part} {n}"}) for n, p in enumerate(prompts)]
        path.write_bytes(b"".join(lines))
        spares.put(part, path)
    out = tmp_path / "out.jsonl"
    assert spares.take([3, 26, 27, 28, 60, 77, 98], out) == 3  # 28 finds the other's post taken
    assert read(out) == [(26, "КОТ 1 1"), (27, "ДЕД 1 0"), (98, "КОТ 3 0")]
    assert spares.take([27, 29, 98], out) == 1
    assert read(out) == [(27, "ДЕД 1 2")]
    assert spares.take([27, 28, 98], out) == 0


def put_part(store: ArtifactStore, spec: GenerateSpec, number: int, texts: Sequence[str], spare: Sequence[str]) -> None:
    """A part as if it had been drawn."""
    part = Plan(spec.count, spec.micro_batch)[number]
    assert spec.model is not None
    context = StageContext(spec, store, run="r", shard=None, workdir=Path(), progress=quiet(store))

    def line(index: int, text: str) -> bytes:
        return to_line(
            {
                "index": index, "text": text, "prompt": "", "seed": 1, "attempts": 1, "tokens": 50, "score": -1.0,
                "score_per_character": -0.5, "ended": True, "gates": {"ended": True}, "overlap_words": 2,
                "overlap": "КОТ ДЕД", "similarity": 0.1, "model": spec.model,
            }
        )  # fmt: skip

    tally = {"drawn": len(texts) + len(spare), "tokens": 0, "spare": len(spare), "refused": {}, "form": {}}
    output = store.writer(f"{folder_of_parts(context, store, store.manifest(spec.model))}/{part.name}")
    output.put_bytes("posts-0.jsonl", b"".join(map(line, part.slots, texts)))
    if spare:
        output.put_bytes("spares-0.jsonl", b"".join(line(part.slots[0], text) for text in spare))
    output.commit(stage="generate-part", spec={}, info={"tally": tally, "engine": "test"})


def test_nothing_is_drawn_anew_where_a_spare_post_can_stand_in(
    store: ArtifactStore, in_shards: Callable[..., None], untrained: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawing, "run", lambda self: pytest.fail("it was drawn"))
    spec = spec_of(untrained.put(store), count=40)
    texts = [unlike(n) for n in range(50)]
    put_part(store, spec, 0, texts[:20], [texts[45]])
    # Two of the second part are like posts of the first; so is the first of its spare ones.
    put_part(store, spec, 1, [texts[3], *texts[21:39], texts[7]], [texts[5], *texts[40:43]])
    in_shards(spec)
    posts = records(store, spec.ref())
    assert [post["index"] for post in posts] == list(range(40))
    assert [post["text"] for post in posts] == [*texts[:20], texts[41], *texts[21:39], texts[40]]
    report = report_of(store, spec.ref())
    assert (report["rounds"], report["refused"]["near_duplicate"], report["passed_but_not_needed"]) == (1, 3, 2)
    assert report["drawn"] == 45 == 40 + sum(report["refused"].values()) + report["passed_but_not_needed"]
