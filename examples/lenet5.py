"""LeNet-5 on MNIST: two convolutions with pooling and three Dense layers. Over 99 % of the test images are right.

    python examples/lenet5.py               12 epochs, about two minutes on two cores
    XNN_BACKEND=cupy python examples/lenet5.py
    mpiexec -n 2 python examples/lenet5.py                        two processes, each with half of every batch

Source: LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86 (1998). In place of tanh, subsampling and Gaussian
connections this one has ReLU, max-pooling and softmax cross-entropy, and batch normalization is added.
"""

import sys

import xnn
from xnn import data, layers, losses, optimizers, schedules


def lenet5(classes=10, seed=0):
    """Build the model: rows of 784 bytes in, one logit for each class out."""
    return xnn.Sequential(
        layers.Rescale(1 / 255),
        layers.Reshape((1, 28, 28)),
        layers.Conv2D(1, 6, 5, padding=2),
        layers.BatchNorm(6),
        layers.ReLU(),
        layers.MaxPool2D(2),
        layers.Conv2D(6, 16, 5),
        layers.BatchNorm(16),
        layers.ReLU(),
        layers.MaxPool2D(2),
        layers.Flatten(),
        layers.Dense(400, 120),
        layers.ReLU(),
        layers.Dense(120, 84),
        layers.ReLU(),
        layers.Dense(84, classes),
        seed=seed,
    )


def main(dataset=None, epochs=12, seed=0, progress=True):
    """Train; returns the accuracy on the test images."""
    digits = data.load(dataset)
    x_train, y_train, x_val, y_val, x_test, y_test = digits
    model = lenet5(digits.classes, seed)
    steps = epochs * -(-len(x_train) // 64)
    optimizer = optimizers.Adam(schedules.OneCycle(0.004, steps))
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, workers="auto")
    if trainer.rank == 0:
        print(model.summary((784,)))
    trainer.fit(
        (x_train, y_train),
        validation=(x_val, y_val),
        epochs=epochs,
        batch_size=64,
        seed=seed,
        progress=progress,
    )
    accuracy = trainer.evaluate((x_test, y_test))["accuracy"]
    if trainer.rank == 0:
        print(f"{digits.name}: test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
