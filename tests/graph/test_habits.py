"""Names of other libraries are answered with xnn's: attributes, names in modules, assigned attributes."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import xnn
from xnn import callbacks, initializers, layers, losses, metrics, ops, optimizers, schedules
from xnn.errors import OptionError
from xnn.graph.habits import HABITS, hint_for
from xnn.graph.value import Value
from xnn.history import History

DOCS = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
MODULES = {"layers": layers, "losses": losses, "optimizers": optimizers, "schedules": schedules,
           "initializers": initializers}  # fmt: skip

DOTTED = r"\b(?:xnn|ops|layers|losses|optimizers|model|layer|trainer|history|optimizer|parameter)(?:\.\w+)+"


def net():
    return xnn.Sequential(layers.Dense(3, 2), layers.Tanh(), seed=0)


def trainer():
    return xnn.Trainer(net(), losses.MSE(), optimizers.SGD(0.1))


# For each table the objects that use it.
OBJECTS = {
    "layer": (net, lambda: layers.Dense(3, 2), lambda: layers.Add(layers.Identity()), lambda: layers.Dropout(0.1)),
    "loss": (losses.MSE, losses.SoftmaxCrossEntropy, lambda: losses.Lambda(lambda o, t: ops.mean(o - t))),
    "optimizer": (lambda: optimizers.SGD(0.1), optimizers.Adam, optimizers.LBFGS),
    "trainer": (trainer,),
    "history": (History,),
    "callback": (callbacks.ProgressBar, callbacks.EarlyStopping),
    "metric": (metrics.F1, metrics.R2),
    "value": (lambda: layers.Dense(3, 2).weight, lambda: layers.BatchNorm(3).running_mean, lambda: Value(np.ones(3))),
    "xnn": (lambda: xnn,),
    **{name: (lambda module=module: module,) for name, module in MODULES.items()},
}  # fmt: skip


def test_every_table_has_objects():
    assert OBJECTS.keys() == HABITS.keys()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in HABITS.items() for name in names])
def test_a_habit_is_answered(kind, name):
    answered = 0
    for make in OBJECTS[kind]:
        thing = make()
        if hasattr(type(thing), name):
            continue  # Sequential has predict, LBFGS has minimize
        with pytest.raises(AttributeError, match=re.escape(hint_for(kind, name))):
            getattr(thing, name)
        assert not hasattr(thing, name)
        answered += 1
    assert answered


def test_what_hints_name_is_there():
    model, known = (
        net(),
        {"layer": layers.Dense(1, 1), "loss": losses.MSE(), "optimizer": optimizers.SGD(0.1)},
    )
    known |= {
        "model": model,
        "trainer": trainer(),
        "history": History(),
        "parameter": layers.Dense(1, 1).bias,
    }
    known |= {"xnn": xnn, "ops": ops, **MODULES}
    seen = 0
    for hint in (hint for names in HABITS.values() for hint in names.values()):
        for dotted in re.findall(DOTTED, hint):
            first, *rest = dotted.split(".")
            found = known[first]
            for name in rest:
                found = getattr(found, name) if name != "weight" else model[0].weight
            seen += 1
    assert seen > 60


@pytest.mark.parametrize(
    ("section", "kinds"),
    [
        ("Layers", ["layers"]),
        ("Losses", ["losses"]),
        ("Optimizers and schedules", ["optimizers", "schedules"]),
        ("Initializers", ["initializers"]),
    ],
)
def test_classes_are_those_of_the_docs(section, kinds):
    """Each class of PyTorch and Keras that docs/names.md lists is answered, with a name of the same row."""
    table = DOCS.partition(f"## {section}")[2].partition("\n## ")[0]
    answered = set()
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        theirs = {name for cell in cells[:-1] for name in re.findall(r"`(?:\w+\.)*([A-Z]\w+)\b", cell)}
        for name in theirs - {name for kind in kinds for name in MODULES[kind].__all__}:
            (hint,) = {hint_for(kind, name) for kind in kinds} - {""} or {f"{name} is not in HABITS"}
            answered.add(name)
            if hint.isalnum():
                assert re.search(rf"\b{hint}\b", cells[-1]), (name, hint, cells[-1])
    more = {"NLLLoss", "BCELoss"}  # they take no logits: not the same as what xnn has
    assert {name for kind in kinds for name in HABITS[kind]} - answered - more == set()


def test_nothing_is_listed_or_hidden():
    model = net()
    assert not {"fit", "compile", "state_dict", "zero_grad"} & {*dir(model), *dir(optimizers.Adam())}
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute 'nonsense'"):
        model.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'xnn' has no attribute 'nonsense'$"):
        xnn.nonsense  # noqa: B018
    assert "ReLU" in dir(layers)


def test_an_unknown_name_in_a_module_is_compared_with_those_there_are():
    with pytest.raises(AttributeError, match=r"has no attribute 'Relu'$") as caught:
        layers.Relu  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Relu", layers)  # Python then says: Did you mean 'ReLU'?


class TestAssigned:
    """What PyTorch's and Keras's users assign would do nothing here, and is refused."""

    @pytest.mark.parametrize(
        ("make", "name", "message"),
        [
            (lambda: optimizers.Adam(0.1), "lr", "Adam has no attribute 'lr': it is called learning_rate"),
            (lambda: optimizers.SGD(0.1), "param_groups", "weight_decay="),
            (lambda: layers.Dense(3, 2), "trainable", r"Dense has no attribute 'trainable': parameter\.fro"),
            (net, "trainable", r"parameter\.frozen = True"),
            (lambda: layers.Dense(3, 2).weight, "requires_grad", r"parameter\.frozen = True"),
            (lambda: layers.Dense(3, 2).weight, "trainable", r"parameter\.frozen = True"),
            (lambda: layers.Dense(3, 2).weight, "freeze", r"parameter\.frozen = True"),
            (lambda: layers.Dense(3, 2).weight, "learning_rate", "one learning_rate for all"),
            (lambda: layers.Dense(3, 2).weight, "lr", "one learning_rate for all"),
            (lambda: layers.Dense(3, 2).weight, "weight_decay", "optimizers take weight_decay="),
            (net, "freeze", r"parameter\.frozen = True"),
            (net, "frozen", r"parameter\.frozen = True"),
            (lambda: layers.Dense(3, 2).weight, "data", r"use \.value"),
        ],
    )  # fmt: skip
    def test_it_is_refused(self, make, name, message):
        thing = make()
        with pytest.raises(AttributeError, match=message):
            setattr(thing, name, 0.5)
        assert not hasattr(thing, name)

    def test_an_optimizer_of_ones_own_may_call_its_option_lr(self):
        class Plain(optimizers.Optimizer):
            @staticmethod
            def rule(xp, weight, gradient, *, lr):
                return (weight - lr * gradient,)

            def __init__(self, lr):
                super().__init__(lr)
                self.lr = lr

        rule, model = Plain(0.5), net()
        assert rule.lr == 0.5
        before = model[0].bias.value.copy()
        model[0].bias.grad = np.ones(2, np.float32)
        rule.step([model[0].bias])
        np.testing.assert_allclose(model[0].bias.value, before - 0.5)


def test_a_class_of_ones_own_may_have_such_names():
    class Own(layers.Layer):
        trainable = 3

        def __init__(self):
            super().__init__()
            self.weights = [1.0, 2.0]
            self.call = "yes"

        def compute(self, x):
            return x * self.weights[1]

        def train(self):
            return "trained"

    own = Own()
    own.trainable = 4
    assert (own.trainable, own.weights, own.call, own.train()) == (4, [1.0, 2.0], "yes", "trained")
    assert own.forward(np.ones(2)).tolist() == [2.0, 2.0]


def test_the_error_of_a_property_is_not_replaced():
    class Broken(layers.Layer):
        @property
        def weights(self):
            return self.nowhere

    with pytest.raises(AttributeError, match="'Broken' object has no attribute 'nowhere'"):
        Broken().weights  # noqa: B018


@pytest.mark.parametrize("kind", ["layer", "optimizer", "trainer", "value"])
def test_copies_and_pickles(kind):
    for make in OBJECTS[kind]:
        thing = make()
        if type(thing) is Value:
            continue
        for other in (copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
            assert type(other) is type(thing)
            assert repr(other) == repr(thing)


class TestOtherHabits:
    def test_step_takes_parameters(self):
        for thing in (net(), layers.Dense(3, 2)):
            with pytest.raises(
                OptionError, match=r"step takes parameters, got .*: pass model\.parameters\(\)"
            ):
                optimizers.SGD(0.1).step(thing)

    @pytest.mark.parametrize("name", ["cuda", "gpu", "cpu", "cuda:0"])
    def test_devices(self, name):
        with pytest.raises(xnn.errors.UnknownBackendError, match=r"choose numpy \(the CPU\), cupy \(a GPU\)"):
            net().to(name)


WITHOUT_EFFECT = [
    (lambda: layers.Dropout(0.5), "p", "called rate"),
    (lambda: layers.BatchNorm(3), "eps", "called epsilon"),
    (lambda: layers.LayerNorm(3), "eps", "called epsilon"),
    (lambda: layers.LeakyReLU(), "alpha", "takes negative_slope"),
    (lambda: layers.ReLU(), "slope", "takes no options"),
    (lambda: layers.Dense(3, 2), "units", "takes inputs, outputs"),
    (lambda: layers.Dense(3, 2), "training", "training=True"),
    (net, "stop_training", "history.stopped"),
    (net, "training", "training=True"),
    (losses.SoftmaxCrossEntropy, "label_smooting", "takes label_smoothing"),
    (losses.Huber, "beta", "takes delta"),
    (lambda: losses.Lambda(lambda o, t: ops.mean(o - t)), "delta", "takes function"),
    (lambda: optimizers.Adam(), "beta_1", "takes learning_rate, betas"),
    (lambda: optimizers.Adam(), "eps", "called epsilon"),
    (lambda: optimizers.Adam(), "momentum", "takes learning_rate"),
    (lambda: optimizers.SGD(0.1), "clipnorm", "called clip_norm"),
    (lambda: optimizers.LBFGS(), "max_iter", "takes tolerance, memory"),
    (trainer, "lr", "trainer.optimizer.learning_rate"),
    (History, "stop_training", "history.stopped"),
    (History, "stoped", "did you mean stopped?"),
    (net, "frozen", "parameter.frozen = True"),
    (net, "requires_grad", "parameter.frozen = True"),
    (lambda: layers.Dense(3, 2), "frozen", "parameter.frozen = True"),
    (layers.Dropout, "rates", "did you mean rate?"),
    (lambda: optimizers.SGD(0.1), "learningrate", "did you mean learning_rate?"),
    (trainer, "callback", "did you mean callbacks?"),
    (trainer, "metric", "did you mean metrics?"),
    (trainer, "batch_size", "an argument of fit"),
    (trainer, "stop_training", "history.stopped"),
    (callbacks.EarlyStopping, "patiense", "did you mean patience?"),
    (callbacks.EarlyStopping, "restore_best_weights", "did you mean restore_best?"),
    (callbacks.ProgressBar, "stop_training", "history.stopped"),
    (metrics.F1, "averages", "did you mean average?"),
]


@pytest.mark.parametrize(("make", "name", "hint"), WITHOUT_EFFECT)
def test_options_that_would_have_no_effect_are_not_assigned(make, name, hint):
    """An option of another library, or one that is misspelled, would change nothing, without a word."""
    thing = make()
    for given in (thing, copy.deepcopy(thing)):
        with pytest.raises(AttributeError, match=re.escape(hint)):
            setattr(given, name, 0.5)
        assert name not in vars(given)


def test_what_users_hang_on_xnns_objects_is_theirs():
    for thing in (net(), trainer(), History(), callbacks.EarlyStopping(), metrics.F1()):
        thing.remark, thing._mine = "the third try", 1
        assert (thing.remark, thing._mine) == ("the third try", 1)


def test_users_classes_have_the_attributes_they_like():
    for base, build in (
        (layers.Dropout, (0.5,)),
        (losses.Huber, ()),
        (optimizers.Adam, ()),
        (xnn.Sequential, ()),
    ):
        own = type("Own", (base,), {})(*build)
        own.p = own.eps = own.beta_1 = own.stop_training = 0.5
        assert own.eps == 0.5


def test_every_option_of_xnns_classes_may_be_assigned():
    for make in [*OBJECTS["layer"], *OBJECTS["loss"], *OBJECTS["optimizer"], lambda: layers.BatchNorm(3)]:
        thing = make()
        for name, value in list(vars(thing).items()):
            if not name.startswith("_") and name not in ("weight", "bias", "running_mean", "running_var"):
                setattr(thing, name, value)
