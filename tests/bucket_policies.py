"""What an S3 server does with a policy: each request is a set of actions on resources, and all must be allowed.

Policies are those of ``examples/policies``: statements that allow actions on resources, with ``*`` as the only
wildcard. Anything else in one (a Deny, a condition) is an error here, so that no policy means more than is tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

from tests.s3_faults import FaultyS3, faulty_s3

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "policies"
Need = tuple[str, str]  # an action and the resource that it is wanted on


def needs(method: str, target: str, body: bytes) -> list[Need]:
    """The actions of a request, as AWS's "Actions, resources, and condition keys for Amazon S3" names them."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    whole, one = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    if not key:
        if method == "POST" and "delete" in query:
            keys = [e.text or "" for e in ET.fromstring(body).iter() if e.tag.rpartition("}")[2] == "Key"]
            return [("s3:DeleteObject", f"{whole}/{k}") for k in keys]
        if method in ("GET", "HEAD"):
            return [("s3:ListBucketMultipartUploads" if "uploads" in query else "s3:ListBucket", whole)]
    elif method in ("GET", "HEAD"):
        return [("s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject", one)]
    elif method == "PUT" or (method == "POST" and ("uploads" in query or "uploadId" in query)):
        return [("s3:PutObject", one)]
    elif method == "DELETE":
        return [("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", one)]
    raise AssertionError(f"nobody knows which right {method} {target} needs")


class Policy:
    """A policy's statements, for one bucket and prefix."""

    def __init__(self, text: str, bucket: str, prefix: str) -> None:
        body = json.loads(text.replace("BUCKET", bucket).replace("PREFIX", prefix))
        assert set(body) == {"Version", "Statement"} and body["Version"] == "2012-10-17"
        self._allowed: list[tuple[list[re.Pattern[str]], list[re.Pattern[str]]]] = []
        for statement in body["Statement"]:
            assert set(statement) == {"Sid", "Effect", "Action", "Resource"} and statement["Effect"] == "Allow"
            self._allowed.append(tuple([_pattern(v) for v in statement[n]] for n in ("Action", "Resource")))  # type: ignore[arg-type]

    @classmethod
    def of(cls, name: str, bucket: str, prefix: str) -> Policy:
        """One of ``examples/policies``."""
        return cls((FOLDER / f"{name}.json").read_text(encoding="utf-8"), bucket, prefix)

    def allows(self, need: Need) -> bool:
        """Whether one statement has both."""
        return any(_hits(actions, need[0]) and _hits(resources, need[1]) for actions, resources in self._allowed)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


def _hits(patterns: list[re.Pattern[str]], text: str) -> bool:
    return any(p.fullmatch(text) for p in patterns)


@dataclass
class Gate:
    """A server that knows its client's policy; ``refused`` and ``passed`` list what was asked of it."""

    policy: Policy
    proxy: FaultyS3
    refused: list[Need] = field(default_factory=list)
    passed: list[Need] = field(default_factory=list)

    def env(self, s3_env: dict[str, str], prefix: str) -> dict[str, str]:
        """The variables of a client behind the gate."""
        return {**s3_env, "BUGURT_S3_ENDPOINT": self.proxy.endpoint, "BUGURT_S3_PREFIX": prefix}

    def refuses(self, method: str, target: str, body: bytes) -> bool:
        """Judge a request."""
        wanted = needs(method, target, body)
        missing = [n for n in wanted if not self.policy.allows(n)]
        (self.refused if missing else self.passed).extend(missing or wanted)
        return bool(missing)


@contextmanager
def gate(s3_env: dict[str, Any], name: str, prefix: str) -> Iterator[Gate]:
    """The server of ``s3_env`` as the holder of a policy's key sees it."""
    with faulty_s3(s3_env["BUGURT_S3_ENDPOINT"]) as proxy:
        made = Gate(Policy.of(name, s3_env["BUGURT_S3_BUCKET"], prefix), proxy)
        judge: Callable[[str, str, bytes], bool] = made.refuses
        proxy.refuses = judge
        yield made
