"""Every public object has a short repr: what it is and what it was built with, without addresses or arrays."""

import inspect

import numpy as np
import pytest

import xnn
from xnn import callbacks, data, graph, initializers, layers, losses, metrics, ops, optimizers, schedules
from xnn.graph.value import Value
from xnn.layers import Dense

# Arguments to try, in this order, until a class takes them.
ARGUMENTS = (
    (), (3, 2), (3,), (0.1,), (1, 2, 3), ((2, 3),), (0.1, (1, 2)), (0, 1), (ops.relu,), (lambda x: x,),
    ("run.jsonl",), ("3h50m",), (Dense(3, 3),), ("w", (3,), initializers.Ones()), (losses.MSE(),),
)  # fmt: skip
# Names for types, classes that only others derive from, and those of `test_objects_in_use`.
WITHOUT = {
    "Array",
    "Namespace",
    "Initializer",
    "Node",
    "Dataset",
    "Batches",
    "Shards",  # a doctest
    "Stream",  # tests of its messages
    "TensorBoard",  # tests/training/test_tensorboard.py, where its package is installed
    "Backend",
    "Totals",
    "Optimizer",
}


def made(kind):
    """An object of the class, or None if it takes none of ARGUMENTS."""
    for arguments in ARGUMENTS:
        try:
            return kind(*arguments)
        except (TypeError, ValueError, AttributeError):
            continue
    return None


def menu():
    """Module and name of every class and object of the public modules."""
    for module in (
        layers,
        losses,
        optimizers,
        schedules,
        initializers,
        metrics,
        callbacks,
        data,
        ops,
        graph,
        xnn.backends,
    ):
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, ops.Op) or (inspect.isclass(thing) and name not in WITHOUT):
                yield pytest.param(thing, id=f"{module.__name__}.{name}")


def check(text):
    assert len(text) < 200, text
    assert "0x" not in text, text
    assert "array(" not in text or len(text) < 80, text


@pytest.mark.parametrize("thing", list(menu()))
def test_the_menu(thing):
    found = made(thing) if inspect.isclass(thing) else thing
    assert found is not None, "give ARGUMENTS of tests/test_reprs.py what it needs"
    check(repr(found))


def fitted(model, optimizer=None, **options):
    x, y = np.ones((8, 3), np.float32), np.arange(8) % 3
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer or optimizers.SGD(0.1), **options)
    return trainer, trainer.fit((x, y), validation=(x, y), progress=False)


def deep():
    """A model of 49 convolutions in seven blocks."""

    def convolution():
        return layers.Conv2D(3, 3, 3, padding=1, weight_init=initializers.He("uniform", slope=5**0.5))

    return xnn.Sequential(*(xnn.Sequential(*(convolution() for _ in range(7))) for _ in range(7)))


def used_adam():
    rule = optimizers.Adam(0.1)
    fitted(xnn.Sequential(Dense(3, 3)), rule)
    return next(iter(rule.state.values()))


def fed(shape):
    node = graph.Input()
    node.value = np.ones(shape)
    return node


@pytest.mark.parametrize(
    "make",
    [
        deep,
        lambda: xnn.Sequential(*(Dense(3, 3) for _ in range(50))),
        lambda: xnn.Sequential(*(layers.Add(Dense(3, 3), layers.Identity()) for _ in range(8))),
        lambda: layers.Parallel(deep(), deep(), axis=1),
        lambda: layers.Rescale(np.linspace(0, 1, 784), np.ones(784)),
        lambda: losses.SoftmaxCrossEntropy(class_weight=list(range(100)), label_smoothing=0.1, ignore_index=3),
        lambda: losses.Lambda(lambda o, t: ops.mean(o - t)),
        lambda: optimizers.SGD(lambda step: 0.1, weight_decay=lambda parameter: 0.1),
        lambda: optimizers.AdamW(
            schedules.Warmup(schedules.Cosine(0.1, 9), 3), weight_decay={"weight": 0.1}, clip_norm=1.0, average=0.9
        ),
        used_adam,
        lambda: metrics.Totals([metrics.F1()]),
        lambda: fitted(xnn.Sequential(Dense(3, 3)))[0],
        lambda: fitted(xnn.Sequential(Dense(3, 3)), metrics=["accuracy", "f1", "confusion_matrix"])[1],
        lambda: fitted(xnn.Sequential(Dense(3, 3)), metrics=[metrics.F1(average=None)])[1],
        lambda: data.load("synthetic"),
        lambda: data.Batches((np.ones((9, 3)), np.ones(9))),
        lambda: Dense(784, 100).weight,
        lambda: layers.BatchNorm(100).running_mean,
        lambda: Value(np.ones((100, 100))),
        lambda: Value(np.ones(3)),
        lambda: fed((100, 100)),
        lambda: xnn.Sequential(Dense(3, 3))(fed((5, 3))),
        lambda: graph.Input() * 2.0 + np.ones(1000),
        lambda: xnn.gradient_check(lambda x: ops.sum(x * x), np.ones((100, 3))),
        lambda: callbacks.EarlyStopping("val_accuracy", patience=3),
        lambda: xnn.backends.Stream(0, xnn.backends.Purpose.WEIGHTS),
    ],
)  # fmt: skip
def test_objects_in_use(make):
    check(repr(make()))


def test_of_a_long_model_the_ends_are_shown():
    assert repr(deep()) == (
        "Sequential(Sequential(7 layers), Sequential(7 layers), ... 4 more ..., Sequential(7 layers))"
    )
    assert repr(xnn.Sequential(deep(), Dense(3, 2))).endswith(", Dense(3, 2))")


def test_a_state_shows_the_shapes_of_its_arrays():
    assert repr(used_adam()).startswith("State(arrays=(<array (3, 3)>, <array (3, 3)>), numbers=(")


def test_parts_of_ones_own():
    class Mine(layers.Layer):
        def __init__(self, table, function):
            super().__init__()
            self.table, self.function = table, function

    class Stop(callbacks.Callback):
        def __init__(self, function, table):
            self.function, self.table = function, table

    for thing in (Mine(np.ones(1000), len), Stop(lambda: 1, np.ones(1000)), type("Op", (xnn.Op,), {})()):
        check(repr(thing))
