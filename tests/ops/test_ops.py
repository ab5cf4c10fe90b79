"""Ops: values against NumPy. For the table `xnn/ops/cases.py`: gradients, and equal results however an op is run."""

import math

import numpy as np
import pytest

import xnn
from xnn import ops
from xnn.cli.check import compute_three_ways, draw, run_checks
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.graph import Input, forward_pass, topological_sort
from xnn.graph.autograd import Value, gradients_of
from xnn.graph.check import gradient_check
from xnn.ops.cases import CASES

A = np.array([[1.5, -2.0, 0.25], [-0.5, 3.0, -1.0]])
B = np.array([[0.5, 2.0, -1.5]])


def ids(case):
    return case.name


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_gradient(lib, case):
    fixed = [x for x in draw(case, "float64") if isinstance(x, float)]
    inputs = [lib.to_device(x) for x in draw(case, "float64") if not isinstance(x, float)]
    report = gradient_check(lambda *xs: case.op(*xs, *fixed, **case.options), *inputs)
    assert report, report
    assert report.checked


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_layer_graph_and_autograd_give_the_same_bits_and_keep_the_dtype(lib, case):
    doors = compute_three_ways(lib, case, "float32")
    assert len(doors["layer"]) == 2
    for door in ("layer", "graph"):
        for a, b in zip(doors[door], doors["autograd"], strict=door == "graph"):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype == np.float32
                assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda a, b: ops.add(a, b, a), A + B + A),
        (lambda a, b: ops.sub(a, b), A - B),
        (lambda a, b: ops.mul(a, b, b), A * B * B),
        (lambda a, b: ops.div(a, b), A / B),
        (lambda a, b: ops.pow(a, 3.0), A**3),
        (lambda a, b: ops.exp(a), np.exp(A)),
        (lambda a, b: ops.log(ops.exp(a)), A),
        (lambda a, b: ops.expm1(a), np.expm1(A)),
        (lambda a, b: ops.log1p(ops.abs(a)), np.log1p(abs(A))),
        (lambda a, b: ops.sqrt(ops.abs(a)), np.sqrt(abs(A))),
        (lambda a, b: ops.sin(a), np.sin(A)),
        (lambda a, b: ops.cos(a), np.cos(A)),
        (lambda a, b: ops.erf(a), np.vectorize(math.erf)(A)),
        (lambda a, b: ops.sign(a * 0.0 + b), np.broadcast_to(np.sign(B), A.shape)),
        (lambda a, b: ops.abs(a), np.abs(A)),
        (lambda a, b: ops.maximum(a, b), np.maximum(A, B)),
        (lambda a, b: ops.minimum(a, b), np.minimum(A, B)),
        (lambda a, b: ops.clip(a, -1.0, 0.25), np.clip(A, -1.0, 0.25)),
        (lambda a, b: ops.clip(a, max=0.25), np.minimum(A, 0.25)),
        (lambda a, b: ops.clip(a, min=b), np.maximum(A, B)),
        (lambda a, b: ops.clip(a, 1.0, -1.0), np.clip(A, 1.0, -1.0)),
        (lambda a, b: ops.where(a > 0.0, a, b), np.where(A > 0, A, B)),
        (lambda a, b: ops.matmul(a, ops.transpose(b)), A @ B.T),
        (lambda a, b: ops.sum(a, axis=1, keepdims=True), A.sum(1, keepdims=True)),
        (lambda a, b: ops.mean(a, axis=0), A.mean(0)),
        (lambda a, b: ops.var(a), A.var()),
        (lambda a, b: ops.var(a, axis=(0, 1), keepdims=True), A.var(keepdims=True)),
        (lambda a, b: ops.var(a, axis=1, correction=1), A.var(1, ddof=1)),
        (lambda a, b: ops.max(a, axis=(0, 1)), A.max()),
        (lambda a, b: ops.min(a), A.min()),
        (lambda a, b: ops.min(a, axis=1, keepdims=True), A.min(1, keepdims=True)),
        (lambda a, b: ops.reshape(a, shape=(3, -1)), A.reshape(3, 2)),
        (lambda a, b: ops.concat((a, b)), np.concatenate([A, B])),
        (lambda a, b: ops.concat([a, a], axis=1), np.concatenate([A, A], axis=1)),
        (lambda a, b: ops.stack((a, a)), np.stack([A, A])),
        (lambda a, b: ops.stack(a, a, axis=1), np.stack([A, A], axis=1)),
        (lambda a, b: ops.stack([a, a], axis=-1), np.stack([A, A], axis=-1)),
        (lambda a, b: ops.relu(a), np.where(A > 0, A, 0)),
        (lambda a, b: ops.sigmoid(a), 1 / (1 + np.exp(-A))),
        (lambda a, b: ops.tanh(a), np.tanh(A)),
        (lambda a, b: ops.softmax(a), np.exp(A) / np.exp(A).sum(1, keepdims=True)),
        (lambda a, b: ops.rescale(a, scale=2.0, offset=1.0), 2 * A + 1),
    ],
)
def test_values(lib, result, expected):
    got = lib.to_host(result(lib.to_device(A), lib.to_device(B)))
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_take_adds_the_gradients_of_an_index_that_comes_twice(lib):
    x = lib.to_device(np.arange(8.0).reshape(4, 2))
    rows = lib.to_device(np.array([3, 1, 3, 3]))
    y, saved = ops.take.forward(lib.xp, x, rows)
    np.testing.assert_array_equal(lib.to_host(y), [[6, 7], [2, 3], [6, 7], [6, 7]])
    # Adding 1, then 2^-60, then -1 in this order loses the small number; another order would not.
    grad = lib.to_device(np.array([[1.0, 1.0], [5.0, 5.0], [2.0**-60, 2.0**-60], [-1.0, np.inf]]))
    dx, none = ops.take.backward(lib.xp, grad, saved)
    assert none is None
    np.testing.assert_array_equal(lib.to_host(dx), [[0, 0], [5, 5], [0, 0], [0, np.inf]])


def test_take_counts_negative_indices_from_the_end(lib):
    x = lib.to_device(np.array([5.0, 6.0, 7.0]))
    y, saved = ops.take.forward(lib.xp, x, lib.to_device(np.array([-1, 0, -1])))
    assert lib.to_host(y).tolist() == [7, 5, 7]
    dx, _ = ops.take.backward(lib.xp, lib.to_device(np.array([1.0, 2.0, 4.0])), saved)
    assert lib.to_host(dx).tolist() == [2, 0, 5]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_take_counts_further_than_its_indices_type(lib, dtype):
    x = lib.to_device(np.arange(300.0))
    assert lib.to_host(ops.take(x, lib.to_device(np.array([1, 2], dtype)))).tolist() == [1, 2]


def test_a_single_input_is_copied_and_not_changed(lib):
    for op in (ops.add, ops.mul):
        x = lib.to_device(np.array([-0.0, 3.0]))
        y = op(x)
        assert y is not x
        assert lib.to_host(y).tobytes() == lib.to_host(x).tobytes()
        assert lib.to_host(op(lib.to_device(np.array([2])))).dtype == np.int64


def test_take_of_nothing(lib):
    x, none = lib.to_device(np.ones((3, 2))), lib.to_device(np.zeros(0, dtype=np.int64))
    y, saved = ops.take.forward(lib.xp, x, none)
    dx, _ = ops.take.backward(lib.xp, y, saved)
    assert y.shape == (0, 2)
    assert not lib.to_host(dx).any()


@pytest.mark.parametrize("op", [ops.sigmoid, ops.softmax, ops.tanh])
def test_large_numbers_do_not_overflow(op):
    y = op(np.array([[-1e4, 0.0, 1e4]], dtype=np.float32))  # a RuntimeWarning would be an error
    assert np.isfinite(y).all()


def test_relu_keeps_nan_and_its_callers_array():
    x = np.array([-1.0, np.nan, 2.0])
    y = ops.relu(x)
    np.testing.assert_array_equal(y, [0.0, np.nan, 2.0])
    np.testing.assert_array_equal(x, [-1.0, np.nan, 2.0])


def test_pow_at_the_edges():
    # d/da a^0 is 0 also at a = 0; d/dp 0^p is 0 for p > 0.
    y, saved = ops.pow.forward(np, np.array([0.0, 0.0, 4.0]), np.array([0.0, 2.0, 0.5]))
    da, dp = ops.pow.backward(np, np.ones(3), saved)
    np.testing.assert_allclose(y, [1, 0, 2])
    np.testing.assert_allclose(da, [0, 0, 0.25])
    np.testing.assert_allclose(dp, [0, 0, 2 * np.log(4)])


def test_pow_zero_of_infinity_has_no_slope():
    _, saved = ops.pow.forward(np, np.array([np.inf]), 0.0)
    assert ops.pow.backward(np, np.ones(1), saved)[0].tolist() == [0.0]


def test_empty_arrays(lib):
    x = lib.to_device(np.zeros((0, 2, 2)))
    assert ops.flatten(x).shape == (0, 4)
    _, saved = ops.mean.forward(lib.xp, lib.to_device(np.zeros((0, 3))), axis=1)
    assert ops.mean.backward(lib.xp, lib.to_device(np.zeros(0)), saved)[0].shape == (0, 3)


def test_options_go_by_name():
    with pytest.raises(OptionError, match="options by name"):
        ops.normalize(A, A, A, A, A, A)
    with pytest.raises(OptionError, match="keyword"):
        ops.sum(A, axes=0)


BY_POSITION = {
    "reshape": ((lambda x: ops.reshape(x, (3, 2))), {"shape": (3, 2)}),
    "transpose": ((lambda x: ops.transpose(x, (1, 0))), {"axes": (1, 0)}),
    "sum": ((lambda x: ops.sum(x, 0)), {"axis": 0}),
    "mean": ((lambda x: ops.mean(x, 1)), {"axis": 1}),
    "var": ((lambda x: ops.var(x, 0)), {"axis": 0}),
    "max": ((lambda x: ops.max(x, 0, keepdims=True)), {"axis": 0, "keepdims": True}),
    "min": ((lambda x: ops.min(x, (0, 1))), {"axis": (0, 1)}),
    "clip": ((lambda x: ops.clip(x, -1.0, 1.0)), {"min": -1.0, "max": 1.0}),
    "softmax": ((lambda x: ops.softmax(x, 0)), {"axis": 0}),
    "log_softmax": ((lambda x: ops.log_softmax(x, 0)), {"axis": 0}),
    "leaky_relu": ((lambda x: ops.leaky_relu(x, 0.2)), {"negative_slope": 0.2}),
    "elu": ((lambda x: ops.elu(x, 0.5)), {"alpha": 0.5}),
    "softplus": ((lambda x: ops.softplus(x, 2.0)), {"beta": 2.0}),
    "getitem": ((lambda x: ops.getitem(x, (slice(1), 2))), {"index": (slice(1), 2)}),
}


@pytest.mark.parametrize("name", BY_POSITION)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_options_by_position_are_those_by_name_everywhere(lib, name, numerics):
    call, options = BY_POSITION[name]
    op = getattr(ops, name)
    x = lib.to_device(A.astype(np.float32))

    def bits(array):
        return lib.to_host(array).tobytes()

    with xnn.numerics(numerics), xnn.backend(lib.name):
        expected = bits(op(x, **options))
        assert bits(call(x)) == expected
        by_name = xnn.grad(lambda v: ops.sum(op(v, **options)))(x)
        assert bits(xnn.grad(lambda v: ops.sum(call(v)))(x)) == bits(by_name)
        node = call(Input(x))
        assert dict(node.options).keys() == options.keys()
        assert bits(forward_pass(topological_sort({node.inbound_nodes[0]: None}))) == expected


def test_other_options_by_position():
    x = np.arange(32.0).reshape(1, 2, 4, 4)
    rows = np.array([1, 0])
    for result, expected in (
        (ops.take(x, rows, 1), x[:, [1, 0]]),
        (ops.concat((x, x), 1), np.concatenate([x, x], 1)),
        (ops.stack([x, x], -1), np.stack([x, x], -1)),
        (ops.max_pool2d(x, 2, 1), ops.max_pool2d(x, kernel_size=2, stride=1)),
        (ops.avg_pool2d(x, 2, 2, 1), ops.avg_pool2d(x, kernel_size=2, stride=2, padding=1)),
    ):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda x: ops.sum(x, 0, True),
            "sum got 3 positional arguments: by position it takes its input and axis",
        ),
        (lambda x: ops.take(x, np.array([0]), 0, 1), "takes its 2 inputs and axis"),
        (lambda x: ops.clip(x, 0.0, 1.0, 2.0), "its input and min, max, each once"),
        (lambda x: ops.clip(x, 0.0, min=0.0), "clip got min twice"),
        (lambda x: ops.concat([x, x], 0, 1), "and 2 more positional arguments"),
        (lambda x: ops.concat([x, x], 0, axis=1), "the axis only"),
        (lambda x: ops.stack([x], x), "the axis only"),
    ],
)
def test_what_does_not_fit_by_position_is_refused(call, said):
    with pytest.raises(OptionError, match=said):
        call(A)


def test_recorded_values_are_no_options():
    with pytest.raises(xnn.errors.GraphError, match="the option min is not differentiated"):
        xnn.grad(lambda x: ops.sum(ops.clip(x, x)))(A)


def test_a_type_error_of_the_ops_own_stays_one():
    class Picky(ops.Op):
        def forward(self, xp, x):
            raise TypeError("a keyword of mine")

    with pytest.raises(TypeError, match="of mine") as caught:
        Picky()(A)
    assert not isinstance(caught.value, OptionError)


def test_ties_share_the_gradient():
    one, other, six = np.array([1.0, 2.0]), np.array([1.0, 0.0]), np.array([6.0, 6.0])
    for op, expected in ((ops.maximum, ([3.0, 6.0], [3.0, 0.0])), (ops.minimum, ([3.0, 0.0], [3.0, 6.0]))):
        da, db = op.backward(np, six, op.forward(np, one, other)[1])
        assert (da.tolist(), db.tolist()) == expected
    for op, row in ((ops.max, [2.0, 2.0, 1.0]), (ops.min, [2.0, 2.0, 3.0])):
        _, saved = op.forward(np, np.array([row]), axis=1)
        assert op.backward(np, np.array([6.0]), saved)[0].tolist() == [[3.0, 3.0, 0.0]]


@pytest.mark.parametrize("op", [ops.max, ops.min])
def test_an_extreme_of_nan_gives_its_gradient_to_the_nans_without_a_warning(op):
    y, saved = op.forward(np, np.array([[np.nan, 1.0, np.inf], [np.nan, -1.0, np.nan]]), axis=1)
    assert np.isnan(y).all()
    assert op.backward(np, np.ones(2), saved)[0].tolist() == [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]


def test_clip_lets_the_gradient_through_at_its_bounds(lib):
    x = lib.to_device(np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32))
    for bounds, expected in (
        ((-1.0, 1.0), [0, 1, 1, 1, 0]),
        ((None, 1.0), [1, 1, 1, 1, 0]),
        ((-1.0,), [0, 1, 1, 1, 1]),
    ):
        dx = lib.to_host(xnn.grad(lambda v, bounds=bounds: ops.sum(ops.clip(v, *bounds)))(x))
        assert dx.dtype == np.float32
        assert dx.tolist() == expected
    with pytest.raises(OptionError, match="neither min nor max"):
        ops.clip(x)


def test_clip_to_arrays_sums_what_was_broadcast():
    x, low = np.array([[0.0, 2.0]]), np.array([[1.0], [-1.0], [0.0]])
    y, saved = ops.clip.forward(np, x, min=low)
    assert y.tolist() == [[1.0, 2.0], [0.0, 2.0], [0.0, 2.0]]
    assert ops.clip.backward(np, np.ones((3, 2)), saved)[0].tolist() == [[2.0, 3.0]]


def test_sqrt_at_0_has_an_infinite_slope():
    _, saved = ops.sqrt.forward(np, np.array([0.0, 4.0]))
    with np.errstate(divide="ignore"):
        assert ops.sqrt.backward(np, np.ones(2), saved)[0].tolist() == [np.inf, 0.25]


def test_sign_has_no_gradient(lib):
    x = lib.to_device(np.array([-3.0, 0.0, 2.0], np.float32))
    assert lib.to_host(ops.sign(x)).tolist() == [-1.0, 0.0, 1.0]
    assert lib.to_host(xnn.grad(lambda v: ops.sum(ops.sign(v) * v))(x)).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_expm1_and_log1p_are_accurate_near_0(lib, numerics):
    mpmath = pytest.importorskip("mpmath")
    sizes = np.exp2(np.random.default_rng(1).uniform(-90, -2, 500)).astype(np.float32)
    x = sizes * np.where(np.arange(500) % 2, 1, -1).astype(np.float32)
    for op in (ops.expm1, ops.log1p):
        truth = [getattr(mpmath, op.name)(mpmath.mpf(float(v))) for v in x]
        with xnn.numerics(numerics):
            found = lib.to_host(op(lib.to_device(x)))
        worst = max(abs(mpmath.mpf(float(a)) / b - 1) for a, b in zip(found, truth, strict=True))
        assert worst < 2.0**-22


def test_var_needs_more_elements_than_its_correction():
    assert ops.var(np.ones((1, 3)), axis=0).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(OptionError, match="var over 1 elements with correction 1"):
        ops.var(np.ones((1, 3)), axis=0, correction=1)


def test_where_of_two_numbers_asks_for_their_dtype(lib):
    x = lib.to_device(np.array([-1.0, 2.0], np.float32))
    for numerics in ("fast", "exact"):
        with xnn.numerics(numerics):
            y = ops.where(x > 0.0, 1.0, 0.5, dtype=x.dtype)
            assert y.dtype == x.dtype
            assert lib.to_host(y).tolist() == [0.5, 1.0]
            with pytest.raises(OptionError, match=r"two Python numbers, 1\.0 and 0\.5"):
                ops.where(x > 0.0, 1.0, 0.5)

            def f(v):
                return ops.sum(v * ops.where(v > 0.0, 1.0, 0.5, dtype=v.dtype))

            dx = xnn.grad(f)(x)
            assert dx.dtype == x.dtype
            assert lib.to_host(dx).tolist() == [0.5, 1.0]
            assert ops.where(x > 0.0, x, 0.25).dtype == x.dtype


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(((2, 3), (4, 2)), "last axis"), (((3,), (4,)), "only axis"), (((), (4,)), "matrix product")],
)
def test_matmul_names_the_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ShapeError, match=message):
        ops.matmul(*(np.ones(shape) for shape in shapes))


def test_a_bias_may_not_stretch_the_output():
    with pytest.raises(ShapeError, match="bias of shape"):
        ops.dense(np.ones((4, 2)), np.ones((2, 1)), np.ones(3))


class TestSoftmaxCrossEntropy:
    def test_value_and_gradient(self, lib):
        z, t = lib.to_device(A), lib.to_device(np.array([2, 1]))
        loss, saved = ops.softmax_cross_entropy.forward(lib.xp, z, t)
        p = np.exp(A) / np.exp(A).sum(1, keepdims=True)
        np.testing.assert_allclose(lib.to_host(loss), -np.log(p[[0, 1], [2, 1]]).mean(), rtol=1e-14)
        dz, dt = ops.softmax_cross_entropy.backward(lib.xp, lib.to_device(1.0), saved)
        np.testing.assert_allclose(lib.to_host(dz), (p - np.eye(3)[[2, 1]]) / 2, rtol=1e-13)
        assert dt is None

    def test_huge_logits(self):
        loss = ops.softmax_cross_entropy(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
        assert loss == 2e4

    @pytest.mark.parametrize("label", [-1, 3, 1000])
    def test_a_label_out_of_range_poisons_the_loss_and_its_row(self, lib, label):
        z, t = lib.to_device(A), lib.to_device(np.array([label, 1]))
        loss, saved = ops.softmax_cross_entropy.forward(lib.xp, z, t)
        dz = lib.to_host(ops.softmax_cross_entropy.backward(lib.xp, lib.to_device(1.0), saved)[0])
        assert np.isnan(lib.to_host(loss))
        assert np.isnan(dz[0]).all()
        assert np.isfinite(dz[1]).all()

    @pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
    def test_label_types(self, dtype):
        """There are more classes than uint8 can count."""
        z = np.random.default_rng(0).normal(size=(2, 300))
        expected = ops.softmax_cross_entropy(z, np.array([5, 2]))
        assert ops.softmax_cross_entropy(z, np.array([5, 2], dtype=dtype)) == expected

    @pytest.mark.parametrize(
        ("labels", "error"),
        [(np.zeros((2, 1), int), ShapeError), (np.zeros(3, int), ShapeError), (np.zeros(2), DTypeError)],
    )
    def test_refuses(self, labels, error):
        with pytest.raises(error):
            ops.softmax_cross_entropy(A, labels)


@pytest.mark.parametrize("op", [ops.mse, ops.binary_cross_entropy])
def test_losses_refuse_to_broadcast(op):
    with pytest.raises(ShapeError, match="nothing is broadcast"):
        op(np.ones((4, 1)), np.ones(4))
    with pytest.raises(DTypeError, match="floating-point"):
        op(np.ones(4, dtype=int), np.ones(4))


def test_integer_targets_do_not_widen_float32():
    loss, saved = ops.mse.forward(np, np.ones((2, 1), np.float32), np.array([[3], [1]]))
    assert loss.dtype == np.float32
    assert loss == 2.0
    assert ops.mse.backward(np, np.float32(1), saved)[0].dtype == np.float32


def test_binary_cross_entropy_is_that_of_the_sigmoid():
    z, t = np.array([[0.3], [-2.0], [800.0]]), np.array([[1.0], [0.25], [1.0]])
    p = 1 / (1 + np.exp(-z))
    expected = -(t * np.log(p) + (1 - t) * np.log1p(-p, where=p < 1, out=np.zeros_like(p))).mean()
    np.testing.assert_allclose(ops.binary_cross_entropy(z, t), expected, rtol=1e-14)


def test_a_check_that_cannot_run_is_a_failure(monkeypatch):
    monkeypatch.setattr(type(ops.tanh), "backward", lambda self, xp, grad, y: (grad * y,))
    failed = {result.check for result in run_checks(["numpy"]) if not result.ok}
    assert failed == {"gradient of tanh (3,4)"}
    monkeypatch.setattr(type(ops.tanh), "forward", lambda self, xp, x: 1 / 0)
    broken = [result for result in run_checks(["numpy"]) if not result.ok]
    titles = {"gradient of tanh (3,4)", "layer, graph and autograd agree on tanh (3,4)"}
    assert {result.check for result in broken} == titles
    assert all("ZeroDivisionError" in result.detail for result in broken)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda x: ops.take(x, np.array([0]), axis=2),
            r"axis 2 of an array of 2 axes: it must lie in -2 \.\. 1",
        ),
        (lambda x: ops.take(x, np.array([[0]])), "indices of one axis"),
        (lambda x: ops.transpose(x, axes=(0, -3)), "axis -3"),
        (lambda x: ops.concat([x, x], axis=5), "axis 5"),
        (lambda x: ops.concat([]), "at least one"),
        (lambda x: ops.stack([]), "at least one"),
        (lambda x: ops.stack([x, x], axis=3), "axis 3"),
        (lambda x: ops.moments(x, axis=(2,)), "axis 2"),
        (lambda x: ops.sum(x, axis=2), "axis 2"),
        (lambda x: ops.max(x, axis=(0, -3)), "axis -3"),
        (lambda x: ops.softmax(x, axis=2), "axis 2"),
        (lambda x: ops.log_softmax(x, axis=-3), "axis -3"),
    ],
)
def test_an_axis_that_is_not_there_is_refused(call, said, numerics):
    with xnn.numerics(numerics), pytest.raises(ShapeError, match=said):
        call(np.ones((2, 3), np.float32))


def test_comparisons_give_booleans_and_no_gradient(lib):
    a = lib.to_device(np.array([1.0, 2.0, 3.0], np.float32))
    b = lib.to_device(np.array([2.0, 2.0, 2.0], np.float32))
    for op, right in (
        (ops.less, [True, False, False]),
        (ops.less_equal, [True, True, False]),
        (ops.greater, [False, False, True]),
        (ops.greater_equal, [False, True, True]),
        (ops.equal, [False, True, False]),
        (ops.not_equal, [True, False, True]),
    ):
        assert lib.to_host(op(a, b)).tolist() == right
        chosen = xnn.grad(lambda x, op=op: ops.sum(ops.where(op(x, b), x * 3.0, x)))(a)
        assert lib.to_host(chosen).tolist() == [3.0 if yes else 1.0 for yes in right]


def test_stop_gradient_is_a_constant(lib):
    x = lib.to_device(np.array([2.0, 5.0], np.float32))
    assert lib.to_host(xnn.grad(lambda v: ops.sum(ops.stop_gradient(v) * v))(x)).tolist() == [2.0, 5.0]
    assert lib.to_host(xnn.grad(lambda v: ops.sum(ops.stop_gradient(v * v)))(x)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_new_ops_train_in_a_program_as_by_hand(numerics):
    """A layer of them, with options by position, in a program and by autograd."""

    def f(x):
        gate = ops.where(x > 0.0, 1.0, 0.5, dtype=x.dtype)
        bent = ops.clip(ops.sin(x), -0.5, 0.75) + ops.expm1(ops.minimum(x, 0.0)) + ops.sqrt(ops.abs(x) + 1.0)
        return ops.sum(ops.stack((gate * x, bent), 2), 2) / ops.sqrt(ops.var(x, 1, keepdims=True) + 1.0)

    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    with xnn.numerics(numerics):

        def build():
            return xnn.Sequential(
                xnn.layers.Dense(3, 4), xnn.layers.Lambda(f), xnn.layers.Dense(4, 2), seed=1
            )

        model, loss = build(), xnn.losses.MSE()
        xnn.Trainer(model, loss, xnn.optimizers.SGD(0.1), kernels="ops").fit(
            (x, y), batch_size=8, shuffle=False, progress=False
        )
        other = build()
        parameters = other.parameters()
        gradients = xnn.grad(lambda _: loss(other(x), y))(parameters)
        for trained, parameter, gradient in zip(model.parameters(), parameters, gradients, strict=True):
            assert gradient.dtype == np.float32
            expected = parameter.value - np.float32(0.1) * gradient
            assert np.abs(trained.value - expected).max() < 1e-6


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_arrays_of_the_other_byte_order_give_the_same_numbers(case):
    """Also in the backward pass: an op goes by the dtype's name, which says nothing of the byte order."""

    def results(inputs):
        values = [Value(x) if is_float(x) else x for x in inputs]
        y = case.op(*values, **case.options)
        seed = np.linspace(-1.0, 1.0, y.value.size).astype(y.value.dtype).reshape(y.shape)
        return [y.value, *gradients_of(y, seed, [v for v in values if isinstance(v, Value)])]

    def is_float(x):
        return hasattr(x, "dtype") and x.dtype.kind == "f"

    native = draw(case, "float32")
    swapped = [x.astype(x.dtype.newbyteorder("S")) if hasattr(x, "dtype") else x for x in native]
    for one, two in zip(results(native), results(swapped), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-6)
