"""An S3 bucket over boto3: settings, objects, transfers, streams, and errors as one sentence each.

``jobs.artifacts`` is the door that the rest of the project uses; this module knows nothing of artefacts.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import mimetypes
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import boto3
import botocore.exceptions as bx
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.parsers import DEFAULT_TIMESTAMP_PARSER
from urllib3.exceptions import HTTPError as UrllibError

from jobs.specs import BugurtError, ConfigError, DataError, NotFoundError, TemporaryError
from jobs.streams import MIB, Ranges, UploadStream, open_source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
log = logging.getLogger(__name__)

PART_SIZE = 16 * MIB  # of a multipart transfer; 10,000 parts, S3's limit, then hold 156 GiB
FILE_PARTS = (4, 8)  # the least and most parts of a file on their way at a time
STREAM_PARTS = 3  # parts of a stream on their way at a time: with one being filled, 64 MiB of memory
RANGES_AHEAD = 3  # ranges of a download on their way besides the one that is wanted: 32 MiB of memory a file
SIGNED_FOR = 900  # seconds that a signed address is good for: S3 forgives a clock as much
SMALL_OBJECT = 64 * MIB  # bound on what is read into memory whole: manifests, progress, logs

_SIGNED = re.compile(r"(X-Amz-(?:Credential|Security-Token|Signature)=)[^&\s\"'<>)]+")
_MISSING = {"NoSuchKey", "404", "NotFound"}
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "401",
}
#: boto3's words for an AWS configuration, profile or sign-on that cannot work, however often it is tried.
_BAD_SETTINGS = (
    bx.ProfileNotFound,
    bx.ConfigNotFound,
    bx.ConfigParseError,
    bx.InvalidConfigError,
    bx.NoRegionError,
    bx.InvalidRegionError,
    bx.ParamValidationError,
    bx.UnknownCredentialError,
    bx.MissingDependencyException,
    bx.SSOError,
    bx.LoginError,
    bx.NoAuthTokenError,
    bx.SSLError,
)
#: What the server got is not what was sent: damaged or cut off on the way. botocore's XML is well-formed, of names like
#: ours.
_DAMAGED = {"BadDigest", "IncompleteBody", "MalformedXML", "XAmzContentSHA256Mismatch"}
#: Of the two kinds of listing: what an answer calls the place where the next one begins, and what a request does.
_OF_OBJECTS = {"NextContinuationToken": "ContinuationToken"}
_OF_UPLOADS = {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"}
_ONE_BY_ONE = 4  # objects are deleted by requests of their own
_TRIES = 4  # of what botocore does not try again by itself
_FORBIDDEN = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}


@dataclass(frozen=True)
class S3Settings:
    """Where the bucket is. Unset values are boto3's own: the AWS environment, profile or instance role."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    path_style: bool | None = None
    ca_bundle: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> S3Settings:
        """Read ``BUGURT_S3_*``. Raises ConfigError when no bucket is named or a value makes no sense."""

        def get(name: str) -> str | None:
            return env.get(f"BUGURT_S3_{name}") or None

        bucket = get("BUCKET")
        if not bucket:
            raise ConfigError("no bucket is set: name one in BUGURT_S3_BUCKET or in bugurt.toml ([s3] bucket)")
        style = (get("PATH_STYLE") or "").lower()
        if style not in ("", "0", "1", "true", "false", "yes", "no"):
            raise ConfigError(f"BUGURT_S3_PATH_STYLE must be true or false, not {style!r}")
        return cls(
            bucket=bucket,
            prefix=get("PREFIX") or "",
            endpoint=get("ENDPOINT"),
            region=get("REGION"),
            profile=get("PROFILE"),
            path_style=style in ("1", "true", "yes") if style else None,
            ca_bundle=get("CA_BUNDLE"),
            access_key_id=get("ACCESS_KEY_ID"),
            secret_access_key=get("SECRET_ACCESS_KEY"),
            session_token=get("SESSION_TOKEN"),
        )


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing; ``path`` is relative to the prefix, ``size`` in bytes."""

    path: str
    size: int
    modified: datetime


def translate(error: BaseException, doing: str, settings: S3Settings, *, connected: bool = True) -> BugurtError:
    """Turn what boto3 and s3transfer raise into one sentence with the right exit code."""
    cause: BaseException | None = error
    if isinstance(error, Boto3Error):  # upload_file and download_file wrap the real one
        cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, bx.ClientError):
        return _client_error(cause, doing, settings)
    where = settings.endpoint or "AWS S3"
    if isinstance(cause, bx.NoCredentialsError | bx.PartialCredentialsError | bx.CredentialRetrievalError):
        what = "no S3 credentials were found" if isinstance(cause, bx.NoCredentialsError) else _one_line(cause)
        return ConfigError(
            f"{doing}: {what}; set BUGURT_S3_ACCESS_KEY_ID and "
            "BUGURT_S3_SECRET_ACCESS_KEY, or the AWS environment or profile"
        )
    if isinstance(cause, bx.ParamValidationError) and "bucket name" in str(cause):
        return ConfigError(
            f"{doing}: {settings.bucket[:80]!r} cannot be a bucket's name (Latin letters, digits, dots and hyphens); "
            "look at BUGURT_S3_BUCKET"
        )
    if isinstance(cause, _BAD_SETTINGS):
        return ConfigError(f"{doing}: {_one_line(cause)}")
    if isinstance(cause, ValueError | bx.EndpointProviderError):  # an endpoint or a bucket name that is none
        if connected and isinstance(cause, ValueError):  # a time or a number in an answer
            return TemporaryError(f"{doing}: {where} gave an answer that cannot be read: {_one_line(cause)}; try again")
        return ConfigError(f"{doing}: {_one_line(cause)}; look at BUGURT_S3_ENDPOINT and BUGURT_S3_BUCKET")
    if isinstance(cause, bx.EndpointConnectionError | bx.ConnectTimeoutError | bx.ProxyConnectionError):
        return TemporaryError(f"{doing}: cannot reach the S3 server at {where}; is it up, and the address right?")
    return TemporaryError(f"{doing}: the transfer to {where} failed: {_one_line(cause)}")


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _client_error(error: bx.ClientError, doing: str, settings: S3Settings) -> BugurtError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = settings.endpoint or "AWS S3"
    if code == "NoSuchBucket":
        return ConfigError(
            f"{doing}: bucket {settings.bucket!r} does not exist at {where}; create it or set BUGURT_S3_BUCKET"
        )
    if code == "NoSuchUpload":  # it was finished or thrown away, by a request whose answer was lost perhaps
        return TemporaryError(f"{doing}: {where} does not know the upload (any more); try again")
    if code in _MISSING or status == 404:
        return NotFoundError(f"{doing}: not in bucket {settings.bucket!r}")
    if code in _BAD_CREDENTIALS or status == 401:
        return ConfigError(f"{doing}: {where} refuses the S3 credentials ({code}); check the access key and secret")
    if code == "RequestTimeTooSkewed":
        return ConfigError(f"{doing}: this machine's clock is too far from that of {where}; set it right")
    if code in _FORBIDDEN or status == 403:
        return ConfigError(
            f"{doing}: {where} denies access to bucket {settings.bucket!r} ({code}); check the key and its policy"
        )
    if code in ("InvalidBucketName", "PermanentRedirect", "IllegalLocationConstraintException"):
        return ConfigError(f"{doing}: {_one_line(error)}; check bucket, region and endpoint")
    if code == "InvalidRange":
        return DataError(f"{doing}: the object is shorter than it should be")
    if code in ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage") or status == 507:
        return TemporaryError(f"{doing}: the storage behind {where} is full; free some space and try again")
    # All that rclone's server says of a full disk, and of other troubles of its own.
    hint = "; is the server's disk full?" if code == "InternalError" else ""
    return TemporaryError(f"{doing}: {where} answered {code or status}: {_one_line(error)}{hint}")


class Bucket:
    """Objects under one prefix of one bucket. Paths are relative to the prefix. Safe to use from threads."""

    def __init__(self, settings: S3Settings, *, max_concurrency: int | None = None) -> None:
        """``max_concurrency``: parts of a file on their way at a time; None: two a core, within ``FILE_PARTS``."""
        self.settings = settings
        self.prefix = settings.prefix.strip("/")
        self._concurrency = max_concurrency = max_concurrency or _file_parts()
        with self._errors("connecting", connected=False):
            self.client = self._connect()
        self._transfer = TransferConfig(
            multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, max_concurrency=max_concurrency
        )
        self._stream_transfer = TransferConfig(
            multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, max_concurrency=STREAM_PARTS
        )
        self._stream_transfer.max_in_memory_upload_chunks = STREAM_PARTS

    def _connect(self) -> S3Client:
        s = self.settings
        addressing: Any = None  # boto3's own choice, or that of the AWS configuration file
        if s.path_style is not None:
            addressing = {"addressing_style": "path" if s.path_style else "virtual"}
        elif s.endpoint:
            addressing = {"addressing_style": "path"}  # few servers but AWS answer to bucket names as host names
        config = Config(
            signature_version="s3v4",
            s3=addressing,
            retries={"mode": "standard", "total_max_attempts": 8},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=max(16, 2 * self._concurrency),
            # Other servers answer ranged reads with the whole object's checksum; manifests verify instead.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        core = botocore.session.get_session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        session = boto3.session.Session(botocore_session=core, profile_name=s.profile)
        region = s.region or session.region_name or ("us-east-1" if s.endpoint else None)
        client = session.client(
            "s3",
            endpoint_url=s.endpoint,
            region_name=region,
            aws_access_key_id=s.access_key_id,
            aws_secret_access_key=s.secret_access_key,
            aws_session_token=s.session_token,
            verify=s.ca_bundle,
            config=config,
        )
        known: Any = client.meta.config
        unhashed: Any = {**(known.s3 or {}), "payload_signing_enabled": False}
        bare = known.merge(Config(s3=unhashed))

        def vouch(params: dict[str, Any], context: dict[str, Any], **rest: Any) -> None:
            """Send the body's digest along; of files and parts of files it is the only one.

            Without TLS botocore would read a body once more, for a SHA-256 to be signed. The digest is a header,
            which is signed, too, and the manifest has the SHA-256 of the whole file, so large bodies go without, as
            they do under TLS. What is in memory (manifests, progress) is small and keeps it, and so do requests
            without a digest, such as the one that ends an upload.
            """
            if not isinstance(params["body"], bytes | bytearray | io.BytesIO):
                context["client_config"] = bare
            _add_digest(params)

        def regional(context: dict[str, Any], **rest: Any) -> None:
            """Sign addresses for the host that all else is asked of. By itself boto3 takes S3's global one, which not
            every network lets through, and which some regions are not reached by."""
            context["use_global_endpoint"] = False

        client.meta.events.register("provide-client-params.s3.GetObject", regional)
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-call.s3.{operation}", vouch)
        return client

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
            for attempt in range(_TRIES):
                try:
                    answer = self.client.get_object(Bucket=self.settings.bucket, Key=self.key(path))
                    if answer["ContentLength"] > max_size:
                        answer["Body"].close()
                        raise DataError(f"{self.url(path)} has more than {max_size} bytes; it is not ours")
                    data = answer["Body"].read()
                except (bx.IncompleteReadError, bx.ResponseStreamingError, bx.ReadTimeoutError, OSError):
                    if attempt == _TRIES - 1:  # botocore retries the request, but not the reading of the body
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
            _arrived(
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
                if isinstance(_client_error(error, "", self.settings), NotFoundError):
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
                page = _arrived(send)
                yield page
                if not page.get("IsTruncated"):
                    return
                next_one = {to: page[word] for word, to in marks.items()}

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
                answer = _arrived(
                    lambda: self.client.delete_objects(
                        Bucket=self.settings.bucket, Delete={"Objects": [{"Key": self.key(p)} for p in sorted(left)]}
                    )
                )
                failed = [e for e in answer.get("Errors", []) if e.get("Code") not in _MISSING]
                if failed:
                    kind = ConfigError if failed[0].get("Code") in _FORBIDDEN else TemporaryError
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
            _arrived(
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


def _add_digest(params: dict[str, Any]) -> None:
    """Send the body's MD5 along, which every S3 server checks: what it keeps is then what was sent.

    Signed hashes of bodies would not do: not every server compares them with what came.
    """
    body = params["body"]
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        digest.update(body)
    else:
        start = body.tell()
        while chunk := body.read(MIB):
            digest.update(chunk)
        body.seek(start)
    params["headers"]["Content-MD5"] = base64.b64encode(digest.digest()).decode("ascii")


def _moment(value: Any) -> datetime:
    """A time in an answer. botocore's own way reads dates of any form, and takes more than the rest of a listing."""
    if isinstance(value, str) and value.endswith("Z"):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value)
    found: datetime = DEFAULT_TIMESTAMP_PARSER(value)
    return found


def _arrived(send: Callable[[], T]) -> T:
    """Send it, and again when it or its answer was damaged on the way, which botocore does not count among what passes.

    Of answers it tries again those that are no XML, but not those with a time that is none: they are a ValueError.
    """
    for attempt in range(_TRIES):
        try:
            return send()
        except ValueError as error:
            if attempt == _TRIES - 1:
                raise
            log.warning("asking again: %s", _one_line(error))
        except (bx.ClientError, Boto3Error) as error:
            cause = error if isinstance(error, bx.ClientError) else error.__cause__ or error.__context__
            code = cause.response.get("Error", {}).get("Code") if isinstance(cause, bx.ClientError) else None
            if attempt == _TRIES - 1 or not (code in _DAMAGED or code == "NoSuchUpload"):
                raise
            log.warning("sending it again: %s", _one_line(cause))
    raise AssertionError("unreachable")


def without_signatures(text: str) -> str:
    """A text without what would let others use a signed address in it: libraries name one whole where something is
    wrong with the answer."""
    return _SIGNED.sub(r"\1[redacted]", text)


def content_type_of(path: str) -> str:
    """The MIME type by a file's name, so that a browser shows what lies in the bucket."""
    if path.endswith((".jsonl", ".log", ".md", ".toml")):
        return "text/plain; charset=utf-8"
    guess = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"{guess}; charset=utf-8" if guess.startswith("text/") or guess.endswith("json") else guess
