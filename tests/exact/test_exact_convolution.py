"""Convolution and embedding in exact numerics: the same bits for all kernels, backends, orders and workers."""

import numpy as np
import pytest
from exact_tools import Watched, bits_of, by_workers, is_stored, run
from test_convolution import GEOMETRIES, LABELS, PIXELS, small_network, train, windows
from test_exact_ops import draw

import xnn
from xnn import layers, losses, ops
from xnn.backends import get_backend
from xnn.backends.exact import ScaledIntegers
from xnn.layers.files import weights_sha256
from xnn.ops.apply import backward_of, forward_of

LIB = get_backend("numpy")


@pytest.fixture(autouse=True)
def _exact():
    with xnn.numerics("exact"):
        yield


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES, ids=str)
@pytest.mark.parametrize("kind", ["full", "wide"])
def test_conv2d_is_dense_of_its_windows(kernel, stride, padding, dilation, kind):
    """y and dw have the same bits; dx, whose windows are added in float64, agrees to one rounding."""
    x, w, b = draw(kind, (3, 2, 7, 8), 1), draw(kind, (4, 2, *kernel), 2), draw("even", (4,), 3)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    patches = windows(x, kernel, stride, padding, dilation, 0.0)
    n, _, oh, ow = patches.shape[:4]
    rows = np.permute_dims(patches, (0, 2, 3, 1, 4, 5)).reshape(n * oh * ow, -1)
    dy = draw(kind, (n, 4, oh, ow), 4)
    d_rows = np.permute_dims(dy, (0, 2, 3, 1)).reshape(-1, 4)
    y, dx, dw, db = run(LIB, ops.conv2d, (x, w, b), options, dy)
    y_rows, dx_rows, dw_rows, db_rows = run(LIB, ops.dense, (rows, w.reshape(4, -1).T.copy(), b), {}, d_rows)
    assert bits_of(np.permute_dims(y, (0, 2, 3, 1)).reshape(-1, 4)) == bits_of(y_rows)
    assert bits_of(dw.reshape(4, -1).T) == bits_of(dw_rows)
    assert bits_of(db) == bits_of(db_rows)
    parts, wanted = dx_rows.reshape(n, oh, ow, 2, *kernel).astype("f8"), np.zeros((3, 2, 20, 20))
    for u, v, i, j in np.ndindex(oh, ow, *kernel):
        wanted[:, :, u * stride[0] + i * dilation[0], v * stride[1] + j * dilation[1]] += parts[
            :, u, v, :, i, j
        ]
    wanted = wanted[:, :, padding[0] : padding[0] + 7, padding[1] : padding[1] + 8]
    np.testing.assert_allclose(dx, wanted, rtol=1e-5, atol=2e-6 * np.abs(parts).max())
    assert all(is_stored(a) for a in (y, dx, dw, db))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_pixels_stay_integers_through_the_windows(lib, dtype):
    limits = np.iinfo(dtype)
    x = np.random.default_rng(1).integers(limits.min, limits.max, (2, 2, 6, 6), dtype, endpoint=True)
    w, dy = draw("even", (3, 2, 3, 3), 2), draw("even", (2, 3, 4, 4), 3)
    pixels = ScaledIntegers(lib, lib.to_device(x), 1 / 255)
    options = {"padding": (1, 0), "stride": (2, 1)}
    y, saved = forward_of(ops.conv2d, lib.math, (pixels, lib.to_device(w)), options)
    kept = saved[0][0]
    assert isinstance(kept, ScaledIntegers)
    assert kept.integers.dtype == getattr(lib.xp, dtype)
    gradients = backward_of(ops.conv2d, lib.math, lib.to_device(dy[:, :, : y.shape[2]]), saved)
    one = np.asarray(lib.to_host(pixels.materialize()))
    wanted = run(lib, ops.conv2d, (one, w), options, dy[:, :, : y.shape[2]])
    for found, number in zip((y, *gradients), wanted, strict=True):
        np.testing.assert_allclose(lib.to_host(found), number, rtol=1e-4, atol=1e-4 * np.abs(number).max())


def test_no_partial_sum_of_a_convolution_is_rounded():
    lib = Watched()
    for kind in ("full", "wide"):
        x, w = draw(kind, (2, 3, 9, 9), 1), draw(kind, (5, 3, 3, 3), 2)
        _, saved = forward_of(ops.conv2d, lib.watched, (x, w), {"padding": 1})
        backward_of(ops.conv2d, lib.watched, draw(kind, (2, 5, 9, 9), 3), saved)
    pixels = ScaledIntegers(lib, np.full((2, 3, 9, 9), 255, np.uint8), 1 / 255)
    _, saved = forward_of(ops.conv2d, lib.watched, (pixels, w), {"padding": 1})
    backward_of(ops.conv2d, lib.watched, draw("full", (2, 5, 9, 9), 3), saved)
    assert lib.products == 2 * 6 + 4
    assert lib.fullest > 2.0**45


OPS = {
    "conv2d": (ops.conv2d, ((5, 3, 3, 3), (5,)), {"stride": 2, "padding": 1}),
    "max_pool2d": (ops.max_pool2d, (), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool2d": (ops.avg_pool2d, (), {"kernel_size": (2, 3), "stride": 1, "padding": 1}),
}


@pytest.mark.parametrize("kind", ["full", "wide", "any"])
@pytest.mark.parametrize("name", OPS)
def test_results_have_no_negative_zero_and_no_subnormal(lib, name, kind):
    op, rest, options = OPS[name]
    inputs = [draw(kind, (2, 3, 7, 7), 1), *(draw("even", shape, 2) for shape in rest)]
    inputs[0][:, :, ::2] = -0.0
    inputs[0][:, 1] = -1e-40
    with np.errstate(over="ignore", invalid="ignore"):
        found = run(lib, op, inputs, options)
        assert all(is_stored(a[np.isfinite(a)]) for a in found)
        assert [bits_of(a) for a in found] == [bits_of(a) for a in run(LIB, op, inputs, options)]


def test_the_order_of_samples_and_channels_changes_no_bit():
    x, w, b = draw("wide", (6, 5, 6, 6), 1), draw("wide", (4, 5, 3, 3), 2), draw("even", (4,), 3)
    dy = draw("wide", (6, 4, 4, 4), 4)
    y, dx, dw, db = run(LIB, ops.conv2d, (x, w, b), {}, dy)
    rng = np.random.default_rng(0)
    samples, channels, outputs = rng.permutation(6), rng.permutation(5), rng.permutation(4)
    other = run(
        LIB,
        ops.conv2d,
        (x[samples][:, channels], w[outputs][:, channels], b[outputs]),
        {},
        dy[samples][:, outputs],
    )
    wanted = y[samples][:, outputs], dx[samples][:, channels], dw[outputs][:, channels], db[outputs]
    assert [bits_of(a) for a in other] == [bits_of(a) for a in wanted]


def digest(kernels, floats):
    x = PIXELS.reshape(60, 1, 12, 12) / np.float32(255) if floats else PIXELS
    model, history = train(kernels, "exact", small_network(flat=not floats), x)
    return weights_sha256(model), history.losses_sha256, model.predict(x).tobytes()


@pytest.mark.sampled(8)
@pytest.mark.parametrize("floats", [False, True], ids=["pixels", "floats"])
def test_a_run_has_the_same_bits_with_every_table_of_kernels(floats, other):
    found = {kernels: digest(kernels, floats) for kernels in ("ops", "numpy")}
    try:
        import numba  # noqa: F401

        found["compiled"] = digest("compiled", floats)
    except ImportError:
        pass
    with xnn.backend(other.name):
        found[other.name] = digest("ops", floats)
    assert len(set(found.values())) == 1, found.keys()
    with xnn.numerics("fast"):
        assert weights_sha256(train("ops", "fast", small_network())[0]) != found["ops"][0]


def test_predictions_do_not_depend_on_the_rest_of_the_batch():
    model = small_network()
    whole = model.predict(PIXELS)
    assert whole.tobytes() == np.concatenate([model.predict(PIXELS[i : i + 1]) for i in range(60)]).tobytes()


WORDS = np.random.default_rng(2).integers(0, 9, (60, 12))


def shard(rows):
    """Return one worker's gradients: of a network for images, and of one for words."""
    found = []
    for model, x in (
        (small_network(), PIXELS),
        (xnn.Sequential(layers.Embedding(9, 3), layers.Flatten(), layers.Dense(36, 4), seed=2), WORDS),
    ):
        loss = losses.SoftmaxCrossEntropy()
        outputs = model.forward(model.prepare(x[rows]), training=True)
        loss.forward(outputs, LABELS[rows])
        model.backward(loss.backward(), input_gradient=False)
        found += [np.asarray(p.grad) for p in model.parameters()]
    return found


@pytest.mark.parametrize("cuts", [(), (30,), (1,), (0,), (7, 40), (20, 20)], ids=str)
def test_workers_have_the_gradients_of_the_whole_batch(cuts):
    whole = shard(slice(None))
    assert all(gradient.any() for gradient in whole)
    for gradients in by_workers([0, *cuts, 60], shard):
        assert [bits_of(g) for g in gradients] == [bits_of(g) for g in whole]
