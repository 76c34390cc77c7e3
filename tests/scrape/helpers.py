"""What the tests of the scrape stage share: sources in the bucket, posts out of it, invented exports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.posts import read_posts
from jobs.reporting import ProgressReporter
from jobs.specs import ScrapeSpec, digest_id
from jobs.stage import StageContext


def upload(store: ArtifactStore, name: str, data: bytes) -> str:
    """Hand a file in as ``submit`` does; its reference."""
    ref = f"source/{digest_id('source', 'upload', 1, [name, hashlib.sha256(data).hexdigest()], {})}"
    writer = store.writer(ref)
    writer.put_bytes(name, data)
    writer.commit(stage="upload", spec={}, info={"name": name})
    return ref


def context(store: ArtifactStore, spec: ScrapeSpec, workdir: Path) -> StageContext[ScrapeSpec]:
    """What the stage contract hands to ``run``: for tests of errors, which need no process of their own."""
    progress = ProgressReporter(store.bucket, "progress.json", stage="scrape", run="r", shard=None)
    return StageContext(spec, store, run="r", shard=None, workdir=workdir, progress=progress)


def rows(store: ArtifactStore, ref: str, *columns: str) -> list[dict[str, Any]]:
    return [row for batch in read_posts(store, ref, columns or None) for row in batch.to_pylist()]


def message(number: int, text: Any = "ПРИВЕТ", **fields: Any) -> dict[str, Any]:
    """A message as Telegram Desktop writes it."""
    stamp = 1_577_836_800 + 3600 * number
    found = {
        "id": number,
        "type": "message",
        "date": "2020-01-01T03:00:00",
        "date_unixtime": str(stamp),
        "from": "Бугурты",
        "from_id": "channel1234567890",
        "text": text,
    }
    if isinstance(text, str):
        found["text_entities"] = [{"type": "plain", "text": text}] if text else []
    else:
        found["text_entities"] = [{"type": "plain", "text": p} if isinstance(p, str) else p for p in text]
    return {**found, **fields}


def export(messages: Sequence[dict[str, Any]], **header: Any) -> dict[str, Any]:
    return {"name": "Бугурты", "type": "public_channel", "id": 1234567890, **header, "messages": list(messages)}


def account(*chats: dict[str, Any], left: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A whole account's export."""
    return {
        "about": "Here is the data you requested.",
        "personal_information": {"user_id": 1, "first_name": "Завхоз", "phone_number": "+7 999 000 00 01"},
        "chats": {"about": "This page lists all chats.", "list": list(chats)},
        "left_chats": {"about": "This page lists all supergroups.", "list": list(left)},
    }


def encode(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, indent=1).encode()
