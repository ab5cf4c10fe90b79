"""Convolution and pooling: against loops, against PyTorch, as layers, and what they refuse.

Gradients against differences, the three doors and the backends come from the table of xnn.ops.cases.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import DTypeError, MixedArraysError, OptionError, ShapeError
from xnn.initializers import He
from xnn.layers.files import weights_sha256
from xnn.ops.apply import backward_of, forward_of

RNG = np.random.default_rng(5)


def numbers(*shape, dtype="f8"):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def places(windows_along, kernel, stride, dilation, before):
    """The rows (or columns) that each window covers."""
    return [[u * stride + e * dilation - before for e in range(kernel)] for u in range(windows_along)]


def along(extent, kernel, stride, padding, dilation):
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def windows(x, kernel, stride, padding, dilation, fill):
    """(n, C, oh, ow, kh, kw), element by element."""
    n, channels, height, width = x.shape
    oh, ow = (along(e, *a) for e, *a in zip((height, width), kernel, stride, padding, dilation, strict=True))
    found = np.full((n, channels, oh, ow, *kernel), fill, x.dtype)
    rows, columns = (places(*a) for a in zip((oh, ow), kernel, stride, dilation, padding, strict=True))
    for u, v, i, j in np.ndindex(oh, ow, *kernel):
        row, column = rows[u][i], columns[v][j]
        if 0 <= row < height and 0 <= column < width:
            found[:, :, u, v, i, j] = x[:, :, row, column]
    return found


GEOMETRIES = [
    ((3, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 3), (2, 1), (1, 0), (1, 2)),
    ((1, 1), (3, 2), (0, 0), (1, 1)),
    ((3, 2), (3, 4), (1, 1), (2, 3)),
    ((2, 2), (2, 3), (1, 1), (3, 1)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES, ids=str)
def test_conv2d_is_its_formula(lib, kernel, stride, padding, dilation):
    x, w, b = numbers(2, 3, 7, 8), numbers(4, 3, *kernel), numbers(4)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    y = ops.conv2d(*map(lib.to_device, (x, w, b)), **options)
    wanted = np.einsum("ncuvij,ocij->nouv", windows(x, kernel, stride, padding, dilation, 0.0), w)
    np.testing.assert_allclose(lib.to_host(y), wanted + b[:, None, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES, ids=str)
def test_pooling_is_its_formula(lib, kernel, stride, padding, dilation):
    x = numbers(2, 3, 7, 8)
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    largest = ops.max_pool2d(lib.to_device(x), **options, dilation=dilation)
    wanted = windows(x, kernel, stride, padding, dilation, -np.inf).max(axis=(4, 5))
    assert np.array_equal(lib.to_host(largest), wanted)
    mean = ops.avg_pool2d(lib.to_device(x), **options)
    wanted = windows(x, kernel, stride, padding, (1, 1), 0.0).mean(axis=(4, 5))
    np.testing.assert_allclose(lib.to_host(mean), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 5)], ids=str)
@pytest.mark.parametrize("dilation", [1, (2, 3)], ids=str)
def test_same_keeps_the_size_and_has_the_odd_element_at_the_end(kernel, dilation):
    x, w = numbers(1, 2, 9, 10), numbers(3, 2, *kernel)
    y = ops.conv2d(x, w, padding="same", dilation=dilation)
    assert y.shape == (1, 3, 9, 10)
    pair = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    total = [d * (k - 1) for d, k in zip(pair, kernel, strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), *((t // 2, t - t // 2) for t in total)))
    np.testing.assert_array_equal(y, ops.conv2d(padded, w, dilation=dilation))


def test_max_pool2d_gives_the_gradient_to_the_first_of_equals_or_the_first_nan():
    x = np.ones((1, 1, 4, 4))
    x[0, 0, 2:, :2] = -np.inf
    x[0, 0, 3, 3] = x[0, 0, 2, 3] = np.nan
    y, saved = forward_of(ops.max_pool2d, np, (x,), {"kernel_size": 2})
    np.testing.assert_array_equal(y[0, 0], [[1, 1], [-np.inf, np.nan]])
    (dx,) = backward_of(ops.max_pool2d, np, np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), saved)
    np.testing.assert_array_equal(dx[0, 0], [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 0, 4], [0, 0, 0, 0]])


def test_no_gradient_goes_to_the_padding():
    """Where all of a window is -infinity, padding stands before the first element and equals it."""
    x = np.full((1, 1, 3, 3), -np.inf)
    _, saved = forward_of(ops.max_pool2d, np, (x,), {"kernel_size": 2, "padding": 1})
    (dx,) = backward_of(ops.max_pool2d, np, np.ones((1, 1, 2, 2)), saved)
    np.testing.assert_array_equal(dx[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


pairs = st.tuples(*[st.integers(1, 3)] * 2)


@st.composite
def geometries(draw):
    """Images, and windows that fit them."""
    kernel, stride, dilation = (draw(pairs) for _ in range(3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    extents = [draw(st.integers(max(1, s - 2 * p), 9)) for s, p in zip(spans, padding, strict=True)]
    shape = draw(st.integers(0, 3)), draw(st.integers(1, 3)), *extents
    return shape, {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}


def agree(torch, own, theirs, inputs):
    """Outputs and gradients in float64."""
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    wanted = theirs(*leaves)
    y, saved = own[0](*inputs)
    dy = np.random.default_rng(9).standard_normal(y.shape)
    wanted.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-10, atol=1e-10)
    for gradient, leaf in zip(own[1](dy, saved), leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-10)


def both(op, **options):
    return (
        lambda *inputs: forward_of(op, np, inputs, options),
        lambda dy, saved: backward_of(op, np, dy, saved),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60)
@given(geometries(), st.integers(1, 4), st.booleans())
def test_conv2d_is_pytorchs(geometry, outputs, bias):
    torch = pytest.importorskip("torch")
    shape, options = geometry
    kernel = options.pop("kernel_size")
    inputs = [numbers(*shape), numbers(outputs, shape[1], *kernel), *([numbers(outputs)] if bias else [])]
    agree(torch, both(ops.conv2d, **options), lambda *a: torch.conv2d(*a, **options), inputs)
    if options["stride"] == (1, 1):
        options["padding"] = "same"
        agree(torch, both(ops.conv2d, **options), lambda *a: torch.conv2d(*a, **options), inputs)


@settings(max_examples=60)
@given(geometries(), st.booleans())
def test_pooling_is_pytorchs(geometry, ties):
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    shape, options = geometry
    x = np.round(numbers(*shape)) if ties else numbers(*shape)
    try:
        ops.max_pool2d(x, **options)
    except ShapeError:  # a window without an element: PyTorch writes to memory that is not its own
        assert any(e < d for e, d in zip(shape[2:], options["dilation"], strict=True))
    else:
        agree(torch, both(ops.max_pool2d, **options), lambda a: functional.max_pool2d(a, **options), [x])
    options.pop("dilation")
    if all(
        k <= e + 2 * p for k, e, p in zip(options["kernel_size"], shape[2:], options["padding"], strict=True)
    ):
        agree(torch, both(ops.avg_pool2d, **options), lambda a: functional.avg_pool2d(a, **options), [x])


def test_an_empty_batch():
    x = np.zeros((0, 2, 5, 5))
    y, saved = forward_of(ops.conv2d, np, (x, np.ones((3, 2, 2, 2)), np.ones(3)), {"padding": 1})
    assert y.shape == (0, 3, 6, 6)
    gradients = backward_of(ops.conv2d, np, y, saved)
    assert [g.shape for g in gradients] == [(0, 2, 5, 5), (3, 2, 2, 2), (3,)]
    assert not gradients[1].any()
    for op in (ops.max_pool2d, ops.avg_pool2d):
        y, saved = forward_of(op, np, (x,), {"kernel_size": 2})
        assert y.shape == (0, 2, 2, 2)
        assert backward_of(op, np, y, saved)[0].shape == x.shape


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_stays(dtype):
    x, w = numbers(2, 2, 6, 6, dtype=dtype), numbers(3, 2, 3, 3, dtype=dtype)
    for op, inputs, options in (
        (ops.conv2d, (x, w), {"stride": 2, "padding": 1}),
        (ops.max_pool2d, (x,), {"kernel_size": 3, "stride": 2, "padding": 1}),
        (ops.avg_pool2d, (x,), {"kernel_size": 2}),
    ):
        y, saved = forward_of(op, np, inputs, options)
        assert {y.dtype, *(g.dtype for g in backward_of(op, np, np.ones_like(y), saved))} == {np.dtype(dtype)}


def test_the_datas_gradient_is_spared():
    x, w, b = numbers(2, 2, 5, 5), numbers(3, 2, 3, 3), numbers(3)
    y, saved = forward_of(ops.conv2d, np, (x, w, b), {})
    whole = backward_of(ops.conv2d, np, np.ones_like(y), saved)
    dx, *rest = backward_of(ops.conv2d, np, np.ones_like(y), ops.conv2d.without_input_gradient(saved))
    assert dx is None
    assert [g.tobytes() for g in rest] == [g.tobytes() for g in whole[1:]]


X, W = np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.conv2d(X[0], W), ShapeError, r"\(3, 5, 5\): it takes .*\(n, channels, height, width\)"),
        (lambda: ops.conv2d(X, W[0]), ShapeError, r"\(3, 3, 3\): it needs \(outputs, channels, height, width\)"),
        (lambda: ops.conv2d(X, W[:, :2]), ShapeError, "3 channels and the weights 2"),
        (lambda: ops.conv2d(X, W, np.ones(3)), ShapeError, r"bias of shape \(3,\) for 4 outputs"),
        (lambda: ops.conv2d(X, W, 1.0), ShapeError, r"bias of shape \(\) for 4 outputs"),
        (lambda: ops.conv2d(X, W, dilation=3), ShapeError, "covers 7 x 7 and does not fit an image of 5 x 5"),
        (lambda: ops.conv2d(X[:, :, :1], W, padding=(0, 1)), ShapeError, "image of 1 x 5, with padding 1 x 7"),
        (lambda: ops.conv2d(X, W, stride=0), OptionError, "stride must be a positive integer or a pair"),
        (lambda: ops.conv2d(X, W, stride=(1, 1, 1)), OptionError, r"stride .* got \(1, 1, 1\)"),
        (lambda: ops.conv2d(X, W, padding=-1), OptionError, "padding must be an integer of at least 0 or a pair"),
        (lambda: ops.conv2d(X, W, padding="valid"), OptionError, "padding 'valid': .* or 'same'"),
        (lambda: ops.conv2d(X, W, padding="same", stride=2), OptionError, "needs stride 1"),
        (lambda: ops.conv2d(X, W, dilation=1.5), OptionError, "dilation must be"),
        (lambda: ops.max_pool2d(X, kernel_size=6), ShapeError, "6 x 6 elements covers 6 x 6"),
        (lambda: ops.max_pool2d(X[0], kernel_size=2), ShapeError, "max_pool2d got images of shape"),
        (lambda: ops.max_pool2d(X, kernel_size=2, padding=2), OptionError, "at most half a window"),
        (lambda: ops.avg_pool2d(X, kernel_size=(2, 3), padding=(0, 2)), OptionError, "at most half a window"),
        (lambda: ops.avg_pool2d(X, kernel_size=2, padding="same"), OptionError, "padding must be"),
        (lambda: ops.max_pool2d(X.astype(int), kernel_size=2), DTypeError, "needs floating-point images"),
        (lambda: ops.max_pool2d(X[..., :1], kernel_size=(1, 2), padding=(0, 1), dilation=2), ShapeError, "no el"),
        (lambda: layers.MaxPool2D((2, 1), 1, (1, 0), 2).output_shape((3, 1, 4)), ShapeError, "no element"),
        (lambda: ops.max_pool2d(X), OptionError, "kernel_size"),
        (lambda: layers.Conv2D(0, 1, 3), OptionError, "in_channels"),
        (lambda: layers.Conv2D(1, 1, 3, stride=2, padding="same"), OptionError, "needs stride 1"),
        (lambda: layers.Conv2D(1, 1, "3"), OptionError, "kernel_size"),
        (lambda: layers.Conv2D(1, 1, 3, dtype="float16"), OptionError, "dtype"),
        (lambda: layers.MaxPool2D(2, padding=2), OptionError, "at most half"),
        (lambda: layers.AvgPool2D((2, 0)), OptionError, "kernel_size"),
        (lambda: layers.Conv2D(3, 1, 3)(X), DTypeError, "holds float32 numbers and got float64"),
        (lambda: layers.Conv2D(2, 1, 3)(X), ShapeError, r"\(n, 2, .*input of shape \(2, 3, 5, 5\)"),
        (lambda: layers.Conv2D(2, 1, 3).output_shape((25,)), ShapeError, r"\(n, 2, .*samples of shape \(25,\)"),
        (lambda: layers.Conv2D(2, 1, 7).output_shape((2, 5, 9)), ShapeError, "does not fit an image of 5 x 9"),
        (lambda: layers.MaxPool2D(2)(X[0]), ShapeError, "MaxPool2D"),
        (lambda: layers.GlobalAvgPool()(X[0]), ShapeError, "GlobalAvgPool"),
        (lambda: layers.GlobalAvgPool().output_shape((5,)), ShapeError, "GlobalAvgPool"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_arrays_of_two_backends_are_refused(other):
    for layer in (layers.Conv2D(3, 2, 3), layers.Embedding(4, 2)):
        layer.forward(X.astype("f4") if isinstance(layer, layers.Conv2D) else np.array([1]))
        with pytest.raises(MixedArraysError):
            layer.forward(other.to_device(np.ones((1, 3, 5, 5), np.float32)))


# Layers and models.


def test_conv2d_layer(lib):
    layer = layers.Conv2D(3, 8, (3, 2), stride=2, padding=(1, 0), seed=4)
    assert layer.output_shape((3, 9, 8)) == (8, 5, 4)
    assert layer.flops((3, 9, 8)) == 20 * (2 * 3 * 8 * 6 + 8)
    x = lib.to_device(numbers(2, 3, 9, 8, dtype="f4"))
    y = layer.forward(x)
    assert tuple(y.shape) == (2, 8, 5, 4)
    dx = layer.backward(lib.to_device(np.ones(y.shape, np.float32)))
    assert tuple(dx.shape) == tuple(x.shape)
    assert [tuple(p.grad.shape) for p in layer.parameters()] == [(8, 3, 3, 2), (8,)]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert isinstance(layer.weight.initializer, He)
    assert [p.name for p in layers.Conv2D(1, 1, 1, bias=False).parameters()] == ["weight"]
    assert layer.backward(lib.to_device(np.ones(y.shape, np.float32)), input_gradient=False) is None


@pytest.mark.parametrize("layer", [
    layers.MaxPool2D(2), layers.MaxPool2D((3, 2), (1, 2), (1, 0), (1, 2)), layers.AvgPool2D(3, 2, 1),
    layers.GlobalAvgPool(),
], ids=repr)  # fmt: skip
def test_a_pooling_says_the_shape_it_gives(layer):
    x = numbers(2, 3, 9, 8, dtype="f4")
    assert layer.forward(x).shape == (2, *layer.output_shape((3, 9, 8)))
    assert layer.flops((3, 9, 8)) > 0
    again = type(layer)(**layer.config())
    assert again.config() == layer.config()
    assert np.array_equal(again.forward(x), layer.forward(x))


def test_global_average():
    x = numbers(2, 3, 4, 5)
    np.testing.assert_allclose(layers.GlobalAvgPool()(x), x.mean(axis=(2, 3)), rtol=1e-12)


class Images(layers.Layer):
    """(n, 144) as (n, 1, 12, 12)."""

    op = ops.reshape

    def options(self, xp):
        return {"shape": (-1, 1, 12, 12)}

    def output_shape(self, shape):
        return 1, 12, 12


PIXELS = RNG.integers(0, 256, (60, 144)).astype(np.uint8)
LABELS = PIXELS[:, 30:34].argmax(axis=1)


def small_network(flat=True, dtype="float32"):
    """Convolution, poolings, nested once."""
    return xnn.Sequential(
        *([layers.Rescale(1 / 255, dtype=dtype), Images()] if flat else []),
        layers.Conv2D(1, 4, 3, padding="same", dtype=dtype), layers.ReLU(), layers.MaxPool2D(2),
        xnn.Sequential(
            layers.Conv2D(4, 6, 3, stride=2, padding=1, dtype=dtype), layers.Tanh(), layers.AvgPool2D(3, 1, 1)
        ),
        layers.Conv2D(6, 4, 1, bias=False, dtype=dtype), layers.GlobalAvgPool(), seed=1,
    )  # fmt: skip


def train(kernels, numerics=None, model=None, x=PIXELS):
    model = model or small_network()
    trainer = xnn.Trainer(
        model,
        losses.SoftmaxCrossEntropy(),
        optimizers.SGD(0.5, momentum=0.9),
        kernels=kernels,
        numerics=numerics,
    )
    history = trainer.fit((x, LABELS), epochs=4, batch_size=25, progress=False)
    return model, history


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_program_trains_it_as_layers_by_hand_do(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    model, history = train(kernels)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    by_hand, loss = small_network(), losses.SoftmaxCrossEntropy()
    optimizer = optimizers.SGD(0.5, momentum=0.9)
    from xnn.data import Batches

    batches = Batches((PIXELS, LABELS), 25, True, 0)
    for epoch in range(4):
        for x, y in batches.epoch(epoch):
            loss.forward(by_hand.forward(x, training=True), y)
            by_hand.backward(loss.backward(), input_gradient=False)
            optimizer.step(by_hand.parameters())
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-3, atol=1e-4)


def test_training_on_every_backend(lib):
    model, history = train("ops")
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert model.predict(PIXELS).shape == (60, 4)
    assert model.predict(PIXELS[:0]).shape == (0, 4)


@pytest.mark.slow
def test_a_float64_model():
    model, _ = train("auto", model=small_network(dtype="float64"))
    assert model.predict(PIXELS).dtype == np.float64


def test_a_saved_model_is_the_same(tmp_path):
    model, _ = train(
        "auto", model=small_network(flat=False), x=PIXELS.reshape(60, 1, 12, 12) / np.float32(255)
    )
    x = numbers(3, 1, 12, 12, dtype="f4")
    model.save(tmp_path / "m.safetensors")
    loaded = xnn.load(tmp_path / "m.safetensors")
    assert weights_sha256(loaded) == weights_sha256(model)
    assert repr(loaded) == repr(model)
    assert loaded.predict(x).tobytes() == model.predict(x).tobytes()


def test_a_summary_asks_for_what_no_layer_tells():
    model = small_network(flat=False)
    assert "(4, 12, 12)" in model.summary((1, 12, 12))
    with pytest.raises(OptionError, match=r"input_shape=.*unless a Reshape or Dense has it"):
        model.summary()
    assert "(3,)" in xnn.Sequential(layers.Dense(5, 3)).summary()
    with pytest.raises(OptionError, match="summary needs input_shape"):
        xnn.Sequential(layers.ReLU()).summary()


def test_wrong_images_are_heard_of_before_training():
    model = small_network(flat=False)
    with pytest.raises(ShapeError, match=r"\(n, 1, height, width\), got samples of shape \(144,\)"):
        train("auto", model=model)
    with pytest.raises(ShapeError, match="does not fit an image of 1 x 2"):
        xnn.Sequential(layers.Conv2D(1, 1, 3)).predict(np.ones((2, 1, 1, 2)))
