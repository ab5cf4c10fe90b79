"""Dense networks as C99: compiled with every warning an error, and compared with predict."""

import ctypes
import re
import shutil
import subprocess

import exported_models
import numpy as np
import pytest

import xnn
from xnn import exchange, layers, losses, ops, optimizers
from xnn.errors import OptionError
from xnn.layers import Function, Sequential

with_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
#: Layers for images and for integers, and joined outputs. C has none of them.
WITHOUT_C = {"Conv2D", "MaxPool2D", "AvgPool2D", "GlobalAvgPool", "Embedding", "Parallel"}
#: Functions over axes, and of images.
OPS_WITHOUT_C = {"sum", "mean", "max", "min", "var", "transpose", "max_pool2d", "avg_pool2d"}
MODELS = list(exported_models.all_models())
IN_C = [
    case
    for case in MODELS
    if case[0].split("-")[0] not in WITHOUT_C
    and not ("-op-" in case[0] and case[0].split("-")[0] in OPS_WITHOUT_C)
]


def compiled(path, name, takes, gives):
    """The function of a C file, of an array of samples."""
    library = path.with_suffix(".so")
    words = ["cc", *FLAGS, "-O1", "-shared", "-fPIC", str(path), "-o", str(library), "-lm"]
    subprocess.run(words, check=True, timeout=60)
    function = getattr(ctypes.CDLL(str(library)), f"{name}_predict")
    function.restype = None

    def predict(x, shape):
        x, y = np.ascontiguousarray(x, takes), np.full((len(x), *shape), np.nan, gives)
        for sample, output in zip(x, y, strict=True):
            function(ctypes.c_void_p(sample.ctypes.data), ctypes.c_void_p(output.ctypes.data))
        return y

    return predict


@pytest.mark.sampled(8)
@with_compiler
@pytest.mark.parametrize(("name", "model", "shape", "positive"), IN_C, ids=[case[0] for case in IN_C])
def test_c_computes_what_predict_does(name, model, shape, positive, tmp_path):
    exchange.to_c(model, tmp_path / "net.c", input_shape=shape)
    x = exported_models.samples(model, shape, 7, positive)
    right = model.predict(x)
    found = compiled(tmp_path / "net.c", "net", x.dtype, right.dtype)(x, right.shape[1:])
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


@with_compiler
def test_models_of_float64(tmp_path):
    model = Sequential(
        layers.Dense(3, 8, dtype="float64"), layers.BatchNorm(8, dtype="float64"), layers.GELU(),
        layers.LayerNorm(8, dtype="float64"), layers.Dense(8, 2, dtype="float64"), layers.LogSoftmax(), seed=1,
    )  # fmt: skip
    exported_models.changed(model)
    exchange.to_c(model, tmp_path / "net.c", "wide")
    x = np.random.default_rng(0).normal(size=(9, 3))
    found = compiled(tmp_path / "net.c", "wide", np.float64, np.float64)(x, (2,))
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-12, atol=1e-12)


@with_compiler
def test_a_trained_network(tmp_path):
    """With pixels as bytes, dropout, a residual connection and probabilities at the end."""
    block = Sequential(layers.Dense(8, 8), layers.BatchNorm(8), layers.SiLU(), layers.Dropout(0.2))
    model = Sequential(
        layers.Rescale(1 / 255), layers.Dense(16, 8), layers.ReLU(), layers.Add(layers.Identity(), block),
        layers.Dense(8, 3), seed=2,
    )  # fmt: skip
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (90, 16)).astype(np.uint8), random.integers(0, 3, 90)
    xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01)).fit(
        (x, y), epochs=3, progress=False
    )
    model = Sequential(*model, layers.Softmax())
    exchange.to_c(model, tmp_path / "my-net 2.c")
    found = compiled(tmp_path / "my-net 2.c", "my_net_2", np.float32, np.float32)(x, (3,))
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-6)


@with_compiler
def test_nan_and_infinity_go_through(tmp_path):
    model = Sequential(layers.Rescale([1.0, 2.0, 1.0]), layers.ReLU(), layers.Tanh(), layers.Sigmoid())
    exchange.to_c(model, tmp_path / "net.c", input_shape=3)
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    found = compiled(tmp_path / "net.c", "net", np.float32, np.float32)(x, (3,))
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-6)


@with_compiler
def test_weights_that_are_not_finite_compile(tmp_path):
    model = Sequential(layers.Dense(3, 1, bias=False))
    model[0].weight.value = np.array([[np.inf], [-np.inf], [np.nan]], np.float32)
    exchange.to_c(model, tmp_path / "net.c")
    found = compiled(tmp_path / "net.c", "net", np.float32, np.float32)(np.ones((1, 3)), (1,))
    assert np.isnan(found).all()


def test_the_weights_are_exact(tmp_path):
    model = Sequential(layers.Dense(7, 5), seed=3)
    exchange.to_c(model, tmp_path / "net.c")
    text = (tmp_path / "net.c").read_text()
    numbers = [float.fromhex(number) for number in re.findall(r"(-?0x[\w.]+p[+-]\d+)f", text)]
    right = model[0].weight.value.ravel().tolist() + model[0].bias.value.ravel().tolist()
    assert sorted(numbers) == sorted(right)
    assert "void net_predict(const float *x, float *y)" in text


@pytest.mark.parametrize("name", sorted(WITHOUT_C))
def test_layers_that_c_does_not_have_are_refused(name, tmp_path):
    inside, shape = exported_models.OF_LAYERS[name][0]
    with pytest.raises(OptionError, match="to C"):
        exchange.to_c(Sequential(*inside), tmp_path / "net.c", input_shape=shape)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(tmp_path):
    with pytest.raises(
        OptionError,
        match=r"layer 1 of the model, Function\(sum.* cannot be exported to C: export the model to ONNX or PyTorch",
    ):
        exchange.to_c(Sequential(layers.Dense(2, 2), Function(ops.sum, axis=1)), tmp_path / "net.c")
    with pytest.raises(OptionError, match="joins the samples"):
        exchange.to_c(Sequential(layers.Dense(2, 2), layers.Softmax(0)), tmp_path / "net.c")
    for name in ("2nd", "a b", "", "é", 3):
        with pytest.raises(OptionError, match="beginning of a name of C"):
            exchange.to_c(Sequential(layers.Dense(2, 2)), tmp_path / "net.c", name)
    with pytest.raises(OptionError, match=r"must end in \.c"):
        exchange.to_c(Sequential(layers.Dense(2, 2)), tmp_path / "net.h")
