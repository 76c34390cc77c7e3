"""Scraping a channel: the stage against a bare Telethon loop, on the same loopback server, in the same run.

    python -m benchmarks.scrape [--posts 32000] [--rounds 3] [--json]

The peer is ``async for message in client.iter_messages(channel, reverse=True, wait_time=0)``, which keeps nothing;
the stage converts, shards, uploads to a real S3 server and commits. Neither waits between pages. Both are processes
of their own; a round runs one after the other, and the ratio is that of the best rounds. Time is measured twice:
from the first page asked for to the last one answered, as the server logs it, and over the whole process, with the
start of Python and the imports. Memory is the peak of resident memory (VmHWM) of each process, of the worst round.
Rows whose peer is "the bound" show what the stage is to keep to: 1.2 times the peer's time, 250 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Row, report, row, s3_server

ROOT = Path(__file__).resolve().parent.parent

PEER = """
import asyncio, json, sys
from telethon import TelegramClient
from telethon.sessions import StringSession

async def main():
    session, api_id, api_hash, channel = json.load(sys.stdin)
    client = TelegramClient(StringSession(session), api_id, api_hash, receive_updates=False)
    await client.connect()
    count = 0
    async for message in client.iter_messages(channel, reverse=True, wait_time=0):
        count += 1
    await client.disconnect()
    return count

print(json.dumps({"count": asyncio.run(main())}))
"""


@dataclass(frozen=True)
class Cost:
    """Seconds from first page to last, seconds of the whole process, peak memory in MiB."""

    pages: float
    whole: float
    memory: float


class Telegram:
    """The test server as a process."""

    def __init__(self, posts: int) -> None:
        command = [sys.executable, "-m", "tests.telegram.server", "--posts", str(posts), "--seed", "1"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.hello: dict[str, Any] = json.loads(self._process.stdout.readline())

    def ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def measure(command: list[str], telegram: Telegram, env: dict[str, str], stdin: str = "") -> Cost:
    """Run one side; its memory is looked at every fiftieth of a second."""
    first = len(telegram.ask(do="calls"))
    began = time.monotonic()
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
    process = subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, text=True
    )
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    memory = 0.0
    while process.poll() is None:
        memory = max(memory, peak(process.pid))
        time.sleep(0.02)
    whole = time.monotonic() - began
    if process.returncode:
        log.seek(0)
        raise SystemExit(f"{command[1:3]} ended with {process.returncode}: {log.read()}")
    log.close()
    pages = [c["at"] for c in telegram.ask(do="calls")[first:] if c["method"] == "messages.GetHistory"]
    return Cost(pages[-1] - pages[0], whole, memory)


def peak(pid: int) -> float:
    """VmHWM in MiB; 0 when the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ours: list[Cost] = []
    peers: list[Cost] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        s3 = stack.enter_context(s3_server(folder / "s3"))
        telegram = Telegram(args.posts)
        stack.callback(telegram.stop)
        hello = telegram.hello
        account, name = hello["account"], hello["channel"]["username"]
        base = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_"))}
        env = {
            **base,
            **s3,
            "PYTHONPATH": str(ROOT),
            "BUGURT_RUN": "bench",
            "BUGURT_TELEGRAM_SESSION": hello["session"],
            "BUGURT_TELEGRAM_API_ID": str(account["api_id"]),
            "BUGURT_TELEGRAM_API_HASH": account["api_hash"],
        }
        given = json.dumps([hello["session"], account["api_id"], account["api_hash"], name])
        for number in range(args.rounds):
            peers.append(measure([sys.executable, "-c", PEER], telegram, env, given))
            spec = folder / f"spec-{number}.json"
            spec.write_text(json.dumps({"channel": f"@{name}", "limit": 10**6 + number}))  # an artefact of its own
            ours.append(measure([sys.executable, "-m", "jobs.scrape", "--spec", str(spec)], telegram, env))
    report(rows_of(args.posts, ours, peers), as_json=args.json)


def rows_of(posts: int, ours: list[Cost], peers: list[Cost]) -> list[Row]:
    """The ratios of the best rounds, and what they are to keep to."""
    peer = "Telethon iter_messages"
    found = []
    for name, field in (("posts/s between first and last page", "pages"), ("posts/s of the whole process", "whole")):
        mine, theirs = (min(getattr(c, field) for c in side) for side in (ours, peers))
        found.append(
            row(f"scrape: {name}", posts / mine, posts / theirs, peer_name=peer, unit="posts/s", better="higher")
        )
        bound = row(
            f"scrape: {name}, time by the peer's", mine / theirs, 1.2, peer_name="the bound", unit="times",
            better="lower",
        )  # fmt: skip
        found.append(bound)
    memory, theirs = max(c.memory for c in ours), max(c.memory for c in peers)
    found.append(row("scrape: peak memory", memory, theirs, peer_name=peer, unit="MiB", better="lower"))
    found.append(row("scrape: peak memory", memory, 250, peer_name="the bound", unit="MiB", better="lower"))
    return found


if __name__ == "__main__":
    main()
