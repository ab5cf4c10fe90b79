"""Splits rows into training, validation and test, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from xnn.backends import Purpose, Stream
from xnn.data.orders import permutation_pieces
from xnn.errors import CorruptFileError

__all__ = ["random_order", "split_rows", "take_out"]

_MANY = 2**20  # rows
_BLOCK = 2**18  # rows that are looked at together


def split_rows(
    name: str, n: int, split: tuple[float, float, float], seed: int = 0, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of the rows for training, validation and test.

    name: the name of the data, for the message.
    n: the number of rows.
    split: the three shares, whose sum is 1. Validation and test get at least one row each.
    seed: the split is a permutation that depends on `n` and the seed only. Default 0.
    labels: the class of each row, from 0, (n,), if each part should have its share of each class; see take_out.

    Raises CorruptFileError if no rows are left for training.
    """
    validation, test = (max(1, _part(n, share)) for share in split[1:])
    if validation + test >= n:
        raise CorruptFileError(
            f"{name} holds {n} sample{'s' * (n != 1)}, too few to train, validate and test by a split of {split}: "
            "add samples"
        )
    rest, tested = take_out(random_order(seed, n), test, labels)
    trained, validated = take_out(rest, validation, labels)
    return trained, validated, tested


def random_order(seed: int, n: int) -> np.ndarray:
    """The numbers of n rows in the random order of a split. Those of many rows are uint32, to take less memory."""
    pieces = permutation_pieces(Stream(seed, Purpose.SPLIT), n)
    if not _MANY < n < 2**32:
        return np.concatenate(list(pieces))
    order, start = np.empty(n, np.uint32), 0
    for piece in pieces:
        order[start : start + len(piece)] = piece
        start += len(piece)
    return order


def _part(n: int, share: float) -> int:
    """n * share rounded down. 29 % of 100 are 29, although 0.29 * 100 is a little less in binary."""
    return math.floor(n * share + 1e-9)


def take_out(
    order: np.ndarray, count: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that stay, and `count` rows that are taken out.

    order: the numbers of all rows.
    count: how many rows to take: the first of `order`.
    labels: if given, the first of each class, in proportion to its size. The shares are rounded by the method of
        largest remainders (Hamilton's), but a class keeps its last row as long as another class can give one.
    """
    if labels is None:
        return order[count:], order[:count]
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    for part in _blocks(order):
        counts += np.bincount(labels[part], minlength=len(counts))
    given, remainder = np.divmod(counts * count, len(order))
    first = np.lexsort((np.arange(len(counts)), -remainder, counts - given <= 1))
    given[first[: count - int(given.sum())]] += 1
    taken, seen = np.empty(len(order), bool), np.zeros_like(counts)
    for number, part in enumerate(_blocks(order)):
        own = labels[part]
        here = np.bincount(own, minlength=len(counts))
        grouped = np.argsort(own, kind="stable")
        place = np.empty(len(own), np.int64)  # of each row within its class
        place[grouped] = np.arange(len(own)) - np.repeat(np.cumsum(here) - here, here)
        taken[number * _BLOCK : number * _BLOCK + len(own)] = place + seen[own] < given[own]
        seen += here
    return order[~taken], order[taken]


def _blocks(order: np.ndarray) -> Iterator[np.ndarray]:
    return (order[start : start + _BLOCK] for start in range(0, len(order), _BLOCK))
