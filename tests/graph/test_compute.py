"""What `compute` may do in every way of running, and what a program of it sees and refuses."""

import numpy as np
import pytest
from small_network import X, Y, by_hand

import xnn
from xnn import callbacks, initializers, layers, losses, ops, optimizers
from xnn.errors import GraphError, OptionError
from xnn.graph import Input, forward_and_backward, topological_sort

# Pairs written by hand, in every way of running.


class Square(layers.Layer):
    """The blocks article's style."""

    def forward(self, x, training=False):
        self.x = x
        return x * x

    def backward(self, dout, input_gradient=True):
        return 2.0 * self.x * dout


def test_a_pair_written_by_hand_works_in_every_way():
    model = xnn.Sequential(layers.Dense(4, 2, seed=1), Square())
    loss = losses.MSE()
    cost, dx, expected = by_hand(model, loss, X, Y)
    value, gradient = xnn.value_and_grad(lambda x: loss(model(x), Y))(X)
    assert (value, gradient.tobytes()) == (cost, dx.tobytes())
    x = Input()
    forward_and_backward(topological_sort({x: X}) if losses.MSE()(model(x), Y) else [])
    assert x.gradients[x].tobytes() == dx.tobytes()
    assert all(p.grad.tobytes() == expected[name].tobytes() for name, p in model.named_parameters())
    trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), kernels="ops")
    assert trainer.fit((X, Y), shuffle=False, progress=False)["loss"] == [float(cost)]


def test_half_of_a_pair_is_an_error():
    with pytest.raises(OptionError, match="a forward of its own and no backward: write both"):

        class Half(layers.Layer):
            def forward(self, x, training=False):
                return x

    with pytest.raises(OptionError, match="a backward of its own and no forward"):

        class Other(losses.Loss):
            def backward(self):
                return 1.0


# What a program sees, and what it refuses.


class Scaled(layers.Layer):
    factor = 1.0

    def compute(self, x):
        return x * self.factor


class Change(callbacks.Callback):
    """After the first step of a fit it calls a function."""

    def __init__(self, function):
        self.function, self.done = function, False

    def on_step(self, history, epoch, step, loss):
        if not self.done:
            self.function()
            self.done = True


FACTOR = {"now": 1.0}


@pytest.mark.parametrize("where", ["attribute", "global", "closure"])
def test_a_program_sees_what_a_callback_changes(where):
    """Two steps; after the first, the factor becomes 3: as if a second Trainer had begun with 3."""
    factor = [1.0]
    scaled = Scaled()
    layer = {
        "attribute": scaled,
        "global": layers.Lambda(lambda x: x * FACTOR["now"]),
        "closure": layers.Lambda(lambda x: x * factor[0]),
    }[where]

    def change(value):
        scaled.factor = FACTOR["now"] = factor[0] = value

    def run(callbacks, epochs):
        model = xnn.Sequential(layers.Dense(4, 2, seed=1), layer)
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), callbacks=callbacks)
        trainer.fit((X, Y), epochs=epochs, progress=False)
        return trainer, model

    change(1.0)
    _, ours = run([Change(lambda: change(3.0))], 2)
    change(1.0)
    trainer, theirs = run([], 1)
    change(3.0)
    trainer.fit((X, Y), epochs=1, progress=False)
    assert ours.layers[0].weight.value.tobytes() == theirs.layers[0].weight.value.tobytes()
    change(1.0)
    _, unchanged = run([], 2)
    assert ours.layers[0].weight.value.tobytes() != unchanged.layers[0].weight.value.tobytes()


def test_a_program_sees_what_a_schedule_changes_at_the_next_check():
    factor = [1.0]

    def schedule(step):
        factor[0] = 3.0 if step else 1.0  # from the second step's rate on
        return 0.1

    def run(rate, epochs):
        model = xnn.Sequential(layers.Dense(4, 2, seed=1), layers.Lambda(lambda x: x * factor[0]))
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(rate))
        return trainer.fit((X, Y), epochs=epochs, batch_size=3, progress=False)["loss"]

    constant = run(0.1, 2)
    changed = run(schedule, 2)
    assert changed[0] == constant[0]
    assert changed[1] != constant[1]


def looked(x):
    return x * (2.0 if ops.sum(x) > 0.0 else 1.0)


def read(x):
    return x * float(np.mean(getattr(x, "value", x)))


def drew(x):
    return x * float(np.random.default_rng().random())


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (looked, GraphError, "a branch on it would fix the first batch's numbers"),
        (read, GraphError, "reading .value would fix the first batch's numbers"),
        (drew, OptionError, "did something else when it ran a second time"),
    ],
)
def test_what_a_program_refuses(function, error, words):
    model = xnn.Sequential(layers.Dense(4, 2), layers.Lambda(function))
    with pytest.raises(error, match=words):
        xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X, Y), progress=False)


def test_state_that_compute_changes_is_refused():
    class Counting(layers.Layer):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def compute(self, x):
            self.calls += 1
            return x * float(self.calls)

    model = xnn.Sequential(layers.Dense(4, 2), Counting())
    with pytest.raises(GraphError, match=r"Counting\.calls was assigned in `compute`"):
        xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X, Y), progress=False)
    model.forward(X)  # by hand it counts
    assert model.layers[1].calls > 1


def test_a_buffer_that_is_not_the_models_is_not_changed():
    norm = layers.BatchNorm(2, affine=False)
    distance = losses.MSE()

    def training(outputs, targets):
        return distance(norm(outputs), targets)

    def inference(outputs, targets):
        return distance(norm(outputs, training=False), targets)

    model = xnn.Sequential(layers.Dense(4, 2))
    with pytest.raises(OptionError, match="training would change <Buffer running_mean"):
        xnn.Trainer(model, training, optimizers.SGD(0.1)).fit((X, X[:, :2]), progress=False)
    xnn.Trainer(model, inference, optimizers.SGD(0.1)).fit((X, X[:, :2]), progress=False)
    assert norm.running_mean.value.tolist() == [0.0, 0.0]


def test_a_layer_that_is_not_the_models_draws_no_random_numbers():
    """A loss has no seed and no step of a fit: its masks would be others in a second fit of the same seed."""
    dropout, distance = layers.Dropout(0.5), losses.MSE()
    model = xnn.Sequential(layers.Dense(4, 2))
    with pytest.raises(OptionError, match=r"Dropout\(\) draws random numbers"):
        xnn.Trainer(model, lambda y, t: distance(dropout(y), t), optimizers.SGD(0.1)).fit((X, X[:, :2]))
    inference = xnn.Trainer(model, lambda y, t: distance(dropout(y, False), t), optimizers.SGD(0.1))
    inference.fit((X, X[:, :2]), progress=False)


def test_state_that_the_compute_of_a_loss_changes_is_refused():
    class Growing(losses.Loss):
        calls = 0

        def compute(self, outputs, targets):
            self.calls += 1
            return ops.mean(outputs - targets) * float(self.calls)

    model, loss = xnn.Sequential(layers.Dense(4, 2)), Growing()
    with pytest.raises(GraphError, match=r"Growing\.calls was assigned in `compute`"):
        xnn.Trainer(model, loss, optimizers.SGD(0.1)).fit((X, Y), progress=False)
    loss(X, X)  # by hand it counts
    assert loss.calls > 0


def test_by_hand_and_under_grad_a_branch_on_numbers_is_a_branch():
    layer = layers.Lambda(looked)
    assert layer.forward(np.ones((1, 2), np.float32)).tolist() == [[2.0, 2.0]]
    assert layer.forward(-np.ones((1, 2), np.float32)).tolist() == [[-1.0, -1.0]]
    assert xnn.grad(lambda x: ops.sum(layer(x)))(np.ones((1, 2))).tolist() == [[2.0, 2.0]]


def test_a_parameter_from_elsewhere_is_an_error():
    elsewhere = layers.Dense(4, 2)

    class Hidden(layers.Layer):
        def compute(self, x):
            return elsewhere(x)

    model = xnn.Sequential(Hidden(), layers.Dense(2, 2))
    with pytest.raises(OptionError, match="would stay untrained and unsaved"):
        xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X, Y), progress=False)
    layer = Hidden()
    layer.forward(X)
    with pytest.raises(OptionError, match="would stay untrained and unsaved"):
        layer.backward(Y)


def test_a_parameter_that_the_loss_does_not_read_is_an_error():
    class Idle(layers.Layer):
        def __init__(self):
            super().__init__()
            self.idle = layers.Parameter("idle", (3,), initializers.Ones())

        def compute(self, x):
            return x * 1.0

    model = xnn.Sequential(layers.Dense(4, 2), Idle())
    with pytest.raises(OptionError, match=r"does not depend on the model's 1.idle \(3,\)"):
        xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X, Y), progress=False)
    model.layers[1].idle.frozen = True
    xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X, Y), progress=False)


# What a program reads that changes without it.


def tracked(xp, mean, x):
    return (0.9 * mean + 0.1 * xp.mean(x, axis=0),)


class Centre(layers.Layer):
    """Subtracts a running mean, by an op that has a kernel."""

    def __init__(self):
        super().__init__()
        self.mean = layers.Buffer("mean", (4,), initializers.Zeros())

    def compute(self, x, training):
        if training:
            self.keep([self.mean], tracked, x)
        return ops.dense(x, -np.eye(4, dtype=np.float32), self.mean)  # the mean as it was before this step


def trained(model, loss, kernels, callbacks=()):
    """The losses of four epochs of one step."""
    trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), kernels=kernels, callbacks=list(callbacks))
    return trainer.fit((X, Y), epochs=4, shuffle=False, progress=False)["loss"]


def stepped(model, loss, after=lambda: None):
    """The same by hand."""
    found, sgd = [], optimizers.SGD(0.1)
    for _ in range(4):
        found.append(float(loss.forward(model.forward(X, training=True), Y)))
        model.backward(loss.backward(), input_gradient=False)
        sgd.step(model.parameters())
        after()
    return found


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_program_reads_what_it_keeps(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")

    def build():
        return xnn.Sequential(Centre(), layers.Dense(4, 2), seed=1)

    assert trained(build(), losses.MSE(), kernels) == pytest.approx(stepped(build(), losses.MSE()), rel=1e-5)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_a_program_reads_a_frozen_model_in_its_loss(kernels):
    """As a target network is read, which a callback changes at the end of each epoch."""
    if kernels == "compiled":
        pytest.importorskip("numba")

    def build():
        target = xnn.Sequential(layers.Dense(2, 2, seed=3))
        for parameter in target.parameters():
            parameter.frozen = True

        def loss(outputs, targets):
            return ops.mse(target(outputs), target(targets)) + ops.mse(outputs, targets)

        def change():
            for parameter in target.parameters():
                parameter.value = parameter.value * 0.5

        return xnn.Sequential(layers.Dense(4, 2, seed=1)), losses.Lambda(loss), change

    class AtEnd(callbacks.Callback):
        def __init__(self, function):
            self.function = function

        def on_epoch_end(self, history, entry):
            self.function()

    model, loss, change = build()
    ours = trained(model, loss, kernels, [AtEnd(change)])
    assert ours == pytest.approx(stepped(*build()), rel=1e-5)
    assert ours != pytest.approx(trained(*build()[:2], kernels), rel=1e-5)


# Layers that users write first.


class Attention(layers.Layer):
    def __init__(self, features):
        super().__init__()
        self.query, self.key, self.value = (layers.Dense(features, features, bias=False) for _ in range(3))

    def compute(self, x):
        scores = self.query(x) @ ops.transpose(self.key(x), axes=(0, 2, 1)) / 2.0
        return ops.softmax(scores) @ self.value(x)


class Recurrent(layers.Layer):
    def __init__(self, features, hidden):
        super().__init__()
        self.hidden = hidden
        self.of_input, self.of_state = (
            layers.Dense(features, hidden),
            layers.Dense(hidden, hidden, bias=False),
        )

    def compute(self, x):
        state = ops.tanh(self.of_input(x[:, 0]))
        for step in range(1, x.shape[1]):
            state = ops.tanh(self.of_input(x[:, step]) + self.of_state(state))
        return state


class WeightNorm(layers.Layer):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.direction = layers.Parameter("direction", (inputs, outputs), initializers.He())
        self.gain = layers.Parameter("gain", (outputs,), initializers.Ones())

    def compute(self, x):
        length = ops.sqrt(ops.sum(self.direction * self.direction, axis=0))
        return x @ (self.direction * (self.gain / length))


class Tied(layers.Layer):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    def __init__(self, inputs, code):
        super().__init__()
        self.encoder = layers.Dense(inputs, code)

    def compute(self, x):
        return ops.tanh(self.encoder(x)) @ self.encoder.weight.T


@pytest.mark.parametrize(
    "build",
    [
        lambda: (layers.Reshape((2, 2)), Attention(2), layers.Flatten(), layers.Dense(4, 2)),
        lambda: (layers.Reshape((2, 2)), Recurrent(2, 3), layers.Dense(3, 2)),
        lambda: (WeightNorm(4, 2),),
        lambda: (Tied(4, 3), layers.Dense(4, 2)),
    ],
    ids=["attention", "recurrent", "weight norm", "tied"],
)
def test_layers_of_users(build, mode, one_thread):
    """The same bits by hand, in a program of ops, and in a loop with xnn.grad; kernels to rounding."""
    losses_of = [trained(xnn.Sequential(*build(), seed=1), losses.MSE(), name) for name in ("ops", "numpy")]
    assert losses_of[0] == stepped(xnn.Sequential(*build(), seed=1), losses.MSE())
    assert losses_of[1] == (losses_of[0] if mode == "exact" else pytest.approx(losses_of[0], rel=1e-5))
    assert losses_of[0][-1] < losses_of[0][0]
    model, loss = xnn.Sequential(*build(), seed=1), losses.MSE()
    _, _, gradients = by_hand(model, loss, X, Y)
    ours = xnn.grad(lambda p: loss(model(X), Y))(dict(model.named_parameters()))
    assert {name: g.tobytes() for name, g in gradients.items()} == {n: g.tobytes() for n, g in ours.items()}
