"""Where a cluster keeps the Telegram session: a Secret that the scrape Job reads its variables from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli.telegram_file import NEEDED, VARIABLES
from jobs.specs import ConfigError

if TYPE_CHECKING:
    from cli.clusters.kubernetes_api import Access

FIELD_MANAGER = "bugurt"


def _path(access: Access, name: str = "") -> str:
    return f"/api/v1/namespaces/{access.namespace}/secrets" + (f"/{name}" if name else "")


def secret_object(name: str, namespace: str, values: Mapping[str, str]) -> dict[str, Any]:
    """The Secret as a plain dict."""
    labels = {"app.kubernetes.io/part-of": "bugurt", "app.kubernetes.io/managed-by": "bugurt"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "type": "Opaque",
        "data": {n: base64.b64encode(values[n].encode()).decode() for n in VARIABLES if values.get(n)},
    }


def read_secret(access: Access, name: str) -> dict[str, str] | None:
    """The Secret's variables; None when there is none. Raises ConfigError when it is not a whole session."""
    from cli.clusters.kubernetes_api import find

    secret = find(access.api, f"reading Secret {name}", "GET", _path(access, name))
    if secret is None:
        return None
    data = secret.get("data") or {}
    try:
        found = {n: base64.b64decode(data[n], validate=True).decode() for n in VARIABLES if data.get(n)}
    except (binascii.Error, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"Secret {name} is damaged; run 'bugurt login --force' to make it anew") from error
    if any(n not in found for n in NEEDED):
        raise ConfigError(f"Secret {name} holds no whole Telegram session; run 'bugurt login --force' to make it anew")
    return found


def write_secret(access: Access, name: str, values: Mapping[str, str]) -> None:
    """Create or replace the Secret. Raises ConfigError or TemporaryError."""
    from cli.clusters.kubernetes_api import APPLY_PATCH, call

    call(
        access.api,
        f"writing Secret {name}",
        "PATCH",
        _path(access, name),
        query={"fieldManager": FIELD_MANAGER, "force": "true"},
        body=secret_object(name, access.namespace, values),
        content_type=APPLY_PATCH,
    )


def remove_secret(access: Access, name: str) -> bool:
    """Delete the Secret; False when there was none."""
    from cli.clusters.kubernetes_api import find

    return find(access.api, f"deleting Secret {name}", "DELETE", _path(access, name)) is not None
