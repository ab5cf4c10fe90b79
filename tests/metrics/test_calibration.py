"""Calibration: the reliability curve and the expected calibration error, against their definition in NumPy."""

import numpy as np
import pytest

from xnn import metrics
from xnn.errors import OptionError, ShapeError

RNG = np.random.default_rng(5)
LOGITS = (3.0 * RNG.standard_normal((200, 4))).astype(np.float32)
LABELS = RNG.integers(0, 4, 200)


def curve_of(probabilities, labels, bins):
    """Samples, mean confidence and share of right ones of each interval (low, high]."""
    confidence, said = probabilities.max(axis=1), probabilities.argmax(axis=1)
    rows = []
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        n = inside.sum()
        rows.append((n, *((c[inside].sum() / n if n else 0.0) for c in (confidence, said == labels))))
    return np.array(rows).T


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_the_curve_and_the_error_are_those_of_the_definition(lib, bins):
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    count, confidence, right = curve_of(probabilities, LABELS, bins)
    outputs, labels = lib.to_device(LOGITS), lib.to_device(LABELS)
    found = metrics.Reliability(bins)(outputs, labels)
    assert found[0] == count.tolist()
    np.testing.assert_allclose(found[1:], [confidence, right], atol=1e-6)
    metric = metrics.CalibrationError(bins)
    for start in range(0, 200, 50):
        metric.update(outputs[start : start + 50, ...], labels[start : start + 50])
    assert metric.compute() == pytest.approx((count * np.abs(right - confidence)).sum() / 200, abs=1e-6)


def test_one_output_says_yes_or_no():
    logits, targets = LOGITS[:, :1], (LABELS[:, None] > 1).astype(np.float32)
    yes = 1.0 / (1.0 + np.exp(-logits))
    two, labels = np.concatenate([1.0 - yes, yes], axis=1), targets[:, 0].astype(np.int64)
    wanted = metrics.Reliability(probabilities=True)(two, labels)
    np.testing.assert_allclose(metrics.Reliability()(logits, targets), wanted, atol=1e-6)
    np.testing.assert_allclose(metrics.Reliability(probabilities=True)(yes, targets), wanted, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(ShapeError, match="needs"):
        metrics.Reliability()(np.zeros((2, 3, 4), np.float32), np.zeros((2, 4), np.int64))
    with pytest.raises(OptionError, match="bins"):
        metrics.CalibrationError(bins=0)
