"""Properties that hold for all values: of manifests, paths, ids, rules and the parts of a batch.

Those of specs, entities, packing, tokenizers, similarity and pages stand beside the other tests of these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.generate.parts import Plan, again
from jobs.manifest import FileEntry, Manifest, safe_path
from jobs.preprocess.draft import Draft, Entity
from jobs.preprocess.profile import builtin_names, builtin_text, parse_profile
from jobs.specs import digest_id

ROOT = Path(__file__).resolve().parents[1]
TEXT = st.text(max_size=40)
HEX = "0123456789abcdef"
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.lists(TEXT, max_size=3))
WORDS = st.dictionaries(TEXT, PLAIN, max_size=4)
PARTS = st.sampled_from(["a", "b.c", "..", ".", "", " ", "~", "ё", "manifest.json", "C:", "\\", "..."])
PATHS = st.lists(PARTS, max_size=4).map("/".join) | TEXT


# -- manifests


def is_safe(path: str) -> bool:
    try:
        safe_path(path)
    except ValueError:
        return False
    return True


@given(PATHS)
def test_a_path_that_is_taken_stays_in_its_folder(path: str) -> None:
    if not is_safe(path):
        return
    parts = PurePosixPath(path).parts
    assert parts and ".." not in parts and not path.startswith("/")
    assert os.path.normpath(f"/folder/{path}") == f"/folder/{path}"
    assert path != "manifest.json"


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    paths = draw(st.lists(PATHS.filter(is_safe), max_size=5, unique=True))
    files = tuple(_entry(draw, p) for p in paths)
    now = draw(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
    return Manifest(
        kind="posts",
        id=draw(st.text(HEX, min_size=20, max_size=20)),
        stage=draw(TEXT),
        spec=draw(WORDS),
        inputs=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        parent=draw(st.none() | TEXT),
        files=files,
        counts=draw(
            st.dictionaries(TEXT, st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=3)
        ),
        info=draw(WORDS),
        run=draw(st.none() | TEXT),
        code_version=draw(TEXT),
        started=now,
        created=now,
    )


def _entry(draw: st.DrawFn, path: str) -> FileEntry:
    return FileEntry(
        path=path,
        size=draw(st.integers(0, 2**62)),
        sha256=draw(st.text(HEX, min_size=64, max_size=64)),
        artifact=draw(st.none() | st.text(HEX, min_size=20, max_size=20).map("posts/{}".format)),
    )


@settings(max_examples=50)
@given(manifests(), WORDS)
def test_a_manifest_survives_json_and_what_a_later_version_adds(manifest: Manifest, more: dict[str, object]) -> None:
    text = manifest.model_dump_json()
    assert Manifest.model_validate_json(text) == manifest
    later = {**{f"later {k}": v for k, v in more.items()}, **json.loads(text)}
    assert Manifest.model_validate_json(json.dumps(later)) == manifest
    assert manifest.size == sum(f.size for f in manifest.files if f.artifact is None)
    if manifest.files:
        twice = {**json.loads(text), "files": [manifest.files[0].model_dump()] * 2}
        with pytest.raises(ValidationError):
            Manifest.model_validate(twice)


# -- ids

VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def _turned(value: object) -> object:
    """The same value, its dictionaries filled in the other order."""
    if isinstance(value, dict):
        return {k: _turned(v) for k, v in reversed(value.items())}
    return [_turned(v) for v in value] if isinstance(value, list) else value


@given(VALUE, VALUE)
def test_ids_are_equal_exactly_when_contents_are(one: object, other: object) -> None:
    def of(value: object) -> str:
        return digest_id("posts", "scrape", 1, value, {})

    assert of(_turned(one)) == of(one)
    assert (of(one) == of(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
    assert digest_id("posts", "scrape", 2, one, {}) != of(one) != digest_id("posts", "scrape", 1, one, {"a": "b"})


def test_ids_do_not_depend_on_the_process() -> None:
    program = (
        "from jobs.specs import *\n"
        "print(TrainSpec(dataset='dataset/' + 'a' * 20, lora={'target_modules': ['x', 'y']}).ref(),"
        " digest_id('a', 'b', 1, {'ё': 1, 'a': [1.5, None]}, {'k': 'v', 'j': 'w'}))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, locale, zone in (("1", "C", "UTC"), ("2", "C.UTF-8", "Asia/Tokyo"), ("3", "tr_TR.UTF-8", "UTC"))
    }
    assert len(said) == 1


# -- rules

PROFILES = {name: parse_profile(builtin_text(name), name) for name in builtin_names()}
#: What posts are made of, in any order, and anything else that Unicode has.
PIECES = (
    *(
        "КОТ",
        "@",
        "\n",
        "\n\n",
        " ",
        "#бугурт",
        "https://t.me/bugurt",
        "@bugurt",
        "🐈\u200d⬛",
        "ё",
        "е\u0308",
        "\u00a0",
    ),
    *("\ufeff", "\r\n", "--", "8 912 345-67-89", "a@b.cc", "Подписывайтесь!", "\u2028", "…", "."),
)
POST = st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=5), max_size=25).map("".join)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    text = draw(POST)
    place = st.integers(-3, len(text) + 3)
    kinds = st.sampled_from(["bold", "text_link", "link", "mention", "hashtag", "italic", "custom_emoji"])
    urls = st.none() | st.just("https://t.me/bugurt")
    entities = [
        Entity(type=draw(kinds), offset=draw(place), length=draw(place), url=draw(urls))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return Draft.of(text, entities)


@pytest.mark.parametrize("name", PROFILES)
@given(drafts())
def test_any_post_is_cleaned_or_dropped_by_a_rule(name: str, draft: Draft) -> None:
    profile = PROFILES[name].with_masking()
    verdict = profile.clean(draft)
    names = {rule.label for rule in profile.rule}
    assert names.issuperset(draft.changed_by if verdict is None else (verdict[0],))
    draft.text.encode("utf-8")


@pytest.mark.parametrize("name", PROFILES)
@given(POST)
@example("8 912 345-67-89@bugurt")
@example("КОТhttps://t.me/bugurt@bugurt")
def test_a_cleaned_text_stays_as_it_is(name: str, text: str) -> None:
    profile = PROFILES[name].with_masking()
    draft = Draft.of(text)
    if profile.clean(draft) is None:
        again = Draft.of(draft.text)
        assert profile.clean(again) is None, "what stays is not dropped the next time"
        assert again.text == draft.text


# -- shards


@settings(max_examples=50)
@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 40), st.data())
def test_shards_share_a_batch_without_gap_or_overlap(count: int, micro: int, shards: int, data: st.DataObject) -> None:
    plan = Plan(count, micro)
    slots = [
        slot
        for shard in range(shards)
        for number in range(len(plan))
        if plan[number].number % shards == shard
        for slot in plan[number].slots
    ]
    assert sorted(slots) == list(range(count))
    lost = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=50)))
    parts = again(1, lost, micro)
    assert [s for n in range(len(parts)) for s in parts[n].slots] == lost
