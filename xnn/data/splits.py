"""Splits rows into training, validation and test, the same on every machine."""

from __future__ import annotations

import math

import numpy as np

from xnn.backends import Purpose, Stream
from xnn.errors import CorruptFileError

__all__ = ["split_rows", "take_out"]


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
    rest, tested = take_out(Stream(seed, Purpose.SPLIT).permutation(n), test, labels)
    trained, validated = take_out(rest, validation, labels)
    return trained, validated, tested


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
    own = labels[order]
    counts = np.bincount(own)
    given, remainder = np.divmod(counts * count, len(order))
    first = np.lexsort((np.arange(len(counts)), -remainder, counts - given <= 1))
    given[first[: count - int(given.sum())]] += 1
    grouped = np.argsort(own, kind="stable")
    place = np.empty(len(order), np.int64)  # of each row within its class
    place[grouped] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = place < given[own]
    return order[~taken], order[taken]
