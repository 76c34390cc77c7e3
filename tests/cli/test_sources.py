"""What a user hands in: told apart rightly, uploaded once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.runs import load_record, save_record
from cli.settings import Settings
from cli.sources import address, parse_source, upload
from cli.submission import record_for
from jobs.artifacts import ArtifactStore
from jobs.specs import DataError, RunSpec, ScrapeSpec, SpecError

SOURCE = "source/" + "a" * 20


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("@bugurt_testovaya", "bugurt_testovaya"),
        ("https://t.me/bugurt_testovaya", "bugurt_testovaya"),
        ("t.me/bugurt_testovaya", "bugurt_testovaya"),
        ("https://t.me/+AbCdEf123", "+AbCdEf123"),
        ("-1001234567890", "-1001234567890"),
    ],
)
def test_channels(text: str, label: str) -> None:
    source = parse_source(text)
    assert source.channel == text and source.file is None and source.label == label


def test_files_and_folders(tmp_path: Path) -> None:
    export = tmp_path / "ChatExport"
    export.mkdir()
    (export / "result.json").write_text("{}")
    assert parse_source(str(export)).file == export / "result.json"
    assert parse_source(str(export)).label == "ChatExport"
    for name in ("a.json", "a.zip", "a.jsonl", "a.txt", "A.TXT"):
        (tmp_path / name).write_text("x")
        assert parse_source(str(tmp_path / name)).file == tmp_path / name


@contextmanager
def nobody() -> Iterator[None]:
    """Permissions count for root as well."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_what_may_not_be_read_is_one_sentence_wherever_it_is_closed() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to all but their owner
        export = Path(name) / "export"
        export.mkdir()
        file = export / "result.json"
        file.write_text("{}")
        Path(name).chmod(0o755)
        for closed, text in ((export, export), (export, file), (file, file)):
            mode = closed.stat().st_mode
            closed.chmod(0)
            wanted = f"cannot read {text}: Permission denied; let yourself read it"
            with nobody(), pytest.raises(DataError, match=wanted):
                found = parse_source(str(text)).file
                assert found is not None
                address(found)
            closed.chmod(mode)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "missing", "no such file"),
        (lambda p: p, "no result.json"),
        (lambda p: _with(p, "messages.html"), "HTML export"),
        (lambda p: _with(p, "messages.html") / "messages.html", "is an HTML page; export again"),
        (lambda p: _with(p / "ChatExport", "result.json").parent, "give one of the exports in it: .*ChatExport$"),
        (lambda p: _with(p, "x.pdf") / "x.pdf", "give an export"),
        (lambda p: _with(p, "x.toml") / "x.toml", "give an export"),
        (lambda p: _pipe(p / "x.txt"), "no ordinary file"),
        (lambda p: _link(p / "x.txt", "/dev/zero"), "no ordinary file"),
        (lambda p: _link(p / "x.txt", "x.txt"), "Too many levels of symbolic links"),
        (lambda p: _link(p / "result.json", "/etc/passwd").parent, "is a link to /etc/passwd, out of the folder"),
        (lambda p: "~nobody-of-this-name/x.txt", "no such file or folder"),
        (lambda p: "a" * 5000, "File name too long"),
        (lambda p: "a\0b.txt", "no such file or folder"),
        (lambda p: "", "--source is empty"),
    ],
)
def test_what_cannot_be_a_source_says_what_would_be(tmp_path: Path, make: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_source(str(make(tmp_path)))  # type: ignore[operator]


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def test_links_that_the_user_names_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    _link(tmp_path / "x.json", "real.json")
    _link(tmp_path / "result.json", "real.json")
    assert parse_source(str(tmp_path / "x.json")).file == tmp_path / "x.json"
    assert parse_source(str(tmp_path)).file == tmp_path / "result.json"


def _with(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    return folder


def test_the_same_content_is_uploaded_once_whatever_it_is_called(store: ArtifactStore, tmp_path: Path) -> None:
    first, second, other = (tmp_path / n for n in ("one.txt", "two.txt", "three.jsonl"))
    for file in (first, second, other):
        file.write_text("ПОСТ")
    ref = upload(store, first)
    before = store.manifest(ref).created
    assert upload(store, second) == ref and store.manifest(ref).created == before
    assert upload(store, other) != ref, "another kind of file is another source"
    assert store.manifest(ref).info["name"] == "one.txt"


def test_names_that_are_no_utf_8_can_be_stored(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode("пост.txt".encode("cp1251"))  # as an archive from Windows leaves it
    file.write_text("ПОСТ")
    assert store.manifest(upload(store, file)).info["name"] == "????.txt"
    record, _ = record_for(store, Settings(root=tmp_path, owner="\udcff"), RunSpec(scrape=ScrapeSpec(source=SOURCE)),
                           label="post", source=str(file), force=False, name=None)  # fmt: skip
    save_record(store, record)
    assert load_record(store, record.run).source.endswith("/????.txt")
    assert load_record(store, record.run).owner == "?"


def test_an_empty_file_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        upload(store, tmp_path / "empty.txt")
