"""Reading batches: lists, pages on a terminal, two batches side by side."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from tests.conftest import ROOT
from tests.projects import Project

MODELS = ("model/" + "1" * 20, "model/" + "2" * 20)


def put(store: ArtifactStore, letter: str, posts: list[tuple[str, str]], model: str = MODELS[0]) -> str:
    """A batch of (prompt, text) in two parts."""
    ref = f"batch/{letter * 20}"
    writer = store.writer(ref)
    half = len(posts) // 2
    for number, part in enumerate((range(half), range(half, len(posts)))):
        lines = (json.dumps({"index": i, "prompt": posts[i][0], "text": posts[i][1]}, ensure_ascii=False) for i in part)
        writer.put_bytes(f"part-{number:05d}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    writer.commit(stage="generate", spec={}, inputs={"model": model}, counts={"posts": len(posts)})
    return ref


def texts(word: str, count: int) -> list[tuple[str, str]]:
    return [("", f"{word} НОМЕР {n}\n@\n{word} ДОВОЛЕН") for n in range(count)]


def test_a_batch_is_shown_in_order(project: Project, store: ArtifactStore, s3_env: dict[str, str]) -> None:
    put(store, "a", [*texts("КОТ", 6), ("", "ДЕД\x1b[31m КРАСИТ")])
    shown = project.ok("batches", "show", "aaaa", env=s3_env)
    assert shown.startswith("[0]\nКОТ НОМЕР 0\n@\nКОТ ДОВОЛЕН\n\n[1]\n")
    assert "\x1b" not in shown  # a post cannot write to the terminal
    assert project.ok("batches", "show", "-n", "2", env=s3_env).count("ДОВОЛЕН") == 2
    put(store, "b", texts("ДЕД", 2), MODELS[1])
    rows = json.loads(project.ok("batches", "list", "--json", env=s3_env))
    expected = {"batch/" + "a" * 20: MODELS[0], "batch/" + "b" * 20: MODELS[1]}
    assert {r["ref"]: r["inputs"]["model"] for r in rows} == expected
    assert "ДЕД НОМЕР 0" in project.ok("batches", "show", env=s3_env)  # the newest


def on_a_terminal(project: Project, pager: str, env: dict[str, str]) -> tuple[int, str]:
    """``bugurt batches show`` with a pseudo-terminal for its output; its exit code and what is seen."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "batches", "show"],
        env={**project.env, **env, "PAGER": pager, "TERM": "xterm", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.STDOUT,
        cwd=project.folder,
    )
    os.close(theirs)
    seen = bytearray()
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux says so at the end of a pseudo-terminal
            break
        if not data:
            break
        seen += data
    os.close(ours)
    return process.wait(60), seen.decode().replace("\r\n", "\n")


def test_a_terminal_gets_pages(project: Project, store: ArtifactStore, s3_env: dict[str, str]) -> None:
    put(store, "a", texts("КОТ", 5000))
    script = project.folder / "pager"
    script.write_text("import sys\nprint('PAGED', sys.stdin.readline().strip(), sys.stdin.readline().strip())\n")
    # This reader leaves after two lines: no complaint, and nothing hangs on the rest.
    command = shlex.join([sys.executable, str(script)])
    assert on_a_terminal(project, command, s3_env) == (0, "PAGED [0] КОТ НОМЕР 0\n")
    script.write_text("import sys\nprint(sys.stdin.read().count('ДОВОЛЕН'))\n")
    assert on_a_terminal(project, command, s3_env) == (0, "5000\n")
    code, seen = on_a_terminal(project, str(project.folder / "no-such-pager"), s3_env)
    assert (code, seen.count("ДОВОЛЕН")) == (0, 5000)


def test_two_batches_side_by_side(project: Project, store: ArtifactStore, s3_env: dict[str, str]) -> None:
    prompts = ["КОТ", "ДЕД", "БАТЯ"]
    ours = [(prompts[n % 3], f"{prompts[n % 3]} ЧИНИТ ЗАБОР НОМЕР {n} И ДОЛГО НЕ МОЖЕТ ОСТАНОВИТЬСЯ") for n in range(9)]
    others = ["ДЕД", "ТЁЩА", "КОТ"]
    theirs = [(others[n % 3], f"{others[n % 3]} МОЕТ ЛЫЖИ НОМЕР {n}") for n in range(6)]
    put(store, "a", ours)
    put(store, "b", theirs, MODELS[1])
    pairs: list[dict[str, Any]] = json.loads(project.ok("batches", "compare", "aaaa", "bbbb", "--json", env=s3_env))
    assert [(p["prompt"], p["a"]["index"], p["b"]["index"]) for p in pairs] == [
        ("КОТ", 0, 2), ("ДЕД", 1, 0), ("КОТ", 3, 5), ("ДЕД", 4, 3),
    ]  # fmt: skip
    table = project.ok("batches", "compare", "aaaa", "bbbb", "-n", "2", env={**s3_env, "COLUMNS": "70"})
    lines = table.splitlines()
    assert max(map(len, lines)) <= 70
    assert "model/11111111" in table
    assert "model/22222222" in table
    # Both stand in the same lines, one beside the other.
    assert any("КОТ ЧИНИТ ЗАБОР" in line and "КОТ МОЕТ ЛЫЖИ НОМЕР 2" in line for line in lines)
    assert any("ДЕД ЧИНИТ ЗАБОР" in line and "ДЕД МОЕТ ЛЫЖИ НОМЕР 0" in line for line in lines)
    assert "НОМЕР 5" not in table


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_batches_without_a_common_prompt(
    project: Project, store: ArtifactStore, s3_env: dict[str, str], flags: tuple[str, ...]
) -> None:
    put(store, "a", [("КОТ", "КОТ СПИТ")])
    put(store, "b", [("ДЕД", "ДЕД СПИТ")])
    done = project.run("batches", "compare", "aaaa", "bbbb", *flags, env=s3_env)
    assert done.returncode == 0
    if flags:
        assert json.loads(done.stdout) == []
    else:
        assert (done.stdout, "no post of batch/aaaa" in done.stderr) == ("", True)
    assert "batch/cccc" not in done.stdout
    assert project.fails(65, "batches", "compare", "aaaa", "cccc", env=s3_env)
