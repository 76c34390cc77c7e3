"""The built images, from the S3 server to the driver: only where there are some, see ``containers``."""

from __future__ import annotations

import os
import secrets
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from cli.clusters.base import JobRequest, job_name
from cli.runs import RunRecord, load_status, save_record
from cli.settings import S3Section
from jobs import __version__
from jobs.artifacts import ArtifactStore
from jobs.specs import ExitCode, RunSpec
from tests.cli.api_server import serve
from tests.cli.fake_cluster import ControlPlane, FakeCluster, Task, cluster_settings

from . import containers, work
from .test_sealed import MODULES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not containers.ENABLED, reason="BUGURT_IMAGE_TESTS is not set: needs built images"),
]
#: Megabytes beyond the base.
SIZES = {"scrape": 90, "driver": 180, "preprocess": 450, "generate": 350}
#: Seconds from the start to the first line of the stage's own log.
STARTS = {"scrape": 1.0, "preprocess": 4.0, "train": 4.0, "generate": 4.0, "driver": 1.0}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The image ``s3``, serving a folder; the variables of its bucket."""
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "bugurt").mkdir()
    for path in (folder, folder / "bugurt"):
        os.chown(path, 10001, 10001)
    for parent in folder.parents[:2]:
        parent.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key, secret = secrets.token_hex(8), secrets.token_hex(20)
    container = f"bugurt-test-{uuid.uuid4().hex[:12]}"
    env = {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    arguments = ["serve", "s3", "/data", f"--addr=127.0.0.1:{port}", "--force-path-style", "--config=/dev/null"]
    options = containers.options(env, {str(folder): "/data"})
    containers.engine(
        "run",
        "--detach",
        f"--name={container}",
        *options,
        containers.name("s3"),
        *arguments,
        "--cache-dir=/tmp",
        env=env,
    )
    try:
        yield {
            "BUGURT_S3_ENDPOINT": f"http://127.0.0.1:{port}",
            "BUGURT_S3_BUCKET": "bugurt",
            "BUGURT_S3_ACCESS_KEY_ID": key,
            "BUGURT_S3_SECRET_ACCESS_KEY": secret,
        }
    finally:
        containers.engine("rm", "--force", container, check=False)


@pytest.fixture(scope="module")
def starts(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Drive a run to its end; the seconds that each container took to the first line of its log.

    Every part is in a container of its own image, with the environment of its Job; the API server is the tests' own.
    """
    tmp_path = tmp_path_factory.mktemp("kube")
    store = ArtifactStore.from_env(bucket)
    specs = work.specs(work.hand_in(store))
    record = RunRecord(
        run="boxes",
        spec=RunSpec(**{spec.stage: spec for spec in specs}),
        source="the example",
        created=datetime.now(UTC),
        submitted=datetime.now(UTC),
        code_version=__version__,
    )
    save_record(store, record)
    ended: dict[str, containers.Ended] = {}

    def run(task: Task) -> int:
        ended[task.component] = done = containers.run(task.component, env=task.env)
        return done.code

    keys = {name: bucket[name] for name in bucket if "KEY" in name}
    plane = ControlPlane(run, secrets={"bugurt-s3": keys, "bugurt-telegram": {}})
    plane.hold("driver")  # its container is run below
    s3 = S3Section(bucket=bucket["BUGURT_S3_BUCKET"], endpoint=bucket["BUGURT_S3_ENDPOINT"])
    settings = cluster_settings(train={"gpu": 0})  # the containers here get none
    cluster = FakeCluster(plane=plane, settings=settings.model_copy(update={"s3": s3}))
    name = job_name("boxes", "driver", None, 1)
    cluster.create(JobRequest(name=name, run="boxes", component="driver", spec={"run": "boxes"}))
    while not plane.pods_of(name):
        plane.tick()
    with serve(plane) as server:
        kubeconfig = server.kubeconfig(tmp_path)
        kubeconfig.chmod(0o644)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        env = {**plane.environment(plane.pods_of(name)[0]), "KUBECONFIG": "/kubeconfig"}
        for _ in range(7):  # as its Job would: the tests' API server is mute while a stage runs
            driver = containers.run("driver", env=env, mounts={str(kubeconfig): "/kubeconfig"})
            ended.setdefault("driver", driver)
            if driver.code != ExitCode.TRY_AGAIN:
                break
    first = ended.pop("driver")
    said = {stage: done.stderr for stage, done in ended.items()}
    assert driver.code == 0, (driver.stderr, said)
    assert list(ended) == [spec.stage for spec in specs]
    assert all(done.code == 0 for done in ended.values()), said
    assert {stage.state for stage in load_status(store, "boxes").stages.values()} == {"succeeded"}
    assert len(work.posts(store, specs[-1].ref())) == 2
    return {name: done.seconds_to_first_line for name, done in {**ended, "driver": first}.items()}


def test_the_driver_drives_the_stages(starts: dict[str, float]) -> None:
    assert set(starts) == set(MODULES)


@pytest.mark.parametrize("image", MODULES)
def test_start(image: str, starts: dict[str, float]) -> None:
    """On an idle machine: a busy one takes several times as long."""
    print(f"{image}: {starts[image]:.2f} s")
    assert starts[image] <= STARTS[image]


@pytest.mark.parametrize("image", MODULES)
def test_the_root_is_read_only_and_the_user_nobody(image: str) -> None:
    program = (
        "import errno, os, pathlib\n"
        "print(os.getuid(), os.getgid())\n"
        "for folder in ('/', '/opt/bugurt', '/opt/project', '/etc', '/usr', '/var/tmp'):\n"
        "    try: pathlib.Path(folder, 'x').write_text('')\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    command = ["run", "--rm", *containers.options({}), "--entrypoint=python", containers.name(image), "-c", program]
    lines = containers.engine(*command).stdout.split("\n")
    assert lines[0] == "10001 10001"
    assert set(lines[1:7]) <= {"EROFS", "EACCES"}
    assert len(lines) == 8


@pytest.mark.parametrize("image", MODULES)
def test_there_is_nothing_that_a_stage_does_not_need(image: str) -> None:
    program = (
        "import pathlib, shutil, sysconfig\n"
        "site = pathlib.Path(sysconfig.get_path('purelib'))\n"
        "print([p for p in ('gcc', 'cc', 'c++', 'make') if shutil.which(p)])\n"
        "print([p for p in ('/root/.cache', '/tmp/requirements.txt', '/src', '/dist') if pathlib.Path(p).exists()])\n"
        "print([str(p) for p in site.rglob('tests') if p.is_dir()][:3])\n"
        "print((site / 'torch').exists())\n"
        "print(sorted(p.name for p in pathlib.Path('/opt/project').iterdir() if p.name in ('cli', 'jobs', 'tests')))\n"
    )
    # As root, who alone may look into /root.
    command = [
        "run",
        "--rm",
        *containers.options({}),
        "--user=0:0",
        "--entrypoint=python",
        containers.name(image),
        "-c",
        program,
    ]
    ours = "['cli', 'jobs']" if image == "driver" else "['jobs']"
    assert containers.engine(*command).stdout.splitlines() == ["[]", "[]", "[]", str(image == "train"), ours]


@pytest.mark.parametrize("image", [*MODULES, "s3"])
def test_the_image_says_what_it_is(image: str) -> None:
    config = containers.inspect(image)["Config"]
    labels = {k.rpartition(".")[2]: v for k, v in config["Labels"].items() if k.startswith("org.opencontainers.image.")}
    assert labels["version"] == __version__
    assert labels["title"] == f"bugurt {image}"
    assert {"source", "revision", "licenses"} <= set(labels)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == (["rclone"] if image == "s3" else ["python", "-m", MODULES[image]])


@pytest.mark.parametrize("image", SIZES)
def test_size(image: str) -> None:
    """What the image adds to its base: the layers in /opt, as files."""
    program = (
        "import os\n"
        "files = {}\n"
        "for top, _, names in os.walk('/opt'):\n"
        "    for name in names:\n"
        "        found = os.lstat(os.path.join(top, name))\n"
        "        files[found.st_ino] = found.st_size\n"
        "print(sum(files.values()))\n"
    )
    command = ["run", "--rm", *containers.options({}), "--entrypoint=python", containers.name(image), "-c", program]
    megabytes = int(containers.engine(*command).stdout) / 1e6
    print(f"{image}: {megabytes:.0f} MB")
    assert megabytes <= SIZES[image]
