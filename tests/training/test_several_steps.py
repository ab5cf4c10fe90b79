"""Several steps by one call of native code: the same bits as one step after the other, and fewer calls."""

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, ops, optimizers
from xnn.backends.kernels import fusion
from xnn.data import Batches
from xnn.errors import DivergenceError
from xnn.schedules import OneCycle, Warmup
from xnn.training import several
from xnn.training.repeated import Repeated

pytest.importorskip("numba")

RANDOM = np.random.default_rng(0)
X, LABELS = RANDOM.normal(size=(150, 6)), np.arange(150) % 3
WORDS = np.arange(900).reshape(150, 6) * 7 % 10
PIXELS = RANDOM.integers(0, 256, (150, 6)).astype("uint8")


CURVES = [layers.GELU, layers.SiLU, layers.ELU, layers.LeakyReLU, layers.Softplus, layers.LogSoftmax]
RULES = [optimizers.AdaDelta, optimizers.AdaGrad, optimizers.AdamW, optimizers.Lion, optimizers.Nadam,
         optimizers.RMSProp]  # fmt: skip
COMMON = [{"clip_norm": 0.1}, {"clip_value": 0.01}, {"average": 0.9}, {"amsgrad": True}]
COMMON_NAMES = [name for common in COMMON for name in common]


class Halving(optimizers.Optimizer):
    """A user's rule."""

    @staticmethod
    def rule(xp, parameter, gradient, *, learning_rate):
        return (parameter - learning_rate / 2 * gradient,)


class Penalized(losses.SoftmaxCrossEntropy):
    """Cross-entropy, and an L2 penalty on two weights."""

    def __init__(self, *weights):
        super().__init__()
        self._weights = weights

    def compute(self, outputs, targets):
        penalty = ops.l2_penalty(*self._weights, strength=0.1 / outputs.shape[0])
        return super().compute(outputs, targets) + penalty


#: Losses of outputs and targets of one shape, and targets for them.
LOSSES = {"mse": losses.MSE, "l1": losses.L1, "huber": losses.Huber, "binary": losses.BinaryCrossEntropy,
          "hinge": losses.Hinge, "focal": losses.Focal}  # fmt: skip
YES = np.stack([LABELS == 0, LABELS == 1, LABELS > 1], axis=1).astype(float)


def built(
    dtype="float64",
    activation=layers.ReLU,
    penalty=False,
    dropout=False,
    optimizer=None,
    x=X,
    loss=None,
    standardized=False,
    **options,
):
    stack = [layers.Dense(6, 9, dtype=dtype), activation(), layers.Dense(9, 3, dtype=dtype)]
    stack = [layers.Rescale(1 / 255, dtype=dtype), *stack] if x is PIXELS else stack
    if x is WORDS:
        stack = [layers.Embedding(10, 2, dtype=dtype), layers.Flatten(), layers.Dense(12, 3, dtype=dtype)]
    if standardized:
        mean, std = x.mean(axis=0), x.std(axis=0)
        stack = [layers.Rescale(1 / std, dtype=dtype, shift=mean), *stack]
    stack[-1:-1] = [layers.Dropout(0.2)] if dropout else []
    model = xnn.Sequential(*stack, seed=1)
    weights = [p for p in model.parameters() if p.name == "weight"]
    usual = losses.SoftmaxCrossEntropy() if loss is None else LOSSES[loss]()
    loss = Penalized(*weights) if penalty else usual
    return xnn.Trainer(model, loss, optimizer or optimizers.Adam(0.02), kernels="compiled", **options)


def fitted(monkeypatch, most, x=X, sample_weight=None, **options):
    """Train with at most this many steps at once. Returns what came of it, and how many steps each call took."""
    monkeypatch.setattr(several, "_STEPS", most)
    taken, plain = [], several.Several.steps
    monkeypatch.setattr(several.Several, "steps", lambda *a: taken.append(plain(*a)) or taken[-1])
    trainer = built(x=x, **options)
    given = x.astype(trainer.model.dtype) if x.dtype.kind == "f" else x
    y = LABELS if options.get("loss") is None else 2 * YES - 1 if options["loss"] == "hinge" else YES
    how = {"epochs": 5, "batch_size": 32, "seed": 4, "progress": False, "sample_weight": sample_weight}
    history = trainer.fit((given, y), (given, y), **how)
    monkeypatch.setattr(several.Several, "steps", plain)
    states = [a for p in trainer.model.parameters() for a in trainer.optimizer.state_of(p).arrays]
    averages = [*trainer.optimizer.averages.values()]
    arrays = [p.value for p in trainer.model.parameters()] + states + averages
    ends = [{k: v for k, v in entry.items() if k != "seconds"} for entry in history.epochs]
    return [a.tobytes() for a in arrays], history.losses_sha256, ends, trainer.optimizer.steps, taken


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32"},
        {"x": PIXELS, "dtype": "float32"},
        {"x": np.asarray(X, order="C")[::-1][::-1]},
        {"penalty": True},
        {"optimizer": lambda: optimizers.SGD(0.1)},
        {"optimizer": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)},
        {"optimizer": lambda: optimizers.Adam(OneCycle(0.01, 25))},
        {"optimizer": lambda: optimizers.Adam(0.01, weight_decay={"weight": 0.1})},
        *({"loss": loss, "dtype": "float32"} for loss in LOSSES),
        {"loss": "mse", "metrics": ["mae", "mse"]},
        {"loss": "mse", "sample_weight": np.arange(150) % 4},
        {"sample_weight": np.arange(150) % 4},
        {"standardized": True, "dtype": "float32"},
        {"x": WORDS, "optimizer": optimizers.AdaGrad},
        *({"activation": activation} for activation in CURVES),
        {"dropout": True},
        {"dropout": True, "dtype": "float32", "x": PIXELS},
        *({"optimizer": lambda rule=rule: rule(0.01)} for rule in RULES),
        *({"optimizer": lambda common=common: optimizers.AdamW(0.01, **common)} for common in COMMON),
    ],
    ids=[
        "adam",
        "float32",
        "pixels",
        "rows",
        "penalty",
        "sgd",
        "momentum",
        "schedule",
        "decay of weights",
        *LOSSES,
        "regression's metrics",
        "weights",
        "weights of classes",
        "standardized",
        "words",
        *(activation.__name__ for activation in CURVES),
        "dropout",
        "dropout of pixels",
        *(rule.__name__ for rule in RULES),
        *COMMON_NAMES,
    ],
)
def test_the_bits_of_single_steps(monkeypatch, options):
    def with_new_optimizer():
        return {k: v() if k == "optimizer" else v for k, v in options.items()}

    *single, none = fitted(monkeypatch, 1, **with_new_optimizer())
    *chunks, taken = fitted(monkeypatch, 100, **with_new_optimizer())
    assert single == chunks
    assert none == []
    assert taken == [4] * 5  # 5 epochs of 4 batches of 32 rows, and one of 22


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": ["f1"]},
        {"optimizer": lambda: Halving(0.01)},
    ],
    ids=["a metric without rows", "a rule without rows"],
)
def test_steps_in_which_python_runs_are_taken_one_by_one(monkeypatch, options):
    options = {k: v() if k == "optimizer" else v for k, v in options.items()}
    *_, taken = fitted(monkeypatch, 100, **options)
    assert taken == []


def test_a_callback_of_each_step_sees_each_step(monkeypatch):
    class EachStep(callbacks.Callback):
        seen = 0

        def on_step(self, history, epoch, batch, loss):
            self.seen += 1

    watcher = EachStep()
    *_, taken = fitted(monkeypatch, 100, callbacks=[watcher])
    assert watcher.seen == 25
    assert taken == []


def test_a_checkpoint_between_steps_taken_at_once_goes_on_with_their_bits(monkeypatch, tmp_path):
    *whole, _ = fitted(monkeypatch, 100)
    checkpoint = callbacks.Checkpoint(tmp_path, every="7 steps", keep=9)
    *_, taken = fitted(monkeypatch, 100, callbacks=[checkpoint])
    assert taken == [4, 2, 2, 4, 4, 3]  # none goes on over step 7, 14 or 21; single steps are not counted
    steps = [path for path in sorted(tmp_path.iterdir()) if path.name.startswith("step-")]
    assert [int(path.stem.removeprefix("step-")) for path in steps] == [7, 14, 21, 25]
    for later in steps[2:]:
        later.unlink()
    monkeypatch.setattr(several, "_STEPS", 100)
    trainer = built()
    trainer.resume(tmp_path)
    history = trainer.fit((X, LABELS), (X, LABELS), epochs=5, batch_size=32, seed=4, progress=False)
    assert trainer.step == 25
    assert history.losses_sha256 == whole[1]
    assert [p.value.tobytes() for p in trainer.model.parameters()] == whole[0][:4]


@pytest.mark.parametrize("most", [1, 100])
def test_a_schedule_that_changes_the_loss_ends_the_steps_taken_at_once(monkeypatch, most):
    def rate(step):
        if step == 6:
            trainer.loss.label_smoothing = 0.25  # counts from the step after this one
        return 0.01

    monkeypatch.setattr(several, "_STEPS", most)
    trainer = built(optimizer=optimizers.SGD(rate))
    history = trainer.fit((X, LABELS), epochs=3, batch_size=32, progress=False)
    plain = built(optimizer=optimizers.SGD(0.01))
    rows, seen = Batches((X, LABELS), 32), []
    stepper = plain.stepper(rows)
    for step, batch in enumerate([*rows.numbers(0), *rows.numbers(1), *rows.numbers(2)]):
        plain.loss.label_smoothing = 0.25 if step > 6 else 0.0
        stepper.step(batch, step)
        seen.append(stepper.take()[0][0])
    assert history["loss"][2] == pytest.approx(np.average(seen[10:], weights=[32] * 4 + [22]), rel=1e-12)
    ends = (t.model.layers[0].weight.value for t in (trainer, plain))
    np.testing.assert_allclose(*ends, rtol=1e-12)  # a stepper may have other threads of BLAS than a fit


class AssignsSchedule(callbacks.Callback):
    """Assigns the learning rate a schedule at the first check."""

    def __init__(self, optimizer, schedule):
        self.optimizer, self.schedule = optimizer, schedule

    def on_check(self, history, epoch, batch, loss, metrics):
        self.optimizer.learning_rate = self.schedule


@pytest.mark.parametrize("given", ["function", "warmed up", "by a callback"])
def test_a_schedule_of_the_users_sees_each_step_done(monkeypatch, given):
    def fitted(most):
        def rate(step):
            weight.value[0] *= 0.9
            seen.append((weight.value.tobytes(), trainer.step if trainer else 0))
            return 0.02

        monkeypatch.setattr(several, "_STEPS", most)
        trainer = None
        optimizer = optimizers.SGD(0.02, momentum=0.9)
        trainer, seen = built(optimizer=optimizer), []
        weight = trainer.model.layers[0].weight
        if given == "by a callback":
            trainer.callbacks.append(AssignsSchedule(optimizer, rate))
        else:
            optimizer.learning_rate = Warmup(rate, 2) if given == "warmed up" else rate
        history = trainer.fit((X, LABELS), epochs=2, batch_size=1, progress=False)
        return seen, history.losses_sha256, weight.value.tobytes()

    assert fitted(1) == fitted(100)


def test_a_divergence_is_told_as_in_single_steps(monkeypatch):
    told = []
    for most in (1, 100):
        monkeypatch.setattr(several, "_STEPS", most)
        trainer = built(optimizer=optimizers.SGD(1e200))
        with pytest.raises(DivergenceError) as error:
            trainer.fit((X * 1e6, LABELS), epochs=3, batch_size=32, progress=False)
        told.append((str(error.value), trainer.step, trainer.model.layers[0].weight.value.tobytes()))
    assert told[0] == told[1]
    assert "step" in told[0][0]


def test_large_steps_are_taken_one_by_one():
    small, large = (built().model.parameters(), xnn.Sequential(layers.Dense(3000, 3000)).parameters())
    assert several.steps_at_once(200, small) == 100
    assert several.steps_at_once(200, large) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_penaltys_gradient_is_added_in_one_pass(monkeypatch, dtype):
    found = []
    for rules in ((), (fusion.penalty_into_sum,)):
        monkeypatch.setattr(fusion, "RULES", rules)
        trainer = built(dtype, penalty=True)
        stepper = trainer.stepper(Batches((X.astype(dtype), LABELS), 32, shuffle=False))
        for start in range(0, 128, 32):
            stepper.step(np.arange(start, start + 32), 0)
        calls = stepper.program(32).calls
        found.append((stepper.take()[0], [p.value for p in trainer.model.parameters()], calls))
    (loss, end, calls), (loss2, end2, calls2) = found
    assert [call.kind for call in calls].count("add") == 2
    assert [call.kind for call in calls2].count("add") == 0
    tight = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(loss2, loss, rtol=tight)
    for one, other in zip(end, end2, strict=True):
        np.testing.assert_allclose(other, one, rtol=tight, atol=tight)


def test_programs_with_masks_do_not_train_other_networks():
    """Their random numbers would be those of the first one."""
    for dropout in (False, True):
        trainer = built(dropout=dropout)
        trainer.metrics, trainer.keeps_programs = [], True
        trainer.fit((X, LABELS), epochs=1, batch_size=32, progress=False)
        assert (Repeated.of(trainer) is None) == dropout
