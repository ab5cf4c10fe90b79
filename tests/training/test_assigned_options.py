"""Every numeric option of every optimizer, layer and loss, assigned by a callback, counts from the next step.

So do the arrays that they hold. The same steps by hand are the measure.
"""

import inspect

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.callbacks import Callback

R = np.random.default_rng(3)
X = R.normal(size=(80, 4)).astype(np.float32)
PICTURES = R.normal(size=(80, 1, 8, 8)).astype(np.float32)
LABELS = R.integers(0, 3, size=80)
SHARES = np.abs(X[:, :3]) / np.abs(X[:, :3]).sum(axis=1, keepdims=True)
AT = 3


def dense(outputs=3):
    return layers.Dense(4, 4), layers.Tanh(), layers.Dense(4, outputs)


def around(*inner, outputs=3):
    """A model of which the layers in the middle are tried."""
    return lambda: xnn.Sequential(layers.Dense(4, 4), *inner, layers.Dense(4, outputs), seed=1)


def put(place, **options):
    def change(trainer):
        thing = place(trainer)
        for name, value in options.items():
            setattr(thing, name, value)

    return change


def middle(trainer):
    return trainer.model.layers[1]


def optimizer(trainer):
    return trainer.optimizer


def loss_of(trainer):
    return trainer.loss


class Case:
    """A model, a loss, an optimizer, targets, and what is assigned after the third step."""

    def __init__(self, name, change, model=None, loss=losses.MSE, rule=None, y=X[:, :3], x=X):
        self.name, self.change, self.loss, self.y, self.x = name, change, loss, y, x
        self.model = model or (lambda: xnn.Sequential(*dense(), seed=1))
        self.rule = rule or (lambda: optimizers.SGD(0.05))

    def __repr__(self):
        return self.name


RULES = {
    "SGD": (lambda: optimizers.SGD(0.05, momentum=0.8), {"momentum": 0.1, "nesterov": True}),
    "SGD plain": (lambda: optimizers.SGD(0.05), {"momentum": 0.9}),
    "SGD slow": (lambda: optimizers.SGD(0.05, momentum=0.8), {"momentum": 0.0}),
    "AdaGrad": (lambda: optimizers.AdaGrad(0.05), {"epsilon": 0.3}),
    "RMSProp": (
        lambda: optimizers.RMSProp(0.01),
        {"alpha": 0.5, "epsilon": 0.2, "momentum": 0.7, "centered": True},
    ),
    "AdaDelta": (lambda: optimizers.AdaDelta(), {"rho": 0.5, "epsilon": 0.1}),
    "Adam": (
        lambda: optimizers.Adam(0.01),
        {"beta1": 0.5, "beta2": 0.6, "betas": (0.3, 0.4), "epsilon": 0.2, "amsgrad": True},
    ),
    "AdamW": (lambda: optimizers.AdamW(0.01), {"beta1": 0.5, "beta2": 0.6, "epsilon": 0.2, "amsgrad": True}),
    "Nadam": (
        lambda: optimizers.Nadam(0.01),
        {"beta1": 0.5, "beta2": 0.6, "epsilon": 0.2, "momentum_decay": 0.9},
    ),
    "Lion": (lambda: optimizers.Lion(0.01), {"beta1": 0.5, "beta2": 0.6}),
}
COMMON = {
    "learning_rate": 0.2,
    "weight_decay": 0.3,
    "clip_norm": 0.01,
    "clip_value": 0.01,
    "average": 0.5,
}
CASES = [
    Case(f"{name}.{option}", put(optimizer, **{option: value}), rule=build)
    for name, (build, own) in RULES.items()
    for option, value in {**own, **COMMON}.items()
]
CASES += [
    Case("schedule", put(optimizer, learning_rate=lambda step: 0.3 / (1 + step))),
    Case("decay by name", put(optimizer, weight_decay={"weight": 0.5})),
    Case("decay by function", put(optimizer, weight_decay=lambda p: 0.5 * len(p.shape))),
    Case("several", put(optimizer, clip_norm=0.1, average=0.7, momentum=0.5, weight_decay=0.1)),
    Case("no clipping", put(optimizer, clip_norm=None), rule=lambda: optimizers.SGD(0.05, clip_norm=0.01)),
    Case("steps", put(optimizer, steps=40), rule=lambda: optimizers.SGD(lambda step: 0.1 / (1 + step))),
]
CASES += [
    Case(
        f"Rescale.{option}{' ' * bool(np.ndim(value))}{'bytes' * (kind == 'uint8')}",
        put(lambda t: t.model.layers[0], **{option: value}),
        model=lambda: xnn.Sequential(layers.Rescale(0.5, 0.25), layers.Dense(4, 3), seed=1),
        x=(10.0 * np.abs(X)).astype(kind),
    )
    for option in ("scale", "offset")
    for value in (0.1, np.array([1.0, 2.0, 0.5, 0.1]))
    for kind in ("uint8", "float32")
]
LAYERS = {
    "Dropout": (layers.Dropout, (0.5,), {"rate": 0.9}),
    "Dropout off": (layers.Dropout, (0.5,), {"rate": 0.0}),
    "BatchNorm": (layers.BatchNorm, (4,), {"epsilon": 0.5, "momentum": 0.7}),
    "LayerNorm": (layers.LayerNorm, (4,), {"epsilon": 0.5}),
    "ELU": (layers.ELU, (), {"alpha": 0.3}),
    "LeakyReLU": (layers.LeakyReLU, (), {"negative_slope": 0.4}),
    "Softplus": (layers.Softplus, (), {"beta": 3.0}),
    "GELU": (layers.GELU, (), {"approximate": "tanh"}),
    "Softmax": (layers.Softmax, (), {"axis": 0}),
    "LogSoftmax": (layers.LogSoftmax, (), {"axis": 0}),
}
CASES += [
    Case(f"{name}.{option}", put(middle, **{option: value}), model=lambda k=kind, a=args: around(k(*a))())
    for name, (kind, args, options) in LAYERS.items()
    for option, value in options.items()
]
CASES += [
    *(
        Case(
            f"{kind.__name__}.{option}",
            put(lambda t: t.model.layers[0], **{option: value}),
            model=lambda kind=kind, first=first: xnn.Sequential(
                kind(*first, stride=2),
                layers.GlobalAvgPool(),
                layers.Dense(3 if len(first) > 1 else 1, 3),
                seed=1,
            ),
            x=PICTURES,
        )
        for kind, first in ((layers.MaxPool2D, (3,)), (layers.AvgPool2D, (3,)), (layers.Conv2D, (1, 3, 3)))
        for option, value in {"stride": (1, 1), "padding": (1, 1), "dilation": (2, 2)}.items()
        if (kind, option) != (layers.AvgPool2D, "dilation")
    ),
    Case(
        "RandomAffine",
        put(lambda t: t.model.layers[0], shift=2.0, rotation=30.0, scale=0.3),
        model=lambda: xnn.Sequential(
            layers.RandomAffine(1.0, shape=(8, 8)), layers.Flatten(), layers.Dense(64, 3), seed=1
        ),
        x=PICTURES,
    ),
    Case(
        "ElasticDeformation",
        put(lambda t: t.model.layers[0], alpha=5.0, sigma=2.0),
        model=lambda: xnn.Sequential(
            layers.ElasticDeformation(3.0, shape=(8, 8)), layers.Flatten(), layers.Dense(64, 3), seed=1
        ),
        x=PICTURES,
    ),
    Case(
        "a layer in a list",
        lambda t: t.model.layers.__setitem__(1, layers.LeakyReLU(0.4)),
        model=around(layers.Tanh()),
    ),
]
CASES += [
    Case(
        "SoftmaxCrossEntropy.label_smoothing",
        put(loss_of, label_smoothing=0.4),
        loss=losses.SoftmaxCrossEntropy,
        y=LABELS,
    ),
    Case(
        "class_weight", put(loss_of, class_weight=(1.0, 2.0, 5.0)), loss=losses.SoftmaxCrossEntropy, y=LABELS
    ),
    Case(
        "other weights",
        put(loss_of, class_weight=(1.0, 2.0, 5.0)),
        loss=lambda: losses.SoftmaxCrossEntropy(class_weight=(3.0, 2.0, 1.0)),
        y=LABELS,
    ),
    Case("ignore_index", put(loss_of, ignore_index=1), loss=losses.SoftmaxCrossEntropy, y=LABELS),
    Case("reduction", put(loss_of, reduction="sum")),
    Case("Huber.delta", put(loss_of, delta=0.1), loss=losses.Huber),
    Case("Focal.gamma", put(loss_of, gamma=0.5), loss=losses.Focal, y=(X[:, :3] > 0).astype(int)),
    Case("Focal.alpha", put(loss_of, alpha=0.7), loss=losses.Focal, y=(X[:, :3] > 0).astype(int)),
    Case(
        "pos_weight",
        put(loss_of, pos_weight=4.0),
        loss=losses.BinaryCrossEntropy,
        y=(X[:, :3] > 0).astype(int),
    ),
]


class Parts:
    def __init__(self, case):
        self.model, self.loss, self.optimizer = case.model(), case.loss(), case.rule()


class Assigns(Callback):
    def __init__(self, case):
        self.case, self.losses = case, []

    def on_step(self, history, epoch, step, loss):
        self.losses.append(loss)
        if len(self.losses) == AT:
            self.case.change(self.trainer)


def fitted(case, kernels):
    parts, watch = Parts(case), Assigns(case)
    trainer = xnn.Trainer(parts.model, parts.loss, parts.optimizer, [], [watch], kernels=kernels, threads=1)
    watch.trainer = trainer
    trainer.fit((case.x, case.y), batch_size=16, seed=2, shuffle=False, progress=False)
    return watch.losses, everything(trainer)


def by_hand(case, changed=True):
    parts, found = Parts(case), []
    y = case.y if case.y.dtype.kind != "i" or case.y.ndim == 1 else case.y.astype(np.float32)
    for step in range(5):
        rows = slice(16 * step, 16 * step + 16)
        parts.model.set_stream(2, step)
        found.append(float(parts.loss.forward(parts.model.forward(case.x[rows], training=True), y[rows])))
        parts.model.backward(parts.loss.backward())
        parts.optimizer.step(parts.model.parameters())
        if step + 1 == AT and changed:
            case.change(parts)
    return found, everything(parts)


def everything(parts):
    found = {name: array.value for name, array in parts.model.named_state()}
    for name, parameter in parts.model.named_parameters():
        found |= {f"{name}'s {kind}": array for kind, array in parts.optimizer.kept_for(parameter)}
    return found


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.usefixtures("one_thread")
def test_it_counts_from_the_next_step(case):
    seen, right = by_hand(case)
    assert bits(right) != bits(by_hand(case, changed=False)[1])
    for kernels in ("ops", "numpy", "compiled"):
        if kernels == "compiled" and not _has_numba():
            continue
        losses_, found = fitted(case, kernels)
        if kernels == "ops":
            assert losses_ == seen
        np.testing.assert_allclose(losses_, seen, rtol=1e-4)
        assert found.keys() == right.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, right[name], rtol=2e-3, atol=1e-5, err_msg=f"{kernels} {name}")


def bits(arrays):
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def _has_numba():
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


#: Options that only __init__ reads: sizes of arrays, and the axis of a Parallel, whose outputs have other shapes.
READ_ONCE = {"Parallel.axis", "LBFGS.tolerance", "LBFGS.memory"}


def test_no_numeric_option_is_forgotten():
    """The cases above name every numeric option of xnn's own optimizers, layers and losses."""
    tried = {case.name for case in CASES} | READ_ONCE
    tried |= {f"RandomAffine.{name}" for name in ("shift", "rotation", "scale")}
    tried |= {f"ElasticDeformation.{name}" for name in ("alpha", "sigma")}
    modules = (optimizers, optimizers.__all__), (layers, layers.Layer.own), (losses, losses.__all__)
    kinds = [getattr(module, name) for module, names in modules for name in names]
    for kind in (kind for kind in kinds if isinstance(kind, type)):
        for name, parameter in inspect.signature(kind).parameters.items():
            if type(parameter.default) in (int, float) and name not in COMMON:
                assert f"{kind.__name__}.{name}" in tried, (kind, name)


WRONG = {
    "Dropout.rate": (layers.Dropout(), (1.0, -0.1, np.nan, "0.5", None)),
    "BatchNorm.epsilon": (layers.BatchNorm(3), (-1e-5, np.inf, None)),
    "BatchNorm.momentum": (layers.BatchNorm(3), (1.5, -0.1, np.nan)),
    "LayerNorm.epsilon": (layers.LayerNorm(3), (-1.0, "small")),
    "LeakyReLU.negative_slope": (layers.LeakyReLU(), (np.nan, None)),
    "ELU.alpha": (layers.ELU(), (np.inf, "1")),
    "Softplus.beta": (layers.Softplus(), (np.nan, None)),
    "RandomAffine.shift": (layers.RandomAffine(), (-1.0, None)),
    "RandomAffine.rotation": (layers.RandomAffine(), (360.0, -1.0)),
    "RandomAffine.scale": (layers.RandomAffine(), (1.0, "x")),
    "ElasticDeformation.alpha": (layers.ElasticDeformation(), (-1.0,)),
    "ElasticDeformation.sigma": (layers.ElasticDeformation(), (0.0, None)),
    "Conv2D.stride": (layers.Conv2D(1, 1, 3), (0, (1, 2, 3), 1.5)),
    "Conv2D.dilation": (layers.Conv2D(1, 1, 3), (0, "2")),
    "Conv2D.padding": (layers.Conv2D(1, 1, 3), (-1, "foo", 1.5, (1, 2, 3))),
    "AvgPool2D.padding": (layers.AvgPool2D(2), (-1, "same", None)),
    "MaxPool2D.kernel_size": (layers.MaxPool2D(2), (0, "2", None)),
    "MaxPool2D.stride": (layers.MaxPool2D(2), (0, -1)),
}


@pytest.mark.parametrize("option", WRONG)
def test_options_of_layers_are_checked_when_they_are_assigned(option):
    layer, values = WRONG[option]
    name = option.partition(".")[2]
    before = getattr(layer, name)
    for value in values:
        with pytest.raises(xnn.errors.OptionError, match=name):
            setattr(layer, name, value)
        assert getattr(layer, name) == before


@pytest.mark.parametrize("kind", [layers.MaxPool2D, layers.AvgPool2D])
def test_a_number_stands_for_a_pair_when_it_is_assigned_too(kind):
    conv, pool = layers.Conv2D(1, 2, 3), kind(3)
    conv.padding = pool.padding = 1
    pool.stride = 2
    assert conv.padding == pool.padding == (1, 1)
    assert conv(PICTURES).shape[2:] == (8, 8)
    assert pool(PICTURES).shape[2:] == (4, 4)


SIZES = {
    "outputs": (lambda: layers.Dense(4, 3), 5),
    "inputs": (lambda: layers.Dense(4, 3), 5),
    "dtype": (lambda: layers.Dense(4, 3), "float64"),
    "features": (lambda: layers.BatchNorm(4), 5),
    "affine": (lambda: layers.LayerNorm(4), False),
    "kernel_size": (lambda: layers.Conv2D(1, 2, 3), (2, 2)),
    "out_channels": (lambda: layers.Conv2D(1, 2, 3), 5),
    "in_channels": (lambda: layers.Conv2D(1, 2, 3), 5),
    "num_embeddings": (lambda: layers.Embedding(4, 3), 5),
    "embedding_dim": (lambda: layers.Embedding(4, 3), 5),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_arrays_are_not_assigned(name):
    """The arrays keep their sizes, so that a file of the model would say others than it holds, and not load."""
    build, value = SIZES[name]
    layer = build()
    before = getattr(layer, name)
    setattr(layer, name, before)
    with pytest.raises(xnn.errors.OptionError, match="build another layer"):
        setattr(layer, name, value)
    assert getattr(layer, name) == before


def test_padding_beyond_memory_is_refused():
    for layer in (layers.Conv2D(1, 1, 3, padding=2**20), layers.Conv2D(1, 1, (3, 1), padding=(2**40, 0))):
        with pytest.raises(xnn.errors.OptionError, match="padding"):
            layer(PICTURES)
        with pytest.raises(xnn.errors.OptionError, match="padding"):
            layer.output_shape((1, 8, 8))
