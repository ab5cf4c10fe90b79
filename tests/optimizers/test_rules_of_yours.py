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


def test_a_rule_that_takes_more_than_the_optimizer_has():
    def rule(xp, w, g, *, learning_rate, warmth):
        return (w - learning_rate * warmth * g,)

    with pytest.raises(OptionError, match=r"takes an option that the optimizer does not give it .*warmth"):
        fit(xnn.Sequential(layers.Dense(4, 2), seed=0), rule_of(rule))


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
