"""TwoLayerNet: a sigmoid network whose gradients are computed in two ways, by small differences and by autograd.

    python examples/two_layer_net.py         MNIST, or synthetic digits if there is no MNIST

The article computes `numerical_gradient` to check `gradient`, which it derives by hand. Here `gradient` is
`xnn.grad` of the same loss. In float64 the two differ by less than 1e-7.
"""

import sys

import numpy as np

import xnn
from xnn import data, ops
from xnn.backends import Purpose, Stream
from xnn.graph.check import numerical_gradient


class TwoLayerNet:
    """input - sigmoid(hidden) - softmax(output); `params` holds W1, b1, W2, b2 in float64."""

    def __init__(self, input_size, hidden_size, output_size, weight_init_std=0.01, seed=0):
        def draw(index, shape):
            return weight_init_std * Stream(seed, Purpose.WEIGHTS, index).normal(shape)

        self.params = {
            "W1": draw(0, (input_size, hidden_size)),
            "b1": np.zeros(hidden_size),
            "W2": draw(1, (hidden_size, output_size)),
            "b2": np.zeros(output_size),
        }

    def scores(self, x, W1, b1, W2, b2):
        """Compute the logits of the samples x."""
        return ops.dense(ops.sigmoid(ops.dense(x, W1, b1)), W2, b2)

    def predict(self, x):
        """The probabilities of the classes."""
        return ops.softmax(self.scores(x, **self.params))

    def loss(self, x, t):
        """Cross-entropy. t has labels, or one-hot rows as in the article."""
        return ops.softmax_cross_entropy(self.scores(x, **self.params), labels_of(t))

    def accuracy(self, x, t):
        """The fraction of samples whose most probable class is the right one."""
        return float(np.mean(self.predict(x).argmax(axis=1) == labels_of(t)))

    def numerical_gradient(self, x, t):
        """The gradients by small differences, which take two evaluations of the loss for every weight."""
        gradients = {}
        for name, value in self.params.items():

            def with_changed(changed, name=name):
                params = {**self.params, name: changed}
                return ops.softmax_cross_entropy(self.scores(x, **params), labels_of(t))

            gradients[name] = numerical_gradient(with_changed, value)
        return gradients

    def gradient(self, x, t):
        """The gradients by autograd, in one forward and one backward pass; a dict like `params`."""

        def loss(params):
            return ops.softmax_cross_entropy(self.scores(x, **params), labels_of(t))

        return xnn.grad(loss)(self.params)


def labels_of(t):
    """Return integer labels unchanged, and convert one-hot rows to labels."""
    return t.argmax(axis=1) if t.ndim == 2 else t


def main(dataset=None, iterations=1200, batch_size=100, learning_rate=0.1):
    """Compare the gradients, then train; returns the largest difference and the test accuracy."""
    digits = data.load(dataset)
    x, t = digits.x_train / 255, digits.y_train
    small = TwoLayerNet(x.shape[1], 4, 10)
    by_differences, by_autograd = small.numerical_gradient(x[:3], t[:3]), small.gradient(x[:3], t[:3])
    gaps = {name: np.abs(by_differences[name] - by_autograd[name]).max() for name in small.params}
    for name, gap in gaps.items():
        print(f"{name}: numerical and analytic gradient differ by at most {gap:.1e}")

    net = TwoLayerNet(x.shape[1], 50, 10)
    order = Stream(0, Purpose.SHUFFLE).permutation(len(x))
    with xnn.threads(1):
        for i in range(iterations):
            rows = order[np.arange(i * batch_size, (i + 1) * batch_size) % len(x)]
            gradients = net.gradient(x[rows], t[rows])
            for name in net.params:
                net.params[name] = net.params[name] - learning_rate * gradients[name]
            if (i + 1) % 300 == 0:
                print(f"iteration {i + 1}: loss {net.loss(x[rows], t[rows]):.4f}")
    accuracy = net.accuracy(digits.x_test / 255, digits.y_test)
    print(f"{digits.name}: test accuracy {accuracy:.2%}")
    return max(gaps.values()), accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
