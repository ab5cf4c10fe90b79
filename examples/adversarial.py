"""Adversarial examples and saliency: the gradient of a loss with respect to the images.

    python examples/adversarial.py

The fast gradient sign method (Goodfellow, Shlens and Szegedy, ICLR 2015) changes every pixel by the same small
amount, in the direction in which the loss grows. Saliency (Simonyan, Vedaldi and Zisserman, 2013) is the size of the
gradient of the right class's output: large where the model looks. Erasing those pixels hurts it most.
"""

import numpy as np

import xnn
from xnn import data, layers, losses, ops, optimizers

x, y = data.synthetic_digits(4000)
model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(784, 64), layers.ReLU(), layers.Dense(64, 10))
loss = losses.SoftmaxCrossEntropy()
xnn.Trainer(model, loss, optimizers.Adam(0.003)).fit((x[:3000], y[:3000]), epochs=3)


def accuracy(images):
    """The share of the test images that the model classifies correctly."""
    return (model.predict_classes(images) == labels).mean()


def gradient(function, targets):
    """The gradient of function(images, targets) with respect to the images, computed on the model's backend."""
    lib = model.backend
    return lib.to_host(xnn.grad(function)(lib.to_device(images), lib.to_device(targets)))


images, labels = x[3000:].astype("float32"), y[3000:]
slope = gradient(lambda images, labels: loss(model(images), labels), labels)
attacked = np.clip(images + 40 * np.sign(slope), 0, 255)
print(f"accuracy {accuracy(images):.1%}; after changing each pixel by 40 of 255: {accuracy(attacked):.1%}")

one_hot = np.eye(10, dtype="float32")[labels]
saliency = np.abs(gradient(lambda images, one_hot: ops.sum(model(images) * one_hot), one_hot))
salient = np.where(saliency > np.quantile(saliency, 0.9, axis=1, keepdims=True), 0, images)
others = np.where(np.random.default_rng(0).random(images.shape) > 0.9, 0, images)
print(
    f"without the most salient tenth of the pixels {accuracy(salient):.1%}, without any tenth {accuracy(others):.1%}"
)
