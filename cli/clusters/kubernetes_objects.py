"""What all parts of the program ask of API objects, which are plain dicts, and the labels of ours."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]

PREFIX = "bugurt.dev"
RUN_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONTAINER = "stage"  # the name of the container that does the work, in every Job template
MAX_SENTENCE = 400


def one_line(text: object) -> str:
    """Text without line breaks, of bounded length."""
    flat = " ".join(str(text or "").split())
    return flat if len(flat) <= MAX_SENTENCE else flat[: MAX_SENTENCE - 1] + "…"


def conditions(thing: Object) -> dict[str, Object]:
    """An object's conditions by their type."""
    return {c.get("type", ""): c for c in (thing.get("status") or {}).get("conditions") or ()}


def holds(thing: Object, kind: str) -> Object | None:
    """The condition of this type, if it is true."""
    found = conditions(thing).get(kind)
    return found if found is not None and found.get("status") == "True" else None


def moment(text: str | None) -> datetime | None:
    """An API server's time, or None."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
