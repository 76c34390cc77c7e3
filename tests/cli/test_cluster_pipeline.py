"""A whole run as a cluster would do it, with real processes: the command line submits over HTTP, the driver runs as
its Job's container says, and each stage is started with the environment that its pod would have. Only the machines
are missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.s3 import S3Settings
from jobs.storage import Bucket
from tests.cli.api_server import ApiServer, serve
from tests.cli.fake_kubernetes import ACCOUNT, STILL_AT_WORK, ControlPlane, Task
from tests.conftest import ROOT
from tests.s3_faults import faulty_s3

EXPORT = ROOT / "examples" / "channel" / "result.json"
SECRETS = ("BUGURT_S3_ACCESS_KEY_ID", "BUGURT_S3_SECRET_ACCESS_KEY")
OF_AN_IMAGE = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
RUN = "whole"


def clean_env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_", "KUBE"))}


def run_container(module: str, env: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A container's command with its own variables, but for folders of its image: those are this machine's, and then
    the libraries that read them need not be loaded anew."""
    given = {name: value for name, value in env.items() if name not in OF_AN_IMAGE}
    whole = {**clean_env(), "PYTHONPATH": str(ROOT), **given, "BUGURT_WORKDIR": str(folder)}
    whole["TMPDIR"] = "/tmp"  # as in the pod; a socket's path must be short
    return subprocess.run(
        [sys.executable, "-m", module, *args],
        env=whole,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


class Node:
    """Runs tasks of the control plane as processes; the plane answers others meanwhile."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.folder, self.pool = folder, pool
        self.envs: dict[str, dict[str, str]] = {}
        self.running: dict[str, Future[subprocess.CompletedProcess[str]]] = {}

    def __call__(self, task: Task) -> int:
        if task.pod not in self.running:
            self.envs[task.component] = task.env
            folder = self.folder / task.pod
            folder.mkdir()
            self.running[task.pod] = self.pool.submit(run_container, f"jobs.{task.component}", task.env, folder)
        try:
            done = self.running[task.pod].result(timeout=0.2)
        except TimeoutError:
            return STILL_AT_WORK
        for line in done.stderr.splitlines():
            task.log(line)
        return done.returncode


def bugurt(server: ApiServer, folder: Path, env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """The command line on the laptop."""
    command = [sys.executable, "-m", "cli.main", *args]
    whole = laptop(folder, env)
    return subprocess.run(command, env=whole, cwd=folder, capture_output=True, text=True, check=False, timeout=280)


def laptop(folder: Path, env: dict[str, str]) -> dict[str, str]:
    return {**clean_env(), "PYTHONPATH": str(ROOT), "KUBECONFIG": str(folder / "kubeconfig"), **env}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_the_laptop_to_a_batch(tmp_path: Path, s3_env: dict[str, str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        _from_the_laptop_to_a_batch(tmp_path, s3_env, Node(tmp_path, pool))


def _from_the_laptop_to_a_batch(tmp_path: Path, s3_env: dict[str, str], node: Node) -> None:
    secret = {n: s3_env[n] for n in SECRETS}
    plane = ControlPlane(node, secrets={"bugurt-s3": secret, "bugurt-telegram": {}})
    plane.hold("driver")  # its process is started below: it calls the plane, which cannot call itself
    with serve(plane) as server:
        server.kubeconfig(tmp_path)
        (tmp_path / "bugurt.toml").write_text(
            f'[s3]\nbucket = "{s3_env["BUGURT_S3_BUCKET"]}"\nprefix = "team"\n'
            f'endpoint = "{s3_env["BUGURT_S3_ENDPOINT"]}"\n'
            '[cluster]\nkind = "kubernetes"\ntrain = { gpu = 0 }\n'
        )

        def laptop(*args: str, code: int = 0) -> str:
            done = bugurt(server, tmp_path, secret, *args)
            assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
            return done.stdout

        submit = (
            "submit", "pipeline", "--source", str(EXPORT), "--model", "scratch:tiny", "--count", "6", "--name", RUN,
            "--set", "train.max_steps=4", "--set", "generate.shards=2", "--set", "generate.form=false",
        )  # fmt: skip
        laptop("install")
        dry = laptop(*submit, "--dry-run")
        assert dry.count("kind: Job") == 5 and not plane.jobs()
        laptop(*submit)
        laptop(*submit)  # asked twice
        assert list(plane.jobs()) == [f"{RUN}-driver"]

        plane.settle(5)
        pod = plane.pods_of(f"{RUN}-driver")[0]
        env = plane.environment(pod)
        assert set(secret.items()) <= set(env.items())
        place = tmp_path / "driver"
        place.mkdir()
        # The service account is what a pod has: here in a kubeconfig, and with the rights of its Role and no others.
        # All else comes from the Job.
        server.kubeconfig(place, token=f"{ACCOUNT}:bugurt:{pod['spec']['serviceAccountName']}")
        driver = run_container("cli.driver", {**env, "KUBECONFIG": str(place / "kubeconfig")}, place)
        assert driver.returncode == 0, driver.stderr
        plane.release("driver")

        status = json.loads(laptop("status", RUN, "--json"))
        assert status["state"] == "succeeded", status
        batch = next(s["artifact"] for s in status["stages"] if s["stage"] == "generate")
        jobs = plane.jobs()
        assert {j["metadata"]["labels"]["app.kubernetes.io/component"] for j in jobs.values()} == {
            "driver", "scrape", "preprocess", "train", "generate",
        }  # fmt: skip
        for name, job in jobs.items():
            if name == f"{RUN}-driver":
                continue
            notes = job["metadata"]["annotations"]
            assert notes["bugurt.dev/artifact"] == notes["bugurt.dev/artifact-wanted"]
            assert job["metadata"]["ownerReferences"][0]["name"] == f"{RUN}-driver"
            assert json.loads(_env(job)["BUGURT_SPEC"])["stage"] in name
        assert "BUGURT_SPEC" in node.envs["scrape"] and node.envs["generate"]["JOB_COMPLETION_INDEX"] == "1"

        laptop("artifacts", "pull", batch, "-o", str(tmp_path / "batch"))
        lines = [
            x for p in sorted((tmp_path / "batch").glob("part-*.jsonl")) for x in p.read_text("utf-8").splitlines()
        ]
        assert len(lines) == 6
        assert "committed" in laptop("logs", RUN, "train")  # of the pod
        for pod in [p for j in jobs for p in plane.pods_of(j)]:
            plane._remove("pods", pod)
        assert "committed" in laptop("logs", RUN, "train")  # of the bucket, now that the pods are gone

        # The same work under another name: everything is found, and no Job is made for it.
        again = [a if a != RUN else "again" for a in submit]
        assert "everything was found" in laptop(*again)
        assert set(plane.jobs()) == set(jobs)


def _env(job: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in job["spec"]["template"]["spec"]["containers"][0]["env"]}


def test_submit_and_status_cost_little(tmp_path: Path, s3_env: dict[str, str]) -> None:
    """Two seconds and one, with room for a slow machine, and of the processor, for one that is busy.

    What servers add to that is counted in requests.
    """
    bucket = Bucket(S3Settings.from_env(s3_env))
    plane = ControlPlane()
    with serve(plane) as server, faulty_s3(s3_env["BUGURT_S3_ENDPOINT"]) as s3:
        server.kubeconfig(tmp_path)
        (tmp_path / "bugurt.toml").write_text('[cluster]\nkind = "kubernetes"\n')
        env = {**s3_env, "BUGURT_S3_ENDPOINT": s3.endpoint}

        def timed(*args: str) -> tuple[str, float]:
            server.seen.clear()
            s3.requests.clear()
            command = [sys.executable, "-m", "cli.main", *args]
            with (tmp_path / "out").open("w+b") as out:
                process = subprocess.Popen(command, env=laptop(tmp_path, env), cwd=tmp_path, stdout=out, stderr=out)
                # Of this process alone: others that end now, left by other tests, would count among the children.
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                out.seek(0)
                text = out.read().decode()
            assert process.returncode == 0, text
            return text, used.ru_utime + used.ru_stime

        _, seconds = timed("submit", "pipeline", "--source", str(EXPORT), "--model", "scratch:tiny", "--name", RUN,
                           "--count", "20000", "--set", "generate.shards=200")  # fmt: skip
        assert len(server.seen) <= 3 and len(s3.requests) <= 20, (server.seen, s3.requests)
        assert seconds < 4
        stages = {"generate": {"state": "running", "job": f"{RUN}-generate"}}
        status = {"run": RUN, "state": "running", "stages": stages}
        bucket.put_bytes(f"runs/{RUN}/status.json", json.dumps(status).encode())
        for shard in range(200):
            report = {"state": "running", "done": shard, "total": 100, "unit": "posts"}
            bucket.put_bytes(f"runs/{RUN}/generate/shard-{shard:05d}/progress.json", json.dumps(report).encode())
        text, seconds = timed("status", RUN)
        assert "19,900 of 20,000 posts" in text
        assert len(server.seen) <= 4 and len(s3.requests) <= 205, (server.seen, len(s3.requests))
        assert seconds < 3
