"""What a schedule assigns while it gives a step's rate counts from the next step, as what a callback assigns does.

The same steps by hand are the measure: there the schedule is called by `optimizer.step`, after the step's gradients.
"""

import importlib.util

import numpy as np
import pytest
from test_assigned_options import AT, CASES, LABELS, RULES, Case, Parts, around, loss_of, middle, put

import xnn
from xnn import layers, losses, optimizers
from xnn.callbacks import Callback

_HAS_NUMBA = importlib.util.find_spec("numba") is not None
#: What a schedule may change while it is asked for the rate of a step: what layers and losses read.
OF_LAYERS_AND_LOSSES = [case for case in CASES if case.name.partition(".")[0] not in {*RULES, "SGD"}]
OF_LAYERS_AND_LOSSES = [
    case for case in OF_LAYERS_AND_LOSSES
    if case.name not in ("schedule", "decay by name", "decay by function", "several", "no clipping", "steps")
]  # fmt: skip


class _Noise(layers.Drawing):
    """A user's layer: no kernel draws for it."""

    op, purpose = xnn.ops.add, xnn.backends.Purpose.AUGMENT

    def __init__(self, size=0.1):
        super().__init__()
        self.size = size

    def draw(self, lib, stream, x):
        return lib.signed(stream, tuple(x.shape), self.row) * self.size


class _ByHand(layers.Layer):
    """A layer with a forward and a backward of its own."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, training=False):
        return self.factor * x

    def backward(self, dout, input_gradient=True):
        return self.factor * dout


OF_LAYERS_AND_LOSSES += [
    Case("a user's Drawing", put(middle, size=2.0), model=lambda: around(_Noise())()),
    Case("a user's layer by hand", put(middle, factor=3.0), model=lambda: around(_ByHand())()),
    Case(
        "weights of classes and dropout",
        lambda parts: (put(loss_of, class_weight=(1.0, 2.0, 5.0))(parts), put(middle, rate=0.9)(parts)),
        model=lambda: around(layers.Dropout(0.5))(),
        loss=lambda: losses.SoftmaxCrossEntropy(class_weight=(3.0, 2.0, 1.0)),
        y=LABELS,
    ),
]


class Losses(Callback):
    def on_check(self, history, epoch, step, loss, metrics):
        self.loss = loss


def assigned_by_the_schedule(case, train):
    """The losses and the end of a training in which the schedule makes the change when it gives a step's rate."""
    parts = Parts(case)

    def rate(step):
        if step == AT - 1:
            case.change(parts)
        return 0.05

    parts.optimizer = optimizers.SGD(rate, momentum=0.5)
    return train(parts), parts


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", OF_LAYERS_AND_LOSSES, ids=repr)
@pytest.mark.usefixtures("one_thread")
def test_what_a_schedule_assigns_counts_from_the_next_step(case, lib):
    """In every table of kernels; also the epoch's loss, whose divisor may follow from the loss's options."""
    y = case.y if case.y.dtype.kind != "i" or case.y.ndim == 1 else case.y.astype(np.float32)

    def steps(parts):
        found = []
        for step in range(5):
            rows = slice(16 * step, 16 * step + 16)
            parts.model.set_stream(2, step)
            x, targets = lib.to_device(case.x[rows]), lib.to_device(y[rows])
            outputs = parts.model.forward(x, training=True)
            loss = parts.loss.forward(outputs, targets)
            total = float(lib.to_host(lib.number_on_device(parts.loss.total(outputs, targets))))
            found.append((float(lib.to_host(loss)), total))
            parts.model.backward(parts.loss.backward())
            parts.optimizer.step(parts.model.parameters())
        return found

    seen, right = assigned_by_the_schedule(case, steps)
    for kernels in {"numpy": ("ops", "numpy", "compiled"), "cupy": ("ops", "cuda")}.get(lib.name, ("ops",)):
        if kernels == "compiled" and not _HAS_NUMBA:
            continue
        watch = Losses()

        def fit(parts, watch=watch, kernels=kernels):
            trainer = xnn.Trainer(
                parts.model, parts.loss, parts.optimizer, [], [watch], kernels=kernels, threads=1
            )
            trainer.fit((case.x, case.y), batch_size=16, seed=2, shuffle=False, progress=False)

        _, parts = assigned_by_the_schedule(case, fit)
        values, totals = np.array(seen).T
        summed = case.name == "reduction"
        if not summed:
            assert watch.loss == pytest.approx(np.sum(values * totals) / np.sum(totals), rel=1e-4), kernels
        for (name, a), (_, b) in zip(right.model.named_state(), parts.model.named_state(), strict=True):
            np.testing.assert_allclose(
                lib.to_host(b.value), lib.to_host(a.value), rtol=2e-3, atol=1e-5, err_msg=f"{kernels} {name}"
            )
