"""Whether an image is in its registry, as far as that tells without credentials."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from cli.checks import Finding, fail, ok, warn
from cli.clusters.kubernetes_objects import one_line


def is_loopback(host: str) -> bool:
    """Whether a host name means the machine that uses it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_image(name: str, has_pull_secret: bool) -> Finding:
    """Ask the registry for an image's manifest, without credentials (OCI distribution spec, with a token if asked)."""
    import urllib3

    registry, _, rest = name.partition("/")
    repository, at, digest = rest.partition("@")
    tag = digest if at else ""
    if not at:
        repository, _, tag = rest.rpartition(":")
    scheme = "http" if is_loopback(registry.partition(":")[0]) else "https"
    accept = (
        "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
        "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    )
    url = f"{scheme}://{registry}/v2/{repository}/manifests/{tag}"
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=3, read=5), retries=False)
    try:
        answer = pool.request("HEAD", url, headers={"Accept": accept})
        if answer.status == 401:
            token = _anonymous_token(pool, answer.headers.get("WWW-Authenticate", ""))
            if token:
                answer = pool.request("HEAD", url, headers={"Accept": accept, "Authorization": f"Bearer {token}"})
    except urllib3.exceptions.HTTPError as error:
        return warn("images", f"{registry} is out of reach from here ({one_line(error)}); nodes may reach it")
    if answer.status == 200:
        return ok("images", f"{name} is there")
    if answer.status in (401, 403):
        if has_pull_secret:
            return warn(
                "images", f"{name}: the registry wants credentials; whether the pull secret's do, a run will show"
            )
        return warn("images", f"{name}: the registry wants credentials", "set cluster.image_pull_secret")
    if answer.status == 404:
        return fail("images", f"{name} is not in the registry", "build and push the images, or set cluster.tag")
    return warn("images", f"{name}: the registry answers {answer.status}")


def _anonymous_token(pool: Any, challenge: str) -> str | None:
    import json

    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", None)
    if not challenge.lower().startswith("bearer") or not realm or not realm.startswith("https://"):
        return None
    answer = pool.request("GET", realm, fields={k: v for k, v in fields.items() if k in ("service", "scope")})
    try:
        data = json.loads(answer.data)
    except ValueError:
        return None
    token = data.get("token") or data.get("access_token") if isinstance(data, dict) else None
    return str(token) if token else None
