"""Optimizers and schedules with random options against PyTorch and optax, on the same gradients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from random_networks import close

from xnn import initializers, optimizers, schedules
from xnn.layers import Parameter

torch = pytest.importorskip("torch")

STEPS = 12
SHAPES = ((3, 4), (5,), ())


def parameters(rng):
    """Parameters in float64 with random values."""
    found = []
    for shape in SHAPES:
        found.append(Parameter("weight", shape, initializers.Zeros(), "float64"))
        found[-1].value = rng.normal(size=shape)
    return found


def gradients(rng, parameter):
    """A gradient with no element near 0: some rules divide by its size, which would magnify its last bit."""
    sign = np.where(rng.random(parameter.shape) < 0.5, -1.0, 1.0)
    return sign * rng.uniform(0.1, 1.5, parameter.shape)


def between(rng, low, high):
    """A number between two, each power of ten as likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def adam(rng):
    betas = float(rng.uniform(0.0, 0.95)), float(rng.uniform(0.5, 0.9999))
    return {"betas": betas, "eps": between(rng, 1e-9, 1e-2)}


#: Name in PyTorch -> xnn's class, and random options by PyTorch's names.
RULES = {
    "SGD": (optimizers.SGD, lambda rng: {"momentum": rng.choice([0.0, 0.5, 0.95])}),
    "Adagrad": (optimizers.AdaGrad, lambda rng: {"eps": between(rng, 1e-10, 1e-2)}),
    "RMSprop": (
        optimizers.RMSProp,
        lambda rng: {
            "alpha": rng.uniform(0.5, 0.999), "eps": between(rng, 1e-8, 1e-2),
            "momentum": rng.choice([0.0, 0.9]), "centered": bool(rng.integers(2)),
        },
    ),
    "Adadelta": (
        optimizers.AdaDelta,
        lambda rng: {"rho": rng.uniform(0.5, 0.99), "eps": between(rng, 1e-6, 1e-2)},
    ),
    "Adam": (optimizers.Adam, lambda rng: {**adam(rng), "amsgrad": bool(rng.integers(2))}),
    "AdamW": (optimizers.AdamW, lambda rng: {**adam(rng), "amsgrad": bool(rng.integers(2))}),
    "NAdam": (optimizers.Nadam, lambda rng: {**adam(rng), "momentum_decay": between(rng, 1e-3, 0.1)}),
}  # fmt: skip


@pytest.fixture
def in_float64():
    """PyTorch's NAdam keeps a product in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.fuzz(12)
@pytest.mark.parametrize("name", RULES)
def test_steps_are_pytorchs(name, rng, in_float64):
    kind, draw = RULES[name]
    options = {
        key: value if isinstance(value, (tuple, bool)) else float(value) for key, value in draw(rng).items()
    }
    options["weight_decay"] = float(rng.choice([0.0, between(rng, 1e-4, 0.5)]))
    if options.get("momentum") and name == "SGD":
        options["nesterov"] = bool(rng.integers(2))
    rate, clip_norm, clip_value = between(rng, 1e-4, 0.3), rng.choice([None, 0.7]), rng.choice([None, 0.9])

    ours = parameters(rng)
    theirs = [torch.tensor(p.value, requires_grad=True) for p in ours]
    renamed = {"epsilon" if key == "eps" else key: value for key, value in options.items()}
    rule = kind(rate, **renamed, clip_norm=clip_norm, clip_value=clip_value)
    their_rule = getattr(torch.optim, name)(theirs, lr=rate, **options)
    for step in range(STEPS):
        for parameter, tensor in zip(ours, theirs, strict=True):
            parameter.grad = gradients(rng, parameter)
            tensor.grad = torch.tensor(parameter.grad)
        if clip_value:
            torch.nn.utils.clip_grad_value_(theirs, clip_value)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        rule.step(ours)
        their_rule.step()
        for parameter, tensor in zip(ours, theirs, strict=True):
            close(parameter.value, tensor.detach(), 1e-9, f"step {step} of {rule!r}")


@pytest.mark.fuzz(3)
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion"])
def test_steps_are_optaxs(name, rng):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    rate, decay, limit = between(rng, 1e-4, 0.3), float(rng.choice([0.0, 0.02])), between(rng, 0.3, 10.0)
    average = float(rng.uniform(0.5, 0.99))
    betas = float(rng.uniform(0.5, 0.95)), float(rng.uniform(0.5, 0.9999))
    first, second = {"b1": betas[0], "b2": betas[1]}, {"betas": betas}
    momentum = {"momentum": float(rng.uniform(0.1, 0.95)), "nesterov": bool(rng.integers(2))}
    rule, theirs = {
        "sgd": lambda: (optimizers.SGD(rate, **momentum), optax.sgd(rate, **momentum)),
        "adam": lambda: (optimizers.Adam(rate, **second), optax.adam(rate, **first)),
        "adamw": lambda: (
            optimizers.AdamW(rate, **second, weight_decay=decay), optax.adamw(rate, **first, weight_decay=decay)
        ),
        "lion": lambda: (
            optimizers.Lion(rate, **second, weight_decay=decay), optax.lion(rate, **first, weight_decay=decay)
        ),
    }[name]()  # fmt: skip
    rule.clip_value, rule.average = limit, average
    ours = parameters(rng)
    with jax.enable_x64(True):
        chain = optax.chain(optax.clip(limit), theirs)
        weights = [jax.numpy.asarray(p.value) for p in ours]
        averages, state = weights, chain.init(weights)
        for step in range(STEPS):
            for parameter in ours:
                parameter.grad = gradients(rng, parameter)
            change, state = chain.update([jax.numpy.asarray(p.grad) for p in ours], state, weights)
            weights = optax.apply_updates(weights, change)
            averages = optax.incremental_update(weights, averages, 1.0 - average)
            rule.step(ours)
            for parameter, weight, mean in zip(ours, weights, averages, strict=True):
                close(parameter.value, weight, 1e-9, f"step {step} of {rule!r}")
                close(rule.averages[parameter], mean, 1e-9, f"the average at step {step} of {rule!r}")


def pair_of_schedules(rng, their_optimizer, rate):
    """A schedule, the same one of PyTorch, and for how many steps."""
    theirs = torch.optim.lr_scheduler
    every, factor, steps = int(rng.integers(1, 7)), float(rng.uniform(0.2, 1.1)), int(rng.integers(2, 30))
    end, power = float(rng.uniform(0.0, 0.5)) * rate, float(rng.choice([0.5, 1.0, 2.0]))
    stones = tuple(np.unique(rng.integers(1, 30, 3)).tolist())
    growth = int(rng.integers(1, 4))
    start = float(rng.uniform(0.1, 1.0))
    share = float(rng.uniform(0.1, 0.6))
    return [
        lambda: (schedules.Step(rate, every, factor), theirs.StepLR(their_optimizer, every, factor), 40),
        lambda: (schedules.MultiStep(rate, stones, factor), theirs.MultiStepLR(their_optimizer, stones, factor), 40),
        lambda: (schedules.Exponential(rate, factor), theirs.ExponentialLR(their_optimizer, factor), 40),
        lambda: (
            schedules.Polynomial(rate, steps, power), theirs.PolynomialLR(their_optimizer, steps, power), 40
        ),
        lambda: (
            schedules.Cosine(rate, steps, end), theirs.CosineAnnealingLR(their_optimizer, steps, end), steps
        ),
        lambda: (
            schedules.CosineRestarts(rate, steps, growth, end),
            theirs.CosineAnnealingWarmRestarts(their_optimizer, steps, growth, end),
            90,
        ),
        lambda: (
            schedules.Warmup(rate, steps, start),
            theirs.LinearLR(their_optimizer, start_factor=start, total_iters=steps),
            40,
        ),
        lambda: (
            schedules.OneCycle(rate, steps + 9, share, shape="cosine", end=25e4),
            theirs.OneCycleLR(their_optimizer, rate, steps + 9, pct_start=share + 1 / (steps + 9)),
            steps + 9,
        ),
    ][int(rng.integers(8))]()  # fmt: skip


@pytest.mark.fuzz(40)
def test_rates_are_pytorchs(rng):
    rate = between(rng, 1e-3, 1.0)
    rule = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers that step before their optimizer
        schedule, theirs, steps = pair_of_schedules(rng, rule, rate)
        for step in range(steps):
            assert schedule(step) == pytest.approx(rule.param_groups[0]["lr"], rel=1e-9, abs=1e-12), (
                step,
                schedule,
            )
            if step + 1 < steps:
                theirs.step()
