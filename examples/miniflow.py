"""MiniFlow: the scripts of the article. Only the import differs: `from xnn.graph import ...`.

    XNN_DATA_HOME=... python examples/miniflow.py

The last script learns Boston housing prices. That data set has a variable computed from the share of Black
residents (`b`), and scikit-learn removed the data set for that reason. It is used here only to compare with the
article.
"""

import numpy as np

from xnn import data
from xnn.backends import Purpose, Stream
from xnn.errors import DataNotFoundError
from xnn.graph import (
    MSE,
    Input,
    Linear,
    Mul,
    Sigmoid,
    forward_and_backward,
    forward_pass,
    sgd_update,
    topological_sort,
)


def multiply():
    """4 * 5 * 10, computed by one node with three inputs."""
    x, y, z = Input(), Input(), Input()
    f = Mul(x, y, z)
    feed_dict = {x: 4, y: 5, z: 10}
    graph = topological_sort(feed_dict)
    output = forward_pass(f, graph)
    print(f"{feed_dict[x]} * {feed_dict[y]} * {feed_dict[z]} = {output} (according to miniflow)")
    return output


def linear():
    """One neuron: 6 * 0.5 + 20 * 0.25 + 4 * 1.5 + 2."""
    inputs, weights, bias = Input(), Input(), Input()
    f = Linear(inputs, weights, bias)
    feed_dict = {inputs: [6, 20, 4], weights: [0.5, 0.25, 1.5], bias: 2}
    graph = topological_sort(feed_dict)
    output = forward_pass(f, graph)
    print(f"linear node: {output}")
    return output


def gradients():
    """The gradients of MSE(y, sigmoid(X W + b)) with respect to X, W, b and y."""
    X, W, b, y = Input(), Input(), Input(), Input()
    f = Linear(X, W, b)
    a = Sigmoid(f)
    cost = MSE(y, a)
    feed_dict = {
        X: np.array([[-1.0, -2.0], [-1.0, -2.0]]),
        y: np.array([1, 2]),
        W: np.array([[2.0], [3.0]]),
        b: np.array([-3.0]),
    }
    graph = topological_sort(feed_dict)
    forward_and_backward(graph)
    found = [t.gradients[t] for t in [X, y, W, b]]
    print(f"cost {cost.value}, gradients of X, y, W, b:", *found, sep="\n")
    return found


def boston(epochs=10, batch_size=11, seed=0):
    """Train 13-10-1 on standardized features; returns the mean loss of each epoch."""
    parts = data.load("boston")
    X_ = np.concatenate([parts.x_train, parts.x_val, parts.x_test])
    y_ = np.concatenate([parts.y_train, parts.y_val, parts.y_test])[:, 0]
    X_ = (X_ - np.mean(X_, axis=0)) / np.std(X_, axis=0)

    n_features, n_hidden = X_.shape[1], 10
    W1_ = Stream(seed, Purpose.WEIGHTS, 0).normal((n_features, n_hidden))
    b1_ = np.zeros(n_hidden)
    W2_ = Stream(seed, Purpose.WEIGHTS, 1).normal((n_hidden, 1))
    b2_ = np.zeros(1)

    X, y = Input(), Input()
    W1, b1 = Input(), Input()
    W2, b2 = Input(), Input()
    l1 = Linear(X, W1, b1)
    s1 = Sigmoid(l1)
    l2 = Linear(s1, W2, b2)
    cost = MSE(y, l2)
    graph = topological_sort({X: X_, y: y_, W1: W1_, b1: b1_, W2: W2_, b2: b2_})
    trainables = [W1, b1, W2, b2]

    losses = []
    for epoch in range(epochs):
        order = Stream(seed, Purpose.SHUFFLE, 0, epoch).permutation(len(X_))
        batches = [order[i : i + batch_size] for i in range(0, len(X_), batch_size)]
        loss = 0.0
        for rows in batches:
            X.value, y.value = X_[rows], y_[rows]
            forward_and_backward(graph)
            sgd_update(trainables, learning_rate=0.01)
            loss += cost.value
        losses.append(float(loss / len(batches)))
        print(f"epoch {epoch + 1}, loss {losses[-1]:.3f}")
    return losses


def main():
    """Run all four scripts."""
    multiply()
    linear()
    gradients()
    try:
        boston()
    except DataNotFoundError as error:
        print(f"skipping the last script: {error}")


if __name__ == "__main__":
    main()
