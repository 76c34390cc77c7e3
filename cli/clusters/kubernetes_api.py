"""The Kubernetes API as plain dicts: one request, one stream of lines, errors as one sentence each.

The ``kubernetes`` package finds and refreshes the credentials (kubeconfig, exec plugins, service accounts) and makes
the connection pool; its models are left alone, for they drop fields that they do not know. It is imported late: that
takes most of a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlencode

from jobs.specs import BugurtError, ConfigError, TemporaryError

T = TypeVar("T")
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0  # of a plain request, seconds
RETRIED = {429, 500, 502, 503, 504}
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"  # a Secret's values stay where they are


class ApiError(Exception):
    """An answer of the API server that is not a success. ``reason`` is its machine-readable word."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @classmethod
    def from_body(cls, status: int, body: bytes, retry_after: str | None = None) -> ApiError:
        """By the ``Status`` object that the server sends, or by whatever a proxy sends instead."""
        try:
            data = json.loads(body)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            data = {"message": body[:300].decode("utf-8", "replace")}
        message = " ".join(str(data.get("message") or f"HTTP {status}").split())[:600]
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        return cls(status, str(data.get("reason") or ""), message, seconds)


class Unreachable(Exception):  # noqa: N818  # it reads as what happened
    """The connection failed or broke off."""


class Stream(Protocol):
    """Lines of an answer as they come. Iterating raises Unreachable when the connection breaks off."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Give the connection back; a reader that waits in another thread ends."""
        ...


class Api(Protocol):
    """The two calls that everything is made of. Paths begin with ``/api`` or ``/apis``."""

    host: str

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """One call; retried while the server is busy or away. Raises ApiError, Unreachable, ConfigError."""
        ...

    def stream(self, path: str, *, query: Mapping[str, str] | None = None, read_timeout: float | None = None) -> Stream:
        """A GET whose answer goes on: a watch or a log. Its reader begins it anew. Raises ApiError, Unreachable."""
        ...


class HttpApi:
    """An API server over the ``kubernetes`` package's connection pool. Safe to use from threads."""

    def __init__(
        self,
        configuration: Any,
        *,
        patience: float = 15.0,
        outlast_refusals: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``patience``: seconds for which a request is retried while the server is busy or away.

        ``outlast_refusals``: be as patient with a server that does not know our account or its rights. One that has
        just started does not, until it has read them: for a person at a terminal that is an answer, for a driver that
        would end a run by it, it is none.
        """
        _without_its_extras()
        from kubernetes.client import ApiClient

        if getattr(configuration, "keep_alive", True) is False:
            configuration.keep_alive = True  # a watch whose peer is gone must end some time
        configuration.connection_pool_maxsize = 16
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._pool = self._client.rest_client.pool_manager
        self._patience = patience
        self._outlast_refusals = outlast_refusals
        self._sleep = sleep
        self.host: str = configuration.host

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept, "User-Agent": "bugurt"}
        for setting in self._configuration.auth_settings().values():  # refreshes tokens that have run out
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        return headers

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "",
        accept: str = "application/json",
        read: float | None = READ_TIMEOUT,
    ) -> Any:
        import urllib3

        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = self._headers(accept)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        try:
            answer = self._pool.request(
                method,
                url,
                body=data,
                headers=headers,
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read),
            )
        except urllib3.exceptions.SSLError as error:
            if not isinstance(error.args[0] if error.args else None, ssl.SSLCertVerificationError):
                raise Unreachable(_flat(error)) from error  # a handshake cut off: a server or a balancer that restarts
            raise ConfigError(f"the certificate of {self.host} is not to be trusted: {_flat(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(_flat(error)) from error
        if not 200 <= answer.status <= 299:
            try:
                content = answer.read()
            except urllib3.exceptions.HTTPError as error:
                raise Unreachable(_flat(error)) from error
            answer.release_conn()
            raise ApiError.from_body(answer.status, content, answer.headers.get("Retry-After"))
        return answer

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        import urllib3

        def once() -> dict[str, Any]:
            answer = self._send(method, path, query=query, body=body, content_type=content_type, accept=accept)
            try:
                found = json.loads(answer.read() or b"{}")
            except urllib3.exceptions.HTTPError as error:
                raise Unreachable(_flat(error)) from error
            except ValueError as error:
                raise ConfigError(f"{self.host} does not answer like a Kubernetes API server") from error
            answer.release_conn()
            return found if isinstance(found, dict) else {}

        return self._patiently(once, lambda e: self._busy(e) or self._unknown(e))

    def stream(self, path: str, *, query: Mapping[str, str] | None = None, read_timeout: float | None = None) -> Stream:
        def once() -> Stream:
            return _HttpStream(self._send("GET", path, query=query, read=read_timeout))

        return self._patiently(once, self._unknown)

    def _patiently(self, call: Callable[[], T], again: Callable[[ApiError | Unreachable], bool]) -> T:
        """Call until it succeeds, an error is none of those to try again, or patience is at its end."""
        end = time.monotonic() + self._patience
        pause = 0.2
        while True:
            try:
                return call()
            except (ApiError, Unreachable) as error:
                asked = error.retry_after if isinstance(error, ApiError) else None
                # Some jitter, so that many shards' drivers do not come back all at once.
                wait = asked if asked is not None else pause * random.uniform(0.75, 1.25)  # noqa: S311
                if not again(error) or time.monotonic() + wait > end:
                    raise
            self._sleep(wait)
            pause = min(pause * 2, 8.0)

    def _busy(self, error: ApiError | Unreachable) -> bool:
        return isinstance(error, Unreachable) or error.status in RETRIED

    def _unknown(self, error: ApiError | Unreachable) -> bool:
        """Whether the server refuses us as one does that has not read its accounts and roles yet."""
        if isinstance(error, Unreachable) or not self._outlast_refusals:
            return False
        # Admission (a quota, pod security) says 403, too, but not who cannot do what.
        return error.status == 401 or (error.status == 403 and ": User " in error.message)


class _HttpStream:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        import urllib3

        rest = b""
        try:
            for piece in self._answer.stream(None, decode_content=True):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # The last two are what a response that another thread has closed answers with.
            raise Unreachable(_flat(error)) from error
        finally:
            self.close()
        if rest:
            yield rest

    def close(self) -> None:
        import socket

        connection = getattr(self._answer, "connection", None) or getattr(self._answer, "_connection", None)
        sock = getattr(connection, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):  # it may be down already
                sock.shutdown(socket.SHUT_RDWR)  # close() alone waits for a reader in another thread
        self._answer.close()


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _without_its_extras() -> None:
    """Let ``kubernetes.client`` and ``kubernetes.config`` be imported without what the package imports with them.

    Web sockets, informers, a dynamic client: twice the time of what is used, in each command, and more memory.
    """
    if "kubernetes" not in sys.modules:
        spec = importlib.util.find_spec("kubernetes")
        if spec is not None:
            sys.modules["kubernetes"] = importlib.util.module_from_spec(spec)


class Access:
    """A way into a cluster: the API, the namespace, and the context's name for messages."""

    def __init__(self, api: Api, namespace: str, context: str) -> None:
        self.api = api
        self.namespace = namespace
        self.context = context


def connect(context: str | None = None, namespace: str | None = None) -> Access:
    """Find the cluster as kubectl does: ``KUBECONFIG``, ``~/.kube/config``, or the pod's own service account.

    Raises ConfigError when there is none or the context is not in it.
    """
    try:
        import yaml

        _without_its_extras()
        from kubernetes import config
        from kubernetes.client import Configuration
    except ImportError as error:
        raise ConfigError("the cluster parts are not installed: pip install 'bugurt[cluster]'") from error
    configuration = Configuration()
    named = os.environ.get("KUBECONFIG")
    default = Path("~/.kube/config").expanduser()
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").is_file()
    if context is None and not named and not default.is_file() and in_pod:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise ConfigError(f"the pod's service account cannot be used: {_flat(error)}") from error
        own = SERVICE_ACCOUNT / "namespace"
        found = namespace or (own.read_text().strip() if own.is_file() else "bugurt")
        return Access(HttpApi(configuration, patience=120.0, outlast_refusals=True), found, "in-cluster")
    file = named or str(default)
    try:
        contexts, active = config.list_kube_config_contexts(config_file=file)
        chosen = active if context is None else next((c for c in contexts if c["name"] == context), None)
        if chosen is None:
            raise ConfigError(
                f"there is no context {context!r} in {file}; it has {', '.join(c['name'] for c in contexts)}"
            )
        config.load_kube_config(config_file=file, context=chosen["name"], client_configuration=configuration)
    except (config.ConfigException, yaml.YAMLError, OSError, KeyError, TypeError) as error:
        if not named and not default.is_file():
            raise ConfigError(
                f"there is no kubeconfig: {file} is missing and KUBECONFIG is not set; copy the cluster's there"
            ) from error
        raise ConfigError(f"the kubeconfig {file} cannot be used: {_flat(error)}") from error
    found = namespace or (chosen.get("context") or {}).get("namespace") or "bugurt"
    return Access(HttpApi(configuration), found, chosen["name"])


def translate(error: ApiError | Unreachable, doing: str, host: str) -> BugurtError:
    """One sentence with the right exit code."""
    if isinstance(error, Unreachable):
        return TemporaryError(f"{doing}: the cluster at {host} is out of reach: {error}")
    if error.status == 401:
        return ConfigError(f"{doing}: the cluster at {host} refuses the credentials; log in to it again")
    if error.status == 403 and "exceeded quota" in error.message:
        return TemporaryError(f"{doing}: {error.message}")
    if error.status == 403:
        return ConfigError(f"{doing}: not allowed: {error.message}")
    if error.status in RETRIED or error.status == 410:
        return TemporaryError(
            f"{doing}: the cluster answered {error.status}: {error.message}", retry_after=error.retry_after
        )
    return ConfigError(f"{doing}: {error.message}")


def fail(error: ApiError | Unreachable, doing: str, host: str) -> NoReturn:
    """Raise ``error`` as one of ours."""
    raise translate(error, doing, host) from error


def call(api: Api, doing: str, method: str, path: str, **options: Any) -> dict[str, Any]:
    """One call whose refusals are errors of ours: ``doing`` begins their sentence."""
    try:
        return api.request(method, path, **options)
    except (ApiError, Unreachable) as error:
        fail(error, doing, api.host)


def find(api: Api, doing: str, method: str, path: str, **options: Any) -> dict[str, Any] | None:
    """As ``call``; None when the object is not there."""
    try:
        return api.request(method, path, **options)
    except ApiError as error:
        if error.status == 404:
            return None
        fail(error, doing, api.host)
    except Unreachable as error:
        fail(error, doing, api.host)
