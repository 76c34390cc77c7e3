"""The style file: it comes back as it was, helps with case, and says what is wrong with it."""

from __future__ import annotations

import pytest

from jobs.specs import DataError
from jobs.style import QUANTILES, Form, Style, quantile_key

QUANTILE = {quantile_key(q): 1.0 for q in QUANTILES}


def style(**changes: object) -> Style:
    form = Form(
        posts=3, characters=QUANTILE, lines=QUANTILE, segments=QUANTILE, line_characters=QUANTILE, tokens=QUANTILE,
        separator_share=1, upper_share=1, upper_posts=1, multiline_share=1, letter_share=1, language="ru",
    )  # fmt: skip
    values: dict[str, object] = {
        "profile": "bugurt", "case": "lower", "restore": "upper", "separator": "@", "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 0, "vocab_size": 600, "block_size": 256, "form": form, **changes,
    }  # fmt: skip
    return Style.model_validate(values)


def test_there_and_back() -> None:
    made = style()
    assert Style.from_json(made.to_json()) == made
    assert style().to_json() == made.to_json()


def test_quantile_keys() -> None:
    assert [quantile_key(q) for q in QUANTILES] == ["p00", "p01", "p05", "p25", "p50", "p75", "p95", "p99", "p100"]


def test_case() -> None:
    assert style().training_text("КОТ Ёж") == "кот ёж"
    assert style().restored("кот ёж") == "КОТ ЁЖ"
    kept = style(case="keep", restore="none")
    assert kept.training_text("КОТ ёж") == kept.restored("КОТ ёж") == "КОТ ёж"


def test_fields_of_later_versions_do_no_harm() -> None:
    data = style().model_dump(mode="json") | {"colour": 3}
    import json

    assert Style.from_json(json.dumps(data)) == style()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format": 2}', b"\xff"])
def test_what_is_no_style_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"model/x/style\.json is no style of a dataset: "):
        Style.from_json(data, "model/x/style.json")
