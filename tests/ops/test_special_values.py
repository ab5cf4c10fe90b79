"""Ops at infinities, NaN, zeros, huge and tiny numbers: values, gradients, no warnings where the result is right."""

import itertools
import math
import warnings

import numpy as np
import pytest

import xnn
from xnn import ops
from xnn.cli.check import draw
from xnn.ops.apply import backward_of, forward_of
from xnn.ops.cases import CASES

INF, NAN = math.inf, math.nan
MODES = [("fast", "float32"), ("fast", "float64"), ("exact", "float32")]
modes = pytest.mark.parametrize(("numerics", "dtype"), MODES)


def run(lib, op, inputs, options, numerics, grad=None):
    """The op's output and the gradients of its inputs, on the host."""
    with xnn.numerics(numerics):
        device = [lib.to_device(x) if isinstance(x, np.ndarray) else x for x in inputs]
        y, saved = forward_of(op, lib.math, device, options)
        y = lib.to_host(y)
        grad = np.ones(y.shape, y.dtype) if grad is None else grad
        gradients = backward_of(op, lib.math, lib.to_device(grad), saved)
    return y, [None if g is None else lib.to_host(g) for g in gradients]


# Functions of one number.


def exp(x):
    return INF if x > 709.0 else math.exp(x)


def sigmoid(x):
    return 1.0 / (1.0 + exp(-x)) if -x < 709.0 else 0.0


def normal(x):
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def density(x):
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi) if abs(x) < 50.0 else 0.0


def bend(x):
    return math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)


def gelu_tanh_slope(x):
    if abs(x) > 50.0:
        return float(x > 0.0)
    share, rest = sigmoid(2.0 * bend(x)), sigmoid(-2.0 * bend(x))
    return share + 2.0 * x * share * rest * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * x * x)


def softplus(x, beta=1.0):
    return max(x, 0.0) + math.log1p(math.exp(-min(beta * abs(x), 700.0))) / beta


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772

#: The op and its options; the function and its slope at finite numbers; its values at -inf and inf; its slopes there.
FUNCTIONS = {
    "exp": (ops.exp, {}, exp, exp, (0.0, INF), (0.0, INF)),
    "expm1": (ops.expm1, {}, lambda x: INF if x > 709.0 else math.expm1(x), exp, (-1.0, INF), (0.0, INF)),
    "log": (ops.log, {}, lambda x: math.log(x) if x > 0.0 else (-INF if x == 0.0 else NAN),
            lambda x: 1.0 / x if x else INF, (NAN, INF), (0.0, 0.0)),
    "log1p": (ops.log1p, {}, lambda x: math.log1p(x) if x > -1.0 else (-INF if x == -1.0 else NAN),
              lambda x: 1.0 / (1.0 + x) if x != -1.0 else INF, (NAN, INF), (0.0, 0.0)),
    "sqrt": (ops.sqrt, {}, lambda x: math.sqrt(x) if x >= 0.0 else NAN,
             lambda x: (0.5 / math.sqrt(x) if x else INF) if x >= 0.0 else NAN, (NAN, INF), (NAN, 0.0)),
    "erf": (ops.erf, {}, math.erf, lambda x: math.sqrt(8.0) * density(x * math.sqrt(2.0)), (-1.0, 1.0), (0.0, 0.0)),
    "abs": (ops.abs, {}, abs, lambda x: math.copysign(1.0, x) if x else 0.0, (INF, INF), (-1.0, 1.0)),
    "clip": (ops.clip, {"min": -2.0, "max": 20.0}, lambda x: min(max(x, -2.0), 20.0),
             lambda x: float(-2.0 <= x <= 20.0), (-2.0, 20.0), (0.0, 0.0)),
    "relu": (ops.relu, {}, lambda x: max(x, 0.0), lambda x: float(x > 0.0), (0.0, INF), (0.0, 1.0)),
    "leaky_relu": (ops.leaky_relu, {"negative_slope": 0.25}, lambda x: x if x > 0.0 else 0.25 * x,
                   lambda x: 1.0 if x > 0.0 else 0.25, (-INF, INF), (0.25, 1.0)),
    "elu": (ops.elu, {"alpha": 1.5}, lambda x: x if x > 0.0 else 1.5 * math.expm1(x),
            lambda x: 1.0 if x > 0.0 else 1.5 * math.exp(x), (-1.5, INF), (0.0, 1.0)),
    "selu": (ops.selu, {}, lambda x: SCALE * x if x > 0.0 else SCALE * ALPHA * math.expm1(x),
             lambda x: SCALE if x > 0.0 else SCALE * ALPHA * math.exp(x), (-SCALE * ALPHA, INF), (0.0, SCALE)),
    "gelu": (ops.gelu, {}, lambda x: x * normal(x), lambda x: normal(x) + x * density(x), (0.0, INF), (0.0, 1.0)),
    "gelu tanh": (ops.gelu, {"approximate": "tanh"}, lambda x: x * sigmoid(2.0 * bend(x)), gelu_tanh_slope,
                  (0.0, INF), (0.0, 1.0)),
    "sigmoid": (ops.sigmoid, {}, sigmoid, lambda x: sigmoid(x) * sigmoid(-x), (0.0, 1.0), (0.0, 0.0)),
    "silu": (ops.silu, {}, lambda x: x * sigmoid(x),
             lambda x: sigmoid(x) + (x * sigmoid(x) * sigmoid(-x) if abs(x) < 700.0 else 0.0),
             (0.0, INF), (0.0, 1.0)),
    "softplus": (ops.softplus, {}, softplus, sigmoid, (0.0, INF), (0.0, 1.0)),
    "softplus of beta 3": (ops.softplus, {"beta": 3.0}, lambda x: softplus(x, 3.0), lambda x: sigmoid(3.0 * x),
                           (0.0, INF), (0.0, 1.0)),
    "tanh": (ops.tanh, {}, math.tanh, lambda x: 1.0 / math.cosh(x) ** 2 if abs(x) < 300.0 else 0.0,
             (-1.0, 1.0), (0.0, 0.0)),
    "square": (ops.pow, 2.0, lambda x: x * x, lambda x: 2.0 * x, (INF, INF), (-INF, INF)),
    "inverse": (ops.pow, -1.0, lambda x: 1.0 / x if x else INF, lambda x: -1.0 / (x * x) if x * x else -INF,
                (0.0, 0.0), (0.0, 0.0)),
    "one": (ops.pow, 0.0, lambda x: 1.0, lambda x: 0.0, (1.0, 1.0), (0.0, 0.0)),
}  # fmt: skip

SIZES = [3e38, 2e19, 1e13, 1e4, 100.0, 14.0, 8.0, 5.0, 2.0, 1.0, 0.3, 1e-5, 1e-20, 2.0**-125]
POINTS = [0.0, *SIZES, *(-x for x in SIZES)]


def near(got, right, numerics, dtype):
    """Compare with right values in float64. What float32 cannot hold is infinite or at most the smallest number."""
    with np.errstate(over="ignore", under="ignore"):
        right = np.asarray(right).astype(dtype)
    # Relative errors of exponentials of large numbers, and of 1 - y near y = 1, are some hundred roundings.
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(got, right, rtol=200 * eps, atol=3e-38)


@pytest.mark.sampled(8)
@modes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes(lib, name, numerics, dtype):
    op, options, value, slope, ends, end_slopes = FUNCTIONS[name]
    inputs, options = ((options,), {}) if op is ops.pow else ((), options)
    points = np.array(POINTS, dtype)
    rights = [(value(x), slope(x)) for x in points.astype(float).tolist()]
    rights += zip(ends, end_slopes, strict=True)
    for x, (y, s) in zip([*points, -INF, INF], rights, strict=True):
        with warnings.catch_warnings():
            # NumPy may warn where the function leaves the range of numbers: at a pole, beyond the largest number.
            fits = abs(y) < 3.4e38 and abs(s) < 3.4e38
            warnings.simplefilter("error" if fits or (math.isinf(x) and not math.isnan(y)) else "ignore")
            got, (gradient, *_) = run(lib, op, (np.array([x], dtype), *inputs), options, numerics)
        assert got.dtype == gradient.dtype == dtype
        if name in ("sigmoid", "tanh") and abs(x) > 2.0:  # y (1 - y) and 1 - y^2 are small differences
            near(got[0], y, numerics, dtype)
            assert abs(gradient[0] - s) <= 2 * np.finfo(dtype).eps
            continue
        near(got[0], y, numerics, dtype)
        near(gradient[0], s, numerics, dtype)


@pytest.mark.sampled(2)
@modes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_gives_nan_and_a_gradient(lib, name, numerics, dtype):
    op, options = FUNCTIONS[name][:2]
    inputs, options = ((options,), {}) if op is ops.pow else ((), options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, (gradient, *_) = run(lib, op, (np.array([NAN, 1.0], dtype), *inputs), options, numerics)
    if name == "one":
        assert y.tolist() == [1.0, 1.0]  # as IEEE 754 says
        return
    assert np.isnan(y).tolist() == [True, False]
    assert gradient[0] != 0.0


# The tails, to relative accuracy.


@modes
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelus_tail_is_accurate(lib, approximate, numerics, dtype):
    _, _, value, slope, _, _ = FUNCTIONS["gelu" if approximate == "none" else "gelu tanh"]
    low = -10.5 if approximate == "none" else -9.0
    x = np.linspace(low, 3.0, 400).astype(dtype)
    x = x[np.abs([slope(float(v)) for v in x]) > 1e-36]
    y, (gradient,) = run(lib, ops.gelu, (x,), {"approximate": approximate}, numerics)
    # e^(-x^2 / 2) of a rounded x^2 / 2 up to 55; exact numerics store multiples of 2^-125.
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype] if numerics == "fast" else 1e-7
    np.testing.assert_allclose(y, [value(float(v)) for v in x], rtol=tolerance)
    flat = 2 * np.finfo(dtype).eps  # near x = -0.75 the slope is 0
    np.testing.assert_allclose(
        gradient, [slope(float(v)) for v in x], rtol=tolerance, atol=flat * (x > -1.5).any()
    )


# Powers.


@modes
def test_gradients_of_powers_at_the_ends(lib, numerics, dtype):
    """The base, the exponent, and the right value and gradients of both."""
    for a, p, y, da, dp in (
        (2.0, -INF, 0.0, 0.0, 0.0),
        (2.0, INF, INF, INF, INF),
        (0.5, INF, 0.0, 0.0, 0.0),
        (0.5, -INF, INF, -INF, -INF),
        (1.0, INF, 1.0, INF, 0.0),
        (0.0, -1.0, INF, -INF, -INF),
        (0.0, -0.5, INF, -INF, -INF),
        (0.0, 0.0, 1.0, 0.0, 0.0),
        (0.0, 0.5, 0.0, INF, 0.0),
        (0.0, 1.0, 0.0, 1.0, 0.0),
        (0.0, 2.0, 0.0, 0.0, 0.0),
        (0.0, INF, 0.0, 0.0, 0.0),
        (0.0, -INF, INF, -INF, -INF),
        (INF, 0.5, INF, 0.0, INF),
        (INF, 2.0, INF, INF, INF),
        (INF, 0.0, 1.0, 0.0, INF),
        (INF, -1.0, 0.0, 0.0, 0.0),
        (INF, -INF, 0.0, 0.0, 0.0),
        (-INF, 2.0, INF, -INF, NAN),
        (-INF, -3.0, 0.0, 0.0, NAN),
        (-2.0, 3.0, -8.0, 12.0, NAN),
        (NAN, 0.0, 1.0, 0.0, NAN),
        (0.0, NAN, NAN, NAN, NAN),
        (1.0, NAN, 1.0, NAN, NAN),
    ):
        inputs = np.array([a], dtype), np.array([p], dtype)
        with np.errstate(all="ignore"):
            for base, exponent in itertools.product((inputs[0], a), (inputs[1], p)):
                if isinstance(base, float) and isinstance(exponent, float):
                    continue
                got, gradients = run(lib, ops.pow, (base, exponent), {}, numerics)
                np.testing.assert_allclose(got, [y])
                for given, gradient, right in zip((base, exponent), gradients, (da, dp), strict=True):
                    if isinstance(given, float):
                        assert gradient is None
                    elif math.isnan(right) and a == 1.0:
                        continue  # the slope of 1^NaN may be 0 or NaN
                    else:
                        np.testing.assert_allclose(gradient, [right], err_msg=f"{a}^{p}")


# Selections.


@modes
@pytest.mark.parametrize("op", [ops.maximum, ops.minimum], ids=lambda op: op.name)
def test_both_of_a_pair_get_the_gradient_where_one_is_nan(lib, op, numerics, dtype):
    a, b = np.array([NAN, 1.0, NAN, 2.0, INF], dtype), np.array([1.0, NAN, NAN, 2.0, INF], dtype)
    y, (da, db) = run(lib, op, (a, b), {}, numerics)
    assert np.isnan(y).tolist() == [True] * 3 + [False] * 2
    assert da.tolist() == db.tolist() == [1.0, 1.0, 1.0, 0.5, 0.5]


@modes
@pytest.mark.parametrize("bounds", [{"min": -1.0}, {"max": 1.0}, {"min": -1.0, "max": 1.0}])
def test_clip_lets_nan_through(lib, bounds, numerics, dtype):
    y, (dx,) = run(lib, ops.clip, (np.array([NAN, 0.0], dtype),), bounds, numerics)
    assert np.isnan(y[0])
    assert dx.tolist() == [1.0, 1.0]


@modes
@pytest.mark.parametrize("op", [ops.max, ops.min], ids=lambda op: op.name)
def test_the_nans_share_the_gradient_of_an_extreme(lib, op, numerics, dtype):
    x = np.array([[NAN, 1.0, -INF], [NAN, INF, NAN], [2.0, 2.0, 2.0]], dtype)
    for options in ({"axis": 1}, {"axis": np.int64(-1), "keepdims": True}):
        y, (dx,) = run(lib, op, (x,), options, numerics)
        assert np.isnan(y.ravel()).tolist() == [True, True, False]
        np.testing.assert_allclose(dx, [[1, 0, 0], [0.5, 0, 0.5], [1 / 3] * 3], rtol=1e-6)


@modes
def test_a_window_gives_its_gradient_to_its_first_nan(lib, numerics, dtype):
    x = np.array([[[[1.0, NAN, INF, NAN], [NAN, 2.0, -INF, NAN]]]], dtype)
    y, (dx,) = run(lib, ops.max_pool2d, (x,), {"kernel_size": 2}, numerics)
    assert np.isnan(y).all()
    assert dx.tolist() == [[[[0, 1, 0, 1], [0, 0, 0, 0]]]]


@modes
def test_a_displacement_of_nan_has_a_gradient_of_nan(lib, numerics, dtype):
    x, field = np.arange(9.0).reshape(1, 1, 3, 3).astype(dtype), np.zeros((1, 2, 3, 3), dtype)
    field[0, 0, 1, 1] = NAN
    y, (_, moved) = run(lib, ops.warp, (x, field), {}, numerics)
    assert np.isnan(y).sum() == np.isnan(y[0, 0, 1, 1])
    assert np.isnan(moved[0, :, 1, 1]).any()


# All ops.


def dependent(case, inputs, number, place, seed):
    """Which outputs depend on one element of one input, and whether the gradient reaches it: in float64."""
    moved = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
    moved[number][place] *= 1.0 + 2.0**-10
    found = []
    for values in (inputs, moved):
        wide = [x.astype("f8") if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in values]
        y, saved = case.op.forward(np, *wide, **case.options)
        grad = np.asarray(np.random.default_rng(seed).uniform(0.5, 1.5, np.shape(y)))
        found.append((np.asarray(y), case.op.backward(np, grad, saved), grad))
    (y, gradients, grad), (other, _, _) = found
    gradient = gradients[number]
    return y != other, gradient is not None and gradient[place] != 0.0, grad


@pytest.mark.sampled(8)
@modes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nan_goes_on(lib, case, numerics, dtype):
    """A NaN makes NaN of every output that depends on it, and its own gradient does not become 0 because of it."""
    inputs = draw(case, dtype)
    rng = np.random.default_rng(0)
    for number, x in enumerate(inputs):
        if not (isinstance(x, np.ndarray) and x.dtype.kind == "f"):
            continue
        for index in rng.choice(x.size, min(3, x.size), replace=False):
            place = np.unravel_index(index, x.shape)
            outputs, reached, grad = dependent(case, inputs, number, place, seed=1)
            spoilt = [v.copy() if isinstance(v, np.ndarray) else v for v in inputs]
            spoilt[number][place] = NAN
            with np.errstate(all="ignore"):
                y, gradients = run(lib, case.op, spoilt, case.options, numerics, grad.astype(dtype))
            assert np.isnan(y[outputs]).all()
            if reached:
                assert gradients[number][place] != 0.0


@modes
@pytest.mark.parametrize("exponent", [0.5, 1.5, 2.5, -0.5, 0.25])
def test_powers_by_a_number_are_those_by_an_array(lib, numerics, dtype, exponent):
    """NumPy takes a square root where the exponent is the number 1/2; IEEE's pow differs at -infinity and -0."""
    a = np.array([-INF, -0.0, 0.0, INF, 2.25, NAN], dtype)
    with np.errstate(all="ignore"):
        right = np.power(a, np.full_like(a, exponent))
        slopes = exponent * np.power(a, np.full_like(a, exponent - 1.0))
    with np.errstate(divide="ignore"):
        y, (da, _) = run(lib, ops.pow, (a, exponent), {}, numerics)
    np.testing.assert_allclose(y, right, rtol=1e-6)
    assert (np.signbit(y) == np.signbit(right))[:-1].all()
    np.testing.assert_allclose(da[2:], slopes[2:], rtol=1e-6)
    if numerics == "fast":
        np.testing.assert_allclose(da[0], slopes[0])
