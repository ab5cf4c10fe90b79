"""What of the library is captured in CUDA graphs, and by which means: each layer, loss, metric, optimizer and op.

A new name must be given a case here. A case that runs call by call, or without kernels of its own, is listed with the
reason.
"""

from typing import ClassVar

import numpy as np
import pytest
from test_cuda_programs import CLASSES, FEATURES, ByHand, check_same, pytestmark, train
from test_cuda_programs import X as ALL_X
from test_cuda_programs import Y as ALL_Y

import xnn
from xnn import layers, losses, metrics, ops, optimizers, schedules
from xnn.backends import Purpose, backend_of
from xnn.training import program as programs
from xnn.training import steps

__all__ = ["pytestmark"]

BATCH, ROWS = 30, 60
X, Y = ALL_X[:ROWS], ALL_Y[:ROWS]
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
    "Buffer", "Composite", "Container", "Layer", "Parameter", "Sequential", "augmentation", "Dense", "Flatten",
    "Reshape",
}  # fmt: skip

LOSSES = {
    "SoftmaxCrossEntropy": (losses.SoftmaxCrossEntropy, Y),
    "SoftmaxCrossEntropy, class weights": (
        lambda **o: losses.SoftmaxCrossEntropy(class_weight=[1, 2, 3, 4, 0.5], **o), Y
    ),
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
        for reduction, weighted in [
            ("mean", False),
            ("mean", True),
            ("sum", False),
            ("sum_over_batch_size", True),
        ]
        if name != "Lambda" or (reduction, weighted) == ("mean", False)
    },
    **{f"optimizer {name}": {"optimizer": optimizer} for name, optimizer in OPTIMIZERS.items()},
    **{
        f"metric {name}": {"data": (REAL, targets), "metrics": [name]}
        | ({} if targets is Y else {"loss": losses.MSE})
        for name, targets in METRICS.items()
    },
}


def unary(name):
    """A case with this op, of an input x (n, 12) with positive numbers y of the same shape."""
    calls = {
        "where": lambda x, y: ops.where(ops.less(x, y), x, y), "clip": lambda x, y: ops.clip(x, -0.5, 0.5),
        "concat": lambda x, y: ops.concat((x, y), 1)[:, 6:18],
        "stack": lambda x, y: ops.mean(ops.stack((x, y)), axis=0),
        "reshape": lambda x, y: ops.reshape(ops.reshape(x, (-1, 3, 4)), (-1, 12)),
        "transpose": lambda x, y: ops.transpose(ops.transpose(x)),
        "getitem": lambda x, y: ops.concat((x[:, 3:], x[:, :3]), 1),
        "matmul": lambda x, y: ops.matmul(ops.matmul(x, ops.transpose(y)), y) / 100.0,
        "pow": lambda x, y: ops.pow(y, x),
        "sum": lambda x, y: x / ops.sum(y, axis=1, keepdims=True), "mean": lambda x, y: x - ops.mean(x, axis=0),
        "var": lambda x, y: x * ops.var(y, axis=1, keepdims=True),
        "l2_penalty": lambda x, y: x / ops.l2_penalty(y, strength=0.1),
        "max": lambda x, y: x - ops.max(x, axis=1, keepdims=True),
        "min": lambda x, y: x - ops.min(x, axis=0), "stop_gradient": lambda x, y: x * ops.stop_gradient(y),
        "rescale": lambda x, y: ops.rescale(x, scale=0.5, offset=1.0),
        "sqrt": lambda x, y: ops.sqrt(y), "log": lambda x, y: ops.log(y), "log1p": lambda x, y: ops.log1p(y),
    }  # fmt: skip
    if name in calls:
        return calls[name]
    op = getattr(ops, name)
    if name in ("add", "sub", "mul", "div", "maximum", "minimum"):
        return op
    if name in FLAT:
        return lambda x, y: ops.where(op(x, y), x, y)
    return lambda x, y: op(x)


FLAT = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}
#: Ops that are in cases above, or are not for a layer in the middle of a network.
NO_OPS = {
    "Array", "LossOp", "Namespace", "Op", "updates", "avg_pool2d", "max_pool2d", "conv2d", "dense", "dropout", "warp",
    "embedding", "moments", "normalize", "binary_cross_entropy", "column_mse", "focal", "hinge", "huber",
    "kl_divergence", "l1", "mse", "softmax_cross_entropy",
}  # fmt: skip


def with_op(call):
    return lambda: layers.Lambda(lambda x: call(x, ops.sigmoid(x) + 0.5))


class Turned(layers.Layer):
    """Takes the columns in another order."""

    def compute(self, x):
        return ops.take(x, backend_of(x.array).to_device(np.arange(12)[::-1].copy()), axis=1)


MODELS["take"] = dense(Turned)
CASES["op take"] = {"make": MODELS["take"]}
CASES |= {
    f"op {name}": {"make": dense(with_op(unary(name)))}
    for name in ops.__all__
    if name not in (*NO_OPS, "take")
}
#: Calls that no graph can hold, with the reason. Steps with them run call by call.
EAGER = {
    "layer Drawing": ("draw", "a `draw` of the user's may use the host's counters"),
    "layer Layer by hand": ("ByHand", "a forward and a backward written by hand may do anything"),
    "op take": ("take", "its gradient asks the GPU how often an index comes"),
}
#: Ops and rules without a kernel in some case. Graphs record what they ask of CuPy: more launches, equal numbers.
BY_ARRAYS = {
    "abs", "cos", "clip", "erf", "exp", "expm1", "log", "log1p", "sin", "sign", "sqrt", "sub", "mul", "div", "pow",
    "maximum", "minimum", "where", "less", "lessequal", "greater", "greaterequal", "equal", "notequal",
    "stopgradient", "l2_penalty",
    "rescale", "concat", "stack", "getitem", "transpose", "matmul", "sum", "max", "min", "var", "take",
    "add",  # of a number, or of arrays of two shapes
    "softmaxcrossentropy",  # of probabilities
    "focal", "kldivergence", "confusion", "moments", "absolute_error", "squared_error",
    "count",  # accuracy of yes or no, precision, recall, f1, top-k
    "accuracy",  # of probabilities
    "draw", "ByHand",
}  # fmt: skip


class Made(programs.Program):
    """Programs that are kept."""

    made: ClassVar[list] = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made.append(self)


def fit(monkeypatch, name, case):
    """Train the case on a backend. Returns the result of `train` and the programs."""
    monkeypatch.setattr(steps, "Program", Made)
    Made.made = []
    data = (X if "Embedding" in name else REAL), Y
    options = {
        "make": dense(layers.ReLU),
        "data": data,
        "optimizer": lambda: optimizers.SGD(1e-3 if "sum," in f"{name}," else 0.03),
    } | case
    options["loss"] = options["loss"]() if "loss" in options else None
    here = train("numpy", batch_size=BATCH, **options)
    Made.made = []
    return here, train("cupy", batch_size=BATCH, **options), Made.made


@pytest.mark.parametrize("name", CASES)
def test_it_is_captured_with_the_numbers_of_the_cpu_or_listed(monkeypatch, capsys, name):
    """The second and third epoch are one graph, launched twice, on other batches than those of its capture."""
    here, there, (program,) = fit(monkeypatch, name, CASES[name])
    check_same(there, here)
    call, _ = EAGER.get(name, (None, ""))
    assert {found.name for found in program.eager} == ({call} - {None})
    assert {found.name for found in program.by_ops} <= BY_ARRAYS
    assert ("no CUDA graph can hold" in capsys.readouterr().err) == (call is not None)


OF_LABELS = [
    name for name in LOSSES if name.startswith("SoftmaxCrossEntropy") and "probabilities" not in name
]
OF_NUMBERS = ["BinaryCrossEntropy", "BinaryCrossEntropy, pos_weight", "MSE", "L1", "Huber", "Hinge"]


@pytest.mark.parametrize("loss", [*OF_LABELS, *OF_NUMBERS])
def test_weights_and_reductions_have_kernels(monkeypatch, loss):
    """One launch more than the plain loss where the divisor depends on the batch."""
    for ending in (", mean", ", mean, weighted", ", sum", ", sum_over_batch_size, weighted"):
        name = f"loss {loss}{ending}"
        _, _, (program,) = fit(monkeypatch, name, CASES[name] | {"epochs": 1, "metrics": []})
        assert not program.by_ops
        assert len(program._steps) <= 11


def test_every_name_has_a_case():
    kinds = {
        "layer": (layers, NO_LAYERS), "loss": (losses, NO_LOSSES), "optimizer": (optimizers, NO_OPTIMIZERS),
        "op": (ops, NO_OPS),
    }  # fmt: skip
    for kind, (module, left_out) in kinds.items():
        named = {
            name.removeprefix(f"{kind} ").partition(",")[0] for name in CASES if name.startswith(f"{kind} ")
        }
        assert set(module.__all__) <= named | left_out, kind
        assert left_out <= set(module.__all__), kind
    assert set(metrics.named._NAMED) <= {
        name.removeprefix("metric ").replace("top2", "top5") for name in CASES
    }
    assert set(EAGER) <= set(CASES)
