"""Slices have the right steps and bits, and products and sums of them are never rounded."""

from __future__ import annotations

import doctest
import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from exact_tools import HOSTILE, NOT_FINITE, any_bits, bits_of, ceil_log2, f4, f8, is_stored
from hypothesis import given, settings
from hypothesis import strategies as st

from xnn.backends import get_backend
from xnn.backends.exact.ops import DenseBits
from xnn.backends.exact.slices import (
    LONGEST,
    budget,
    exponent,
    log2_ceil,
    product_bits,
    slice_one,
    slice_two,
    splitter,
    sum_bits,
    to32,
)  # fmt: skip
from xnn.errors import NumericsError

NUMPY = get_backend("numpy")
RNG = np.random.default_rng(11)
TERMS = (1, 2, 3, 10, 32, 33, 100, 784, 1000, 1024, 4096, 65536, 2**20, 2**20 + 1, LONGEST)


def step_of(exponents: np.ndarray, bits: int) -> np.ndarray:
    """Return t of the step 2^t."""
    return np.maximum(exponents.astype(int) - 1022 - bits, -500)


def check_slices(x: np.ndarray, bits: int) -> None:
    """Check the slices of each row: multiples of the step, at most 2^bits of them, and an exact, small rest."""
    e = exponent(NUMPY, x, 1)
    high, low = slice_two(NUMPY, x, e, bits)
    assert np.array_equal(high, slice_one(NUMPY, x, e, bits))
    for part, t in ((high, step_of(e, bits)), (low, step_of(e, 2 * bits + 1))):
        count = np.ldexp(part, -t)
        assert np.array_equal(count, np.rint(count))
        assert np.abs(count).max() <= 2.0**bits
    last = step_of(e, 2 * bits + 1)
    for row in range(len(x)):
        for v, h, rest in zip(x[row].tolist(), high[row].tolist(), low[row].tolist(), strict=True):
            assert Fraction(v) - Fraction(h) == Fraction(v - h)
            assert abs(Fraction(v) - Fraction(h) - Fraction(rest)) <= Fraction(2) ** (int(last[row, 0]) - 1)


finite = st.floats(-(2.0**877), 2.0**877) | st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200)
@given(st.lists(st.lists(finite, min_size=5, max_size=5), min_size=1, max_size=3), st.integers(1, 50))
def test_slices_of_any_numbers(rows, bits):
    check_slices(np.array(rows, f8), bits)


@pytest.mark.parametrize("bits", [1, 8, 14, 16, 24, 27, 36, 50])
def test_slices_of_hostile_bit_patterns(bits):
    x = any_bits(RNG, (6, 100))
    x = np.where(np.isfinite(x), x, f4(1.5)).astype(f8)
    x[1] = RNG.choice(HOSTILE, 100)
    x[2] = RNG.choice([2.0**-1074, -0.0, 2.0**-1022, 2.0**-501, -(2.0**-500), 2.0**-499, 3e-300], 100)
    # The largest number below a power of two: it rounds up to 2^bits steps.
    x[3] = (2.0 - 2.0**-52) * RNG.choice([1.0, -1.0], 100)
    x[4] = 2.0 ** RNG.integers(-120, 120, 100)
    x[5] = RNG.choice([1e264, -(2.0**877.9), 1e-300, 0.0, 1.0], 100)
    check_slices(x, bits)


def test_the_exponent_bounds_the_numbers_and_ignores_their_order(lib):
    x = any_bits(RNG, (4, 3, 50))
    x = np.where(np.isfinite(x), x, f4(0)).astype(f8)
    x[0] *= 1e-300
    for axis in (None, 0, -1, (0, 2), (-2, -1), (0, 1, 2)):
        found = lib.to_host(exponent(lib, lib.to_device(x), axis))
        axes = tuple(range(3)) if axis is None else axis
        largest = np.max(np.abs(x), axis=axes, keepdims=True)
        assert found.dtype == np.int64
        assert found.shape == largest.shape
        assert np.array_equal(found, np.where(largest < 2.0**-1022, 0, np.frexp(largest)[1] + 1022))
        flipped = lib.to_host(exponent(lib, lib.to_device(x[::-1, ::-1, ::-1].copy()), axis))
        assert np.array_equal(flipped, found[::-1, ::-1, ::-1])


def test_the_exponent_of_an_empty_array_and_of_one_number(lib):
    for shape, axis, kept in (
        ((0, 3), 0, (1, 3)), ((0, 3), 1, (0, 1)), ((0, 3), None, (1, 1)), ((2, 0, 3), (0, -1), (1, 0, 1)),
        ((0,), -1, (1,)),
    ):  # fmt: skip
        found = lib.to_host(exponent(lib, lib.to_device(np.ones(shape)), axis))
        assert found.shape == kept
        assert not found.any()
    assert int(lib.to_host(exponent(lib, lib.to_device(np.array(3.0))))) == 1024
    assert int(lib.to_host(exponent(lib, lib.to_device(np.array(-0.0))))) == 0


def test_nan_infinity_and_too_large_numbers_make_their_row_nan(lib):
    x = np.ones((5, 4))
    x[0, 1], x[1, 2], x[2, 3], x[3, 0] = np.nan, np.inf, 2.0**878, -(2.0**1000)
    there = lib.to_device(x)
    for bits in (1, 27, 50):
        cut = lib.to_host(slice_one(lib, there, exponent(lib, there, 1), bits))
        assert np.isnan(cut[:4]).all()
        assert np.array_equal(cut[4], x[4])
    e = lib.to_device(np.array([0, 1, 1022, 1900, 1901, 2046, 2047]))
    found = lib.to_host(splitter(lib, e, 30))
    assert np.array_equal(np.isnan(found), [False] * 4 + [True] * 3)
    assert np.isfinite(found[:4]).all()
    assert found[0] == found[1] == 1.5 * 2.0**-448
    assert found[3] == 1.5 * 2.0 ** (878 - 30 + 52)


# Budgets.


def test_products_stay_within_53_bits():
    for terms in TERMS:
        bits = product_bits(terms)
        assert terms * 2 ** (bits.one + bits.two) <= 2**53 < 2 * terms * 2 ** (bits.one + bits.two) + terms
        assert min(bits.one, bits.two) >= 7
        assert bits.one <= 27
        assert terms * 2 ** sum_bits(terms) <= 2**53
        assert sum_bits(terms) <= 50
    assert [log2_ceil(n) for n in (0, 1, 2, 3, 4, 5, 2**40, 2**40 + 1)] == [0, 0, 1, 2, 2, 3, 40, 41]
    assert all(log2_ceil(n) == ceil_log2(n) for n in range(1, 3000))


def test_too_many_terms_are_refused():
    message = r"a sum of 536,870,913 terms is too long .* at most 2\*\*29"
    for refuses in (budget, product_bits, sum_bits):
        with pytest.raises(NumericsError, match=message):
            refuses(LONGEST + 1)
    wide = np.broadcast_to(np.float64(0), (1, LONGEST + 1))  # one number in memory, broadcast
    with pytest.raises(NumericsError, match=message):
        NUMPY.exact.matmul(wide, wide.T)
    with pytest.raises(NumericsError, match=message):
        DenseBits(LONGEST + 1, 2).weight  # noqa: B018


def full_integers(terms: int, more: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two operands with the largest numbers that the budget (plus `more` bits) allows, or slightly less."""
    bits = product_bits(terms)
    rng = np.random.default_rng(terms)
    a = 2.0 ** (bits.two + more) - rng.integers(0, 2, (3, terms))
    b = 2.0**bits.one - rng.integers(0, 2, (terms, 2))
    a[2] *= rng.choice([-1.0, 1.0], terms)
    return a, b


def in_orders(a: np.ndarray, b: np.ndarray):
    """Yield the product, added up in different orders."""
    rng, terms = np.random.default_rng(1), a.shape[1]
    yield a @ b
    for _ in range(2):
        order = rng.permutation(terms)
        yield a[:, order] @ b[order]
    yield np.einsum("ik,kj->ij", a[:, ::-1], b[::-1])
    if terms <= 65536:
        yield np.cumsum(a[:, :, None] * b, axis=1)[:, -1]  # by rank-1 updates
    edges = np.unique([*rng.integers(0, terms + 1, 9).tolist(), 0, terms])
    blocks = [a[:, i:j] @ b[i:j] for i, j in itertools.pairwise(edges)]
    yield sum(blocks[i] for i in rng.permutation(len(blocks)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("terms", TERMS[:-2])
def test_integers_that_fill_the_budget_give_pythons_result_in_every_order(terms):
    a, b = full_integers(terms)
    if terms <= 4096:
        exactly = [
            [sum(int(v) * int(w) for v, w in zip(row, column, strict=True)) for column in b.T] for row in a
        ]
    else:
        exactly = (a.astype(np.int64) @ b.astype(np.int64)).tolist()
    assert max(abs(v) for row in exactly for v in row) > 2**51  # so the numbers do fill the budget
    for found in in_orders(a, b):
        assert [[int(v) for v in row] for row in found] == exactly


@pytest.mark.parametrize("terms", [100, 784, 4096])
def test_two_bits_over_the_budget_give_wrong_results(terms):
    a, b = full_integers(terms, more=2)
    exactly = (a.astype(np.int64) @ b.astype(np.int64)).tolist()
    orders = list(in_orders(a, b))
    assert all([[int(v) for v in row] for row in found] != exactly for found in orders)
    assert len({found.tobytes() for found in orders}) > 1


SIZES = (1, 2, 3, 10, 100, 128, 129, 784, 1000, 4096, 65536, 2**20, LONGEST)


def test_every_product_of_dense_is_within_the_budget():
    """The condition of the proof: with |a| <= 2^n_a and |b| <= 2^n_b steps, terms * 2^(n_a + n_b) <= 2^53."""
    for inputs, outputs, integers in itertools.product(SIZES, SIZES, (None, 8, 16)):
        bits = DenseBits(inputs, outputs, integers)
        factors = bits.x if integers is None else integers
        assert inputs * 2 ** (factors + bits.weight) <= 2**53
        assert outputs * 2 ** (bits.dy + bits.shared) <= 2**53
        assert integers is not None or bits.weight == bits.shared  # y and dx use the same slice of W
        for n in (bits.weight, bits.shared, bits.dy, factors):
            assert 7 <= n <= 51  # slices of 7 to 51 bits are exact
        for rows in SIZES:
            column = bits.x_column(rows) if integers is None else integers
            assert rows * 2 ** (column + bits.dy_column(rows)) <= 2**53
            assert 7 <= bits.dy_column(rows) <= 51


# Sums.


@pytest.mark.parametrize("count", [1, 2, 33, 1000, 65536])
def test_sums_are_sums_of_slices_in_any_order(lib, count):
    xp = lib.exact
    x = RNG.standard_normal((count, 4)) * np.array([1.0, 1e30, 1e-30, 1.0])
    x[:, 3] = np.exp(10 * x[:, 3])
    found = lib.to_host(xp.sum(lib.to_device(x), axis=0))
    cut = slice_one(NUMPY, x, exponent(NUMPY, x, 0), sum_bits(count))
    assert found.tolist() == [math.fsum(column) for column in cut.T]
    step = np.ldexp(1.0, step_of(exponent(NUMPY, x, 0), sum_bits(count)))[0]
    error = [abs(v - math.fsum(column)) for v, column in zip(found, x.T, strict=True)]
    assert (error <= 0.5 * count * step + np.spacing(np.abs(found))).all()
    for _ in range(3):
        assert bits_of(lib.to_host(xp.sum(lib.to_device(RNG.permutation(x)), axis=0))) == bits_of(found)


def test_a_plain_sum_depends_on_the_order():
    """Without slices the test above would fail."""
    x = RNG.standard_normal(65536)
    assert len({float(np.sum(RNG.permutation(x))) for _ in range(5)}) > 1


def test_sums_over_any_axes(lib):
    xp = lib.exact
    x = RNG.standard_normal((3, 4, 5))
    there = lib.to_device(x)
    for axis in (None, 0, 1, -1, (0,), (0, 2), (-1, 0), (0, 1, 2), ()):
        axes = tuple(range(3)) if axis is None else axis
        for keepdims in (False, True):
            found = lib.to_host(xp.sum(there, axis=axis, keepdims=keepdims))
            assert found.dtype == f8
            assert found.shape == np.sum(x, axis=axes, keepdims=keepdims).shape
            np.testing.assert_allclose(found, np.sum(x, axis=axes, keepdims=keepdims), rtol=1e-13, atol=1e-13)
            assert bits_of(lib.to_host(xp.batch_sum(there, axis=axis, keepdims=keepdims))) == bits_of(found)
        mean = lib.to_host(xp.mean(there, axis=axis))
        np.testing.assert_allclose(mean, np.mean(x, axis=axes), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        lib.to_host(xp.var(there, axis=1, correction=1)), np.var(x, axis=1, ddof=1), rtol=1e-12
    )
    np.testing.assert_allclose(
        lib.to_host(xp.std(there, keepdims=True)), np.std(x, keepdims=True), rtol=1e-12
    )


def test_sums_of_an_empty_array_and_of_one_number(lib):
    xp = lib.exact
    for shape, axis in (((0, 3), 0), ((0, 3), 1), ((0, 3), None), ((2, 0, 3), (0, -1)), ((0,), -1)):
        found = lib.to_host(xp.sum(lib.to_device(np.ones(shape)), axis=axis))
        assert found.shape == np.sum(np.ones(shape), axis=axis).shape
        assert not found.any()
    for add in (xp.sum, xp.batch_sum):
        assert float(lib.to_host(add(lib.to_device(np.array(-2.5))))) == -2.5
        assert bits_of(lib.to_host(add(lib.to_device(np.array([-0.0, -0.0]))))) == bits_of(np.float64(0.0))
    assert int(lib.to_host(xp.sum(lib.to_device(np.arange(5))))) == 10  # integers are not sliced


def test_sums_with_nan_or_infinity_are_nan(lib):
    x = np.array([[1.0, np.inf], [np.nan, 2.0], [1.0, 2.0]])
    found = lib.to_host(lib.exact.sum(lib.to_device(x), axis=1))
    assert np.isnan(found[:2]).all()
    assert found[2] == 3.0


def test_matmul_near_the_end_of_the_range_does_not_depend_on_the_order(lib):
    """Without a limit, a partial sum could be infinite in one order and finite in another."""
    xp = lib.exact
    a, b = np.full((1, 3), 2.0**700), np.array([[1.5], [1.5], [-1.5]]) * 2.0**323
    found = set()
    for order in itertools.permutations(range(3)):
        with np.errstate(all="ignore"):
            found.add(
                bits_of(lib.to_host(xp.matmul(lib.to_device(a[:, order]), lib.to_device(b[list(order)]))))
            )
    assert len(found) == 1


# Storage.


def test_stored_numbers_are_multiples_of_2_to_the_minus_125_and_never_minus_zero(lib):
    cases = [
        (-0.0, 0.0), (2.0**-149, 0.0), (-(2.0**-127), 0.0), (2.0**-126, 0.0), (-(2.0**-126), 0.0),
        (1.0000001 * 2.0**-126, 2.0**-125), (2.0**-125, 2.0**-125), (1.4 * 2.0**-125, 2.0**-125),
        (1e39, np.inf), (-1e300, -np.inf), (np.nan, np.nan), (-np.inf, -np.inf), (1 / 3, f4(1 / 3)),
    ]  # fmt: skip
    with np.errstate(over="ignore"):
        found = lib.to_host(to32(lib, lib.to_device(np.array([y for y, _ in cases]))))
    assert bits_of(found) == bits_of(np.array([y for _, y in cases], f4))
    assert is_stored(found)


def test_any_float32_is_rounded_to_what_is_stored(lib):
    x = np.concatenate([any_bits(RNG, 100_000), HOSTILE, NOT_FINITE])
    with np.errstate(invalid="ignore"):
        entered = lib.to_host(lib.exact.enter(lib.to_device(x)))
        left = lib.to_host(lib.exact.leave(lib.to_device(entered)))
    assert entered.dtype == f8
    assert is_stored(left)
    kept = np.abs(x) >= 2.0**-102
    assert np.array_equal(entered[kept], x[kept])
    assert np.array_equal(entered, left, equal_nan=True)
    assert np.isnan(entered[np.isnan(x)]).all()
    small = np.abs(x) < 2.0**-102
    assert (np.abs(entered[small] - x[small]) <= 2.0**-126).all()


def test_storing_rounds_to_nearest(lib):
    y = np.ldexp(RNG.uniform(1.0, 2.0, 100_000), RNG.integers(-130, 127, 100_000)) * RNG.choice(
        [-1, 1], 100_000
    )
    found = lib.to_host(to32(lib, lib.to_device(y)))
    half = 0.5 * np.spacing(np.abs(found)).astype(f8)
    assert (np.abs(found - y) <= half + np.maximum(2.0**-126, 2.0**-52 * np.abs(y))).all()
    assert (found != y.astype(f4)).mean() < 0.12  # only below 2^-101, where float32 has more digits
    large = np.abs(y) > 2.0**-60
    assert np.array_equal(found[large], y[large].astype(f4))


# The documentation.


def test_the_examples_of_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "numerics.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 5
