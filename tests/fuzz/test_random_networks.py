"""Random networks against PyTorch: outputs, gradients, buffers, and a few steps of training."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from random_networks import close, random_network, random_samples

import xnn
from xnn import losses, optimizers

torch = pytest.importorskip("torch")
from torch_twin import Twin  # noqa: E402

# PyTorch warns that it copies the image.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

KERNELS = ["ops", "numpy"] + ["compiled"] * (importlib.util.find_spec("numba") is not None)
TOLERANCE = 1e-7


def drawn(rng):
    """A network, its twin, and samples, in float64: in float32 a normalization may magnify roundings to anything."""
    x = random_samples(rng, int(rng.integers(3, 8)), "float64")
    model = random_network(rng, x, 3, "float64")
    return model, Twin(torch, model), x


@pytest.mark.fuzz(60)
def test_outputs_and_gradients_are_pytorchs(rng):
    model, twin, x = drawn(rng)
    for training in (True, False):
        given = torch.tensor(x, requires_grad=x.dtype.kind == "f")
        y, expected = model.forward(x, training), twin(given, training)
        close(y, expected.detach(), TOLERANCE, f"outputs of {model}")
        dout = rng.normal(size=y.shape)
        for parameter in twin.parameters:
            parameter.grad = None
        expected.backward(torch.tensor(dout))
        dx = model.backward(dout)
        if given.grad is not None:
            close(dx, given.grad, TOLERANCE, f"the gradient for the input of {model}")
        for parameter, theirs in zip(model.parameters(), twin.parameters, strict=True):
            close(parameter.grad, theirs.grad, TOLERANCE, f"{parameter!r} of {model}")
    for buffer, theirs in zip(model.buffers(), twin.buffers, strict=True):
        close(buffer.value, theirs, TOLERANCE, f"{buffer!r} of {model}")


@pytest.mark.fuzz(30)
def test_training_is_pytorchs(rng):
    model, twin, x = drawn(rng)
    classes = bool(rng.integers(2))
    y = rng.integers(0, 3, len(x)) if classes else rng.normal(size=(len(x), 3))
    loss = losses.SoftmaxCrossEntropy() if classes else losses.MSE()
    kernels, momentum = str(rng.choice(KERNELS)), float(rng.choice([0.0, 0.8]))
    trainer = xnn.Trainer(model, loss, optimizers.SGD(0.05, momentum), kernels=kernels)
    trainer.fit((x, y), epochs=3, batch_size=len(x), shuffle=False, progress=False)

    rule = torch.optim.SGD(twin.parameters, 0.05, momentum)
    for _ in range(3):
        rule.zero_grad()
        outputs = twin(torch.tensor(x), True)
        theirs = torch.nn.functional.cross_entropy if classes else torch.nn.functional.mse_loss
        theirs(outputs, torch.tensor(y)).backward()
        rule.step()
    for (name, array), tensor in zip(model.named_state(), twin.tensors.values(), strict=True):
        what = f"{name} after three steps of {kernels} kernels, {model}"
        close(array.value, tensor.detach(), 10 * TOLERANCE, what)
    assert all(np.isfinite(p.value).all() for p in model.parameters())
