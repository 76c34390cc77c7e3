"""The bucket: settings as boto3's users expect them, objects, and errors as one sentence each."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.endpoint
import botocore.exceptions as bx
import pytest
from botocore.parsers import DEFAULT_TIMESTAMP_PARSER
from moto.server import ThreadedMotoServer

from jobs.artifacts import ArtifactStore
from jobs.s3 import S3Settings, _moment, translate
from jobs.specs import BugurtError, ConfigError, DataError, ExitCode, NotFoundError, TemporaryError
from jobs.storage import Bucket, content_type_of
from tests.conftest import S3Server
from tests.s3_faults import FaultyS3, faulty_s3, retry_without_pauses


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many retries as ever, without the pauses between them."""
    monkeypatch.setitem(vars(botocore.endpoint), "time", time)  # undone afterwards
    retry_without_pauses()


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No AWS settings but those of the test; a folder for its files."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def faults(s3_server: S3Server) -> Iterator[FaultyS3]:
    with faulty_s3(s3_server.endpoint) as proxy:
        yield proxy


def bucket_of(env: dict[str, str], **changes: str | None) -> Bucket:
    merged = {**env, **{f"BUGURT_S3_{k}": v for k, v in changes.items() if v is not None}}
    for name in (f"BUGURT_S3_{k}" for k, v in changes.items() if v is None):
        merged.pop(name, None)
    return Bucket(S3Settings.from_env(merged))


def ends_in(kind: type[BugurtError], what: Callable[[], Any]) -> str:
    """Run it; the sentence of the error of exactly this kind that it ends in."""
    with pytest.raises(BugurtError) as caught:
        what()
    text = str(caught.value)
    assert type(caught.value) is kind, f"{type(caught.value).__name__}: {text}"
    assert "\n" not in text
    assert len(text) < 600
    return text


# -- settings


def test_settings_come_from_the_environment_and_secrets_do_not_show() -> None:
    env = {
        "BUGURT_S3_BUCKET": "b",
        "BUGURT_S3_PATH_STYLE": "No",
        "BUGURT_S3_SECRET_ACCESS_KEY": "TOPSECRET1",
        "BUGURT_S3_SESSION_TOKEN": "TOPSECRET2",
        "BUGURT_S3_ACCESS_KEY_ID": "TOPSECRET3",
        "BUGURT_S3_PREFIX": "",
    }
    settings = S3Settings.from_env(env)
    assert settings.path_style is False
    assert settings.prefix == ""
    assert "TOPSECRET" not in repr(settings) + str(settings)
    assert "BUGURT_S3_BUCKET" in ends_in(ConfigError, lambda: S3Settings.from_env({}))
    text = ends_in(ConfigError, lambda: S3Settings.from_env({**env, "BUGURT_S3_PATH_STYLE": "maybe"}))
    assert "must be true or false, not 'maybe'" in text


def test_addresses_of_buckets(no_aws: Path) -> None:
    def address(**settings: Any) -> str:
        keys = {"access_key_id": "a", "secret_access_key": "b", "bucket": "bucket"}
        client = Bucket(S3Settings(**{**keys, **settings})).client
        urls: list[str] = []

        def seen(request: Any, **rest: Any) -> None:
            urls.append(request.url)
            raise ZeroDivisionError  # instead of sending it

        client.meta.events.register("before-send.s3", seen)
        with pytest.raises(ZeroDivisionError):
            client.get_object(Bucket="bucket", Key="k")
        return urls[0]

    assert address(endpoint="http://minio:9000") == "http://minio:9000/bucket/k"
    assert address(endpoint="http://minio:9000", path_style=False) == "http://bucket.minio:9000/k"
    assert address(region="eu-west-1") == "https://bucket.s3.eu-west-1.amazonaws.com/k"
    assert address(region="eu-west-1", path_style=True) == "https://s3.eu-west-1.amazonaws.com/bucket/k"
    # What the AWS configuration file says of S3 counts where our settings say nothing.
    (no_aws / "config").write_text("[default]\nregion = eu-north-1\ns3 =\n    addressing_style = path\n")
    assert address() == "https://s3.eu-north-1.amazonaws.com/bucket/k"


def test_the_aws_environment_is_enough(
    s3_server: S3Server, s3_env: dict[str, str], no_aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys = {"ACCESS_KEY_ID": None, "SECRET_ACCESS_KEY": None}
    text = ends_in(ConfigError, bucket_of(s3_env, **without_keys).check)
    assert "no S3 credentials were found; set BUGURT_S3_ACCESS_KEY_ID" in text
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    text = ends_in(ConfigError, lambda: bucket_of(s3_env, **without_keys))
    assert "missing: AWS_SECRET_ACCESS_KEY; set BUGURT_S3" in text
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    bucket_of(s3_env, **without_keys).check()
    # The endpoint too, as boto3 reads it since 1.28.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = bucket_of(s3_env, ENDPOINT=None, **without_keys)
    bucket.put_bytes("a", b"1")
    assert bucket.get_bytes("a") == b"1"
    # Our own settings win over those of the environment.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    bucket_of(s3_env).check()


def test_an_aws_profile_is_enough(
    s3_server: S3Server, s3_env: dict[str, str], no_aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_aws / "credentials").write_text(
        f"[mine]\naws_access_key_id = {s3_server.key}\naws_secret_access_key = {s3_server.secret}\n"
    )
    (no_aws / "config").write_text("[profile mine]\nregion = eu-central-1\n")
    without_keys = {"ACCESS_KEY_ID": None, "SECRET_ACCESS_KEY": None}
    bucket = bucket_of(s3_env, PROFILE="mine", **without_keys)
    bucket.check()
    assert bucket.client.meta.region_name == "eu-central-1"
    monkeypatch.setenv("AWS_PROFILE", "mine")
    bucket_of(s3_env, **without_keys).check()
    monkeypatch.setenv("AWS_PROFILE", "other")
    text = ends_in(ConfigError, lambda: bucket_of(s3_env, **without_keys))
    assert text == "connecting: The config profile (other) could not be found"
    (no_aws / "config").write_text("this is no configuration")
    assert "config" in ends_in(ConfigError, lambda: bucket_of(s3_env, **without_keys).check())


def test_two_prefixes_are_two_worlds(s3_env: dict[str, str]) -> None:
    first, second = bucket_of(s3_env, PREFIX="/team/one/"), bucket_of(s3_env, PREFIX="team/one-two")
    whole = bucket_of(s3_env)
    first.put_bytes("a/x", b"1")
    second.put_bytes("b/y", b"2")
    assert [o.path for o in first.list()] == ["a/x"]
    assert list(first.folders("")) == ["a"]
    assert [o.path for o in whole.list()] == ["team/one-two/b/y", "team/one/a/x"]
    assert first.url("a/x") == f"s3://{s3_env['BUGURT_S3_BUCKET']}/team/one/a/x"
    assert first.head("b/y") is None
    assert list(first.open_uploads()) == []
    first.client.create_multipart_upload(Bucket=s3_env["BUGURT_S3_BUCKET"], Key="team/one/c")
    ((path, upload, _),) = first.open_uploads()
    assert path == "c"
    assert list(second.open_uploads()) == []
    first.abort_upload(path, upload)
    assert list(whole.open_uploads()) == []


def test_listings_of_many_answers_are_whole(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, asked = store.bucket, []

    def small(name: str, **limit: int) -> None:
        request = getattr(bucket.client, name)

        def limited(**options: Any) -> Any:
            asked.append(name)
            return request(**options, **limit)

        monkeypatch.setattr(bucket.client, name, limited)

    paths = [f"d{n}/x" for n in range(5)]
    for path in paths:
        bucket.put_bytes(path, b"1")
    begin = functools.partial(bucket.client.create_multipart_upload, Bucket=bucket.settings.bucket)
    begun = [(path, begin(Key=path)["UploadId"]) for path in ("u1", "u2")]
    small("list_objects_v2", MaxKeys=2)
    small("list_multipart_uploads", MaxUploads=1)
    assert [o.path for o in bucket.list()] == paths
    assert list(bucket.folders("")) == [f"d{n}" for n in range(5)]
    assert [(path, upload) for path, upload, _ in bucket.open_uploads()] == begun
    assert asked == ["list_objects_v2"] * 6 + ["list_multipart_uploads"] * 2


# -- objects


def test_objects_come_back_as_they_went(store: ArtifactStore) -> None:
    bucket = store.bucket
    for path in ("a.json", "б/ё 😀+&=%?#.txt", "deep/er/than/that/x"):
        bucket.put_bytes(path, path.encode())
        assert bucket.get_bytes(path) == path.encode()
        found = bucket.head(path)
        assert found is not None
        assert found.size == len(path.encode())
    assert {o.path for o in bucket.list()} == {"a.json", "б/ё 😀+&=%?#.txt", "deep/er/than/that/x"}
    assert sorted(bucket.folders("")) == ["deep", "б"]
    assert bucket.head("none") is None
    assert "reading none: not in bucket" in ends_in(NotFoundError, lambda: bucket.get_bytes("none"))
    assert "more than 3 bytes" in ends_in(DataError, lambda: bucket.get_bytes("a.json", max_size=3))
    assert bucket.delete(["a.json", "none"]) == 2
    assert bucket.head("a.json") is None
    assert found is not None
    assert abs((bucket.server_time() - found.modified).total_seconds()) < 60


def test_listings_and_deletions_of_more_than_a_page(store: ArtifactStore, s3_server: S3Server) -> None:
    folder = s3_server.folder / store.bucket.settings.bucket / "many"
    folder.mkdir()
    for number in range(1100):
        (folder / f"{number:04d}").touch()
    names = [o.path for o in store.bucket.list("many/")]
    assert names == [f"many/{number:04d}" for number in range(1100)]
    assert store.bucket.delete(names) == 1100
    assert list(store.bucket.list("many/")) == []


def test_browsers_can_show_what_lies_in_the_bucket() -> None:
    assert content_type_of("part-00000.jsonl") == "text/plain; charset=utf-8"
    assert content_type_of("index.html") == "text/html; charset=utf-8"
    assert content_type_of("a/report.json") == "application/json; charset=utf-8"
    assert content_type_of("model.safetensors") == "application/octet-stream"


def test_a_stream_in_pieces_of_any_size_is_whole(store: ArtifactStore) -> None:
    bucket = store.bucket
    pieces = [b"", b"a", b"b" * 5, b"c" * (3 * 2**20 + 1), b"d" * 2**20, b"", b"e" * (20 * 2**20)]
    with bucket.create("s") as stream:
        for piece in pieces:
            assert stream.write(piece) == len(piece)
    assert bucket.open("s", sum(map(len, pieces))).read() == b"".join(pieces)
    with pytest.raises(ValueError, match="closed"):
        stream.writelines([b"x"])
    bucket.create("empty").close()
    assert bucket.get_bytes("empty") == b""
    aborted = bucket.create("aborted")
    aborted.abort()
    aborted.abort()
    aborted.close()
    assert bucket.head("aborted") is None


def test_a_stream_is_read_in_large_ranges(s3_env: dict[str, str], faults: FaultyS3) -> None:
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    bucket.put_bytes("s", b"x" * (20 * 2**20))
    for read in (lambda s: s.read(), lambda s: b"".join(iter(lambda: s.read(1000), b""))):
        faults.requests.clear()
        assert len(read(bucket.open("s", 20 * 2**20))) == 20 * 2**20
        assert len(faults.requests) == 3


# -- errors


def test_wrong_settings_are_told_and_not_tried_for_long(s3_env: dict[str, str], faults: FaultyS3) -> None:
    def checks(**changes: str | None) -> tuple[str, int]:
        bucket = bucket_of(s3_env, **{"ENDPOINT": faults.endpoint, **changes})
        faults.requests.clear()
        text = ends_in(ConfigError, bucket.check)
        assert s3_env["BUGURT_S3_SECRET_ACCESS_KEY"] not in text
        return text, len(faults.requests)

    for changes, sentence in (
        ({"SECRET_ACCESS_KEY": "wrong"}, r"refuses the S3 credentials \(SignatureDoesNotMatch\); check the access key"),
        ({"ACCESS_KEY_ID": "wrong"}, r"refuses the S3 credentials \(InvalidAccessKeyId\); check the access key"),
        ({"BUCKET": "no-such-bucket"}, r"bucket 'no-such-bucket' does not exist at http://.*; create it or set"),
        ({"BUCKET": "No Bucket!"}, r"cannot be a bucket.s name"),
    ):
        text, requests = checks(**changes)
        assert re.search(sentence, text), text
        assert requests <= 2
    faults.break_next("denied", times=9)
    text, requests = checks()
    assert re.search(r"denies access to bucket '.*' \(AccessDenied\); check the key and its policy", text)
    assert requests == 2
    assert "look at BUGURT_S3_ENDPOINT" in ends_in(ConfigError, lambda: bucket_of(s3_env, ENDPOINT="not an address"))
    assert "look at BUGURT_S3_ENDPOINT" in ends_in(ConfigError, lambda: bucket_of(s3_env, ENDPOINT="minio:9000"))


def test_an_unreachable_server_is_tried_again_and_then_named(s3_env: dict[str, str]) -> None:
    bucket = bucket_of(s3_env, ENDPOINT="http://127.0.0.1:1")
    for what in (bucket.check, lambda: bucket.get_bytes("x"), lambda: list(bucket.list()), lambda: bucket.head("x")):
        text = ends_in(TemporaryError, what)
        assert text.endswith("cannot reach the S3 server at http://127.0.0.1:1; is it up, and the address right?")
    stream = bucket.create("x")
    stream.write(b"1")
    assert "cannot reach the S3 server" in ends_in(TemporaryError, stream.close)
    stream.close()  # told once is enough


def test_a_server_whose_certificate_nobody_knows(s3_env: dict[str, str], tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 1 -subj /CN=localhost".split(),
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl is not installed")
    from http.server import BaseHTTPRequestHandler, HTTPServer

    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        bucket = bucket_of(s3_env, ENDPOINT=f"https://127.0.0.1:{server.server_address[1]}")
        assert "certificate" in ends_in(ConfigError, bucket.check).lower()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ExpiredToken", 400, ConfigError),
        ("RequestTimeTooSkewed", 403, ConfigError),
        ("PermanentRedirect", 301, ConfigError),
        ("AccessDenied", 403, ConfigError),
        ("NoSuchKey", 404, NotFoundError),
        ("InvalidRange", 416, DataError),
        ("SlowDown", 503, TemporaryError),
        ("InternalError", 500, TemporaryError),
        ("XMinioStorageFull", 507, TemporaryError),
        ("SomethingNew", 400, TemporaryError),
    ],
)
def test_what_servers_say(code: str, status: int, kind: type[BugurtError]) -> None:
    answer = {"Error": {"Code": code, "Message": "two\nlines"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = translate(bx.ClientError(answer, "GetObject"), "reading x", S3Settings("b"))  # type: ignore[arg-type]
    assert type(error) is kind
    assert str(error).startswith("reading x: ")
    assert "\n" not in str(error)


def test_an_error_inside_the_server_may_be_its_disk() -> None:
    answer = {"Error": {"Code": "InternalError", "Message": "Internal Error"}}
    error = translate(bx.ClientError(answer, "PutObject"), "uploading x", S3Settings("b"))  # type: ignore[arg-type]
    assert error.exit_code == ExitCode.TRY_AGAIN and str(error).endswith("; is the server's disk full?")


def test_what_cannot_work_however_often_it_is_tried() -> None:
    for cause in (
        bx.ProfileNotFound(profile="p"),
        bx.UnauthorizedSSOTokenError(),
        bx.ConfigParseError(path="p"),
        bx.NoRegionError(),
        bx.EndpointProviderError(msg="Custom endpoint `ftp://x` was not a valid URI"),
    ):
        assert translate(cause, "connecting", S3Settings("b")).exit_code == ExitCode.BAD_CONFIG
    assert translate(bx.ReadTimeoutError(endpoint_url="u"), "x", S3Settings("b")).exit_code == ExitCode.TRY_AGAIN


def test_deletions_that_are_denied(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [{"Key": "a", "Code": "AccessDenied", "Message": "Access Denied"}]
    monkeypatch.setattr(store.bucket.client, "delete_objects", lambda **rest: {"Errors": errors})
    assert ends_in(ConfigError, lambda: store.bucket.delete("abcdef")) == "deleting a: Access Denied"


# -- another server: AWS's rules as moto knows them


def test_the_same_code_speaks_to_another_server(no_aws: Path, tmp_path: Path) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {
            "BUGURT_S3_ENDPOINT": f"http://{host}:{port}",
            "BUGURT_S3_BUCKET": "moto-bucket",
            "BUGURT_S3_ACCESS_KEY_ID": "a",
            "BUGURT_S3_SECRET_ACCESS_KEY": "b",
        }
        bucket = bucket_of(env)
        assert "does not exist" in ends_in(ConfigError, bucket.check)
        bucket.client.create_bucket(Bucket="moto-bucket")
        store = ArtifactStore(bucket)
        writer = store.writer("posts/" + "0" * 20)
        with writer.open("stream") as stream:
            stream.write(b"x" * (17 * 2**20))
        (tmp_path / "f").write_bytes(b"y" * (33 * 2**20))
        writer.put_file(tmp_path / "f")
        made = writer.commit(stage="scrape", spec={})
        assert list(store.list("posts")) == [made]
        store.download(made.ref, tmp_path / "out")
        with pytest.raises(ZeroDivisionError), writer.open("dropped") as stream:
            stream.write(b"x" * (17 * 2**20))
            raise ZeroDivisionError
        assert list(bucket.open_uploads()) == []
        with store.lease("l", holder="me") as lease:
            lease.ensure(ask=True)
        assert store.remove(made.ref) == 3
        assert list(bucket.list()) == []
    finally:
        server.stop()


# -- what is damaged on the way


def test_what_is_damaged_on_its_way_up_is_sent_again(
    s3_env: dict[str, str], faults: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the signature nor the size tells; the digest that goes along does."""
    bucket, straight = bucket_of(s3_env, ENDPOINT=faults.endpoint), bucket_of(s3_env)
    local = tmp_path / "file"
    local.write_bytes(os.urandom(3_000_000))
    for send, path, data in (
        (lambda: bucket.put_bytes("small", b"bytes"), "small", b"bytes"),
        (lambda: bucket.upload_file(local, "large"), "large", local.read_bytes()),
    ):
        faults.break_next("corrupt_upload", method="PUT", times=2)
        send()
        assert straight.get_bytes(path) == data
    assert len(faults.broken) == 4
    faults.break_next("corrupt_upload", method="PUT", times=100)
    assert "BadDigest" in ends_in(TemporaryError, lambda: bucket.put_bytes("never", b"bytes"))
    assert straight.head("never") is None


@pytest.mark.parametrize("text", ["2026-11-27T23:59:06.123Z", "2026-11-27T23:59:06Z", "Fri, 27 Nov 2026 23:59:06 GMT"])
def test_times_in_answers_mean_what_botocore_takes_them_for(text: str) -> None:
    assert _moment(text) == DEFAULT_TIMESTAMP_PARSER(text)


def test_the_times_of_a_listing_are_read_the_quick_way(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.bucket.put_bytes("a", b"x")
    monkeypatch.setattr("jobs.s3.DEFAULT_TIMESTAMP_PARSER", lambda value: pytest.fail(f"the slow way: {value}"))
    (info,) = store.bucket.list("a")
    assert abs((info.modified - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize("text", ["2026-11-27T23:59:0xZ", "2026-13-27T23:59:06Z", "Z"])
def test_what_is_no_time_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="timestamp"):
        _moment(text)


def test_a_listing_with_a_time_that_is_none_is_asked_for_again(s3_env: dict[str, str], faults: FaultyS3) -> None:
    """botocore tries again what is no XML; a changed byte of a time leaves it XML."""
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    bucket.put_bytes("a", b"x")
    place = {"Bucket": bucket.settings.bucket, "Prefix": bucket.key(""), "EncodingType": "url"}  # as boto3 asks
    url = bucket.client.generate_presigned_url("list_objects_v2", Params=place)
    with urllib.request.urlopen(url) as answer:  # of our own server
        body = answer.read()
    faults.spot = lambda length: body.index(b"-", body.index(b">", body.index(b"<LastModified")))
    faults.break_next("corrupt", method="GET", contains="list-type", times=3)
    assert [info.path for info in bucket.list()] == ["a"]
    assert len(faults.broken) == 3
    faults.break_next("corrupt", method="GET", contains="list-type", times=100)
    text = ends_in(TemporaryError, lambda: list(bucket.list()))
    assert "gave an answer that cannot be read: Invalid timestamp" in text


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("behind", [1, len("0</Key></Object></Delete>")], ids=["the XML", "a name"])
def test_a_deletion_that_is_damaged_on_its_way_deletes_what_was_meant(
    s3_env: dict[str, str], faults: FaultyS3, count: int, behind: int
) -> None:
    """The server refuses what is no XML; of a changed name it knows nothing."""
    bucket, straight = bucket_of(s3_env, ENDPOINT=faults.endpoint), bucket_of(s3_env)
    paths = [f"leases/{n}0" for n in range(count)]
    for path in [*paths, f"leases/{count - 1}1"]:
        straight.put_bytes(path, b"x")
    faults.spot = lambda length: length - behind
    faults.break_next("corrupt_upload", contains="delete")
    faults.break_next("corrupt_upload", method="DELETE")
    assert bucket.delete([*paths, "leases/none"]) == count + 1
    assert [p for p in paths if straight.head(p) is not None] == []
    assert (count > 4) == any(method == "POST" for _, method, _ in faults.broken)
    if count == 1:
        assert straight.head("leases/01") is not None


def test_many_small_objects_at_once(s3_env: dict[str, str], faults: FaultyS3) -> None:
    """One request each where all is well; what goes wrong with one of them goes as with ``get_bytes``."""
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    paths = [f"runs/r/shard-{n}/a file+of=ours.json" for n in range(5)]
    for number, path in enumerate(paths[:4]):
        bucket.put_bytes(path, f"bytes {number}".encode() * 9)
    wanted = [f"bytes {n}".encode() * 9 for n in range(4)]
    faults.requests.clear()
    assert bucket.get_many(paths) == [*wanted, None]
    assert len(faults.requests) == 5
    for kind in ("reset", "slow_down", "truncate", "corrupt", "denied"):
        fault = faults.break_next(kind, method="GET", contains="shard-1/")
        assert bucket.get_many(paths) == [*wanted, None], kind
        assert fault.hits == 1
    faults.break_next("denied", method="GET", contains="shard-1/", times=9)
    assert "AccessDenied" in ends_in(ConfigError, lambda: bucket.get_many(paths))


@pytest.mark.parametrize(
    ("header", "value"),
    [("Content-Length", "5, 5"), ("Content-Length", "five"), ("ETag", '"of-an-encrypted-object"')],
)
def test_headers_that_say_nothing_cost_one_more_request(
    header: str, value: str, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_of(s3_env)
    bucket.put_bytes("a", b"bytes")
    session: Any = vars(bucket.client)["_endpoint"].http_session
    send, asked = session.send, []

    def changed(request: Any) -> Any:
        answer = send(request)
        if header == "ETag" or not asked:  # a length that is none would end boto3's own reading, too
            answer.headers[header] = value
        asked.append(request.url)
        return answer

    monkeypatch.setattr(session, "send", changed)
    assert bucket.find_bytes("a") == b"bytes"
    assert len(asked) == 2


def test_signed_addresses_lead_to_the_host_that_is_asked_for_all_else(no_aws: Path) -> None:
    settings = S3Settings("our-bucket", region="eu-central-1", access_key_id="key", secret_access_key="secret")
    client = Bucket(settings).client
    url = client.generate_presigned_url("get_object", Params={"Bucket": "our-bucket", "Key": "a"})
    assert url.startswith("https://our-bucket.s3.eu-central-1.amazonaws.com/a?")


def test_none_of_many_is_too_large(s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = bucket_of(s3_env)
    bucket.put_bytes("small", b"12345")
    bucket.put_bytes("large", b"123456")
    monkeypatch.setattr("jobs.storage.SMALL_OBJECT", 5)
    assert bucket.get_many(["small"]) == [b"12345"]
    assert "has more than 5 bytes" in ends_in(DataError, lambda: bucket.get_many(["small", "large"]))


def test_parts_of_a_large_upload_are_checked_too(s3_env: dict[str, str], faults: FaultyS3, tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_bytes(os.urandom(17 * 2**20))
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    faults.break_next("corrupt_upload", method="PUT", contains="partNumber=2")
    bucket.upload_file(local, "large")
    assert faults.broken
    with bucket.open("large", local.stat().st_size) as stream:
        assert stream.read() == local.read_bytes()


def test_a_body_cannot_be_exchanged_together_with_its_digest(
    s3_env: dict[str, str], faults: FaultyS3, tmp_path: Path
) -> None:
    """Without TLS, whoever stands in between can change both; but the digest is signed."""
    local = tmp_path / "file"
    local.write_bytes(os.urandom(17 * 2**20))
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    faults.break_next("forged_upload", method="PUT", contains="partNumber=2", times=100)
    with pytest.raises(BugurtError):  # a server that refuses without reading it all may be heard to hang up
        bucket.upload_file(local, "large")
    assert faults.broken
    faults.clear()
    local.write_bytes(b"small")
    faults.break_next("forged_upload", method="PUT", contains="small")
    assert "refuses" in ends_in(ConfigError, lambda: bucket.upload_file(local, "small"))
    assert list(bucket.list()) == []


def test_each_byte_of_a_file_has_one_digest_of_its_request(s3_env: dict[str, str], tmp_path: Path) -> None:
    """Files and their parts go with a signed Content-MD5 alone, small objects with a signed SHA-256 besides."""
    bucket = bucket_of(s3_env)
    sent: dict[str, tuple[str, bool]] = {}

    def look(request: Any, **rest: Any) -> None:
        headers = {k.lower(): v.decode() if isinstance(v, bytes) else v for k, v in request.headers.items()}
        signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
        name = request.url.partition("?")[0].rpartition("/")[2] + ("?" if "?" in request.url else "")
        sent[f"{request.method} {name}"] = (headers["x-amz-content-sha256"], "content-md5" in signed)

    bucket.client.meta.events.register("before-send.s3", look)
    local = tmp_path / "file"
    local.write_bytes(b"x" * (17 * 2**20))
    bucket.upload_file(local, "large")
    local.write_bytes(b"a")
    bucket.upload_file(local, "file")
    with bucket.create("stream") as stream:
        stream.write(b"x" * 100)
    bucket.put_bytes("small", b"bytes")
    assert sent["PUT large?"] == sent["PUT file"] == sent["PUT stream"] == ("UNSIGNED-PAYLOAD", True)
    assert sent["PUT small"] == (hashlib.sha256(b"bytes").hexdigest(), True)
    assert re.fullmatch("[0-9a-f]{64}", sent["POST large?"][0])  # the list of parts that ends the upload


def test_an_upload_whose_end_was_not_heard_of_is_no_missing_object(
    s3_env: dict[str, str], faults: FaultyS3, tmp_path: Path
) -> None:
    """The server has finished the upload, the answer is lost, and boto3 asks once more: it knows no such upload."""
    local = tmp_path / "file"
    local.write_bytes(os.urandom(17 * 2**20))
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    faults.break_next("lost", method="POST", contains="uploadId=")
    bucket.upload_file(local, "large")
    assert [kind for kind, *_ in faults.broken] == ["lost"]
    found = bucket.head("large")
    assert found is not None
    assert found.size == local.stat().st_size
    faults.break_next("lost", method="POST", contains="uploadId=")
    with pytest.raises(TemporaryError, match="does not know the upload"), bucket.create("stream") as stream:
        stream.write(local.read_bytes())  # what was streamed is gone: the stage must do it again


def test_small_objects_that_are_damaged_on_their_way_down_are_read_again(
    s3_env: dict[str, str], faults: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    bucket.put_bytes("manifest", b'{"a": 1}')
    faults.break_next("corrupt", method="GET", contains="manifest", times=2)
    # The last byte is damaged alike both times, which is what an object looks like whose ETag is no MD5.
    assert bucket.get_bytes("manifest") == b'{"a": 1|'
    faults.clear()
    faults.break_next("corrupt", method="GET", contains="manifest")
    assert bucket.get_bytes("manifest") == b'{"a": 1}'
    real = bucket.client.get_object
    monkeypatch.setattr(bucket.client, "get_object", lambda **k: {**real(**k), "ETag": '"encrypted"'})
    assert bucket.get_bytes("manifest") == b'{"a": 1}'


def test_an_answer_that_cannot_be_read_is_asked_for_again(s3_env: dict[str, str], faults: FaultyS3) -> None:
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    bucket.put_bytes("a", b"")
    faults.spot = lambda length: 1
    faults.break_next("corrupt", method="GET", contains="list-type", times=3)
    assert [o.path for o in bucket.list()] == ["a"]
    assert len(faults.broken) == 3
    faults.break_next("corrupt", method="GET", contains="list-type", times=100)
    assert "answered 500" in ends_in(TemporaryError, lambda: list(bucket.list()))


def test_the_storages_clock_is_not_that_of_the_answer(s3_env: dict[str, str], faults: FaultyS3) -> None:
    bucket = bucket_of(s3_env, ENDPOINT=faults.endpoint)
    faults.skew = 3600
    ahead = (bucket.server_time() - bucket.storage_time()).total_seconds()
    assert 3500 < ahead < 3700
    assert list(bucket.list()) == []
