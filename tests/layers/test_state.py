"""What a user assigns to a layer's attributes: it is trained, saved, moved and counted, or the model is refused."""

import copy
import functools
import pickle
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.errors import GraphError, OptionError
from xnn.layers import BatchNorm, Dense, Dropout, Lambda, Layer, Parameter, ReLU, Sequential
from xnn.layers.files import weights_sha256

X = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
Y = np.arange(24) % 3


class Net(Layer):
    """Layers in a list, a dict and a tuple of lists, and a parameter in a list."""

    def __init__(self):
        super().__init__()
        self.blocks = [Dense(4, 4), ReLU()]
        self.blocks.append(Sequential(Dense(4, 4), BatchNorm(4)))
        self.heads = {"left": Dense(4, 4), "right": ({"deep": [Dense(4, 4)]},)}
        self.drop = Dropout(0.5), Dropout(0.5)
        self.gains = [Parameter("gain", (4,), initializers.Ones())]

    def compute(self, x, training):
        for block in self.blocks:
            x = block(x)
        left, right = self.heads["left"](x), self.heads["right"][0]["deep"][0](x)
        return self.drop[0](left) * self.gains[0] + self.drop[1](right)


NAMES = [
    "0.gains.0", "0.blocks.0.weight", "0.blocks.0.bias", "0.blocks.2.0.weight", "0.blocks.2.0.bias",
    "0.blocks.2.1.weight", "0.blocks.2.1.bias", "0.heads.left.weight", "0.heads.left.bias",
    "0.heads.right.0.deep.0.weight", "0.heads.right.0.deep.0.bias", "1.weight", "1.bias",
]  # fmt: skip


def net(seed=1):
    return Sequential(Net(), Dense(4, 3), seed=seed)


def fit(model, **options):
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), **options)
    return trainer.fit((X, Y), epochs=2, batch_size=8, progress=False)


def test_lists_dicts_and_tuples_of_layers_are_named_counted_and_trained():
    model = net()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert [name for name, _ in model.named_state() if "running" in name] == [
        "0.blocks.2.1.running_mean", "0.blocks.2.1.running_var",
    ]  # fmt: skip
    assert f"{sum(p.size for p in model.parameters()):,}" in model.summary((4,))
    before = {name: np.array(array.value) for name, array in model.named_state()}
    fit(model)
    for name, array in model.named_state():
        assert not np.array_equal(array.value, before[name]), name


@pytest.mark.usefixtures("one_thread")
def test_they_train_in_a_program_as_by_hand():
    model, by_hand = net(), net()
    fit(model, kernels="ops")
    loss, rule, step = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), 0
    for epoch in range(2):
        for x, y in xnn.data.Batches((X, Y), 8).epoch(epoch):
            by_hand.set_stream(0, step)
            step += 1
            loss.forward(by_hand.forward(x, training=True), y)
            by_hand.backward(loss.backward(), input_gradient=False)
            rule.step(by_hand.parameters())
    assert weights_sha256(model) == weights_sha256(by_hand)


def test_they_are_saved_and_loaded(tmp_path):
    model, other = net(), net(seed=2)
    fit(model)
    model.save(tmp_path / "m.safetensors")
    other.load_weights(tmp_path / "m.safetensors")
    assert np.array_equal(model.predict(X), other.predict(X))
    assert weights_sha256(model) == weights_sha256(other)


def test_they_are_moved(other):
    model = net()
    wanted = model.predict(X)
    assert model.to(other.name) is model
    assert {xnn.backends.backend_of(array.value) for _, array in model.named_state()} == {other}
    np.testing.assert_allclose(model.predict(X), wanted, rtol=1e-5, atol=1e-6)


def test_two_dropouts_draw_masks_of_their_own():
    class Masks(Layer):
        def __init__(self):
            super().__init__()
            self.a, self.rest = Dropout(0.5), {"b": Dropout(0.5)}

        def compute(self, x, training):
            return ops.concat(self.a(x), self.rest["b"](x), axis=1)

    ones = np.ones((8, 50), np.float32)
    for layer in (Masks(), Sequential(Masks())):
        y = layer.forward(ones, training=True)
        assert not np.array_equal(y[:, :50], y[:, 50:])
        assert np.array_equal(layer.forward(ones), np.concatenate([ones, ones], axis=1))


def test_batch_norm_inside_keeps_running_statistics():
    layer = Net()
    norm = layer.blocks[2].layers[1]
    layer.forward(X, training=True)
    kept = norm.running_mean.value.copy()
    assert kept.any()
    layer.forward(X)
    assert np.array_equal(norm.running_mean.value, kept)


def test_a_layer_without_super_init_holds_layers_too():
    class Forgetful(Layer):
        def __init__(self):
            self.inner, self.scale = [Dense(4, 4), Dense(4, 4)], 2.0

        def compute(self, x):
            return self.inner[1](self.inner[0](x)) * self.scale

    model = Sequential(Forgetful(), Dense(4, 3))
    before = [p.value.copy() for p in model.parameters()]
    fit(model)
    assert len(before) == 6
    assert not any(np.array_equal(p.value, b) for p, b in zip(model.parameters(), before, strict=True))
    alone = Forgetful()
    assert not np.array_equal(alone.inner[0].weight.value, alone.inner[1].weight.value)


class TestAlone:
    """Layers that stand alone."""

    def test_inner_layers_of_one_shape_do_not_start_alike(self):
        class Twins(Layer):
            def __init__(self, seed=None):
                super().__init__(seed=seed)
                self.a, self.rest = Dense(4, 4), []
                self.rest.append(Dense(4, 4))
                self.own = Dense(4, 4, seed=7)

            def compute(self, x):
                return self.rest[0](self.a(x))

        for layer in (Twins(), Twins(seed=3), layers.Add(Dense(4, 4), Dense(4, 4))):
            values = [p.value.tobytes() for p in layer.parameters() if p.name == "weight"]
            assert len(set(values)) == len(values)
        assert np.array_equal(Twins().own.weight.value, Dense(4, 4, seed=7).weight.value)
        assert np.array_equal(Twins().a.weight.value, Twins().a.weight.value)
        assert not np.array_equal(Twins().a.weight.value, Twins(seed=3).a.weight.value)

    def test_a_model_draws_them_again_from_its_own_numbers(self):
        class Pair(Layer):
            def __init__(self):
                super().__init__()
                self.a, self.b = Dense(4, 4), Dense(4, 4)

            def compute(self, x):
                return self.b(self.a(x))

        model = Sequential(Dense(4, 4), Pair(), seed=5)
        for place, layer in ((0, model.layers[0]), (2, model.layers[1].a), (3, model.layers[1].b)):
            drawn = np.sqrt(2 / 8) * xnn.backends.Stream(5, xnn.backends.Purpose.WEIGHTS, place, 0).normal(
                (4, 4)
            )
            assert np.array_equal(layer.weight.value, drawn.astype(np.float32))

    def test_a_layer_inside_a_layer_inside_a_layer(self):
        class Deep(Layer):
            def __init__(self, depth):
                super().__init__()
                self.dense = Dense(2, 2)
                if depth:
                    self.inner = Deep(depth - 1)

            def compute(self, x):
                return self.inner(self.dense(x)) if hasattr(self, "inner") else self.dense(x)

        values = [p.value.tobytes() for p in Deep(3).parameters() if p.name == "weight"]
        assert len(set(values)) == 4


# What a model would not find.


@dataclass
class Config:
    layer: Any


class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


class Plain:
    def __init__(self, layer):
        self.inside = {"layers": [layer]}

    def run(self, x):
        return self.inside["layers"][0](x)


def closure(layer):
    return lambda x: layer(x)


def default(layer):
    return lambda x, layer=layer: layer(x)


HIDES = {
    "set": lambda layer: {layer},
    "frozenset in a list": lambda layer: [frozenset([layer])],
    "deque": lambda layer: deque([layer]),
    "dataclass": Config,
    "list in a dataclass": lambda layer: Config([layer]),
    "namespace": lambda layer: SimpleNamespace(layer=layer),
    "slots": Slots,
    "object": Plain,
    "object in a dict": lambda layer: {"a": Plain(layer)},
    "bound method": lambda layer: Plain(layer).run,
    "closure": closure,
    "closure in a partial": lambda layer: functools.partial(closure(layer)),
    "partial": lambda layer: functools.partial(Dense.__call__, layer),
    "keyword of a partial": lambda layer: functools.partial(lambda x, layer: layer(x), layer=layer),
    "default": default,
    "method of a layer": lambda layer: layer.forward,
}


class Holder(Layer):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def compute(self, x):
        return x


@pytest.mark.parametrize("name", HIDES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Dense(2, 2),
        lambda: Parameter("p", (2,), initializers.Ones()),
        lambda: Dropout(0.5),
        lambda: BatchNorm(2, affine=False),
        lambda: layers.Buffer("b", (2,), initializers.Ones()),
    ],
    ids=["Dense", "Parameter", "Dropout", "BatchNorm", "Buffer"],
)
def test_what_a_model_would_not_find_is_refused(name, make):
    item = make()
    if name == "method of a layer" and not isinstance(item, Layer):
        return
    with pytest.raises(OptionError, match=r"Holder\.held.*, where the model does not find it"):
        Sequential(Holder(HIDES[name](item)))


@pytest.mark.parametrize("name", HIDES)
def test_what_cannot_be_missed_may_be_anywhere(name):
    frozen = Dense(2, 2)
    for parameter in frozen.parameters():
        parameter.frozen = True
    Sequential(Holder(HIDES[name](frozen)))
    Sequential(Holder(HIDES[name](ReLU())))
    dense = Dense(2, 2)  # the model's own
    Sequential(dense, Holder(HIDES[name](dense)))


@pytest.mark.parametrize("name", [n for n in HIDES if n in ("closure", "partial", "default", "bound method")])
def test_a_lambda_refuses_it_at_once(name):
    with pytest.raises(
        OptionError, match=r"function of a Lambda uses .*Dense\(2, 2\), which would stay untrained"
    ):
        Lambda(HIDES[name](Dense(2, 2)))


outer = Dense(2, 2)
activation = Dense(2, 2)


def test_a_lambda_reads_globals_but_not_every_name_in_its_code():
    with pytest.raises(OptionError, match="uses outer, Dense"):
        Lambda(lambda x: outer(x))
    with pytest.raises(OptionError, match="uses outer, Dense"):
        Lambda(lambda x: next(outer(part) for part in (x,)))
    Lambda(lambda x: ops.tanh(x) + getattr(x, "activation", 0.0))
    Lambda(lambda x: SimpleNamespace(activation=x).activation)  # an attribute of a global's name


@pytest.mark.parametrize(
    ("held", "path"),
    [(ReLU, "held"), ([Dense(2, 2), ReLU], r"held\[1\]"), ({"act": layers.GELU}, r"held\['act'\]")],
)
def test_a_class_in_the_place_of_a_layer_is_refused(held, path):
    with pytest.raises(
        OptionError, match=rf"Holder\.{path} is the class \w+, not a layer: write \w+\(\.\.\.\)"
    ):
        Sequential(Holder(held))


def test_it_is_refused_by_a_trainer_too():
    holder = Holder(None)
    model = Sequential(Dense(4, 3), holder)
    holder.held = {Dense(2, 2)}
    with pytest.raises(OptionError, match=r"Holder\.held\{\.\.\.\} is Dense\(2, 2\)"):
        fit(model)


def test_a_circle_of_objects_ends():
    one, other = SimpleNamespace(), SimpleNamespace()
    one.other, other.one = other, one
    Sequential(Holder(one))


def test_a_layer_far_down_is_not_looked_for():
    """The bound that the docstring states; what computes with it is still refused, by name."""
    held = Dense(4, 4)
    deep: Any = held
    for _ in range(8):
        deep = SimpleNamespace(deep=deep)

    class Deep(Holder):
        def compute(self, x):
            return held(x)

    model = Sequential(Deep(deep), Dense(4, 3))
    with pytest.raises(OptionError, match="computes with <Parameter weight"):
        fit(model)
    model.forward(X, training=True)
    with pytest.raises(OptionError, match="computes with <Parameter weight"):
        model.backward(np.ones((24, 3), np.float32))


def test_a_parameter_that_is_the_models_twice_is_refused():
    class Tied(Layer):
        def __init__(self, other):
            super().__init__()
            self.shared = [other.weight]

        def compute(self, x):
            return x @ self.shared[0]

    dense = Dense(4, 4)
    with pytest.raises(OptionError, match=r"0\.weight and 1\.shared\.0 are one parameter"):
        Sequential(dense, Tied(dense))


def test_one_layer_called_twice_shares_its_weights():
    class Twice(Layer):
        def __init__(self):
            super().__init__()
            self.dense = Dense(4, 4)

        def compute(self, x):
            return self.dense(self.dense(x))

    model = Sequential(Twice(), seed=1)
    dense = model.layers[0].dense
    dense.bias.value = np.ones(4)
    y = model.forward(X)
    model.backward(np.ones_like(y))
    weight, bias = dense.weight, dense.bias

    def f(weight, bias):
        return ops.sum((X @ weight + bias) @ weight + bias)

    for found, wanted in zip(
        (weight.grad, bias.grad), xnn.grad(f, (0, 1))(weight.value, bias.value), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_list_of_other_things_that_gets_a_layer_later_is_refused():
    class Late(Layer):
        def __init__(self):
            super().__init__()
            self.parts = [1, 2]
            self.parts.append(Dense(4, 4))

        def compute(self, x):
            return self.parts[-1](x)

    with pytest.raises(
        OptionError, match=r"Late\.parts\[2\] is Dense\(4, 4\), where the model does not find it"
    ):
        Sequential(Late())


def test_a_model_that_another_process_pickled_trains():
    model = xnn.Sequential(layers.Dense(3, 2), layers.Dropout(0.5), layers.Dense(2, 1), seed=0)
    for parameter in model.parameters():
        parameter.created += 10**9  # its process had recorded more values than this one
    x = np.ones((4, 3), np.float32)
    model.forward(x, training=True)
    loaded = pickle.loads(pickle.dumps(model))
    with pytest.raises(GraphError, match="before its forward"):
        loaded.backward(np.ones((4, 1), np.float32))
    loaded.forward(x)
    loaded.backward(np.ones((4, 1), np.float32))
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    deep = xnn.Sequential(*(layers.Tanh() for _ in range(1000)))
    deep.forward(x)
    copy.deepcopy(deep)
    pickle.loads(pickle.dumps(deep))


class Shares(Layer):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def compute(self, x):
        return x * self.weight


class SharedTwice(Layer):
    """One parameter in two attributes and in two layers."""

    def __init__(self):
        super().__init__()
        self.first = Parameter("first", (4,), initializers.Ones())
        self.second = self.first
        self.layers = [Shares(self.first), Shares(self.first)]

    def compute(self, x):
        return self.layers[1](self.layers[0](x * self.first)) + self.second


def test_a_parameter_that_is_held_twice_is_trained_once():
    layer = SharedTwice()
    assert layer.parameters() == [layer.first]
    layer.forward(X)
    layer.backward(np.ones_like(X))
    gradient = layer.first.grad
    optimizers.SGD(0.5).step(layer.parameters())
    np.testing.assert_allclose(layer.first.value, 1.0 - 0.5 * gradient, rtol=1e-6)


def test_a_parameter_is_compared_element_by_element():
    class Where(Layer):
        def __init__(self):
            super().__init__()
            self.gain = Parameter("gain", (4,), initializers.Zeros())

        def compute(self, x):
            return (
                ops.where(self.gain == 0.0, 2.0 * x, x) + ops.where(self.gain != 0.0, x, 0.0 * x) + self.gain
            )

    layer = Where()
    np.testing.assert_array_equal(layer.forward(X), 2.0 * X)
    np.testing.assert_array_equal(np.zeros(4, np.float32) == layer.gain, np.full(4, True))
    assert layer.gain == layer.gain
    assert layer.gain != Where().gain
    assert layer.gain is not None
    assert layer.gain != None  # noqa: E711
