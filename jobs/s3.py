"""The connection to an S3 server over boto3: where it is, a client for it, and its errors as one sentence each."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as bx
import botocore.session
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.parsers import DEFAULT_TIMESTAMP_PARSER

from jobs.specs import BugurtError, ConfigError, DataError, NotFoundError, TemporaryError
from jobs.streams import MIB

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
log = logging.getLogger(__name__)

_SIGNED = re.compile(r"(X-Amz-(?:Credential|Security-Token|Signature)=)[^&\s\"'<>)]+")
MISSING = {"NoSuchKey", "404", "NotFound"}
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
TRIES = 4  # of what botocore does not try again by itself
FORBIDDEN = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}


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


def translate(error: BaseException, doing: str, settings: S3Settings, *, connected: bool = True) -> BugurtError:
    """Turn what boto3 and s3transfer raise into one sentence with the right exit code."""
    cause: BaseException | None = error
    if isinstance(error, Boto3Error):  # upload_file and download_file wrap the real one
        cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, bx.ClientError):
        return client_error(cause, doing, settings)
    where = settings.endpoint or "AWS S3"
    if isinstance(cause, bx.NoCredentialsError | bx.PartialCredentialsError | bx.CredentialRetrievalError):
        what = "no S3 credentials were found" if isinstance(cause, bx.NoCredentialsError) else one_line(cause)
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
        return ConfigError(f"{doing}: {one_line(cause)}")
    if isinstance(cause, ValueError | bx.EndpointProviderError):  # an endpoint or a bucket name that is none
        if connected and isinstance(cause, ValueError):  # a time or a number in an answer
            return TemporaryError(f"{doing}: {where} gave an answer that cannot be read: {one_line(cause)}; try again")
        return ConfigError(f"{doing}: {one_line(cause)}; look at BUGURT_S3_ENDPOINT and BUGURT_S3_BUCKET")
    if isinstance(cause, bx.EndpointConnectionError | bx.ConnectTimeoutError | bx.ProxyConnectionError):
        return TemporaryError(f"{doing}: cannot reach the S3 server at {where}; is it up, and the address right?")
    return TemporaryError(f"{doing}: the transfer to {where} failed: {one_line(cause)}")


def one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def client_error(error: bx.ClientError, doing: str, settings: S3Settings) -> BugurtError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = settings.endpoint or "AWS S3"
    if code == "NoSuchBucket":
        return ConfigError(
            f"{doing}: bucket {settings.bucket!r} does not exist at {where}; create it or set BUGURT_S3_BUCKET"
        )
    if code == "NoSuchUpload":  # it was finished or thrown away, by a request whose answer was lost perhaps
        return TemporaryError(f"{doing}: {where} does not know the upload (any more); try again")
    if code in MISSING or status == 404:
        return NotFoundError(f"{doing}: not in bucket {settings.bucket!r}")
    if code in _BAD_CREDENTIALS or status == 401:
        return ConfigError(f"{doing}: {where} refuses the S3 credentials ({code}); check the access key and secret")
    if code == "RequestTimeTooSkewed":
        return ConfigError(f"{doing}: this machine's clock is too far from that of {where}; set it right")
    if code in FORBIDDEN or status == 403:
        return ConfigError(
            f"{doing}: {where} denies access to bucket {settings.bucket!r} ({code}); check the key and its policy"
        )
    if code in ("InvalidBucketName", "PermanentRedirect", "IllegalLocationConstraintException"):
        return ConfigError(f"{doing}: {one_line(error)}; check bucket, region and endpoint")
    if code == "InvalidRange":
        return DataError(f"{doing}: the object is shorter than it should be")
    if code in ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage") or status == 507:
        return TemporaryError(f"{doing}: the storage behind {where} is full; free some space and try again")
    # All that rclone's server says of a full disk, and of other troubles of its own.
    hint = "; is the server's disk full?" if code == "InternalError" else ""
    return TemporaryError(f"{doing}: {where} answered {code or status}: {one_line(error)}{hint}")


def connect(s: S3Settings, connections: int) -> S3Client:
    """A client with so many connections at most. Raises what boto3 does; ``translate`` knows it."""
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
        max_pool_connections=connections,
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


def arrived(send: Callable[[], T]) -> T:
    """Send it, and again when it or its answer was damaged on the way, which botocore does not count among what passes.

    Of answers it tries again those that are no XML, but not those with a time that is none: they are a ValueError.
    """
    for attempt in range(TRIES):
        try:
            return send()
        except ValueError as error:
            if attempt == TRIES - 1:
                raise
            log.warning("asking again: %s", one_line(error))
        except (bx.ClientError, Boto3Error) as error:
            cause = error if isinstance(error, bx.ClientError) else error.__cause__ or error.__context__
            code = cause.response.get("Error", {}).get("Code") if isinstance(cause, bx.ClientError) else None
            if attempt == TRIES - 1 or not (code in _DAMAGED or code == "NoSuchUpload"):
                raise
            log.warning("sending it again: %s", one_line(cause))
    raise AssertionError("unreachable")


def without_signatures(text: str) -> str:
    """A text without what would let others use a signed address in it: libraries name one whole where something is
    wrong with the answer."""
    return _SIGNED.sub(r"\1[redacted]", text)
