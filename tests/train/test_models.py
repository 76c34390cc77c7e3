"""Where a model may come from: the hub, a mirror in the bucket, an earlier training; and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cli.assemble import mirrored_ref
from jobs.artifacts import ArtifactStore
from jobs.specs import TrainSpec
from tests.conftest import stage_env
from tests.train.datasets import byte_bpe, invented_posts, make_dataset
from tests.train.forks import Fork
from tests.train.hub import COMMIT, hub

TINY: dict[str, Any] = {"batch_size": 4, "max_steps": 6, "eval_steps": 3}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub repository with pickled weights, as the ruGPT3 models have them."""
    folder = tmp_path_factory.mktemp("repository")
    tokenizer = byte_bpe(invented_posts(120))
    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
        )
    )
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}, folder / "pytorch_model.bin")
    return folder


def mirror(
    s3_env: dict[str, str],
    folder: Path,
    endpoint: str,
    name: str,
    *,
    command: tuple[str, ...] = ("jobs.train.mirror", "--model"),
) -> subprocess.CompletedProcess[str]:
    """Run the mirror process against a hub at ``endpoint``."""
    extra = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-m", *command, name],
        env=stage_env(s3_env, "mirror", extra),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
    )


@pytest.mark.slow
def test_a_pickled_hub_model_is_mirrored_as_safetensors_and_trained_offline(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, repository: Path
) -> None:
    ref = mirrored_ref("owner/model", "main")  # what submit looks for
    with hub({"owner/model": repository}) as (endpoint, asked):
        done = mirror(s3_env, tmp_path, endpoint, "owner/model", command=("cli.main", "mirror"))  # as users do it
        assert done.returncode == 0, done.stderr
        assert f"owner/model is {ref}" in done.stdout
        asked.clear()
        again = mirror(s3_env, tmp_path, endpoint, "owner/model")
        assert again.returncode == 0
        assert asked == []  # it is found in the bucket, the hub is not asked
        missing = mirror(s3_env, tmp_path, endpoint, "owner/other")
        assert missing.returncode == 78
        assert "the hub has no model owner/other" in missing.stderr
    manifest = store.manifest(ref)
    names = {f.path for f in manifest.files}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]
    assert manifest.stage == "mirror"
    assert manifest.info["commit"] == COMMIT

    dataset = make_dataset(store, tokenizer=byte_bpe(invented_posts(120)))
    spec = TrainSpec.model_validate({**TINY, "base_model": ref, "dataset": dataset})
    trained = Fork(spec, s3_env, tmp_path)
    assert trained.end() == 0, trained.text
    assert store.manifest(spec.ref()).inputs == {"base_model": ref, "dataset": spec.dataset}


def test_a_model_of_ours_is_trained_on(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    dataset = make_dataset(store)
    first = TrainSpec.model_validate({**TINY, "model": "scratch:tiny", "dataset": dataset})
    one = Fork(first, s3_env, tmp_path)
    assert one.end() == 0, one.text
    second = TrainSpec.model_validate({**TINY, "base_model": first.ref(), "dataset": dataset, "learning_rate": 1e-3})
    two = Fork(second, s3_env, tmp_path)
    assert two.end() == 0, two.text
    before, after = (store.manifest(s.ref()).info["best_loss"] for s in (first, second))
    assert after < before


def test_a_hub_model_without_internet_says_what_to_do(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**TINY, "model": "owner/model", "dataset": make_dataset(store)})
    offline = Fork(spec, s3_env, tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert offline.end() == 78
    assert "bugurt mirror owner/model" in offline.last


def test_the_dataset_of_another_tokenizer_is_refused(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    first = TrainSpec.model_validate({**TINY, "model": "scratch:tiny", "dataset": make_dataset(store)})
    assert Fork(first, s3_env, tmp_path).end() == 0
    for size in (500, 512):  # another size; the same size with other tokens
        other = make_dataset(store, invented_posts(90, seed=7), vocab_size=size, name=f"other{size}")
        spec = TrainSpec.model_validate({**TINY, "base_model": first.ref(), "dataset": other})
        refused = Fork(spec, s3_env, tmp_path)
        assert refused.end() == 65
        assert "another tokenizer" in refused.last or "splits text otherwise" in refused.last


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


def test_pickles_from_the_bucket_are_never_opened(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    ref = "model/" + "e" * 20
    writer = store.writer(ref)
    writer.put_bytes("config.json", GPT2Config(n_layer=1).to_json_string().encode())
    writer.put_bytes("pytorch_model.bin", pickle.dumps(_Evil()))
    writer.commit(stage="mirror", spec={})
    spec = TrainSpec.model_validate({**TINY, "base_model": ref, "dataset": make_dataset(store)})
    refused = Fork(spec, s3_env, tmp_path)
    assert refused.end() == 65
    assert "safetensors" in refused.last
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_of_the_hub_that_runs_code_is_refused(
    s3_env: dict[str, str], tmp_path: Path, repository: Path
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for file in repository.iterdir():
        (evil / file.name).write_bytes(file.read_bytes())
    buffer = io.BytesIO()
    torch.save({"transformer.wte.weight": _Evil()}, buffer)
    (evil / "pytorch_model.bin").write_bytes(buffer.getvalue())
    with hub({"owner/evil": evil}) as (endpoint, _):
        done = mirror(s3_env, tmp_path, endpoint, "owner/evil")
    assert done.returncode in (65, 78), done.stderr
    assert not (tmp_path / "pwned").exists()
