"""Sums in memory that several ranks see: here threads, and in test_mpi.py processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xnn.backends.ranks import shared_memory
from xnn.backends.ranks.shared_memory import SharedMemory, mapped


def reduced(arrays, kind):
    """What each of so many ranks has after it has brought its array."""
    size = len(arrays)
    memory, meeting = (
        np.zeros((size + 1, shared_memory.PIECE), np.uint8),
        threading.Barrier(size, timeout=60),
    )

    def work(rank):
        found = arrays[rank].copy()
        SharedMemory(rank, size, memory, meeting.wait).reduce(found, kind)
        return found

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("kind", ["sum", "maximum"])
def test_all_ranks_get_the_sum_in_the_order_of_ranks(size, dtype, kind, monkeypatch):
    """In pieces, the last of which is shorter than there are ranks."""
    monkeypatch.setattr(shared_memory, "PIECE", 1024)
    numbers = np.random.default_rng(size).normal(size=(size, 3 * 1024 // np.dtype(dtype).itemsize + 1))
    arrays = list((1e6 * numbers).astype(dtype))
    expected = arrays[0]
    for array in arrays[1:]:
        expected = expected + array if kind == "sum" else np.maximum(expected, array)
    for found in reduced(arrays, kind):
        np.testing.assert_array_equal(found, expected)


class Alone:
    """A communicator of one process, which hears of others that `there` is so."""

    def __init__(self, there=True):
        self.there, self.said = there, []

    def bcast(self, thing):
        self.said.append(thing)
        return thing

    def allgather(self, thing):
        return [thing, self.there]

    def Barrier(self):  # noqa: N802 (mpi4py's name)
        pass


def test_the_file_of_the_memory_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path))
    assert mapped(0, 2, Alone()) is not None
    assert mapped(0, 2, Alone(there=False)) is None
    assert not list(tmp_path.iterdir())


def test_without_room_or_folder_there_is_no_memory(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory.os, "posix_fallocate", full)
        assert mapped(0, 2, Alone()) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path / "missing"))
    assert mapped(0, 2, Alone()) is None
