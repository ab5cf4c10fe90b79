"""Blocks: Affine, Sigmoid, ReLU and MSELoss. Each block's forward and backward are called by hand.

    python examples/blocks.py

The network learns y = sin x. Two things differ from the article. Its ReLU writes zeros into the array that it was
given; here ReLU returns a new array. Its loss is half the mean of the squared errors; here MSELoss is the mean.
"""

import numpy as np

import xnn
from xnn.layers import Affine, ReLU, Sigmoid
from xnn.losses import MSELoss
from xnn.optimizers import SGD


def main(iterations=3000, learning_rate=0.05):
    """Train. Returns the first and the last loss."""
    to_device = xnn.backends.current_backend().to_device
    x = np.linspace(-3.0, 3.0, 200)[:, None]
    x, t = to_device(x), to_device(np.sin(x))

    blocks = [
        Affine(1, 32, dtype="float64", seed=1),
        Sigmoid(),
        Affine(32, 32, dtype="float64", seed=2),
        ReLU(),
        Affine(32, 1, dtype="float64", seed=3),
    ]
    loss = MSELoss()
    optimizer = SGD(learning_rate, momentum=0.9)
    parameters = [parameter for block in blocks for parameter in block.parameters()]

    found = []
    with xnn.threads(1):
        for i in range(iterations):
            y = x
            for block in blocks:
                y = block.forward(y)
            found.append(float(loss.forward(y, t)))

            dout = loss.backward()
            for block in reversed(blocks):
                dout = block.backward(dout)

            optimizer.step(parameters)
            if i % 500 == 0:
                print(f"iteration {i}: loss {found[-1]:.6f}")
    print(f"loss {found[0]:.4f} -> {found[-1]:.6f}")
    return found[0], found[-1]


if __name__ == "__main__":
    main()
