"""``index.html``: a gallery to read, search, copy from and mark favourites in, in one file that needs no network.

Nothing that a post contains can run: posts lie in the page as JSON in a data block whose ``<`` are escaped, the
page's script puts them into the document as text only, and the content security policy allows that one script and
that one style sheet, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from jobs.html import escape
from jobs.specs import GenerateSpec

SHOWN = 10_000  # posts in the gallery; the rest is in the parts and in batch.parquet
_HERE = Path(__file__).parent


class _Stream(Protocol):
    def write(self, data: bytes) -> object: ...


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def data_block(value: Any) -> str:
    """JSON that is safe inside a script element: no ``<``, no ``>``, no ``&``, no line separators."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


class Gallery:
    """Collects posts, then writes the page. Keeps at most ``SHOWN`` posts, as the bytes of the page."""

    def __init__(self, spec: GenerateSpec, ref: str, model: str) -> None:
        self._spec, self._ref, self._model = spec, ref, model
        self._posts: list[bytes] = []
        self._total = 0

    def add(self, post: dict[str, Any]) -> None:
        """Add a record."""
        self._total += 1
        if len(self._posts) < SHOWN:
            short = {
                "i": post["index"],
                "t": post["text"],
                "p": post["prompt"],
                "s": post["score"],
                "n": post["attempts"],
                "o": post["overlap_words"],
                "w": post["overlap"],
                "j": post["similarity"],
            }
            self._posts.append(data_block(short).encode("utf-8", "replace"))

    def write(self, stream: _Stream, report: dict[str, Any]) -> None:
        """Write the page as UTF-8."""
        css = (_HERE / "gallery.css").read_text("utf-8")
        script = (_HERE / "gallery.js").read_text("utf-8")
        policy = (
            f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'"
        )
        facts = {"ref": self._ref, "total": self._total, "refused": sum(report["refused"].values())}
        summary = f"{self._total} posts of {self._model}, {report['drawn']} drawn, {facts['refused']} refused"
        if self._total > SHOWN:
            summary += f"; the first {SHOWN} are shown here"
        page = (_HERE / "gallery.html").read_text("utf-8")
        before, after = page.split("{{posts}}")

        def filled(text: str) -> bytes:
            for name, value in (
                ("policy", policy),
                ("title", escape(f"Batch {self._ref.partition('/')[2][:8]}")),
                ("summary", escape(summary)),
                ("css", css),
                ("facts", data_block(facts)),
                ("script", script),
            ):
                text = text.replace("{{" + name + "}}", value)
            return text.encode()

        stream.write(filled(before))
        stream.write(b"[")
        for number, post in enumerate(self._posts):
            stream.write(b",\n" + post if number else post)
        stream.write(b"]")
        stream.write(filled(after))
