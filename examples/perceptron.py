"""The NumPy perceptron: logistic regression by full-batch gradient descent. It tells images of 0 and 1 apart.

    python examples/perceptron.py            MNIST, or synthetic digits if there is no MNIST

The functions of the article, and what replaces them here:

    initialize_with_zeros    Dense with the initializer Zeros
    propagate                forward, BinaryCrossEntropy and backward
    optimize                 the loop, with SGD
    predict                  the sigmoid, compared with 0.5
"""

import sys

import numpy as np

import xnn
from xnn import data, initializers, layers, losses, ops, optimizers


def zero_or_one(x, y):
    """The images of 0 and 1, scaled to [0, 1], and their labels as a column, on the current backend."""
    chosen, to_device = y < 2, xnn.backends.current_backend().to_device
    return to_device(x[chosen].astype(np.float32) / 255), to_device(y[chosen, None].astype(np.float32))


def predict(neuron, x):
    """Whether each image shows a 1: the probability is above 0.5."""
    return ops.sigmoid(neuron.forward(x)) > 0.5


def accuracy(neuron, x, y):
    """The share of the images that are told apart correctly."""
    return float(np.mean(xnn.backends.current_backend().to_host(predict(neuron, x) == y)))


def main(dataset=None, iterations=2000, learning_rate=0.5):
    """Train, and print the cost every 100 iterations. Returns the costs, and training and test accuracy."""
    digits = data.load(dataset)
    x, y = zero_or_one(digits.x_train, digits.y_train)
    x_test, y_test = zero_or_one(digits.x_test, digits.y_test)
    print(f"{digits.name}: {len(x):,} training images of 0 and 1, {len(x_test):,} test images")

    neuron = layers.Dense(784, 1, weight_init=initializers.Zeros())
    loss = losses.BinaryCrossEntropy()
    optimizer = optimizers.SGD(learning_rate)
    costs = []
    with xnn.threads(1):
        for i in range(iterations):
            cost = loss.forward(neuron.forward(x), y)
            neuron.backward(loss.backward(), input_gradient=False)
            optimizer.step(neuron.parameters())
            if i % 100 == 0:
                costs.append(float(cost))
                print(f"cost after iteration {i}: {costs[-1]:.6f}")

    train_accuracy, test_accuracy = accuracy(neuron, x, y), accuracy(neuron, x_test, y_test)
    print(f"train accuracy {train_accuracy:.2%}, test accuracy {test_accuracy:.2%}")
    return costs, train_accuracy, test_accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
