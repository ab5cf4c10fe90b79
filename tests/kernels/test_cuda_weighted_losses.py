"""CUDA kernels of losses with weights, options and reductions, of their divisors, and of softmax; against the ops."""

import importlib

import numpy as np
import pytest
from test_cuda_kernels import Both, gpu, pytestmark
from test_kernels import DTYPES, EPSILON, close, numbers

from xnn import ops
from xnn.backends import Purpose, Stream, available_backends
from xnn.backends.kernels.calls import Call, Slot
from xnn.backends.kernels.cuda.loss_kernels import DISTANCES

__all__ = ["gpu", "pytestmark"]

REDUCTIONS = "mean", "sum", "sum_over_batch_size"
ORDERS = ("backward", "random") if not available_backends()["cupy"] else ("backward",)


@pytest.fixture(params=ORDERS)
def both(request, gpu):
    """Slots for kernels and ops; on the emulated GPU in several orders of threads."""
    attached = importlib.util.find_spec("cuda_emulator.attach") and importlib.import_module(
        "cuda_emulator.attach"
    )
    if not attached or attached._driver is None:
        yield Both(gpu)
        return
    with importlib.import_module("cuda_emulator.kernels").settings(order=request.param):
        yield Both(gpu)


def run(both, op, outputs, targets, weights=None, **options):
    """The loss, its gradient, its divisor where it is not fixed, and the record of it, by kernels and by the op."""
    dtype, n = outputs.dtype, len(outputs)
    both.slot("z", outputs)
    both.slot("t", targets)
    names = ["z", "t"]
    if weights is not None:
        both.slot("w", weights.astype(dtype))
        names.append("w")
    both.slot("one", np.ones((), dtype))
    both.slot("x", numbers((n, 3), str(dtype), 5))
    both.slot("v", numbers((3, outputs.shape[-1]), str(dtype), 6))
    both.slot("b", numbers(outputs.shape[-1:], str(dtype), 7))
    for name, shape in {"loss": (), "g": outputs.shape, "total": (), "out": outputs.shape}.items():
        both.empty(name, shape, dtype)
    for name in ("dv", "db"):
        both.empty(name, {"dv": (3, outputs.shape[-1]), "db": outputs.shape[-1:]}[name], dtype)
    both.collected = losses, totals = [], []
    divided = options.get("reduction", "mean") == "mean" and (
        weights is not None or "class_weight" in options or "ignore_index" in options
    )
    flat = outputs.ndim == 2

    def make(s):
        there = s is both.there
        own = {
            key: both.gpu.to_device(x.astype(dtype)) if there and isinstance(x, np.ndarray) else x
            for key, x in options.items()
        }
        reads = tuple(s[name] for name in names)
        dense = Call("forward", ops.dense, (s["x"], s["v"], s["b"]), (s["out"],))
        total = Call("total", op, reads, (s["total"],), own)
        forward = Call("forward", op, reads, (s["loss"],), own)
        back = Call("backward", op, (s["one"],), (s["g"], *[None] * (len(names) - 1)), forward=forward)
        loss = Call("loss", op, reads, (s["loss"], s["g"]), own, parts=(forward, back))
        bias = Call("backward", ops.dense, (s["g"],), (None, s["dv"], s["db"]), forward=dense)
        record = Call("collect", None, (s["loss"],), (), {"into": losses})
        more = Call("collect", None, (s["total"],), (), {"into": totals})
        return [
            *[dense] * flat, *[total] * divided, loss, *[bias] * flat, record, *[more] * divided,
        ]  # fmt: skip

    found = both.run(make)
    close(*found["loss"], 64 + n, special=True)
    worst = np.max(np.abs(found["g"][1][np.isfinite(found["g"][1])]), initial=1e-30)
    np.testing.assert_allclose(found["g"][0], found["g"][1], rtol=1e-4, atol=worst * 64 * EPSILON[str(dtype)])
    assert both.recorded[0].tolist() == [pytest.approx(float(found["loss"][0]), nan_ok=True)]
    if divided:
        close(found["total"][0], found["total"][1].astype(dtype), 8 + n)
        assert both.recorded[1].tolist() == [pytest.approx(float(found["total"][0]))]
    if flat:
        close(*found["db"], 64 + n, size=max(1.0, n * float(worst)), special=True)
    return found


def labels_of(n, classes):
    return (np.asarray(Stream(3, Purpose.DIRECTIONS).uniform((n,))) * classes).astype("int64")


def weights_of(n):
    weights = np.abs(numbers((n,), "float64", 8))
    weights[::3] = 0.0
    return weights


CLASS_WEIGHT = np.array([0.5, 0.0, 3.0, 1.0, 2.0])
OPTIONS = [
    {"label_smoothing": 0.1}, {"class_weight": CLASS_WEIGHT}, {"ignore_index": 2}, {"ignore_index": -100}, {},
    {"label_smoothing": 0.3, "class_weight": CLASS_WEIGHT, "ignore_index": 1},
]  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
@pytest.mark.parametrize(("n", "dtype"), [(1, "float32"), (45, "float64"), (3500, "float32")])
def test_cross_entropy_with_options(both, n, dtype, options, reduction, weighted):
    labels = labels_of(n, 5)
    weights = weights_of(n) if weighted else None
    run(
        both,
        ops.softmax_cross_entropy,
        numbers((n, 5), dtype, 1),
        labels,
        weights,
        reduction=reduction,
        **options,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_left_out_may_be_anything(both, dtype):
    """An ignored label, or a weight of 0, for logits that are not finite; and wrong labels, which are NaN."""
    z = np.array([[np.nan, 1, 2], [np.inf, -np.inf, 0], [0, 1, 2], [1, 1, 1]], dtype)
    found = run(
        both, ops.softmax_cross_entropy, z, np.array([7, 0, 1, 2]), np.array([1, 0, 1, 2.0]), ignore_index=7
    )
    assert np.isfinite(found["loss"][0])
    assert np.isfinite(found["g"][0]).all()
    found = run(both, ops.softmax_cross_entropy, z[2:], np.array([3, 1]), class_weight=np.ones(3))
    assert np.isnan(found["loss"][0])
    assert np.isnan(found["g"][0]).any(axis=1).tolist() == [True, False]
    for labels, weights in (([7, 7], None), ([0, 1], np.zeros(2))):  # nothing counts
        found = run(both, ops.softmax_cross_entropy, z[2:], np.array(labels), weights, ignore_index=7)
        assert found["loss"][0] == 0.0
        assert not found["g"][0].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("op", DISTANCES, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1), "float32"), ((33, 4), "float64"), ((7, 3, 5), "float32"), ((300, 70), "float32")],
)
def test_weighted_losses_of_outputs_and_targets(both, shape, dtype, op, reduction):
    p, t = numbers(shape, dtype, 1), numbers(shape, dtype, 2)
    t = (t > 0).astype(dtype) if op is ops.binary_cross_entropy else t
    weights = weights_of(shape[0])
    if shape[0] > 3:
        p[0], p[3] = np.nan, np.inf  # of weight 0
    run(both, op, p, t, weights, reduction=reduction)
    run(both, op, np.where(np.isfinite(p), p, 0).astype(dtype), t, reduction=reduction)


@pytest.mark.parametrize("positive", [2.5, np.array([0.0, 1.0, 3.0, 0.5])], ids=["number", "array"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_positive_targets(both, dtype, positive):
    z = 9 * numbers((40, 4), dtype, 1)
    z[:2] = [[np.inf, -np.inf, np.inf, -np.inf], [np.nan, 1, 2, 3]]
    t = (numbers((40, 4), dtype, 2) > 0).astype(dtype)
    t[0] = 0, 1, 1, 0
    run(both, ops.binary_cross_entropy, z, t, pos_weight=positive)
    run(both, ops.binary_cross_entropy, z[2:], t[2:], weights_of(38), pos_weight=positive)


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax], ids=lambda op: op.name)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (7, 3), (2, 3, 40), (300, 65)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(both, dtype, shape, op):
    x = 20 * numbers(shape, dtype, 1)
    if len(shape) > 1 and shape[0] > 4:
        x[0, 0], x[1, :2], x[2] = np.nan, (np.inf, -np.inf), -np.inf
    both.slot("x", x)
    both.slot("dy", numbers(shape, dtype, 2))
    both.empty("y", shape, dtype)
    both.empty("dx", shape, dtype)

    def make(s):
        forward = Call("forward", op, (s["x"],), (s["y"],), {"axis": len(shape) - 1})
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    assert both.launches == 2
    close(*found["y"], 64, size=40.0, special=True)
    close(*found["dx"], 64 + shape[-1], size=8.0, special=True)


def test_what_these_kernels_leave_to_the_ops(gpu):
    """Another axis, probabilities as targets, weights of classes that are on the host or of another dtype."""
    table = gpu.kernels("cuda")
    z, t, loss, g = (
        Slot(name, shape, np.dtype(dtype))
        for name, shape, dtype in [
            ("z", (4, 3), "f4"),
            ("t", (4,), "i8"),
            ("loss", (), "f4"),
            ("g", (4, 3), "f4"),
        ]
    )
    assert not table.accepts(Call("forward", ops.softmax, (z,), (g,), {"axis": 0}))
    cost = ops.softmax_cross_entropy
    for reads, options in [
        ((z, g), {}), ((z, t), {"class_weight": (1.0, 2.0, 3.0)}), ((z, t, t), {}), ((z, t), {"reduction": "none"}),
        ((z, t), {"class_weight": gpu.to_device(np.ones(3))}),
        ((z, t), {"class_weight": gpu.to_device(np.ones(4, "f4"))}),
    ]:  # fmt: skip
        assert not table.accepts(Call("loss", cost, reads, (loss, g), options)), options
    assert not table.accepts(Call("total", cost, (z, t), (loss,), {"label_smoothing": 0.1}))
    assert table.accepts(Call("total", cost, (z, t), (loss,), {"ignore_index": 1}))


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (0, 2), (400,)], ids=str)
def test_arrays_are_recorded(both, shape, dtype):
    both.slot("a", (10 * numbers(shape, "float64", 1)).astype(dtype))
    both.slot("b", numbers((2,), "float32", 2))
    both.collected = ones, others = [], []

    def make(s):
        return [
            Call("collect", None, (s[name],), (), {"into": into})
            for name, into in (("a", ones), ("b", others))
        ]

    found = both.run(make)
    for number, name in enumerate("ab"):
        (recorded,) = both.recorded[number]
        assert recorded.dtype == np.float64
        np.testing.assert_array_equal(recorded, found[name][1])
