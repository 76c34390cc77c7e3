"""Packing: nothing lost, nothing split that fits, hardly a token empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.preprocess.packing import best_fit, cut, pack

SIZE = 16
BEGIN, END, NEWLINE = 1, 2, 3


@given(st.lists(st.integers(1, SIZE), max_size=200))
def test_every_piece_is_in_exactly_one_block_that_holds_it(lengths: list[int]) -> None:
    blocks = best_fit(lengths, SIZE)
    assert sorted(n for b in blocks for n in b) == list(range(len(lengths)))
    assert all(0 < sum(lengths[n] for n in b) <= SIZE for b in blocks)
    assert blocks == sorted(sorted(b) for b in blocks)


@given(st.lists(st.integers(1, SIZE), min_size=1, max_size=200))
def test_no_two_blocks_could_be_one(lengths: list[int]) -> None:
    rest = sorted(sum(lengths[n] for n in b) for b in best_fit(lengths, SIZE))
    # best fit never opens a block while another has room: so of any two at most one is half empty
    assert len(rest) < 2 or rest[0] + rest[1] > SIZE


def test_blocks_are_full_on_lengths_as_posts_have_them() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(4.2, 0.9, 20_000).astype(int), 3, 256).tolist()
    assert sum(lengths) / (len(best_fit(lengths, 256)) * 256) > 0.995


@pytest.mark.parametrize("lengths", [[SIZE + 1], [0]])
def test_a_piece_that_cannot_be_placed_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="between 1 and size"):
        best_fit(lengths, SIZE)


@given(st.lists(st.integers(3, 9), min_size=SIZE, max_size=200))
@settings(max_examples=200)
def test_cutting_keeps_every_token_and_marks_the_continuation(body: list[int]) -> None:
    newlines = np.arange(10) == NEWLINE
    tokens = np.array([BEGIN, *body, END], np.int32)
    pieces = cut(tokens, SIZE, newlines)
    assert np.concatenate(pieces).tolist() == tokens.tolist()
    assert all(1 <= len(p) <= SIZE for p in pieces)
    assert [p[0] == BEGIN for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [p[-1] == END for p in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_cut_lies_at_the_last_line_break_of_the_second_half() -> None:
    newlines = np.arange(10) == NEWLINE
    tokens = np.array([BEGIN, *[5] * 9, NEWLINE, 5, NEWLINE, *[5] * 20, END], np.int32)
    first, second, *_ = cut(tokens, SIZE, newlines)
    assert first.tolist() == [BEGIN, *[5] * 9, NEWLINE, 5, NEWLINE]
    assert len(second) == SIZE  # no line break in it: a whole block


def test_a_line_break_in_the_first_half_does_not_waste_a_block() -> None:
    newlines = np.arange(10) == NEWLINE
    tokens = np.array([BEGIN, NEWLINE, *[5] * 30, END], np.int32)
    assert len(cut(tokens, SIZE, newlines)[0]) == SIZE


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=SIZE), max_size=60))
def test_packed_blocks_hold_the_pieces_whole(pieces: list[list[int]]) -> None:
    packed = pack([np.array(p, np.int32) for p in pieces], SIZE)
    found = []
    for ids, lengths in zip(packed.input_ids, packed.lengths, strict=True):
        assert sum(lengths) == len(ids) <= SIZE
        found += [s.tolist() for s in np.split(ids, np.cumsum(lengths)[:-1])]
    assert sorted(found) == sorted(pieces)


def test_packing_time_is_not_quadratic() -> None:
    import time

    draw = np.random.default_rng(1)

    def seconds(count: int) -> float:
        lengths = draw.integers(3, 257, count).tolist()
        start = time.process_time()
        best_fit(lengths, 256)
        return time.process_time() - start

    seconds(2_000)
    small = min(seconds(20_000) for _ in range(3))
    # Eight times the posts: 16 times the seconds, most of it for what the processor's caches do not hold any more;
    # 64 times, were it quadratic.
    assert min(seconds(160_000) for _ in range(2)) < 40 * small
