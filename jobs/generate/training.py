"""The posts that the model was trained on, as generation needs them: to tell what is theirs and how they look."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.artifacts import ArtifactStore, Manifest
from jobs.generate.overlap import OverlapIndex
from jobs.similarity import SimilarityIndex, jaccard, normalise, shingles
from jobs.specs import DataError, GenerateSpec

log = logging.getLogger(__name__)

TRAIN = "train-*.parquet"


class Training:
    """The train split: shared runs of words, similar posts, openings.

    Memory: some 12 bytes a word and 200 bytes a post besides the normalised texts.
    """

    def __init__(self, files: list[Path], spec: GenerateSpec) -> None:
        self._files = files
        self.overlaps = OverlapIndex(self.texts(), reach=spec.max_overlap_words + 1)
        self.similar = SimilarityIndex(spec.max_similarity)
        self.similar.add_many(self.texts())

    def __len__(self) -> int:
        return len(self.overlaps)

    def texts(self) -> Iterator[str]:
        """The posts' texts, in order, streamed."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from jobs.parquet import reading

        for file in self._files:
            with reading(f"the dataset's {file.name}"), pq.ParquetFile(file) as table:
                if "text" not in table.schema_arrow.names:
                    raise DataError(f"the dataset's {file.name} has no column 'text'")
                for batch in table.iter_batches(batch_size=4096, columns=["text"]):
                    yield from (t or "" for t in batch.column(0).cast(pa.string()).to_pylist())

    def openings(self, words: int) -> list[str]:
        """The first words of every post's first line; posts without words are left out."""
        found = []
        for text in self.texts():
            first = next((line for line in text.splitlines() if any(c.isalnum() for c in line)), "")
            if first:
                found.append(" ".join(first.split()[:words]))
        return found

    def similarities(self, texts: Sequence[str], nearest: Sequence[int | None]) -> list[float]:
        """For each text its true Jaccard similarity with the most alike training post that is found.

        MinHash finds posts from ``max_similarity`` on; ``nearest`` names for each text the post that shares the
        longest run of words with it, which is looked at in any case.
        """
        plain = [normalise(t) for t in texts]
        found = []
        for text, others, near in zip(plain, self.similar.candidates_many(plain), nearest, strict=True):
            numbers = {*others, near} if near is not None else set(others)
            own = shingles(text, normalised=True)
            found.append(
                max((jaccard(own, shingles(self.similar.text(n), normalised=True)) for n in numbers), default=0.0)
            )
        return found


def open_training(store: ArtifactStore, model: Manifest, spec: GenerateSpec, folder: Path) -> Training | None:
    """The training posts of a model, or None when its dataset is unknown or no longer in the bucket."""
    ref = model.inputs.get("dataset")
    manifest = store.find(ref) if ref else None
    if ref is None or manifest is None:
        log.warning(
            "%s: posts are not compared with training posts", f"{ref} is gone" if ref else "the model names no dataset"
        )
        return None
    store.download(ref, folder, TRAIN, manifest=manifest)
    files = sorted(folder.glob(TRAIN))
    training = Training(files, spec)
    log.info("comparing with %d training posts of %s", len(training), ref)
    return training
