"""Slots share buffers: how many there are, that nothing else changes, and that a trace keeps no arrays."""

import gc
import math
import tracemalloc

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends.kernels import binding, buffers
from xnn.benchmarks import networks
from xnn.benchmarks.exactness.digest_run import train_small
from xnn.benchmarks.exactness.networks import SMALL
from xnn.data import Batches

TABLES = ["numpy", "compiled"]


@pytest.fixture(params=TABLES)
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


def separate(monkeypatch):
    """Let each slot have a buffer of its own."""

    def allocate(lib, calls, chosen, views, shares):
        buffers.allocate(lib, calls, chosen, views, False)

    monkeypatch.setattr(binding, "allocate", allocate)


def program_of(model, kernels, rows=8, rate=0.01, **options):
    """The program of a model of images (1, 28, 28) or rows of 784 numbers."""
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.SGD(rate), kernels=kernels, **options
    )
    x, y = xnn.data.synthetic_digits(rows)
    return trainer.stepper(Batches((x, y), rows)).program(rows)


def memory_of(program):
    """The bytes of all buffers of a program, each counted once, and of its slots."""
    slots = {slot for call in program.calls for slot in call.slots() if slot.fixed}
    held = {(slot.array.ctypes.data, slot.array.nbytes) for slot in slots}
    return sum(size for _, size in held), sum(slot.array.nbytes for slot in slots)


def deep(depth):
    stack = [
        part
        for n in range(depth)
        for part in (layers.Dense(784, 784), layers.Tanh() if n % 2 else layers.ReLU())
    ]
    return xnn.Sequential(layers.Rescale(1 / 255), *stack, layers.Dense(784, 10), seed=0)


def test_gradients_need_a_few_buffers_more_in_a_network_of_any_depth(kernels):
    """Each layer's output is kept for the backward pass; the gradients take turns in the same buffers."""

    def count(depth):
        slots = [slot for call in program_of(deep(depth), kernels).calls for slot in call.slots()]
        forward = {slot for slot in slots if slot.shape == (8, 784) and not slot.name.startswith("d ")}
        return len({slot.array.ctypes.data for slot in slots if slot.shape == (8, 784)}) - len(forward)

    assert count(9) <= count(2) <= 2


def test_a_small_resnet_takes_less(kernels):
    """With NumPy's kernels less so: they read both what goes into an activation and what comes out."""
    held, separately = memory_of(program_of(networks.in_xnn("resnet"), kernels))
    assert held < {"numpy": 0.75, "compiled": 0.6}[kernels] * separately


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_of_images_have_the_same_bits(monkeypatch, kernels, name):
    def trained():
        model = networks.in_xnn(name)
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), networks.optimizer(name, 0.01), ["accuracy"], kernels=kernels
        )
        x, y = xnn.data.synthetic_digits(40)
        history = trainer.fit((x, y), epochs=2, batch_size=16, progress=False)  # and batches of 8
        return history.losses_sha256, [array.value.copy() for _, array in model.named_state()]

    found = trained()
    separate(monkeypatch)
    alone = trained()
    assert found[0] == alone[0]
    assert all(map(np.array_equal, found[1], alone[1]))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_have_the_same_bits(monkeypatch, kernels, name):
    """All ops, losses and optimizers. (In exact numerics the digests are known: tests/benchmarks/test_digests.py.)"""
    found = train_small("fast", [name], kernels=kernels)
    separate(monkeypatch)
    assert train_small("fast", [name], kernels=kernels) == found


def test_what_a_callback_reads_is_not_overwritten(kernels):
    """The gradients that a callback sees after a step are those of the step, of every parameter."""
    seen = {}

    class Look(xnn.callbacks.Callback):
        needs_gradients = True

        def on_step(self, history, epoch, step, loss):
            seen.update({name: p.grad.copy() for name, p in self.model.named_parameters()})

    model = networks.in_xnn("lenet")
    x, y = xnn.data.synthetic_digits(16)
    before = [p.value.copy() for p in model.parameters()]
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.5), callbacks=[Look()], kernels=kernels
    )
    trainer.fit((x, y), epochs=1, batch_size=16, progress=False)
    for old, (name, p) in zip(before, model.named_parameters(), strict=True):
        np.testing.assert_allclose(p.value, old - 0.5 * seen[name], rtol=1e-5, atol=1e-6)


def test_a_user_s_op_keeps_what_it_read(kernels):
    """An op without a kernel may keep its input for its backward, or return a view of it."""

    class Half(xnn.Op):
        name = "half"

        def forward(self, xp, x):
            return x[:, ::2], x

        def backward(self, xp, grad, x):
            d = xp.zeros_like(x)
            d[:, ::2] = grad * x[:, ::2] / x[:, ::2]
            return (d,)

    half = Half()

    class Halved(layers.Layer):
        def compute(self, x):
            return half(x)

    def trained(name):
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(784, 64), layers.Sigmoid(), Halved(), layers.Dense(32, 32),
            layers.Sigmoid(), layers.Dense(32, 10), seed=3,
        )  # fmt: skip
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=name)
        trainer.fit(xnn.data.synthetic_digits(64), epochs=2, batch_size=16, progress=False)
        return [p.value for p in model.parameters()]

    for own, wanted in zip(trained(kernels), trained("ops"), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)


def test_a_trace_keeps_no_arrays(kernels):
    """Neither what the batch became nor the windows of convolutions that an op's backward would need."""
    gc.collect()
    before = {id(found) for found in gc.get_objects() if type(found).__name__ == "Value"}
    program = program_of(networks.in_xnn("lenet"), kernels)
    assert program.calls
    for found in gc.get_objects():
        if type(found).__name__ == "Value" and id(found) not in before:
            assert found.saved is None


@pytest.mark.sampled(8)
def test_peak_of_a_fit(kernels):
    """No more than buffers, parameters and a few images more: not the trace's arrays beside them."""
    model = networks.in_xnn("resnet")
    x, y = xnn.data.synthetic_digits(128)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.01), kernels=kernels)
    stepper = trainer.stepper(Batches((x, y), 128))
    held, _ = memory_of(stepper.program(128))
    windows = 128 * math.prod((16, 28, 28)) * 9 * 4  # of the largest convolution, in the trace
    tracemalloc.start()
    try:
        other = trainer.stepper(Batches((x, y), 128))
        other.program(128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * held + 3 * windows
