"""Packing posts into blocks: best-fit decreasing, so that hardly a token of a block stays empty.

(Ding et al. 2024, "Fewer Truncations Improve Language Modeling", on why posts should not be cut to fill blocks.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


def cut(tokens: Tokens, size: int, newlines: NDArray[np.bool_]) -> list[Tokens]:
    """Cut a framed post that is longer than a block into pieces of at most ``size`` tokens.

    A cut lies after the last line break in the second half of what fits, or else where the block ends.
    ``newlines``: for each token of the vocabulary whether it ends a line. The begin token stays on the first
    piece and the end token on the last, so a piece shows by itself whether it continues or is continued.
    """
    pieces = []
    start = 0
    while len(tokens) - start > size:
        window = tokens[start + size // 2 : start + size]
        breaks = np.flatnonzero(newlines[window])
        stop = start + size // 2 + int(breaks[-1]) + 1 if len(breaks) else start + size
        pieces.append(tokens[start:stop])
        start = stop
    pieces.append(tokens[start:])
    return pieces


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Blocks of at most ``size`` out of pieces of these lengths: numbers of the pieces, ascending in each block,
    blocks in the order of their first piece. Longest pieces first, each into the fullest block that holds it.

    Time is n log n in the pieces; raises ValueError when one does not fit into an empty block.
    """
    if lengths and (max(lengths) > size or min(lengths) < 1):
        raise ValueError("every piece must have between 1 and size tokens")
    blocks: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(size + 1)]
    available = 0  # bit r: there is a block with room for exactly r tokens
    for piece in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[piece]
        fitting = available >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            block = by_room[room].pop()
            if not by_room[room]:
                available &= ~(1 << room)
        else:
            room, block = size, len(blocks)
            blocks.append([])
        blocks[block].append(piece)
        left = room - length
        if left:
            by_room[left].append(block)
            available |= 1 << left
    for members in blocks:
        members.sort()
    blocks.sort()
    return blocks


@dataclass(frozen=True, slots=True)
class Packed:
    """Blocks: each one's tokens and the lengths of its segments."""

    input_ids: list[Tokens]
    lengths: list[list[int]]


def pack(pieces: Sequence[Tokens], size: int) -> Packed:
    """Pack pieces into blocks; every token of every piece is in exactly one block."""
    sizes = [len(p) for p in pieces]
    blocks = best_fit(sizes, size)
    return Packed(
        [np.concatenate([pieces[n] for n in members]) for members in blocks],
        [[sizes[n] for n in members] for members in blocks],
    )
