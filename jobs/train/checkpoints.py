"""Checkpoints in the bucket: a thread uploads them while training goes on; a manifest commits each.

They lie in ``runs/RUN/train/checkpoints/STEP/``. A training resumes from the newest whole one of whatever run
was making the same artefact, so a run that was cancelled and submitted again under another name loses nothing.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import BugurtError, ConfigError, DataError, LeaseLostError, NotFoundError, TemporaryError
from jobs.train.journal import Journal

log = logging.getLogger(__name__)

STAGE = "checkpoint"
#: Files of a checkpoint that the Trainer wrote and that are worth their bytes. Its pickled arguments are not.
KEPT = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "config.json",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "trainer_state.json",
    "journal.json",
)
NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json", "journal.json")  # nothing is resumed without them
BEST = "best"  # the folder within a checkpoint that holds the best weights, when they are not the checkpoint's own
FAILURES = 3  # uploads in a row that may fail before the training gives up


def folder_of(run: str) -> str:
    """Where a run's checkpoints lie."""
    return f"runs/{run}/train/checkpoints"


@dataclass(frozen=True)
class Found:
    """A committed checkpoint of the bucket."""

    ref: str
    step: int
    manifest: Manifest


def find(store: ArtifactStore, artifact: str, first_run: str) -> list[Found]:
    """All committed checkpoints of trainings that were making ``artifact``, the most advanced first.

    At equal steps those of ``first_run`` come first. Damaged manifests are passed over with a warning.
    """
    refs = [
        f"{folder_of(run)}/{step}"
        for run in store.bucket.folders("runs/")
        for step in store.bucket.folders(f"{folder_of(run)}/")
        if step.isdigit()
    ]

    def look(ref: str) -> Manifest | None:
        try:
            return store.find(ref)
        except DataError as error:
            log.warning("passing over a checkpoint: %s", error)
            return None

    with ThreadPoolExecutor(8) as pool:
        found = [
            Found(ref, int(ref.rpartition("/")[2]), manifest)
            for ref, manifest in zip(refs, pool.map(look, refs), strict=True)
            if manifest is not None and manifest.stage == STAGE and manifest.info.get("artifact") == artifact
        ]
    own = folder_of(first_run) + "/"
    return sorted(found, key=lambda f: (-f.step, not f.ref.startswith(own), f.ref))


def restore(store: ArtifactStore, found: list[Found], dest: Path) -> tuple[Found, Path] | None:
    """Download the first checkpoint that is whole, to a folder below ``dest``; None when there is none."""
    for candidate in found:
        folder = dest / f"checkpoint-{candidate.step}"
        try:
            store.download(candidate.ref, folder, manifest=candidate.manifest)
            Journal.load(folder)
        except (DataError, NotFoundError, OSError, ValueError, TypeError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            log.warning("checkpoint %s is not whole (%s); trying an older one", candidate.ref, error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        return candidate, folder
    return None


def remove_all(store: ArtifactStore, artifact: str, run: str) -> int:
    """Delete the checkpoints of trainings that were making ``artifact``; returns how many."""
    gone = find(store, artifact, run)
    for one in gone:
        store.remove(one.ref)
    return len(gone)


class Uploader:
    """Uploads one checkpoint at a time in a thread and keeps the newest ``keep`` of this run.

    A failed upload is no end of a training: it is said in the log and the next one tries again; after FAILURES
    in a row, when the bucket refuses us, or when the lease on the model is lost, the next call raises.
    """

    def __init__(
        self,
        store: ArtifactStore,
        *,
        run: str,
        artifact: str,
        spec: Mapping[str, Any],
        keep: int,
        guard: Callable[[], None] | None = None,
    ) -> None:
        """``guard`` is called before anything is written or removed, and may raise: the lease's ``ensure``.

        Another process that has taken the model over keeps its checkpoints in the same folder, if it is of the same
        run: what is still on its way here must neither overwrite nor prune them.
        """
        self._store, self._run, self._artifact, self._spec, self._keep = store, run, artifact, spec, keep
        self._guard = guard
        self._thread: threading.Thread | None = None
        self._error: BugurtError | None = None
        self._failed = 0
        self.seconds_uploading = 0.0
        self.last_seconds: float | None = None  # what the latest upload took

    def submit(self, folder: Path, step: int, best: Path | None) -> None:
        """Begin to upload a checkpoint's folder, which is deleted afterwards; waits for the upload before it.

        ``best``: the folder of the best weights, when they are not this checkpoint's. Raises what made earlier
        uploads fail for good.
        """
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(folder, step, best), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the upload that is under way, if any; raises as ``submit``."""
        self.settle()
        final = isinstance(self._error, ConfigError | LeaseLostError)
        if self._error is not None and (final or self._failed >= FAILURES):
            raise self._error

    def settle(self) -> None:
        """Wait for the upload that is under way, however it ends."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait for the last upload and raise what went wrong with it, if anything did."""
        self.wait()
        if self._error is not None:
            raise self._error

    def _work(self, folder: Path, step: int, best: Path | None) -> None:
        started = time.monotonic()
        try:
            self._upload(folder, step, best)
        except BugurtError as error:
            self._fail(step, error)
        except OSError as error:
            self._fail(step, TemporaryError(f"checkpoint {step} cannot be read back: {error}"))
        else:
            self._error, self._failed = None, 0
        finally:
            took = time.monotonic() - started
            self.last_seconds = took
            self.seconds_uploading += took
            shutil.rmtree(folder, ignore_errors=True)

    def _fail(self, step: int, error: BugurtError) -> None:
        self._error = error
        self._failed += 1
        log.warning("checkpoint %d was not kept: %s", step, error)

    def _upload(self, folder: Path, step: int, best: Path | None) -> None:
        ref = f"{folder_of(self._run)}/{step}"
        self._ensure()
        self._store.remove(ref)  # nobody must see a mixture of an old one and the new one
        writer = self._store.writer(ref, guard=self._guard)
        found = sorted(f for pattern in KEPT for f in folder.glob(pattern))
        if missing := set(NEEDED) - {f.name for f in found}:
            raise TemporaryError(f"checkpoint {step} lacks {', '.join(sorted(missing))}")
        for file in found:
            writer.put_file(file, file.name)
        if best is not None:
            for file in sorted(best.iterdir()):
                writer.put_file(file, f"{BEST}/{file.name}")
        self._ensure()
        writer.commit(stage=STAGE, spec=self._spec, info={"artifact": self._artifact, "step": step}, run=self._run)
        log.info("checkpoint %d is in the bucket", step)
        self._prune()

    def _ensure(self) -> None:
        if self._guard is not None:
            self._guard()

    def _prune(self) -> None:
        steps = sorted(
            (int(s) for s in self._store.bucket.folders(f"{folder_of(self._run)}/") if s.isdigit()), reverse=True
        )
        whole = [s for s in steps if self._store.bucket.head(f"{folder_of(self._run)}/{s}/manifest.json")]
        for step in whole[self._keep :]:
            self._ensure()
            self._store.remove(f"{folder_of(self._run)}/{step}")
