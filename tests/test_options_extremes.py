"""Options that no float, no index and no text holds: each is refused by an error of xnn's own."""

from __future__ import annotations

import contextlib
import inspect
from fractions import Fraction

import numpy as np
import pytest

import xnn
from xnn import callbacks, initializers, layers, losses, metrics, optimizers, schedules
from xnn.errors import XnnError
from xnn.options import check_count, check_integer, check_real, shown


class Silent:
    """An object without a repr."""

    def __repr__(self):
        raise RuntimeError("no repr")


EXTREMES = [
    10**400, -(10**400), 10**5000, Fraction(10**400, 3), [10**5000], Silent(), [Silent()], float("nan"), 1j,
    "9" * 50, np.array([[1, 2], [3, 4]]), {1: 10**5000},
]  # fmt: skip

OPTIONS = [
    (kind, name)
    for module in (layers, losses, optimizers, metrics, schedules, callbacks, initializers)
    for kind in (getattr(module, name) for name in module.__all__)
    if isinstance(kind, type) and kind.__module__.startswith("xnn.") and kind.__name__ != "LossOverBatches"
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
]
#: Usual values of the other arguments, by name.
USUAL = {
    "inputs": 3, "outputs": 2, "in_channels": 1, "out_channels": 2, "kernel_size": 3, "features": 3, "rate": 0.1,
    "learning_rate": 0.1, "scale": 1.0, "shape": (2, 2), "num_embeddings": 3, "embedding_dim": 2, "std": 1.0,
    "low": 0.0, "high": 1.0, "value": 1.0, "steps": 10, "every": 10, "milestones": (5,), "factor": 0.5,
    "values": (0.1, 0.2), "name": "w", "initializer": initializers.Zeros(), "op": xnn.ops.exp,
    "function": lambda x: x, "path": "log.jsonl", "first": 0.1, "last": 0.0, "peak": 0.1, "limit": 0.5, "period": 10,
    "k": 2, "classes": 3, "schedule": 0.1,
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("kind", "name"), OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_an_option_is_taken_or_refused(kind, name, tmp_path, monkeypatch):
    """Whatever is given: an object whose repr can be written, or an error of xnn's own in one line."""
    monkeypatch.chdir(tmp_path)
    parameters = inspect.signature(kind).parameters
    usual = {
        other: USUAL[other] for other, p in parameters.items() if p.default is p.empty and other in USUAL
    }
    for value in EXTREMES:
        with contextlib.suppress(XnnError):
            kind(**{**usual, name: value})


@pytest.mark.parametrize("value", EXTREMES, ids=lambda value: type(value).__name__)
def test_a_value_is_shown_in_one_short_line(value):
    assert len(shown(value)) <= 60
    assert "\n" not in shown(value)


@pytest.mark.parametrize("check", [check_real, check_integer, check_count])
@pytest.mark.parametrize("value", EXTREMES, ids=lambda value: type(value).__name__)
def test_checks_refuse_them(check, value):
    with pytest.raises(XnnError, match="it"):
        check("it", value)


@pytest.mark.parametrize("seed", EXTREMES, ids=lambda value: type(value).__name__)
def test_seeds(seed):
    for call in (
        lambda: xnn.Sequential(layers.Dense(2, 2), seed=seed),
        lambda: xnn.backends.Stream(seed, 1),
        lambda: xnn.data.load("digits", seed=seed),
    ):
        with pytest.raises(XnnError, match="seed"):
            call()
