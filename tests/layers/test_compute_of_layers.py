"""One compute: what it may do by hand, in a graph, under autograd and in a program, and what is refused where."""

import numpy as np
import pytest

import xnn
from xnn import graph, initializers, layers, losses, ops, optimizers
from xnn.callbacks import Callback
from xnn.errors import GraphError, OptionError
from xnn.layers import BatchNorm, Buffer, Dense, Dropout, Layer, Parameter, Sequential
from xnn.layers.files import weights_sha256

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.arange(32) % 3
KERNELS = ["ops", "numpy", "compiled"]


@pytest.fixture(params=KERNELS)
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


def fit(model, kernels="ops", callbacks=(), loss=None, x=X, y=Y, epochs=1, **options):
    trainer = xnn.Trainer(
        model, loss or losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=callbacks, kernels=kernels
    )
    return trainer.fit((x, y), epochs=epochs, batch_size=8, progress=False, **options)


def steps_by_hand(model, changes=lambda step: None, loss=None, x=X, y=Y):
    loss, rule = loss or losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    for step, (xb, yb) in enumerate(xnn.data.Batches((x, y), 8).epoch(0)):
        model.set_stream(0, step)
        loss.forward(model.forward(xb, training=True), yb)
        model.backward(loss.backward(), input_gradient=False)
        rule.step(model.parameters())
        changes(step + 1)


class At(Callback):
    """Calls a function with the number of steps done, after each step."""

    def __init__(self, change):
        self.change, self.done = change, 0

    def on_step(self, history, epoch, step, loss):
        self.done += 1
        self.change(self.done)


# A pair written by hand.


class Scaled(Layer):
    """x * gain, with forward and backward of its own."""

    def __init__(self):
        super().__init__()
        self.gain = Parameter("gain", (4,), initializers.Constant(1.5))

    def forward(self, x, training=False):
        self._x = x
        return x * self.gain.value

    def backward(self, dout, input_gradient=True):
        self.gain.grad = (dout * self._x).sum(axis=0)
        return dout * self.gain.value if input_gradient else None


class ScaledInOne(Layer):
    def __init__(self):
        super().__init__()
        self.gain = Parameter("gain", (4,), initializers.Constant(1.5))

    def compute(self, x):
        return x * self.gain


class Around(Layer):
    """A layer whose compute calls another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def compute(self, x, training):
        return ops.tanh(self.inner(x))


@pytest.mark.parametrize(
    "make", [Scaled, ScaledInOne, lambda: Around(Scaled()), lambda: Around(ScaledInOne())]
)
def test_a_pair_by_hand_works_in_every_way_of_running(make):
    layer, wanted = make(), (ops.tanh(1.5 * X) if isinstance(make(), Around) else 1.5 * X)
    slope = 1.0 - wanted * wanted if isinstance(layer, Around) else np.ones_like(X)
    dx, dgain = 1.5 * slope, (X * slope).sum(axis=0)
    ones = np.ones_like(X)
    np.testing.assert_allclose(layer(X), wanted, rtol=1e-6)
    np.testing.assert_allclose(layer.backward(ones), dx, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.parameters()[0].grad, dgain, rtol=1e-4, atol=1e-4)

    x = graph.Input()
    out = layer(x)
    nodes = graph.topological_sort({x: X})
    graph.forward_pass(nodes)
    np.testing.assert_allclose(out.value, wanted, rtol=1e-6)

    np.testing.assert_allclose(xnn.grad(lambda x: ops.sum(layer(x)))(X), dx, rtol=1e-5, atol=1e-6)
    (found,) = xnn.grad(lambda parameters: ops.sum(layer(X)))(layer.parameters())
    np.testing.assert_allclose(found, dgain, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_a_pair_by_hand_trains_in_a_program_as_by_hand(kernels):
    def models():
        return [Sequential(Dense(4, 4), make(), Dense(4, 3), seed=1) for make in (Scaled, ScaledInOne)]

    for model, other in zip(models(), models(), strict=True):
        fit(model, kernels)
        steps_by_hand(other)
        np.testing.assert_allclose(model.predict(X), other.predict(X), rtol=1e-5, atol=1e-6)
        assert not np.allclose(model.layers[1].gain.value, 1.5)


def test_one_without_the_other_and_both_with_compute_are_refused():
    def method(self, *args):
        return args[0]

    for has, lacks in (("forward", "backward"), ("backward", "forward")):
        with pytest.raises(OptionError, match=f"Half has a {has} of its own and no {lacks}: write both"):
            type("Half", (Layer,), {has: method})
        with pytest.raises(OptionError, match=f"Half has a {has} of its own and no {lacks}: write both"):
            type("Half", (losses.Loss,), {has: method})
    for base in (Layer, losses.Loss):
        with pytest.raises(OptionError, match="write only one of them"):
            type(
                "Both", (base,), {"forward": method, "backward": method, "compute": lambda self, a, b=None: a}
            )
        pair = type("Pair", (base,), {"forward": method, "backward": method})
        with pytest.raises(OptionError, match="write only one of them"):
            type("Both", (pair,), {"compute": lambda self, a, b=None: a})


# What cannot be looked at.


class Reads(Layer):
    """Reads `.value` of a parameter or a buffer in compute."""

    def __init__(self, kind):
        super().__init__()
        self.held = kind("held", (4,), initializers.Ones())
        self.gain = Parameter("gain", (4,), initializers.Ones())

    def compute(self, x):
        return x * self.gain * self.held.value


@pytest.mark.parametrize("kind", [Parameter, Buffer])
def test_reading_a_value_in_compute_says_what_to_write(kind):
    layer, model = Reads(kind), Sequential(Reads(kind), Dense(4, 3))
    for call in (
        lambda: layer.forward(X),
        lambda: xnn.grad(lambda x: ops.sum(layer(x)))(X),
        lambda: fit(model),
        lambda: graph.forward_pass(_fed(layer)),
    ):
        with pytest.raises(GraphError, match=r"held\.value read inside `compute`.*as in x @ self\.held"):
            call()
    assert layer.held.value.shape == (4,)


def _fed(layer):
    x = graph.Input()
    layer(x)
    return graph.topological_sort({x: X})


def computes(function):
    class Own(Layer):
        def compute(self, x):
            return function(x)

    return Own()


def test_float_and_a_branch_on_numbers_are_refused_in_a_program():
    branching = computes(lambda x: x * 2.0 if ops.sum(x) > 0.0 else x * 3.0)
    assert np.array_equal(branching.forward(np.ones((2, 4), np.float32)), np.full((2, 4), 2.0))
    assert np.array_equal(branching.forward(-np.ones((2, 4), np.float32)), np.full((2, 4), -3.0))
    assert branching.backward(np.ones((2, 4), np.float32)).tolist() == [[3.0] * 4] * 2
    with pytest.raises(GraphError, match=r"a branch on it would fix.*ops\.where"):
        fit(Sequential(Dense(4, 3), branching))
    floating = computes(lambda x: x * float(ops.sum(x)))
    with pytest.raises(GraphError, match=r"float\(\) of a recorded value"):
        floating.forward(X)
    with pytest.raises(GraphError, match=r"float\(\) of a recorded value"):
        fit(Sequential(Dense(4, 3), floating))
    with pytest.raises(GraphError, match=r"reading \.value would fix"):
        fit(Sequential(Dense(4, 3), computes(lambda x: x * x.value.max())))


def test_random_numbers_of_numpy_are_refused_by_a_trainer():
    rng = np.random.default_rng(0)
    noisy = computes(lambda x: x + rng.normal(size=x.shape).astype(np.float32))
    with pytest.raises(OptionError, match="did something else when it ran a second time"):
        fit(Sequential(Dense(4, 3), noisy))


# What changes from step to step.


class Beta(Layer):
    def __init__(self):
        super().__init__()
        self.beta = 1.0

    def compute(self, x):
        return x * self.beta


FACTOR = 1.0


def change_attribute():
    layer = Beta()
    return layer, lambda value: setattr(layer, "beta", value)


def change_global():
    def change(value):
        global FACTOR
        FACTOR = value

    change(1.0)
    return computes(lambda x: x * FACTOR), change


def change_closure():
    factor = 1.0

    def change(value):
        nonlocal factor
        factor = value

    return computes(lambda x: x * factor), change


def change_entry():
    factors = [1.0]
    return computes(lambda x: x * factors[0]), lambda value: factors.__setitem__(0, value)


def change_entry_of_an_attribute():
    layer = Beta()
    layer.beta = {"now": [1.0]}

    class Entry(Layer):
        def __init__(self):
            super().__init__()
            self.beta = {"now": [1.0]}

        def compute(self, x):
            return x * self.beta["now"][0]

    layer = Entry()
    return layer, lambda value: layer.beta["now"].__setitem__(0, value)


def change_lambda():
    factors = {"now": 1.0}
    return layers.Lambda(lambda x: x * factors["now"]), lambda value: factors.update(now=value)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "changing",
    [
        change_attribute,
        change_global,
        change_closure,
        change_entry,
        change_entry_of_an_attribute,
        change_lambda,
    ],
)
def test_what_a_callback_changes_takes_effect_at_the_next_step(changing, kernels):
    values = {1: 0.5, 3: -2.0}
    digests = []
    for by_hand in (False, True):
        layer, change = changing()
        model = Sequential(Dense(4, 4), layer, Dense(4, 3), seed=1)

        def at(step, change=change):
            if step in values:
                change(values[step])

        steps_by_hand(model, at) if by_hand else fit(model, kernels, [At(at)])
        digests.append(np.concatenate([p.value.ravel() for p in model.parameters()]))
    unchanged = Sequential(Dense(4, 4), changing()[0], Dense(4, 3), seed=1)
    fit(unchanged, kernels)
    if kernels == "ops":
        assert digests[0].tobytes() == digests[1].tobytes()
    np.testing.assert_allclose(*digests, rtol=1e-5, atol=1e-6)
    assert not np.allclose(digests[0][:16], unchanged.parameters()[0].value.ravel(), atol=1e-3)


HALVES, THREE = np.full(4, 0.5), np.full(4, 3.0)


def options_of_layers():
    def dropout(value):
        return lambda m: setattr(m.layers[1], "rate", value)

    return {
        "Dropout.rate": (lambda: Dropout(0.1), dropout(0.6)),
        "Dropout.rate from 0": (lambda: Dropout(0.0), dropout(0.5)),
        "Dropout.rate to 0": (lambda: Dropout(0.5), dropout(0.0)),
        "BatchNorm.epsilon": (lambda: BatchNorm(4), lambda m: setattr(m.layers[1], "epsilon", 0.5)),
        "BatchNorm.momentum": (lambda: BatchNorm(4), lambda m: setattr(m.layers[1], "momentum", 0.9)),
        "LayerNorm.epsilon": (lambda: layers.LayerNorm(4), lambda m: setattr(m.layers[1], "epsilon", 0.5)),
        "LeakyReLU": (lambda: layers.LeakyReLU(), lambda m: setattr(m.layers[1], "negative_slope", 0.7)),
        "Rescale.scale": (lambda: layers.Rescale(1.0), lambda m: setattr(m.layers[1], "scale", 3.0)),
        "Rescale.shift": (lambda: layers.Rescale(1.0, shift=0.5), lambda m: setattr(m.layers[1], "shift", 3.0)),
        "Rescale many": (lambda: layers.Rescale(1.0, shift=HALVES), lambda m: setattr(m.layers[1], "shift", THREE)),
        "Rescale array": (lambda: layers.Rescale([1.0] * 4), lambda m: setattr(m.layers[1], "scale", np.full(4, 2))),
    }  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", options_of_layers())
def test_options_of_xnns_layers_take_effect_at_the_next_step(name, kernels):
    make, change = options_of_layers()[name]
    found = []
    for way in ("program", "by hand", "unchanged"):
        model = Sequential(Dense(4, 4), make(), Dense(4, 3), seed=1)

        def at(step, model=model, way=way):
            if step == 2 and way != "unchanged":
                change(model)

        steps_by_hand(model, at) if way == "by hand" else fit(model, kernels, [At(at)])
        found.append(np.concatenate([array.value.ravel() for _, array in model.named_state()]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
    if kernels == "ops":
        assert found[0].tobytes() == found[1].tobytes()
    assert not np.allclose(found[0], found[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["scale", "offset", "shift"])
def test_an_array_of_rescale_is_assigned_not_written_to(name):
    layer = layers.Rescale([1.0, 2.0], [0.0, 1.0], shift=[3.0, 4.0])
    with pytest.raises(ValueError, match="read-only"):
        getattr(layer, name)[0] = 5.0


# Training, and weights by attribute.


def test_inner_layers_train_as_the_layer_around_them_does():
    seen = []

    class Notes(Layer):
        def compute(self, x, training):
            seen.append(training)
            return x

    class Outer(Layer):
        def __init__(self):
            super().__init__()
            self.inner, self.fixed = Notes(), Notes()

        def compute(self, x):
            return self.fixed(self.inner(x), training=False)

    model = Sequential(Outer())
    for training in (True, False):
        model.forward(X, training=training)
        assert seen == [training, False]
        seen.clear()
    model.predict(X)
    assert seen
    assert not any(seen)
    seen.clear()
    assert xnn.grad(lambda x: ops.sum(model(x)))(X).shape == X.shape
    assert seen == [False, False]
    seen.clear()
    xnn.grad(lambda x: ops.sum(model(x, training=True)))(X)
    assert seen == [True, False]


class ByAttribute(Layer):
    def __init__(self):
        super().__init__()
        self.weight = Parameter("weight", (4, 4), initializers.Glorot())
        self.bias = Parameter("bias", (4,), initializers.Zeros())

    def compute(self, x):
        return x @ self.weight + self.bias


class ByOps(ByAttribute):
    def compute(self, x):
        return ops.add(ops.matmul(x, self.weight), self.bias)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_weights_by_attribute_are_the_ops_bit_for_bit(numerics, kernels):
    with xnn.numerics(numerics):
        digests = set()
        for make in (ByAttribute, ByOps):
            model = Sequential(make(), Dense(4, 3), seed=1)
            fit(model, kernels)
            digests.add(weights_sha256(model))
        assert len(digests) == 1


def test_a_layer_of_ones_own_predicts_on_every_backend(lib):
    class Gate(Layer):
        def __init__(self):
            super().__init__()
            self.gain, self.shift = (Parameter(name, (4,), initializers.Ones()) for name in ("gain", "shift"))

        def compute(self, x):
            return ops.sigmoid(x * self.gain + self.shift) * x - self.shift

    model = Sequential(Gate(), layers.Add(Gate(), layers.Lambda(lambda x: 2.0 * x)))
    y = lib.to_host(model.forward(lib.to_device(X)))
    np.testing.assert_allclose(model.predict(X), y, rtol=1e-6)


class Doubled(Layer):
    """Written by hand: the square, in training only."""

    def forward(self, x, training=False):
        self.x, self.training = x, training
        return x * x if training else x

    def backward(self, dout, input_gradient=True):
        return 2.0 * self.x * dout if self.training else dout


class TestLayersWrittenByHand:
    def test_a_second_forward_pass_is_no_silent_wrong_gradient(self, kernels):
        class Twice(Layer):
            def __init__(self):
                super().__init__()
                self.dense, self.square = Dense(4, 3), Doubled()

            def compute(self, x):
                return self.square(self.square(self.dense(x)))

        twice = Twice()
        twice.forward(X, training=True)
        with pytest.raises(GraphError, match="once more"):
            twice.backward(np.ones((32, 3), np.float32))
        with pytest.raises(GraphError, match="once more"):
            fit(Sequential(Twice()), kernels)
        model = Sequential(Dense(4, 3), Doubled())
        model.forward(X)
        model.predict(X[:3])
        with pytest.raises(GraphError, match="once more"):
            model.backward(np.ones((32, 3), np.float32))

    def test_a_program_runs_it_with_the_training_that_compute_gives_it(self, kernels):
        class Calm(Layer):
            def __init__(self, training):
                super().__init__()
                self.dense, self.square, self.given = Dense(4, 3), Doubled(), training

            def compute(self, x, training):
                return self.square(self.dense(x), training=self.given)

        for given in (False, True):
            model, other = (Sequential(Calm(given), seed=0) for _ in range(2))
            fit(model, kernels)
            steps_by_hand(other)
            for a, b in zip(model.parameters(), other.parameters(), strict=True):
                np.testing.assert_allclose(a.value, b.value, rtol=1e-5, atol=1e-7)


class TestWhatATraceCompares:
    """What a callback changes in the way that buffers are kept and numbers are drawn is seen at the next step."""

    class Keeps(Layer):
        def __init__(self):
            super().__init__()
            self.dense, self.kept = Dense(4, 3), Buffer("kept", (3,), initializers.Zeros())
            self.which, self.factor = 0, 1.0
            self.masks = [Dropout(0.5), Dropout(0.5)]

        def compute(self, x, training):
            y = self.masks[self.which % 2](self.dense(x))
            sources = ops.sum(y, axis=0), ops.sum(y * y, axis=0), np.full(3, self.factor, np.float32)
            if training:
                factor = self.factor
                self.keep((self.kept,), lambda xp, b, s, times=factor: (s * times,), sources[self.which])
            return y + 0.0 * sources[0] + 0.0 * sources[1]

    def test_sources_defaults_of_rules_and_drawing_layers(self, kernels):
        kept = []
        for way in ("fit", "by hand"):
            model, found = Sequential(self.Keeps(), seed=0), []

            def change(step, layer=model.layers[0], found=found):
                found.append(np.array(layer.kept.value))
                layer.which, layer.factor = step % 3, float(step)

            if way == "fit":
                steps = type("Steps", (Callback,), {"on_step": lambda self, h, e, step, loss: change(step)})()
                fit(model, kernels, [steps], shuffle=False)
            else:
                loss, rule = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
                for step in range(4):
                    rows = slice(8 * step, 8 * step + 8)
                    model.set_stream(0, step)
                    loss.forward(model.forward(X[rows], training=True), Y[rows])
                    model.backward(loss.backward())
                    rule.step(model.parameters())
                    change(step + 1)
            kept.append(found)
        np.testing.assert_allclose(kept[0], kept[1], rtol=1e-4, atol=1e-5)


def test_what_is_drawn_cannot_be_the_numbers_of_the_first_batch(kernels):
    class Noise(layers.Drawing):
        op = ops.mul

        def draw(self, lib, stream, x):
            return abs(x)

    with pytest.raises(OptionError, match="numbers of x"):
        fit(Sequential(Dense(4, 3), Noise()), kernels)
