"""Optimizers of the user's: what a rule may return, and options that are assigned later."""

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, optimizers
from xnn.errors import DTypeError, OptionError

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)


def plain(xp, w, g, *, learning_rate):
    return (w - learning_rate * g,)


def rule_of(function, kept=0):
    class Mine(optimizers.Optimizer):
        rule = staticmethod(function)

        @property
        def arrays(self):
            return kept

    return Mine(0.1)


def step_by_hand(model, rule):
    loss = losses.MSE()
    loss.forward(model.forward(X, training=True), X[:, :2])
    model.backward(loss.backward())
    rule.step(model.parameters())


def fit(model, rule, **options):
    xnn.Trainer(model, losses.MSE(), rule, **options).fit((X, X[:, :2]), progress=False)


WRONG = {
    "an array": (
        lambda xp, w, g, *, learning_rate: w - learning_rate * g,
        0,
        OptionError,
        "returned ndarray",
    ),
    "a list": (lambda xp, w, g, *, learning_rate: [w - learning_rate * g], 0, OptionError, "returned list"),
    "nothing": (lambda xp, w, g, *, learning_rate: None, 0, OptionError, "returned NoneType"),
    "no state": (lambda xp, w, g, v, *, learning_rate: (w,), 1, OptionError, "a tuple of 1"),
    "state that is not kept": (lambda xp, w, g, *, learning_rate: (w, g), 0, OptionError, "a tuple of 2"),
    "a number": (lambda xp, w, g, *, learning_rate: (0.5,), 0, OptionError, "returned float as array 0"),
    "a row": (
        lambda xp, w, g, *, learning_rate: (w[:1],),
        0,
        OptionError,
        r"as array 0, whose shape is \(4, 2\)",
    ),
    "a scalar": (
        lambda xp, w, g, v, *, learning_rate: (w, xp.sum(g)),
        1,
        OptionError,
        r"returned \(\) as array 1",
    ),
    "float64": (
        lambda xp, w, g, *, learning_rate: (w - np.float64(learning_rate) * g,),
        0,
        DTypeError,
        "made float64 of float32 in array 0",
    ),
}


@pytest.mark.parametrize("way", ["by hand", "ops", "numpy"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_a_rule_must_return(kind, way):
    function, kept, error, words = WRONG[kind]
    model = xnn.Sequential(layers.Dense(4, 2), seed=0)
    before = [p.value.copy() for p in model.parameters()]
    options = {} if way == "by hand" else {"kernels": way}
    with pytest.raises(error, match=words):
        (step_by_hand if way == "by hand" else fit)(model, rule_of(function, kept), **options)
    for p, value in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.value, value)


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_right_rule_is_sgd(kernels):
    models = [xnn.Sequential(layers.Dense(4, 2), seed=0) for _ in range(2)]
    fit(models[0], rule_of(plain), kernels=kernels)
    fit(models[1], optimizers.SGD(0.1), kernels="ops")
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        np.testing.assert_allclose(p.value, q.value, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("moved", "words"),
    [
        (lambda xp, mean, batch: 0.5 * mean + 0.5 * batch, "must return a tuple"),
        (lambda xp, mean, batch: (mean, batch), "a tuple of 2"),
        (lambda xp, mean, batch: (xp.sum(mean),), r"returned \(\) as array 0"),
        (lambda xp, mean, batch: (np.float64(2) * mean,), "made float64"),
    ],
)
def test_what_a_rule_of_keep_must_return(moved, words, training):
    class Centred(layers.Layer):
        def __init__(self):
            super().__init__()
            self.mean = layers.Buffer("mean", (4,), initializers.Zeros())

        def compute(self, x, training):
            if training:
                self.keep([self.mean], moved, xnn.ops.mean(x, axis=0))
            return x - self.mean

    model = xnn.Sequential(Centred(), layers.Dense(4, 2), seed=0)
    with pytest.raises((OptionError, DTypeError), match=words):
        (fit if training else step_by_hand)(model, optimizers.SGD(0.1))


def test_an_optimizer_without_a_rule_is_told_how_to_write_one():
    class Nothing(optimizers.Optimizer):
        pass

    with pytest.raises(
        OptionError, match=r"Nothing has no rule: set rule = staticmethod\(f\), where f\(xp, para"
    ):
        Nothing(0.1)

    class Own(optimizers.Optimizer):
        def update(self, parameter):
            parameter.value = parameter.value - self.rate * parameter.grad

    fit(xnn.Sequential(layers.Dense(4, 2), seed=0), Own(0.1))


def test_an_init_that_does_not_begin_the_optimizer_is_told_so():
    class Forgetful(optimizers.Optimizer):
        rule = optimizers.SGD.rule

        def __init__(self, beta=0.5):
            self.beta = beta

    model = xnn.Sequential(layers.Dense(2, 1), seed=0)
    message = r"Forgetful.__init__ must call super\(\).__init__\(learning_rate\)"
    with pytest.raises(OptionError, match=message):
        xnn.Trainer(model, losses.MSE(), Forgetful())
    with pytest.raises(OptionError, match=message):
        Forgetful().step(model.parameters())


def test_a_rule_that_takes_more_than_the_optimizer_has():
    def rule(xp, w, g, *, learning_rate, warmth):
        return (w - learning_rate * warmth * g,)

    with pytest.raises(OptionError, match=r"takes an option that the optimizer does not give it .*warmth"):
        fit(xnn.Sequential(layers.Dense(4, 2), seed=0), rule_of(rule))


def of(**attributes):
    """An optimizer with these attributes of its class."""
    return type("Mine", (optimizers.Optimizer,), {"rule": staticmethod(plain), **attributes})(0.1)


def with_option(**attributes):
    def rule(xp, w, g, *, learning_rate, step):
        return (w - learning_rate * g,)

    return of(rule=staticmethod(rule), **attributes)


def with_mean(xp, w, g, mean, *, learning_rate):
    return w - learning_rate * g, mean


WRITTEN_WRONG = {
    "names as arrays": (
        lambda: of(arrays=("m", "s")),
        r"Mine has arrays = \('m', 's'\), and .*: write array_names = \('m', 's'\)",
    ),
    "arrays of another kind": (lambda: of(arrays=1.5), r"arrays = 1.5, and .* an integer >= 0"),
    "arrays below 0": (lambda: of(arrays=-1), "arrays = -1, and"),
    "a name alone": (lambda: of(array_names="mean"), "array_names = 'mean': it must be a tuple of texts"),
    "a number as names": (lambda: of(array_names=2), "array_names = 2: it must be a tuple of texts"),
    "first alone": (lambda: of(first=1.0), r"Mine has first = 1.0: .* are a tuple, as in \(0,\)"),
    "advance alone": (
        lambda: of(first=(0,), advance=lambda self, numbers: numbers[0] + 1),
        r"`advance` of Mine returned 1: .* are a tuple",
    ),
    "derived alone": (
        lambda: of(derived=lambda self, numbers: 0.5),
        "`derived` of Mine returned 0.5: it must return a dict",
    ),
    "an option that is a method": (with_option, "takes an option 'step', and Mine.step is a method"),
    "an option that is a text": (
        lambda: with_option(derived=lambda self, numbers: {"step": "third"}),
        "takes a number as its option 'step', got 'third'",
    ),
    "an option that is missing": (
        lambda: with_option(derived=lambda self, numbers: {"step": None}),
        "takes a number as its option 'step', got None",
    ),
    "an array that is not kept": (
        lambda: of(rule=staticmethod(with_mean)),
        r"takes xp, w, g, mean by position, and is given .* and 0 arrays: array_names says",
    ),
    "an array too many": (lambda: of(array_names=("mean",)), "its gradient and 1 array: array_names"),
    "options by position": (
        lambda: of(rule=staticmethod(lambda xp, w, g, learning_rate: (w,))),
        "takes xp, w, g, learning_rate by position, .* options come after a *",
    ),
    "a rule with self": (
        lambda: of(rule=lambda self, xp, w, g, *, learning_rate: (w,)),
        "write @staticmethod above it, and leave out self",
    ),
}


@pytest.mark.parametrize("way", [step_by_hand, fit])
@pytest.mark.parametrize("kind", WRITTEN_WRONG)
def test_an_optimizer_that_is_written_wrong_is_told_what_to_write(kind, way):
    make, words = WRITTEN_WRONG[kind]
    with pytest.raises(OptionError, match=words):
        way(xnn.Sequential(layers.Dense(4, 2), seed=0), make())


@pytest.mark.parametrize("way", [step_by_hand, fit])
def test_a_number_may_stand_in_for_an_option_of_a_methods_name(way):
    model, other = (xnn.Sequential(layers.Dense(4, 2), seed=0) for _ in range(2))
    way(model, with_option(derived=lambda self, numbers: {"step": np.float32(0.5)}))
    way(other, of())
    np.testing.assert_array_equal(model[0].weight.value, other[0].weight.value)


EVERY = [
    optimizers.SGD(momentum=0.9),
    optimizers.AdaGrad(),
    optimizers.RMSProp(),
    optimizers.AdaDelta(),
    optimizers.Adam(),
    optimizers.AdamW(),
    optimizers.Nadam(),
    optimizers.Lion(),
]
RANGES = {
    "clip_norm": (0.0, -1.0),
    "clip_value": (0.0, np.inf),
    "average": (1.0, -0.1),
    "epsilon": (-1e-8, np.nan),
    "momentum": (1.0, -0.5),
    "alpha": (1.0, None),
    "rho": (1.0, "0.9"),
    "beta1": (1.0, -0.1),
    "beta2": (2.0, None),
    "betas": ((0.9,), 0.9, (0.9, 1.0)),
    "momentum_decay": (-1.0, None),
    "nesterov": (1, "yes"),
    "centered": (1, None),
    "amsgrad": (0.5, None),
    "learning_rate": (-1.0, np.nan),
    "weight_decay": (-1.0, "much"),
}


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("option", RANGES)
def test_options_that_are_assigned_are_checked_as_in_the_constructor(rule, option):
    if not hasattr(rule, option):
        pytest.skip("has no such option")
    kept = getattr(rule, option)
    for wrong in RANGES[option]:
        with pytest.raises(OptionError, match=option):
            setattr(rule, option, wrong)
        assert getattr(rule, option) == kept
        if option not in ("beta1", "beta2"):
            with pytest.raises(OptionError, match=option):
                type(rule)(**{option: wrong})


def test_numbers_of_numpy_become_pythons_and_do_not_widen():
    rule, model = optimizers.Adam(), xnn.Sequential(layers.Dense(4, 2), seed=0)
    rule.epsilon, rule.betas, rule.clip_norm = (
        np.float64(1e-3),
        (np.float64(0.5), np.float32(0.5)),
        np.float64(1.0),
    )
    assert {type(x) for x in (rule.epsilon, rule.beta1, rule.beta2, rule.clip_norm)} == {float}
    step_by_hand(model, rule)
    assert {p.value.dtype.name for p in model.parameters()} == {"float32"}


def test_nesterov_needs_a_momentum_when_both_were_assigned():
    rule, model = optimizers.SGD(0.1), xnn.Sequential(layers.Dense(4, 2), seed=0)
    rule.nesterov = True
    with pytest.raises(OptionError, match="nesterov=True needs a momentum"):
        step_by_hand(model, rule)
    with pytest.raises(OptionError, match="nesterov=True needs a momentum"):
        fit(model, rule)
    rule.momentum = 0.9
    step_by_hand(model, rule)


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_velocity_is_not_taken_for_a_mean(kernels):
    """RMSProp keeps two arrays either way: which two they are counts."""
    rule, model = optimizers.RMSProp(0.01, momentum=0.9), xnn.Sequential(layers.Dense(4, 2), seed=0)
    fit(model, rule, kernels=kernels)
    rule.momentum, rule.centered = 0.0, True
    assert all(not array.any() for array in rule.state_of(model.parameters()[0]).arrays)
    other = xnn.Sequential(layers.Dense(4, 2), seed=0)
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        p.value = q.value.copy()
    fit(model, rule, kernels=kernels)
    fit(other, optimizers.RMSProp(0.01, centered=True), kernels=kernels)
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(p.value, q.value)


@pytest.mark.parametrize(
    "option", ["clip_norm", "clip_value", "average", "learning_rate", "memory", "tolerance"]
)
def test_lbfgs_refuses_what_it_would_ignore(option):
    pytest.importorskip("scipy")
    rule = optimizers.LBFGS()
    with pytest.raises(OptionError, match=option):
        setattr(rule, option, 0.5 if option != "tolerance" else -1.0)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_options_in_another_order_are_not_mixed_up(kernels):
    """Kernels read the options by their places in the rule's signature."""
    if kernels == "compiled":
        pytest.importorskip("numba")

    class Turned(optimizers.Adam):
        def options(self, numbers, decay):
            return dict(reversed(super().options(numbers, decay).items()))

    class Short(optimizers.Adam):
        def options(self, numbers, decay):
            return {k: v for k, v in super().options(numbers, decay).items() if k != "weight_decay"}

    class Lost(optimizers.Adam):
        def options(self, numbers, decay):
            return {k: v for k, v in super().options(numbers, decay).items() if k != "epsilon"}

    found = []
    for kind in (optimizers.Adam, Turned, Short):
        model = xnn.Sequential(layers.Dense(4, 2), seed=0)
        fit(model, kind(0.01), kernels=kernels)
        found.append([p.value.tobytes() for p in model.parameters()])
    assert found[0] == found[1] == found[2]
    with pytest.raises(OptionError, match="has no 'epsilon', which its rule takes"):
        fit(model, Lost(0.01), kernels=kernels)
