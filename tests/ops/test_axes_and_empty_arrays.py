"""Integer options of ops and layers, axes of single numbers, and arrays without elements."""

import warnings

import numpy as np
import pytest

import xnn
from xnn import layers, ops
from xnn.cli.check import draw
from xnn.errors import OptionError, ShapeError, XnnError
from xnn.ops.apply import backward_of, check_gradients, forward_of
from xnn.ops.cases import CASES

X = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
IMAGES = np.random.default_rng(0).normal(size=(2, 2, 6, 6)).astype(np.float32)
WEIGHTS, ONES = np.ones((3, 2, 3, 3), np.float32), np.ones(4, np.float32)
ROWS = np.array([1, 0])

#: Every integer option of an op or a layer, given the number 1.
TAKERS = {
    "sum": lambda i: ops.sum(X, axis=i),
    "mean": lambda i: ops.mean(X, i),
    "var": lambda i: ops.var(X, axis=(i, 0)),
    "max": lambda i: ops.max(X, axis=(i,)),
    "min": lambda i: ops.min(X, axis=[i]),
    "softmax": lambda i: ops.softmax(X, axis=i),
    "log_softmax": lambda i: ops.log_softmax(X, i),
    "take": lambda i: ops.take(X, ROWS, axis=i),
    "concat": lambda i: ops.concat((X, X), i),
    "concat by name": lambda i: ops.concat(X, X, axis=i),
    "stack": lambda i: ops.stack((X, X), i),
    "transpose": lambda i: ops.transpose(X, (i, 0, 2)),
    "reshape": lambda i: ops.reshape(X, (i, 24)),
    "reshape to one axis": lambda i: ops.reshape(X[:1, :1, :1], i),
    "getitem": lambda i: ops.getitem(X, i),
    "getitem of a slice": lambda i: ops.getitem(X, slice(0, i)),
    "moments": lambda i: ops.moments(X, axis=(i,)),
    "normalize, axis": lambda i: ops.normalize(X[0], ops.moments(X[0], axis=(0,)), axis=(i,)),
    "normalize, along": lambda i: ops.normalize(
        X[0], ops.moments(X[0], axis=(0,)), ONES, ONES, axis=(0,), along=i
    ),
    "conv2d, stride": lambda i: ops.conv2d(IMAGES, WEIGHTS, stride=i),
    "conv2d, padding": lambda i: ops.conv2d(IMAGES, WEIGHTS, padding=(i, 0)),
    "conv2d, dilation": lambda i: ops.conv2d(IMAGES, WEIGHTS, dilation=i),
    "max_pool2d, kernel_size": lambda i: ops.max_pool2d(IMAGES, i),
    "max_pool2d, stride": lambda i: ops.max_pool2d(IMAGES, 2, i),
    "max_pool2d, padding": lambda i: ops.max_pool2d(IMAGES, 2, padding=i),
    "max_pool2d, dilation": lambda i: ops.max_pool2d(IMAGES, 2, dilation=i),
    "avg_pool2d, kernel_size": lambda i: ops.avg_pool2d(IMAGES, i),
    "avg_pool2d, padding": lambda i: ops.avg_pool2d(IMAGES, 2, padding=(0, i)),
    "Softmax": lambda i: layers.Softmax(i)(X),
    "LogSoftmax": lambda i: layers.LogSoftmax(i)(X),
    "Parallel": lambda i: layers.Parallel(layers.Identity(), layers.Identity(), axis=i)(X),
    "Reshape": lambda i: layers.Reshape((i, 12))(X),
    "LayerNorm": lambda i: layers.LayerNorm((i, 4))(X[:, :1]),
    "BatchNorm": lambda i: layers.BatchNorm(i)(X[:, :1]),
    "Dense": lambda i: layers.Dense(i, i)(X[..., :1]),
    "Embedding": lambda i: layers.Embedding(i, i)(np.zeros((2, 1), np.int64)),
    "Conv2D": lambda i: layers.Conv2D(2, i, i, i, i, i)(IMAGES),
    "MaxPool2D": lambda i: layers.MaxPool2D(2, i, i, i)(IMAGES),
    "AvgPool2D": lambda i: layers.AvgPool2D(2, i, i)(IMAGES),
    "ElasticDeformation": lambda i: layers.ElasticDeformation(shape=(i, 4))(X[:, 0]),
    "RandomAffine": lambda i: layers.RandomAffine(shape=(i, 4))(X[:, 0]),
    "Dense, seed": lambda i: layers.Dense(1, 1, seed=i)(X[..., :1]),
    "Dropout, seed": lambda i: layers.Dropout(0.5, seed=i).forward(X, training=True),
}


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("name", TAKERS)
def test_an_integer_of_numpys_is_as_pythons(name, numerics):
    with xnn.numerics(numerics):
        right = TAKERS[name](1)
        for kind in (np.int64, np.int32, np.uint8):
            got = TAKERS[name](kind(1))
            assert got.dtype == right.dtype
            np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("name", TAKERS)
def test_other_things_than_integers_are_refused(name, numerics):
    with xnn.numerics(numerics):
        for wrong in (True, np.True_, 1.0, "1", np.array(1.5), np.array(True), [[1]]):
            with pytest.raises(OptionError):
                TAKERS[name](wrong)


REDUCTIONS = [ops.sum, ops.mean, ops.var, ops.max, ops.min, ops.softmax, ops.log_softmax]


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("op", REDUCTIONS, ids=lambda op: op.name)
def test_gradients_along_an_axis_given_as_numpys_integer(lib, op, numerics):
    x = lib.to_device(np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32))
    with xnn.numerics(numerics):
        found = [
            lib.to_host(xnn.grad(lambda v, axis=axis: ops.sum(ops.sin(op(v, axis=axis))))(x))
            for axis in (1, np.int64(1), np.int8(-1))
        ]
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("axis", [None, 0, -1, (0,), (), np.int64(0)])
@pytest.mark.parametrize("op", REDUCTIONS, ids=lambda op: op.name)
def test_a_single_number_has_axes_0_and_minus_1(lib, op, axis, numerics):
    softmax = op in (ops.softmax, ops.log_softmax)
    if softmax and not isinstance(axis, (int, np.int64)):
        return
    right = {ops.var: (0.0, 0.0), ops.softmax: (1.0, 0.0), ops.log_softmax: (0.0, 0.0)}.get(op, (3.0, 1.0))
    with xnn.numerics(numerics):
        y, slope = xnn.value_and_grad(lambda v: op(v, axis=axis))(lib.to_device(np.asarray(3.0, np.float32)))
        assert (float(y), float(slope)) == right
        for wrong in (1, -2, *(() if softmax else ((0, 0), (0, 1)))):
            with pytest.raises(ShapeError, match="without axes"):
                op(lib.to_device(np.asarray(3.0, np.float32)), axis=wrong)


def test_an_axis_named_twice_is_refused():
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(OptionError, match="twice"):
            ops.sum(np.ones((2, 2)), axis=axis)


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5)])
def test_a_number_of_numpys_as_an_option_does_not_widen(number):
    x = np.array([-1.0, 2.0], np.float32)
    for numerics in ("fast", "exact"):
        with xnn.numerics(numerics):
            for y in (
                ops.leaky_relu(x, number), ops.elu(x, alpha=number), ops.clip(x, -number, number),
                ops.softplus(x, beta=number), ops.rescale(x, scale=number, offset=number),
                ops.var(x, correction=number), ops.dropout(x, x > 0.0, rate=number),
            ):  # fmt: skip
                assert y.dtype == np.float32


# Arrays without elements.


def emptied(spec, extent):
    """An input of a case, in which axes of this extent have none."""
    if isinstance(spec, float):
        return spec
    if spec and isinstance(spec[0], str):
        return (spec[0], tuple(0 if n == extent else n for n in spec[1]), *spec[2:])
    return tuple(0 if n == extent else n for n in spec)


def extents_of(case):
    shapes = [s[1] if s and isinstance(s[0], str) else s for s in case.inputs if not isinstance(s, float)]
    return sorted({n for shape in shapes for n in shape})


@pytest.mark.sampled(6)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_elements_an_op_computes_or_says_why_not(lib, case, numerics):
    """It gives gradients of the right shapes, no NaN and no warning; or else an error of xnn's."""
    for extent in extents_of(case):
        smaller = case._replace(inputs=tuple(emptied(spec, extent) for spec in case.inputs))
        inputs = [x if isinstance(x, float) else lib.to_device(x) for x in draw(smaller, "float32")]
        with xnn.numerics(numerics), warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                y, saved = forward_of(case.op, lib.math, inputs, case.options)
            except XnnError:
                continue
            gradients = backward_of(case.op, lib.math, lib.to_device(np.ones(y.shape, np.float32)), saved)
            check_gradients(case.op, gradients, [getattr(x, "shape", None) for x in inputs])
        for array in (y, *(g for g in gradients if g is not None)):
            assert np.isfinite(lib.to_host(array)).all()


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("shape", [(5, 0), (0, 5), (2, 0, 3)])
def test_softmax_of_nothing_is_nothing(lib, shape, numerics):
    x = lib.to_device(np.zeros(shape, np.float32))
    with xnn.numerics(numerics):
        for axis in range(len(shape)):
            for op in (ops.softmax, ops.log_softmax):
                y, slope = xnn.value_and_grad(lambda v, op=op, axis=axis: ops.sum(op(v, axis=axis)))(x)
                assert tuple(op(x, axis=axis).shape) == tuple(slope.shape) == shape
                assert float(y) == 0.0


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("op", [ops.mean, ops.var, ops.max, ops.min], ids=lambda op: op.name)
def test_nothing_has_a_sum_but_no_mean_and_no_extremes(lib, op, numerics):
    x = lib.to_device(np.zeros((3, 0), np.float32))
    with xnn.numerics(numerics):
        assert lib.to_host(ops.sum(x, axis=1)).tolist() == [0.0, 0.0, 0.0]
        for axis in (1, None):
            with pytest.raises(ShapeError, match=f"{op.name} of no elements"):
                op(x, axis=axis)
        assert tuple(op(x, axis=0).shape) == (0,)
        assert tuple(xnn.grad(lambda v: ops.sum(op(v, axis=0)))(x).shape) == (3, 0)


def test_an_empty_axis_has_no_index():
    with pytest.raises(ShapeError, match="0 elements: it has nothing to choose"):
        ops.getitem(np.zeros((0, 2)), 0)
