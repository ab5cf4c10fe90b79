"""Sums in memory that several ranks see: here threads, and in test_mpi.py processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xnn.backends.ranks import shared_memory
from xnn.backends.ranks.group import Ranks
from xnn.backends.ranks.shared_memory import SharedMemory, SharedMessage, mapped


def by_ranks(size, width, work):
    """work(memory) of each rank, by a thread each, where `width` bytes a rank are shared."""
    rows, meeting = np.zeros((size, width), np.uint8), threading.Barrier(size, timeout=60)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(SharedMemory(rank, rows, meeting.wait)), range(size)))


def drawn(size, count, dtype):
    return list((1e6 * np.random.default_rng(size).normal(size=(size, count))).astype(dtype))


def reduced(arrays, kind):
    """The sum or the maximum, taken in the order of ranks."""
    expected = arrays[0]
    for array in arrays[1:]:
        expected = expected + array if kind == "sum" else np.maximum(expected, array)
    return expected


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("kind", ["sum", "maximum"])
def test_all_ranks_get_the_sum_in_the_order_of_ranks(size, dtype, kind, monkeypatch):
    """In pieces, the last of which is shorter than there are ranks."""
    monkeypatch.setattr(shared_memory, "_AT_ONCE", 64)
    arrays = drawn(size, 3 * 1024 // np.dtype(dtype).itemsize + 1, dtype)

    def work(memory):
        found = arrays[memory.rank].copy()
        memory.reduce(found, kind)
        return found

    for found in by_ranks(size, 1024, work):
        np.testing.assert_array_equal(found, reduced(arrays, kind))


@pytest.mark.parametrize("size", [2, 3])
def test_a_message_is_added_up_where_it_lies_again_and_again(size):
    arrays = drawn(size, 1001, "float32")

    def work(memory):
        ranks = Ranks(memory.rank, size, size)
        message, found = SharedMessage(ranks, memory, 1001, "float32"), []
        for factor in (1.0, -2.0, 0.5):
            message.array[...] = factor * arrays[memory.rank]
            message.total()
            found.append(message.array.copy())
        assert ranks.messages == {"sum": 3}
        return found

    for found in by_ranks(size, 4096, work):
        for factor, total in zip((1.0, -2.0, 0.5), found, strict=True):
            np.testing.assert_array_equal(total, factor * reduced(arrays, "sum"))


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_gets_its_parts_of_a_sum_alone(size):
    """And all get the first numbers."""
    arrays = drawn(size, 2**18, "float32")  # more than is added up at once

    def work(memory):
        message = SharedMessage(Ranks(memory.rank, size, size), memory, 2**18, "float32")
        message.array[...] = arrays[memory.rank]
        length = (2**18 - 5) // size
        own = slice(5 + length * memory.rank, 5 + length * (memory.rank + 1))
        first = message.total_parts([slice(own.start, own.start + 7), slice(own.start + 7, own.stop)], 5)
        return own, first.copy(), message.array.copy()

    total = reduced(arrays, "sum")
    for rank, (own, first, found) in enumerate(by_ranks(size, 2**20, work)):
        np.testing.assert_array_equal(first, total[:5])
        expected = arrays[rank].copy()
        expected[own] = total[own]
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
    assert mapped(0, 2, 5000, Alone()) is not None
    assert mapped(0, 2, 5000, Alone(there=False)) is None
    assert not list(tmp_path.iterdir())


def test_without_room_or_folder_there_is_no_memory(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory.os, "posix_fallocate", full)
        assert mapped(0, 2, 5000, Alone()) is None
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory.os, "truncate", full)
        assert mapped(0, 2, 5000, Alone()) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path / "missing"))
    assert mapped(0, 2, 5000, Alone()) is None
