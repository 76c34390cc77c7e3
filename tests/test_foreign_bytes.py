"""Everything that reads bytes of others', on bytes that were changed: taken or refused in a sentence, and quickly.

``jobs.specs.BugurtError`` is what ends a command or a stage with a documented exit code; nothing else may come up.
"""

from __future__ import annotations

import io
import json
import os
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.artifacts import ArtifactStore, Bucket, Lease, ObjectInfo
from jobs.specs import DataError, ScrapeSpec
from tests.cli.test_driver_killed import Killer, MemoryBucket
from tests.foreign import bytes_like, each, json_like
from tests.generate.models import MadeModel, channel, make_model
from tests.scrape.helpers import account, export, message

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1"))
REF = "posts/" + "0a" * 10


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Whatever it is, it takes no more than three gibibytes more of memory, and no minute: the slowest take seconds.

    Arrow's allocator takes addresses by the gibibyte, now and then, however little it needs.
    """
    held = next(int(n.split()[1]) for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("VmData"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + 3 * 2**30, hard))
    begun = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert time.process_time() - begun < 60 * ROUNDS


def both(value: Any, seed: int, count: int) -> Iterator[bytes]:
    """Changes of both kinds."""
    yield from json_like(value, seed, count * ROUNDS)
    yield from bytes_like(json.dumps(value, ensure_ascii=False).encode(), seed, count * ROUNDS)


def memory() -> tuple[MemoryBucket, ArtifactStore]:
    """A bucket in memory."""
    bucket = MemoryBucket(Killer())
    return bucket, ArtifactStore(cast(Bucket, bucket), show_progress=False)


# -- what users hand in

EXPORT = export(
    [
        message(1, "ЧАЙНИК УШЁЛ\n@\nИ НЕ ВЕРНУЛСЯ"),
        message(2, [{"type": "bold", "text": "КОТ"}, " НА МЕСТЕ", {"type": "text_link", "text": "x", "href": "https://a.b"}]),
        message(3, "", photo="photos/1.jpg", width=10, height=10, edited="2020-01-02T00:00:00"),
        message(4, "ОПРОС", poll={"question": "ЧАЙ?", "total_voters": 3, "answers": []}, reply_to_message_id=1),
        {"id": 5, "type": "service", "date": "2020-01-01T03:00:00", "action": "pin_message", "text": ""},
        message(6, "ДА", reactions=[{"type": "emoji", "count": 3, "emoji": "👍"}], forwarded_from="Сосед", views=5),
    ]
)  # fmt: skip


def read_export(data: bytes) -> None:
    from jobs.scrape.desktop import find_chat, read_chat
    from jobs.scrape.parquet import to_batch

    def opener() -> io.BytesIO:
        return io.BytesIO(data)

    chat = find_chat(opener, "result.json", None)
    to_batch(list(read_chat(opener, "result.json", chat, advance=lambda done: None)))


def test_exports() -> None:
    taken, refused = each(both(EXPORT, 1, 150), read_export)
    assert taken > 20 and refused > 50
    each(both(account(EXPORT, left=[EXPORT | {"id": 7}]), 2, 60), read_export)


def test_zip_archives(tmp_path: Path) -> None:
    from jobs.scrape.archive import open_archive

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("photos/../../1.jpg", b"x")
        archive.writestr("ChatExport/result.json", json.dumps(EXPORT))
    path = tmp_path / "e.zip"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _, opener = open_archive(path, "e.zip")
        with opener() as stream:
            while stream.read(65536):
                pass

    _, refused = each(bytes_like(buffer.getvalue(), 3, 300 * ROUNDS), read)
    assert refused > 50
    assert list(tmp_path.iterdir()) == [path]


def test_json_lines_and_text() -> None:
    from jobs.scrape.parquet import to_batch
    from jobs.scrape.plain import read_jsonl, read_text

    def jsonl(data: bytes) -> None:
        to_batch(list(read_jsonl(lambda: io.BytesIO(data), "a.jsonl", "c", advance=lambda done: None)))

    def text(data: bytes) -> None:
        to_batch(list(read_text(lambda: io.BytesIO(data), "a.txt", "c", None, advance=lambda done: None)))

    line = {
        "id": 3, "text": "КОТ", "date": "2020-01-01T00:00:00Z", "links": ["https://a.b"], "views": 5,
        "entities": [{"type": "bold", "offset": 0, "length": 3}], "reactions": [{"emoji": "👍", "count": 1}],
    }  # fmt: skip
    each(both(line, 4, 150), jsonl)
    each(bytes_like("КОТ\n\nЧАЙНИК\n@\nУШЁЛ\n\nДЕД\n".encode(), 5, 150 * ROUNDS), text)


def test_profiles() -> None:
    from jobs.preprocess.profile import builtin_text, parse_profile

    def read(data: bytes) -> None:
        parse_profile(data.decode("utf-8", "replace"), "mine.toml")

    for name in ("bugurt", "plain"):
        each(bytes_like(builtin_text(name).encode(), 6, 60 * ROUNDS), read)
    each(bytes_like(b'name = "a"\n[[rule]]\nuse = "drop_post"\ntext = "^(a|b)+$"\n', 7, 150 * ROUNDS), read)


def test_settings_and_what_a_machine_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.commands.login import read_ini
    from cli.settings import load
    from cli.telegram_file import read_telegram_file

    for name in [n for n in os.environ if n.startswith("BUGURT_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "bugurt.toml"

    def written(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def call(data: bytes) -> object:
            file.write_bytes(data)
            file.chmod(0o600)
            return read(file)

        return call

    toml = (Path(__file__).resolve().parents[1] / "examples" / "team.toml").read_bytes()
    each(bytes_like(toml, 8, 150 * ROUNDS), written(load))
    each(
        bytes_like(b"[Telegram]\napi_id = 1\napi_hash = abc\nphone = +7\nusername = a\n", 9, 200 * ROUNDS),
        written(read_ini),
    )
    kept = {"BUGURT_TELEGRAM_SESSION": "1abc", "BUGURT_TELEGRAM_API_ID": "1", "BUGURT_TELEGRAM_API_HASH": "x"}
    each(both(kept, 10, 80), written(read_telegram_file))


def test_a_config_ini_of_spaces_takes_no_time(tmp_path: Path) -> None:
    """Its parser would take minutes over it."""
    from cli.commands.login import MAX_INI, read_ini
    from jobs.specs import ConfigError

    file = tmp_path / "config.ini"
    file.write_bytes(b"[Telegram]\na" + b" " * 1_000_000 + b"x\n")
    with pytest.raises(ConfigError, match="has more than 8192 bytes"):
        read_ini(file)
    file.write_bytes(b"[Telegram]\napi_id = 1\n".ljust(MAX_INI, b"\n"))
    assert read_ini(file) == {"api_id": "1"}


def test_specs() -> None:
    from jobs.specs import SPECS
    from jobs.stage import load_spec

    for number, (stage, spec) in enumerate(SPECS.items()):

        def read(data: bytes, spec: type[Any] = spec) -> None:
            load_spec(spec, "{" + data.decode("utf-8", "replace")[1:], {})  # a text that begins so is no file's name

        each(both(spec().model_dump(mode="json") | {"stage": stage}, 11 + number, 60), read)


def test_prompts() -> None:
    from jobs.generate.prompts import read_prompts

    bucket, store = memory()

    def read(data: bytes) -> None:
        bucket.objects.clear()
        writer = store.writer(REF)
        writer.put_bytes("prompts.txt", data)
        writer.commit(stage="upload", spec={})
        read_prompts(store, REF)

    each(bytes_like("КОТ ПРИШЁЛ\n\nДЕД УШЁЛ\\n@\n".encode(), 15, 200 * ROUNDS), read)


# -- what lies in a bucket that somebody else can write to


def test_manifests(tmp_path: Path) -> None:
    """Whatever a manifest says, nothing is written outside of the folder, and nothing huge is begun."""
    bucket, store = memory()
    writer = store.writer(REF)
    for number in range(3):
        writer.put_bytes(f"a/part-{number}.bin", b"x" * 10)
    writer.commit(stage="scrape", spec={"a": [1]}, inputs={"source": "source/" + "0" * 20}, counts={"posts": 3})
    whole = json.loads(bucket.objects[f"{REF}/manifest.json"])
    inside = tmp_path / "inside"

    def read(data: bytes) -> None:
        bucket.objects[f"{REF}/manifest.json"] = data
        manifest = store.manifest(REF)
        for entry in manifest.files:
            assert (inside / entry.path).resolve().is_relative_to(inside.resolve())
            assert store.key_of(REF, entry).count("..") == 0 or ".." not in Path(entry.path).parts
            store.read(REF, entry, max_size=2**20)
        manifest.matching("*")
        repr(manifest.size)

    taken, refused = each(both(whole, 16, 300), read)
    assert taken > 50 and refused > 100


def test_records_of_runs() -> None:
    from cli.runs import RunRecord, RunStatus, load_progress, load_record, load_status, save_record, save_status
    from jobs.specs import RunSpec

    bucket, store = memory()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    record = RunRecord(
        run="r",
        spec=RunSpec(scrape=ScrapeSpec(channel="@a")),
        source="@a",
        created=now,
        submitted=now,
        code_version="0",
    )
    save_record(store, record)
    save_status(store, RunStatus(run="r", state="running"))
    for path, load in (("run.json", load_record), ("status.json", load_status)):
        before = bucket.objects[f"runs/r/{path}"]

        def read(data: bytes, path: str = path, load: Callable[..., object] = load) -> None:
            bucket.objects[f"runs/r/{path}"] = data
            load(store, "r")

        each(both(json.loads(before), 17, 60), read)

    def progress(data: bytes) -> None:
        bucket.objects["runs/r/train/progress.json"] = data
        load_progress(store, "r", "train")

    each(
        both({"state": "failed", "message": "x", "exit_code": 65, "attempt": 2, "metrics": {"a": 1}}, 18, 100), progress
    )


def test_leases_caches_and_progress() -> None:
    from jobs.reporting import ProgressReporter
    from jobs.scrape.resolve import EntityCache, Target

    bucket, _ = memory()

    def read(data: bytes) -> None:
        bucket.objects.clear()
        bucket.objects["leases/x/1.json"] = data
        lease = Lease(cast(Bucket, bucket), "x", holder="me")
        claim = ObjectInfo("leases/x/1.json", len(data), datetime.now(UTC))
        lease._died_here(claim)
        str(lease._read(claim).get("holder"))[:200]
        cache = EntityCache(cast(Bucket, bucket), 1)
        bucket.objects[cache._path(Target("id", "5"))] = data
        cache.get(Target("id", "5"))
        bucket.objects["p.json"] = data
        reporter = ProgressReporter(cast(Bucket, bucket), "p.json", stage="s", run="r", shard=None)
        reporter.start()
        reporter.finish("succeeded")

    each(both({"holder": "a", "host": "b", "pid": 5, "start": "1"}, 19, 30), read)
    each(both({"channel_id": 5, "access_hash": 6, "title": "t", "username": None}, 20, 30), read)
    each(both({"attempt": 3, "state": "running"}, 21, 30), read)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def tables(seed: int, *whole: pa.Table, count: int) -> Iterator[bytes]:
    """Changed Parquet files, and whole ones with other columns or types than the stage expects."""
    for table in whole:
        yield from bytes_like(parquet(table), seed, count * ROUNDS)
        for name in table.column_names:
            yield parquet(table.drop_columns([name]))
            at = table.column_names.index(name)
            for other in (
                pa.array([None] * table.num_rows, pa.null()),
                pa.array(["x"] * table.num_rows),
                pa.array([2**40] * table.num_rows),
                pa.array([[1, None]] * table.num_rows),
                pa.array([None] * table.num_rows, pa.list_(pa.int32())),
                pa.array([b"\xff"] * table.num_rows),
            ):
                yield parquet(table.set_column(at, name, other))


def test_shards_of_posts(tmp_path: Path) -> None:
    from jobs.posts import latest_posts
    from jobs.record import Post
    from jobs.scrape.parquet import to_batch

    posts = [Post(id=n, channel="c", text=f"КОТ {n}", date=datetime(2020, 1, n, tzinfo=UTC)) for n in range(1, 9)]
    file = tmp_path / "part-00000.parquet"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        for batch in latest_posts([file]):
            batch.to_pylist()

    each(tables(22, pa.Table.from_batches([pa.record_batch(to_batch(posts))]), count=150), read)


def test_datasets(tmp_path: Path) -> None:
    from jobs.generate.training import Training
    from jobs.specs import GenerateSpec
    from jobs.train.data import fetch_blocks

    _, store = memory()
    ref = "dataset/" + "0b" * 10
    blocks = pa.table({"input_ids": [[1, 2, 3, 4], [5, 6]], "lengths": [[2, 2], [2]]})
    texts = pa.table({"id": [1, 2], "text": ["КОТ ПРИШЁЛ ДОМОЙ", "ДЕД УШЁЛ"]})
    file = tmp_path / "train-00000.parquet"

    class Local:
        """A store that has the one file, whatever its manifest says."""

        def __init__(self, data: bytes) -> None:
            self._data = data

        def download(self, ref: str, folder: Path, *patterns: str, manifest: object = None) -> None:
            path = folder / "blocks" / "train-00000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._data)

    writer = store.writer(ref)
    writer.put_bytes("blocks/train-00000.parquet", b"x")
    manifest = writer.commit(stage="preprocess", spec={})

    def read_blocks(data: bytes) -> None:
        found = fetch_blocks(cast(ArtifactStore, Local(data)), manifest, "train", tmp_path, 100)
        for number in range(len(found)):
            found[number]

    def read_texts(data: bytes) -> None:
        file.write_bytes(data)
        Training([file], GenerateSpec()).openings(2)

    each(tables(23, blocks, count=100), read_blocks)
    each(tables(24, texts, count=100), read_texts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    """A small whole model."""
    return make_model(tmp_path_factory.mktemp("model"), channel(40), steps=0, width=16, vocab_size=300, context=32)


def test_models_and_tokenizers(model: MadeModel, tmp_path: Path) -> None:
    """A model's files one after the other, changed: the rest is right."""
    from jobs.generate.convert import convert
    from jobs.generate.language import read_language

    names = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "style.json",
        "model.safetensors",
    )
    for number, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir()
        for path in model.folder.iterdir():
            if path.is_file():
                (folder / path.name).symlink_to(path)
        whole = (model.folder / name).read_bytes()
        (folder / name).unlink()

        def read(data: bytes, folder: Path = folder, name: str = name) -> None:
            (folder / name).write_bytes(data)
            language = read_language(folder, "model/x")
            language.frame("КОТ УШЁЛ")
            language.text([1, 2, 3])
            if name in ("config.json", "model.safetensors"):
                spec = _spec(folder, language)
                assert spec is not None

        def _spec(folder: Path, language: Any) -> object:
            target = folder / "out"
            convert(folder, target, language, "float32", "model/x")
            for path in target.iterdir():
                path.unlink()
            target.rmdir()
            return language

        if name.endswith(".json"):
            each(both(json.loads(whole), 30 + number, 25), read)
        else:
            head = 8 + int.from_bytes(whole[:8], "little")
            each((made + whole[head:] for made in bytes_like(whole[:head], 40, 40 * ROUNDS)), read)


@pytest.mark.parametrize("name", ["n_layer", "vocab_size", "n_positions", "n_embd"])
def test_a_configuration_beyond_its_weights_makes_nothing(model: MadeModel, tmp_path: Path, name: str) -> None:
    from jobs.weights import check_config

    check_config(model.folder, "model/x")
    config = json.loads((model.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 10**8}))
    (tmp_path / "model.safetensors").symlink_to(model.folder / "model.safetensors")
    with pytest.raises(DataError, match=f"{name} is 100000000, which its weights do not bear out"):
        check_config(tmp_path, "model/x")


def test_batches() -> None:
    from cli.batch_lines import jsonl

    _, store = memory()
    ref = "batch/" + "0c" * 10

    class Local:
        def __init__(self, data: bytes) -> None:
            self._data = data

        def open(self, ref: str, entry: object) -> io.BytesIO:
            return io.BytesIO(self._data)

    writer = store.writer(ref)
    writer.put_bytes("part-00000.jsonl", b"x")
    manifest = writer.commit(stage="generate", spec={})

    def read(data: bytes) -> None:
        for record in jsonl(cast(ArtifactStore, Local(data)), manifest):
            record.get("text")

    each(both({"index": 1, "text": "КОТ", "prompt": "", "seed": 1}, 50, 100), read)
