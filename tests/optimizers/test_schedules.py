"""Learning rates: PyTorch's and optax's numbers, the formulas written out, ends, the same bits everywhere."""

from __future__ import annotations

import math
import os
import pickle
import struct
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import plain

import xnn
from xnn import schedules as s
from xnn.backends import get_backend
from xnn.backends.exact import functions, scalars
from xnn.benchmarks import digests
from xnn.errors import OptionError
from xnn.optimizers import SGD

ALL = [
    s.Constant(0.1),
    s.Step(0.1, every=7, factor=0.3),
    s.MultiStep(0.1, (3, 10, 11), 0.3),
    s.Exponential(0.1, 0.97),
    s.Exponential(0.1, 0.5, every=9),
    s.Polynomial(0.1, 25),
    s.Polynomial(0.1, 25, power=0.9, end=0.001),
    s.Cosine(0.1, 25, end=0.001),
    s.CosineRestarts(0.1, 7, growth=2, end=0.001),
    s.OneCycle(0.1, 30),
    s.OneCycle(0.1, 30, shape="cosine"),
    s.Warmup(s.Cosine(0.1, 25), 6),
    s.Warmup(0.1, 6, start=0.25),
]


def rates(schedule, steps):
    return [schedule(t) for t in range(steps)]


# The numbers of PyTorch and optax.


def one_cycle(strategy, warmup):
    return lambda lr, o: lr.OneCycleLR(
        o, 0.1, 40, None, None, warmup + 1 / 40, strategy, False, div_factor=20.0, final_div_factor=50.0
    )


PYTORCH = [
    (s.Constant(0.1), lambda lr, o: lr.ConstantLR(o, factor=1.0)),
    (s.Step(0.1, 7, 0.3), lambda lr, o: lr.StepLR(o, 7, 0.3)),
    (s.Step(0.1, 7), lambda lr, o: lr.StepLR(o, 7)),
    (s.MultiStep(0.1, [3, 10, 11], 0.3), lambda lr, o: lr.MultiStepLR(o, [3, 10, 11], 0.3)),
    (s.Exponential(0.1, 0.97), lambda lr, o: lr.ExponentialLR(o, 0.97)),
    (s.Polynomial(0.1, 25), lambda lr, o: lr.PolynomialLR(o, 25)),
    (s.Polynomial(0.1, 25, 0.9), lambda lr, o: lr.PolynomialLR(o, 25, 0.9)),
    (s.Polynomial(0.1, 45, 2), lambda lr, o: lr.PolynomialLR(o, 45, 2)),
    (s.Cosine(0.1, 45), lambda lr, o: lr.CosineAnnealingLR(o, 45)),
    (s.Cosine(0.1, 39, 0.01), lambda lr, o: lr.CosineAnnealingLR(o, 39, 0.01)),
    (s.CosineRestarts(0.1, 7), lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 7)),
    (s.CosineRestarts(0.1, 3, 2, 0.01), lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 3, 2, 0.01)),
    (s.OneCycle(0.1, 40, 0.3, 20.0, 1000.0), one_cycle("linear", 0.3)),
    (s.OneCycle(0.1, 40, 0.3, 20.0, 1000.0, "cosine"), one_cycle("cos", 0.3)),
    (s.OneCycle(0.1, 40, 0.5, 20.0, 1000.0, "cosine"), one_cycle("cos", 0.5)),
    (s.Warmup(0.1, 8, 1 / 3), lambda lr, o: lr.LinearLR(o, total_iters=8)),
    (
        s.Warmup(s.Exponential(0.1, 0.9), 8, 0.01),
        lambda lr, o: lr.SequentialLR(
            o, [lr.LinearLR(o, 0.01, total_iters=8), lr.ExponentialLR(o, 0.9)], [8]
        ),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), PYTORCH, ids=[repr(ours) for ours, _ in PYTORCH])
def test_forty_steps_of_pytorch(ours, theirs):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls what PyTorch has deprecated
        scheduler = theirs(torch.optim.lr_scheduler, optimizer)
        for _ in range(39):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    expected.append(optimizer.param_groups[0]["lr"])
    # PyTorch computes each rate from the one before: its rounding errors add up.
    np.testing.assert_allclose(rates(ours, 40), expected, rtol=1e-12, atol=1e-16)


OPTAX = [
    (s.Constant(0.1), lambda o: o.constant_schedule(0.1)),
    (s.Exponential(0.1, 0.5, 9), lambda o: o.exponential_decay(0.1, 9, 0.5)),
    (s.Step(0.1, 9, 0.5), lambda o: o.exponential_decay(0.1, 9, 0.5, staircase=True)),
    (s.Polynomial(0.1, 25, 1.5, 0.01), lambda o: o.polynomial_schedule(0.1, 0.01, 1.5, 25)),
    (s.Cosine(0.1, 25, 0.01), lambda o: o.cosine_decay_schedule(0.1, 25, alpha=0.1)),
    (
        s.Warmup(s.Cosine(0.1, 25, 0.01), 10),
        lambda o: o.warmup_cosine_decay_schedule(0.0, 0.1, 10, 35, 0.01),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTAX, ids=[repr(ours) for ours, _ in OPTAX])
def test_forty_steps_of_optax(ours, theirs):
    optax = pytest.importorskip("optax")
    # It computes in float32, and its rates near 0 are differences.
    np.testing.assert_allclose(rates(ours, 40), rates(theirs(optax), 40), rtol=2e-6, atol=2e-8)


# The formulas, with C's functions.


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (s.Constant(0.3), lambda t: 0.3),
        (s.Step(0.3, 4, 0.7), lambda t: 0.3 * 0.7 ** (t // 4)),
        (s.MultiStep(0.3, (1, 9)), lambda t: 0.3 * 0.1 ** ((t >= 1) + (t >= 9))),
        (s.Exponential(0.3, 0.7, 4), lambda t: 0.3 * 0.7 ** (t / 4)),
        (s.Exponential(0.3, 1.3, 4), lambda t: 0.3 * 1.3 ** (t / 4)),
        (s.Polynomial(0.3, 20, 0.9, 0.1), lambda t: 0.1 + 0.2 * (1 - min(t, 20) / 20) ** 0.9),
        (s.Polynomial(0.3, 20, 3), lambda t: 0.3 * (1 - min(t, 20) / 20) ** 3),
        (s.Cosine(0.3, 20, 0.1), lambda t: 0.1 + 0.1 * (1 + math.cos(math.pi * min(t, 20) / 20))),
        (s.Cosine(0.1, 20, 0.3), lambda t: 0.3 - 0.1 * (1 + math.cos(math.pi * min(t, 20) / 20))),
        (s.CosineRestarts(0.3, 5), lambda t: 0.15 * (1 + math.cos(math.pi * (t % 5) / 5))),
        (s.Warmup(0.3, 4), lambda t: 0.3 * min(t / 4, 1)),
        (
            s.Warmup(lambda t: 0.3 / (t + 1), 4, 0.5),
            lambda t: 0.3 / (t - 3) if t > 4 else 0.3 * (0.5 + t / 8),
        ),
    ],
    ids=plain,
)
def test_the_formulas(schedule, formula):
    np.testing.assert_allclose(rates(schedule, 50), rates(formula, 50), rtol=1e-13, atol=1e-17)


def test_restarts_grow():
    rate = s.CosineRestarts(0.4, 3, growth=3)
    starts = [t for t in range(200) if rate(t) == 0.4]
    assert starts == [0, 3, 12, 39, 120]
    assert rate(3 + 4) < rate(3 + 3) < rate(12)
    assert rate(10**15) > 0.0


def test_one_cycles_shapes_share_start_peak_and_end():
    line, cosine = s.OneCycle(0.5, 100, 0.2), s.OneCycle(0.5, 100, 0.2, shape="cosine")
    for t in (0, 20, 99, 100, 10**9):
        assert cosine(t) == pytest.approx(line(t), rel=1e-14)
    assert cosine(5) < line(5)
    assert cosine(30) > line(30)
    assert cosine(90) < line(90)


# Ends and edges.


def test_at_the_end_is_the_end():
    for schedule in (s.Cosine(0.1, 10, 0.03), s.Polynomial(0.1, 10, 0.9, 0.03)):
        assert schedule(0) == pytest.approx(0.1, rel=1e-15)
        assert schedule(9) > 0.03
        assert schedule(10) == schedule(11) == schedule(10**12) == 0.03


def test_one_step():
    assert rates(s.Cosine(0.1, 1), 3) == [0.1, 0.0, 0.0]
    assert rates(s.Polynomial(0.1, 1, end=0.05), 3) == pytest.approx([0.1, 0.05, 0.05])
    assert rates(s.CosineRestarts(0.1, 1), 3) == [0.1] * 3
    assert rates(s.Warmup(0.1, 1, 0.5), 3) == [0.05, 0.1, 0.1]
    assert rates(s.Step(0.5, 1, 0.5), 3) == [0.5, 0.25, 0.125]
    for shape in ("line", "cosine"):
        assert rates(s.OneCycle(0.1, 1, shape=shape), 3) == pytest.approx([0.004, 1e-5, 1e-5])
        assert s.OneCycle(0.1, 4, warmup=0.0, shape=shape)(0) == 0.1
        # What is left after the warm-up is less than a step, or nothing.
        assert rates(s.OneCycle(0.1, 4, 0.9, 2.0, shape=shape), 6)[4:] == pytest.approx([1e-5, 1e-5])
        assert rates(s.OneCycle(0.1, 4, 0.75, 2.0, shape=shape), 6)[3:] == pytest.approx([0.1, 1e-5, 1e-5])
        assert rates(s.OneCycle(0.1, 4, 0.65, 2.0, shape=shape), 6)[3:] == pytest.approx([1e-5] * 3)


def test_far_beyond_the_end():
    for schedule in ALL:
        assert 0.0 <= schedule(10**12) <= 0.1
    assert s.Exponential(0.1, 0.999, every=7)(10**7) == 0.0
    assert s.Step(1.0, 1, 2.0)(2000) == math.inf  # no OverflowError: the optimizer refuses it
    assert s.MultiStep(0.1, ())(10) == 0.1
    assert rates(s.Exponential(0.1, 0.0, every=2), 3) == [0.1, 0.0, 0.0]


def test_whole_powers_are_products():
    assert rates(s.Exponential(1.0, 0.5), 60) == [2.0**-t for t in range(60)]
    assert s.Step(0.1, 1000, 0.5)(3999) == 0.0125


def test_a_warmup_of_a_warmup():
    rate = s.Warmup(s.Warmup(0.4, 2, 0.5), 2, 0.5)
    assert rates(rate, 6) == pytest.approx([0.1, 0.15, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_an_optimizer_takes_it(schedule):
    rule = SGD(schedule)
    rule.steps = 4
    assert rule.rate == schedule(4)
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert eval(repr(schedule), vars(s)) == schedule


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_rates_are_pythons_numbers(schedule):
    """Also if options are numbers of NumPy, whose float64 would make float32 arrays float64."""
    options = {
        name: np.float64(value)
        if isinstance(value, float)
        else np.int64(value)
        if type(value) is int
        else value
        for name, value in vars(schedule).items()
    }
    for t in (0, 3, 40):
        rate = type(schedule)(**options)(t)
        assert type(rate) is float
        assert rate == schedule(t)


@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-6, 10.0),
    share=st.floats(0.0, 1.0),
    places=st.tuples(st.floats(0.0, 1.2), st.floats(0.0, 1.2)),
)
def test_decays_go_down_and_stay_between(steps, rate, share, places):
    end = rate * share
    early, late = (int(place * steps) for place in sorted(places))
    for decay in (
        s.Cosine(rate, steps, end),
        s.Polynomial(rate, steps, 0.9, end),
        s.Polynomial(rate, steps, 2, end),
    ):
        assert end <= decay(late) <= decay(early) * (1 + 1e-15) <= rate * (1 + 1e-14)


def test_names():
    assert all(name.islower() and isinstance(kind, type) for name, kind in s.SCHEDULES.items())
    assert {kind.__name__ for kind in s.SCHEDULES.values()} == set(s.__all__) - {
        "SCHEDULES",
        "Schedule",
        "check_rate",
    }
    assert xnn.schedules is s


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: s.Constant(-0.1), "rate must be a finite number at least 0, got -0.1"),
        (lambda: s.Constant("0.1"), "rate must be a finite number at least 0, got '0.1'"),
        (lambda: s.Step(0.1, 0), "every must be a positive integer, got 0"),
        (lambda: s.Step(0.1, 1.5), "every must be a positive integer"),
        (lambda: s.Step(0.1, 3, -1.0), "factor"),
        (lambda: s.MultiStep(0.1, 3), r"milestones must be steps such as \(1000, 2000\), got 3"),
        (lambda: s.MultiStep(0.1, (3, 3)), r"milestones must increase, got \(3, 3\)"),
        (lambda: s.MultiStep(0.1, (3, 0.5)), "a milestone must be a positive integer, got 0.5"),
        (lambda: s.MultiStep(0.1, "39"), "milestones must be steps"),
        (lambda: s.Exponential(0.1, math.nan), "factor"),
        (lambda: s.Exponential(0.1, 0.9, True), "every"),
        (lambda: s.Polynomial(0.1, 10, -1.0), "power"),
        (lambda: s.Polynomial(0.1, 10, end=-1.0), "end"),
        (lambda: s.Cosine(math.inf, 10), "rate must be a finite number"),
        (lambda: s.Cosine(0.1, "10"), "steps must be a positive integer, got '10'"),
        (lambda: s.CosineRestarts(0.1, 10, 1.5), "growth must be a positive integer, got 1.5"),
        (lambda: s.OneCycle(0.1, 10, shape="cos"), "shape must be 'line' or 'cosine', got 'cos'"),
        (lambda: s.Warmup("cosine", 10), "learning_rate must be a finite number at least 0, got 'cosine'"),
        (lambda: s.Warmup(s.Cosine, 10), "failed at step 0"),
        (
            lambda: s.Warmup(lambda step: -1.0, 10),
            r"learning_rate\(0\) must be a finite number at least 0, got -1.0",
        ),
        (lambda: s.Warmup(0.1, 0), "steps must be a positive integer"),
        (lambda: s.Warmup(0.1, 10, -0.5), "start"),
    ],
)
def test_options(build, message):
    with pytest.raises(OptionError, match=message):
        build()


# The same bits everywhere.


@pytest.mark.parametrize("name", ["exp", "log", "sin"])
def test_scalars_are_the_arrays_functions(name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=2000) * np.exp(3 * rng.normal(size=2000)), np.linspace(0, 2, 301)])
    edges = [0.0, 1.0, math.inf, -math.inf, math.nan, 5e-324, 350.0, 350.5, -350.0, -350.5, 2.0**25, 2.0**26]
    x = np.concatenate([x, edges])
    expected = getattr(functions, name)(get_backend("numpy"), x)
    found = [getattr(scalars, name)(value) for value in x.tolist()]
    np.testing.assert_array_equal(found, expected)
    assert all(type(value) is float for value in found)


_RATES = """
import struct
from test_schedules import ALL, rates
print(b"".join(struct.pack("<60d", *rates(schedule, 60)) for schedule in ALL).hex())
"""


def test_no_c_library_is_asked(monkeypatch):
    """C libraries round sin, cos, exp, log and pow differently."""
    before = [rates(schedule, 60) for schedule in ALL]
    for name in ("sin", "cos", "exp", "log", "pow"):
        monkeypatch.setattr(math, name, None)
    assert [rates(schedule, 60) for schedule in ALL] == before
    source = Path(s.__file__).read_text(encoding="utf-8")
    assert "**" not in source


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"PYTHONHASHSEED": "7"},
        *({"NPY_DISABLE_CPU_FEATURES": " ".join(names)} for names in digests._simd()[:1]),
    ],
    ids=str,
)
def test_the_same_bits_in_another_process(environment):
    paths = [*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RATES],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == b"".join(struct.pack("<60d", *rates(schedule, 60)) for schedule in ALL).hex()


def test_any_order_gives_the_same():
    for schedule in ALL:
        backwards = [schedule(t) for t in reversed(range(60))]
        assert backwards[::-1] == rates(schedule, 60)


def test_rates_change_slowly():
    """Only steps and restarts jump."""
    for schedule in ALL:
        if not isinstance(schedule, (s.Step, s.MultiStep, s.CosineRestarts)):
            assert max(abs(b - a) for a, b in pairwise(rates(schedule, 60))) < 0.03


@pytest.mark.parametrize("again", [0.2, math.nan, None, "0.1"])
def test_a_schedule_that_gives_another_rate_when_asked_again_is_refused(again):
    rates = iter([0.1, again])
    with pytest.raises(OptionError, match="step's number"):
        SGD(lambda step: next(rates))
