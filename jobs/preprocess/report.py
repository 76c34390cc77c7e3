"""``report.html`` and ``report.json``: what was done to the posts, and what the dataset is like."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import html
from jobs.preprocess.clean import Example
from jobs.preprocess.corpus import Ints
from jobs.preprocess.measure import Measures, quantiles, share
from jobs.preprocess.output import BlockStats
from jobs.specs import PreprocessSpec
from jobs.style import Style

LABELS = {
    "duplicate": "the same text as a post that is kept, but for case and punctuation",
    "near_duplicate": "nearly the text of a post that is kept",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report tells. Arrays have one entry a post of the dataset."""

    posts: int
    rules: list[str]
    dropped: Counter[str]
    changed: Counter[str]
    examples: dict[tuple[str, str], list[Example]]
    duplicates: Counter[str]
    repeats: list[tuple[int, str]]
    held_out: NDArray[np.bool_]
    leaks_mended: int
    measures: Measures
    tokens: Ints
    months: Counter[str]
    languages: list[tuple[str, float]]
    economy: dict[str, float]
    capitals: float
    style: Style
    blocks: dict[str, BlockStats]
    spec: PreprocessSpec


def build_report(found: Findings) -> tuple[str, dict[str, Any]]:
    """The page, and the same facts for programs. ``counts`` among them is what the manifest gets."""
    facts = _facts(found)
    name = "A dataset" if found.spec.posts is None else f"Dataset from {found.spec.posts}"
    page = html.page(
        name,
        _summary(found, facts),
        _funnel(found, facts),
        _examples(found),
        _lengths(found, facts),
        _time_and_language(found),
        _repeats(found),
        _blocks(found, facts),
        _split(found, facts),
    )
    return page, facts


def _facts(found: Findings) -> dict[str, Any]:
    held = found.held_out
    counts: dict[str, int] = {
        "posts": len(held),
        "posts_read": found.posts,
        "train": int((~held).sum()),
        "validation": int(held.sum()),
        "excluded": found.dropped.total() + found.duplicates.total(),
        "tokens_train": int(found.tokens[~held].sum()),
        "tokens_validation": int(found.tokens[held].sum()),
        "characters_train": int(found.measures.characters[~held].sum()),
        "characters_validation": int(found.measures.characters[held].sum()),
        "blocks_train": found.blocks["train"].blocks,
        "blocks_validation": found.blocks["validation"].blocks,
        "split_posts": sum(b.cut_posts for b in found.blocks.values()),
    }
    size = found.style.block_size
    return {
        "counts": counts,
        "funnel": _funnel_rows(found),
        "style": found.style.model_dump(mode="json"),
        "capitals": found.capitals,
        "characters": quantiles(found.measures.characters),
        "tokens": quantiles(found.tokens),
        "tokens_per_character": found.economy,
        "months": dict(sorted(found.months.items())),
        "languages": dict(found.languages),
        "repeats": [{"posts": n, "text": t} for n, t in found.repeats],
        "blocks": {
            side: {
                "blocks": b.blocks,
                "segments": b.segments,
                "filled": share(b.tokens, b.blocks * size),
                "longer_posts": b.cut_posts,
                "longer_posts_token_share": share(b.cut_tokens, b.tokens),
            }
            for side, b in found.blocks.items()
        },
        "split": {
            "how": found.spec.split,
            "asked": found.spec.validation,
            "got": share(counts["validation"], counts["posts"]),
            "near_duplicates_across": 0,
            "pairs_mended": found.leaks_mended,
        },
        "examples": {
            f"{kind} by {rule}": [{"channel": e.channel, "id": e.id, "before": e.before, "after": e.after} for e in es]
            for (kind, rule), es in sorted(found.examples.items())
        },
    }


def _funnel_rows(found: Findings) -> list[dict[str, Any]]:
    left = found.posts
    rows = [{"step": "read", "dropped": 0, "changed": 0, "left": left}]
    for rule in [*found.rules, "duplicate", "near_duplicate"]:
        dropped = found.duplicates[rule] if rule in LABELS else found.dropped[rule]
        left -= dropped
        rows.append({"step": rule, "dropped": dropped, "changed": found.changed[rule], "left": left})
    return rows


def _summary(found: Findings, facts: dict[str, Any]) -> str:
    counts = facts["counts"]
    style = found.style
    case = {
        ("lower", "upper"): "trained in lower case, capitals restored",
        ("lower", "none"): "trained in lower case",
    }.get((style.case, style.restore), "as written")
    return html.section(
        "In short",
        html.facts(
            {
                "posts read": counts["posts_read"],
                "posts in the dataset": counts["posts"],
                "left out": counts["excluded"],
                "held out": counts["validation"],
                "tokens to train on": counts["tokens_train"],
                "characters to train on": counts["characters_train"],
                "blocks": counts["blocks_train"],
                "capitals among letters": f"{found.capitals:.1%}",
                "case": case,
                "language": style.form.language or "?",
                "profile": style.profile,
                "tokenizer": f"{style.tokenizer}, {html.show(style.vocab_size)} tokens",
            }
        ),
    )


def _funnel(found: Findings, facts: dict[str, Any]) -> str:
    rows = facts["funnel"]
    return html.section(
        "What became of the posts",
        html.paragraph(
            "The rules of the profile in their order, then duplicates. A post that is dropped goes no further."
        ),
        html.table(
            ["step", "dropped", "changed", "left"],
            [[r["step"], r["dropped"], r["changed"], r["left"]] for r in rows],
        ),
        html.note("Every dropped post is in excluded.parquet, every changed one in changed.parquet, before and after."),
    )


def _examples(found: Findings) -> str:
    parts: list[str] = []
    for rule in found.rules:
        gone = found.examples.get(("dropped", rule), [])
        changed = found.examples.get(("changed", rule), [])
        if gone:
            rows = [[f"{e.channel}/{e.id}", html.preformatted(e.before), e.after] for e in gone]
            parts.append(
                html.details(f"{rule}: dropped {found.dropped[rule]}", html.table(["post", "text", "found"], rows))
            )
        if changed:
            rows = [[f"{e.channel}/{e.id}", html.preformatted(e.before), html.preformatted(e.after)] for e in changed]
            head = ["post", "before all rules", "after all rules"]
            parts.append(html.details(f"{rule}: changed {found.changed[rule]}", html.table(head, rows)))
    return html.section("Examples", *(parts or [html.note("The rules left every post as it was.")]))


def _histogram(values: Ints, bins: int = 24) -> list[tuple[str, float]]:
    """Columns up to the 99th percentile; the last one holds what is longer, too."""
    if not len(values):
        return []
    top = int(np.quantile(values, 0.99)) + 1
    width = max(1, -(-top // bins))
    places = np.minimum(values // width, bins - 1 if top > bins else top - 1)
    counts = np.bincount(places)
    labels = [html.show(n * width) for n in range(len(counts))]
    labels[-1] += "+"
    return list(zip(labels, counts.astype(float).tolist(), strict=True))


def _lengths(found: Findings, facts: dict[str, Any]) -> str:
    names = {"p05": "5 %", "p25": "25 %", "p50": "half", "p75": "75 %", "p95": "95 %", "p99": "99 %", "p100": "longest"}
    form = found.style.form
    measured = {
        "characters": form.characters,
        "tokens": form.tokens,
        "lines": form.lines,
        "segments": form.segments,
        "characters a line": form.line_characters,
    }
    rows = [[name, *(int(values[key]) for key in names)] for name, values in measured.items()]
    economy = [(name, value) for name, value in found.economy.items()]
    return html.section(
        "Lengths",
        html.columns(
            html.column_chart(_histogram(found.measures.characters), title="Characters a post", x_label="characters"),
            html.column_chart(_histogram(found.tokens), title="Tokens a post, frame included", x_label="tokens"),
        ),
        html.table(["up to", *names.values()], rows),
        html.bar_chart(economy, title="Tokens a character", unit=""),
        html.note("Measured on a sample. A model reads fewer tokens where this is small, so the same post costs less."),
    )


def _time_and_language(found: Findings) -> str:
    months = sorted(found.months.items())
    languages = [(name, round(100 * value, 1)) for name, value in found.languages[:8]]
    return html.section(
        "Time and language",
        html.columns(
            html.column_chart([(m, float(n)) for m, n in _with_gaps(months)], title="Posts a month"),
            html.bar_chart(languages, title="Language of the posts, by a sample", unit="%"),
        ),
    )


def _with_gaps(months: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Months without posts between the first and the last one are columns of height nought."""
    dated = {m: n for m, n in months if m[:1].isdigit()}
    if not dated:
        return months
    first, last = min(dated), max(dated)
    low = int(first[:4]) * 12 + int(first[5:]) - 1
    high = int(last[:4]) * 12 + int(last[5:]) - 1
    if high - low > 1200:  # dates that nobody wrote in
        return months
    names = [f"{n // 12:04d}-{n % 12 + 1:02d}" for n in range(low, high + 1)]
    return [(name, dated.get(name, 0)) for name in names] + [(m, n) for m, n in months if not m[:1].isdigit()]


def _repeats(found: Findings) -> str:
    if not found.repeats:
        return html.section("Repeats", html.note("No post is there twice."))
    parts = [html.table(["times", "text"], [[n, html.preformatted(t)] for n, t in found.repeats])]
    kept = found.spec.max_repeats
    return html.section(
        "Repeats",
        html.paragraph(
            "The largest clusters of equal and nearly equal posts (Jaccard similarity "
            f"{found.spec.near_duplicates:g} or more). {kept} of each {'is' if kept == 1 else 'are'} kept, the oldest."
        ),
        *parts,
    )


def _blocks(found: Findings, facts: dict[str, Any]) -> str:
    train = facts["blocks"]["train"]
    return html.section(
        "Blocks",
        html.facts(
            {
                "tokens a block": found.style.block_size,
                "blocks to train on": train["blocks"],
                "posts and pieces a block": round(train["segments"] / train["blocks"], 2) if train["blocks"] else 0,
                "filled": f"{train['filled']:.1%}",
                "posts longer than a block": train["longer_posts"],
                "their share of the tokens": f"{train['longer_posts_token_share']:.1%}",
            }
        ),
        html.paragraph(
            "Posts are put whole into blocks and do not see each other there. A longer post is cut, at line breaks "
            "where there are any: the piece that continues has no begin token, the piece before it no end token."
        ),
    )


def _split(found: Findings, facts: dict[str, Any]) -> str:
    counts = facts["counts"]
    how = "the newest posts" if found.spec.split == "time" else f"by a hash with seed {found.spec.seed}"
    text = (
        f"Held out: {how}. No cluster of duplicates stands on both sides, and every held-out post was compared with "
        f"train exactly: none is at {found.spec.near_duplicates:g} or above."
    )
    if found.leaks_mended:
        text += f" {found.leaks_mended} pairs that only this check found were joined first."
    return html.section(
        "Split",
        html.bar_chart([("train", counts["train"]), ("held out", counts["validation"])], unit="posts"),
        html.paragraph(text),
    )
