"""One compute of a loss: of functions, with models inside, under autograd and in graphs; options that change."""

import copy
import pickle

import numpy as np
import pytest

import xnn
from xnn import graph, layers, losses, ops, optimizers
from xnn.callbacks import Callback
from xnn.errors import OptionError, ShapeError
from xnn.layers import Dense, Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype(np.float32)
T = RNG.normal(size=(32, 3)).astype(np.float32)
LABELS = np.arange(32) % 3


def model(seed=1):
    return Sequential(Dense(4, 5), layers.Tanh(), Dense(5, 3), seed=seed)


def fit(net, loss, targets=T, kernels="ops", callbacks=(), **options):
    trainer = xnn.Trainer(net, loss, optimizers.SGD(0.1), metrics=[], callbacks=callbacks, kernels=kernels)
    return trainer.fit((X, targets), epochs=1, batch_size=8, progress=False, **options)


def weights(net):
    return np.concatenate([p.value.ravel() for p in net.parameters()])


def squared(outputs, targets):
    difference = outputs - targets
    return ops.mean(difference * difference)


def weighted(outputs, targets, sample_weight=None):
    difference = outputs - targets
    terms = ops.mean(difference * difference, axis=1)
    if sample_weight is None:
        return ops.mean(terms)
    return ops.sum(terms * sample_weight) / ops.sum(sample_weight)


class Squared(losses.Loss):
    def compute(self, outputs, targets):
        return squared(outputs, targets)


class Weighted(losses.Loss):
    def compute(self, outputs, targets, sample_weight=None):
        return weighted(outputs, targets, sample_weight)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_function_is_a_loss(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    found = []
    for loss in (losses.Lambda(squared), Squared(), losses.MSE()):
        net = model()
        history = fit(net, loss, kernels=kernels)
        found.append((weights(net), history["loss"][0]))
        assert float(loss.forward(X[:, :3], T)) == pytest.approx(float(losses.MSE()(X[:, :3], T)), rel=1e-6)
        np.testing.assert_allclose(loss.backward(), 2.0 * (X[:, :3] - T) / T.size, rtol=1e-5, atol=1e-8)
    for w, value in found[1:]:
        np.testing.assert_allclose(w, found[0][0], rtol=1e-5, atol=1e-6)
        assert value == pytest.approx(found[0][1], rel=1e-6)
    assert repr(losses.Lambda(squared)) == "Lambda(squared)"
    assert repr(losses.Lambda(ops.mse)) == "Lambda(mse)"


def test_integer_targets_of_a_function_stay_integers():
    net, other = model(), model()
    fit(net, losses.Lambda(lambda z, y: ops.softmax_cross_entropy(z, y)), LABELS)
    fit(other, losses.SoftmaxCrossEntropy(), LABELS)
    assert np.array_equal(weights(net), weights(other))


def test_sample_weights_are_passed_or_refused():
    w = np.linspace(0.5, 2.0, 32).astype(np.float32)
    found = []
    for loss in (losses.Lambda(weighted), Weighted(), losses.MSE()):
        net = model()
        fit(net, loss, sample_weight=w)
        found.append(weights(net))
        assert float(loss(T + 1.0, T, w)) == pytest.approx(1.0, rel=1e-5)
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-5, atol=1e-6)
    for loss, name in ((losses.Lambda(squared), r"Lambda\(squared\)"), (Squared(), r"Squared\(\)")):
        for call in (
            lambda loss=loss: loss(T, T, w),
            lambda loss=loss: fit(model(), loss, sample_weight=w),
            lambda loss=loss: xnn.grad(lambda z: loss(z, T, w))(T),
        ):
            with pytest.raises(OptionError, match=f"{name} was given sample_weight, and takes none"):
                call()
        fit(model(), loss)


def test_a_loss_and_a_model_inside_grad():
    net, loss = model(), losses.MSE()
    by_hand = loss.forward(net.forward(X, training=True), T)
    dx = net.backward(loss.backward())
    value, (gradients, found) = xnn.value_and_grad(
        lambda p, x: loss(net(x, training=True), T), argnums=(0, 1)
    )(net.parameters(), X)
    assert float(value) == float(by_hand)
    assert np.array_equal(found, dx)
    for gradient, parameter in zip(gradients, net.parameters(), strict=True):
        assert np.array_equal(gradient, parameter.grad)


def test_a_loss_of_nodes_is_a_node():
    x, t, net = graph.Input(), graph.Input(), model()
    cost = losses.MSE()(net(x), t)
    assert isinstance(cost, graph.Node)
    nodes = graph.topological_sort({x: X, t: T})
    graph.forward_and_backward(nodes)
    assert float(cost.value) == pytest.approx(float(losses.MSE()(net.forward(X), T)), rel=1e-6)
    wanted = xnn.grad(lambda x: losses.MSE()(net(x), T))(X)
    np.testing.assert_allclose(x.gradients[x], wanted, rtol=1e-5, atol=1e-8)


class Perceptual(losses.Loss):
    """The distance between the features that a fixed model finds in outputs and targets."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def compute(self, outputs, targets):
        difference = self.features(outputs) - self.features(targets)
        return ops.mean(difference * difference)


def test_a_model_inside_a_loss():
    features = Sequential(Dense(3, 6), layers.Tanh(), seed=9)
    with pytest.raises(OptionError, match="computes with <Parameter weight"):
        fit(model(), Perceptual(features))
    for parameter in features.parameters():
        parameter.frozen = True
    net, loss = model(), Perceptual(features)
    wanted = xnn.grad(lambda z: loss(z, T))(net.forward(X))
    loss.forward(net.forward(X), T)
    assert np.array_equal(loss.backward(), wanted)


def test_a_frozen_model_inside_a_loss_stays_while_the_model_trains():
    features = Sequential(Dense(3, 6), layers.Tanh(), seed=9)
    for parameter in features.parameters():
        parameter.frozen = True
    before, net, loss = weights(features), model(), Perceptual(features)
    start = loss.forward(net.forward(X), T)
    fit(net, loss)
    assert loss.forward(net.forward(X), T) < start
    assert np.array_equal(weights(features), before)


# Options.

CHANGES = {
    "Huber.delta": (lambda: losses.Huber(1.0), {"delta": 0.1}, T),
    "label_smoothing": (lambda: losses.SoftmaxCrossEntropy(), {"label_smoothing": 0.5}, LABELS),
    "class_weight": (
        lambda: losses.SoftmaxCrossEntropy(class_weight=[1, 1, 1]),
        {"class_weight": (1.0, 5.0, 0.1)},
        LABELS,
    ),
    "Focal.gamma": (lambda: losses.Focal(), {"gamma": 0.5}, np.abs(np.sign(T)).astype(np.float32)),
    "pos_weight": (lambda: losses.BinaryCrossEntropy(2.0), {"pos_weight": 9.0}, (T > 0).astype(np.float32)),
    "reduction": (lambda: losses.MSE(), {"reduction": "sum"}, T),
}


class At(Callback):
    def __init__(self, step, change):
        self.step, self.change, self.done = step, change, 0

    def on_step(self, history, epoch, step, loss):
        self.done += 1
        if self.done == self.step:
            self.change()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "reduction"])
@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_an_option_that_changes_takes_effect_at_the_next_step(name, kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    make, changes, targets = CHANGES[name]

    def change(loss):
        for option, value in changes.items():
            setattr(loss, option, value)
            assert getattr(loss, option) == value

    trained, by_hand, unchanged = model(), model(), model()
    loss = make()
    fit(trained, loss, targets, kernels, [At(2, lambda: change(loss))])
    fit(unchanged, make(), targets, kernels)
    loss, rule, x_t = make(), optimizers.SGD(0.1), (X, make().prepare(targets, "float32"))
    for step, (x, t) in enumerate(xnn.data.Batches(x_t, 8).epoch(0)):
        if step == 2:
            change(loss)
        loss.forward(by_hand.forward(x, training=True), t)
        by_hand.backward(loss.backward(), input_gradient=False)
        rule.step(by_hand.parameters())
    np.testing.assert_allclose(weights(trained), weights(by_hand), rtol=1e-5, atol=1e-6)
    assert not np.allclose(weights(trained), weights(unchanged), rtol=1e-4, atol=1e-6)


def test_options_are_attributes_and_cannot_be_changed_in_silence():
    loss = losses.Huber(0.5)
    assert loss.delta == 0.5
    assert losses.SoftmaxCrossEntropy().label_smoothing == 0.0
    with pytest.raises(TypeError):
        loss.options["delta"] = 2.0
    loss.delta = 2.0
    assert dict(loss.options) == {"delta": 2.0}
    loss.options = {"delta": 3.0}
    assert loss.delta == 3.0
    assert repr(loss) == "Huber(delta=3.0)"
    with pytest.raises(AttributeError, match="has no attribute 'beta'"):
        loss.beta  # noqa: B018
    for same in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert same.delta == 3.0
        assert float(same(T, T + 1.0)) == float(loss(T, T + 1.0))


def test_what_a_compute_must_return():
    with pytest.raises(
        ShapeError, match=r"Lambda\(<lambda>\) must be one number a batch, got shape \(32, 3\)"
    ):
        losses.Lambda(lambda z, t: z - t)(T, T)
    with pytest.raises(OptionError, match=r"losses\.Lambda needs a function"):
        losses.Lambda(losses.MSE())
