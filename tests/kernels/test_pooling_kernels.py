"""The kernels of pooling and of shapes, and the compiled ones of ReLU on images, compared with their ops."""

import numpy as np
import pytest
from test_kernels import DTYPES, LIB, Both, close, numbers

from xnn import ops
from xnn.backends.kernels.calls import Call

pytest.importorskip("numba")

POOLS = [
    ((3, 2, 6, 8), {"kernel_size": 2}),
    ((2, 3, 7, 9), {"kernel_size": 2}),
    ((40, 1, 2, 34), {"kernel_size": 2}),
    ((1, 1, 1, 1), {"kernel_size": 1}),
    ((2, 2, 7, 7), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 2, 6, 5), {"kernel_size": (3, 2), "stride": (1, 2)}),
    ((5, 1, 9, 9), {"kernel_size": 2, "stride": 4}),
]
DILATED = [((2, 2, 9, 8), {"kernel_size": 3, "dilation": (1, 2), "padding": 1, "stride": 2})]


@pytest.fixture
def both():
    return Both(LIB.kernels("compiled"))


def is_disjoint(options):
    """Whether NumPy has a kernel: for windows side by side, without padding and dilation."""
    kernel, stride = options["kernel_size"], options.get("stride") or options["kernel_size"]
    return isinstance(kernel, int) and stride >= kernel and not {"padding", "dilation"} & options.keys()


@pytest.fixture(params=["numpy", "compiled"])
def either(request):
    return Both(LIB.kernels(request.param))


def pass_through(both, op, shape, options, x, dtype):
    """Run an op forward and backward by kernel and by op; return both arrays of each slot."""
    y = op(np.zeros(shape, dtype), **options).shape
    both.slot("x", x)
    both.slot("dy", numbers(y, dtype, 2))
    both.empty("y", y, dtype)
    both.empty("dx", shape, dtype)

    def make(s):
        forward = Call("forward", op, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    return both.run(make)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("op", "case"),
    [*((ops.max_pool2d, case) for case in POOLS + DILATED), *((ops.avg_pool2d, case) for case in POOLS)],
    ids=str,
)
def test_pooling(either, op, case, special, dtype):
    both = either
    if both.table.name == "numpy" and not is_disjoint(case[1]):
        pytest.skip("the op runs it")
    x = np.round(numbers(case[0], dtype, 1, special) * 2)  # many equal numbers
    found = pass_through(both, op, *case, x, dtype)
    close(*found["y"], 8, special)
    close(*found["dx"], 8, special)
    if op is ops.max_pool2d:
        np.testing.assert_array_equal(*found["y"])
        np.testing.assert_array_equal(found["dx"][0] != 0, found["dx"][1] != 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_full_of_nan_and_infinity(either, dtype):
    """The first NaN of a window gets the gradient, or else the first infinity."""
    x = np.array([[np.nan, np.nan, -np.inf, -np.inf], [1, 2, -np.inf, -np.inf]], dtype).reshape(1, 1, 2, 4)
    x = np.concatenate([x, x[..., ::-1, :], x[..., ::-1], np.full_like(x, np.nan)])
    found = pass_through(either, ops.max_pool2d, x.shape, {"kernel_size": 2}, x, dtype)
    for name in ("y", "dx"):
        np.testing.assert_array_equal(*found[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (19, 3, 5, 7)])
def test_relu_of_images(both, shape, special, dtype):
    found = pass_through(both, ops.relu, shape, {}, numbers(shape, dtype, 1, special), dtype)
    for name in ("y", "dx"):
        np.testing.assert_array_equal(*found[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "options"), [(ops.flatten, {}), (ops.reshape, {"shape": (2, -1, 3)}), (ops.identity, {})]
)
def test_shapes(either, op, options, dtype):
    found = pass_through(either, op, (2, 3, 4), options, numbers((2, 3, 4), dtype, 1), dtype)
    for name in ("y", "dx"):
        np.testing.assert_array_equal(*found[name])
