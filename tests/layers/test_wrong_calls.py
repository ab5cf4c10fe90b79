"""Wrong calls of xnn's classes, methods and hooks are OptionErrors that name what there is."""

import inspect
import pickle

import numpy as np
import pytest

import xnn
from xnn import callbacks, data, initializers, layers, losses, metrics, ops, optimizers, schedules
from xnn.errors import OptionError, XnnError
from xnn.history import History

X = np.zeros((8, 3), np.float32)


def net():
    return xnn.Sequential(layers.Dense(3, 2), layers.Tanh(), layers.Dense(2, 3), seed=0)


def public(module):
    names = module.__all__
    kinds = [getattr(module, name) for name in names if isinstance(getattr(module, name), type)]
    return [kind for kind in kinds if not getattr(kind, "_is_protocol", False) and "__init__" in dir(kind)]


KINDS = [
    kind
    for module in (layers, losses, optimizers, schedules, initializers, metrics)
    for kind in public(module)
    if kind.__module__.partition(".")[0] == "xnn" and kind.__init__ is not object.__init__
] + [
    getattr(callbacks, name)
    for name in ("EarlyStopping", "JsonLines", "ProgressBar", "EpochLines", "TensorBoard")
]
#: Classes that users do not build, and one that takes the options of any op.
NOT_BUILT = (
    layers.Layer, layers.Composite, layers.Function, losses.Loss, losses.LossOverBatches, optimizers.Optimizer,
    optimizers.State, metrics.Totals,
)  # fmt: skip


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in NOT_BUILT], ids=lambda kind: kind.__name__
)
def test_an_option_that_a_class_does_not_have(kind):
    with pytest.raises(OptionError, match="nonsense"):
        kind(nonsense=3)


HISTORY = History(epochs=[{"epoch": 1, "loss": 0.5}])
DATASET = data.Dataset("mine", *(X, np.zeros(8, np.int64)) * 3)

CALLS = {
    "backward without a gradient": (lambda: net().backward(), r"'dout'; .*model\.backward\(loss\.backward\(\)\)"),
    "a layer's": (lambda: layers.Dense(3, 2).backward(), "missing 1 required positional argument: 'dout'"),
    "backward with another option": (
        lambda: net().backward(X, retain_graph=True),
        "no option 'retain_graph'; it takes dout, input_gradient, accumulate .*may be called again",
    ),
    "a loss's with an argument": (lambda: losses.MSE().backward(X), r"backward takes 1 .* but 2 were given; it"),
    "step without parameters": (lambda: optimizers.SGD(0.1).step(), r"step missing .*step\(model\.parameters"),
    "parameters for an optimizer": (
        lambda: optimizers.Adam(net().parameters()),
        r"Adam takes the learning rate first, got .*optimizer\.step\(model\.parameters\(\)\)",
    ),
    "an iterator of them": (lambda: optimizers.SGD(iter(net().parameters())), "takes the learning rate first"),
    "a model": (lambda: optimizers.SGD(net()), "takes the learning rate first"),
    "one parameter": (lambda: optimizers.SGD(layers.Dense(3, 2).weight), "takes the learning rate first"),
    "params=": (lambda: optimizers.Adam(params=net().parameters()), "parameters go to step"),
    "a schedule's step_size": (lambda: schedules.Step(0.1, step_size=3), "called every here"),
    "a schedule without its steps": (lambda: schedules.Cosine(0.1), "missing a required argument: 'steps'; it takes"),
    "a schedule's T_max": (lambda: schedules.Cosine(0.1, T_max=3), "called steps here"),
    "save": (lambda: net().save("m.safetensors", overwrite=True), "save has no option 'overwrite'; it takes path"),
    "load_weights": (lambda: net().load_weights("m", strict=False), "no option 'strict'; it takes path"),
    "summary": (lambda: net().summary(input_size=3), "called input_shape here"),
    "predict_classes": (lambda: net().predict_classes(X, verbose=0), "predict_classes has no option 'verbose'"),
    "plot": (lambda: HISTORY.plot(filename="a.png"), "called path here"),
    "a list of a history": (lambda: list(HISTORY), r"a history is not a list: history\.epochs has"),
    "an epoch of a history": (lambda: HISTORY[0], r"no position 0: history\.epochs has"),
    "a sample of a data set": (lambda: DATASET[0], r"no position 0: dataset\.x_train\[0\]"),
    "a part of a data set": (lambda: DATASET["train"], "no position 'train': "),
    "a layer that is replaced": (
        lambda: net().__setitem__(1, layers.ReLU()),
        r"layers of a Sequential are chosen when it is built: .* Sequential\(\*model\[:1\], layers",
    ),
    "a layer that is removed": (lambda: net().__delitem__(1), "are chosen when it is built"),
    "a metric without xp": (lambda: metrics.get(lambda o, t: o), r"three arguments: def <lambda>\(xp, outputs"),
    "an array for load": (lambda: data.load(np.zeros(5)), "there is no data set .* takes arrays as they are"),
    "arrays for load": (lambda: data.load((X, X)), "there is no data set .* takes arrays as they are"),
    "a number for load": (lambda: data.load(5), "there is no data set 5; .* takes arrays as they are"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
def test_a_wrong_call(kind):
    call, words = CALLS[kind]
    with pytest.raises(XnnError, match=words):
        call()


def test_the_right_calls_still_work():
    model = net()
    other = xnn.Sequential(*model[:1], layers.ReLU(), *model[2:])
    assert other[0] is model[0]
    assert other[0].weight.value is model[0].weight.value
    assert "loss" in HISTORY
    assert "mae" not in HISTORY
    assert len([*DATASET]) == 6
    assert pickle.loads(pickle.dumps(schedules.Step(0.1, every=3))) == schedules.Step(0.1, 3)
    assert list(inspect.signature(schedules.Step).parameters) == ["rate", "every", "factor"]


def test_an_error_inside_a_method_is_not_explained():
    class Broken(layers.Layer):
        def compute(self, x):
            return ops.sum(x)

    model = xnn.Sequential(layers.Dense(3, 2))
    with pytest.raises(XnnError, match="before its forward"):
        model.backward(X)
    with pytest.raises(TypeError, match="is not iterable"):
        optimizers.SGD(0.1).step(5)


THEIR_HOOKS = {
    "on_train_begin": "on_fit_start",
    "on_train_end": "on_fit_end",
    "on_epoch_begin": "on_epoch_end, after each epoch",
    "on_batch_end": "on_step",
    "on_train_batch_end": "on_step",
    "on_fit_begin": "on_fit_start",
    "on_epoch_ends": "on_epoch_end",
    "on_steps": "on_step",
}


@pytest.mark.parametrize("name", THEIR_HOOKS)
def test_a_hook_that_would_never_be_called(name):
    with pytest.raises(
        OptionError, match=rf"Mine\.{name} would never be called: xnn calls {THEIR_HOOKS[name]}"
    ):
        type("Mine", (callbacks.Callback,), {name: lambda self, *given: None})


@pytest.mark.parametrize("name", ["on_fit_start", "on_step", "on_check", "on_epoch_end", "on_fit_end"])
def test_a_hook_with_other_arguments(name):
    with pytest.raises(OptionError, match=rf"Mine\.{name} must take .*: write def {name}\(self, history"):
        type("Mine", (callbacks.Callback,), {name: lambda self: None})


def test_hooks_and_methods_that_are_right():
    class Mine(callbacks.Callback):
        def on_epoch_end(self, *given, **more):
            self.on_record(given[1])

        def on_record(self, entry):
            self.entry = entry

    mine, model = Mine(), net()
    xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), callbacks=[mine]).fit((X, X), progress=False)
    assert mine.entry["epoch"] == 1


def test_a_metrics_class_with_other_arguments():
    with pytest.raises(
        OptionError, match=r"Mine must take three arguments: def count\(self, xp, outputs, targets\)"
    ):
        type("Mine", (metrics.Metric,), {"count": lambda self, outputs, targets: 0.0})
