"""An exception at any place of a fit leaves weights, state and history as they were after one of its steps."""

import inspect
import sys

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends.kernels import calls
from xnn.callbacks import Callback, EarlyStopping
from xnn.data import Batches
from xnn.errors import DivergenceError, OptionError
from xnn.training import fit as fitting

X = np.random.default_rng(0).normal(size=(72, 4)).astype(np.float32)
Y = X[:, :2] * 0.5
EPOCHS, STEPS = 3, 9  # steps of an epoch


@pytest.fixture(params=["ops", "numpy", "compiled"])
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


@pytest.fixture(autouse=True)
def _a_look_after_four_steps(monkeypatch):
    monkeypatch.setattr(fitting, "_CHECK_STEPS", 4)


class BrokenError(Exception):
    pass


def trainer(kernels, callbacks=(), rule=None, metrics=(), inner=()):
    first = layers.Dense(4, 5), layers.BatchNorm(5), layers.Tanh()
    model = xnn.Sequential(*first, *inner, layers.Dense(5, 2), seed=1)
    rule = optimizers.Adam(0.02, average=0.5) if rule is None else rule
    return xnn.Trainer(model, losses.MSE(), rule, metrics, callbacks, kernels=kernels, threads=1)


def fit(t, epochs=EPOCHS):
    return t.fit((X, Y), (X[:9], Y[:9]), epochs=epochs, batch_size=8, progress=False)


def state(t):
    """Weights, buffers, state, averages and numbers: all that the next step depends on."""
    found = {name: np.asarray(array.value).tobytes() for name, array in t.model.named_state()}
    for name, parameter in t.model.named_parameters():
        found |= {f"{name} {kind}": np.asarray(a).tobytes() for kind, a in t.optimizer.kept_for(parameter)}
        found[f"{name} numbers"] = t.optimizer.state_of(parameter).numbers
    return {**found, "steps": t.optimizer.steps}


class Course(Callback):
    """The state after each step of a fit that nothing disturbs."""

    def __init__(self):
        self.states = {}

    def on_step(self, history, epoch, step, loss):
        self.states[self.trainer.step] = state(self.trainer)


def course(kernels, **options):
    watch = Course()
    t = watch.trainer = trainer(kernels, [watch], **options)
    watch.states[0] = None
    fit(t)
    return watch.states


def check_is_whole(t, states):
    """The trainer is as it was after one of the steps, and its history tells of those."""
    assert t.history.steps == t.step == t.optimizer.steps
    assert t.history.samples == 8 * t.step
    assert len(t.history.epochs) == t.epoch <= t.step / STEPS
    if t.step:
        assert state(t) == states[t.step]


class At:
    """Raises at its call of a number."""

    def __init__(self, number, error=BrokenError):
        self.left, self.error = number, error

    def __call__(self, *arguments):
        self.left -= 1
        if not self.left:
            raise self.error("broken")


def hooks(name, number, error):
    class Raises(Callback):
        at = At(number, error)

    setattr(Raises, name, lambda self, *arguments: self.at())
    return {"callbacks": [Raises()]}


def metric(number, error):
    at = At(number, error)

    def counting(xp, outputs, targets):
        at()
        return xp.sum(outputs * 0.0 + 1.0)

    return {"metrics": [counting]}


def rule(number, error, which):
    at = At(number, error)

    def schedule(step):
        at()
        return 0.02

    def decay(parameter):
        at()
        return 0.0

    chosen = (
        {"learning_rate": schedule} if which == "schedule" else {"learning_rate": 0.02, "weight_decay": decay}
    )
    return {"rule": optimizers.Adam(average=0.5, **chosen)}


PLACES = {
    **{
        name: (lambda number, error, name=name: hooks(name, number, error), at)
        for name, at in {
            "on_fit_start": (1,),
            "on_step": (1, 4, 5, 9, 10, 20),
            "on_check": (1, 2, 3, 7),
            "on_epoch_end": (1, 2, 3),
            "on_fit_end": (1,),
        }.items()
    },
    "metric": (metric, (1, 3, 5, 6, 7, 11, 17, 31)),
    "schedule": (lambda *a: rule(*a, "schedule"), (1, 2, 5, 7, 13, 25)),
    "decay": (lambda *a: rule(*a, "decay"), (1, 2, 9, 30, 51, 60)),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "error", [BrokenError, OptionError, pytest.param(MemoryError, marks=pytest.mark.slow), KeyboardInterrupt]
)
@pytest.mark.parametrize("place", PLACES)
def test_what_users_write_raises(kernels, place, error):
    make, numbers = PLACES[place]
    states = course(kernels)
    for number in numbers:
        t = trainer(
            kernels, **make(number + 2 * (place == "schedule"), error)
        )  # which the constructor calls twice
        with pytest.raises(error):
            fit(t)
        if t.history is None:  # before training
            assert t.step == 0
            continue
        check_is_whole(t, states)
        assert t.history.error.startswith(error.__name__) or place in ("on_fit_start", "on_fit_end")


def test_a_stopper_that_cannot_read_its_number_keeps_the_epoch(kernels):
    t = trainer(kernels, [EarlyStopping("val_f1", mode="max")])
    with pytest.raises(OptionError):
        fit(t)
    assert (t.epoch, len(t.history.epochs), t.history.steps) == (1, 1, STEPS)
    check_is_whole(t, course(kernels))


class Raising(layers.Layer):
    """Written by hand; raises in a forward or backward of a number."""

    def __init__(self, forward, backward):
        super().__init__()
        self.at = {"forward": At(forward, MemoryError), "backward": At(backward, MemoryError)}

    def forward(self, x, training=False):
        if training:
            self.at["forward"]()
        return x

    def backward(self, dout, input_gradient=True):
        self.at["backward"]()
        return dout


@pytest.mark.sampled(6)
@pytest.mark.parametrize("rule", [optimizers.SGD, optimizers.Adam])
@pytest.mark.parametrize(("forward", "backward"), [
    (0, 1), (3, 0), (0, 23), *(pytest.param(*rare, marks=pytest.mark.slow) for rare in ((0, 6), (11, 0))),
])  # fmt: skip
def test_in_the_middle_of_a_step(kernels, rule, forward, backward):
    """BatchNorm has moved already, or a part of the parameters: the step is undone."""
    states = course(kernels, rule=rule(0.02), inner=[Raising(0, 0)])
    t = trainer(kernels, rule=rule(0.02), inner=[Raising(forward, backward)])
    with pytest.raises(MemoryError):
        fit(t)
    check_is_whole(t, states)
    done = t.epoch, t.history.steps
    fit(t, EPOCHS - t.epoch)
    assert t.epoch == EPOCHS
    assert t.optimizer.steps == t.step == done[1] + t.history.steps


def test_when_data_cannot_be_read(kernels, monkeypatch):
    states = course(kernels)
    numbers = Batches.numbers
    for after in (0, 3, 6):

        def some(self, epoch, after=after):
            for n, rows in enumerate(numbers(self, epoch)):
                if n == after and epoch == 1:
                    raise OSError("the disk is gone")
                yield rows

        monkeypatch.setattr(Batches, "numbers", some)
        t = trainer(kernels)
        with pytest.raises(OSError, match="the disk is gone"):
            fit(t)
        assert (t.epoch, len(t.history.epochs)) == (1, 1)
        check_is_whole(t, states)
        monkeypatch.setattr(Batches, "numbers", numbers)


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] if n % 94 else []) for n in range(0, 2000, 47)]
)
def test_an_interrupt_anywhere(kernels, number):
    """KeyboardInterrupt when a function of training or of the kernels is entered, whichever."""
    t, left = trainer(kernels), number
    places = {
        fitting.Fit.steps.__code__.co_filename.rpartition("fit.py")[0],
        calls.__file__.rpartition("calls.py")[0],
    }

    def watch(frame, event, _):
        nonlocal left
        generator = frame.f_code.co_flags & inspect.CO_GENERATOR  # where exceptions are only printed
        if event == "call" and not generator and frame.f_code.co_filename.startswith(tuple(places)):
            left -= 1
            if left == -1:
                raise KeyboardInterrupt

    states = course(kernels)
    sys.setprofile(watch)
    try:
        fit(t)
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    if t.history is not None:
        check_is_whole(t, states)


def test_a_divergence_is_an_exception_too(kernels):
    class Explodes(Callback):
        def on_check(self, history, epoch, step, loss, metrics):
            if epoch == 1:
                self.trainer.optimizer.learning_rate = 1e30

    watch = Explodes()
    t = watch.trainer = trainer(kernels, [watch])
    with np.errstate(all="ignore"), pytest.raises(DivergenceError) as raised:
        fit(t)
    assert raised.value.history is t.history
    assert (t.epoch, len(t.history.epochs)) == (1, 1)
    assert t.history.steps == t.step == t.optimizer.steps
    assert all(np.isfinite(array.value).all() for _, array in t.model.named_state())
