"""Layers of several ops, of functions, and of other layers."""

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.errors import GraphError, LabelError, OptionError, ShapeError
from xnn.layers import (
    Add,
    Composite,
    Dense,
    Function,
    Identity,
    Lambda,
    Parallel,
    Parameter,
    ReLU,
    Reshape,
    Sequential,
)
from xnn.layers.files import weights_sha256


class Gate(Composite):
    """sigmoid(x * gain) * x, and the sum of x twice over: several readers of one value."""

    def __init__(self, features):
        super().__init__()
        self.gain = Parameter("gain", (features,), initializers.Ones())

    def compute(self, x):
        return ops.sigmoid(x * self.gain) * x + (x - 0.5 * x)


def data(rows=50, width=6):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, rows)
    return (rng.normal(size=(rows, width)) + y[:, None]).astype(np.float32), y


def branching(seed=1):
    return Sequential(
        Dense(6, 8),
        Add(Identity(), Gate(8), Sequential(Dense(8, 8), Add(ReLU(), Identity(), Gate(8)))),
        Parallel(Dense(8, 3), Add(Dense(8, 5), Dense(8, 5)), Lambda(lambda x: ops.tanh(x) * 2.0)),
        Dense(16, 3),
        seed=seed,
    )


def steps_by_hand(model, x, y, epochs, batch_size):
    loss, rule = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    for epoch in range(epochs):
        for xb, yb in xnn.data.Batches((x, y), batch_size).epoch(epoch):
            loss.forward(model.forward(xb, training=True), yb)
            model.backward(loss.backward(), input_gradient=False)
            rule.step(model.parameters())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_branches_by_hand_and_in_a_program_are_the_same_to_the_bit(numerics):
    x, y = data()
    with xnn.numerics(numerics):
        model, by_hand = branching(), branching()
        xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels="ops").fit(
            (x, y), epochs=2, batch_size=16, progress=False
        )
        steps_by_hand(by_hand, x, y, 2, 16)
        assert weights_sha256(model) == weights_sha256(by_hand)


@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_kernels_do_the_same_to_branches(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = data()
    digests = []
    for table in ("ops", kernels):
        model = branching()
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=table, numerics="exact"
        )
        trainer.fit((x, y), epochs=2, batch_size=16, progress=False)
        digests.append(weights_sha256(model))
    assert digests[0] == digests[1]


def test_pixels_stay_integers_through_branches():
    x, y = xnn.data.synthetic_digits(100)
    with xnn.numerics("exact"):
        model = Sequential(
            layers.Rescale(1 / 255),
            Add(Dense(784, 10), Sequential(Dense(784, 10, seed=3), Identity())),
            seed=0,
        )
        by_hand = Sequential(
            layers.Rescale(1 / 255),
            Add(Dense(784, 10), Sequential(Dense(784, 10, seed=3), Identity())),
            seed=0,
        )
        xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)).fit(
            (x, y), batch_size=20, progress=False
        )
        steps_by_hand(by_hand, x, y, 1, 20)
        assert weights_sha256(model) == weights_sha256(by_hand)


def test_a_composite_has_the_gradient_of_what_it_computes(lib):
    x = lib.to_device(np.linspace(-2, 2, 12).reshape(4, 3).astype(np.float32))
    layer = Gate(3)
    y = layer.forward(x)
    dx = layer.backward(y)
    gain = layer.own_parameters[0]

    def cost(x, gain):
        z = ops.sigmoid(x * gain) * x + (x - 0.5 * x)
        return ops.sum(z * lib.to_device(lib.to_host(y)))

    wanted = xnn.grad(cost, argnums=(0, 1))(x, gain.value)
    assert lib.to_host(dx).tobytes() == lib.to_host(wanted[0]).tobytes()
    assert lib.to_host(gain.grad).tobytes() == lib.to_host(wanted[1]).tobytes()
    assert layer.backward(y, input_gradient=False) is None


def test_add_is_the_sum_and_parallel_the_join(lib):
    x = lib.to_device(np.array([[1.0, -2.0]], np.float32))
    assert lib.to_host(Add(Identity(), ReLU(), Identity()).forward(x)).tolist() == [[3.0, -4.0]]
    assert lib.to_host(Parallel(Identity(), ReLU()).forward(x)).tolist() == [[1.0, -2.0, 1.0, 0.0]]
    layer = Add(Identity(), ReLU())
    layer.forward(x)
    assert lib.to_host(layer.backward(x)).tolist() == [[2.0, -2.0]]
    layer = Parallel(Identity(), ReLU())
    y = layer.forward(x)
    assert lib.to_host(layer.backward(y)).tolist() == [[2.0, -2.0]]


def test_names_shapes_and_cost_go_through_branches():
    model = branching()
    names = [name for name, _ in model.named_parameters()]
    assert names[:5] == ["0.weight", "0.bias", "1.1.gain", "1.2.0.weight", "1.2.0.bias"]
    assert "2.1.0.weight" in names
    assert model.output_shape((6,)) == (3,)
    assert "Parallel" in model.summary()
    assert Parallel(Identity(), Reshape((3, 4)), axis=-1).output_shape((3, 4)) == (3, 8)
    assert Add(Dense(3, 4), Dense(3, 4)).flops((3,)) == 2 * (2 * 12 + 4)


def test_a_model_of_branches_is_saved_and_built_again(tmp_path):
    model = Sequential(
        Dense(4, 4),
        Add(Identity(), Sequential(Dense(4, 4), layers.GELU("tanh"))),
        Parallel(ReLU(), Function(ops.softmax, axis=1), Reshape((-1,)), axis=1),
        layers.LeakyReLU(0.3),
        seed=2,
    )
    x = data(width=4)[0]
    model.save(tmp_path / "m.safetensors")
    again = xnn.load(tmp_path / "m.safetensors")
    assert np.array_equal(again.predict(x), model.predict(x))
    assert repr(again) == repr(model)


def test_a_function_of_yours_keeps_its_weights_alone(tmp_path):
    model = branching()
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(OptionError, match="Gate"):
        xnn.load(tmp_path / "m.safetensors")
    other = branching(seed=4)
    other.load_weights(tmp_path / "m.safetensors")
    assert weights_sha256(other) == weights_sha256(model)
    only = Sequential(Dense(2, 2), Lambda(lambda x: x * 2.0))
    only.save(tmp_path / "l.safetensors")
    with pytest.raises(OptionError, match="Lambda"):
        xnn.load(tmp_path / "l.safetensors")
    holds_arrays = Sequential(Dense(2, 2), Function(ops.rescale, scale=np.ones(2, np.float32)))
    holds_arrays.save(tmp_path / "f.safetensors")
    with pytest.raises(OptionError, match="Function"):
        xnn.load(tmp_path / "f.safetensors")


def test_lambda_may_look_at_values():
    model = Sequential(Dense(6, 3), Lambda(lambda x: ops.where(x > 0.0, x, 0.1 * x)), seed=1)
    plain = Sequential(Dense(6, 3), layers.LeakyReLU(0.1), seed=1)
    results = []
    for net in (model, plain):
        xnn.Trainer(net, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels="ops").fit(
            data(), progress=False
        )
        results.append(net.layers[0].weight.value)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-7)
    assert Lambda(lambda x: ops.sum(x, axis=1)).output_shape((4, 3)) == (3,)


def test_integers_come_in_through_a_shape(lib):
    model = Sequential(Reshape((2, 2)), layers.Flatten(), layers.Rescale(0.5), Dense(4, 2))
    assert model.takes_integers
    assert model.prepare(np.ones((3, 4), np.uint8)).dtype == np.uint8
    assert not Sequential(layers.Flatten(), Dense(4, 2)).takes_integers
    assert Sequential(model).takes_integers


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: Add(), OptionError, "Add needs at least one layer"),
        (lambda: Add(Identity(), ops.relu), OptionError, "Add takes layers"),
        (lambda: Parallel(*[ReLU()] * 2), OptionError, "stands twice in a Parallel"),
        (lambda: Parallel(ReLU(), axis=0), OptionError, "axis=0, which is the batch"),
        (lambda: Add(Dense(3, 1), Dense(3, 2)).forward(np.ones((5, 3), "f4")), ShapeError, r"\(1,\), \(2,\); they"),
        (lambda: Add(Dense(3, 1), Dense(3, 2)).output_shape((3,)), ShapeError, "must be equal"),
        (lambda: Parallel(Identity(), Reshape((2, 2))).output_shape((4,)), ShapeError, "equal but for that axis"),
        (lambda: Parallel(ReLU(), axis=1.5), OptionError, "axis must be an integer, got 1.5"),
        (lambda: Parallel(Identity(), axis=2).output_shape((4,)), ShapeError, "axis 2"),
        (lambda: Lambda(3), OptionError, "Lambda needs a function"),
        (lambda: Lambda(ReLU()), OptionError, "Lambda needs a function"),
        (lambda: Lambda(lambda x: 1.0).forward(np.ones((2, 2))), GraphError, "with ops, got float"),
        (lambda: Composite().forward(np.ones((2, 2))), OptionError, "`compute` of its own"),
        (lambda: Reshape((0, 2)), OptionError, "at least 1"),
        (lambda: Reshape((-1, -1)), OptionError, "one of which may be -1"),
        (lambda: Reshape(2.5), OptionError, "integer"),
        (lambda: Reshape((2, 3)).forward(np.ones((4, 5))), ShapeError, r"shape \(5,\): they have 5 elements"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(make, kind, said):
    with pytest.raises(kind, match=said):
        make()


def test_a_shared_layer_is_refused_through_branches():
    dense = Dense(3, 3)
    with pytest.raises(OptionError, match="are one parameter"):
        Sequential(Add(dense, Identity()), dense)


class Scaled(Composite):
    """x e^g: what is made of a parameter alone comes before x."""

    def __init__(self, features):
        super().__init__()
        self.g = Parameter("g", (features,), initializers.Constant(0.25))

    def compute(self, x):
        return x * ops.exp(self.g + 0.5)


class Halved(Composite):
    """A gated linear unit: (n, 2 k) becomes (n, k)."""

    def compute(self, x, training):
        half = x.shape[1] // 2
        return ops.take(x, np.arange(half), axis=1) * ops.sigmoid(
            ops.take(x, np.arange(half, 2 * half), axis=1)
        )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_composite_may_begin_with_its_parameters_and_change_the_shape(numerics):
    with xnn.numerics(numerics):
        x, y = data()
        by_hand, trained = (Sequential(Scaled(6), Halved(), Dense(3, 3), seed=1) for _ in range(2))
        steps_by_hand(by_hand, x, y, epochs=2, batch_size=20)
        trainer = xnn.Trainer(trained, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels="ops")
        trainer.fit((x, y), epochs=2, batch_size=20, progress=False)
        assert weights_sha256(by_hand) == weights_sha256(trained)
        assert trained.predict(x).shape == (50, 3)


class Places(Composite):
    """A vector for each word and one for each place."""

    takes_integers = True

    def __init__(self, words, places, width):
        start = initializers.Normal(1.0)
        super().__init__()
        self.words = Parameter("words", (words, width), start)
        self.places = Parameter("places", (places, width), start)

    def compute(self, x):
        return ops.embedding(x, self.words) + self.places


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_composite_may_take_integers(numerics):
    with xnn.numerics(numerics):
        x, y = np.arange(40).reshape(10, 4) % 5, np.arange(10) % 3
        by_hand, trained = (
            Sequential(Places(5, 4, 2), layers.Flatten(), Dense(8, 3), seed=1) for _ in range(2)
        )
        steps_by_hand(by_hand, x, y, epochs=2, batch_size=4)
        trainer = xnn.Trainer(trained, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels="ops")
        trainer.fit((x, y), epochs=2, batch_size=4, progress=False)
        assert weights_sha256(by_hand) == weights_sha256(trained)
        assert trained.predict(x).shape == (10, 3)


def test_branches_take_integers_where_all_of_them_do(lib):
    def model():
        words = Parallel(layers.Embedding(5, 2), Sequential(layers.Embedding(5, 3)), axis=2)
        return Sequential(layers.Flatten(), words, layers.Flatten(), Dense(20, 3))

    assert repr(model().layers[1]).endswith("axis=2)")
    with xnn.backend(lib.name):
        words, x = model(), np.arange(40).reshape(10, 4) % 5
        trainer = xnn.Trainer(words, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
        trainer.fit((x, np.arange(10) % 3), progress=False)
        assert words.predict(x).shape == (10, 3)
        with pytest.raises(LabelError, match="from 0 to 9"):
            words.predict(np.arange(40).reshape(10, 4) % 10)
    assert not Add(layers.Embedding(5, 2), Dense(4, 2)).takes_integers


def test_back_through_a_model_of_integers_ends_at_them():
    words = Sequential(layers.Flatten(), layers.Embedding(5, 2), layers.Flatten(), Dense(8, 3))
    y = words.forward(np.zeros((6, 4), np.int64), training=True)
    assert words.backward(np.ones_like(y)) is None
    assert words.layers[1].weight.grad[0].any()
