"""Exact elementary functions are accurate, and give the same bits for a value at any position on every backend."""

from __future__ import annotations

import ast
import functools
import math
import struct
import warnings
from collections.abc import Callable
from inspect import getsource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xnn
from xnn import ops
from xnn.backends.exact import functions as exact
from xnn.ops import special

NAN_BITS = struct.unpack("<q", struct.pack("<d", math.nan))[0]
NUMPY = SimpleNamespace(xp=np, bits=lambda x, dtype: x.view(dtype))
NAMES = ["exp", "expm1", "log", "log1p", "tanh", "erf", "erfc", "sin", "cos"]
FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(exact, name) for name in NAMES} | {
    f"power {p}": functools.partial(lambda lib, x, p: exact.power(lib, x, p), p=p)
    for p in (0, 1, 2, -1, 0.5, 3, -3, 0.75, -0.5, 1 / 3, math.inf, math.nan)
}


def f64(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def patterns() -> np.ndarray:
    """Random bits, random sizes and special values as float64. NaN are quiet, since NumPy warns of others."""
    rng = np.random.default_rng(3)
    random = rng.integers(-(2**63), 2**63, 2000).view(np.float64)
    around = spread(rng, 2000)
    ends = f64(0.0, 5e-324, 2.0**-1022, 2.0**-149, 0.46875, 1.0, 2.0**25, 32.0, 350.0, 709.8, 1e308, math.inf)
    ends = np.concatenate([ends, np.nextafter(ends, 0.0), np.nextafter(ends, 9.0), [math.nan]])
    whole = np.arange(-9.0, 10.0)
    every = np.concatenate([random, around, ends, -ends, whole, whole + 0.5])
    return np.where(np.isnan(every), np.copysign(math.nan, every), every)


def spread(rng: np.random.Generator, n: int, low: float = -149, high: float = 128) -> np.ndarray:
    """float32 numbers of both signs, whose exponents are distributed evenly."""
    sizes = np.exp2(rng.uniform(low, high, n)).astype(np.float32)
    return (sizes * rng.choice([-1, 1], n)).astype(np.float64)


def bits(x: Any) -> list[int]:
    return np.atleast_1d(x).view(np.int64).ravel().tolist()


# Against mpmath.


def near(*points: float) -> np.ndarray:
    """float32 numbers on both sides of the given points."""
    points32 = np.array(points, np.float32)[:, None]
    steps = np.array([*range(-6, 7), -100, 100, -5000, 5000])
    return (points32 + steps * np.spacing(points32)).astype(np.float32).astype(np.float64).ravel()


def arguments(name: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    ln2, pi = math.log(2), math.pi
    n = np.arange(-126, 128)
    found = {
        "exp": [rng.uniform(-88, 88.7, 2000), spread(rng, 800, high=6), near(*((n + 0.5) * ln2), -350, 350)],
        "expm1": [rng.uniform(-88, 88.7, 900), spread(rng, 2000, high=6), near(*((n + 0.5) * ln2))],
        "log": [abs(spread(rng, 2500)), near(1.0, *(2.0**n * 0.5**0.5)), rng.uniform(0.5, 2, 1000)],
        "log1p": [abs(spread(rng, 1500)), -abs(spread(rng, 1500, high=0)), rng.uniform(-1, 2, 1000)],
        "tanh": [spread(rng, 2500, high=5), rng.uniform(-10, 10, 1000), near(ln2 / 4, -ln2 / 4, 9.01, 32)],
        "erf": [spread(rng, 1500, high=3), rng.uniform(-5, 5, 1500), near(0.46875, -0.46875, 3.9, 4, 6)],
        "erfc": [
            spread(rng, 1500, high=3),
            rng.uniform(-5, 9.2, 1500),
            near(0.46875, -0.46875, 3.9, 4, 6, 9),
        ],
        "sin": [spread(rng, 2000, high=25), near(*(n * pi / 4)), np.rint(rng.uniform(0, 2e7, 900)) * pi / 2],
    }
    x = np.concatenate(found["sin" if name == "cos" else name]).astype(np.float32).astype(np.float64)
    inside = {"log": x > 0.0, "log1p": x > -1.0, "exp": abs(x) <= 350.0}
    return x[inside.get(name, abs(x) <= 2.0**25)]


#: log2 of the relative errors, as in the docstrings.
ERRORS = {"exp": -52.2, "expm1": -51.6, "log": -51.2, "log1p": -51.0, "tanh": -51.0, "erf": -50.5}
ERRORS |= {"erfc": -46.5, "sin": -51.4, "cos": -51.4, "power": -45.3}


def check(name: str, x: list[Any], y: np.ndarray, truths: list[Any]) -> None:
    """Check the relative error of float64 results y, and that of y rounded to float32 in units in the last place."""
    mpmath = pytest.importorskip("mpmath")
    relative, units, seen = (0.0, math.nan), (0.0, math.nan), 0
    for v, result, truth in zip(x, y.tolist(), truths, strict=True):
        if truth and abs(truth) < 2.0**1000:
            relative = max(relative, (float(abs(result / truth - 1)), v))
            seen += 1
        if 2.0**-120 <= abs(truth) < 2.0**127.999:
            unit = mpmath.ldexp(1, mpmath.frexp(truth)[1] - 24)
            units = max(units, (float(abs(float(np.float32(result)) - truth) / unit), v))
    assert seen > 0.6 * len(x), f"{name}: only {seen} of {len(x)} results are in range"
    worst = f"{name}: at most {units[0]:.7f} units at {units[1]!r}, 2^{math.log2(relative[0]):.2f} at {relative[1]!r}"
    assert units[0] <= 0.5 + 1e-3, worst
    assert relative[0] <= 2.0 ** ERRORS[name], worst


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", NAMES)
def test_a_function_is_mpmaths(name):
    mpmath = pytest.importorskip("mpmath")
    x = arguments(name)
    with mpmath.workdps(40):
        truths = [getattr(mpmath, name)(mpmath.mpf(v)) for v in x.tolist()]
        check(name, x.tolist(), FUNCTIONS[name](NUMPY, x), truths)


@pytest.mark.parametrize("wave", ["sin", "cos"])
def test_waves_of_float64_arguments_are_absolutely_near(wave):
    mpmath = pytest.importorskip("mpmath")
    x = np.random.default_rng(1).integers(0, 2**24, 1500) * (math.pi / 2)  # at the zeros and the tops
    with mpmath.workdps(40):
        truths = [getattr(mpmath, wave)(mpmath.mpf(v)) for v in x.tolist()]
        errors = [abs(a - b) for a, b in zip(FUNCTIONS[wave](NUMPY, x).tolist(), truths, strict=True)]
        assert max(errors) <= 2.0**-52.2


def test_power_is_mpmaths():
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(2)
    a = np.concatenate([abs(spread(rng, 2000, -126)), spread(rng, 1500, -8, 8), near(1.0, 1.0, 0.999)])
    p = rng.uniform(-88, 88, a.shape) / np.maximum(abs(np.log(abs(a))), 1e-3)
    p = np.where(a < 0, rng.integers(-15, 16, a.shape), p).astype(np.float32).astype(np.float64)
    with mpmath.workdps(40):
        pairs = list(zip(a.tolist(), p.tolist(), strict=True))
        truths = [mpmath.power(mpmath.mpf(u), mpmath.mpf(v)) for u, v in pairs]
        check("power", pairs, exact.power(NUMPY, a, p), truths)


# Special values.

INF, NAN = math.inf, math.nan
ENDS = {  # at 0, inf, -inf
    "exp": (1.0, INF, 0.0), "expm1": (0.0, INF, -1.0), "log": (-INF, INF, NAN), "log1p": (0.0, INF, NAN),
    "tanh": (0.0, 1.0, -1.0), "erf": (0.0, 1.0, -1.0), "erfc": (1.0, 0.0, 2.0), "sin": (0.0, NAN, NAN),
    "cos": (1.0, NAN, NAN),
}  # fmt: skip
BETWEEN = {
    "exp": {-350.1: 0.0, 350.1: INF, -1e308: 0.0, 1e308: INF},
    "expm1": {-100.0: -1.0, -351.0: -1.0, 351.0: INF, 2.0**-60: 2.0**-60},
    "log": {1.0: 0.0, -1.0: NAN, 5e-324: -INF, -5e-324: -INF},
    "log1p": {-1.0: -INF, -1.5: NAN, 2.0**-60: 2.0**-60},
    "tanh": {20.0: 1.0, -20.0: -1.0, 1e308: 1.0, 2.0**-149: 2.0**-149},
    "erf": {6.0: 1.0, -6.5: -1.0, -1e308: -1.0},
    "erfc": {-6.5: 2.0, -1e308: 2.0, 28.0: 0.0, 1e308: 0.0, 2.0**-60: 1.0},
    "sin": {2.0**25 + 1: NAN, 2.0**-149: 2.0**-149},
    "cos": {-(2.0**25) - 1: NAN, 2.0**-149: 1.0},
}


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name):
    at_zero, *at_infinities = ENDS[name]
    x = f64(0.0, -0.0, INF, -INF, NAN, -NAN, *BETWEEN[name])
    y = FUNCTIONS[name](NUMPY, x)
    np.testing.assert_array_equal(y, [at_zero, at_zero, *at_infinities, NAN, NAN, *BETWEEN[name].values()])
    assert {bits(v)[0] for v in y[np.isnan(y)]} == {NAN_BITS}


def test_the_ends_of_exp_are_far_from_subnormal_products():
    least, most = exact.exp(NUMPY, f64(-350.0, 350.0))
    assert least * least > 2.0**-1022
    assert most * most < math.inf
    np.testing.assert_allclose([least, most], [math.exp(-350), math.exp(350)], rtol=1e-15)


BASES = f64(0.0, 0.5, 1.0, 2.0, 3.7, INF, -0.5, -1.0, -2.0, -3.7, NAN)
EXPONENTS = [
    0, 1, 2, -1, 0.5, 3, -2, -3, 4, 0.75, -0.5, 2.0**52 + 1, 2.0**53, -(2.0**60), 1e300, INF, -INF, NAN,
]  # fmt: skip


@pytest.mark.parametrize("p", EXPONENTS)
def test_power_keeps_numpys_rules(p):
    with np.errstate(all="ignore"):
        expected = np.power(BASES, f64(p))
    # BASES does not contain -inf: for an exponent of 0.5, NumPy takes the square root of arrays, which is NaN there.
    np.testing.assert_allclose(exact.power(NUMPY, BASES, p), expected, rtol=1e-13)


def test_power_of_minus_infinity():
    right = {0: 1.0, 1: -INF, 2: INF, 3: -INF, -1: 0.0, -2: 0.0, 0.5: INF, 0.75: INF, -0.5: 0.0, -3.25: 0.0}
    right |= {INF: INF, -INF: 0.0}
    for p, expected in right.items():
        assert float(exact.power(NUMPY, f64(-INF), p)[0]) == math.pow(-INF, p) == expected
        assert float(exact.power(NUMPY, -INF, f64(p))[0]) == expected
    assert np.isnan(exact.power(NUMPY, f64(-INF), NAN)).all()


def test_exact_powers_are_rounded_once():
    x = spread(np.random.default_rng(5), 2000, -126)
    size = abs(x)
    for p, expected in {0: x * 0 + 1, 1: x, 2: x * x, -1: 1 / x}.items():
        assert bits(exact.power(NUMPY, x, p)) == bits(expected)
    assert bits(exact.power(NUMPY, size, 0.5)) == bits(np.sqrt(size))
    assert exact.power(NUMPY, x, 1) is not x


def test_a_number_is_as_an_array_of_it():
    every = patterns()
    for p in EXPONENTS:
        assert bits(exact.power(NUMPY, every, p)) == bits(exact.power(NUMPY, every, np.full_like(every, p)))
    for a in (0.0, 1.0, 2, -2.0, 10, INF, NAN):
        assert bits(exact.power(NUMPY, a, every)) == bits(exact.power(NUMPY, np.full_like(every, a), every))


def test_power_broadcasts():
    a, p = f64(1.5, -2.0, 0.0), f64(2.0, 3.0)
    table = exact.power(NUMPY, a[:, None], p)
    assert table.shape == (3, 2)
    assert bits(table) == [bits(exact.power(NUMPY, f64(u), float(v)))[0] for u in a for v in p]


# The same bits.


@pytest.fixture(autouse=True)
def _overflow_of_a_square_is_nobodys_fault():
    # NumPy warns of an overflow in a * a, as in any product. Any other warning fails the test.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "overflow encountered in (scalar )?multiply")
        yield


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_backend_gives_numpys_bits(name, other):
    x = patterns()
    expected = FUNCTIONS[name](NUMPY, x)
    device = other.to_device(x)
    y = FUNCTIONS[name](other, device)
    assert type(y) is type(device)
    assert y.device == device.device
    assert y.dtype == other.xp.float64
    assert bits(other.to_host(y)) == bits(expected)
    assert {bits(v)[0] for v in expected[np.isnan(expected)]} <= {NAN_BITS}


def test_every_backend_gives_numpys_powers(other):
    a = patterns()
    p = np.random.default_rng(4).permutation(np.resize(np.array(EXPONENTS, dtype=np.float64), a.shape))
    expected = bits(exact.power(NUMPY, a, p))
    base, exponent = other.to_device(a), other.to_device(p)
    assert bits(other.to_host(exact.power(other, base, exponent))) == expected
    assert bits(other.to_host(exact.power(other, 1.7, exponent))) == bits(exact.power(NUMPY, 1.7, p))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_has_its_bits_anywhere(name):
    function, x = FUNCTIONS[name], patterns()
    before = x.copy()
    whole = function(NUMPY, x)
    order = np.random.default_rng(0).permutation(len(x))
    assert bits(function(NUMPY, x[order])) == bits(whole[order])
    assert bits(function(NUMPY, x[5:-8:3])) == bits(whole[5:-8:3])
    assert bits(function(NUMPY, x[:4000].reshape(4, 10, 100))) == bits(whole[:4000])
    for i in (*range(0, len(x), 211), *range(-80, 0)):
        alone = function(NUMPY, np.asarray(x[i]))
        assert np.shape(alone) == ()
        assert isinstance(alone, np.ndarray)
        assert bits(alone) == bits(whole[i])
    assert bits(before) == bits(x)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_shapes_are_kept(name, shape, lib):
    y = FUNCTIONS[name](lib, lib.to_device(np.full(shape, 0.7)))
    assert y.shape == shape
    assert str(y.dtype).endswith("float64")


# A loop over numbers, as a compiler would do it.


def reread(x: Any, source: str, target: str) -> Any:
    return struct.unpack(target, struct.pack(source, x))[0]


def horner(coefficients: tuple[float, ...], r: float) -> float:
    return functools.reduce(lambda y, c: y * r + c, coefficients)


def loop_exp(x: float) -> float:
    shifted = x * exact.INVERSE_LN2 + exact.ROUND
    n = shifted - exact.ROUND
    r = (x - n * exact.LN2_HIGH) - n * exact.LN2_LOW
    exponent = reread(shifted, "<d", "<q") - exact.ROUND_BITS + 1023
    return horner(exact.EXP_TAYLOR, r) * reread(exponent << 52, "<q", "<d")


def loop_log(x: float) -> float:
    moved = reread(x, "<d", "<q") + (exact.ONE_BITS - exact.SQRT_HALF_BITS)
    k = reread((moved >> 52) | exact.WHOLE_BITS, "<q", "<d") - (exact.WHOLE + 1023.0)
    m = reread((moved & exact.FRACTION_MASK) + exact.SQRT_HALF_BITS, "<q", "<d")
    s = (m - 1.0) / (m + 1.0)
    y = (s + s) * horner(exact.LOG_SERIES, s * s)
    return k * exact.LN2_HIGH + (y + k * exact.LN2_LOW)


def test_a_loop_with_the_same_constants_gives_the_same_bits():
    x = spread(np.random.default_rng(6), 1000, high=8)
    assert bits(exact.exp(NUMPY, x)) == bits([loop_exp(v) for v in x.tolist()])
    x = abs(spread(np.random.default_rng(6), 1000))
    assert bits(exact.log(NUMPY, x)) == bits([loop_log(v) for v in x.tolist()])


def test_the_constants_are_what_they_are_called():
    bits_of = {1.0: exact.ONE_BITS, exact.ROUND: exact.ROUND_BITS, exact.WHOLE: exact.WHOLE_BITS}
    assert {number: reread(number, "<d", "<q") for number in bits_of} == bits_of
    assert reread(exact.SQRT_HALF_BITS, "<q", "<d") == math.sqrt(0.5)
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        assert abs(mpmath.mpf(exact.LN2_HIGH) + exact.LN2_LOW - mpmath.log(2)) < 2.0**-98
        assert abs(mpmath.fsum(exact._HALF_PI) - mpmath.pi / 2) < 2.0**-110
    high, middle, _ = exact._HALF_PI
    assert all(part.is_integer() for part in (exact.LN2_HIGH * 2.0**42, high * 2.0**27, middle * 2.0**58))


# The source.

ALLOWED = {
    "xp": {"abs", "where", "sqrt", "full_like", "ones_like", "minimum", "maximum"},
    "lib": {"xp", "bits"},
    "math": {"inf", "nan", "factorial"},
    "_EXACT": {"items"},
}


#: erf and erfc are defined in xnn.ops.special. The test below reads its source, too.
TRUSTED = ("__future__", "typing", "xnn.ops.special")


def faults(code: str) -> list[str]:
    """Operations in the code that may give other bits elsewhere, or are not in the Array API."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).removeprefix("lib.")
            if node.attr not in ALLOWED.get(owner, ()):
                found.append(ast.unparse(node))
        if isinstance(node, ast.BinOp):
            numbers = [isinstance(side, (ast.Constant, ast.UnaryOp)) for side in (node.left, node.right)]
            # A GPU library may multiply by a number's inverse instead of dividing.
            wrong = {ast.Pow: not all(numbers), ast.Div: numbers[1], ast.MatMult: True, ast.FloorDiv: True}
            if wrong.get(type(node.op), False):
                found.append(ast.unparse(node))
        if isinstance(node, (ast.AugAssign, ast.Delete)):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name != "math"]
        if isinstance(node, ast.ImportFrom) and node.module not in TRUSTED:
            found.append(ast.unparse(node))
    return found


def test_only_correctly_rounded_operations_are_used():
    sources = (
        Path(exact.__file__).read_text(encoding="utf-8"),
        *map(
            getsource,
            (special.erf_by, special.erfc_by, special._scaled_erfc, special.rational, special.polynomial),
        ),
    )
    assert [fault for source in sources for fault in faults(source)] == []


WRONG = (
    "xp.exp(x); lib.xp.log(x); xp.round(x); xp.take(x, i); math.exp(x); x ** 2; x @ y; x // 2; x / 3.0; x += 1; "
    "x.sum(); x.view('int64'); lib.numpy; import numpy; from math import exp"
)


@pytest.mark.parametrize("line", WRONG.split("; "))
def test_a_wrong_operation_is_seen(line):
    assert faults(line)


@pytest.mark.parametrize(("op", "function"), [(ops.sin, np.sin), (ops.cos, np.cos)])
def test_sine_and_cosine_beyond_their_range_are_nan_as_documented(op, function):
    """Their gradients, too; up to the limit they are right."""
    inside = np.array([2.0**25, -(2.0**25), 3.3e7], np.float32)
    outside = np.nextafter(np.float32([2.0**25, -(2.0**25), 1e30]), np.float32([9e30, -9e30, 9e30]))
    with xnn.numerics("exact"):
        np.testing.assert_allclose(op(inside), function(inside.astype(np.float64)), rtol=1e-6)
        assert np.isnan(op(outside)).all()
        gradient = xnn.grad(lambda x: ops.sum(op(x)))
        assert np.isfinite(gradient(inside)).all()
        assert np.isnan(gradient(outside)).all()
    pages = Path(__file__).parents[2] / "docs" / "numerics.md"
    assert "beyond 2^25 = 33,554,432 in magnitude are NaN" in pages.read_text(encoding="utf-8")
    assert "NaN for both if |x| > 2^25" in type(op).__doc__
