"""At run time nobody is asked but the bucket: the whole product where every other address leads nowhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cut_network import cut_off, possible
from tests.projects import new_project
from tests.test_pipeline import QUICK, SAMPLE

ROOT = Path(__file__).resolve().parents[1]
#: All that a Job does: submit, wait, look, fetch. The servers and processes of the machine are part of it.
COMMANDS = """
set -e
{bugurt} submit pipeline --source export.json --model scratch:tiny --count 4 --wait {quick}
{bugurt} status $({bugurt} runs --json | {python} -c 'import json, sys; print(json.load(sys.stdin)[0]["run"])')
{bugurt} batches pull -o batch
{bugurt} down --force
"""


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    """A machine that lets its users have network namespaces: most do, some containers do not."""
    if not possible():
        pytest.skip("a network of its own needs unshare, ip and the right to use them")


def test_what_is_sought_is_seen(tmp_path: Path) -> None:
    """The test of the test: a name, an address, and that of the clouds' metadata, which boto3 asks for credentials."""
    program = (
        "import socket, boto3\n"
        "for target in (('huggingface.co', 443), ('198.51.100.7', 443)):\n"
        "    try: socket.create_connection(target, 5).close()\n"
        "    except OSError: pass\n"
        "try: boto3.client('s3', region_name='eu-central-1').list_buckets()\n"
        "except Exception: pass\n"
    )
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    found = cut_off(sys.executable, "-c", program, env=env, cwd=tmp_path, timeout=60)
    assert found["code"] == 0
    assert {"huggingface.co", "198.51.100.7:443", "169.254.169.254:80"} <= set(found["sought"])  # type: ignore[call-overload]


@pytest.mark.slow
def test_a_pipeline_asks_nobody_but_its_bucket(tmp_path: Path) -> None:
    with new_project(tmp_path / "project") as project:
        export = json.loads((SAMPLE / "result.json").read_text(encoding="utf-8"))
        export["messages"] = export["messages"][:160]
        (project.folder / "export.json").write_text(json.dumps(export, ensure_ascii=False), encoding="utf-8")
        # As a user has it: nothing tells the libraries that they are offline.
        told = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        env = {k: v for k, v in project.env.items() if k not in told}
        quick = " ".join(f"'{word}'" for word in QUICK)
        script = COMMANDS.format(bugurt=f"{sys.executable} -m cli.main", python=sys.executable, quick=quick)
        found = cut_off("sh", "-c", script, env=env, cwd=project.folder, timeout=280)
        assert found["code"] == 0, found["stderr"]
        assert found["sought"] == []
        assert list((project.folder / "batch").glob("**/*.jsonl"))
