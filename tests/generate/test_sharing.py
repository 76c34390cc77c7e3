"""Batches that several processes make: what they write, and while what is theirs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from jobs.artifacts import ArtifactStore, Lease
from jobs.generate.finish import Finish
from jobs.generate.parts import Drawing
from jobs.specs import TemporaryError
from tests.generate.batches import files_of, records, spec_of
from tests.generate.models import MadeModel


def test_a_batch_in_shards_is_committed_only_while_the_lease_is_held(
    store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(writer.put(store), count=64, shards=2)
    write = Finish._write

    def usurped(self: Finish, *args: Any) -> None:
        write(self, *args)
        store.bucket.delete([o.path for o in store.bucket.list(f"leases/{spec.ref()}/")])

    with monkeypatch.context() as patch, pytest.raises(TemporaryError, match="was lost"):
        patch.setattr(Finish, "_write", usurped)
        in_shards(spec)
    assert store.find(spec.ref()) is None
    in_shards(spec, name="again")
    assert len(records(store, spec.ref())) == 64
    assert not list(store.bucket.list("leases/batch/"))


def test_a_shard_that_has_lost_its_lease_puts_no_part(
    store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(writer.put(store), count=64, shards=2)
    held: list[Lease] = []
    claims: set[str] = set()
    acquire, draw = Lease.acquire, Drawing.run

    def acquired(self: Lease) -> None:
        acquire(self)
        held.append(self)

    def usurped(self: Drawing) -> Any:
        found = draw(self)
        claims.update(o.path for o in store.bucket.list(f"leases/{spec.ref()}/parts/"))
        for lease in held:
            lease.lost.set()
        return found

    monkeypatch.setattr(Lease, "acquire", acquired)
    monkeypatch.setattr(Drawing, "run", usurped)
    with pytest.raises(TemporaryError, match="was lost"):
        in_shards(spec, order=[1])
    assert [path.split("/")[-2] for path in claims] == ["shard-1-of-2"]
    assert not list(store.bucket.list(f"{spec.ref()}/"))


def test_by_force_no_old_manifest_vouches_for_the_new_files_of_shards(
    store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(writer.put(store), count=64, shards=2)
    in_shards(spec)
    first = files_of(store, spec.ref())
    write = Finish._write

    def killed(self: Finish, *args: Any) -> None:
        write(self, *args)
        raise TemporaryError("killed in the middle")

    with monkeypatch.context() as patch, pytest.raises(TemporaryError, match="in the middle"):
        patch.setattr(Finish, "_write", killed)
        in_shards(spec, name="forced", force=True)
    assert store.find(spec.ref()) is None
    monkeypatch.setattr(Drawing, "run", lambda self: pytest.fail("what the first try drew is kept"))
    in_shards(spec, order=[1], name="forced", force=True)
    assert store.manifest(spec.ref()).run == "forced"
    assert files_of(store, spec.ref()) == first


def test_parts_of_other_weights_are_none_of_a_batchs(
    store: ArtifactStore, in_shards: Callable[..., None], writer: MadeModel, tmp_path: Path
) -> None:
    """A model that is trained again by force keeps its id."""
    ref = writer.put(store)
    spec = spec_of(ref, count=64, shards=2)
    in_shards(spec, order=[0])
    inputs = store.manifest(ref).inputs
    again = shutil.copytree(writer.folder, tmp_path / "again")
    weights = load_file(again / "model.safetensors")
    save_file(
        {k: v * 1.05 if k.endswith("ln_f.weight") else v for k, v in weights.items()}, again / "model.safetensors"
    )
    store.remove(ref)
    output = store.writer(ref)
    output.put_folder(again)
    output.commit(stage="train", spec={}, inputs=inputs)
    in_shards(spec, order=[1])
    assert store.find(spec.ref()) is None, "half of it would be of the old weights"
    in_shards(spec, order=[0])
    found = files_of(store, spec.ref())
    store.remove(spec.ref())
    in_shards(spec)
    assert files_of(store, spec.ref()) == found
