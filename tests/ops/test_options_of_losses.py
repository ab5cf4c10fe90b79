"""Options out of range are refused at the op, by the loss that keeps them, and when a callback assigns them."""

from __future__ import annotations

import numpy as np
import pytest

from xnn import losses, ops
from xnn.errors import OptionError

NAN, INF = np.nan, np.inf
Z = np.array([[0.5, -0.25, 1.0], [1.0, 2.0, 0.0]], np.float32)
PARTS, LABELS = np.full((2, 3), 1.0 / 3.0, np.float32), np.array([0, 1])

WRONG = {
    losses.Huber: {"delta": (0, 0.0, -1.0, NAN, INF, "a", True)},
    losses.Focal: {"gamma": (-1.0, NAN, INF, "a"), "alpha": (-0.5, 1.5, NAN, "a")},
    losses.BinaryCrossEntropy: {"pos_weight": (-1.0, NAN, INF, "a", True, (1.0, -1.0, 1.0), (1.0, NAN, 1.0))},
    losses.SoftmaxCrossEntropy: {
        "label_smoothing": (-0.5, 1.0, NAN, "a"),
        "class_weight": ((1.0, -1.0, 1.0), (1.0, NAN, 1.0), (1.0, INF, 1.0), "abc", 2.0),
        "ignore_index": (1.5, "a", True),
    },
}
CASES = [
    (kind, name, value) for kind, named in WRONG.items() for name, values in named.items() for value in values
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_refused(kind, name, value):
    targets = LABELS if kind is losses.SoftmaxCrossEntropy else PARTS
    with pytest.raises((OptionError, ValueError), match=name):
        kind.op(Z, targets, **{name: value})
    with pytest.raises(OptionError, match=name):
        kind(**{name: value})
    if name != "class_weight" and not isinstance(value, tuple):
        loss = kind()
        before = getattr(loss, name)
        with pytest.raises(OptionError, match=name):
            setattr(loss, name, value)
        assert getattr(loss, name) == before


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (losses.Huber, {"delta": 1e-6}),
        (losses.Focal, {"gamma": 0, "alpha": 0}),
        (losses.Focal, {"gamma": 0.0, "alpha": 1.0}),
        (losses.Focal, {"alpha": None}),
        (losses.BinaryCrossEntropy, {"pos_weight": 0}),
        (losses.BinaryCrossEntropy, {"pos_weight": (0.0, 1.0, 2.0)}),
        (losses.SoftmaxCrossEntropy, {"label_smoothing": 0, "class_weight": (0, 1, 2)}),
        (losses.SoftmaxCrossEntropy, {"ignore_index": -100}),
    ],
)
def test_taken(kind, options):
    targets = LABELS if kind is losses.SoftmaxCrossEntropy else PARTS
    assert kind.op(Z, targets, **options) == kind(**options)(Z, targets)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_numbers_that_are_not_finite_are_refused_by_other_ops(value):
    moments = ops.moments(Z, axis=(0,))
    for build in (
        lambda: ops.leaky_relu(Z, negative_slope=value),
        lambda: ops.elu(Z, alpha=value),
        lambda: ops.dropout(Z, Z > 0.0, rate=value),
        lambda: ops.normalize(Z, moments, axis=(0,), epsilon=value),
        lambda: ops.var(Z, correction=value),
    ):
        with pytest.raises(OptionError, match="finite"):
            build()


@pytest.mark.parametrize("rate", [-0.5, 1.0, 2.0])
def test_rates_of_dropout(rate):
    with pytest.raises(OptionError, match=r"rate must be a finite number in \[0, 1\)"):
        ops.dropout(Z, Z > 0.0, rate=rate)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ops.softmax(Z, axis="a"),
        lambda: ops.softmax(Z, axis=1.5),
        lambda: ops.clip(Z, min="a"),
        lambda: ops.sum(Z, keepdims="a"),
        lambda: ops.var(Z, correction="a"),
        lambda: ops.concat(Z, Z, axis="a"),
        lambda: ops.stack(Z, Z, axis="a"),
        lambda: ops.take(Z, LABELS, axis="a"),
        lambda: ops.leaky_relu(Z, negative_slope="a"),
        lambda: ops.elu(Z, alpha=None),
        lambda: ops.rescale(Z, scale="a"),
        lambda: ops.dropout(Z, Z > 0, rate="a"),
    ],
)
def test_options_of_another_kind_are_named(build):
    with pytest.raises(ValueError, match=r"axis|min|keepdims|correction|slope|alpha|scale|rate"):
        build()
