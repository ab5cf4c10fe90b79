"""Random orders of many rows, made piece by piece, so that they take little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xnn.backends import Purpose, Stream

__all__ = ["permutation_pieces", "range_pieces", "window_pieces"]

#: About how many numbers a piece has, at most.
_MOST = 2**20
_WORDS = 2**16  # random words that are made at a time
_MOST_BITS = 6  # of the number of pieces: beyond 64 of them they grow


def permutation_pieces(stream: Stream, n: int) -> Iterator[np.ndarray]:
    """The pieces of `stream.permutation(n)`, one after the other, int64: the same numbers in the same order.

    A permutation is the order in which n random words are sorted. The words with the same highest bits follow one
    another in it, so that each such group can be sorted alone. The words are made anew for each group, since 10
    million of them take 80 MB.
    """
    bits = min(_MOST_BITS, max(0, (n - 1) // _MOST).bit_length())
    if not bits:
        yield stream.permutation(n)
        return
    shift = np.uint64(64 - bits)
    for group in range(2**bits):
        words, rows = [], []
        for start in range(0, n, _WORDS):
            made = stream.words(start, min(_WORDS, n - start))
            inside = np.flatnonzero((made >> shift) == np.uint64(group))
            words.append(made[inside])
            rows.append(inside + start)
        order = np.argsort(np.concatenate(words), kind="stable")
        yield np.concatenate(rows)[order]


def range_pieces(n: int) -> Iterator[np.ndarray]:
    """The numbers 0 .. n - 1 in order, int64, in pieces."""
    for start in range(0, n, _MOST):
        yield np.arange(start, min(start + _MOST, n))


def window_pieces(n: int, window: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The numbers 0 .. n - 1, int64, in windows of this size, each in a random order of its own."""
    for number, start in enumerate(range(0, n, window)):
        yield start + Stream(seed, Purpose.SHUFFLE, number, epoch).permutation(min(window, n - start))
