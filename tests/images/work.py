"""A small piece of real work for each stage, on the example channel: some posts, some steps, two new posts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from jobs.artifacts import ArtifactStore
from jobs.specs import AnyStageSpec, GenerateSpec, PreprocessSpec, ScrapeSpec, TrainSpec, digest_id

from .imports import ROOT

EXPORT = ROOT / "examples" / "channel" / "result.json"


def hand_in(store: ArtifactStore) -> str:
    """Put the example export into the bucket as ``submit`` does; its reference."""
    data = EXPORT.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    ref = f"source/{digest_id('source', 'upload', 1, ['result.json', digest], {})}"
    writer = store.writer(ref)
    writer.put_bytes("result.json", data)
    writer.commit(stage="upload", spec={}, info={"name": "result.json"})
    return ref


def specs(source: str) -> list[AnyStageSpec]:
    """The four specs, each on what the one before it makes."""
    scrape = ScrapeSpec(source=source, limit=200)
    preprocess = PreprocessSpec(posts=scrape.ref(), vocab_size=400, block_size=64, workers=1)
    train = TrainSpec(dataset=preprocess.ref(), max_steps=8, batch_size=8, learning_rate=0.01)
    # So few steps teach a model which letters there are, not how a post goes: its end comes by chance.
    chance = GenerateSpec(model=train.ref(), count=2, top_k=0, max_attempts=1000, max_new_tokens=64, workers=1)
    generate = chance.model_copy(update={"min_characters": 1, "form": False, "refuse_pii": False})
    return [scrape, preprocess, train, generate]


def posts(store: ArtifactStore, ref: str) -> list[bytes]:
    """The lines of a batch."""
    names = [entry.path for entry in store.manifest(ref).files if entry.path.endswith(".jsonl")]
    return [line for name in names for line in store.bucket.get_bytes(f"{ref}/{name}").splitlines()]


def do_all(store: ArtifactStore, run: Callable[[AnyStageSpec], None]) -> None:
    """Run the four stages one after the other and look at what each has committed."""
    chain = specs(hand_in(store))
    for spec in chain:
        run(spec)
        manifest = store.manifest(spec.ref())
        assert manifest.stage == spec.stage
        assert manifest.files, f"{spec.ref()} has no files"
    assert len(posts(store, chain[-1].ref())) == 2
