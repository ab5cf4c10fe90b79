"""The kernels of batch and layer normalization on the CPU compared with their ops."""

import numpy as np
import pytest
from test_cuda_norm_kernels import SIZES, calls, slots, values
from test_kernels import DTYPES, LIB, Both, close

from xnn import ops
from xnn.backends.kernels.binding import bind
from xnn.backends.kernels.calls import Call, Slot
from xnn.ops.apply import forward_of

#: Shape, axes, along: batch normalization of images and of features, and layer normalization.
CASES = [
    ((9, 1, 1, 1), (0, 2, 3), 1),
    ((4, 3, 5, 5), (0, 2, 3), 1),
    ((19, 2, 40, 33), (0, 2, 3), 1),
    ((7, 5, 3), (0, 2), 1),
    ((3, 2), (0,), 1),
    ((70, 45), (0,), 1),
    ((4, 1, 6), (1, 2), 1),
    ((70, 33), (1,), 1),
    ((3, 4, 70), (2,), 2),
    ((2, 3, 9, 5), (2, 3), 2),
]
KINDS = [(True, ops.relu, 3), (True, None, 2), (False, None, 3)]

OPTIONS = {"scaled": True}


@pytest.fixture(params=["numpy", "compiled"])
def table(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return LIB.kernels(request.param)


@pytest.fixture
def both(table):
    return Both(table)


def of_table(table, activation):
    """The activation that the table's kernels apply: NumPy's apply none."""
    return None if table.name == "numpy" else activation


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("affine", "activation", "rows"), KINDS, ids=str)
def test_normalization(table, both, case, dtype, affine, activation, rows):
    activation = of_table(table, activation)
    slots(both, case, dtype, rows, values(case[0], dtype, 1.0))
    found = both.run(lambda s: calls(s, *case[1:], affine, activation, rows))
    for name in ("m", "y" if activation else "z", "dx", *(("dw", "db") if affine else ())):
        close(*found[name], 4 * np.prod(case[0]) ** 0.5 + 40)


USUAL = [CASES[1], CASES[5], CASES[7]]


@pytest.mark.parametrize("case", USUAL, ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_any_size(table, both, dtype, size, case):
    """Squares that would overflow, or be 0, and numbers far from 0."""
    slots(both, case, dtype, 3, values(case[0], dtype, size))
    found = both.run(lambda s: calls(s, *case[1:], True, None, 3, epsilon=0.0 if size == 1e-25 else 1e-5))
    far = 4000 if size is None else 1  # z is x - 1000, and x has no more digits
    for name in ("m", "z", "dx", "dw", "db"):
        close(*found[name], 100 * far)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", USUAL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite(table, both, dtype, bad, case):
    activation = of_table(table, ops.relu)
    x = values(case[0], dtype, 1.0)
    x[1, 2] = bad
    slots(both, case, dtype, 3, x)
    found = both.run(lambda s: calls(s, *case[1:], True, activation, 3))
    for name in ("y" if activation else "z", "dx", "dw", "db"):
        np.testing.assert_array_equal(*map(np.isfinite, found[name]))


@pytest.mark.parametrize("shape", [(2, 1, 400, 500), (9000, 3), (3, 70000)])
def test_moments_of_many_numbers(table, shape):
    """They stay accurate: float32 numbers are not added one after the other."""
    x = 100 + values(shape, "float32", 1.0)
    axis = (1,) if shape[0] == 3 else (0, *range(2, len(shape)))
    kept = tuple(1 if a in axis else extent for a, extent in enumerate(shape))
    slots = Slot("x", shape, np.dtype("f4"), x), Slot("m", (3, *kept), np.dtype("f4"))
    call = Call("forward", ops.moments, slots[:1], slots[1:], {"axis": axis, "scaled": True})
    for step in bind(LIB, table, [call]):
        step()
    wide = x.astype("f8")
    right = np.stack([wide.mean(axis=axis, keepdims=True), wide.var(axis=axis, keepdims=True)])
    np.testing.assert_allclose(slots[1].array[:2], right, rtol=3e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [(0,), (1,)])
def test_unusual_numbers_have_the_moments_of_the_op(table, axis, dtype):
    """And change no bit of the others."""
    columns = [
        [np.nan, 1e30, 1, 2], [np.nan, 1e-30, 0, 0], [1, np.nan, 1e30, 0], [np.inf, 1, 1, 1], [3e38, -3e38, 0, 1],
        [1e-42, 0, 0, 0], [1e-30, -1e-30, 0, 0], [7, 7, 7, 7], [0, 0, 0, 0],
    ]  # fmt: skip
    usual = [[1, 2, 3, 5], [-1, 2, 0.5, 9]]
    x = np.array(columns + usual, dtype)
    x = np.ascontiguousarray(x.T) if axis == (0,) else x

    def moments(x):
        kept = tuple(1 if a in axis else extent for a, extent in enumerate(x.shape))
        slots = Slot("x", x.shape, x.dtype, x), Slot("m", (3, *kept), x.dtype)
        for step in bind(
            LIB, table, [Call("forward", ops.moments, slots[:1], slots[1:], OPTIONS | {"axis": axis})]
        ):
            step()
        return slots[1].array.reshape(3, -1)

    with np.errstate(all="ignore"):
        right = forward_of(ops.moments, np, (x,), OPTIONS | {"axis": axis})[0].reshape(3, -1)
    found = moments(x)
    np.testing.assert_allclose(found, right, rtol=1e-5)
    alone = moments(np.ascontiguousarray(x[:, len(columns) :] if axis == (0,) else x[len(columns) :]))
    np.testing.assert_array_equal(found[:, len(columns) :], alone)


@pytest.mark.parametrize("rows", [128, 1000])
def test_a_mean_that_is_large_beside_the_deviations(table, rows):
    x = (1000 + 0.01 * np.random.default_rng(0).standard_normal((rows, 5))).astype("float32")
    slots = Slot("x", x.shape, x.dtype, x), Slot("m", (3, 1, 5), x.dtype)
    for step in bind(
        LIB, table, [Call("forward", ops.moments, slots[:1], slots[1:], OPTIONS | {"axis": (0,)})]
    ):
        step()
    mean, variance, _ = slots[1].array.astype("f8").reshape(3, -1)
    wide = x.astype("f8")
    np.testing.assert_allclose(mean, wide.mean(0), atol=5e-5)  # half a unit in the last place is 3e-5
    np.testing.assert_allclose(variance, wide.var(0), rtol=1e-3)


@pytest.mark.parametrize("case", USUAL[:2], ids=str)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_channels_of_one_number(both, value, case):
    """The variance is 0."""
    x = values(case[0], "float32", 1.0)
    x[:, 1] = value
    slots(both, case, "float32", 3, x)
    found = both.run(lambda s: calls(s, *case[1:], True, None, 3))
    for name in ("m", "z", "dw", "db"):
        close(*found[name], 100)
    close(*found["dx"], 1000)


@pytest.mark.parametrize("case", USUAL, ids=str)
def test_gradient_of_weight_and_bias_alone(table, both, case):
    """The first layer needs no gradient for its input."""
    slots(both, case, "float32", 3, values(case[0], "float32", 1.0))

    def make(s):
        moments, forward, _ = calls(s, *case[1:], True, None, 3)
        writes = (None, None, s["dw"], s["db"])
        return [moments, forward, Call("backward", ops.normalize, (s["dy"],), writes, forward=forward)]

    found = both.run(make)
    for name in ("dw", "db"):
        close(*found[name], 100)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 2, 2), (1, 2)), ((4, 3, 2, 2), (0,)), ((4, 3), (0, 1))])
def test_other_axes_have_no_kernels(table, shape, axis):
    kept = (3, *(1 if a in axis else extent for a, extent in enumerate(shape)))
    x, m = Slot("x", shape, np.dtype("f4")), Slot("m", kept, np.dtype("f4"))
    moments = Call("forward", ops.moments, (x,), (m,), {"axis": axis, "scaled": True})
    assert not table.accepts(moments)
