"""The end of a batch: final parts, ``batch.parquet``, the gallery, ``report.json``, and the commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactWriter, Manifest
from jobs.generate.gallery import Gallery
from jobs.generate.gates import GATES
from jobs.generate.language import Language
from jobs.generate.merge import Merge
from jobs.generate.parts import Plan, Tally
from jobs.generate.records import parquet_row, parquet_schema
from jobs.generate.statistics import Histogram, TextStatistics, of_texts
from jobs.generate.training import Training
from jobs.specs import GenerateSpec
from jobs.stage import StageContext

log = logging.getLogger(__name__)

_ROW_GROUP = 1024  # records in memory at a time

_GATE_WORDS = {
    "ended": "did not end by themselves",
    "clean": "had special tokens or broken characters",
    "length": "were too short or too long",
    "form": "had not the channel's form",
    "pii": "had personal data or links",
    "stop_words": "had stop words",
    "overlap": "shared too long a run of words with a training post",
    "similarity": "were too similar to a training post",
    "near_duplicate": "were near-duplicates of other posts",
}


def account(tally: Tally) -> str:
    """Who refused how many, in words, the most frequent first."""
    counts = sorted(tally.refused.items(), key=lambda item: (-item[1], GATES.index(item[0])))
    return ", ".join(f"{n} {_GATE_WORDS[gate]}" for gate, n in counts if n) or "none was refused"


class Finish:
    """Writes what a batch consists of, in one pass over its records, and commits it."""

    def __init__(
        self, ctx: StageContext[GenerateSpec], model: Manifest, language: Language, training: Training | None
    ) -> None:
        self._ctx, self._model, self._language, self._training = ctx, model, language, training
        self._batch = TextStatistics(language.style)
        self._overlap, self._attempts = Histogram(), Histogram()
        self._tokens = 0
        self._score = 0.0

    def commit(self, merge: Merge, plan: Plan, tally: Tally, *, engine: str, rounds: int) -> Manifest:
        """Write everything and commit; returns the batch's manifest."""
        ctx, spec = self._ctx, self._ctx.spec
        writer = ctx.writer()
        parquet = ctx.workdir / "batch.parquet"
        gallery = Gallery(spec, ctx.ref, self._model.ref)
        self._write(writer, merge.lines(), plan, parquet, gallery)
        writer.put_file(parquet)
        posts = self._batch.posts
        report = self._report(tally, engine=engine, rounds=rounds)
        writer.put_bytes("report.json", (json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode())
        with writer.open("index.html") as page:
            gallery.write(page, report)
        missing = spec.count - posts
        if missing:
            log.warning(
                "%d of %d posts passed after %d draws, the bound on attempts: %s", posts, spec.count, tally.drawn,
                account(tally),
            )  # fmt: skip
        else:
            log.info("%d posts of %d draws; of the rest, %s", posts, tally.drawn, account(tally))
        return ctx.commit(
            writer,
            counts={
                "posts": posts,
                "wanted": spec.count,
                "drawn": tally.drawn,
                "refused": sum(tally.refused.values()),
                "tokens": self._tokens,
            },
            info={
                "model": self._model.ref,
                "engine": engine,
                "passing": report["passing"],
                "refused": report["refused"],
                "compared_with": report["compared_with"],
            },
        )

    def _write(
        self, writer: ArtifactWriter, lines: Iterator[bytes], plan: Plan, parquet: Path, gallery: Gallery
    ) -> None:
        """Cut the records into the plan's parts; parts without records are left out."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = parquet_schema()
        rows: list[dict[str, Any]] = []
        number, buffer = 0, bytearray()

        def close_part() -> None:
            if buffer:
                writer.put_bytes(f"part-{number:05d}.jsonl", bytes(buffer))
                buffer.clear()

        def close_group() -> None:
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
            self._count(rows)
            rows.clear()

        with pq.ParquetWriter(parquet, schema, compression="zstd", version="2.6") as table:
            for line in lines:
                self._ctx.check_stop()
                post = json.loads(line)
                while post["index"] not in plan[number].slots:
                    close_part()
                    number += 1
                buffer += line
                rows.append(parquet_row(post))
                gallery.add(post)
                if len(rows) == _ROW_GROUP:
                    close_group()
            if rows:
                close_group()
        close_part()

    def _count(self, rows: Sequence[dict[str, Any]]) -> None:
        self._batch.add([row["text"] for row in rows])
        self._attempts.add_many([row["attempts"] for row in rows])
        self._overlap.add_many([row["overlap_words"] for row in rows if row["overlap_words"] is not None])
        for row in rows:
            self._tokens += row["tokens"]
            self._score += row["score"]

    def _report(self, tally: Tally, *, engine: str, rounds: int) -> dict[str, Any]:
        """``report.json``: the same for the same batch, whoever made it, so without times."""
        spec, posts = self._ctx.spec, self._batch.posts
        refused = {gate: tally.refused[gate] for gate in GATES}
        training = self._training
        return {
            "format": 1,
            "model": self._model.ref,
            "dataset": self._model.inputs.get("dataset"),
            "engine": engine,
            "wanted": spec.count,
            "posts": posts,
            "missing": spec.count - posts,
            "drawn": tally.drawn,
            "passing": round((tally.drawn - sum(refused.values())) / tally.drawn, 4),
            "refused": refused,
            "refused_share": {g: round(n / tally.drawn, 4) for g, n in refused.items()},
            "form_problems": dict(sorted(tally.form.items())),
            "passed_but_not_needed": tally.spare,
            "rounds": rounds,
            "compared_with": len(training) if training is not None else None,
            "thresholds": {
                "overlap_words": spec.max_overlap_words,
                "similarity": spec.max_similarity,
                "near_duplicates": spec.near_duplicates,
            },
            "tokens_drawn": tally.tokens,
            "tokens": self._tokens,
            "score": round(self._score / max(1, posts), 4),
            "attempts": self._attempts.plain(),
            "overlap_words": self._overlap.plain(),
            "batch": self._batch.plain(),
            "training": of_texts(training.texts(), self._language.style) if training is not None else None,
        }
