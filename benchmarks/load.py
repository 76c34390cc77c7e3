"""Large numbers: a large artefact, a Job of many shards, a bucket of many runs.

    python -m benchmarks.load [--mib 2048] [--shards 500] [--runs 10000] [--json]

- An artefact of so many MiB goes up as a file and comes down again, each in a process of its own; ours is the most
  memory that the process held, and the peer is the artefact itself, which a process that reads it whole would hold.
- A pipeline whose last stage has so many shards goes through the driver and a control plane in memory. Ours is its
  calls of the API server, and the peer ten times those for a tenth of the shards, so that 1 means that they grow with
  the shards and no faster. (The time is told, too; most of it is the control plane's, which copies all its pods.)
- A bucket is filled with the folders of so many runs, as they lie there after their end, and a tenth as many
  artefacts of each kind; ``bugurt runs`` and ``bugurt gc`` go over it as processes, and the peer is boto3 that does
  nothing but fetch every run's record, 16 at a time, as everybody must who knows no more than the folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import Row, arguments, report, row, s3_server, say, timed
from benchmarks.transfer_speed import plain_client
from jobs.specs import GenerateSpec, PreprocessSpec, RunSpec, ScrapeSpec, TrainSpec
from jobs.streams import MIB

ROOT = Path(__file__).resolve().parents[1]
REF = "model/" + "0" * 20
#: What one process does to the artefact; it prints the most memory that it held, in KiB.
TRANSFER = f"""
import resource, sys
from pathlib import Path
from jobs.artifacts import ArtifactStore
store, where = ArtifactStore.from_env(), Path(sys.argv[2])
if sys.argv[1] == "up":
    writer = store.writer({REF!r})
    writer.put_file(where, "model.safetensors")
    writer.commit(stage="mirror", spec={{}})
else:
    store.download({REF!r}, where)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def process(*command: str, env: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run Python on the project; its standard output."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_"))}
    done = subprocess.run(
        [sys.executable, *command],
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def large_artifact(mib: int) -> list[Row]:
    """Memory of the two directions."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="bugurt-load-") as name:
        folder = Path(name)
        local = folder / "file"
        digest = hashlib.sha256()
        with local.open("wb") as file:
            for _ in range(mib):
                block = os.urandom(MIB)
                digest.update(block)
                file.write(block)
        with s3_server(folder / "s3") as env:
            for way, place in (("up", local), ("down", folder / "out")):
                seconds, said = timed(lambda w=way, p=place: process("-c", TRANSFER, w, str(p), env=env))  # type: ignore[misc]
                say(f"{mib} MiB {way}: {seconds:.1f} s")
                held = int(said) / 1024
                name_ = f"memory, {mib} MiB {way}"
                rows.append(row(name_, held, mib, peer_name="the artefact whole", unit="MiB", better="lower"))
                if way == "up":
                    local.unlink()
        with (folder / "out" / "model.safetensors").open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != digest.digest():
                raise SystemExit("what came down is not what went up")
    return rows


def many_shards(shards: int) -> Row:
    """The driver over a Job of so many shards."""
    from cli.runs import save_record
    from tests.cli.test_driver_killed import SPEC, World

    def drive(count: int) -> int:
        world = World()
        spec = SPEC.model_copy(update={"generate": GenerateSpec(count=count, shards=count)})
        save_record(world.store, world.record.model_copy(update={"spec": spec}))
        world.plane.gpus = 2 * count
        if world.drive() != (0, 0) or sum(t.component == "generate" for t in world.plane.runs) != count:
            raise SystemExit("the pipeline did not end as it should")
        return len(world.plane.calls)

    tenth = max(shards // 10, 1)
    few = drive(tenth)
    seconds, many = timed(lambda: drive(shards))
    say(f"{shards} shards: {seconds:.1f} s, {many} calls; {tenth} shards: {few} calls")
    peer = f"{shards / tenth:.0f} times {tenth} shards"
    return row(f"driver, {shards} shards", many, few * shards / tenth, peer_name=peer, unit="calls", better="lower")


def _spec(number: int) -> RunSpec:
    return RunSpec(
        scrape=ScrapeSpec(channel=f"@channel_{number}", as_of=datetime(2026, 1, 1, tzinfo=UTC)),
        preprocess=PreprocessSpec(),
        train=TrainSpec(),
        generate=GenerateSpec(seed=number),
    )


def fill(bucket: Path, runs: int) -> None:
    """Lay the files of finished runs into the folder that the server shows as a bucket; a tenth have artefacts."""
    from cli.runs import RunRecord, RunStatus, StageStatus, marker, with_input

    begun = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(runs):
        spec = _spec(number)
        folder = bucket / "runs" / f"load-{number:05d}"
        stages: dict[str, StageStatus] = {}
        ref = None
        for stage in spec.stages():
            own = with_input(spec.spec(stage), ref)
            ref = own.ref()
            stages[stage] = StageStatus(state="succeeded", artifact=ref, exit_code=0)
            (folder / stage).mkdir(parents=True)
            (folder / stage / "progress.json").write_text(json.dumps({"state": "succeeded", "artifact": ref}))
            (folder / stage / "log.txt").write_text("done\n")
            if number % 10 == 0:
                _artifact(bucket / ref, own.model_dump(mode="json"), f"load-{number:05d}")
        if number % 10 == 5:  # a checkpoint of a model that nobody finished
            _artifact(folder / "train" / "checkpoints" / "100", {}, None)
        (folder / "driver").mkdir()
        (folder / "driver" / "log.txt").write_text("the run is done\n")
        time = begun + timedelta(minutes=number)
        record = RunRecord(
            run=folder.name, spec=spec, source=f"@channel_{number}", created=time, submitted=time, code_version="0"
        )
        (folder / "run.json").write_text(record.model_dump_json(indent=1))
        mark = bucket / marker(record)
        mark.mkdir(parents=True)
        (mark / "marker").touch()
        status = RunStatus(run=folder.name, state="succeeded", exit_code=0, stages=stages)
        (folder / "status.json").write_text(status.model_dump_json(indent=1))


def _artifact(folder: Path, spec: dict[str, Any], run: str | None) -> None:
    from jobs.artifacts import FileEntry, Manifest

    folder.mkdir(parents=True)
    files = []
    for name in ("part-00000", "part-00001"):
        (folder / name).write_bytes(b"x")
        files.append(FileEntry(path=name, size=1, sha256=hashlib.sha256(b"x").hexdigest()))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    manifest = Manifest(
        kind=folder.parent.name,
        id=folder.name,
        stage="train",
        spec=spec,
        files=tuple(files),
        info={"artifact": "model/" + "f" * 20},
        run=run,
        code_version="0",
        started=now,
        created=now,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1))


def many_runs(runs: int) -> list[Row]:
    """``bugurt runs`` and ``bugurt gc`` on a full bucket."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="bugurt-load-") as name:
        folder = Path(name)
        with s3_server(folder / "s3") as env:
            fill(folder / "s3" / "bench", runs)
            client = plain_client(env)

            def fetch(number: int) -> int:
                answer = client.get_object(Bucket="bench", Key=f"runs/load-{number:05d}/run.json")
                return len(answer["Body"].read())

            def records() -> int:
                with ThreadPoolExecutor(16) as pool:
                    return sum(pool.map(fetch, range(runs)))

            bare, _ = timed(records)
            say(f"the records of {runs} runs: {bare:.1f} s to fetch them")
            (folder / "work").mkdir()
            for command in (("runs", "--json"), ("gc", "--older-than", "0", "--dry-run")):
                seconds, said = timed(lambda c=command: process("-m", "cli.main", *c, env=env, cwd=folder / "work"))  # type: ignore[misc]
                last = said.strip().splitlines()[-1]
                right = len(json.loads(said)) == 50 if command[0] == "runs" else last.startswith("0 things")
                if not right:
                    raise SystemExit(f"bugurt {' '.join(command)} is wrong: {last}")
                say(f"bugurt {' '.join(command)}: {seconds:.1f} s")
                name_ = f"bugurt {command[0]}, {runs} runs"
                rows.append(row(name_, seconds, bare, peer_name="boto3 fetching the records", unit="s", better="lower"))
    return rows


def main() -> None:
    options = arguments(
        __doc__ or "",
        ("--mib", {"type": int, "default": 2048, "help": "size of the artefact (0: leave it out)"}),
        ("--shards", {"type": int, "default": 500, "help": "shards of the Job (0: leave it out)"}),
        ("--runs", {"type": int, "default": 10_000, "help": "runs in the bucket (0: leave it out)"}),
    )
    rows = large_artifact(options.mib) if options.mib else []
    if options.shards:
        rows.append(many_shards(options.shards))
    if options.runs:
        rows += many_runs(options.runs)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
