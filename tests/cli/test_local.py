"""The command line over one machine: the real processes, the real S3 server, real kills."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cli.clusters import local_s3
from cli.clusters.base import JobRequest, JobState
from cli.clusters.local import LocalCluster
from cli.settings import load
from jobs.specs import ConfigError
from tests.projects import Project, kill_group

SCRAPE = ("submit", "scrape", "--source", "posts.txt", "--wait")


def posts_ref(project: Project) -> str:
    """The only posts artefact."""
    (found,) = project.json("artifacts", "list", "posts")
    return str(found["ref"])


@pytest.mark.plain
def test_a_stage_is_done_once_and_found_afterwards(project: Project) -> None:
    first = project.ok(*SCRAPE)
    assert "submitted" in first and "succeeded" in first
    ref = posts_ref(project)
    again = project.ok(*SCRAPE)
    assert "everything was found" in again and ref in again and "from the same spec and inputs" in again
    shown = project.ok("artifacts", "show", ref[:12])
    assert "ЧАЙНИК ДОСМОТРЕЛ БЕЗ ТЕБЯ" in shown
    text = project.ok("artifacts", "pull", ref, "--format", "txt", "-o", "-")
    assert text.count("\n---\n") == 2
    lines = project.ok("artifacts", "pull", ref, "--format", "jsonl", "-o", "-").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3]


def test_the_reason_for_doing_it_again_is_said(project: Project) -> None:
    project.ok(*SCRAPE)
    said = project.ok(*SCRAPE, "--limit", "2")
    assert "limit None → 2" in said
    assert len(project.json("artifacts", "list", "posts")) == 2


def test_force_does_it_again(project: Project) -> None:
    project.ok(*SCRAPE)
    before = project.json("artifacts", "list", "posts")[0]["created"]
    forced = project.ok(*SCRAPE, "--force")
    assert "forced" in forced
    (after,) = project.json("artifacts", "list", "posts")
    assert after["created"] > before and after["run"].endswith("-2")


@pytest.mark.plain
def test_a_run_outlives_the_command_that_submitted_it(project: Project) -> None:
    project.ok("submit", "scrape", "--source", "posts.txt", "--detach")
    (run,) = [r["run"] for r in project.json("runs")]
    project.ok("status", run, "-w")
    assert project.json("status", run)["state"] == "succeeded"
    logs = project.ok("logs", run, "scrape")
    assert "committed posts/" in logs
    assert "committed posts/" in project.ok("logs", run, "scrape", "-f")
    assert len(project.ok("logs", run, "scrape", "--tail", "1").splitlines()) == 1


def test_bad_data_fails_at_once_with_its_sentence_and_code(project: Project) -> None:
    (project.folder / "broken.json").write_text('{"messages": [', encoding="utf-8")
    said = project.fails(65, "submit", "scrape", "--source", "broken.json", "--wait")
    assert "broken.json" in said
    assert "bugurt logs broken-" in said and "rerun" not in said, "it would fail in the same way"
    (run,) = project.json("runs")
    assert run["state"] == "failed"
    status = project.json("status", run["run"])
    assert status["exit_code"] == 65 and status["stages"][0]["attempts"] == 1
    assert project.json("artifacts", "list", "posts") == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("submit", "scrape", "--source", "nowhere.txt"), 64, "nowhere.txt"),
        (("submit", "scrape", "--source", "posts.txt", "--set", "limit=-1"), 64, "limit"),
        (("submit", "scrape", "--source", "posts.txt", "--set", "speed=9"), 64, "speed: unknown field"),
        (("submit", "scrape", "--source", "posts.txt", "--set", "train.epochs=1"), 64, "train"),
        (("submit", "scrape", "--source", "posts.txt", "--name", "Ы"), 64, "--name"),
        (("submit", "scrape"), 64, "--source"),
        (("submit", "train", "--dataset", "dataset/ffff"), 65, "dataset/ffff"),
        (("submit", "train"), 64, "--dataset"),
        (("status", "nothing"), 65, "nothing"),
        (("logs", "nothing"), 65, "nothing"),
        (("cancel", "nothing"), 65, "nothing"),
        (("rerun", "nothing"), 65, "nothing"),
        (("artifacts", "show", "posts/abc"), 65, "posts/abc"),
        (("artifacts", "list", "cats"), 64, "cats"),
        (("artifacts", "show", "../../etc"), 65, "KIND/ID"),
        (("batches", "show"), 65, "no batches"),
        (("--config", "none.toml", "runs"), 78, "none.toml"),
    ],
)
def test_mistakes_get_one_sentence(project: Project, arguments: tuple[str, ...], code: int, words: str) -> None:
    assert words in project.fails(code, *arguments)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[s3]\nbukket = 'x'\n", "s3.bukket"),
        ("[s3]\nsecret_access_key = 'x'\n", "secrets do not belong"),
        ("[cluster]\nkind = 'moon'\n", "cluster.kind"),
        ("speed = 3\n", "speed"),
        ("[s3\n", "not valid TOML"),
    ],
)
def test_wrong_settings_are_named(project: Project, toml: str, words: str) -> None:
    (project.folder / "bugurt.toml").write_text(toml, encoding="utf-8")
    assert words in project.fails(78, "runs")


@pytest.mark.parametrize("options", [(), ("--kubernetes",), ("--kubernetes", "--bucket", "posts")])
def test_what_init_writes_can_be_read(project: Project, options: tuple[str, ...]) -> None:
    said = project.run("init", *options, "--force")
    assert said.returncode == 0, said.stderr
    settings = load(project.folder / "bugurt.toml")
    assert settings.cluster.kind == ("kubernetes" if options else "local")
    assert settings.s3.bucket == ("posts" if "--bucket" in options else None)
    assert ("bugurt install" in said.stderr) == bool(options)
    text = (project.folder / "bugurt.toml").read_text(encoding="utf-8")
    every = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)  # as if nothing were commented out
    (project.folder / "bugurt.toml").write_text(every, encoding="utf-8")
    settings = load(project.folder / "bugurt.toml")
    assert settings.train["epochs"] == 3
    if options:  # the template's four are all that a node of four has, and its own pods take some
        assert settings.cluster.train.cpu == "3"


def test_init_takes_no_name_that_would_break_its_file(project: Project) -> None:
    assert "--bucket 'a\"b'" in project.fails(64, "init", "--bucket", 'a"b')
    assert not (project.folder / "bugurt.toml").exists()


@pytest.mark.parametrize("option", [("--gpu", "A100"), ("--tokens-per-second", "5")])
def test_what_only_an_estimate_hears_is_refused_without_one(project: Project, option: tuple[str, str]) -> None:
    done = project.run("submit", "pipeline", "--source", "posts.txt", *option, "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value for {option[0]}: it says nothing without --estimate" in done.stderr


def test_a_dry_run_guesses_no_inputs(project: Project) -> None:
    shown = project.ok("submit", "pipeline", "--source", "posts.txt", "--model", "scratch:tiny", "--dry-run")
    jobs = {j["component"]: j["spec"] for j in json.loads(shown)["jobs"]}
    assert jobs["preprocess"]["posts"].startswith("posts/")
    assert (jobs["train"]["dataset"], jobs["generate"]["model"]) == (None, None), "they have no id yet"


DRY = ("submit", "pipeline", "--source", "posts.txt", "--model", "scratch:tiny", "--profile", "own.toml",
       "--prompt-file", "begin.txt", "--name", "first")  # fmt: skip


def hand_in(project: Project) -> None:
    (project.folder / "own.toml").write_text('name = "own"\n', encoding="utf-8")
    (project.folder / "begin.txt").write_text("КУПИЛ\n", encoding="utf-8")


@pytest.mark.parametrize("how", [("--dry-run",), ("--estimate", "--tokens-per-second", "100")])
def test_who_only_asks_leaves_nothing_behind(project: Project, how: tuple[str, ...]) -> None:
    hand_in(project)
    before = sorted(project.folder.rglob("*"))
    project.ok(*DRY, *how)
    assert sorted(project.folder.rglob("*")) == before


def test_a_dry_run_tells_the_addresses_that_the_files_will_have(project: Project) -> None:
    hand_in(project)
    dry = project.run(*DRY, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    spec = json.loads(dry.stdout)["run"]["spec"]
    refs = [spec["scrape"]["source"], spec["preprocess"]["profile_file"], spec["generate"]["prompts_file"]]
    for file, ref in zip(("posts.txt", "own.toml", "begin.txt"), refs, strict=True):
        assert f"would upload {file} as {ref} (" in dry.stderr
    assert project.json("artifacts", "list") == []
    project.ok("submit", "scrape", "--source", "posts.txt", "--wait")
    again = project.run(*DRY, "--dry-run")
    assert json.loads(again.stdout)["run"]["spec"] == spec
    assert "posts.txt" not in again.stderr, "it is there by now"
    assert {m["ref"] for m in project.json("artifacts", "list", "source")} == {refs[0]}


@pytest.mark.parametrize(
    ("code", "words", "command"),
    [
        (0, "no runs yet", ("runs",)),
        (0, "", ("artifacts", "list")),
        (0, "", ("batches", "list")),
        (0, "0 things", ("gc",)),
        (65, "there is no run 'r'", ("status", "r")),
        (65, "there is no run 'r'", ("logs", "r")),
        (65, "there is no run 'r'", ("cancel", "r")),
        (65, "is no artefact", ("artifacts", "show", "model/abcd")),
        (65, "", ("batches", "show")),
        (None, "the first run makes", ("doctor",)),
        (0, "", ("down",)),
    ],
)
def test_who_looks_around_in_a_folder_that_is_no_project_makes_none_of_it(
    project: Project, code: int | None, words: str, command: tuple[str, ...]
) -> None:
    before = sorted(project.folder.rglob("*"))
    done = project.run(*command)
    assert code is None or done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(project.folder.rglob("*")) == before


def test_settings_go_from_file_to_environment_to_options(project: Project) -> None:
    (project.folder / "bugurt.toml").write_text("[scrape]\nlimit = 1\n", encoding="utf-8")
    dry = ("submit", "scrape", "--source", "posts.txt", "--dry-run")
    assert json.loads(project.ok(*dry))["run"]["spec"]["scrape"]["limit"] == 1
    env = {"BUGURT_SCRAPE_LIMIT": "2"}
    assert json.loads(project.ok(*dry, env=env))["run"]["spec"]["scrape"]["limit"] == 2
    assert json.loads(project.ok(*dry, "--set", "limit=3", env=env))["run"]["spec"]["scrape"]["limit"] == 3
    assert project.json("runs") == [], "a dry run leaves nothing behind"


def test_another_bucket_than_the_embedded_one(project: Project, s3_env: dict[str, str]) -> None:
    project.ok(*SCRAPE, env=s3_env)
    assert not (project.folder / ".bugurt" / "bucket").exists()
    assert len(json.loads(project.ok("artifacts", "list", "posts", "--json", env=s3_env))) == 1
    said = project.fails(78, "runs", env={**s3_env, "BUGURT_S3_BUCKET": "not-there"})
    assert "not-there" in said and "does not exist" in said
    said = project.fails(78, "runs", env={**s3_env, "BUGURT_S3_SECRET_ACCESS_KEY": "wrong"})
    assert "denies access" in said or "refuses" in said
    project.fails(75, "runs", env={**s3_env, "BUGURT_S3_ENDPOINT": "http://127.0.0.1:9"})


def test_the_server_starts_once_keeps_its_keys_and_stops(project: Project) -> None:
    state = project.folder / ".bugurt"
    (state / "bucket").mkdir(parents=True)  # something was begun here: who only looks at a new folder starts no server
    commands = [subprocess.Popen([sys.executable, "-m", "cli.main", "runs"], cwd=project.folder, env=project.env,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]  # fmt: skip
    assert [c.wait(60) for c in commands] == [0] * 4
    assert (state / "s3.json").stat().st_mode & 0o777 == 0o600
    first = local_s3.running(state)
    assert first is not None
    servers = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _serves(p, state)]
    assert len(servers) == 1, "four commands at once start one server"
    os.kill(first.pid, signal.SIGKILL)
    project.ok("runs")
    second = local_s3.running(state)
    assert second is not None and second.pid != first.pid
    assert (second.port, second.access_key_id, second.secret_access_key) == (
        first.port, first.access_key_id, first.secret_access_key)  # fmt: skip
    project.ok("down")
    assert local_s3.running(state) is None
    assert "no local S3 server" in project.ok("down")


def test_a_server_whose_description_is_lost_can_still_be_stopped(tmp_path: Path) -> None:
    described = tmp_path / "s3.json"
    for damage in (described.unlink, lambda: described.write_text("{")):
        local_s3.ensure(tmp_path)
        damage()
        try:
            with pytest.raises(ConfigError, match="bugurt down"):
                local_s3.ensure(tmp_path)
        finally:
            assert local_s3.stop(tmp_path)
        assert not local_s3.stop(tmp_path)
    with pytest.raises(ConfigError, match="remove it after `bugurt down`"):
        local_s3.ensure(tmp_path)
    described.unlink()


def _serves(cmdline: Path, state: Path) -> bool:
    try:
        text = cmdline.read_bytes()
    except OSError:
        return False
    return b"serve" in text and str(state).encode() in text


@pytest.mark.plain
def test_no_secret_is_in_arguments_or_jobs_folders(project: Project) -> None:
    project.ok(*SCRAPE)
    secret = json.loads((project.folder / ".bugurt" / "s3.json").read_text())["secret_access_key"].encode()
    for file in project.folder.rglob("*"):
        if file.is_file() and file.name != "s3.json":
            assert secret not in file.read_bytes(), file
    server = local_s3.running(project.folder / ".bugurt")
    assert server is not None
    assert secret not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


# -- kills: a Job that takes its time, so that there is something to kill


@pytest.fixture
def slow(project: Project) -> LocalCluster:
    """A cluster whose scrape stage is a process that waits for a file ``go`` and then ends with its number."""
    stage = project.folder / "fakes" / "jobs"
    stage.mkdir(parents=True)
    (stage / "__init__.py").write_text("")
    (stage / "scrape.py").write_text(
        "import os, sys\n"
        "go = os.environ['GO']\n"
        "with open(go + '.pid', 'a') as pids:\n"
        "    pids.write(str(os.getpid()) + '\\n')\n"
        "start = len(open(go + '.pid').read().split())\n"
        "sys.exit(int(open(f'{go}.{start}').readline()))\n"
    )
    for start in range(1, 9):
        os.mkfifo(project.folder / f"go.{start}")
    return LocalCluster(project.folder / ".bugurt" / "jobs", cwd=project.folder, s3_env=dict)


def request(project: Project, **fields: object) -> JobRequest:
    env = {"GO": str(project.folder / "go"), "PYTHONPATH": str(project.folder / "fakes")}
    return JobRequest(name="r-scrape-1", run="r", component="scrape", spec={}, env=env, **fields)  # type: ignore[arg-type]


def answer(project: Project, start: int, code: int) -> None:
    """Let the process of the so-manieth start end with ``code``; blocks until it is there and reads."""
    with (project.folder / f"go.{start}").open("w") as fifo:
        fifo.write(f"{code}\n")


def last(cluster: LocalCluster) -> JobState:
    status = list(cluster.watch("r-scrape-1"))[-1]
    return status.state


def test_creating_twice_makes_one_job(project: Project, slow: LocalCluster) -> None:
    slow.create(request(project))
    assert slow.create(request(project)).state in (JobState.PENDING, JobState.RUNNING)
    answer(project, 1, 0)
    assert last(slow) is JobState.SUCCEEDED
    assert slow.create(request(project)).state is JobState.SUCCEEDED, "a finished Job is adopted as it is"
    assert len((project.folder / "go.pid").read_text().split()) == 1
    assert [j.name for j in slow.list("r")] == ["r-scrape-1"] and slow.list("other") == []


@pytest.mark.parametrize(("code", "starts"), [(65, 1), (64, 1), (78, 1), (75, 4), (1, 4)])
def test_the_policy_decides_on_another_try(
    project: Project, slow: LocalCluster, code: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUGURT_LOCAL_BACKOFF", "0.01")
    slow.create(request(project))
    for start in range(1, starts + 1):
        answer(project, start, code)
    assert last(slow) is JobState.FAILED
    status = slow.get("r-scrape-1")
    assert status is not None and status.exit_code == code and str(code) in status.reason
    assert len((project.folder / "go.pid").read_text().split()) == starts


def test_a_killed_process_is_started_again(
    project: Project, slow: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUGURT_LOCAL_BACKOFF", "0.01")
    slow.create(request(project))
    answer(project, 1, 137)  # as a process ends whom the kernel killed
    answer(project, 2, 0)
    assert last(slow) is JobState.SUCCEEDED
    status = slow.get("r-scrape-1")
    assert status is not None and status.restarts == 1


@pytest.mark.plain
def test_a_job_whose_supervisor_was_killed_goes_on_when_asked_again(project: Project, slow: LocalCluster) -> None:
    slow.create(request(project))
    wait_for_start(project, 1)
    kill_group(f"supervisor {project.folder}")
    states = [s.state for s in slow.watch("r-scrape-1")]
    assert states[-1] is JobState.PENDING
    lost = slow.get("r-scrape-1")
    assert lost is not None and "submit the run again" in lost.reason
    slow.create(request(project))
    answer(project, 2, 0)
    assert last(slow) is JobState.SUCCEEDED


def wait_for_start(project: Project, start: int) -> None:
    """Block until the so-manieth process has started: opening a FIFO waits for its other end."""
    descriptor = os.open(project.folder / f"go.{start}", os.O_WRONLY)
    OPEN.append(descriptor)


OPEN: list[int] = []  # kept open, or the waiting process would read the end of the file


def test_a_supervisor_that_takes_over_lets_the_processes_before_end_first(project: Project, slow: LocalCluster) -> None:
    """One may be saving a checkpoint in its folder for temporary files, which is not taken from under it."""
    stage = project.folder / "fakes" / "jobs" / "scrape.py"
    stage.write_text(
        "import os, pathlib, signal\n"
        "go, tmp = os.environ['GO'], pathlib.Path(os.environ['BUGURT_WORKDIR'])\n"
        "with open(go + '.pid', 'a') as pids:\n"
        "    pids.write(str(os.getpid()) + '\\n')\n"
        "start = len(open(go + '.pid').read().split())\n"
        "def save(*_):\n"
        "    (tmp / 'checkpoint').write_text('x')\n"
        "    open(go + '.3').read()\n"  # how long that takes is the test's to say
        "    os._exit(0 if (tmp / 'checkpoint').exists() else 1)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "open(f'{go}.{start}').readline()\n"
    )
    slow.create(request(project))
    wait_for_start(project, 1)
    kill_group(f"supervisor {project.folder}")
    list(slow.watch("r-scrape-1"))
    job = project.folder / ".bugurt" / "jobs" / "r-scrape-1"
    saving = os.open(project.folder / "go.3", os.O_WRONLY)  # blocks until SIGTERM has reached the process
    slow.create(request(project))
    slow.sweep()
    while json.loads((job / "state.json").read_text())["active"]:  # the new supervisor says that it runs nothing yet
        time.sleep(0.01)  # a file that changes tells nobody
    (checkpoint,) = job.glob("tmp/*/checkpoint")
    assert len((project.folder / "go.pid").read_text().split()) == 1, "the next process waits"
    os.close(saving)
    answer(project, 2, 0)
    assert last(slow) is JobState.SUCCEEDED
    assert not checkpoint.exists() and not (job / "tmp").exists()


@pytest.mark.plain
def test_what_killed_processes_left_goes_with_the_next_job(project: Project, slow: LocalCluster) -> None:
    slow.create(request(project))
    wait_for_start(project, 1)
    jobs = project.folder / ".bugurt" / "jobs"
    (tmp,) = jobs.glob("r-scrape-1/tmp/*")
    (tmp / "model.safetensors").write_bytes(b"x")
    gone = subprocess.Popen(["true"])
    gone.wait()
    half = jobs / f".r-train-2.{gone.pid}.123"
    half.mkdir()
    mine = jobs / f".r-train-2.{os.getpid()}.123"
    mine.mkdir()
    slow.sweep()
    assert tmp.exists(), "its process lives"
    kill_group(f"supervisor {project.folder}")
    pid = int((project.folder / "go.pid").read_text().split()[0])
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)  # no child of ours: nothing tells of its end
    assert tmp.exists()
    slow.create(replace(request(project), name="r-scrape-2"))
    assert not tmp.exists() and not half.exists() and mine.exists()
    answer(project, 2, 0)
    assert list(slow.watch("r-scrape-2"))[-1].state is JobState.SUCCEEDED


def test_deleting_stops_the_process_and_removes_the_job(project: Project, slow: LocalCluster) -> None:
    slow.create(request(project))
    wait_for_start(project, 1)
    slow.delete("r-scrape-1")
    assert slow.get("r-scrape-1") is None
    assert not (project.folder / ".bugurt" / "jobs" / "r-scrape-1").exists()
    pid = (project.folder / "go.pid").read_text().split()[0]
    assert not Path(f"/proc/{pid}").exists()
    slow.delete("r-scrape-1")  # no error


def test_a_full_disk_is_nobodys_mistake(project: Project) -> None:
    """Jobs can be made again once there is space; those that are there are seen through."""
    jobs = project.folder / ".bugurt" / "jobs"
    jobs.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(jobs)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        with (jobs / ".filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        assert "is full; free some space and try again" in project.fails(75, *SCRAPE)
        assert sorted(f.name for f in jobs.iterdir()) == [".filling"]
        os.truncate(jobs / ".filling", 40_000)
        project.ok("submit", "scrape", "--source", "posts.txt", "--detach")
        subprocess.run(["mount", "-o", "remount,size=8m", str(jobs)], check=True)
        project.ok(*SCRAPE)
        assert not any(log.stat().st_size for log in jobs.glob("*/supervisor.log"))
    finally:
        project.ok("down", "--force")
        subprocess.run(["umount", "--lazy", str(jobs)], check=True)


def test_a_supervisor_tells_its_number_on_a_full_disk(tmp_path: Path) -> None:
    """Else nobody could end its Job."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        cluster = LocalCluster(tmp_path / "jobs", cwd=tmp_path, s3_env=dict)
        spec = {"stage": "scrape", "source": "source/" + "a" * 20}
        vars(cluster)["_spawn"] = lambda job, lock: None
        cluster.create(JobRequest(name="job", run="run", component="scrape", spec=spec))
        with (tmp_path / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        del vars(cluster)["_spawn"]
        cluster.create(JobRequest(name="job", run="run", component="scrape", spec=spec))
        assert list(cluster.watch("job"))
        assert int((tmp_path / "jobs" / "job" / "pid").read_text()) > 0
        cluster.annotate("job", {"x": "y"})
        log = (tmp_path / "jobs" / "job" / "supervisor.log").read_text()
        assert "Traceback" not in log
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
