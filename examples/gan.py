"""A generative adversarial network: a generator learns to draw points that a critic takes for real ones.

    python examples/gan.py

The real points lie on a circle of radius 1. The critic learns to tell them from the generator's points; the
generator learns from the gradient that flows back through the critic. Source: Goodfellow et al., NeurIPS 2014.
"""

import numpy as np

import xnn
from xnn import layers, losses, optimizers


def network(outputs, seed):
    """Build a network of two inputs and two hidden layers."""
    hidden = layers.Dense(2, 32), layers.LeakyReLU(), layers.Dense(32, 32), layers.LeakyReLU()
    return xnn.Sequential(*hidden, layers.Dense(32, outputs), seed=seed)


def cost_of_critic(circle, drawn):
    """The critic's loss: small if the critic tells real points from drawn ones."""
    return loss(critic(circle), real) + loss(critic(drawn), fake)


def cost_of_generator(noise):
    """The generator's loss: small if the critic takes the generator's points for real ones."""
    return loss(critic(generator(noise)), real)


def learn(model, optimizer, cost, *points):
    """Take one step of gradient descent on cost(*points) with the model's parameters."""
    parameters = model.parameters()
    gradients = xnn.grad(lambda parameters: cost(*points))(parameters)
    optimizer.step(parameters, gradients)


rng, to_device = np.random.default_rng(0), xnn.backends.current_backend().to_device
generator, critic = network(2, seed=1), network(1, seed=2)
of_generator, of_critic = (optimizers.Adam(0.002, betas=(0.5, 0.99)) for _ in range(2))
loss = losses.BinaryCrossEntropy()
real, fake = (to_device(np.full((64, 1), label, "float32")) for label in (1, 0))
with xnn.threads(1):
    for _ in range(1500):
        angle, noise = rng.uniform(0, 2 * np.pi, 64), to_device(rng.normal(size=(64, 2)), dtype="float32")
        circle = to_device(np.stack((np.cos(angle), np.sin(angle)), axis=1), dtype="float32")
        learn(critic, of_critic, cost_of_critic, circle, to_device(generator.predict(noise)))
        learn(generator, of_generator, cost_of_generator, noise)

radius = np.hypot(*generator.predict(rng.normal(size=(1000, 2))).T)
print(f"1000 points drawn: radius {radius.mean():.3f} +- {radius.std():.3f}")
