"""Artefacts up and down: ArtifactStore, with its verification, against plain boto3 on the same file and server.

    python -m benchmarks.transfer_speed [--mib 256] [--rounds 5] [--json]

The peer is boto3 as it comes: ``upload_file``, ``download_file`` with their own multipart settings, ``upload_fileobj``
of a pipe and the body of one ``get_object`` for the streams; it verifies nothing. Ours hashes what goes out and what
comes in, and writes a manifest. Rounds alternate between the two, and the ratio is that of the best rounds. The server
is a process on the same machine, so that processor time, not a network, is what is compared.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import boto3

from benchmarks.common import Row, arguments, report, row, s3_server, say, timed
from jobs.artifacts import ArtifactStore, hash_file
from jobs.storage import MIB

REF = "model/" + "0" * 20


def plain_client(env: dict[str, str]) -> Any:
    """boto3 as everybody would write it."""
    return boto3.client(
        "s3",
        endpoint_url=env["BUGURT_S3_ENDPOINT"],
        region_name="us-east-1",
        aws_access_key_id=env["BUGURT_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=env["BUGURT_S3_SECRET_ACCESS_KEY"],
    )


def upload(store: ArtifactStore, local: Path) -> None:
    """A file and the commit."""
    writer = store.writer(REF)
    writer.put_file(local, "file")
    writer.commit(stage="mirror", spec={})


def upload_stream(store: ArtifactStore, blocks: Callable[[], BinaryIO]) -> None:
    """The same bytes as a stream, and the commit."""
    writer = store.writer(REF)
    with blocks() as source, writer.open("file") as target:
        while block := source.read(MIB):
            target.write(block)
    writer.commit(stage="mirror", spec={})


def read_stream(store: ArtifactStore) -> int:
    """All bytes of the stream; how many."""
    with store.open(REF, store.manifest(REF).file("file")) as stream:
        return sum(len(block) for block in iter(lambda: stream.read(MIB), b""))


def piped(local: Path) -> BinaryIO:
    """The file's bytes through a pipe, which cannot be sought in: what a stage that makes them on the way has."""
    read, write = os.pipe()

    def feed() -> None:
        with local.open("rb") as source, os.fdopen(write, "wb") as target:
            while block := source.read(MIB):
                target.write(block)

    threading.Thread(target=feed, daemon=True).start()
    return os.fdopen(read, "rb")


def measure(store: ArtifactStore, client: Any, folder: Path, mib: int, rounds: int) -> list[Row]:
    """Alternate between ours and the peer; the best of each."""
    local = folder / "file"
    with local.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    expected = hash_file(local)
    bucket = store.bucket.settings.bucket
    key = store.bucket.key(f"{REF}/file")
    down, theirs = folder / "down", folder / "theirs"

    def fresh(path: Path, work: Callable[[], object]) -> Callable[[], object]:
        path.unlink(missing_ok=True)  # a download keeps a file that is there and right
        return work

    def plain_stream() -> int:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        return sum(len(block) for block in body.iter_chunks(MIB))

    def plain_upload_stream() -> None:
        with piped(local) as source:
            client.upload_fileobj(source, bucket, "stream")

    pairs: list[tuple[str, str, Callable[[], object], Callable[[], object]]] = [
        ("a file up", "upload_file", lambda: upload(store, local), lambda: client.upload_file(str(local), bucket, "f")),
        (
            "a file down",
            "download_file",
            lambda: store.download(REF, down),
            lambda: client.download_file(bucket, key, str(theirs)),
        ),
        (
            "a stream up",
            "upload_fileobj",
            lambda: upload_stream(store, lambda: piped(local)),
            plain_upload_stream,
        ),
        ("a stream down", "get_object", lambda: read_stream(store), plain_stream),
    ]
    rows = []
    for name, peer, mine, other in pairs:
        best = [float("inf")] * 2
        for _ in range(rounds):
            for side, work in enumerate((mine, other)):
                path = theirs if side else down / "file"
                best[side] = min(best[side], timed(fresh(path, work))[0])
        say(f"{name}: {best[0]:.2f} s, boto3 {best[1]:.2f} s")
        rows.append(row(f"{name}, verified", mib / best[0], mib / best[1], peer_name=f"boto3 {peer}, unverified",
                        unit="MiB/s", better="higher"))  # fmt: skip
        if name == "a file down" and hash_file(down / "file") != expected:
            raise SystemExit("what came down is not what went up")
    return rows


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__ or "",
        ("--mib", {"type": int, "default": 256, "help": "size of the file"}),
        ("--rounds", {"type": int, "default": 5}),
    )
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "s3") as env:
        store = ArtifactStore.from_env(env)
        rows = measure(store, plain_client(env), Path(name), options.mib, options.rounds)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
