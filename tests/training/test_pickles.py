"""Whatever a user can hold is pickled, copied and deep-copied: results, errors, models, options."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import xnn
from xnn import callbacks, data, errors, initializers, layers, losses, metrics, ops, optimizers, schedules
from xnn.errors import DivergenceError, MissingExtraError, OptionError
from xnn.layers import Dense

WAYS = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "old pickle": lambda thing: pickle.loads(pickle.dumps(thing, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
X = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
Y = np.arange(40) % 2


def double(x):
    return x * 2.0


#: Arguments of which the first that a class takes build an object of it.
ARGUMENTS = (
    (), (3,), (3, 2), (0.1,), (0.1, 100), (0.1, 100, 0.5), (0.1, (3, 5)), (layers.ReLU(),), (1, 2, 3), (4, 2, 2),
    ("w", (2,), initializers.Zeros()), (ops.exp,), (double,), ("log.jsonl",), ("3h50m",), ("val_loss",), ((28, 28),),
    (0, 1), ((X, Y),), ("mine", X, Y, X, Y, X, Y),
)  # fmt: skip
#: Arguments of classes that take others.
OWN_ARGUMENTS = {
    "xnn.metrics.Totals": ([xnn.metrics.Accuracy()],),
    "xnn.data.Shards": ([X, X],),
    "xnn.data.Stream": ([(X, Y), (X, Y)],),
}
#: Names that are only there to be derived from, or to be written in types.
ABSTRACT = {"Optimizer", "Initializer"}


def build(kind, *own):
    for arguments in (*own, *ARGUMENTS):
        try:
            return kind(*arguments)
        except (OptionError, TypeError, ValueError, AttributeError):
            continue
    return None


CLASSES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (layers, losses, optimizers, metrics, schedules, callbacks, initializers, data)
    for name in module.__all__
    if isinstance(getattr(module, name), type) and name not in ABSTRACT
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        thing = build(CLASSES[name], *([OWN_ARGUMENTS[name]] if name in OWN_ARGUMENTS else []))
    except MissingExtraError as error:
        pytest.skip(str(error))
    if thing is None and name.endswith("LossOverBatches"):
        pytest.skip("it needs a loss")
    assert thing is not None, "add arguments that build it"
    for way in WAYS.values():
        same = way(thing)
        assert type(same) is type(thing)
        if " at 0x" not in repr(thing):
            assert repr(same) == repr(thing)


def raised():
    """An error of each class, with a note and an attribute of its own."""
    for name in errors.__all__:
        error = getattr(errors, name)(f"a message of {name}")
        error.add_note("a note")
        yield pytest.param(error, id=name)


@pytest.mark.parametrize("error", list(raised()))
@pytest.mark.parametrize("way", WAYS)
def test_every_error(error, way):
    same = WAYS[way](error)
    assert (type(same), str(same), same.args) == (type(error), str(error), error.args)
    assert same.__notes__ == ["a note"]


def trained():
    model = xnn.Sequential(
        Dense(3, 4), layers.BatchNorm(4), layers.ReLU(), layers.Dropout(0.5), Dense(4, 2), seed=1
    )
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), metrics=["accuracy"])
    return trainer, trainer.fit((X, Y), epochs=2, validation=(X, Y), progress=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_history(way):
    _, history = trained()
    same = WAYS[way](history)
    assert same.losses_sha256 == history.losses_sha256
    assert (same.epochs, same.steps, same.samples, same.plan) == (
        history.epochs, history.steps, history.samples, history.plan
    )  # fmt: skip
    assert repr(same) == repr(history)
    assert same["val_loss"] == history["val_loss"]
    with pytest.raises(OptionError, match="no further steps"):
        same.add(np.ones(1), 1, 0.0)
    assert WAYS[way](same).losses_sha256 == history.losses_sha256


@pytest.mark.parametrize("way", WAYS)
def test_a_divergence_keeps_its_history(way):
    trainer = xnn.Trainer(xnn.Sequential(Dense(3, 1), seed=0), losses.MSE(), optimizers.SGD(1e30))
    with pytest.raises(DivergenceError) as caught:
        trainer.fit((X, X[:, :1]), epochs=3, progress=False)
    same = WAYS[way](caught.value)
    assert str(same) == str(caught.value)
    assert same.history.losses_sha256 == caught.value.history.losses_sha256
    assert same.history.steps == caught.value.history.steps


@pytest.mark.parametrize("way", ["pickle", "old pickle", "deepcopy"])
def test_a_trainer_goes_on_as_the_first_one(way):
    """Model, optimizer with its state and loss, all in one."""
    trainer, _ = trained()
    same = WAYS[way](trainer)
    one, other = (t.fit((X, Y), epochs=2, progress=False) for t in (trainer, same))
    assert one.losses_sha256 == other.losses_sha256
    assert trainer.model.predict(X).tobytes() == same.model.predict(X).tobytes()


@pytest.mark.parametrize("way", ["pickle", "old pickle", "deepcopy"])
def test_a_model_is_another_one(way):
    model = trained()[0].model
    same = WAYS[way](model)
    assert same.predict(X).tobytes() == model.predict(X).tobytes()
    same.layers[0].weight.value = np.zeros((3, 4))
    assert same.predict(X).tobytes() != model.predict(X).tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_results_of_functions(way):
    for thing in (
        data.Dataset("mine", X, Y, X, Y, X, Y, note="a note", labels=("no", "yes")),
        xnn.gradient_check(ops.tanh, X[:2]),
        xnn.backends.Stream(1, xnn.backends.Purpose.WEIGHTS),
        ops.exp,
        Dense(3, 2).weight,
        xnn.backends.get_backend("numpy"),
    ):
        assert repr(WAYS[way](thing)) == repr(thing)
