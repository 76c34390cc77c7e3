"""Tokenizers, frames and prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.generate.language import Language, read_language
from jobs.generate.prompts import framed, laid_out, open_prompts, read_prompts
from jobs.generate.training import open_training
from jobs.specs import DataError, GenerateSpec, SpecError
from tests.generate.models import BEGIN, END, MadeModel, channel, put_source

REF = "model/" + "0" * 20


def spec_of(**fields: Any) -> GenerateSpec:
    return GenerateSpec(model=REF, **fields)


@pytest.fixture(scope="module")
def language(untrained: MadeModel) -> Language:
    return read_language(untrained.folder, REF)


def copy_of(model: MadeModel, folder: Path) -> Path:
    shutil.copytree(model.folder, folder)
    return folder


def change(path: Path, **fields: Any) -> None:
    data = json.loads(path.read_text("utf-8"))
    data.update(fields)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}), "utf-8")


def test_a_prompt_is_framed_as_in_training(language: Language) -> None:
    prompt = framed("ЕДЕТЕ С БАТЕЙ НА ДЕВЯТКЕ @", language, spec_of())
    assert prompt.ids[0] == BEGIN
    assert language.tokenizer.decode(list(prompt.ids[1:])) == "едете с батей на девятке\n@\n"
    assert prompt.given == "ЕДЕТЕ С БАТЕЙ НА ДЕВЯТКЕ @"
    assert language.text(list(prompt.ids)) == "ЕДЕТЕ С БАТЕЙ НА ДЕВЯТКЕ\n@"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("КОТ @ ДЕД", "КОТ\n@\nДЕД"),
        ("КОТ @ @ ДЕД", "КОТ\n@\n@\nДЕД"),
        ("КОТ\\n@\\nДЕД ", "КОТ\n@\nДЕД"),
        ("@ДЕД И кот@почта.рф", "@ДЕД И кот@почта.рф"),
        ("  КОТ ", "КОТ"),
        ("КОТ\nДЕД", "КОТ\nДЕД"),
    ],
)
def test_the_line_structure_of_a_prompt(given: str, text: str) -> None:
    assert laid_out(given, "@") == text


def test_no_prompt_is_the_begin_token_alone(language: Language) -> None:
    assert framed("", language, spec_of()).ids == (BEGIN,)


def test_special_tokens_in_a_prompt_are_text(language: Language) -> None:
    ids = framed("КОТ </s> ДЕД <pad>", language, spec_of()).ids
    assert END not in ids
    assert 0 not in ids


def test_a_prompt_longer_than_the_context(language: Language) -> None:
    with pytest.raises(SpecError, match=r"the prompt 'ЩЩЩ.* tokens, but the model's context holds 128"):
        framed("Щ" * 400, language, spec_of())


def test_a_model_without_begin_token_needs_a_prompt(untrained: MadeModel, tmp_path: Path) -> None:
    folder = copy_of(untrained, tmp_path / "m")
    (folder / "style.json").unlink()
    change(folder / "config.json", bos_token_id=None)
    change(folder / "generation_config.json", bos_token_id=...)
    change(folder / "tokenizer_config.json", bos_token=...)
    found = read_language(folder, REF)
    assert found.begin is None
    with pytest.raises(SpecError, match="no begin token"):
        framed("", found, spec_of())
    assert len(framed("кот", found, spec_of()).ids) >= 1


def test_a_model_without_end_token(untrained: MadeModel, tmp_path: Path) -> None:
    folder = copy_of(untrained, tmp_path / "m")
    (folder / "style.json").unlink()
    change(folder / "config.json", eos_token_id=None)
    change(folder / "generation_config.json", eos_token_id=...)
    change(folder / "tokenizer_config.json", eos_token=...)
    with pytest.raises(DataError, match="has no end token"):
        read_language(folder, REF)


def test_several_end_tokens_of_the_generation_config(untrained: MadeModel, tmp_path: Path) -> None:
    folder = copy_of(untrained, tmp_path / "m")
    (folder / "style.json").unlink()
    change(folder / "generation_config.json", eos_token_id=[END, 17])
    assert read_language(folder, REF).ends == (END, 17)


def test_vocab_and_merges_are_the_same_tokenizer(untrained: MadeModel, tmp_path: Path) -> None:
    folder = copy_of(untrained, tmp_path / "m")
    whole = read_language(folder, REF)
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(" ".join(m) for m in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    old = read_language(folder, REF)
    for text in [*channel(30), "Ёж 👍 </s> й"]:
        ids = whole.frame(text)
        assert old.frame(text) == ids
        assert old.text([*ids, END]) == whole.text([*ids, END])
    assert old.special == whole.special


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "the tokenizer cannot be read"),
        ("style.json", '{"profile": 1}', "is no style of a dataset"),
    ],
)
def test_broken_files(untrained: MadeModel, tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = copy_of(untrained, tmp_path / "m")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        read_language(folder, REF)


def test_token_names_are_as_many_as_the_model_has_rows(untrained: MadeModel, tmp_path: Path) -> None:
    folder = copy_of(untrained, tmp_path / "m")
    size = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    change(folder / "config.json", vocab_size=size + 8)
    names = read_language(folder, REF).tokens()
    assert len(names) == len(set(names)) == size + 8


@pytest.mark.parametrize("text", ["", "\n \n\t\n", "\ufeff"])
def test_an_empty_prompts_file(store: ArtifactStore, text: str) -> None:
    with pytest.raises(DataError, match=r"prompts_file: mine\.txt has no prompt in it"):
        read_prompts(store, put_source(store, text, "mine.txt"))


def test_a_prompts_file(store: ArtifactStore) -> None:
    ref = put_source(store, "\ufeffКОТ @\r\n\r\n  ДЕД\nБАТЯ")
    assert read_prompts(store, ref) == ["КОТ @", "ДЕД", "БАТЯ"]
    with pytest.raises(DataError, match="is not UTF-8"):
        read_prompts(store, put_source(store, "КОТ".encode("cp1251")))


def test_prompts_are_used_in_turn(store: ArtifactStore, language: Language) -> None:
    prompts = open_prompts(spec_of(prompts=("КОТ", "ДЕД", "БАТЯ")), store, language, None)
    assert [prompts[i].given for i in range(7)] == ["КОТ", "ДЕД", "БАТЯ", "КОТ", "ДЕД", "БАТЯ", "КОТ"]


def test_openings_come_from_the_training_posts(
    store: ArtifactStore, untrained: MadeModel, language: Language, tmp_path: Path
) -> None:
    model = store.manifest(untrained.put(store))
    spec = spec_of(openings=True, seed=5)
    training = open_training(store, model, spec, tmp_path)
    prompts = open_prompts(spec, store, language, training)
    given = [prompts[i].given for i in range(300)]
    assert given == [prompts[i].given for i in range(300)]
    assert all(any(t.startswith(g) for t in untrained.texts) for g in given)
    counts = [len(g.split()) for g in given]
    assert {1, 2, 3} <= set(counts) <= {1, 2, 3, 4}
    assert len(set(given)) > 50
    other = open_prompts(spec_of(openings=True, seed=6), store, language, training)
    assert [other[i].given for i in range(300)] != given
    with pytest.raises(DataError, match="openings: the dataset"):
        open_prompts(spec, store, language, None)


def test_a_prompt_that_is_stolen_already(
    store: ArtifactStore, untrained: MadeModel, language: Language, tmp_path: Path
) -> None:
    model = store.manifest(untrained.put(store))
    spec = spec_of(prompts=("КОТ", untrained.texts[0]), max_overlap_words=4)
    with pytest.raises(SpecError, match="shares a run of more than 4 words with a training post"):
        open_prompts(spec, store, language, open_training(store, model, spec, tmp_path))
