"""Q-learning: a network learns what each move is worth on a 5 x 5 board, from random moves.

    python examples/q_network.py

A move into the lower right corner is worth 1; any other is worth 0.9 of the best move after it. So the best moves
take the shortest way to the corner. Source: Mnih et al., Nature 518 (2015).
"""

import numpy as np

import xnn
from xnn import layers, losses, optimizers

MOVES = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])


def one_hot(cells):
    """Row and column as the network sees them: 25 numbers, one of which is 1."""
    return np.eye(25, dtype="float32")[5 * cells[:, 0] + cells[:, 1]]


rng, lib = np.random.default_rng(0), xnn.backends.current_backend()
network = xnn.Sequential(layers.Dense(25, 32), layers.ReLU(), layers.Dense(32, 4), seed=0)
loss, optimizer = losses.MSE(), optimizers.Adam(0.01)
with xnn.threads(1):
    for _ in range(1000):
        cells, moves = rng.integers(5, size=(64, 2)), rng.integers(4, size=64)
        after = np.clip(cells + MOVES[moves], 0, 4)
        worth = np.where((after == 4).all(axis=1), 1, 0.9 * network.predict(one_hot(after)).max(axis=1))
        values = network.forward(lib.to_device(one_hot(cells)))
        targets = lib.to_host(values).copy()
        targets[np.arange(64), moves] = worth  # nothing was learned about the other moves
        loss.forward(values, lib.to_device(targets))
        network.backward(loss.backward())
        optimizer.step(network.parameters())

cell, path = np.array([0, 0]), [(0, 0)]
while path[-1] != (4, 4) and len(path) < 25:
    cell = np.clip(cell + MOVES[network.predict_classes(one_hot(cell[None]))[0]], 0, 4)
    path.append((int(cell[0]), int(cell[1])))
print(f"from corner to corner in {len(path) - 1} moves: {path}")
