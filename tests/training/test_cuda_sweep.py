"""What of the library is captured in CUDA graphs, and by which means: each layer, loss, metric, optimizer and op.

A new name must be given a case here. A case that runs call by call, or without kernels of its own, is listed with the
reason.
"""

import numpy as np
import pytest
from test_cuda_programs import CLASSES, FEATURES, ROWS, X, Y, check_same, pytestmark, stepper_of, train

import xnn
from xnn import layers, losses, metrics, ops, optimizers, schedules
from xnn.backends import Purpose, get_backend
from xnn.training import program as programs
from xnn.training import steps

__all__ = ["pytestmark"]

BATCH = 50
REAL = (X / 255.0).astype(np.float32)
TARGETS = np.cos(np.arange(ROWS * CLASSES)).astype(np.float32).reshape(ROWS, CLASSES)
SHARES = np.abs(TARGETS) / np.abs(TARGETS).sum(axis=1, keepdims=True)
YES = (TARGETS > 0).astype(np.float32)
WEIGHTS = np.linspace(0.1, 2.0, ROWS).astype(np.float32)


def dense(*between, width=12, last=CLASSES, first=FEATURES):
    """Two dense layers with others between them."""
    return lambda: xnn.Sequential(
        layers.Dense(first, 12), *(make() for make in between), layers.Dense(width, last), seed=3
    )


def image(*between, features):
    return lambda: xnn.Sequential(
        layers.Reshape((1, 4, 5)), *(make() for make in between), layers.Flatten(),
        layers.Dense(features, CLASSES), seed=1,
    )  # fmt: skip


class Scaled(layers.Layer):
    """A user's layer: broadcast arithmetic with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.gain = layers.Parameter("gain", (12,), xnn.initializers.Ones())

    def compute(self, x):
        return ops.sigmoid(x * self.gain) * x - x / 2.0


class Noise(layers.Drawing):
    """A user's layer that draws random numbers by array operations."""

    op = ops.add
    purpose = Purpose.DROPOUT

    def draw(self, lib, stream, x):
        return lib.xp.zeros(x.shape, dtype=x.dtype)


class ByHand(layers.Layer):
    def forward(self, x, training=False):
        return 2.0 * x

    def backward(self, dout, input_gradient=True):
        return 2.0 * dout


def frozen():
    model = dense()()
    model.layers[0].weight.frozen = True
    return model


class Residual(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(12, 12)

    def compute(self, x):
        return x + self.inner(ops.relu(x))


class Attention(layers.Layer):
    """Products of arrays with three axes, and a softmax."""

    def compute(self, x):
        x = ops.reshape(x, (-1, 3, 4))
        scores = ops.softmax(ops.matmul(x, ops.transpose(x, (0, 2, 1))), axis=2)
        return ops.flatten(ops.matmul(scores, x))


MODELS = {
    "ELU": dense(layers.ELU), "GELU": dense(layers.GELU), "SELU": dense(layers.SELU), "ReLU": dense(layers.ReLU),
    "SiLU": dense(layers.SiLU), "Sigmoid": dense(layers.Sigmoid), "Softplus": dense(layers.Softplus),
    "Tanh": dense(layers.Tanh), "LeakyReLU": dense(layers.LeakyReLU), "Softmax": dense(layers.Softmax),
    "LogSoftmax": dense(layers.LogSoftmax), "Identity": dense(layers.Identity), "Dropout": dense(layers.Dropout),
    "Add": dense(lambda: layers.Add(layers.Dense(12, 12), layers.Identity())),
    "Parallel": dense(lambda: layers.Parallel(layers.Dense(12, 5), layers.Identity()), width=17),
    "Affine": dense(lambda: layers.Affine(12, 12)), "Linear": dense(lambda: layers.Linear(12, 12)),
    "Rescale": dense(lambda: layers.Rescale(0.5, 0.25)),
    "Function": dense(lambda: layers.Function(ops.tanh)),
    "Lambda": dense(lambda: layers.Lambda(lambda x: ops.maximum(x, 0.1 * x))),
    "BatchNorm": dense(lambda: layers.BatchNorm(12)), "LayerNorm": dense(lambda: layers.LayerNorm(12)),
    "LayerNorm of images": image(lambda: layers.LayerNorm((1, 4, 5)), features=20),
    "BatchNorm of images": image(lambda: layers.BatchNorm(1), features=20),
    "Conv2D": image(lambda: layers.Conv2D(1, 2, 3, padding=1), features=40),
    "Conv2D with stride and dilation": image(
        lambda: layers.Conv2D(1, 2, 2, stride=(2, 1), dilation=(1, 2)), features=12
    ),
    "MaxPool2D": image(lambda: layers.MaxPool2D(2), features=4),
    "AvgPool2D": image(lambda: layers.AvgPool2D(2), features=4),
    "GlobalAvgPool": lambda: xnn.Sequential(
        layers.Reshape((1, 4, 5)), layers.Conv2D(1, CLASSES, 2), layers.GlobalAvgPool(), seed=1
    ),
    "Embedding": lambda: xnn.Sequential(
        layers.Embedding(256, 6), layers.Flatten(), layers.Dense(6 * FEATURES, CLASSES), seed=2
    ),
    "RandomAffine": image(lambda: layers.RandomAffine(1.0, 10.0, 0.1), features=20),
    "ElasticDeformation": image(lambda: layers.ElasticDeformation(2.0, 1.0), features=20),
    "Drawing": dense(Noise), "Layer by hand": dense(ByHand), "Layer with a parameter": dense(Scaled),
    "frozen parameter": frozen, "residual": dense(Residual), "attention": dense(Attention),
}  # fmt: skip
#: Layers that are the base of others, or hold others, and layers' parts.
NO_LAYERS = {
    "Buffer", "Composite", "Container", "Layer", "Parameter", "Sequential", "augmentation", "Dense", "Flatten", "Reshape"
}  # fmt: skip

LOSSES = {
    "SoftmaxCrossEntropy": (losses.SoftmaxCrossEntropy, Y),
    "SoftmaxCrossEntropy, class weights": (lambda **o: losses.SoftmaxCrossEntropy(class_weight=[1, 2, 3, 4, 0.5], **o), Y),
    "SoftmaxCrossEntropy, smoothing": (lambda **o: losses.SoftmaxCrossEntropy(label_smoothing=0.1, **o), Y),
    "SoftmaxCrossEntropy, all": (
        lambda **o: losses.SoftmaxCrossEntropy(0.1, class_weight=[1, 2, 3, 4, 0.5], ignore_index=2, **o), Y
    ),
    "SoftmaxCrossEntropy, ignored label": (lambda **o: losses.SoftmaxCrossEntropy(ignore_index=2, **o), Y),
    "SoftmaxCrossEntropy, probabilities": (losses.SoftmaxCrossEntropy, SHARES),
    "BinaryCrossEntropy": (losses.BinaryCrossEntropy, YES),
    "BinaryCrossEntropy, pos_weight": (lambda **o: losses.BinaryCrossEntropy([1, 2, 3, 4, 5], **o), YES),
    "Focal": (losses.Focal, YES),
    "KLDivergence": (losses.KLDivergence, SHARES),
    "MSE": (losses.MSE, TARGETS), "L1": (losses.L1, TARGETS), "Huber": (lambda **o: losses.Huber(0.5, **o), TARGETS),
    "Hinge": (losses.Hinge, np.sign(TARGETS)),
    "Lambda": (lambda **o: losses.Lambda(lambda y, t: ops.mean(ops.abs(y - t))), TARGETS),
}  # fmt: skip
NO_LOSSES = {"Loss", "LossOverBatches", "MSELoss", "check_sample_weight"}

OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.1),
    "SGD, schedule": lambda: optimizers.SGD(schedules.Cosine(0.2, 320)),
    "SGD, momentum": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay={"weight": 0.01}),
    "SGD, clipped and averaged": lambda: optimizers.SGD(0.05, clip_norm=1.0, clip_value=0.1, average=0.9),
    "AdaDelta": optimizers.AdaDelta, "AdaGrad": optimizers.AdaGrad, "Adam": optimizers.Adam,
    "Adam, amsgrad": lambda: optimizers.Adam(amsgrad=True),
    "AdamW": lambda: optimizers.AdamW(clip_norm=1.0, average=0.9), "Lion": optimizers.Lion, "Nadam": optimizers.Nadam,
    "RMSProp": lambda: optimizers.RMSProp(0.002, centered=True, momentum=0.5),
}  # fmt: skip
NO_OPTIMIZERS = {"Optimizer", "State", "WeightDecay", "LBFGS"}  # LBFGS takes whole passes, not steps

METRICS = {
    "accuracy": Y, "top2": Y, "precision": Y, "recall": Y, "f1": Y, "confusion_matrix": Y, "mae": TARGETS,
    "mse": TARGETS, "rmse": TARGETS, "r2": TARGETS,
}  # fmt: skip

CASES = {
    **{f"layer {name}": {"make": make} for name, make in MODELS.items()},
    **{
        f"loss {name}, {reduction}{', weighted' * weighted}": {
            "make": dense(*[layers.LogSoftmax] * (name == "KLDivergence"), width=12),
            "loss": lambda loss=loss, reduction=reduction: loss(reduction=reduction),
            "data": (REAL, targets),
        }
        | ({"sample_weight": WEIGHTS} if weighted else {})
        for name, (loss, targets) in LOSSES.items()
        for reduction in ("mean", "sum", "sum_over_batch_size")
        for weighted in (False, True)
        if name != "Lambda" or (reduction, weighted) == ("mean", False)
    },
    **{f"optimizer {name}": {"optimizer": optimizer} for name, optimizer in OPTIMIZERS.items()},
    **{
        f"metric {name}": {"data": (REAL, targets), "metrics": [name]}
        | ({} if targets is Y else {"loss": losses.MSE})
        for name, targets in METRICS.items()
    },
}



class Recorded(programs.Program):
    """Programs that are kept."""

    made: list = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made.append(self)


def fit(monkeypatch, name, case):
    """Train the case on a backend. Returns the result of `train` and the programs."""
    monkeypatch.setattr(steps, "Program", Recorded)
    Recorded.made = []
    data = (X if "Embedding" in name else REAL), Y
    options = {"make": dense(layers.ReLU), "data": data, "optimizer": lambda: optimizers.SGD(1e-3 if "sum," in f"{name}," else 0.03)} | case
    options["loss"] = options["loss"]() if "loss" in options else None
    here = train("numpy", batch_size=BATCH, **options)
    Recorded.made = []
    return here, train("cupy", batch_size=BATCH, **options), Recorded.made


if __name__ == "__main__":
    import time
    mp = pytest.MonkeyPatch()
    import sys
    for name, case in CASES.items():
        if not any(a in name for a in sys.argv[1:] or [""]): continue
        s = time.time()
        try:
            here, there, made = fit(mp, name, case)
            check_same(there, here)
        except Exception as e:
            if len(sys.argv) > 1: raise
            print(name, "FAILED", type(e), str(e)[:300], flush=True); continue
        print(f"{name}: {time.time() - s:.2f}", len(made[0]._steps), sorted(c.name for c in made[0].by_ops), sorted(c.name for c in made[0].eager), flush=True)
