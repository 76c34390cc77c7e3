"""What each gate lets through and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.generate.engines import Draw
from jobs.generate.form import FormGate
from jobs.generate.gates import Gates, Judged
from jobs.generate.language import Language, read_language
from jobs.generate.pii import find_pii
from jobs.generate.prompts import framed
from jobs.generate.training import Training
from jobs.specs import GenerateSpec
from tests.generate.models import END, MadeModel, channel, make_style

GOOD = "КОТ ЧИНИТ ЗАБОР\n@\nДЕД МОЕТ ЛЫЖИ\n@\nКОТ ДОВОЛЕН"


@pytest.fixture(scope="module")
def language(untrained: MadeModel) -> Language:
    return read_language(untrained.folder, "model/x")


def judge(
    language: Language,
    text: str,
    *,
    training: Training | None = None,
    prompt: str = "",
    ended: bool = True,
    extra: Sequence[int] = (),
    **fields: Any,
) -> Judged:
    spec = GenerateSpec(model="model/" + "0" * 20, **fields)
    ids = language.tokenizer.encode(text.lower(), add_special_tokens=False).ids
    draw = Draw([*ids, *extra], -1.0, ended)
    return Gates(spec, language, training).judge([framed(prompt, language, spec)], [draw])[0]


def training_of(tmp_path: Path, texts: Sequence[str], **fields: Any) -> Training:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train-00000.parquet"
    pq.write_table(pa.table({"text": list(texts)}), path)
    return Training([path], GenerateSpec(model="model/" + "0" * 20, **fields))


def test_a_good_post_passes_with_its_measures(language: Language) -> None:
    post = judge(language, GOOD)
    assert post.refused is None
    assert post.text == GOOD
    assert post.values == {"ended": True, "clean": True, "length": len(GOOD), "form": "ok", "pii": 0}


def test_gates_of_a_single_post(language: Language) -> None:
    assert judge(language, GOOD, ended=False).refused == "ended"
    assert judge(language, GOOD, extra=[0]).refused == "clean"
    assert judge(language, GOOD, extra=[language.tokenizer.token_to_id("Ð")]).refused == "clean"  # half a letter
    assert judge(language, GOOD, min_characters=100).refused == "length"
    assert judge(language, GOOD, min_characters=0, max_characters=20).refused == "length"
    assert judge(language, "", prompt=GOOD).refused == "length"  # nothing behind the prompt
    assert judge(language, GOOD.replace("\n@\n", " ")).refused == "form"
    assert judge(language, GOOD.replace("\n@\n", " "), form=False).refused is None
    call = GOOD.replace("ДЕД", "ДЕД +7 912 345-67-89")
    assert judge(language, call, form=False).refused == "pii"
    assert judge(language, call, form=False, refuse_pii=False).refused is None


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("забор",), True),
        (("ЗАБОР",), True),
        (("забо",), False),
        (("забо*",), True),
        (("чинит  забор",), True),
        (("чинит дед",), False),
        (("дед  моет лыж*",), True),
        (("", "!"), False),
    ],
)
def test_stop_words(language: Language, words: tuple[str, ...], refused: bool) -> None:
    assert (judge(language, GOOD, stop_words=words).refused == "stop_words") is refused


def test_a_copy_of_a_training_post_is_refused(language: Language, tmp_path: Path) -> None:
    training = training_of(tmp_path, [GOOD, *channel(50)], max_overlap_words=5)
    post = judge(language, GOOD, training=training, max_overlap_words=5)
    assert post.refused == "overlap"
    assert post.values["overlap"] == 6  # one more than allowed is all that is looked for


def test_a_post_that_is_nearly_a_training_post_is_refused(language: Language, tmp_path: Path) -> None:
    long = "\n@\n".join(f"КОТ НОМЕР {n} ЧИНИТ ЗАБОР И ПОЁТ" for n in range(4))
    training = training_of(tmp_path, [long])
    near = long.replace("НОМЕР 2", "НУМЕР 2").replace("ПОЁТ", "ПОЕТ")
    post = judge(language, near, training=training, max_overlap_words=100, form=False)
    assert post.refused == "similarity"
    assert 0.8 <= (post.similarity or 0) < 1


def test_the_similarity_below_the_threshold_is_told(language: Language, tmp_path: Path) -> None:
    training = training_of(tmp_path, ["КОТ ЧИНИТ ЗАБОР\n@\nБАТЯ ПЬЁТ ЧАЙ", "СОВСЕМ ДРУГОЕ"])
    post = judge(language, GOOD, training=training)
    assert post.refused is None
    assert post.run is not None
    assert (post.run.length, post.run.text) == (3, "КОТ ЧИНИТ ЗАБОР")
    assert 0.1 < (post.similarity or 0) < 0.8


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("ПИШИ НА VASYA@MAIL.RU СРОЧНО", ["email"]),
        ("ЗВОНИ 8 (912) 345-67-89", ["phone"]),
        ("ЗВОНИ +375 29 123 45 67", ["phone"]),
        ("ПОДПИШИСЬ НА @DEVYATKA_BATI", ["mention"]),
        ("ЧИТАЙ T.ME/DEVYATKA", ["link"]),
        ("НА САЙТЕ ДАЧА-БАТИ.РФ", ["link"]),
        ("HTTPS://EXAMPLE.ORG/X", ["link"]),
        ("КАРТА 2200 1234 5678 9010", ["card"]),
        ("ЕДЕТЕ С БАТЕЙ\n@\nВЕЗЁТЕ 1200 ПОМИДОРОВ", []),
        ("В 1998 ГОДУ НА 2 ЭТАЖЕ 100500 РАЗ", []),
        ("@ДЕД НЕ ИМЯ", []),
        ("КУПИЛ ЗА 12.50 И УШЁЛ.НЕ ВЕРНУЛСЯ", []),
    ],
)
def test_personal_data(text: str, kinds: list[str]) -> None:
    assert find_pii(text) == kinds


def test_form() -> None:
    gate = FormGate(make_style(channel(300), 600, 128))
    assert gate.problem(GOOD) is None
    assert gate.problem("@\n" + GOOD) == "separator at an end"
    assert gate.problem(GOOD + "\n@") == "separator at an end"
    assert gate.problem("КОТ ЧИНИТ ЗАБОР\nКОТ ДОВОЛЕН") == "no separator"
    assert gate.problem("КОТ @ ДЕД\n@\nКОТ ДОВОЛЕН") == "separator inside a line"
    assert gate.problem("\n@\n".join(["КОТ ДОВОЛЕН"] * 9)) == "too many segments"
    assert gate.problem("КОТ ДОВОЛЕН\n" * 30 + "@\nКОТ") == "too many lines"
    assert gate.problem("КОТ " * 60 + "\n@\nКОТ") == "line too long"
    assert gate.problem("КОТ\n\n\n\n@\nКОТ") == "empty lines"
    assert gate.problem("12 34 56 !!! 78\n@\n90 К") == "few letters"
    assert gate.problem(GOOD.lower()) == "case"
    assert gate.problem("КОТ\n@\n@\n@\nПАУЗА\n@\nДЕД") is None  # a dramatic pause is one break


def test_a_plain_channel_asks_for_less() -> None:
    style = make_style(channel(300), 600, 128, separator=None, restore="none", case="keep")
    form = style.form.model_copy(update={"upper_posts": 0.1, "separator_share": 0.0, "multiline_share": 0.5})
    gate = FormGate(style.model_copy(update={"form": form}))
    assert gate.problem("Просто одна строка") is None
    assert gate.problem("Строка с @ внутри") is None


def test_the_end_token_is_no_text(language: Language) -> None:
    assert language.ends == (END,)
    assert END not in language.special
