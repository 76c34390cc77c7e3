"""The example export: what the script makes is what is checked in, and it is like a real channel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from jobs.artifacts import ArtifactStore
from jobs.specs import ScrapeSpec
from tests.conftest import ROOT, RunStage

from .helpers import rows, upload

EXPORT = ROOT / "examples" / "channel" / "result.json"


def test_the_script_makes_the_committed_file(tmp_path: Path) -> None:
    made = tmp_path / "result.json"
    subprocess.run([sys.executable, str(ROOT / "examples" / "make_channel.py"), str(made)], check=True)
    assert made.read_bytes() == EXPORT.read_bytes()


def test_the_example_is_like_a_real_channel(store: ArtifactStore, run_stage: RunStage) -> None:
    spec = ScrapeSpec(source=upload(store, "result.json", EXPORT.read_bytes()))
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    posts = rows(store, spec.ref())
    messages = json.loads(EXPORT.read_text())["messages"]
    parts_of_albums = sum(p["media_count"] - 1 for p in posts if p["media_count"] > 1)
    assert len(posts) + parts_of_albums == len(messages)
    assert [p["id"] for p in posts] == sorted(p["id"] for p in posts)
    texts = [p["text"] for p in posts if p["service"] is None]
    formed = [t for t in texts if "\n@\n" in t]
    assert len({t.replace("БУГУРТ-ТРЕД", "").strip() for t in formed}) >= 500
    # of 14,157 real posts 12,164 had the footer; news, adverts and the like have none
    assert (
        0.80 < sum(t.rstrip().endswith("БУГУРТ-ТРЕД") or "предложено через @" in t for t in formed) / len(formed) < 0.95
    )
    kinds = {
        "service": sum(p["service"] is not None for p in posts),
        "news": sum(t.startswith("#БТnews\n") for t in texts),
        "forwards": sum(p["forwarded_from"] is not None for p in posts),
        "polls": sum(p["poll"] for p in posts),
        "invoices": sum(p["invoice"] for p in posts),
        "footers": texts.count("БУГУРТ-ТРЕД"),
        "empty": sum(not t for t in texts),
        "stubs": sum("Слишком длинно" in t for t in texts),
        "hidden pictures": sum(t.startswith("\u200c") for t in texts),
        "albums": sum(p["media_count"] > 1 for p in posts),
        "reactions": sum(bool(p["reactions"]) for p in posts),
        "edits": sum(p["edit_date"] is not None for p in posts),
        "latin": sum("Ë" in t for t in texts),
        "nbsp": sum("\u00a0" in t for t in texts),
        "repeats of a word": texts.count("ПЯТНИЦА"),
        "copies": sum(n - 1 for t, n in Counter(formed).items() if n > 1),
    }
    assert min(kinds.values()) > 0, kinds
    assert kinds["repeats of a word"] == 16
    assert 0.04 < kinds["news"] / len(texts) < 0.10
    scheme_less = [link for p in posts for link in p["links"] if "utm_source" in link and "://" not in link]
    assert len(scheme_less) == kinds["news"]
