"""The stage contract, by a small stage as a process: exit codes, signals, commits, logs and progress."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.signals import Signals
from jobs.specs import BugurtError, ConfigError, ExitCode, Interrupted, NotFoundError, ScrapeSpec, SpecError
from jobs.stage import StageContext, explain, load_spec
from tests.conftest import S3Server, StageResult, stage_env
from tests.s3_faults import faulty_s3
from tests.sample_stage import SampleSpec


class Stage:
    """Starts the sample stage with a spec and an environment; temporary folders lie below ``workdir``."""

    def __init__(self, s3_env: dict[str, str], store: ArtifactStore, folder: Path) -> None:
        self.s3_env, self.store, self.folder = s3_env, store, folder
        self.workdir = folder / "workdir"
        self.workdir.mkdir()

    def start(
        self, spec: Any, *options: str, run: str = "test", env: dict[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen[str]:
        arguments = list(options)
        if spec is not None:
            path = self.folder / f"spec-{random.getrandbits(64):x}.json"
            text = spec if isinstance(spec, bytes) else json.dumps(spec, ensure_ascii=False).encode()
            path.write_bytes(text)
            arguments += ["--spec", str(path)]
        whole = {**stage_env(self.s3_env, run), "BUGURT_WORKDIR": str(self.workdir), "SAMPLE_QUICK": "1", **(env or {})}
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        command = [sys.executable, "-m", "tests.sample_stage", *arguments]
        return subprocess.Popen(command, env=whole, text=True, **streams)

    def run(self, spec: Any, *options: str, **rest: Any) -> StageResult:
        return finish(self.start(spec, *options, **rest))

    def progress(self, run: str = "test") -> dict[str, Any]:
        data = json.loads(
            self.store.bucket.get_bytes(f"runs/{run}/upload/progress.json"),
            parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
        )
        assert isinstance(data, dict)
        return data

    def log(self, run: str = "test") -> list[str]:
        return self.store.bucket.get_bytes(f"runs/{run}/upload/log.txt").decode().splitlines()

    def leftovers(self) -> list[str]:
        """Temporary folders, claims and unfinished uploads."""
        bucket = self.store.bucket
        found = [str(p) for p in self.workdir.iterdir()] + [o.path for o in bucket.list("leases/")]
        return found + [path for path, _, _ in bucket.open_uploads()]


def finish(process: subprocess.Popen[str], before: str = "") -> StageResult:
    _, err = process.communicate(timeout=60)
    err = before + err
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    return StageResult(process.returncode, lines, err)


def ready(process: subprocess.Popen[str]) -> str:
    """Wait for the stage's own word that it is at work; returns what it has printed."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if '"ready"' in line:
            return seen
    pytest.fail(f"it ended: {seen}")


@pytest.fixture
def stage(s3_env: dict[str, str], store: ArtifactStore, tmp_path: Path) -> Stage:
    return Stage(s3_env, store, tmp_path)


def test_it_works_is_found_and_is_done_again_by_force(stage: Stage) -> None:
    spec = {"name": "x"}
    first = stage.run(spec, run="one")
    ref = SampleSpec(name="x").ref()
    assert (first.code, first.last) == (0, f"committed {ref}")
    made = stage.store.manifest(ref)
    assert (made.run, made.counts, len(made.files)) == ("one", {"files": 3}, 3)
    assert made.spec == SampleSpec(name="x").model_dump(mode="json")
    progress = stage.progress("one")
    assert (progress["state"], progress["artifact"], progress["done"], progress["total"]) == ("succeeded", ref, 3, 3)
    assert (progress["attempt"], progress["message"], progress["unit"]) == (1, "done", "files")

    begun = time.monotonic()
    found = stage.run({**spec, "action": "bug"}, run="two")  # the action is operational
    assert found.code == 0
    assert f"found {ref}, made " in found.last
    assert "by run one: nothing to do" in found.last
    assert time.monotonic() - begun < 20
    assert stage.store.manifest(ref) == made

    again = stage.run(spec, "--force", run="two")
    assert again.code == 0
    remade = stage.store.manifest(ref)
    assert remade.run == "two"
    assert "found" in stage.run(spec, run="two", env={"BUGURT_FORCE": "1"}).last  # a Job's second try
    assert stage.store.manifest(ref) == remade
    for _ in range(2):  # by hand it means what it says
        assert "committed" in stage.run(spec, "--force", run="").last
    assert stage.progress("adhoc")["attempt"] == 2
    assert stage.leftovers() == []


def test_by_force_a_second_try_keeps_what_the_first_one_left(stage: Stage) -> None:
    spec = {"name": "x", "action": "half"}
    ref = SampleSpec(name="x").ref()
    force = {"BUGURT_FORCE": "1"}
    assert "committed" in stage.run({"name": "x"}, run="one").last
    tries = []
    for run in ("two", "two", "three", ""):
        assert stage.run(spec, run=run, env=force).code == 75
        tries.append(len(list(stage.store.bucket.list(f"{ref}/half-"))))
    assert tries == [1, 2, 1, 1], "another run begins anew, and so does whoever works by hand"
    assert stage.store.find(ref) is None
    assert "committed" in stage.run({"name": "x"}, run="four").last
    assert stage.run(spec, run="three", env=force).code == 75
    assert len(list(stage.store.bucket.list(f"{ref}/"))) == 1, "what was committed meanwhile is no try of this run"


def test_a_manifest_says_when_its_inputs_had_been_made(stage: Stage) -> None:
    source, spec = SampleSpec(name="s"), SampleSpec(name="x", source=SampleSpec(name="s").ref())
    assert stage.run(source.model_dump(mode="json"), run="one").code == 0
    assert stage.run(spec.model_dump(mode="json"), run="one").code == 0
    made = stage.store.manifest(spec.ref())
    assert made.made_from == {"source": stage.store.manifest(source.ref()).created}


def test_a_damaged_manifest_is_made_again_by_force(stage: Stage) -> None:
    ref = SampleSpec(name="x").ref()
    stage.store.bucket.put_bytes(f"{ref}/manifest.json", b"{")
    found = stage.run({"name": "x"}, run="one")
    assert found.code == 65
    assert "is damaged" in found.last
    assert "--force" in found.last
    assert "committed" in stage.run({"name": "x"}, "--force", run="two").last


@pytest.mark.plain
def test_each_end_has_its_code_and_one_sentence(stage: Stage) -> None:
    ends = {
        "data": (65, "post 17: the text is wrong"),
        "later": (75, "Telegram asks to wait"),
        "bug": (70, "internal error at stage.py:"),
        "exit": (70, "internal error at stage.py:"),
        "nothing": (70, "the stage ended without committing"),
        "lost": (75, "was lost: this process was out of touch with the bucket for too long"),
    }
    processes = {action: stage.start({"name": action, "action": action}, run=action) for action in ends}
    for action, (code, sentence) in ends.items():
        result = finish(processes[action])
        assert (result.code, sentence in result.last) == (code, True), result.stderr
        assert [line["level"] for line in result.log].count("error") == 1
        assert "Traceback" not in result.stderr
        assert all(line.startswith("{") for line in result.stderr.splitlines())
        progress = stage.progress(action)
        assert (progress["state"], progress["exit_code"], progress["message"]) == ("failed", code, result.last)
        assert progress.get("retry_after") == (33 if action == "later" else None)
        assert stage.log(action)[-1].endswith(result.last)
        assert stage.store.find(SampleSpec(name=action).ref()) is None
    assert stage.leftovers() == []


def test_what_is_wrong_before_the_work_begins(stage: Stage, store: ArtifactStore) -> None:
    missing = "posts/" + "0" * 20
    cases: list[tuple[Any, dict[str, str], int, str]] = [
        (None, {}, 64, "no spec: give --spec FILE or set BUGURT_SPEC"),
        ({"colour": "red"}, {}, 64, ".json: colour: unknown field"),
        (b"[" * 100_000, {}, 64, "is not valid JSON: "),
        ({}, {"BUGURT_RUN": "Моё"}, 64, "BUGURT_RUN: 'Моё' is not a run's name"),
        ({}, {"BUGURT_S3_BUCKET": "no-such-bucket"}, 78, "bucket 'no-such-bucket' does not exist"),
        ({}, {"BUGURT_S3_SECRET_ACCESS_KEY": "wrong"}, 78, "refuses the S3 credentials"),
        ({}, {"BUGURT_S3_ENDPOINT": "http://127.0.0.1:1"}, 75, "cannot reach the S3 server at http://127.0.0.1:1"),
        ({}, {"BUGURT_WORKDIR": "/no/such/folder"}, 78, "BUGURT_WORKDIR: /no/such/folder is no folder"),
        ({"source": missing}, {}, 65, f"there is no artefact {missing} in s3://"),
    ]
    processes = [stage.start(spec, env=env) for spec, env, _, _ in cases]
    for process, (_, _, code, sentence) in zip(processes, cases, strict=True):
        result = finish(process)
        assert (result.code, sentence in result.last) == (code, True), (sentence, result.stderr)
        assert "Traceback" not in result.stderr
        assert [line["level"] for line in result.log].count("error") == 1
    assert list(store.list()) == []
    assert stage.leftovers() == []
    wrong = stage.run({}, "--no-such-option")
    assert wrong.code == ExitCode.BAD_SPEC
    assert "unrecognized arguments: --no-such-option" in wrong.stderr


def test_a_spec_that_cannot_be_used_is_told_in_a_sentence(s3_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe{")
    bucket = s3_env["BUGURT_S3_BUCKET"]
    for text, kind, sentence in (
        ("/no/such/file", SpecError, "cannot read the spec /no/such/file: No such file or directory"),
        (str(tmp_path), SpecError, "Is a directory"),
        (str(tmp_path / "latin.json"), SpecError, "latin.json is not UTF-8 text"),
        ("s3://no-such-bucket/key", ConfigError, "bucket 'no-such-bucket' does not exist"),
        (f"s3://{bucket}/none", NotFoundError, "reading none: not in bucket"),
        ('{"size": 0}', SpecError, "the spec: size: Input should be greater than or equal to 1 (got 0)"),
        ('{"size": 1099511627776}', SpecError, "less than or equal to 1073741824 (got 1099511627776)"),
        ('{"size": 1e999}', SpecError, "size: "),
        ('{"size": "много"}', SpecError, "size: Input should be a valid integer"),
        ('{"stage": "train"}', SpecError, "stage: this is the upload stage, not 'train'"),
        ("{", SpecError, "the spec is not valid JSON: "),
        ("{}{}", SpecError, "the spec is not valid JSON: "),
    ):
        with pytest.raises(kind) as caught:
            load_spec(SampleSpec, text, s3_env)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="the spec: source: is needed to run the scrape stage"):
        load_spec(ScrapeSpec, "{}", s3_env)


def test_whatever_ends_a_stage_has_a_code_and_a_sentence() -> None:
    for error, code, sentence in (
        (KeyboardInterrupt(), 143, "interrupted"),
        (Interrupted("interrupted at step 5"), 143, "interrupted at step 5"),
        (MemoryError(), 75, "out of memory; give the stage more, or ask for smaller batches"),
        (OSError(28, "No space left on device", "/tmp/x"), 75, "the disk is full (/tmp/x); free some space and try"),
        (OSError(110, "Connection timed out"), 75, "Connection timed out"),
        (PermissionError(13, "Permission denied", "/x"), 75, "Permission denied: /x"),
        (BugurtError("something else"), 70, "something else"),
        (ValueError("two\nlines " + "x" * 9999), 70, "internal error, please report it with the output of --debug"),
    ):
        text, found = explain(error)
        assert (found, text.startswith(sentence)) == (code, True), text
        assert "\n" not in text
        assert len(text) < 700


def test_a_spec_comes_from_a_file_a_bucket_or_the_environment(stage: Stage, store: ArtifactStore) -> None:
    bucket = store.bucket
    bucket.put_bytes("specs/one.json", '{"name": "ё"}'.encode())
    address = f"s3://{bucket.settings.bucket}/specs/one.json"
    processes = [
        stage.start({"name": "файл"}, env={"BUGURT_SPEC": "{}"}),  # the option wins
        stage.start(None, "--spec", address),
        stage.start(None, env={"BUGURT_SPEC": '{"name": "env"}'}),
        stage.start(None, env={"BUGURT_SPEC": address, "BUGURT_S3_PREFIX": "other"}),
    ]
    assert [finish(p).code for p in processes] == [0, 0, 0, 0]
    assert {m.spec["name"] for m in store.list()} == {"файл", "ё", "env"}
    assert bucket.head(f"other/{SampleSpec(name='ё').ref()}/manifest.json")


def test_an_answer_may_be_another_artefact(stage: Stage, store: ArtifactStore) -> None:
    source = SampleSpec(name="source").ref()
    assert stage.run({"name": "source"}).code == 0
    result = stage.run({"source": source, "action": "other"}, run="next")
    assert result.code == 0
    assert stage.progress("next")["artifact"] == source
    assert [m.ref for m in store.list()] == [source]


def test_an_input_that_does_not_verify_is_bad_data(stage: Stage, store: ArtifactStore) -> None:
    source = SampleSpec(name="source").ref()
    assert stage.run({"name": "source"}).code == 0
    store.bucket.put_bytes(f"{source}/1.bin", b"xy" * 500)  # the file is one byte many times over
    result = stage.run({"source": source}, run="next")
    assert result.code == 65
    assert f"{source}/1.bin is damaged" in result.last
    assert [m.ref for m in store.list()] == [source]


# -- signals


@pytest.mark.plain
@pytest.mark.parametrize(
    ("action", "number"),
    [
        ("wait", signal.SIGTERM),
        ("turned", signal.SIGTERM),
        ("swallowed", signal.SIGTERM),
        ("loop", signal.SIGTERM),
        ("graceful", signal.SIGTERM),
        ("wait", signal.SIGINT),
    ],
)
def test_a_signal_ends_it_in_order(stage: Stage, action: str, number: int) -> None:
    process = stage.start({"action": action})
    before = ready(process)
    begun = time.monotonic()
    process.send_signal(number)
    result = finish(process, before)
    assert result.code == ExitCode.INTERRUPTED
    assert time.monotonic() - begun < 10
    assert "interrupted by" in result.last
    assert "Traceback" not in result.stderr
    progress = stage.progress()
    assert (progress["state"], progress["exit_code"]) == ("interrupted", 143)
    assert (stage.store.bucket.head("runs/test/upload/saved") is not None) == (action == "graceful")
    if action == "loop":
        assert progress["metrics"]["rate"] == 2.5
        assert progress["metrics"]["loss"] is None  # JSON has no NaN
    assert list(stage.store.list()) == []
    assert stage.leftovers() == []


def test_a_signal_that_comes_while_an_error_is_told_of_comes_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python tells so of an error in a finaliser; what is raised meanwhile is swallowed like the error."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # and the signals' handlers are put back below
    monkeypatch.setattr(sys, "__unraisablehook__", lambda _: signal.raise_signal(signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    came = threading.Event()
    signals = Signals()
    signals.handler = lambda number: came.set()
    signals.install()
    try:
        sys.unraisablehook(SimpleNamespace(exc_value=ValueError("of a finaliser")))  # type: ignore[arg-type]
        assert not came.is_set()
        assert came.wait(30)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_attempt_goes_on_in_the_same_log(stage: Stage) -> None:
    process = stage.start({"action": "loop"})
    before = ready(process)
    process.terminate()
    finish(process, before)
    first = stage.log()
    assert stage.run({"action": "work"}).code == 0
    log = stage.log()
    assert log[: len(first)] == first
    assert log[-1].endswith(f"committed {SampleSpec().ref()}")
    assert log[0][:4].isdigit()
    assert " INFO " in log[0]
    progress = stage.progress()
    assert (progress["attempt"], progress["state"]) == (2, "succeeded")
    assert "exit_code" not in progress


@pytest.mark.plain
def test_a_signal_at_any_moment_ends_in_one_of_two_ways(stage: Stage) -> None:
    """Either it is committed and exits 0, or nothing is there and it exits 143; before Python has begun, it dies."""
    moments = random.Random(20261124)
    begun = time.monotonic()
    assert stage.run({"name": "length", "action": "slow"}).code == 0
    whole = time.monotonic() - begun
    left: list[str] = []
    for number in range(8):
        spec = SampleSpec(name=f"n{number}", action="slow")
        process = stage.start(spec.model_dump(mode="json"), run=f"r{number}")
        time.sleep(moments.uniform(0.2, 1.1) * whole)  # the moment is what is tested
        process.send_signal(signal.SIGTERM)
        result = finish(process)
        committed = stage.store.find(spec.ref()) is not None
        assert "Traceback" not in result.stderr
        assert (result.code, committed) in ((0, True), (143, False), (143, True), (-signal.SIGTERM, False)), result
        if result.code >= 0:  # it had the time to tidy up
            assert [p for p in stage.leftovers() if p not in left] == []
        left = stage.leftovers()


@pytest.mark.plain
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_signal_while_the_lease_is_taken_or_given_back_leaves_no_claim(
    stage: Stage, s3_server: S3Server, method: str
) -> None:
    """Neither at its end nor once everything has arrived that was on its way when the signal came."""
    with faulty_s3(s3_server.endpoint) as proxy:
        request = proxy.break_next("hold", method=method, contains="leases/")
        process = stage.start({}, env={"BUGURT_S3_ENDPOINT": proxy.endpoint})
        assert request.came.wait(60)
        process.send_signal(signal.SIGTERM)
        threading.Timer(2.0, request.go.set).start()  # long after the signal, whatever the machine has to do
        assert finish(process).code == 143
        assert stage.leftovers() == []
        assert proxy.wait_until_quiet()
    assert stage.leftovers() == []


def test_a_killed_stage_commits_nothing_and_the_next_one_works(stage: Stage) -> None:
    process = stage.start({"action": "wait"})
    ready(process)
    process.kill()
    process.communicate()
    assert stage.store.find(SampleSpec().ref()) is None
    assert len([p for p in stage.leftovers() if p.startswith("leases/")]) == 1
    assert stage.run({}).code == 0  # the claim of a dead process does not stop it


# -- two at a time


def test_of_two_at_once_one_works_and_the_other_finds(stage: Stage) -> None:
    processes = [stage.start({"action": "slow"}, run=f"r{i}") for i in range(2)]
    results = [finish(p) for p in processes]
    assert [r.code for r in results] == [0, 0]
    texts = ["\n".join(str(line["message"]) for line in r.log) for r in results]
    assert sum("working in" in t for t in texts) == 1
    assert sum("nothing to do" in t for t in texts) == 1
    stage.store.download(SampleSpec().ref(), stage.folder / "out")  # verified: nobody wrote into it
    assert stage.leftovers() == []


def test_one_that_waits_can_be_stopped(stage: Stage) -> None:
    holder = stage.start({"action": "wait"}, run="first")
    before = ready(holder)
    waiter = stage.start({"action": "work"}, run="second")
    assert waiter.stderr is not None
    seen = ""
    for line in waiter.stderr:
        seen += line
        if "waiting: run first is at work on the same thing" in line:
            break
    waiter.terminate()
    assert finish(waiter, seen).code == 143
    holder.terminate()
    assert finish(holder, before).code == 143
    assert stage.leftovers() == []


# -- what is left at the end


@pytest.mark.plain
def test_output_arrives_whole_although_threads_are_left(stage: Stage) -> None:
    process = stage.start({"action": "thread"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "x" * 1_000_000 + "end\n"
    assert json.loads(err.splitlines()[-1])["message"] == f"committed {SampleSpec().ref()}"
    assert "Traceback" not in err
    assert "division by zero" in err
    assert stage.leftovers() == []


@pytest.mark.plain
def test_readers_that_go_away_do_not_change_the_end(stage: Stage) -> None:
    process = stage.start({"action": "thread"})
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) in (0, ExitCode.TRY_AGAIN)
    assert stage.progress()["state"] in ("succeeded", "failed")
    assert stage.leftovers() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_commits_nothing(stage: Stage, small_disk: Path) -> None:
    result = stage.run({"action": "disk"}, env={"BUGURT_WORKDIR": str(small_disk)})
    assert result.code == ExitCode.TRY_AGAIN
    assert "the disk is full" in result.last
    assert "free some space and try again" in result.last
    assert "Traceback" not in result.stderr
    assert stage.progress()["exit_code"] == 75
    assert list(stage.store.list()) == []
    assert list(small_disk.iterdir()) == []
    source = SampleSpec(name="big", size=3 * 2**20)
    assert stage.run(source.model_dump(mode="json")).code == 0
    result = stage.run({"source": source.ref()}, env={"BUGURT_WORKDIR": str(small_disk)}, run="next")
    assert (result.code, "the disk is full" in result.last) == (75, True)
    assert list(small_disk.iterdir()) == []


# -- what it tells


def test_secrets_never_show(stage: Stage) -> None:
    secret = 'hf_"quoted\\secret"'
    result = stage.run({"action": "secrets"}, "--debug", env={"HF_TOKEN": secret})
    assert result.code == 65
    assert result.last == "refused by https://user:[HF_TOKEN]@host"
    progress = stage.progress()
    assert progress["metrics"]["token"] == "[HF_TOKEN]"
    for text in (result.stderr, "\n".join(stage.log()), json.dumps(progress)):
        assert text.count("[HF_TOKEN]") >= 2
        for form in (secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[3:-3]):
            assert form not in text
    assert "Traceback" in result.stderr  # by --debug


def test_people_at_a_terminal_get_lines_and_collectors_get_json(stage: Stage) -> None:
    master, slave = pty.openpty()
    process = stage.start({"action": "data"}, stdout=slave, stderr=slave)
    os.close(slave)
    data = b""
    while True:
        try:
            if not (piece := os.read(master, 65536)):
                break
        except OSError:  # EIO: the other end was closed
            break
        data += piece
    os.close(master)
    assert process.wait(60) == 65
    lines = data.decode().replace("\r\n", "\n").strip().split("\n")
    assert lines[-1][2] == lines[-1][5] == ":"
    assert lines[-1].endswith(" ERROR   post 17: the text is wrong")
    assert not any(line.startswith("{") for line in lines)
    assert "Traceback" not in data.decode()
    piped = stage.run({"action": "data"})
    assert set(piped.log[-1]) == {"time", "level", "logger", "message"}


def test_a_server_that_stumbles_does_not_stop_a_stage(stage: Stage, s3_server: S3Server) -> None:
    with faulty_s3(s3_server.endpoint) as faults:
        break_ = faults.break_next
        for kind in ("error", "slow_down", "reset"):
            for part in ("progress.json", "log.txt", "leases", ".bin", "manifest.json"):
                break_(kind, contains=part)
        result = stage.run({}, env={"BUGURT_S3_ENDPOINT": faults.endpoint})
        assert result.code == 0, result.stderr
        assert len(faults.broken) == 15
        faults.clear()
        break_("error", contains="progress.json", times=1000)  # what only reports stops nothing
        break_("error", contains="log.txt", method="PUT", times=1000)
        assert stage.run({"name": "b"}, env={"BUGURT_S3_ENDPOINT": faults.endpoint}, run="b").code in (0, 75)
        faults.clear()
        break_("full", method="PUT", contains=".bin", times=1000)
        result = stage.run({"name": "c"}, env={"BUGURT_S3_ENDPOINT": faults.endpoint}, run="c")
        assert (result.code, "is full" in result.last) == (75, True)
        assert stage.store.find(SampleSpec(name="c").ref()) is None
    assert stage.leftovers() == []


def test_a_manifest_begins_with_the_work_and_not_with_its_first_file(store: ArtifactStore, tmp_path: Path) -> None:
    spec = SampleSpec(name="late")
    ctx = StageContext(spec, store, run="r", shard=None, workdir=tmp_path, progress=None)  # type: ignore[arg-type]
    writer = ctx.writer()
    writer.started += timedelta(hours=1)  # a training opens its writer when it has trained
    writer.put_bytes("a", b"a")
    manifest = ctx.commit(writer, counts={})
    assert manifest.started == ctx.started
    assert manifest.started < manifest.created
