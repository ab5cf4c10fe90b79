"""Arrays that are read from files by their rows, on a GPU: the bits of the same arrays in memory."""

import numpy as np
import pytest
from test_cuda_programs import X, Y, bits, pytestmark, train

from xnn import data
from xnn.backends import cupy_backend
from xnn.backends.kernels.cuda import data_set
from xnn.backends.row_sources import Converted, Joined
from xnn.data.orders import window_pieces

__all__ = ["pytestmark"]


@pytest.mark.parametrize("free", [10**9, 8000], ids=["resident", "streamed"])
@pytest.mark.parametrize("kernels", ["auto", "ops"])
def test_the_bits_are_those_of_arrays_in_memory(tmp_path, monkeypatch, free, kernels):
    monkeypatch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self: free)
    monkeypatch.setattr(data_set, "_EIGHTH", 1)
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"epochs": 2, "kernels": kernels, "validation": (X, Y)}
    wanted = train("cupy", data=(X, Y), **options)
    for given in (x, Joined([x[:100], x[100:]]), Converted(X - 1, lambda rows: rows + 1)):
        found = train("cupy", data=(given, Y.astype(np.uint8)), **options | {"validation": (given, Y)})
        assert bits(found) == bits(wanted)
        assert found[0].history.epochs == wanted[0].history.epochs
        assert found[0].history.plan == wanted[0].history.plan


@pytest.mark.parametrize("kernels", ["auto", "ops"])
@pytest.mark.parametrize("window", [len(X), 60])
def test_a_stream_has_the_bits_that_it_has_on_arrays_in_its_order(kernels, window):
    stream = data.Stream(
        [(X[start : start + 33], Y[start : start + 33]) for start in range(0, len(X), 33)], window=window
    )
    order = np.concatenate(list(window_pieces(len(X), window, 0, 0)))
    found = train("cupy", data=stream, epochs=1, kernels=kernels)
    wanted = train("cupy", data=(X[order], Y[order]), epochs=1, kernels=kernels, shuffle=False)
    assert bits(found) == bits(wanted)
    assert found[0].history.epochs == wanted[0].history.epochs
