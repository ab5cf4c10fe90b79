"""NumPy's kernels of GELU and SiLU compared with their ops."""

import numpy as np
import pytest
from test_kernels import LIB, Both, close, numbers
from test_pooling_kernels import pass_through

from xnn import ops
from xnn.backends.kernels import bell_kernels
from xnn.backends.kernels.calls import Call, Slot

KINDS = [
    (ops.gelu, {}, "float32"),
    (ops.gelu, {"approximate": "none"}, "float32"),
    (ops.silu, {}, "float32"),
    (ops.silu, {}, "float64"),
]


def kernel(op, options, x):
    """What the kernel and the op make of x, and of a random dy: both arrays of each slot."""
    with np.errstate(all="ignore"):
        return pass_through(Both(LIB.kernels("numpy")), op, x.shape, options, x, x.dtype)


@pytest.mark.parametrize("block", [4, 8192])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [(1,), (0, 3), (33, 17), (40, 3, 4, 2)], ids=str)
@pytest.mark.parametrize(("op", "options", "dtype"), KINDS, ids=str)
def test_as_the_op(op, options, dtype, shape, special, block, monkeypatch):
    monkeypatch.setattr(bell_kernels, "_BLOCK", block)
    found = kernel(op, options, 3 * numbers(shape, dtype, 1, special))
    close(*found["y"], 8, special)
    close(*found["dx"], 16, special)


@pytest.mark.parametrize(("op", "options", "dtype"), KINDS, ids=str)
def test_each_number_by_itself(op, options, dtype):
    """Small results are accurate, too, and large numbers stay finite."""
    edges = [0.0, 1e-30, 0.66, 5.7, 9.0, 13.0, 39.9, 40.1, 60.1, 103.9, 799.0, 801.0, 1e30, np.inf]
    x = np.array([*edges, *np.negative(edges), *np.linspace(-14, 14, 100001), np.nan], dtype)
    found, wide = kernel(op, options, x), x.astype("float64")
    with np.errstate(all="ignore"):
        y, saved = op.forward(np, wide)
        (dx,) = op.backward(np, found["dy"][0].astype("float64"), saved)
    precise, tiny = (2e-5, 1e-37) if dtype == "float32" else (1e-12, 1e-300)
    np.testing.assert_allclose(found["y"][0], y, rtol=precise, atol=4 * tiny)
    crossing = (
        abs(wide + 1.0) < 0.5
    )  # the derivative is 0 at -0.75 or -1.28, and only its absolute error small
    np.testing.assert_allclose(found["dx"][0][~crossing], dx[~crossing], rtol=precise, atol=4 * tiny)
    np.testing.assert_allclose(found["dx"][0], dx, rtol=precise, atol=precise / 50)


def test_the_derivative_is_that_of_what_was_computed():
    """The slopes add up to the rise of y, also where the polynomial of GELU stands for the op's formula."""
    x = np.linspace(-12.0, 12.0, 240001).astype("float32")
    for op in (ops.gelu, ops.silu):
        slots = [Slot(name, x.shape, x.dtype, array) for name, array in (("x", x), ("y", np.empty_like(x)))]
        call = Call("forward", op, (slots[0],), (slots[1],))
        LIB.kernels("numpy").bind(call)()
        slope, steps = call.saved.astype("float64"), np.diff(x.astype("float64"))
        rise = np.cumsum((slope[1:] + slope[:-1]) / 2 * steps)
        np.testing.assert_allclose(rise, slots[1].array[1:] - slots[1].array[0], atol=2e-6)


def test_a_view_with_gaps_is_computed_row_by_row():
    x = np.asfortranarray(numbers((20, 30), "float32", 1))
    slots = [Slot(name, x.shape, x.dtype, array) for name, array in (("x", x), ("y", np.empty_like(x)))]
    assert not slots[1].array.flags.c_contiguous
    LIB.kernels("numpy").bind(Call("forward", ops.gelu, (slots[0],), (slots[1],)))()
    close(slots[1].array, ops.gelu(x), 8, False)


@pytest.mark.parametrize(
    ("op", "options", "dtypes"),
    [
        (ops.gelu, {"approximate": "tanh"}, "ff"),
        (ops.gelu, {"approximate": "no"}, "ff"),
        (ops.gelu, {}, "dd"),
        (ops.silu, {"beta": 1.0}, "ff"),
        (ops.silu, {}, "fd"),
    ],
    ids=str,
)
def test_other_options_and_dtypes_have_no_kernel(op, options, dtypes):
    x, y = (Slot(name, (4, 3), np.dtype(code)) for name, code in zip("xy", dtypes, strict=True))
    assert not LIB.kernels("numpy").own(Call("forward", op, (x,), (y,), options))
