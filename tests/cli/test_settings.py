"""Settings that cannot be: the sentence names the variable or the file they stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.assemble import build_run
from cli.settings import load
from jobs.artifacts import ArtifactStore
from jobs.specs import ConfigError, SpecError


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bugurt.toml").write_text("[train]\nepochs = 2\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BUGURT_S3", "nonsense", "^BUGURT_S3: a table must be written as JSON .got 'nonsense'.$"),
        ("BUGURT_S3", "[" * 100_000, "a table must be written as JSON"),
        ("BUGURT_S3", "5", "^BUGURT_S3: s3: Input should be a table of fields .got 5.$"),
        ("BUGURT_TRAIN", "{", "^BUGURT_TRAIN: a table must be written as JSON"),
        ("BUGURT_CLUSTER_TRAIN", "x", "^BUGURT_CLUSTER_TRAIN: a table must be written as JSON"),
        ("BUGURT_CLUSTER_TRAIN", '{"gpu": "x"}', "^BUGURT_CLUSTER_TRAIN: cluster.train.gpu: "),
        ("BUGURT_CLUSTER_TRAIN_GPU", "1", "^BUGURT_CLUSTER_TRAIN_GPU: cluster.train_gpu: unknown field$"),
        ("bugurt_cluster_kind", "x", "^bugurt_cluster_kind: cluster.kind: Input should be 'local' or 'kubernetes'"),
    ],
)
def test_a_variable_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        load()


def test_a_file_that_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_CLUSTER_NAMESPACE", "here")
    (tmp_path / "bugurt.toml").write_text('[cluster]\nkind = "x"\n')
    with pytest.raises(ConfigError, match=r"^\S+/bugurt.toml: cluster.kind: "):
        load()


def test_a_stages_field_that_is_wrong_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ArtifactStore
) -> None:
    (tmp_path / "bugurt.toml").write_text("[train]\nepoch = 2\n")
    with pytest.raises(SpecError, match=r"^\S+/bugurt.toml: train: epoch: unknown field$"):
        build_run(store, load(), ("train",), {}, [])
    (tmp_path / "bugurt.toml").write_text("")
    monkeypatch.setenv("BUGURT_TRAIN_EPOCHS", "0")
    with pytest.raises(SpecError, match=r"^BUGURT_TRAIN_EPOCHS: train: epochs: Input should be greater than 0"):
        build_run(store, load(), ("train",), {}, [])
    with pytest.raises(SpecError, match=r"^train: seed: "):
        build_run(store, load(), ("train",), {"train": {"epochs": 1}}, ["train.seed=x"])


def test_paths_begin_at_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("HOME", "/home/me")

    def places(templates: str, bundle: str) -> tuple[str | None, str | None]:
        text = f'[cluster]\ntemplates = "{templates}"\n[s3]\nca_bundle = "{bundle}"\n'
        (tmp_path / "bugurt.toml").write_text(text)
        found = load()
        return found.cluster.templates, found.s3.ca_bundle

    assert places("my", "ca.pem") == (str(tmp_path / "my"), str(tmp_path / "ca.pem"))
    assert places("~/my", "/etc/ca.pem") == ("/home/me/my", "/etc/ca.pem")
    with pytest.raises(ConfigError, match=r"^s3.ca_bundle: '~nobody-of-that-name/ca.pem': there is no such user"):
        places("my", "~nobody-of-that-name/ca.pem")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "bugurt.toml").write_bytes(b"\xef\xbb\xbf[train]\nepochs = 3\n")  # Notepad's
    assert load().train == {"epochs": 3}
