"""What a fit says and leaves when numbers stop being finite: the true step, and the bits from before it."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends.kernels.calls import KernelTable
from xnn.callbacks import Callback
from xnn.errors import DivergenceError, OptionError

TABLES = ["ops", "numpy", "compiled"]


@pytest.fixture(params=TABLES)
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


def arrays_of(model, optimizer):
    """Every number that a step changes, by what it is."""
    found = {name: array.value for name, array in model.named_state()}
    for name, parameter in model.named_parameters():
        found |= {f"{name}'s {kind}": array for kind, array in optimizer.kept_for(parameter)}
    return found


def bits(arrays):
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


class Changes(Callback):
    """Calls change(trainer, data, step) after each step; keeps what there was before the step that comes next."""

    def __init__(self, change):
        self.change, self.step, self.before = change, 0, {}

    def on_step(self, history, epoch, step, loss):
        assert np.isfinite(loss)
        assert all(
            np.isfinite(array).all() for array in arrays_of(self.model, self.trainer.optimizer).values()
        )
        self.step += 1
        self.change(self.trainer, self.data, self.step)
        self.before[self.step] = bits(arrays_of(self.model, self.trainer.optimizer))


RULES = [
    lambda rate: optimizers.SGD(rate),
    lambda rate: optimizers.SGD(rate, momentum=0.9, clip_value=1e20),
    lambda rate: optimizers.Adam(rate, average=0.9),
    lambda rate: optimizers.Nadam(rate),
    lambda rate: optimizers.RMSProp(rate, centered=True, momentum=0.5),
    lambda rate: optimizers.AdaGrad(rate),
    lambda rate: optimizers.AdaDelta(rate),
    lambda rate: optimizers.Lion(rate),
]


def case(number):
    """A small net, data and a change that make numbers infinite after some steps; all from one number."""
    r = np.random.default_rng(number)
    inputs, hidden, rows = int(r.integers(1, 5)), int(r.integers(1, 6)), 48
    x = r.normal(size=(rows, inputs)).astype(np.float32) * np.float32(10.0 ** r.integers(0, 3))
    y = (10.0 ** r.integers(0, 5) * r.normal(size=(rows, 1))).astype(np.float32)
    if r.random() < 0.6:  # one damaged row
        x[r.integers(rows), 0] = 10.0 ** r.integers(10, 37)
    middle = [layers.ReLU(), layers.GELU(), layers.LeakyReLU(0.1), layers.Tanh()][r.integers(4)]
    extra = [layers.BatchNorm(hidden)] if r.random() < 0.3 else []
    model = xnn.Sequential(
        layers.Dense(inputs, hidden), *extra, middle, layers.Dense(hidden, 1), seed=int(r.integers(100))
    )
    rule = RULES[r.integers(len(RULES))](float(10.0 ** r.integers(-3, 2)))
    at, kind = int(r.integers(1, 10)), r.integers(8)

    def change(trainer, data, step):
        if step < at:
            return
        if kind == 0:
            trainer.optimizer.learning_rate = 1e30
        elif kind == 1:
            trainer.model.layers[-1].weight.value[...] *= np.float32(1e12)  # in place
        elif kind == 2:
            trainer.model.layers[-1].weight.value = trainer.model.layers[-1].weight.value * np.float32(1e12)
        elif kind == 3:
            data[0][...] *= np.float32(1e10)
        elif kind == 4:
            trainer.optimizer.weight_decay = 1e20

    return model, rule, (x, y), change


def run(number, kernels, every_step):
    """The error of a fit, its callback, trainer; every_step: whether each step is looked at."""
    model, rule, data, change = case(number)
    watch = Changes(change)
    trainer = xnn.Trainer(model, losses.MSE(), rule, kernels=kernels, threads=1, metrics=[])
    watch.trainer, watch.data = trainer, data
    if every_step:
        trainer.callbacks.append(watch)
    with np.errstate(all="ignore"):
        try:
            trainer.fit(data, epochs=2, batch_size=4, seed=number, progress=False)
        except DivergenceError as error:
            return error, watch, trainer
    return None, watch, trainer


@pytest.mark.sampled(8)
@pytest.mark.parametrize("number", range(30))
def test_the_step_that_is_named_and_the_bits_that_are_kept(kernels, number):
    """With callbacks that change weights, data and options; and, without them, among steps looked at together."""
    error, watch, trainer = run(number, kernels, every_step=True)
    if error is not None:
        assert f"step {watch.step + 1} (" in str(error)
        assert trainer.step == trainer.optimizer.steps == trainer.history.steps == watch.step
        if watch.step:
            assert bits(arrays_of(trainer.model, trainer.optimizer)) == watch.before[watch.step]
    _, rule, data, _ = case(number)
    model, *_ = case(number)
    watch = Changes(lambda *_: None)
    step_by_step = xnn.Trainer(
        model, losses.MSE(), rule, kernels=kernels, threads=1, metrics=[], callbacks=[watch]
    )
    watch.trainer, watch.data = step_by_step, data
    with np.errstate(all="ignore"):
        try:
            step_by_step.fit(data, epochs=2, batch_size=4, seed=number, progress=False)
            true = None
        except DivergenceError as found:
            true = found
    error, _, together = run(number, kernels, every_step=False)
    assert str(error) == str(true)
    assert "not known" not in str(error)
    assert together.step == step_by_step.step
    kept = [bits(arrays_of(t.model, t.optimizer)) for t in (together, step_by_step)]
    assert kept[0] == kept[1]


STALLED = {
    "Adam": (optimizers.Adam, "second moment"),
    "AdamW": (optimizers.AdamW, "second moment"),
    "Nadam": (optimizers.Nadam, "second moment"),
    "AMSGrad": (lambda rate: optimizers.Adam(rate, amsgrad=True), "second moment"),
    "RMSProp": (optimizers.RMSProp, "mean square of the gradients"),
    "AdaGrad": (optimizers.AdaGrad, "sum of squared gradients"),
    "AdaDelta": (optimizers.AdaDelta, "mean square of the gradients"),
}


def regression():
    r = np.random.default_rng(0)
    x = r.normal(size=(640, 5))
    return x, x @ r.normal(size=(5, 1))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("rule", STALLED)
def test_state_that_overflows_is_named(kernels, rule, numerics):
    """One corrupt row: the weights stay finite, and would never have moved again."""
    build, kind = STALLED[rule]
    x, y = regression()
    x[123, 2] = 1e12
    optimizer = build(0.01)
    model = xnn.Sequential(layers.Dense(5, 16), layers.ReLU(), layers.Dense(16, 1), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizer, [], numerics=numerics, kernels=kernels)
    with np.errstate(all="ignore"), pytest.raises(DivergenceError) as raised:
        trainer.fit((x, y), epochs=3, progress=False)
    message = str(raised.value)
    order = xnn.data.Batches((x,), 32).order(0)
    step = int(np.flatnonzero(order == 123)[0]) // 32 + 1
    assert f"step {step} (epoch 1, batch {step}): after the update the {kind} of 0.weight in" in message
    assert "numbers infinite, so that these weights would never learn again" in message
    assert "whose largest number in this step is 1e+12, in row 123" in message
    assert message.startswith(f"{raised.value.fault}. The weights are those from before this step")
    assert all(np.isfinite(array).all() for array in arrays_of(model, optimizer).values())
    x[123, 2] = 0.0
    assert trainer.fit((x, y), epochs=3, progress=False)["loss"][-1] < 30.0


def test_a_state_that_is_infinite_before_training_is_refused(kernels):
    x, y = regression()
    model, rule = xnn.Sequential(layers.Dense(5, 1), seed=0), optimizers.Adam(0.01, average=0.9)
    trainer = xnn.Trainer(model, losses.MSE(), rule, [], kernels=kernels)
    trainer.fit((x, y), progress=False)
    weight = model.layers[0].weight
    rule.state[weight].arrays[1][2, 0] = np.inf
    with pytest.raises(
        OptionError, match=r"second moment of 0.weight in Adam has 1 of 5 numbers infinite.*clear\(\)"
    ):
        trainer.fit((x, y), progress=False)
    rule.state.clear()
    rule.averages[weight] = np.full((5, 1), np.nan, np.float32)
    with pytest.raises(OptionError, match=r"the average of 0.weight in Adam has 5 of 5 numbers NaN"):
        trainer.fit((x, y), progress=False)
    rule.averages.clear()
    trainer.fit((x, y), progress=False)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_not_finite_before_training_are_refused(tmp_path, wrong, frozen):
    model = xnn.Sequential(layers.Dense(5, 4), layers.Dense(4, 1), seed=0)
    bias = model.layers[0].bias
    bias.value, bias.frozen = np.array([0.0, wrong, 1.0, 2.0]), frozen
    model.save(tmp_path / "m.safetensors")
    model = xnn.load(tmp_path / "m.safetensors")
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01))
    kind = "NaN" if np.isnan(wrong) else "infinite"
    if frozen and kind == "infinite":  # as in a mask; what it makes of the loss is seen
        with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=r"output of layer 0"):
            trainer.fit(regression(), progress=False)
    else:
        with pytest.raises(
            OptionError, match=rf"0.bias of the model has 1 of 4 numbers {kind}, before training"
        ):
            trainer.fit(regression(), progress=False)
    assert trainer.step == 0


def test_a_mask_of_infinities_is_no_divergence(kernels):
    class Masked(layers.Layer):
        def __init__(self):
            super().__init__()
            self.mask = layers.Buffer("mask", (4,), xnn.initializers.Zeros())
            self.mask.value = np.array([0.0, 0.0, -np.inf, 0.0])

        def compute(self, x):
            return ops.maximum(x + self.mask, -5.0)

    model = xnn.Sequential(layers.Dense(5, 4), Masked(), layers.Dense(4, 1), seed=0)
    history = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), kernels=kernels).fit(
        regression(), progress=False
    )
    assert history.steps == 20
    assert model.layers[1].mask.value[2] == -np.inf


class Doubled(xnn.Op):
    """An op whose planted kernel is wrong for large inputs."""

    name = "doubled"

    def forward(self, xp, x):
        return 2.0 * x, None

    def backward(self, xp, grad, saved):
        return (2.0 * grad,)


def test_kernels_that_disagree_with_the_ops_are_named(monkeypatch):
    """The weights are those of the kernels' steps, and no layer is blamed that is finite by the ops."""
    op = Doubled()

    def forward(call):
        (source,), (target,) = call.reads, call.writes

        def run():
            np.multiply(source.array, 2.0, out=target.array)
            target.array[source.array > 3.0] = np.inf

        return run

    def backward(call):
        return lambda: np.multiply(call.reads[0].array, 2.0, out=call.writes[0].array)

    own = {("forward", op): (forward, lambda call: True), ("backward", op): (backward, lambda call: True)}
    table = KernelTable(own)
    table.name = "planted"
    model = xnn.Sequential(layers.Dense(1, 1), layers.Function(op), seed=0)
    model.layers[0].weight.value, x = [[1.0]], np.linspace(0.0, 4.0, 40)[:, None]
    monkeypatch.setattr(type(model.backend), "kernels", lambda self, name: table)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.0), [])
    with np.errstate(all="ignore"), pytest.raises(DivergenceError) as raised:
        trainer.fit((x, x), batch_size=1, shuffle=False, progress=False)
    message = str(raised.value)
    assert (
        "the loss (MSE) is inf by the planted kernels, while by the ops alone all numbers are finite"
        in message
    )
    assert f"step {np.flatnonzero(x > 3.0)[0] + 1} (" in message
    assert "hardware" not in message


def test_what_cannot_be_repeated_is_said(kernels):
    """A schedule that depends on more than its step: no layer is blamed for other numbers."""
    rates = iter([0.01, *[0.01] * 5, 1e20, *[1e-3] * 100])
    x, y = regression()
    model = xnn.Sequential(layers.Dense(5, 1), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(lambda step: next(rates)), [], kernels=kernels)
    with np.errstate(all="ignore"), pytest.raises(DivergenceError) as raised:
        trainer.fit((x, y), epochs=2, progress=False)
    message = str(raised.value)
    assert (
        "the cause is not known: data or something that a schedule or a layer reads have changed" in message
    )
    assert all(np.isfinite(p.value).all() for p in model.parameters())
    assert trainer.step == trainer.optimizer.steps == trainer.history.steps
