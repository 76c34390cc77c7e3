"""The posts that the model was trained on, as generation needs them: to tell what is theirs and how they look."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from jobs.artifacts import ArtifactStore, Manifest
from jobs.generate.overlap import OverlapIndex
from jobs.similarity import SimilarityIndex, jaccard, shingles
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
        import pyarrow.parquet as pq

        for file in self._files:
            with pq.ParquetFile(file) as table:
                if "text" not in table.schema_arrow.names:
                    raise DataError(f"the dataset's {file.name} has no column 'text'")
                for batch in table.iter_batches(batch_size=4096, columns=["text"]):
                    yield from (t or "" for t in batch.column(0).to_pylist())

    def openings(self, words: int) -> list[str]:
        """The first words of every post's first line; posts without words are left out."""
        found = []
        for text in self.texts():
            first = next((line for line in text.splitlines() if any(c.isalnum() for c in line)), "")
            if first:
                found.append(" ".join(first.split()[:words]))
        return found

    def similarity(self, text: str, nearest: int | None) -> float:
        """True Jaccard similarity with the most alike training post that is found.

        MinHash finds posts from ``max_similarity`` on; below that, it is the similarity with post ``nearest``,
        the one that shares the longest run of words.
        """
        best = self.similar.best(text)
        if best is not None:
            return best.similarity
        if nearest is None:
            return 0.0
        return jaccard(shingles(text), shingles(self.similar.text(nearest), normalised=True))


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
