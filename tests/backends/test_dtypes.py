"""Arrays of other dtypes than those that xnn computes with: refused by name, or converted where data enter."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, metrics, ops, optimizers
from xnn.errors import DTypeError, XnnError

RNG = np.random.default_rng(0)
X, Y = (
    RNG.integers(0, 8, (8, 3)) / 8.0,
    RNG.integers(0, 8, (8, 1)) / 8.0,
)  # exact in every floating-point dtype


def bfloat16(x):
    return x.astype(pytest.importorskip("ml_dtypes").bfloat16)


def float8(x):
    return x.astype(pytest.importorskip("ml_dtypes").float8_e4m3fn)


FLOATS = {
    "float16": lambda x: x.astype("float16"),
    "longdouble": lambda x: x.astype("longdouble"),
    "bfloat16": bfloat16,
    "float8": float8,
}
OTHERS = {
    "complex64": lambda x: x.astype("complex64"),
    "object": lambda x: x.astype(object),
    "text": lambda x: x.astype(str),
    "bytes": lambda x: x.astype("S8"),
    "dates": lambda x: x.astype("int64").astype("datetime64[s]"),
    "spans": lambda x: x.astype("int64").astype("timedelta64[s]"),
    "records": lambda x: np.zeros(x.shape, [("a", "f4")]),
    "void": lambda x: np.zeros(x.shape, "V8"),
}
EVERY = {**FLOATS, **OTHERS}
if np.dtype("longdouble") == np.dtype("float64"):
    del EVERY["longdouble"], FLOATS["longdouble"]


def model():
    return xnn.Sequential(layers.Dense(3, 4), layers.ReLU(), layers.Dense(4, 1), seed=0)


def trainer():
    return xnn.Trainer(model(), losses.MSE(), optimizers.SGD(0.1))


def fit(x=X, y=Y, w=None):
    return trainer().fit((x, y), epochs=1, progress=False, sample_weight=w).epochs[-1]


def in_a_graph(c):
    x = xnn.graph.Input()
    return xnn.graph.forward_pass(ops.exp(x), xnn.graph.topological_sort({x: c(X)}))


def assigned(c):
    parameter = model().layers[0].weight
    parameter.value = c(np.full((3, 4), 0.5))
    return parameter.value


COMPUTING = {
    "op": lambda c: ops.exp(c(X)),
    "op with a number": lambda c: ops.add(c(X), 1.0),
    "the second input": lambda c: ops.add(X, c(X)),
    "grad": lambda c: xnn.grad(lambda v: ops.sum(v * v))(c(X)),
    "gradient_check": lambda c: xnn.gradient_check(ops.exp, c(X)),
    "graph": in_a_graph,
    "loss's op": lambda c: ops.mse(c(Y), c(Y)),
    "loss of outputs": lambda c: losses.MSE()(c(Y), Y),
    "loss of targets": lambda c: losses.MSE()(Y, c(Y)),
    "loss of weights": lambda c: losses.MSE()(Y, Y, c(np.ones(8))),
    "layer": lambda c: layers.Dense(3, 4, seed=0).forward(c(X)),
    "activation": lambda c: layers.ReLU().forward(c(X)),
    "normalization": lambda c: layers.BatchNorm(3).forward(c(X), training=True),
    "model": lambda c: model()(c(X)),
}
ENTERING = {
    "fit x": lambda c: fit(x=c(X)),
    "fit y": lambda c: fit(y=c(Y)),
    "fit sample_weight": lambda c: fit(w=c(np.ones(8))),
    "evaluate": lambda c: trainer().evaluate((c(X), c(Y))),
    "predict": lambda c: model().predict(c(X)).tolist(),
    "metric of outputs": lambda c: metrics.MAE()(c(Y), Y),
    "metric of targets": lambda c: metrics.MAE()(Y, c(Y)),
    "a parameter": lambda c: assigned(c).tolist(),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("door", COMPUTING)
def test_computations_refuse_them(door, dtype):
    with pytest.raises(DTypeError, match=r"float32|numbers"):
        COMPUTING[door](EVERY[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("door", ENTERING)
def test_data_of_other_floats_are_converted(door, dtype):
    assert ENTERING[door](FLOATS[dtype]) == ENTERING[door](lambda x: x.astype("float32"))


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("door", ENTERING)
def test_data_that_are_no_numbers_are_refused(door, dtype):
    if dtype == "object" and door in ("fit x", "fit y", "evaluate", "predict"):
        pytest.skip("numbers in an object array may be taken")
    with pytest.raises(XnnError):
        ENTERING[door](OTHERS[dtype])


@pytest.mark.parametrize("order", ["<f4", ">f4", "<f8", ">f8"])
def test_any_byte_order(order):
    np.testing.assert_allclose(ops.sum(X.astype(order)), X.sum())


@pytest.mark.skipif("longdouble" not in EVERY, reason="long double is float64 here")
def test_a_long_double_that_float64_cannot_hold():
    model = xnn.Sequential(xnn.layers.Dense(1, 1))
    huge = np.array([[1.0]], "longdouble") * np.longdouble(2) ** 2000
    with pytest.raises(DTypeError, match="too large for float64"):
        model.predict(huge)
    with pytest.raises(DTypeError, match="too large for float64"):
        model.layers[0].weight.value = huge
    assert model.predict(np.array([[np.inf]], "longdouble")).shape == (1, 1)


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.longdouble(0.5), np.array(0.5)])
def test_options_that_are_numbers_of_numpy_do_not_widen(number):
    """A float64 option would make float64 of float32."""
    x = X.astype("float32")
    for result in (
        ops.leaky_relu(x, negative_slope=number),
        ops.clip(x, min=number),
        ops.huber(x, 2.0 * x, delta=number),
        losses.Huber(number)(x, x + 1.0),
        losses.Focal(gamma=number)(x, x),
        losses.SoftmaxCrossEntropy(label_smoothing=number)(x, np.zeros(8, int)),
        losses.BinaryCrossEntropy(pos_weight=number)(x, x),
    ):
        assert result.dtype == np.float32
    loss = losses.Huber(1.0)
    loss.delta = number
    assert type(loss.delta) is float
