"""The compiled kernels of losses and metrics compared with their ops."""

import numpy as np
import pytest
from test_kernels import DTYPES, EPSILON, LIB, Both, close, numbers

from xnn import ops
from xnn.backends.kernels.calls import Call, Slot
from xnn.ops.deviances import OF_SCIKIT_LEARN
from xnn.ops.metrics import absolute_error, accuracy, squared_error

pytest.importorskip("numba")

POSITIVE = np.array([0.5, 0.0, 3.0])
LOSSES = [
    (ops.mse, {}), (ops.l1, {}), (ops.huber, {}), (ops.huber, {"delta": 0.3}), (ops.hinge, {}),
    (ops.binary_cross_entropy, {}), (ops.binary_cross_entropy, {"pos_weight": 2.5}),
    (ops.binary_cross_entropy, {"pos_weight": POSITIVE}), (ops.focal, {}), (ops.focal, {"gamma": 0.7, "alpha": None}),
    (ops.kl_divergence, {}), *((op, {}) for op in OF_SCIKIT_LEARN.values()),
    (ops.softmax_cross_entropy, {}), (ops.softmax_cross_entropy, {"label_smoothing": 0.1}),
    (ops.softmax_cross_entropy, {"class_weight": POSITIVE}), (ops.softmax_cross_entropy, {"ignore_index": 2}),
    (ops.softmax_cross_entropy, {"label_smoothing": 0.3, "class_weight": POSITIVE, "ignore_index": -100}),
]  # fmt: skip
REDUCTIONS = "mean", "sum", "sum_over_batch_size"


def named(x):
    return x.name if isinstance(x, ops.Op) else ",".join(x) or "plain"


def targets_of(op, shape, dtype, shares=False):
    uniform = np.abs(numbers(shape, dtype, 2)) / 2
    if op is ops.hinge:
        return np.where(numbers(shape, dtype, 2) > 0, 1, -1).astype(dtype)
    if op is ops.softmax_cross_entropy and not shares:
        return (
            (uniform.reshape(shape[0], -1)[:, 0] * 3).astype(np.int64) if uniform.size else np.zeros(0, "i8")
        )
    if op in (ops.mse, ops.l1, ops.huber, OF_SCIKIT_LEARN["squared_error"]):
        return numbers(shape, dtype, 2)
    uniform.reshape(-1)[::4] = 0
    return uniform


def run(op, z, t, weights, **options):
    """Loss, gradient and divisor, by kernels and by the op."""
    both, reads = Both(LIB.kernels("compiled")), ["z", "t"]
    both.slot("z", z)
    both.slot("t", t)
    if weights is not None:
        both.slot("w", weights)
        reads.append("w")
    both.slot("one", np.ones((), z.dtype))
    for name, shape in {"loss": (), "g": z.shape, "total": ()}.items():
        both.empty(name, shape, z.dtype)

    def make(s):
        given = tuple(s[name] for name in reads)
        forward = Call("forward", op, given, (s["loss"],), options)
        back = Call("backward", op, (s["one"],), (s["g"], *[None] * (len(reads) - 1)), forward=forward)
        loss = Call("loss", op, given, (s["loss"], s["g"]), options, parts=(forward, back))
        return [Call("total", op, given, (s["total"],), options), loss]

    found = both.run(make)
    for name in reads:
        assert found[name][0].tobytes() == found[name][1].tobytes(), f"{name} was written"
    found["total"] = found["total"][0], np.asarray(found["total"][1]).astype(z.dtype)
    close(*found["total"], 8)
    return found


@pytest.mark.sampled(6)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (45, 3), (300, 3)], ids=str)
@pytest.mark.parametrize(("op", "options"), LOSSES, ids=named)
def test_losses(op, options, shape, weighted, dtype):
    z, t = 3 * numbers(shape, dtype, 1), targets_of(op, shape, dtype)
    weights = np.abs(numbers(shape[:1], dtype, 3)) if weighted else None
    if weighted and len(weights) > 1:
        weights[::3] = 0
    for reduction in REDUCTIONS if shape == (45, 3) else REDUCTIONS[:1]:
        found = run(op, z, t, weights, reduction=reduction, **options)
        close(*found["loss"], 64)
        close(*found["g"], 64)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_as_targets(dtype, whole):
    """whole: they are whole numbers, int64."""
    for options in ({}, {"label_smoothing": 0.2, "class_weight": POSITIVE}):
        t = targets_of(ops.softmax_cross_entropy, (45, 3), dtype, shares=True)
        t = np.eye(3, dtype=np.int64)[t.argmax(axis=1)] if whole else t
        found = run(ops.softmax_cross_entropy, 3 * numbers((45, 3), dtype, 1), t, None, **options)
        close(*found["loss"], 64)
        close(*found["g"], 64)


@pytest.mark.parametrize("shape", [(7,), (5, 3, 2)], ids=str)
@pytest.mark.parametrize("op", [op for op, options in LOSSES if not options][:6], ids=lambda op: op.name)
def test_outputs_with_other_axes(op, shape):
    found = run(op, numbers(shape, "float32", 1), targets_of(op, shape, "float32"), None)
    close(*found["loss"], 64)
    close(*found["g"], 64)


def test_divergences_of_several_places_of_a_sample():
    weights = np.abs(numbers((5,), "float64", 3))
    shape = (5, 3, 2)
    found = run(
        ops.kl_divergence, numbers(shape, "float64", 1), targets_of(ops.focal, shape, "float64"), weights
    )
    close(*found["loss"], 64)
    close(*found["g"], 64)


EDGES = [np.inf, -np.inf, np.nan, -0.0, 100.0, -1e30, 1e-42]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("op", "options"), LOSSES, ids=named)
def test_one_number_that_is_not_ordinary(op, options, edge, target):
    """Also beside others: a loss that is infinite or NaN is seen, unless the sample's weight is 0."""
    dtype = "float32" if target else "float64"
    z = np.array([[edge, 0.5, -0.25], [edge, edge, 1.0]], dtype)
    t = np.full((2, 3), target, dtype) if op is not ops.softmax_cross_entropy else np.array([target, 2])
    if op is ops.hinge:
        t = 2 * t - 1
    for weights in (None, np.array([0.0, 1.0], dtype)):
        found = run(op, z, t, weights, **options)
        close(*found["loss"], 64, special=True)
        close(*found["g"], 64, special=True)


@pytest.mark.parametrize("labels", [[1, 0, 2], [1, 3, 2], [-1, 0, 2], [0, 0, -100]], ids=str)
@pytest.mark.parametrize(
    "options", [options for op, options in LOSSES if op is ops.softmax_cross_entropy], ids=str
)
def test_labels_out_of_range(labels, options):
    z = np.array([[-np.inf, 0.0, 1.0], [2.0, -200.0, 0.5], [1.0, -1.0, 0.0]])
    found = run(ops.softmax_cross_entropy, z, np.array(labels), None, **options)
    close(*found["loss"], 64, special=True)
    close(*found["g"], 64, special=True)


def test_unweighted_distances_have_the_ops_gradient_to_the_bit():
    z, t = numbers((45, 3), "float32", 1), numbers((45, 3), "float32", 2)
    for op in (ops.mse, ops.l1, ops.huber, OF_SCIKIT_LEARN["squared_error"]):
        kernel, plain = run(op, z, t, None)["g"]
        np.testing.assert_array_equal(kernel, plain)


@pytest.mark.parametrize(
    ("op", "options", "other"),
    [
        (ops.mse, {"reduction": "none"}, {}),
        (ops.mse, {}, {"t": ((4, 3), "float64")}),
        (ops.mse, {}, {"t": ((4, 1), "float32")}),
        (ops.softmax_cross_entropy, {"class_weight": np.ones(2)}, {"t": ((4,), "int64")}),
        (ops.softmax_cross_entropy, {"ignore_index": 1}, {}),
        (ops.softmax_cross_entropy, {"ignore_index": 1}, {"t": ((4,), "uint8")}),
        (ops.binary_cross_entropy, {"pos_weight": np.ones(4)}, {}),
        (OF_SCIKIT_LEARN["log_loss"], {"pos_weight": 2.0}, {}),
        (OF_SCIKIT_LEARN["squared_error"], {}, {"z": ((4,), "float32"), "t": ((4,), "float32")}),
    ],
)
def test_losses_that_the_op_must_judge_have_no_kernel(op, options, other):
    shapes = {"z": ((4, 3), "float32"), "t": ((4, 3), "float32"), **other}
    z, t = (Slot(name, shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items())
    out, g = Slot("loss", (), z.dtype), Slot("g", (4, 3), z.dtype)
    assert not LIB.kernels("compiled").accepts(Call("loss", op, (z, t), (out, g), options))


def test_the_logarithm_of_one_more():
    import numba

    from xnn.backends.kernels.intrinsics import log_of_one_more

    @numba.njit
    def log(x, y):
        for i in range(x.size):
            y[i] = log_of_one_more(x[i])

    for dtype in DTYPES:
        x = np.concatenate([np.linspace(0, 1, 5000), np.logspace(-30, 0, 5000), [np.nan]]).astype(dtype)
        y = np.empty_like(x)
        log(x, y)
        np.testing.assert_allclose(y, np.log1p(x.astype(np.longdouble)), rtol=3 * EPSILON[dtype])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7,), (45, 1), (300, 3), (5, 3, 2)], ids=str)
@pytest.mark.parametrize("metric", [accuracy, absolute_error, squared_error], ids=lambda f: f.__name__)
def test_metrics_of_outputs_and_targets_of_one_shape(metric, shape, special, dtype):
    both = Both(LIB.kernels("compiled"))
    both.slot("p", numbers(shape, dtype, 1, special))
    both.slot("t", numbers(shape, dtype, 2))
    both.empty("count", (np.prod(shape[1:], dtype=int),) if metric is accuracy else shape[1:], dtype)
    options = {"binary": True, "threshold": 0.25} if metric is accuracy else {}
    found = both.run(lambda s: [Call("metric", metric, (s["p"], s["t"]), (s["count"],), options)])
    kernel, plain = found["count"]
    close(kernel, np.asarray(plain, dtype), 16, special=special)
