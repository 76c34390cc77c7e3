"""What goes wrong in a training ends in one clear sentence, the right exit code, and a whole checkpoint."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.artifacts import ArtifactStore
from jobs.specs import TemporaryError, TrainSpec
from jobs.train.checkpoints import NEEDED, Uploader
from jobs.train.surroundings import out_of_memory
from tests.conftest import S3Server, stage_env
from tests.train import hooks
from tests.train.datasets import make_dataset
from tests.train.forks import Fork
from tests.train.proxy import way_to
from tests.train.test_resume import committed, undisturbed, weights

SPEC: dict[str, Any] = {"model": "scratch:tiny", "preset": "tiny", "batch_size": 4, "max_steps": 12, "eval_steps": 6}


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "batch_size": 8, "dataset": make_dataset(store)})
    done = Fork(spec, s3_env, tmp_path, hook=hooks.memory_for_two_blocks)
    assert done.end() == 0, done.text
    assert "batch_size 4, gradient_accumulation_steps 2" in done.text
    assert "batch_size 2, gradient_accumulation_steps 4" in done.text
    info = store.manifest(spec.ref()).info
    assert (info["settings"]["batch_size"], info["settings"]["gradient_accumulation_steps"]) == (2, 4)
    assert b"| batch_size | 2 |" in store.read(spec.ref(), store.manifest(spec.ref()).file("README.md"))
    loss = info["best_loss"]
    store.remove(spec.ref())
    whole = Fork(spec, s3_env, tmp_path)
    assert whole.end() == 0, whole.text
    assert store.manifest(spec.ref()).info["best_loss"] == pytest.approx(loss, rel=1e-4)


def test_memory_that_runs_out_later_costs_no_more_than_an_interval(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store), "checkpoint_steps": 3})
    done = Fork(spec, s3_env, tmp_path, hook=hooks.memory_ends_at_step_eight)
    assert done.end() == 0, done.text
    assert "resuming at step 7" in done.text
    assert store.manifest(spec.ref()).counts["steps"] == 12


def test_memory_that_really_ends(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    # In fp32: what oneDNN keeps for bf16 besides would leave the next attempt too little of the bounded room.
    fields = {"batch_size": 128, "max_steps": 1, "eval_steps": 1, "precision": "fp32"}
    spec = TrainSpec.model_validate({**SPEC, **fields, "dataset": make_dataset(store)})
    done = Fork(spec, s3_env, tmp_path, hook=hooks.address_space_that_ends)
    assert done.end() == 0, done.text
    said = re.findall(r"going on with batch_size (\d+), gradient_accumulation_steps (\d+)", done.text)
    assert said[:1] == [("64", "2")]
    info = store.manifest(spec.ref()).info
    assert (str(info["settings"]["batch_size"]), str(info["settings"]["gradient_accumulation_steps"])) == said[-1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"), True),
        (torch.OutOfMemoryError("HIP out of memory."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_is_want_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_a_model_that_does_not_fit_at_all(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store)})
    done = Fork(spec, s3_env, tmp_path, hook=hooks.no_memory_for_the_model)
    assert done.end() == 78, done.text
    assert "not enough memory for the model itself" in done.last


def test_compiling_without_a_compiler(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    spec = TrainSpec.model_validate({**SPEC, "torch_compile": True, "dataset": make_dataset(store)})
    env = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = Fork(spec, s3_env, tmp_path, env=env)
    assert done.end() == 78, done.text[-3000:]
    assert "torch_compile does not work here" in done.last
    assert "install a C++ compiler" in done.last
    assert len(done.last) < 600
    assert store.find(spec.ref()) is None


def test_no_room_for_a_single_block_says_what_to_do(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "batch_size": 2, "dataset": make_dataset(store)})
    done = Fork(spec, s3_env, tmp_path, hook=hooks.no_memory_at_all)
    assert done.end() == 78
    assert "gradient_checkpointing" in done.last


def test_a_diverging_loss_keeps_the_checkpoint_before(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate(
        {
            **SPEC,
            "max_steps": 500,
            "eval_steps": 500,
            "learning_rate": 1.0,
            "warmup_steps": 60,
            "max_grad_norm": 1e30,
            "weight_decay": 1.0,
            "lr_scheduler_type": "constant_with_warmup",
            "dataset": make_dataset(store),
            "checkpoint_steps": 1,
        }
    )
    # A weight of 1e38 beside the rate of 1.0 overflows in the next step, whatever the machine's rounding.
    done = Fork(spec, s3_env, tmp_path, hook=hooks.weights_that_overflow)
    assert done.end() == 64, done.text[-2000:]
    assert "diverged at step" in done.last
    assert "learning_rate" in done.last
    assert committed(store, "test")
    assert store.find(spec.ref()) is None


def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "max_steps": 30, "dataset": make_dataset(store), "checkpoint_steps": 4})
    expected = undisturbed(store, s3_env, tmp_path, spec)
    first = Fork(spec, s3_env, tmp_path)
    first.wait_for("checkpoint 12 is in the bucket")
    first.end(signal.SIGKILL)
    older, newest = committed(store, "test")[-2:]
    store.bucket.put_bytes(f"runs/test/train/checkpoints/{newest}/optimizer.pt", b"rubbish")
    second = Fork(spec, s3_env, tmp_path)
    assert second.end() == 0, second.text
    assert f"checkpoints/{newest} is not whole" in second.text
    assert f"resuming at step {older}" in second.text
    assert weights(store, spec.ref()) == expected


def test_a_bucket_that_refuses_checkpoints_ends_the_training(
    store: ArtifactStore, s3_env: dict[str, str], s3_server: S3Server, tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate(
        {**SPEC, "max_steps": 100_000, "eval_steps": 100_000, "dataset": make_dataset(store), "checkpoint_steps": 5}
    )
    with way_to(int(s3_server.endpoint.rpartition(":")[2])) as way:
        done = Fork(spec, {**s3_env, "BUGURT_S3_ENDPOINT": f"http://127.0.0.1:{way.port}"}, tmp_path)
        done.wait_for("checkpoint 10 is in the bucket")
        way.refuse()
        assert done.end() == 78, done.text[-3000:]
    assert "was not kept" in done.text
    assert committed(store, "test")[-1] >= 10  # an earlier whole one is still there
    assert "Traceback" not in done.last


def test_a_bucket_out_of_reach_is_borne_twice(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    import boto3
    from botocore.config import Config

    def client(endpoint: str) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=s3_env["BUGURT_S3_ACCESS_KEY_ID"],
            aws_secret_access_key=s3_env["BUGURT_S3_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    here, nowhere = client(s3_env["BUGURT_S3_ENDPOINT"]), client("http://127.0.0.1:9")
    uploader = Uploader(store, run="r", artifact="model/" + "a" * 20, spec={}, keep=2)

    def save(step: int, to: Any) -> None:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in NEEDED:
            (folder / name).write_text("{}")
        store.bucket.client = to
        uploader.submit(folder, step, None)
        uploader.settle()
        assert not folder.exists()

    save(1, nowhere)
    save(2, nowhere)
    save(3, here)  # a good one makes up for it
    save(4, nowhere)
    save(5, nowhere)
    save(6, nowhere)
    with pytest.raises(TemporaryError, match="cannot reach the S3 server"):
        uploader.wait()
    store.bucket.client = here
    assert committed(store, "r") == [3]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to make a small disk")
def test_a_full_disk(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store), "checkpoint_steps": 2})
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=3m none {disk} && exec "{sys.executable}" -m jobs.train --spec {path}'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    if subprocess.run([*command[:-1], f"mount -t tmpfs none {disk}"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives us no namespaces")
    done = subprocess.run(
        command,
        env=stage_env(s3_env, "test", {"BUGURT_WORKDIR": str(disk), "TMPDIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert "the disk is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert store.find(spec.ref()) is None


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("lengths", [[3]], "does not add up"),
        ("input_ids", [[7, 99999]], "lies outside the vocabulary"),
        (None, None, "not a file of packed blocks"),
    ],
)
def test_blocks_that_make_no_sense(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, column: str | None, value: Any, said: str
) -> None:
    good = store.manifest(make_dataset(store))
    broken = "dataset/" + "b" * 20
    writer = store.writer(broken)
    for entry in good.files:
        data = store.read(good.ref, entry)
        if entry.path.startswith("blocks/train"):
            table = {"input_ids": [[7, 8]], "lengths": [[2]]}
            if column is not None:
                table[column] = value
            sink = io.BytesIO()
            i32 = pa.list_(pa.int32())
            pq.write_table(pa.table({k: pa.array(v, i32) for k, v in table.items()}), sink)
            data = sink.getvalue() if column is not None else b"PAR1 no parquet PAR1"
        writer.put_bytes(entry.path, data)
    writer.commit(stage="preprocess", spec={}, counts=good.counts)
    spec = TrainSpec.model_validate({**SPEC, "dataset": broken})
    done = Fork(spec, s3_env, tmp_path)
    assert done.end() == 65, done.text
    assert said in done.last


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"model": "scratch:huge"}, 64, "scratch:tiny or scratch:small"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, 64, "not both"),
        ({"precision": "fp16"}, 78, "needs a GPU"),
        ({"lora": {"target_modules": ["nothing"]}}, 64, "has no such modules"),
    ],
)
def test_specs_that_cannot_be_done(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, fields: dict[str, Any], code: int, said: str
) -> None:
    spec = TrainSpec.model_validate({**SPEC, **fields, "dataset": make_dataset(store)})
    done = Fork(spec, s3_env, tmp_path)
    assert done.end() == code, done.text
    assert said in done.last
    assert store.find(spec.ref()) is None
