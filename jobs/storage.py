"""An S3 bucket: objects, listings, transfers and streams.

``jobs.artifacts`` is the door that the rest of the project uses; this module knows nothing of artefacts.
"""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

import botocore.exceptions as bx
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSRequest
from urllib3.exceptions import HTTPError as UrllibError

from jobs.s3 import FORBIDDEN, MISSING, TRIES, S3Settings, arrived, client_error, connect, translate
from jobs.specs import BugurtError, ConfigError, DataError, NotFoundError, TemporaryError
from jobs.streams import MIB, Ranges, UploadStream, open_source

PART_SIZE = 16 * MIB  # of a multipart transfer; 10,000 parts, S3's limit, then hold 156 GiB
FILE_PARTS = (4, 8)  # the least and most parts of a file on their way at a time
STREAM_PARTS = 3  # parts of a stream on their way at a time: with one being filled, 64 MiB of memory
RANGES_AHEAD = 3  # ranges of a download on their way besides the one that is wanted: 32 MiB of memory a file
SIGNED_FOR = 900  # seconds that a signed address is good for: S3 forgives a clock as much
SMALL_OBJECT = 64 * MIB  # bound on what is read into memory whole: manifests, progress, logs

_ONE_BY_ONE = 4  # objects are deleted by requests of their own
#: Of the two kinds of listing: what an answer calls the place where the next one begins, and what a request does.
_OF_OBJECTS = {"NextContinuationToken": "ContinuationToken"}
_OF_UPLOADS = {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"}


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing; ``path`` is relative to the prefix, ``size`` in bytes."""

    path: str
    size: int
    modified: datetime


class Bucket:
    """Objects under one prefix of one bucket. Paths are relative to the prefix. Safe to use from threads."""

    def __init__(self, settings: S3Settings, *, max_concurrency: int | None = None) -> None:
        """``max_concurrency``: parts of a file on their way at a time; None: two a core, within ``FILE_PARTS``."""
        self.settings = settings
        self.prefix = settings.prefix.strip("/")
        self._concurrency = max_concurrency = max_concurrency or _file_parts()
        with self._errors("connecting", connected=False):
            self.client = connect(settings, max(16, 2 * self._concurrency))
        self._transfer = TransferConfig(
            multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, max_concurrency=max_concurrency
        )
        self._stream_transfer = TransferConfig(
            multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, max_concurrency=STREAM_PARTS
        )
        self._stream_transfer.max_in_memory_upload_chunks = STREAM_PARTS

    @contextlib.contextmanager
    def _errors(self, doing: str, *, connected: bool = True) -> Iterator[None]:
        try:
            yield
        except BugurtError:
            raise
        except (bx.BotoCoreError, bx.ClientError, Boto3Error, ValueError) as error:
            raise translate(error, doing, self.settings, connected=connected) from error

    def key(self, path: str) -> str:
        """The object's key in the bucket."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def url(self, path: str) -> str:
        """The object's ``s3://`` address."""
        return f"s3://{self.settings.bucket}/{self.key(path)}"

    # -- small objects

    def check(self) -> None:
        """Raise ConfigError when the bucket is missing or closed to us, TemporaryError when out of reach."""
        with self._errors(f"opening bucket {self.settings.bucket!r}"):
            try:
                self.client.head_bucket(Bucket=self.settings.bucket)
            except bx.ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    error.response["Error"]["Code"] = "NoSuchBucket"  # HEAD has no body to name it
                    raise
                # The answer to a listing has a body, which says what is wrong with the request.
                self.client.list_objects_v2(Bucket=self.settings.bucket, Prefix=self.key("leases/none"), MaxKeys=1)

    def get_bytes(self, path: str, *, max_size: int = SMALL_OBJECT) -> bytes:
        """A small object whole. Raises NotFoundError, or DataError when it is larger than ``max_size``."""
        return self._read(path, max_size, set())

    def _read(self, path: str, max_size: int, seen: set[str]) -> bytes:
        """``seen``: digests of what has been read of it already."""
        with self._errors(f"reading {path}"):
            for attempt in range(TRIES):
                try:
                    answer = self.client.get_object(Bucket=self.settings.bucket, Key=self.key(path))
                    if answer["ContentLength"] > max_size:
                        answer["Body"].close()
                        raise DataError(f"{self.url(path)} has more than {max_size} bytes; it is not ours")
                    data = answer["Body"].read()
                except (bx.IncompleteReadError, bx.ResponseStreamingError, bx.ReadTimeoutError, OSError):
                    if attempt == TRIES - 1:  # botocore retries the request, but not the reading of the body
                        raise
                    continue
                # Most servers' ETag is the MD5 of a small object. Where it is something else (encrypted objects),
                # the same bytes come twice; bytes that were damaged on the way do not.
                digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
                if digest == answer.get("ETag", "").strip('"') or digest in seen:
                    return data
                seen.add(digest)
            raise TemporaryError(f"reading {path}: the bytes change from one reading to the next")
        raise AssertionError("unreachable")

    def find_bytes(self, path: str) -> bytes | None:
        """A small object whole, or None where there is none; raises otherwise as ``get_bytes`` does.

        A request by boto3 takes two milliseconds of a processor, which the reports of some hundred shards make a
        second of, and the manifests of some thousand artefacts many. A signed address, asked for over the client's own
        connections, takes a third of that. Whatever comes back but the object or its absence is read as ``get_bytes``
        does it, which tries again and knows what to say.
        """
        client: Any = self.client
        place = {"Bucket": self.settings.bucket, "Key": self.key(path)}
        seen: set[str] = set()
        with contextlib.suppress(bx.BotoCoreError, bx.ClientError, UrllibError, OSError, ValueError):
            url = client.generate_presigned_url("get_object", Params=place, ExpiresIn=SIGNED_FOR)
            request = AWSRequest(method="GET", url=url, stream_output=True).prepare()
            answer = client._endpoint.http_session.send(request)
            if int(answer.headers.get("Content-Length") or 0) > SMALL_OBJECT:
                answer.raw.close()
            else:
                data = bytes(answer.content)
                if answer.status_code == 404 and b"<Code>NoSuchKey</Code>" in data:
                    return None
                if answer.status_code == 200:
                    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
                    if digest == answer.headers.get("ETag", "").strip('"'):
                        return data
                    seen.add(digest)
        try:
            return self._read(path, SMALL_OBJECT, seen)
        except NotFoundError:
            return None

    def get_many(self, paths: Iterable[str]) -> list[bytes | None]:
        """Small objects side by side, each as ``find_bytes`` gives it."""
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.find_bytes, paths))

    def put_bytes(self, path: str, data: bytes, *, content_type: str | None = None) -> None:
        """Write a small object."""
        with self._errors(f"writing {path}"):
            arrived(
                lambda: self.client.put_object(
                    Bucket=self.settings.bucket,
                    Key=self.key(path),
                    Body=data,
                    ContentType=content_type or content_type_of(path),
                )
            )

    def head(self, path: str) -> ObjectInfo | None:
        """Size and time of an object, or None."""
        with self._errors(f"looking for {path}"):
            try:
                answer = self.client.head_object(Bucket=self.settings.bucket, Key=self.key(path))
            except bx.ClientError as error:
                if isinstance(client_error(error, "", self.settings), NotFoundError):
                    return None
                raise
            return ObjectInfo(path, answer["ContentLength"], answer["LastModified"])

    def list(self, under: str = "") -> Iterator[ObjectInfo]:
        """All objects whose path begins with ``under``, in the order of their keys."""
        for page in self._pages(f"listing {under or 'the bucket'}", self.client.list_objects_v2, under, _OF_OBJECTS):
            for entry in page.get("Contents", []):
                yield ObjectInfo(self._path(entry["Key"]), entry["Size"], entry["LastModified"])

    def folders(self, under: str) -> Iterator[str]:
        """Names of the folders directly below ``under`` (which ends in ``/`` or is empty)."""
        below = len(self.key(under))
        for page in self._pages(f"listing {under}", self.client.list_objects_v2, under, _OF_OBJECTS, Delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"][below:].rstrip("/")

    def _pages(
        self, doing: str, request: Callable[..., Any], under: str, marks: Mapping[str, str], **options: str
    ) -> Iterator[dict[str, Any]]:
        """The answers to a listing; ``marks`` says which words of one answer the next request repeats, and as what."""
        next_one: dict[str, Any] = {}

        def send() -> dict[str, Any]:
            page: dict[str, Any] = request(Bucket=self.settings.bucket, Prefix=self.key(under), **options, **next_one)
            return page

        with self._errors(doing):
            while True:
                page = arrived(send)
                yield page
                if not page.get("IsTruncated"):
                    return
                before, next_one = next_one, {to: page[word] for word, to in marks.items() if page.get(word)}
                if not next_one or next_one == before:
                    raise TemporaryError(f"{doing}: the server does not say where its next answer begins; try again")

    def _path(self, key: str) -> str:
        return key[len(self.key("")) :] if self.prefix else key

    def delete(self, paths: Iterable[str]) -> int:
        """Delete objects; those already gone are no error. Returns how many were asked for.

        Not every server checks what it is asked to delete against a digest, and a name may be damaged on its way. So a
        few are deleted one by one, by an address that is signed; and of many, those that the answer does not name.
        """
        count = 0
        batch: list[str] = []

        def flush() -> None:
            left = set(batch)
            batch.clear()
            if len(left) > _ONE_BY_ONE:
                answer = arrived(
                    lambda: self.client.delete_objects(
                        Bucket=self.settings.bucket, Delete={"Objects": [{"Key": self.key(p)} for p in sorted(left)]}
                    )
                )
                failed = [e for e in answer.get("Errors", []) if e.get("Code") not in MISSING]
                if failed:
                    kind = ConfigError if failed[0].get("Code") in FORBIDDEN else TemporaryError
                    raise kind(f"deleting {failed[0].get('Key')}: {failed[0].get('Message') or failed[0].get('Code')}")
                told = {e.get("Key") for e in (*answer.get("Deleted", []), *answer.get("Errors", []))}
                left = {p for p in left if self.key(p) not in told}
            for path in sorted(left):
                with contextlib.suppress(self.client.exceptions.NoSuchKey):
                    self.client.delete_object(Bucket=self.settings.bucket, Key=self.key(path))

        with self._errors("deleting"):
            for path in paths:
                batch.append(path)
                count += 1
                if len(batch) == 1000:
                    flush()
            flush()
        return count

    def server_time(self) -> datetime:
        """The server's own clock, so that leases do not depend on ours."""
        with self._errors("asking the time"):
            answer = self.client.list_objects_v2(Bucket=self.settings.bucket, Prefix=self.key("leases/none"), MaxKeys=1)
            stamp = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(stamp) if stamp else datetime.now(UTC)

    def storage_time(self) -> datetime:
        """The clock by which the storage dates objects, which what answers before it need not share; writes one."""
        path = f"leases/clock-{secrets.token_hex(8)}"
        self.put_bytes(path, b"")
        try:
            found = self.head(path)
        finally:
            self.delete([path])
        return found.modified if found is not None else self.server_time()

    def open_uploads(self, under: str = "") -> Iterator[tuple[str, str, datetime]]:
        """Multipart uploads that nobody finished: (path, upload id, when it began)."""

        def request(**options: Any) -> Any:
            try:
                return self.client.list_multipart_uploads(**options)
            except bx.ClientError as error:
                if error.response.get("Error", {}).get("Code") == "NoSuchUpload":  # rclone's word for none so far
                    return {}
                raise

        for page in self._pages("listing unfinished uploads", request, under, _OF_UPLOADS):
            for entry in page.get("Uploads", []):
                yield self._path(entry["Key"]), entry["UploadId"], entry["Initiated"]

    def abort_upload(self, path: str, upload_id: str) -> None:
        """Throw away an unfinished multipart upload."""
        with self._errors(f"aborting the upload of {path}"):
            self.client.abort_multipart_upload(Bucket=self.settings.bucket, Key=self.key(path), UploadId=upload_id)

    # -- files and streams

    def upload_file(self, local: Path, path: str, progress: Callable[[int], None] | None = None) -> None:
        """Upload a file, in parallel parts when it is large. ``progress`` gets bytes as they go out."""
        with self._errors(f"uploading {path}"):
            arrived(
                lambda: self.client.upload_file(
                    str(local),
                    self.settings.bucket,
                    self.key(path),
                    ExtraArgs={"ContentType": content_type_of(path)},
                    Callback=progress,
                    Config=self._transfer,
                )
            )

    def ranges(self, path: str, size: int, *, ahead: int = RANGES_AHEAD, at_once: bool = True) -> Ranges:
        """An object of ``size`` bytes from its beginning to its end, some ranges of it at a time.

        boto3's ``download_fileobj`` into what cannot seek would be that, but it waits for ever on large objects
        (s3transfer 0.19 schedules the parts from within one of the tasks that must end before they may begin).
        """
        return Ranges(
            lambda start, length: self.get_range(path, start, length, size), size, ahead=ahead, at_once=at_once
        )

    def get_range(self, path: str, start: int, length: int, size: int | None = None) -> bytes:
        """``length`` bytes from ``start`` on. Raises DataError when the object is not of ``size`` bytes."""
        with self._errors(f"reading {path}"):
            for attempt in range(5):
                try:
                    answer = self.client.get_object(
                        Bucket=self.settings.bucket, Key=self.key(path), Range=f"bytes={start}-{start + length - 1}"
                    )
                    whole = answer.get("ContentRange", "").rpartition("/")[2]
                    if size is not None and whole.isdigit() and int(whole) != size:
                        answer["Body"].close()
                        raise DataError(f"{self.url(path)} has {whole} bytes and not {size}")
                    data = answer["Body"].read()
                    if len(data) == length:
                        return data
                    problem: Exception = DataError(
                        f"{self.url(path)} gave {len(data)} bytes where {length} were asked for"
                    )
                except (bx.IncompleteReadError, bx.ResponseStreamingError, bx.ReadTimeoutError, OSError) as error:
                    problem = error
                if attempt == 4:
                    raise problem
        raise AssertionError("unreachable")

    def put_stream(self, path: str, source: BinaryIO) -> None:
        """Upload what ``source`` gives until its end, without knowing the length beforehand."""
        with self._errors(f"uploading {path}"):
            self.client.upload_fileobj(
                source,
                self.settings.bucket,
                self.key(path),
                ExtraArgs={"ContentType": content_type_of(path)},
                Config=self._stream_transfer,
            )

    def open(self, path: str, size: int) -> BinaryIO:
        """Read an object of ``size`` bytes as a stream; broken connections are mended on the way."""
        return open_source(self.ranges(path, size, ahead=1, at_once=False))

    def create(self, path: str) -> UploadStream:
        """Write an object of any size as a stream; it exists once ``close`` has returned."""
        return UploadStream(lambda source: self.put_stream(path, source))


def _file_parts() -> int:
    """One part waits for the network while another is digested; more on a core only get into each other's way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    least, most = FILE_PARTS
    return max(least, min(most, 2 * cores))


def content_type_of(path: str) -> str:
    """The MIME type by a file's name, so that a browser shows what lies in the bucket."""
    if path.endswith((".jsonl", ".log", ".md", ".toml")):
        return "text/plain; charset=utf-8"
    guess = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"{guess}; charset=utf-8" if guess.startswith("text/") or guess.endswith("json") else guess
