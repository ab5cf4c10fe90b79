"""Mistakes in a user's own op, and in its use, raise an error in every way of running the op."""

import operator as operators

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import DTypeError, GraphError, OptionError, ShapeError
from xnn.graph import Input, forward_and_backward, topological_sort
from xnn.layers import Dense, Function, Parameter, Sequential
from xnn.layers.files import weights_sha256
from xnn.ops.op import unbroadcast


class Scaled(xnn.Op):
    """x * weight, with the `backward` that the test gives."""

    def __init__(self, backward):
        self.wrong = backward

    def forward(self, xp, x, weight):
        return x * weight, (x, weight)

    def backward(self, xp, grad, saved):
        x, weight = saved
        return self.wrong(xp, grad, x, weight)


WRONG = {
    "too few": (lambda xp, g, x, w: (g * w,), "1 gradients for 2 inputs"),
    "too many": (lambda xp, g, x, w: (g * w, xp.sum(g * x, axis=0), g), "3 gradients for 2 inputs"),
    "not summed": (lambda xp, g, x, w: (g * w, g * x), r"shape \(4, 3\) for input 1 of shape \(3,\)"),
    "one number": (lambda xp, g, x, w: (g * w, xp.sum(g * x)), r"shape \(\) for input 1 of shape \(3,\)"),
    "of x": (lambda xp, g, x, w: (xp.sum(g * w), xp.sum(g * x, axis=0)), r"shape \(\) for input 0 of shape"),
}


class Gain(layers.Layer):
    def __init__(self, op):
        self.op = op
        super().__init__(Parameter("gain", (3,), xnn.initializers.Ones(), "float32"))


def train(model, x, y, loss=None, **options):
    trainer = xnn.Trainer(model, loss or losses.MSE(), optimizers.SGD(0.1), **options)
    return trainer.fit((x, y), batch_size=4, progress=False)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("door", ["layer", "graph", "autograd", "program"])
def test_a_backward_that_does_not_fit_is_refused_in_every_way_of_running(lib, wrong, door):
    backward, message = WRONG[wrong]
    op = Scaled(backward)
    x, w = (lib.to_device(np.ones(shape, np.float32)) for shape in ((4, 3), (3,)))
    data = np.ones((8, 3), np.float32)
    layer, a, b = Gain(op), Input(), Input()
    op(a, b)
    doors = {
        "layer": lambda: layer.backward(layer.forward(x)),
        "graph": lambda: forward_and_backward(topological_sort({a: x, b: w})),
        "autograd": lambda: xnn.grad(lambda x, w: ops.sum(op(x, w)), argnums=(0, 1))(x, w),
        "program": lambda: train(Sequential(Dense(3, 3), Gain(op)), data, data),
    }
    with pytest.raises(GraphError, match=message):
        doors[door]()


def test_numbers_and_inputs_without_a_gradient_have_none(lib):
    x = lib.to_device(np.ones((4, 3), np.float32))
    op = Scaled(lambda xp, g, x, w: (g * w, unbroadcast(xp, g * x, w)))
    assert lib.to_host(xnn.grad(lambda x: ops.sum(op(x, 2.0)))(x)).tolist() == [[2.0] * 3] * 4


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_loss_of_ones_own_must_fit_too(kernels):
    class Wrong(xnn.Op):
        def forward(self, xp, outputs, targets):
            return xp.mean((outputs - targets) * (outputs - targets)), outputs - targets

        def backward(self, xp, grad, gap):
            return xp.mean(gap * grad), None

    class OwnLoss(losses.Loss):
        op = Wrong()

    x = np.ones((8, 3), np.float32)
    loss = OwnLoss()
    loss.forward(x, x)
    with pytest.raises(GraphError, match=r"shape \(\) for input 0 of shape \(8, 3\)"):
        loss.backward()
    with pytest.raises(GraphError, match=r"shape \(\) for input 0 of shape \(4, 3\)"):
        train(Sequential(Dense(3, 3)), x, x, OwnLoss(), kernels=kernels)


def test_a_layers_own_backward_must_fit():
    class Own(layers.Layer):
        def __init__(self):
            super().__init__(Parameter("gain", (3,), xnn.initializers.Ones(), "float32"))

        def forward(self, x, training=False):
            return x * self.own_parameters[0].value

        def backward(self, dout, input_gradient=True):
            self.own_parameters[0].grad = dout.sum()
            return dout

    x = np.ones((8, 3), np.float32)
    with pytest.raises(GraphError, match=r"gain has shape \(3,\), and its gradient shape \(\)"):
        train(Sequential(Own()), x, x)


def test_by_hand_a_gradient_has_the_outputs_shape():
    class Summing(layers.Layer):
        def forward(self, x, training=False):
            return x * 2.0

        def backward(self, dout, input_gradient=True):
            return (dout * 2.0).sum(axis=0)

    x = np.ones((4, 3), np.float32)
    model = Sequential(layers.ReLU(), Summing())
    with pytest.raises(
        GraphError, match=r"Summing returned a gradient of shape \(3,\) for input 0 of shape \(4, 3\)"
    ):
        model.backward(model.forward(x))
    with pytest.raises(GraphError, match=r"Sequential gave outputs of shape .* of shape \(1, 3\)"):
        model.backward(model.forward(x)[:1])


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_op_that_widens_is_heard_of_in_training(where):
    class Widening(xnn.Op):
        def forward(self, xp, x):
            return x * (np.ones(3) if where == "forward" else 1.0), None

        def backward(self, xp, grad, saved):
            return (grad * np.ones(3),)

    x = np.ones((8, 3), np.float32)
    with pytest.raises(DTypeError, match=f"{'makes' if where == 'forward' else 'gradient of'} float64"):
        train(Sequential(Dense(3, 3), Function(Widening())), x, x)
    train(Sequential(Dense(3, 3, dtype="float64"), Function(Widening())), x, x)


class TestHabitsOfNumPy:
    @pytest.mark.parametrize(
        ("use", "hint"),
        [
            (lambda v: v.mean(axis=1), "has no attribute mean: use ops.mean$"),
            (lambda v: v.ravel(), "use ops.reshape"),
            (lambda v: v.cumsum(), "the functions of xnn.ops"),
        ],
    )
    def test_a_method_names_the_op(self, use, hint):
        with pytest.raises(AttributeError, match=hint):
            xnn.grad(use)(np.ones((2, 3)))

    @pytest.mark.parametrize("use", [np.tanh, np.maximum.reduce, np.mean, np.sum, lambda v: np.dot(v, v)])
    def test_a_numpy_function_names_the_op(self, use):
        with pytest.raises(GraphError, match="would lose the gradient: use ops"):
            xnn.grad(use)(np.ones((2, 3)))

    def test_operators_between_arrays_and_values_stay(self):
        a, x = np.full((2, 2), 3.0), np.array([[1.0, 2.0], [4.0, 5.0]])
        for operator in (operators.add, operators.sub, operators.mul, operators.truediv, operators.pow,
                         operators.matmul):  # fmt: skip
            for left in (a, np.float64(3.0)) if operator is not operators.matmul else (a,):
                value, gradient = xnn.value_and_grad(lambda v, o=operator, a=left: ops.sum(o(a, v)))(x)
                assert value == np.sum(operator(left, x))
                assert gradient.shape == x.shape
        for operator in (operators.lt, operators.le, operators.gt, operators.ge, operators.eq, operators.ne):
            seen = []
            xnn.grad(lambda v, o=operator, s=seen: s.append(o(a, v)) or ops.sum(v))(x)
            assert np.array_equal(seen[0].value, operator(a, x))

    def test_writing_into_an_array_is_refused(self):
        def f(v):
            total = np.zeros((2, 2))
            total += v
            return ops.sum(v)

        with pytest.raises(GraphError, match=r"numpy\.add would lose"):
            xnn.grad(f)(np.ones((2, 2)))

    def test_a_loop_is_over_the_first_axis(self):
        def f(v):
            assert len(v) == 2
            first, second = v
            return ops.sum(first * second)

        assert xnn.grad(f)(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[3.0, 4.0], [1.0, 2.0]]
        with pytest.raises(TypeError, match="shape"):
            xnn.grad(lambda v: list(ops.sum(v)))(np.ones((2, 3)))

    def test_a_node_that_is_not_yet_fed_has_no_shape(self):
        assert not hasattr(Input(), "shape")
        with pytest.raises(AttributeError, match="feed its Input"):
            Input().shape  # noqa: B018

    def test_a_numpy_array_of_a_value_is_refused(self):
        with pytest.raises(GraphError, match=r"would lose the gradient: use \.value"):
            xnn.grad(lambda v: ops.sum(np.asarray(v)))(np.ones((2, 3)))


class TestIndexing:
    @pytest.mark.parametrize(
        "index",
        [0, -1, np.int64(1), slice(None), slice(2, 1), slice(-2, None), slice(1, 99), ..., (), (slice(1, 2), -1),
         (..., 2), (0, ..., slice(1, 3)), (0, 1, 2), (slice(0, 2), ..., slice(None, -1))],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("numerics", ["fast", "exact"])
    def test_it_is_numpys_and_so_is_the_gradient(self, lib, index, numerics):
        x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
        gradient = np.zeros_like(x)
        gradient[index] = 2.0
        with xnn.numerics(numerics):
            on_device = lib.to_device(x)
            assert np.array_equal(lib.to_host(ops.getitem(on_device, index=index)), x[index])
            got = lib.to_host(xnn.grad(lambda v: ops.sum(v[index] * 2.0))(on_device))
        assert np.array_equal(got, gradient)

    @pytest.mark.parametrize(
        "index",
        [None, True, 1.0, [0, 1], np.array([0]), slice(0, 2, 2), slice(None, None, -1), slice(0.5), "a"],
    )
    def test_what_it_is_not_made_of(self, index):
        with pytest.raises(OptionError, match=r"integers, slices of step 1 and `\.\.\.`.*ops\.take"):
            ops.getitem(np.ones((3, 4)), index=(index, 0))

    @pytest.mark.parametrize("index", [3, -4, (0, 0, 0), (..., 0, ...), (0, 4)])
    def test_beyond_the_array(self, index):
        with pytest.raises(ShapeError, match="index"):
            ops.getitem(np.ones((3, 4)), index=index)

    def test_in_a_layer_and_a_program(self):
        class Halves(layers.Composite):
            def compute(self, x, training):
                return ops.sigmoid(x[:, :3]) * x[:, 3:]

        x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
        digests = []
        for gate in (Halves(), layers.Lambda(lambda v: ops.sigmoid(v[:, :3]) * v[:, 3:])):
            model = Sequential(Dense(3, 6), gate, Dense(3, 3), seed=1)
            train(model, x, x, numerics="exact")
            digests.append(weights_sha256(model))
        assert digests[0] == digests[1]


def test_an_op_without_backward_says_so():
    class Halve(xnn.Op):
        def forward(self, xp, x):
            return x / 2.0, None

    halve = Halve()
    assert halve(np.ones(2)).tolist() == [0.5, 0.5]
    with pytest.raises(GraphError, match="halve has no backward"):
        xnn.grad(lambda x: ops.sum(halve(x)))(np.ones(2))
