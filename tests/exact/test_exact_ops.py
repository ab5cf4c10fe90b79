"""Single ops in exact numerics.

Tested are: dense against its definition in fractions; that no partial sum of any product can be rounded; the accuracy
of every op; equal bits in every way of running and on every backend, also for extreme numbers.

Equal digests of training runs prove little: a run that just accumulates in float64 gives equal digests for thousands
of steps. Here every partial sum of a product is checked, and sums are tried that depend on the order in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact_tools import (
    HOSTILE,
    NOT_FINITE,
    Watched,
    any_bits,
    bits_of,
    ceil_log2,
    cut_one,
    cut_two,
    f4,
    f8,
    fractions,
    is_stored,
    product,
    run,
    split,
    stored,
    top,
    transposed,
)  # fmt: skip

from xnn import ops
from xnn.backends import get_backend, numerics
from xnn.backends.exact import ScaledIntegers
from xnn.backends.exact.slices import budget
from xnn.cli.check import compute_three_ways
from xnn.cli.check import draw as draw_case
from xnn.ops.cases import CASES, Case

NUMPY = get_backend("numpy")
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def draw(kind: str, shape: Any, seed: int) -> np.ndarray:
    """float32 numbers. full: mostly the largest of their exponent; even: of one size; wide, any: of all sizes."""
    rng = np.random.default_rng(seed)
    if kind == "full":
        x = rng.uniform(-2.0, 2.0, shape)
        return np.where(rng.random(shape) < 0.75, (2.0 - 2.0**-23) * np.sign(x), x).astype(f4)
    if kind == "even":
        return rng.standard_normal(shape).astype(f4)
    if kind == "wide":
        return (rng.standard_normal(shape) * np.exp(8 * rng.standard_normal(shape))).astype(f4)
    x = any_bits(rng, shape)
    return np.where(np.isfinite(x), x, f4(-1.5))


SHAPES = [(1, 1, 1), (5, 60, 4), (33, 5, 1), (2, 129, 7), (128, 3, 2)]


# Dense is its definition.


def dense_by_definition(x: Any, w: Any, dy: Any, scale: float | None, bits: int = 8) -> list[np.ndarray]:
    """x W, dy W^T, x^T dy and the sums of dy, for matrices, computed in fractions and not yet rounded to float32."""
    rows, inputs, outputs = len(x), len(w), len(w[0])
    one = split(max(inputs, outputs))[0]
    x, w, dy = fractions(x), fractions(w), fractions(dy)
    largest = top(v for row in w for v in row)
    kept = cut_one(w, [largest] * inputs, one)
    high, low = cut_two(dy, [top(row) for row in dy], 53 - ceil_log2(outputs) - one)
    dx = product(high, transposed(kept)) + product(low, transposed(kept))
    columns = [top(column) for column in transposed(dy)]
    added = cut_one(transposed(dy), columns, min(50, 53 - ceil_log2(rows)))
    db = np.array([float(sum(column)) for column in added])
    if scale is None:
        high, low = cut_two(x, [top(row) for row in x], 53 - ceil_log2(inputs) - one)
        y = product(high, kept) + product(low, kept)
        one, two = split(rows)
        x_columns = cut_one(transposed(x), [top(column) for column in transposed(x)], one)
        high, low = (transposed(part) for part in cut_two(transposed(dy), columns, two))
        return [y, dx, product(x_columns, high) + product(x_columns, low), db]
    kept = cut_one(w, [largest] * inputs, min(50, 53 - ceil_log2(inputs) - bits))
    cut = transposed(cut_one(transposed(dy), columns, min(50, 53 - ceil_log2(rows) - bits)))
    return [product(x, kept) * scale, dx, product(transposed(x), cut) * scale, db]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["full", "even", "wide", "any"])
def test_dense_is_its_definition(lib, shape, kind):
    rows, inputs, outputs = shape
    x, w, dy = draw(kind, (rows, inputs), 1), draw(kind, (inputs, outputs), 2), draw(kind, (rows, outputs), 3)
    b = draw("even", (outputs,), 4)
    with numerics("exact"), np.errstate(over="ignore"):
        y, dx, dw, db = run(lib, ops.dense, (x, w, b), {}, dy)
        plain = run(lib, ops.dense, (x, w), {}, dy)
        wanted = dense_by_definition(x, w, dy, None)
        wanted[0] = wanted[0] + b.astype(f8)
        for found, exactly in zip((y, dx, dw, db), wanted, strict=True):
            assert bits_of(found) == bits_of(stored(exactly))
    assert [bits_of(a) for a in plain[1:]] == [bits_of(dx), bits_of(dw)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_of_integers_is_its_definition(lib, shape, dtype):
    rows, inputs, outputs = shape
    limits = np.iinfo(dtype)
    x = np.random.default_rng(1).integers(limits.min, limits.max, (rows, inputs), dtype, endpoint=True)
    x[0, 0] = limits.min if limits.min else limits.max
    w, dy = draw("even", (inputs, outputs), 2), draw("wide", (rows, outputs), 3)
    there = ScaledIntegers(lib, lib.to_device(x), 1 / 255)
    with numerics("exact"):
        y, *gradients = run(lib, ops.dense, (there, w, f4(w[0])), {}, dy)
    wanted = dense_by_definition(x, w, dy, 1 / 255, limits.bits)
    wanted[0] = wanted[0] + w[0].astype(f8)
    for found, exactly in zip((y, *gradients), wanted, strict=True):
        assert bits_of(found) == bits_of(stored(exactly))


@pytest.mark.parametrize("kind", ["even", "wide"])
def test_dense_of_one_row_one_output_and_more_axes(lib, kind):
    x, w, dy = draw(kind, (6, 20), 1), draw(kind, (20, 3), 2), draw(kind, (6, 3), 3)
    b = draw("even", (3,), 4)
    with numerics("exact"):
        y, dx, dw, db = run(lib, ops.dense, (x, w, b), {}, dy)
        more = run(lib, ops.dense, (x.reshape(2, 3, 20), w, b), {}, dy.reshape(2, 3, 3))
        assert [bits_of(a) for a in more] == [bits_of(y.reshape(2, 3, 3)), bits_of(dx.reshape(2, 3, 20)), bits_of(dw),
                                              bits_of(db)]  # fmt: skip
        row, row_dx, row_dw, row_db = run(lib, ops.dense, (x[0], w, b), {}, dy[0])
        assert bits_of(row) == bits_of(y[0])
        assert bits_of(row_dx) == bits_of(dx[0])
        alone = run(lib, ops.dense, (x[:1], w, b), {}, dy[:1])
        assert [bits_of(a) for a in (row_dw, row_db)] == [bits_of(a) for a in alone[2:]]
        column = run(lib, ops.dense, (x, w[:, 0], b[0]), {}, dy[:, 0])
        matrix = run(lib, ops.dense, (x, w[:, :1], b[:1]), {}, dy[:, :1])
        for a, of_matrix in zip(column, matrix, strict=True):
            assert bits_of(a) == bits_of(of_matrix.reshape(a.shape))
        number = run(lib, ops.dense, (x[0], w[:, 0], b[0]), {}, dy[0, 0])
        assert bits_of(number[0]) == bits_of(column[0][0])


# Every product is within its budget.


@pytest.mark.parametrize("kind", ["full", "even", "wide", "any"])
@pytest.mark.parametrize(
    "shape", [*SHAPES, (7, 128, 128), (32, 300, 100), (1024, 2, 2), (1, 1, 4096)], ids=str
)
def test_no_partial_sum_of_any_product_can_be_rounded(shape, kind):
    rows, inputs, outputs = shape
    lib, before = Watched(), 0
    x, w, dy = draw(kind, (rows, inputs), 1), draw(kind, (inputs, outputs), 2), draw(kind, (rows, outputs), 3)
    pixels = np.full((rows, inputs), 255, np.uint8)
    words = np.full((rows, inputs), -(2**15), np.int16)
    inputs_of = (x, x[0], ScaledIntegers(lib, pixels, 0.5), ScaledIntegers(lib, words, 0.5))
    for a in inputs_of:
        with np.errstate(over="ignore"):
            run(lib, ops.dense, (a, w), {}, dy[0] if a.ndim == 1 else dy, lib.watched)
        assert lib.products - before == (
            6 if isinstance(a, np.ndarray) else 4
        )  # 3 products, of two slices each
        before = lib.products
    for a, b, g in (
        (x, w, dy),
        (x[0], w, dy[0]),
        (x, w[:, 0], dy[:, 0]),
        (np.stack([x, x]), w, np.stack([dy, dy])),
    ):
        with np.errstate(over="ignore"):
            run(lib, ops.matmul, (a, b), {}, g, lib.watched)
        assert lib.products - before == 6
        before = lib.products
    if kind == "full" and max(shape) > 100:
        assert lib.fullest > 2.0**51  # nearly all of the budget is used


def test_a_budget_of_two_bits_more_is_seen(monkeypatch):
    monkeypatch.setattr("xnn.backends.exact.ops.budget", lambda terms: budget(terms) + 2)
    lib = Watched()
    x, w = draw("full", (8, 128), 1), draw("full", (128, 128), 2)
    with pytest.raises(AssertionError, match=r"sums up to 2\^5[45]"):
        run(lib, ops.dense, (x, w), {}, None, lib.watched)


def rounding_terms() -> tuple[np.ndarray, np.ndarray]:
    """A row and a column whose product in float64 depends on the order of additions."""
    return f4([2.0**30, 1.0, -(2.0**30), 0.5]), f4([[2.0**30], [1.0], [2.0**30], [0.0]])


@pytest.mark.parametrize("op", [ops.dense, ops.matmul], ids=lambda op: op.name)
def test_float64_sums_depend_on_the_order_and_exact_ones_do_not(lib, op):
    x, w = rounding_terms()
    plain, exact = set(), set()
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3], [3, 2, 1, 0]):
        total = 0.0
        for k in order:  # a loop, since a library may add a short row in any order
            total += float(x[k]) * float(w[k, 0])
        plain.add(f4(total).tobytes())
        with numerics("exact"):
            exact.add(bits_of(run(lib, op, (x[order], w[order]), {})[0]))
    assert len(plain) == 2
    assert len(exact) == 1


@pytest.mark.parametrize("op", [ops.dense, ops.matmul], ids=lambda op: op.name)
def test_integers_are_multiplied_exactly_too(lib, op):
    """Inputs of int64 (NumPy's default), uint8 and bool, which no Rescale has converted."""
    w = f4([[1.0], [1.0], [1.0], [0.5]])
    found = set()
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3]):
        x = np.array([[2**60, 1, -(2**60), 1]])[:, order]
        with numerics("exact"):
            found.add(bits_of(run(lib, op, (x, w[order]), {})[0]))
    assert len(found) == 1
    small = np.arange(8).reshape(2, 4)
    with numerics("exact"):
        wanted = run(lib, op, (small.astype(f4), w), {})[0]
        for dtype in ("int64", "uint8", "bool"):
            values = small.astype(dtype)
            same = wanted if dtype != "bool" else run(lib, op, (values.astype(f4), w), {})[0]
            assert bits_of(run(lib, op, (values, w), {})[0]) == bits_of(same)


# Every op of the table.


def inputs_like(case: Case, pool: np.ndarray, share: float, seed: int) -> list[Any]:
    """The inputs of the case, with a share of the float32 numbers replaced by numbers of `pool`."""
    rng = np.random.default_rng(seed)
    return [
        np.where(rng.random(x.shape) < share, rng.choice(pool, x.shape), x).astype(f4)
        if isinstance(x, np.ndarray) and x.dtype == f4
        else x
        for x in draw_case(case, "float32")
    ]


@pytest.mark.sampled(4)
@cases
def test_an_op_is_its_float64_self_rounded_once(lib, case):
    """Outputs and gradients are within 1.25 half units in the last place. Inputs do not change."""
    narrow = draw_case(case, "float32")
    wide = [x.astype(f8) if isinstance(x, np.ndarray) and x.dtype == f4 else x for x in narrow]
    before = [bits_of(x) for x in narrow]
    shape = run(NUMPY, case.op, wide, case.options)[0].shape
    gradient = np.random.default_rng(3).uniform(-1, 1, shape).astype(f4)
    wanted = run(NUMPY, case.op, wide, case.options, gradient)
    with numerics("exact"):
        found = run(lib, case.op, narrow, case.options, gradient)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert is_stored(a)
            assert a.shape == b.shape
            assert (np.abs(a - b) <= 1.25 * 2.0**-24 * np.abs(b)).all()
    assert [bits_of(x) for x in narrow] == before


@pytest.mark.sampled(6)
@cases
def test_layer_graph_and_autograd_give_the_same_bits(lib, case):
    with numerics("exact"):
        doors = compute_three_ways(lib, case, "float32")
        host = compute_three_ways(NUMPY, case, "float32")["graph"]
    for door in ("layer", "graph"):
        for a, b in zip(doors[door], doors["autograd"], strict=False):  # a layer has one gradient
            assert (a is None) == (b is None)
            assert a is None or bits_of(a) == bits_of(b)
    for a, b in zip(doors["graph"], host, strict=True):  # and every backend gives the bits of NumPy
        assert a is None or bits_of(a) == bits_of(b)


@pytest.mark.sampled(8)
@cases
def test_hostile_numbers_give_the_same_bits_on_every_backend(lib, case):
    pools = (HOSTILE, np.concatenate([HOSTILE, NOT_FINITE]), NOT_FINITE)
    for seed in range(6):
        pool, share = pools[seed % 3], (1.0, 0.3)[seed % 2]
        with numerics("exact"), np.errstate(all="ignore"):
            inputs = inputs_like(case, pool, share, seed)
            before = [bits_of(x) for x in inputs]
            shape = run(NUMPY, case.op, inputs, case.options)[0].shape
            gradient = np.random.default_rng(seed).choice(pool, shape)
            here = run(NUMPY, case.op, inputs, case.options, gradient)
            there = run(lib, case.op, inputs, case.options, gradient)
            # Numbers that exact numerics do not store count as 0: subnormals and -0.
            clean = [
                stored(x.astype(f8)) if isinstance(x, np.ndarray) and x.dtype == f4 else x for x in inputs
            ]
            same = run(NUMPY, case.op, clean, case.options, stored(gradient.astype(f8)))
        for a, b, c in zip(here, there, same, strict=True):
            assert a is None or (is_stored(a) and bits_of(a) == bits_of(b) == bits_of(c))
        assert [bits_of(x) for x in inputs] == before


#: Ops without sums and products over many elements. (In exact numerics these make NaN of infinity.)
_ELEMENTWISE = {
    "add", "sub", "mul", "div", "exp", "log", "maximum", "where", "max", "reshape", "flatten", "transpose", "take",
    "concat", "rescale", "relu", "sigmoid", "tanh", "dropout", "minimum", "min", "clip", "stack", "sqrt", "abs",
    "expm1", "log1p", "erf",
}  # fmt: skip


@pytest.mark.sampled(2)
@cases
def test_infinity_and_nan_do_not_get_lost(case):
    """What is not finite in float64 is not finite here. NaN stays NaN; infinity may become NaN in sums."""
    pool = np.concatenate([NOT_FINITE, f4([0.0, 1.0, -2.5])])
    for seed in range(8):
        inputs = inputs_like(case, pool, 0.4, seed)
        wide = [x.astype(f8) if isinstance(x, np.ndarray) and x.dtype == f4 else x for x in inputs]
        with np.errstate(all="ignore"):
            wanted = run(NUMPY, case.op, wide, case.options)
            with numerics("exact"):
                found = run(NUMPY, case.op, inputs, case.options)
        for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
            if a is None or b is None:
                continue
            assert not np.isfinite(a[~np.isfinite(b)]).any()
            assert np.isnan(a[np.isnan(b)]).all()
            if number == 0 and case.op.name in _ELEMENTWISE:
                assert np.array_equal(a, b.astype(f4), equal_nan=True) or case.op.name in (
                    "exp",
                    "expm1",
                    "log",
                    "log1p",
                    "erf",
                    "sigmoid",
                    "tanh",
                )
                assert np.array_equal(np.isfinite(a), np.isfinite(b))
