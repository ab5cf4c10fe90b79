"""Arguments of a Trainer and of fit that are refused, also when they are assigned later."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, metrics, optimizers
from xnn.callbacks import Callback
from xnn.errors import OptionError, ShapeError

X, Y = np.ones((10, 3), np.float32), np.ones((10, 1), np.float32)


def trainer(**options):
    model = xnn.Sequential(layers.Dense(3, 1), seed=0)
    return xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": 0}, OptionError, "epochs must be a positive integer, got 0"),
        ({"epochs": -2}, OptionError, "epochs"),
        ({"batch_size": 0}, OptionError, "batch_size must be a positive integer"),
        ({"batch_size": None}, OptionError, "batch_size"),
        ({"seed": "a"}, OptionError, "seed"),
        ({"shuffle": "no"}, OptionError, "shuffle must be True or False"),
        ({"progress": "no"}, OptionError, "progress must be True or False"),
        ({"data": (X[:0], Y[:0])}, ShapeError, "at least one"),
        ({"data": (X, Y[:4])}, ShapeError, "as many samples as targets"),
        (
            {"data": X},
            OptionError,
            r"a pair \(x, y\) of samples and targets, got ndarray: give both in parenth",
        ),
        ({"data": None}, OptionError, "got NoneType"),
        ({"validation": (X[:0], Y[:0])}, ShapeError, "validation data"),
        ({"validation": ()}, OptionError, "validation data must be a pair"),
        ({"validation": (X, Y[:4])}, ShapeError, "validation data"),
        ({"validation": Y}, OptionError, "validation data must be a pair"),
    ],
)
def test_of_fit(options, error, words):
    t = trainer()
    with pytest.raises(error, match=words):
        t.fit(**{"data": (X, Y), "progress": False, **options})
    assert (t.step, t.epoch, t.history) == (0, 0, None)


def test_a_batch_larger_than_the_data_is_one_step():
    history = trainer().fit((X, Y), batch_size=1000, progress=False)
    assert (history.steps, history.samples) == (1, 10)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss", "mse", "needs a Loss"),
        ("loss", losses.MSE(reduction="none"), "one number a batch"),
        ("optimizer", optimizers.Adam, "needs an Optimizer"),
        ("model", layers.Dense(3, 1), "wrap it"),
        ("metrics", ["f2"], "no metric"),
        ("metrics", [metrics.MAE(name="val_loss")], "begins with val_"),
        ("callbacks", Callback(), "must be a list"),
        ("kernels", "fastest", "kernels"),
        ("threads", 0, "threads"),
        ("numerics", "half", "numerics"),
    ],
)
def test_of_the_trainer_also_when_they_are_assigned(name, value, words):
    parts = {"model": trainer().model, "loss": losses.MSE(), "optimizer": optimizers.SGD(), name: value}
    with pytest.raises(OptionError, match=words):
        xnn.Trainer(**parts)
    t = trainer()
    setattr(t, name, value)
    with pytest.raises(OptionError, match=words):
        t.fit((X, Y), progress=False)


def test_names_of_metrics_may_be_assigned():
    t = trainer()
    t.metrics, t.loss = ["mae"], lambda outputs, targets: xnn.ops.mean((outputs - targets) ** 2)
    assert t.evaluate((X, Y))["mae"] >= 0.0


@pytest.mark.parametrize("hook", ["on_fit_start", "on_step", "on_check", "on_epoch_end", "on_fit_end"])
def test_callbacks_return_nothing(hook):
    """What they return would be lost: in other libraries it may end the training."""
    callback = type("Ends", (Callback,), {hook: lambda self, *arguments: True})()
    with pytest.raises(
        OptionError, match=r"returned True, and methods of callbacks return nothing.*history\.stopped"
    ):
        trainer(callbacks=[callback]).fit((X, Y), progress=False)
