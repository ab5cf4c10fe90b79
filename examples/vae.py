"""A variational autoencoder: images of digits become eight numbers with noise, and images again.

    python examples/vae.py

The noise is drawn by the layer: it depends on nothing but the seed and the step, so a second run draws the same.
The loss is a plain function of the layer's output. Source: Kingma and Welling, ICLR 2014.
"""

import numpy as np

import xnn
from xnn import data, layers, ops, optimizers


class VAE(layers.Drawing):
    """The autoencoder. Its output holds mean and log deviation of the code, then the logits of the pixels."""

    def __init__(self):
        super().__init__()
        self.encoder = xnn.Sequential(layers.Dense(784, 128), layers.ReLU(), layers.Dense(128, 16))
        self.decoder = xnn.Sequential(layers.Dense(8, 128), layers.ReLU(), layers.Dense(128, 784))

    def draw(self, lib, stream, mean):
        """Noise for a batch of codes."""
        return lib.to_device(stream.normal(mean.shape), dtype="float32")

    def compute(self, images, training):
        """Encode, add noise in training, decode."""
        code = self.encoder(images)
        mean, log_deviation = code[:, :8], code[:, 8:]
        sample = mean + ops.exp(log_deviation) * self.drawn(mean) if training else mean
        return ops.concat((code, self.decoder(sample)), axis=1)


def negative_elbo(outputs, images):
    """The loss: the pixels' cross-entropy, plus the codes' divergence from a standard normal distribution."""
    mean, log_deviation, logits = outputs[:, :8], outputs[:, 8:16], outputs[:, 16:]
    divergence = ops.sum(mean**2 + ops.exp(2.0 * log_deviation) - 2.0 * log_deviation - 1.0) / 2.0
    return (ops.binary_cross_entropy(logits, images, reduction="sum") + divergence) / len(images)


x = data.synthetic_digits(3000)[0] / np.float32(255)
vae = VAE()
trainer = xnn.Trainer(xnn.Sequential(vae, seed=0), negative_elbo, optimizers.Adam(0.002))
history = trainer.fit((x, x), epochs=6)
drawn = vae.decoder.predict(np.random.default_rng(0).normal(size=(100, 8))) > 0
print(f"loss {history['loss'][0]:.0f} -> {history['loss'][-1]:.0f}")
print(f"{x.mean():.1%} of a digit's pixels are ink, and {drawn.mean():.1%} of a drawn one's")
