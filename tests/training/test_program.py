"""Programs: the flat list is the layers' own steps bit for bit, and each fusion rule changes rounding only."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import get_backend
from xnn.backends.kernels import fusion
from xnn.backends.kernels.binding import bind
from xnn.backends.kernels.calls import Cursor
from xnn.backends.kernels.fusion import RULES, fuse
from xnn.callbacks import Callback
from xnn.data import synthetic_digits
from xnn.errors import GraphError, OptionError
from xnn.graph.autograd import gradients_of
from xnn.graph.backward import made_from
from xnn.graph.scope import Scope
from xnn.graph.value import Value
from xnn.layers import Parameter
from xnn.runs.mlp import mlp
from xnn.schedules import OneCycle
from xnn.training.flatten import flatten
from xnn.training.inputs import prepare
from xnn.training.parameters import Store
from xnn.training.steps import Stepper
from xnn.training.trace import Trace

X, Y = synthetic_digits(330)
LIB = get_backend("numpy")


@pytest.fixture(params=["numpy", "compiled"])
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


def network(dtype="float32", seed=3):
    return xnn.Sequential(
        layers.Rescale(1 / 255, dtype=dtype), layers.Dense(784, 24, dtype=dtype), layers.ReLU(),
        layers.Dense(24, 16, dtype=dtype), layers.Tanh(), layers.Dense(16, 12, bias=False, dtype=dtype),
        layers.Sigmoid(), layers.Dense(12, 10, dtype=dtype), seed=seed,
    )  # fmt: skip


def train(model, optimizer, kernels, x=X, y=Y, loss=None, epochs=2, **options):
    trainer = xnn.Trainer(model, loss or losses.SoftmaxCrossEntropy(), optimizer, kernels=kernels, **options)
    history = trainer.fit((x, y), epochs=epochs, batch_size=32, seed=5, progress=False)
    return trainer, history


def weights(model):
    return np.concatenate([p.value.ravel() for p in model.parameters()])


OPTIMIZERS = [
    lambda: optimizers.SGD(0.1),
    lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    lambda: optimizers.SGD(0.1, weight_decay=1e-3),
    lambda: optimizers.Adam(0.003),
    lambda: optimizers.Adam(OneCycle(0.01, 22)),
]


@pytest.mark.parametrize("number", range(len(OPTIMIZERS)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_change_rounding_only(kernels, number, dtype):
    """22 steps, the last of each epoch on a smaller batch, against the same steps by the ops."""
    found = []
    for table in ("ops", kernels):
        model = network(dtype)
        rule = OPTIMIZERS[number]()
        _, history = train(model, rule, table)
        state = [a for p in model.parameters() for a in rule.state_of(p).arrays]
        found.append((history["loss"], history["accuracy"], weights(model), state, rule.steps))
    (loss, accuracy, end, state, steps), (loss2, accuracy2, end2, state2, steps2) = found
    tight = 2e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(loss2, loss, rtol=tight)
    np.testing.assert_allclose(accuracy2, accuracy, atol=0.01 if dtype == "float32" else 0)
    assert np.max(np.abs(end2 - end)) <= tight * np.max(np.abs(end))
    for a, b in zip(state, state2, strict=True):
        assert np.max(np.abs(a - b)) <= 10 * tight * max(np.max(np.abs(a)), 1e-3)
    assert steps == steps2 == 22


def stepper(table, keep_gradients=False, optimizer=None, dtype="float32"):
    trainer = xnn.Trainer(network(dtype), losses.SoftmaxCrossEntropy(), optimizer or optimizers.SGD(0.1))
    data = prepare(trainer.model, trainer.loss, trainer.metrics, (X, Y), "training")
    batches = xnn.data.Batches(data, 32, shuffle=False)
    metrics = trainer.metrics
    return Stepper(
        LIB,
        LIB.kernels(table),
        trainer.model,
        trainer.loss,
        trainer.optimizer,
        metrics,
        batches,
        keep_gradients,
    )


#: Only a GPU's kernels do what moments_into_normalize makes: test_cuda_programs.py has the other test. This network
#: has no penalty: test_given_orders.py has one. It has no images either: see the test below.
ELSEWHERE = fusion.moments_into_normalize, fusion.penalty_into_sum, fusion.relu_behind_max_pool
HERE = [rule for rule in RULES if rule not in ELSEWHERE]


@pytest.mark.parametrize("rule", HERE, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_rule_by_itself(monkeypatch, kernels, rule, dtype):
    """One rule applied to the whole list: shorter, and the same numbers within rounding."""
    found = []
    for rules in ((), (rule,)):
        monkeypatch.setattr(fusion, "RULES", rules)
        steps = stepper(kernels, dtype=dtype)
        for start in range(0, 320, 32):
            steps.step(np.arange(start, start + 32), 0)
        losses_, counts = steps.take()
        found.append((losses_, counts, weights(steps.model), steps.program(32).calls))
    (loss, count, end, calls), (loss2, count2, end2, calls2) = found
    assert len(calls2) < len(calls)
    assert not any(call.parts for call in calls)
    assert all(part in {c.key for c in calls} for c in calls2 for part in {p.key for p in c.parts})
    tight = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(loss2, loss, rtol=tight)
    np.testing.assert_array_equal(count2, count)
    assert np.max(np.abs(end2 - end)) <= tight * np.max(np.abs(end))


@pytest.mark.parametrize("options", [{}, {"stride": 3}], ids=["apart", "with gaps"])
def test_relu_behind_max_pool_changes_no_bit(monkeypatch, options):
    """Also where a window has several largest numbers, which are 0, as half of the images have, or NaN or -0."""
    x = np.random.default_rng(3).normal(size=(64, 2, 9, 8)).astype(np.float32)
    x[::2] = -np.abs(x[::2])
    x[5, 0, 3, 3], x[6] = np.nan, -0.0
    found = []
    for rules in (RULES, [rule for rule in RULES if rule is not fusion.relu_behind_max_pool]):
        monkeypatch.setattr(fusion, "RULES", rules)
        model = xnn.Sequential(
            layers.Conv2D(2, 3, 1), layers.ReLU(), layers.MaxPool2D(2, **options),
            layers.Conv2D(3, 4, 2), layers.ReLU(), layers.MaxPool2D(2), layers.Flatten(), layers.Dense(4, 3), seed=1,
        )  # fmt: skip
        model[0].weight.value[...] = 1.0
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels="numpy")
        trainer.keeps_programs = True
        history = trainer.fit((x[10:], np.arange(54) % 3), epochs=2, batch_size=27, progress=False)
        program = trainer.programs.stepper.program(27)
        of_relu = [call.reads[0].shape[2:] for call in program.calls if call.key == ("forward", ops.relu)]
        found.append((weights(model).tobytes(), history.losses_sha256, model.predict(x).tobytes(), of_relu))
    assert found[0][:3] == found[1][:3]
    assert all(a[0] < b[0] for a, b in zip(found[0][3], found[1][3], strict=True))


def test_the_articles_list_has_nothing_to_spare(kernels):
    """784-100-200-10: two gathers, three dense calls each way, the loss, a metric; no update and no data gradient."""
    trainer = xnn.Trainer(
        mlp(784, (100, 200), 10, rescale=(1 / 255, 0.0)), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    )
    batches = xnn.data.Batches(prepare(trainer.model, trainer.loss, trainer.metrics, (X, Y), "training"), 32)
    steps = Stepper(
        LIB, LIB.kernels(kernels), trainer.model, trainer.loss, trainer.optimizer, [], batches, False
    )
    calls = steps.program(32).calls
    kinds = [call.kind for call in calls]
    assert kinds == ["gather", "gather", *["forward"] * 3, "loss", *["backward"] * 3, "collect"]
    assert calls[-2].writes[0] is None
    assert all(call.rule is not None for call in calls if call.kind == "backward")
    assert "forward dense + relu" in repr(steps.program(32))
    if kernels == "compiled":
        assert len(steps.program(32)._steps) == 2  # one stretch of rows, and keeping the loss


@pytest.mark.usefixtures("one_thread")
def test_an_unfused_list_is_what_the_layers_do_bit_for_bit():
    """The same steps by hand, through forward, backward and step."""
    program = stepper("ops")
    by_hand = network()
    loss, rule = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    for start in range(0, 320, 32):
        rows = np.arange(start, start + 32)
        program.step(rows, 0)
        value = loss.forward(by_hand.forward(X[rows], training=True), Y[rows])
        by_hand.backward(loss.backward(), input_gradient=False)
        rule.step(by_hand.parameters())
        assert program.take()[0][0] == float(value)
        for a, b in zip(program.model.parameters(), by_hand.parameters(), strict=True):
            assert a.value.tobytes() == b.value.tobytes()
            assert a.grad.tobytes() == b.grad.tobytes()


def test_a_value_with_several_readers(kernels):
    """Gradients of a graph that branches and joins: autograd's, in the same order of additions."""
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(5, 4)), "u": rng.normal(size=(4, 4))}
    x, t = rng.normal(size=(6, 5)), rng.normal(size=(6, 4))

    def joined(x, w, u, t):
        h = ops.tanh(ops.dense(x, w))
        left, right = ops.relu(ops.dense(h, u)), ops.sigmoid(h)
        return ops.mse(left + right * h, t)

    values = {name: Value(value) for name, value in start.items()}
    cost = joined(x, values["w"], values["u"], t)
    expected = gradients_of(cost, None, [values["w"], values["u"]])

    for table in ("ops", kernels):
        parameters = []
        for name, value in start.items():
            parameters.append(Parameter(name, value.shape, lambda s, shape: np.zeros(shape), "float64"))
            parameters[-1].value = value
        store = Store(LIB, optimizers.SGD(0.0), parameters, in_place=table != "ops")
        inputs = Value(x), Value(t)
        scope = Scope(training=True, program=True)
        with scope:
            end = joined(inputs[0], *parameters, inputs[1])
        records = [[]]
        traced = Trace(inputs, end, end, [], made_from(end), [])
        calls = flatten(LIB, store, traced, (x, t), Cursor(np.arange(6)), [], records)
        assert sum(call.kind == "add" for call in calls) == 1
        chosen = LIB.kernels(table)
        calls = fuse(calls, chosen, keep_gradients=True)
        store.advance()
        for step in bind(LIB, chosen, calls):
            step()
        store.publish()
        for parameter, gradient in zip(parameters, expected, strict=True):
            if table == "ops":
                assert parameter.grad.tobytes() == gradient.tobytes()
            np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-13, atol=1e-15)
        assert float(records[0][0]) == pytest.approx(float(cost.value), rel=1e-14)


class TestGradients:
    def test_reading_a_folded_gradient_raises(self, kernels):
        trainer, _ = train(network(), optimizers.SGD(0.1), kernels, epochs=1)
        parameter = trainer.model.parameters()[0]
        with pytest.raises(GraphError, match="needs_gradients = True"):
            parameter.grad  # noqa: B018
        x = X[:4]
        trainer.model.forward(x)
        trainer.model.backward(np.ones((4, 10), np.float32))
        assert parameter.grad.shape == (784, 24)

    def test_a_callback_that_says_so_sees_them(self, kernels):
        class Watch(Callback):
            needs_gradients = True

            def on_check(self, history, epoch, step, loss, metrics):
                seen.append([p.grad.copy() for p in trainer.model.parameters()])

        found = []
        for table in ("ops", kernels):
            seen = []
            model = network()
            trainer = xnn.Trainer(
                model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=table, callbacks=[Watch()]
            )
            trainer.fit((X, Y), epochs=2, batch_size=32, seed=5, progress=False)
            assert len(seen) == 2
            found.append(seen)
        for a, b in zip(*found, strict=True):
            for left, right in zip(a, b, strict=True):
                assert np.max(np.abs(left - right)) <= 1e-4 * np.max(np.abs(left)) + 1e-7

    def test_momentum_keeps_them(self, kernels):
        trainer, _ = train(network(), optimizers.SGD(0.1, momentum=0.9), kernels, epochs=1)
        assert all(np.isfinite(p.grad).all() for p in trainer.model.parameters())


class Doubled(layers.Layer):
    """A layer in its own words, with a weight and a count."""

    def __init__(self):
        self.scale = Parameter("scale", (10,), lambda stream, shape: np.ones(shape), "float32")
        super().__init__(self.scale)
        self.calls = 0

    def forward(self, x, training=False):
        self.calls += training
        self.saved = x
        return x * self.scale.value * np.float32(2)

    def backward(self, dout, input_gradient=True):
        self.scale.grad = (dout * self.saved * np.float32(2)).sum(axis=0)
        return dout * self.scale.value * np.float32(2) if input_gradient else None


class TestWhatUsersWrite:
    def test_a_layer_of_their_own(self, kernels):
        found = []
        for table in ("ops", kernels):
            model = xnn.Sequential(*network().layers, Doubled(), seed=3)
            train(model, optimizers.SGD(0.05), table)
            assert model.layers[-1].calls == 22  # a trial counts for nothing
            assert model.layers[-1].scale.value.min() != 1.0
            found.append(weights(model))
        assert np.max(np.abs(found[0] - found[1])) <= 1e-4 * np.max(np.abs(found[0]))

    def test_a_model_of_their_own(self, kernels):
        class Residual(xnn.Sequential):
            def forward(self, x, training=False):
                return super().forward(x, training) + x

            def backward(self, dout, input_gradient=True):
                inner = super().backward(dout, True)
                return inner + dout if input_gradient else None

        found = []
        for table in ("ops", kernels):
            inner = Residual(layers.Dense(24, 24), layers.ReLU())
            model = xnn.Sequential(
                layers.Rescale(1 / 255), layers.Dense(784, 24), inner, layers.Dense(24, 10), seed=1
            )
            _, history = train(model, optimizers.SGD(0.1), table)
            assert history["loss"][1] < history["loss"][0]
            found.append(weights(model))
        assert np.max(np.abs(found[0] - found[1])) <= 1e-4 * np.max(np.abs(found[0]))

    def test_an_optimizer_of_their_own(self, kernels):
        class Sign(optimizers.SGD):
            def update(self, parameter):
                parameter.value = parameter.value - np.float32(self.learning_rate) * np.sign(parameter.grad)

        found = []
        for table in ("ops", kernels):
            model = network()
            trainer, history = train(model, Sign(0.001), table)
            assert trainer.optimizer.steps == 22
            assert history["loss"][1] < history["loss"][0]
            found.append(history["loss"])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-3)

    def test_an_optimizer_that_says_no_rule(self, kernels):
        """Only update, and a state of its own kind; a second fit goes on with it."""

        class Heavy(optimizers.Optimizer):
            def __init__(self):
                super().__init__(0.02, 0.0)

            def update(self, parameter):
                velocity = np.float32(0.9) * self.state.get(parameter, np.float32(0)) + parameter.grad
                self.state[parameter] = velocity
                parameter.value = parameter.value - np.float32(self.learning_rate) * velocity

        found = []
        for table, rule in (("ops", optimizers.SGD(0.02, momentum=0.9)), (kernels, Heavy())):
            model = network()
            trainer, _ = train(model, rule, table, epochs=1)
            trainer.fit((X, Y), batch_size=32, seed=5, progress=False)
            found.append(weights(model))
        assert np.max(np.abs(found[0] - found[1])) <= 1e-4 * np.max(np.abs(found[0]))

    def test_a_loss_of_their_own(self, kernels):
        class Half(losses.SoftmaxCrossEntropy):
            def compute(self, outputs, targets):
                return super().compute(outputs, targets) / 2.0

        found = []
        for table in ("ops", kernels):
            model = network()
            _, history = train(model, optimizers.SGD(0.1), table, loss=Half())
            found.append(history["loss"])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
        plain = train(network(), optimizers.SGD(0.05), "ops")[1]["loss"]
        np.testing.assert_allclose(2 * np.array(found[0]), plain, rtol=1e-4)

    def test_a_regression_has_no_kernel_for_its_loss_and_trains(self, kernels):
        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        found = []
        for table in ("ops", kernels):
            model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 1), seed=2)
            _, history = train(model, optimizers.SGD(0.1), table, x, x * x, losses.MSE(), epochs=20)
            found.append(history["loss"])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
        assert found[0][-1] < found[0][0] / 2


CHANGES = {
    "weights": lambda t, h: setattr(t.model.parameters()[2], "value", np.ones((24, 16), np.float32) / 50),
    "frozen": lambda t, h: setattr(t.model.parameters()[0], "frozen", len(h.epochs) == 1),
    "rate": lambda t, h: setattr(t.optimizer, "learning_rate", 0.001),
    "momentum off": lambda t, h: setattr(
        t.optimizer, "momentum" if isinstance(t.optimizer, optimizers.SGD) else "beta1", 0.0
    ),
    "state dropped": lambda t, h: t.optimizer.state.clear(),
}


class TestBetweenSteps:
    """What callbacks assign is taken in, for any table."""

    def train(self, table, change, optimizer=None):
        class Change(Callback):
            def on_epoch_end(self, history, entry):
                change(trainer, history)

        trainer = xnn.Trainer(
            network(), losses.SoftmaxCrossEntropy(), optimizer or optimizers.SGD(0.1, momentum=0.9),
            kernels=table, callbacks=[Change()],
        )  # fmt: skip
        trainer.fit((X, Y), epochs=3, batch_size=32, seed=5, progress=False)
        return weights(trainer.model)

    @pytest.mark.sampled(5)
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("rule", ["sgd", "adam"])
    def test_is_taken_in(self, kernels, change, rule):
        make = (
            (lambda: optimizers.SGD(0.1, momentum=0.9)) if rule == "sgd" else (lambda: optimizers.Adam(0.01))
        )
        expected = self.train("ops", CHANGES[change], make())
        unchanged = self.train("ops", lambda t, h: None, make())
        found = self.train(kernels, CHANGES[change], make())
        bound = 2e-3 if rule == "adam" else 2e-4  # Adam divides by roots of gradients near zero
        assert np.max(np.abs(found - expected)) <= bound * np.max(np.abs(expected))
        assert np.max(np.abs(unchanged - expected)) > 10 * bound * np.max(np.abs(expected))

    def test_an_array_that_was_given_is_not_written(self, kernels):
        model = network()
        mine = np.ones((24, 16), np.float32) / 50
        model.parameters()[2].value = mine
        train(model, optimizers.SGD(0.1), kernels, epochs=1)
        np.testing.assert_array_equal(mine, np.float32(1 / 50))
        assert np.any(model.parameters()[2].value != mine)

    def test_what_was_read_after_a_fit_stays_through_the_next(self, kernels):
        trainer, _ = train(network(), optimizers.Adam(0.01), kernels, epochs=1)
        kept = [p.value for p in trainer.model.parameters()]
        copies = [array.copy() for array in kept]
        trainer.fit((X, Y), batch_size=32, progress=False)
        for array, copy in zip(kept, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("rule", range(len(OPTIMIZERS)))
def test_two_fits_of_one_epoch_are_one_of_two(kernels, rule):
    once = network()
    train(once, OPTIMIZERS[rule](), kernels)
    twice = network()
    trainer, _ = train(twice, OPTIMIZERS[rule](), kernels, epochs=1)
    trainer.fit((X, Y), batch_size=32, seed=5, progress=False)
    assert weights(once).tobytes() == weights(twice).tobytes()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_draws_the_same_masks(kernels, dropout):
    found = []
    for table in ("ops", kernels):
        model = mlp(784, (32, 16), 10, dropout=dropout, rescale=(1 / 255, 0.0), seed=1)
        found.append(train(model, optimizers.SGD(0.1), table)[1]["loss"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


class TestOneCycle:
    def test_ends_and_peak(self):
        rate = OneCycle(0.5, 100, warmup=0.2)
        assert rate(0) == pytest.approx(0.02)
        assert rate(20) == pytest.approx(0.5)
        assert rate(99) == pytest.approx(5e-5)
        assert rate(1000) == rate(99)
        assert max(rate(s) for s in range(100)) == rate(20)

    @pytest.mark.parametrize("wrong", [{"peak": -1.0}, {"steps": 0}, {"warmup": 1.5}, {"start": 0.5}])
    def test_says_what_is_allowed(self, wrong):
        with pytest.raises(OptionError):
            OneCycle(**{"peak": 0.1, "steps": 10, **wrong})

    def test_an_optimizer_takes_any_function_of_the_step(self):
        rule = optimizers.SGD(lambda step: 0.1 / (1 + step))
        assert rule.rate == 0.1
        rule.steps = 9
        assert rule.rate == pytest.approx(0.01)
        with pytest.raises(OptionError, match="failed at step 0"):
            optimizers.SGD(lambda: 0.1)
        with pytest.raises(OptionError, match="learning_rate"):
            optimizers.SGD(lambda step: -1.0)
