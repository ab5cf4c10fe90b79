"""What differs first between two steps, and how far apart two numbers are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from xnn.errors import OptionError
from xnn.runs import replay
from xnn.runs.digests import Digests
from xnn.runs.replay import compare, distance

# Order and ulps.


@pytest.mark.parametrize(
    ("gradients", "weights", "loss", "first"),
    [
        ("abc", "xyz", "0", None),
        ("ABC", "XYZ", "1", ("loss", "")),
        ("ABC", "XYZ", "0", ("gradient", "2.w")),
        ("ABc", "Xyz", "0", ("gradient", "1.w")),
        ("Abc", "XYZ", "0", ("gradient", "0.w")),
        ("abc", "xYZ", "0", ("weight", "1.w")),
    ],
)
def test_the_first_in_order_of_computation(gradients, weights, loss, first):
    """Loss, gradients from the last layer back, weights; and how much more differs after that step."""
    one, other = Digests("0", "abc", "xyz"), Digests(loss, gradients, weights)
    found = compare(4, one, other, ["0.w", "1.w", "2.w"])
    if first is None:
        assert found is None
        return
    assert (found.step, found.kind, found.name) == (4, *first)
    changed = sum(a != b for column in zip(one, other, strict=True) for a, b in zip(*column, strict=True))
    assert len(found.others) == changed - 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distance(dtype):
    kind = np.dtype(dtype).type
    tiny, large, one = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max, kind(1)
    pairs = [
        (one, one, None),
        (one, np.nextafter(one, kind(2)), 1),
        (one, np.nextafter(one, kind(0)), 1),
        (kind(-1), np.nextafter(np.nextafter(kind(-1), kind(0)), kind(0)), 2),
        (tiny, -tiny, 2),
        (kind(0), kind(-0.0), 0),
        (one, kind(2), 2 ** np.finfo(dtype).nmant),
        (kind(3), kind(np.nan), np.iinfo(np.uint64).max),
        (large, kind(np.inf), 1),
        (large, -large, 2 * int(large.view(f"i{large.itemsize}"))),
    ]
    x, y = (np.array(column, dtype).reshape(2, 5) for column in list(zip(*pairs, strict=True))[:2])
    places, ulps = distance(x, y)
    assert places.tolist() == list(range(1, 10))
    assert ulps.tolist() == [u for *_, u in pairs[1:]]
    for one_way, other in ((x, y), (y, x)):
        assert distance(one_way, other)[1].tolist() == ulps.tolist()


def test_arguments_at_their_defaults_make_no_other_run():
    from xnn.runs.replay import _without_defaults

    short = [
        {"type": "Sequential", "layers": [{"type": "Dense", "outputs": 5}]},
        {"type": "Dropout", "rate": 0.2},
    ]
    full = [
        {"type": "Sequential", "layers": [{"type": "Dense", "outputs": 5, "bias": True, "dtype": "float32"}]},
        {"type": "Dropout", "rate": 0.2},
    ]
    assert _without_defaults(full) == _without_defaults(short) == short
    assert _without_defaults([{"type": "Dense", "bias": False}]) != _without_defaults([{"type": "Dense"}])


@pytest.mark.parametrize(
    ("blas", "named"),
    [("cuBLAS 13.1.0", "cuBLAS 13.1.0"), ("mkl 2024", "mkl 2024"), ("", "a BLAS that is unknown")],
)
def test_blas_is_refused_where_openblas_does_not_compute_the_products(monkeypatch, blas, named):
    monkeypatch.setattr(replay, "Process", lambda *given: SimpleNamespace(settle=0.0))
    side = replay.LiveSide("blas=Haswell", {})
    answer = {"note": "", "about": {"plan": {"blas": blas}}, "tensors": {}, "initial": ("", "", "")}
    monkeypatch.setattr(side, "_ask", lambda **command: answer)
    with pytest.raises(OptionError, match=f"for OpenBLAS, and products are computed by {named}.*: omit it"):
        side.begin()
