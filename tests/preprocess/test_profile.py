"""Profiles: what is wrong with one is said in a sentence, with the line it stands in."""

from __future__ import annotations

import pytest

from jobs.preprocess.profile import builtin_names, builtin_text, find_line, parse_profile
from jobs.preprocess.rules import KINDS
from jobs.specs import SpecError

HEAD = 'name = "mine"\n'


def test_builtins() -> None:
    assert builtin_names() == ["bugurt", "plain"]
    for name in builtin_names():
        profile = parse_profile(builtin_text(name), name)
        assert profile.name == name
        assert profile.description


def test_the_comments_name_every_rule() -> None:
    text = builtin_text("bugurt")
    for kind in KINDS:
        assert f"#   {kind}" in text


def test_unknown_builtin_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"no profile 'bugurd'; the built-in ones are bugurt, plain"):
        builtin_text("bugurd")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + '\n[[rule]]\nuse = "tidy"\n\n[[rule]]\nname = "q"\nuse = "explode"\n', 8, "there is no rule 'explode'"),
        (HEAD + '[[rule]]\nuse = "replace"\nwith = ""\npattern = "(a"\n', 5, "no regular expression of RE2: missing )"),
        (HEAD + "[[rule]]\nuse = 'drop_post'\ntext = 'a(?=b)'\n", 4, "(?="),
        (HEAD + "[[rule]]\nuse = 'drop_post'\ntext = '(a)\\1'\n", 4, "invalid escape sequence"),
        (HEAD + "[[rule]]\nuse = 'drop_post'\ntext = 'a{5000}'\n", 4, "repetition"),
        (HEAD + "[[rule]]\nuse = 'drop_lines'\nlines = [\n  'fine',\n  # a comment\n  '[z-a]',\n]\n", 7, "z-a"),
        (HEAD + "[[rule]]\nuse = 'drop_lines'\nlines = ['fine', '[z-a]']\n", 4, "z-a"),
        (HEAD + "[[rule]]\nuse = 'drop_lines'\nlines = ['x', '\\Qabc']\n", 4, r"end every \Q with \E"),
        (
            HEAD
            + "[[rule]]\nuse = 'tidy'\n[[rule]]\nuse = 'drop_lines'\nlines = ["
            + ", ".join(rf"'{n}\p{{L}}{{1,320}}'" for n in range(6))
            + "]\n",
            4,
            "its 6 expressions are too large together",
        ),
        (HEAD + f"[[rule]]\nuse = 'drop_post'\ntext = '{'a' * 3000}'\n", 4, "may have 2000 characters"),
        (HEAD + "[[rule]\n", 2, "not TOML"),
        (HEAD + 'description = "unclosed\n', 2, "not TOML"),
        (HEAD + "[[rule]]\nkind = 'poll'\n", 2, "'use' is missing"),
        (HEAD + "[[rule]]\nuse = 'tidy'\n[[rule]]\nuse = 'tidy'\n", 4, "'tidy' is there twice"),
        (HEAD + "[[rule]]\nuse = 'tidy'\nname = 'duplicate'\n", 2, "'duplicate' is used by the stage itself"),
        (HEAD + "[[rule]]\nuse = 'tidy'\nmax_blank = 3\n", 4, "max_blank: unknown field"),
        (HEAD + "[[rule]]\nuse = 'tidy'\nmax_blank_lines = -1\n", 4, "max_blank_lines: Input should be greater"),
        (HEAD + "[[rule]]\nuse = 'drop_kind'\nkind = 'pol'\n", 4, "kind: Input should be 'service'"),
        (HEAD + "[[rule]]\nuse = 'drop_post'\n", 2, "give at least one of"),
        (HEAD + "[[rule]]\nuse = 'replace'\npattern = 'a'\nwith = '\\2'\n", 2, "names a group"),
        (HEAD + "[[rule]]\nuse = 'clean_characters'\n[rule.replace]\n'' = 'x'\n", 2, "cannot replace nothing"),
        (HEAD + "[[rule]]\nuse = 'drop_language'\nkeep = ['russian']\n", 4, "keep"),
        (HEAD + "colour = 3\n", 2, "colour: unknown field"),
        (HEAD + "case = 'upper'\n", 2, "case: Input should be"),
        ("name = 'Bad Name'\n", 1, "name: "),
        ("", 1, "name: Field required"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_profile(text, "mine.toml")
    assert str(caught.value).startswith(f"mine.toml, line {line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_are_named_in_the_sentence() -> None:
    text = HEAD + "[[rule]]\nname = 'mine'\nuse = 'drop_post'\ntext = '('\n"
    with pytest.raises(SpecError, match=r"line 5: rule 1 \(mine\): text: "):
        parse_profile(text, "mine.toml")


def test_further_mistakes_are_counted() -> None:
    text = HEAD + "[[rule]]\nuse = 'tidy'\na = 1\nb = 2\n"
    with pytest.raises(SpecError, match=r"line 4: .*a: unknown field; and 1 more"):
        parse_profile(text, "mine.toml")


def test_deeply_nested_toml_is_a_mistake_and_no_crash() -> None:
    with pytest.raises(SpecError, match=r"mine\.toml"):
        parse_profile("a = " + "[" * 100_000, "mine.toml")


def test_find_line_of_a_sub_table() -> None:
    text = HEAD + "[[rule]]\nuse = 'tidy'\n[[rule]]\nuse = 'clean_characters'\n[rule.replace]\na = 'b'\n"
    assert find_line(text, 1, ["replace"]) == 6
    assert find_line(text, 1, ["absent"]) == 4
