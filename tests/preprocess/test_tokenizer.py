"""Tokenizers: text comes back unchanged, words encoded once are what the library gives, others can load them."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jobs.preprocess.tokenizer import LEAST_PAIRS, SPECIAL, Encoder, TokenizerInfo, splits_at_words, train_bpe
from tests.preprocess.texts import posts

TEXTS = [t.lower() for t in posts(400, seed=1)]


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> TokenizerInfo:
    return train_bpe([TEXTS], 400, tmp_path_factory.mktemp("bpe"), "scratch:tiny")


@pytest.fixture(scope="module")
def encoder(info: TokenizerInfo) -> Encoder:
    return Encoder(info.file)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
#: White space of all kinds, contractions and special tokens between words, where the cutting could go wrong.
SPACED = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2028", "\u3000", "\u180e", "\x1c", "\x85", "\r\n", "@", "кот",
         "Ёж", "'s", "it's", "123", "</s>", "<s>", "!", "…", "é", "e\u0301", "😂", "👨‍👩‍👧", "\u200b", "\ufeff", "日本"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@given(ANY_TEXT | SPACED)
@settings(max_examples=400, deadline=None)
def test_any_text_comes_back_unchanged(encoder: Encoder, text: str) -> None:
    (ids,) = encoder.encode([text])
    assert encoder.decode(ids) == text


@given(st.lists(ANY_TEXT | SPACED, max_size=8))
@settings(max_examples=400, deadline=None)
def test_words_encoded_once_are_what_the_library_gives(encoder: Encoder, texts: list[str]) -> None:
    assert encoder.encode(texts) == [ids.tolist() for ids in encoder._plain(texts)]


def test_a_tokenizer_that_does_not_know_the_line_break(tmp_path: Path) -> None:
    """The token for all that is unknown parts no words: it may be in the middle of one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(["кот ток кот ток"] * 5, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path / "tokenizer.json")
    texts = ["кот жук\nток", "ток кот"]
    assert encoder.encode(texts) == [ids.tolist() for ids in encoder._plain(texts)]


def test_all_of_unicode_comes_back_unchanged(encoder: Encoder) -> None:
    whole = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    for start in range(0, len(whole), 100_000):
        part = whole[start : start + 100_000]
        assert encoder.decode(encoder.encode([part])[0]) == part


def test_special_tokens_that_are_written_out_are_text(encoder: Encoder, info: TokenizerInfo) -> None:
    (ids,) = encoder.encode(["<s>привет</s> <pad><unk>"])
    assert not set(ids) & {info.bos_token_id, info.eos_token_id, info.pad_token_id}


def test_a_megabyte_without_a_break(encoder: Encoder) -> None:
    for text in ("ы" * 500_000, "\u0301" * 500_000, " " * 1_000_000, "@" * 1_000_000):
        assert encoder.decode(encoder.encode([text])[0]) == text


def test_training_on_words_without_end(tmp_path: Path) -> None:
    start = time.process_time()
    train_bpe([["ы" * 300_000, "\u0301" * 300_000, " " * 300_000, *TEXTS]], 400, tmp_path, "scratch:tiny")
    assert time.process_time() - start < 10  # without a guard: hours


def test_line_ends(encoder: Encoder, info: TokenizerInfo) -> None:
    ends = encoder.line_ends(info.vocab_size)
    (newline,) = encoder.encode(["\n"])[0]
    assert ends[newline]
    assert not ends[encoder.encode(["кот"])[0]].any()
    assert len(ends) == info.vocab_size


def test_others_can_load_it(info: TokenizerInfo, encoder: Encoder) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(info.folder))
    assert len(tokenizer) == info.vocab_size
    for name, token in SPECIAL.items():
        assert getattr(tokenizer, name) == token
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (info.bos_token_id, info.eos_token_id, info.pad_token_id)
    for text in (TEXTS[0], "<s> </s> кот  ё\n\n@", " спереди"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encoder.encode([text])[0]
        assert tokenizer.decode(encoder.encode([text])[0]) == text


def test_order_and_threads_do_not_matter(tmp_path: Path) -> None:
    shuffled = list(TEXTS)
    random.Random(0).shuffle(shuffled)
    one = train_bpe([TEXTS], 400, tmp_path / "one", "scratch:tiny")
    other = train_bpe([shuffled[:100], shuffled[100:]], 400, tmp_path / "other", "scratch:tiny")
    for path in sorted(p.name for p in one.folder.iterdir()):
        assert (one.folder / path).read_bytes() == (other.folder / path).read_bytes()


def test_the_vocabulary_is_as_large_as_asked_or_as_the_text_gives(info: TokenizerInfo, tmp_path: Path) -> None:
    assert info.vocab_size == 400
    rare = train_bpe([["кот"] * (LEAST_PAIRS - 1)], 5000, tmp_path / "rare", "scratch:tiny")
    often = train_bpe([["кот"] * LEAST_PAIRS], 5000, tmp_path / "often", "scratch:tiny")
    assert rare.vocab_size == 256 + len(SPECIAL)  # the bytes
    assert often.vocab_size == rare.vocab_size + 5  # six bytes became one token


def test_only_cutters_like_gpt2_are_taken_for_such(info: TokenizerInfo) -> None:
    whole = json.loads(info.file.read_text())
    assert splits_at_words(whole)
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {**whole["pre_tokenizer"], "use_regex": False}},
        {"pre_tokenizer": {**whole["pre_tokenizer"], "add_prefix_space": True}},
        {"model": {"type": "Unigram"}},
        {"model": {**whole["model"], "dropout": 0.1}},
        {"added_tokens": [{"id": 5, "content": "кот", "special": False}]},
    ):
        assert not splits_at_words({**whole, **change}), change
