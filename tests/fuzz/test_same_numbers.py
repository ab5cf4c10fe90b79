"""Random networks by every way of running: bits are equal in exact numerics, and numbers close in fast numerics."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
from random_networks import close, random_network, random_samples

import xnn
from xnn import losses, optimizers
from xnn.benchmarks.exactness.digest_run import Training
from xnn.graph import Input, forward_and_backward, topological_sort

KERNELS = ["ops", "numpy"] + ["compiled"] * (importlib.util.find_spec("numba") is not None)
RULES = (
    lambda: optimizers.SGD(0.03, 0.9), lambda: optimizers.SGD(0.03, 0.5, nesterov=True, clip_norm=0.5),
    lambda: optimizers.Adam(0.003, amsgrad=True), lambda: optimizers.AdamW(0.003, average=0.9),
    lambda: optimizers.RMSProp(0.001, centered=True, momentum=0.5), lambda: optimizers.Nadam(0.003),
    lambda: optimizers.AdaGrad(0.01, clip_value=0.1), lambda: optimizers.AdaDelta(), lambda: optimizers.Lion(0.001),
)  # fmt: skip


def task(rng, rows, dropout=True, most=5):
    """A model, a loss, samples, targets and sample weights (or None)."""
    x = random_samples(rng, rows, "float32")
    model = random_network(rng, x, 3, dropout=dropout, most=most)
    if rng.random() < 0.5:
        options = {
            "label_smoothing": 0.1 * int(rng.integers(3)),
            "reduction": str(rng.choice(["mean", "sum"])),
        }
        loss, y = losses.SoftmaxCrossEntropy(**options), rng.integers(0, 3, rows)
    else:
        kind = [losses.MSE, losses.L1, losses.Huber][int(rng.integers(3))]
        loss, y = kind(), rng.normal(size=(rows, 3)).astype("float32")
    weights = rng.uniform(0.5, 2.0, rows).astype("float32") if rng.random() < 0.4 else None
    return model, loss, x, y, weights


def bits(model):
    """The bytes of each parameter and buffer, by name."""
    return {name: np.asarray(array.value).tobytes() for name, array in model.named_state()}


def gradients_by_hand(model, loss, x, y):
    """The loss, the gradient for the samples, and that of each parameter, by forward and backward."""
    value = loss.forward(model.forward(x), y)
    return value, model.backward(loss.backward()), [p.grad for p in model.parameters()]


@pytest.mark.sampled(3)
@pytest.mark.fuzz(12)
def test_training_in_exact_numerics_has_the_same_bits_everywhere(rng):
    """Every table of kernels, and workers, who call forward and backward by hand. Two steps, of 32 and 9 samples."""
    model, loss, x, y, weights = task(rng, 41)
    rule = RULES[int(rng.integers(len(RULES)))]
    found = {}
    for kernels in KERNELS:
        run = Training(lambda: (copy.deepcopy(model), loss, rule()), "exact", kernels)
        found[kernels] = run.fit(x, y, weights), bits(run.model)
    for workers in (1, int(rng.integers(2, 5))):
        run = Training(lambda: (copy.deepcopy(model), copy.deepcopy(loss), rule()), "exact", workers=workers)
        found[f"{workers} workers"] = run.fit(x, y, weights), bits(run.model)
    for name, (digest, state) in found.items():
        assert state == found["ops"][1], (
            f"{name} {[k for k in state if state[k] != found['ops'][1][k]]} {model}"
        )
        assert digest == found["ops"][0], f"losses by {name}: {model}"


@pytest.mark.fuzz(25)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_gradients_have_the_same_bits_by_hand_in_a_graph_and_by_autograd(numerics, rng):
    model, loss, x, y, _ = task(rng, 5)
    with xnn.numerics(numerics):
        value, slope, by_hand = gradients_by_hand(model, loss, x, y)
        parameters = model.parameters()
        again, by_autograd = xnn.value_and_grad(lambda parameters: loss(model(x), y))(parameters)
        given, wanted = Input(), Input()
        cost = loss(model(given), wanted)
        forward_and_backward(topological_sort({given: x, wanted: y}))
    assert np.asarray(again).tobytes() == np.asarray(value).tobytes(), repr(model)
    assert np.asarray(cost.value).tobytes() == np.asarray(value).tobytes(), repr(model)
    if x.dtype.kind == "f":
        assert given.gradients[given].tobytes() == slope.tobytes(), repr(model)
    for parameter, one, other in zip(parameters, by_hand, by_autograd, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), (
            f"{parameter!r} of {model} by autograd"
        )


@pytest.mark.fuzz(12)
def test_training_in_fast_numerics_differs_by_rounding(rng):
    """Kernels against ops, after one step: later ones magnify rounding."""
    model, loss, x, y, weights = task(rng, 24, most=4)
    found = {}
    for kernels in KERNELS:
        run = Training(lambda: (copy.deepcopy(model), loss, optimizers.SGD(0.01)), "fast", kernels)
        run.fit(x, y, weights)
        found[kernels] = run.model
    for kernels in KERNELS[1:]:
        for (name, array), (_, other) in zip(
            found[kernels].named_state(), found["ops"].named_state(), strict=True
        ):
            close(array.value, other.value, 1e-3, f"{name} by {kernels} kernels, of {model}")
