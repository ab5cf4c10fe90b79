"""Losses: PyTorch's numbers in every option, reductions and weights by definition, and training with them."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
from exact_tools import bits_of, by_workers
from hypothesis import given, settings
from hypothesis import strategies as st

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import get_backend
from xnn.errors import DTypeError, LabelError, MixedArraysError, OptionError, ShapeError
from xnn.ops.apply import apply_rule, backward_of, forward_of
from xnn.ops.losses import LossOp

LIB = get_backend("numpy")
RNG = np.random.default_rng(11)
WEIGHTS = (0.5, 2.0, 1.0, 0.25)  # of four classes


def onehot_like(rng, n, k):
    p = rng.random((n, k))
    p[:, 0] *= rng.random(n) < 0.7  # some are 0
    return p / p.sum(axis=1, keepdims=True)


# A row a loss and option: the Loss, the kind of targets, PyTorch's unreduced terms, what a term counts (None: 1).


def torch_cross_entropy(**options):
    def terms(F, torch, z, t):
        given = dict(options)
        if "weight" in given:
            given["weight"] = torch.tensor(given["weight"], dtype=z.dtype)
        return F.cross_entropy(z, t, reduction="none", **given)

    return terms


def torch_binary(pos_weight=None):
    def terms(F, torch, z, t):
        positive = None if pos_weight is None else torch.tensor(pos_weight, dtype=z.dtype)
        return F.binary_cross_entropy_with_logits(z, t, reduction="none", pos_weight=positive)

    return terms


def torch_focal(gamma, alpha):
    """torchvision's sigmoid_focal_loss, from its documentation's formula."""

    def terms(F, torch, z, t):
        p = torch.sigmoid(z)
        entropy = F.binary_cross_entropy_with_logits(z, t, reduction="none")
        away = 1 - (p * t + (1 - p) * (1 - t))
        loss = entropy * away**gamma
        return loss if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * loss

    return terms


def by_name(name, **options):
    return lambda F, torch, p, t: getattr(F, name)(p, t, reduction="none", **options)


def class_counts(t):
    return np.asarray(WEIGHTS)[t]


def but_twos(t):
    return (t != 2).astype(float)


S, B = losses.SoftmaxCrossEntropy, losses.BinaryCrossEntropy
TABLE = {
    "labels": (S, {}, "labels", torch_cross_entropy(), None),
    "smoothed": (S, {"label_smoothing": 0.1}, "labels", torch_cross_entropy(label_smoothing=0.1), None),
    "class weights": (
        S,
        {"class_weight": WEIGHTS},
        "labels",
        torch_cross_entropy(weight=WEIGHTS),
        class_counts,
    ),
    "ignored": (S, {"ignore_index": 2}, "labels", torch_cross_entropy(ignore_index=2), but_twos),
    "all three": (
        S,
        {"label_smoothing": 0.3, "class_weight": WEIGHTS, "ignore_index": 2},
        "labels",
        torch_cross_entropy(label_smoothing=0.3, weight=WEIGHTS, ignore_index=2),
        lambda t: class_counts(t) * but_twos(t),
    ),
    "probabilities": (S, {}, "probabilities", torch_cross_entropy(), None),
    "probabilities, smoothed and weighted": (
        S,
        {"label_smoothing": 0.2, "class_weight": WEIGHTS},
        "probabilities",
        torch_cross_entropy(label_smoothing=0.2, weight=WEIGHTS),
        None,
    ),
    "pixels": (
        S,
        {"class_weight": WEIGHTS, "ignore_index": 2},
        "pixels",
        torch_cross_entropy(weight=WEIGHTS, ignore_index=2),
        lambda t: class_counts(t) * but_twos(t),
    ),
    "binary": (B, {}, "unit", torch_binary(), None),
    "binary, one pos_weight": (B, {"pos_weight": 3.0}, "unit", torch_binary(3.0), None),
    "binary, pos_weights": (B, {"pos_weight": WEIGHTS}, "unit", torch_binary(WEIGHTS), None),
    "mse": (losses.MSE, {}, "any", by_name("mse_loss"), None),
    "l1": (losses.L1, {}, "any", by_name("l1_loss"), None),
    "huber": (losses.Huber, {}, "any", by_name("huber_loss"), None),
    "huber, delta": (losses.Huber, {"delta": 0.3}, "any", by_name("huber_loss", delta=0.3), None),
    "hinge": (losses.Hinge, {}, "signs", lambda F, torch, p, t: torch.clamp(1 - p * t, min=0), None),
    "kl": (
        losses.KLDivergence,
        {},
        "probabilities",
        lambda F, torch, p, t: F.kl_div(p, t, reduction="none").sum(1),
        None,
    ),
    "focal": (losses.Focal, {}, "bits", torch_focal(2.0, 0.25), None),
    "focal, gamma": (losses.Focal, {"gamma": 0.7, "alpha": None}, "unit", torch_focal(0.7, None), None),
    "focal, 0": (losses.Focal, {"gamma": 0.0, "alpha": 0.5}, "bits", torch_focal(0.0, 0.5), None),
}
CASES = pytest.mark.parametrize("name", TABLE)


def draw(kind, n, rng, dtype="float64"):
    """Outputs (n, 4, ...) and targets of a kind, weights (n,)."""
    shape = (n, 4, 2, 3) if kind == "pixels" else (n, 4)
    z = (rng.standard_normal(shape) * 3).astype(dtype)
    targets = {
        "labels": lambda: rng.integers(0, 4, n),
        "pixels": lambda: rng.integers(0, 4, (n, 2, 3)),
        "probabilities": lambda: onehot_like(rng, n, 4).astype(dtype),
        "unit": lambda: rng.random(shape).astype(dtype),
        "bits": lambda: rng.integers(0, 2, shape).astype(dtype),
        "signs": lambda: (2 * rng.integers(0, 2, shape) - 1).astype(dtype),
        "any": lambda: (rng.standard_normal(shape) * 3).astype(dtype),
    }[kind]()
    return z, targets, (rng.random(n) * 2).astype(dtype)


@CASES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@settings(max_examples=12)
@given(n=st.integers(1, 7), seed=st.integers(0, 2**32 - 1), weighted=st.booleans(), narrow=st.booleans())
def test_pytorch(name, reduction, n, seed, weighted, narrow):
    """Values, gradients of outputs, targets and weights, by PyTorch's terms and its autograd."""
    torch = pytest.importorskip("torch")
    cls, options, kind, terms_of, counts_of = TABLE[name]
    z, t, w = draw(kind, n, np.random.default_rng(seed), "float32" if narrow else "float64")
    if kind in ("labels", "pixels"):
        t.reshape(-1)[0] = 1  # one at least that counts: PyTorch has NaN where none does
    zt, wt = torch.tensor(z, requires_grad=True), torch.tensor(w, requires_grad=True)
    floating = t.dtype.kind == "f"
    tt = torch.tensor(t, requires_grad=floating and not (name == "kl" or options.get("gamma") == 0.0))
    terms = terms_of(torch.nn.functional, torch, zt, tt)
    column = (wt if weighted else torch.ones_like(wt)).reshape((n,) + (1,) * (terms.ndim - 1))
    counts = torch.ones_like(terms) if counts_of is None else torch.tensor(counts_of(t), dtype=zt.dtype)
    expected = {
        "none": lambda: terms * column,
        "sum": lambda: (terms * column).sum(),
        "mean": lambda: (terms * column).sum() / (counts * column).sum(),
    }[reduction]()
    expected.sum().backward()

    loss = cls(**options, reduction=reduction)
    value = loss.forward(z, t, w if weighted else None)
    assert value.dtype == z.dtype
    close = {"rtol": 1e-10, "atol": 1e-12} if not narrow else {"rtol": 3e-4, "atol": 3e-5}
    np.testing.assert_allclose(value, expected.detach().numpy(), **close)
    np.testing.assert_allclose(loss.backward(), zt.grad.numpy(), **close)
    arrays = (z, t, w) if weighted else (z, t)
    xp = LIB.math
    _, saved = forward_of(loss.op, xp, arrays, loss._options(LIB, z))
    found = backward_of(loss.op, xp, np.ones(value.shape, z.dtype), saved)
    assert len(found) == len(arrays)
    if tt.grad is not None:
        np.testing.assert_allclose(found[1], tt.grad.numpy(), **close)
    if weighted:
        np.testing.assert_allclose(found[2], wt.grad.numpy(), **close)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignored", [None, 2, -100])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_pytorchs_own_reduction(smoothing, weights, ignored, reduction):
    """Not its terms reduced by us, but what it returns."""
    torch = pytest.importorskip("torch")
    z, t, _ = draw("labels", 9, RNG)
    if ignored == -100:
        t[::3] = -100
    zt = torch.tensor(z, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        zt,
        torch.tensor(t),
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=-100 if ignored is None else ignored,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    expected.sum().backward()
    loss = losses.SoftmaxCrossEntropy(smoothing, weights, ignored, reduction)
    np.testing.assert_allclose(loss.forward(z, t), expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(loss.backward(), zt.grad.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_of_probabilities_class_weights_are_not_in_the_count_as_in_pytorch(weights):
    torch = pytest.importorskip("torch")
    z, q, _ = draw("probabilities", 6, RNG)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(z),
        torch.tensor(q),
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )
    found = losses.SoftmaxCrossEntropy(class_weight=weights)(z, q)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_kl_divergence_is_pytorchs_batchmean_and_huber_its_smooth_l1():
    torch = pytest.importorskip("torch")
    y, t, _ = draw("probabilities", 6, RNG)
    expected = torch.nn.functional.kl_div(torch.tensor(y), torch.tensor(t), reduction="batchmean")
    np.testing.assert_allclose(losses.KLDivergence()(y, t), expected, rtol=1e-13)
    smooth = torch.nn.functional.smooth_l1_loss(torch.tensor(y), torch.tensor(t), beta=0.4)
    np.testing.assert_allclose(losses.Huber(0.4)(y, t) / 0.4, smooth, rtol=1e-13)


# By definition, without PyTorch.


@CASES
def test_an_integer_weight_is_that_many_samples(name):
    cls, options, kind, _, _ = TABLE[name]
    z, t, _ = draw(kind, 6, RNG)
    k = np.array([2, 0, 1, 3, 1, 0])
    for reduction in ("mean", "sum"):
        loss = cls(**options, reduction=reduction)
        weighted = loss.forward(z, t, k)
        gradient = loss.backward()
        repeated = loss.forward(np.repeat(z, k, axis=0), np.repeat(t, k, axis=0))
        np.testing.assert_allclose(weighted, repeated, rtol=1e-13)
        each = loss.backward()  # of one copy; k of them come together
        back = [each[k[:i].sum()] * k[i] if k[i] else np.zeros_like(each[0]) for i in range(6)]
        np.testing.assert_allclose(gradient, back, rtol=1e-12, atol=1e-16)


@CASES
def test_weights_of_one_change_nothing_and_totals_are_what_means_are_divided_by(name):
    cls, options, kind, _, _ = TABLE[name]
    z, t, w = draw(kind, 6, RNG)
    mean, total = cls(**options), cls(**options, reduction="sum")
    np.testing.assert_allclose(mean(z, t, np.ones(6)), mean(z, t), rtol=1e-14)
    for weights in ((), (w,)):
        np.testing.assert_allclose(
            mean(z, t, *weights) * mean.total(z, t, *weights), total(z, t, *weights), rtol=1e-13
        )
    assert mean.counts_samples(weighted=True) is False
    uneven = bool({"class_weight", "ignore_index"} & options.keys())
    assert mean.counts_samples(weighted=False) is not uneven
    assert total.counts_samples(weighted=True)


@CASES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_outputs_give_finite_losses_and_gradients(name, dtype):
    cls, options, kind, _, _ = TABLE[name]
    z, t, w = draw(kind, 8, np.random.default_rng(1), dtype)
    for size in (1e4, 1e-30):
        z = np.random.default_rng(2).choice(np.array([-size, 0.0, size], dtype), z.shape)
        loss = cls(**options)
        value, saved = forward_of(loss.op, LIB.math, (z, t, w), loss._options(LIB, z))
        gradients = backward_of(loss.op, LIB.math, np.ones((), dtype), saved)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients if g is not None)


def test_what_is_impossible_and_not_asked_for_costs_nothing():
    """0 log 0 = 0: logits of -infinity where the probability is 0, log-probabilities of -infinity likewise."""
    z = np.array([[0.0, -np.inf, 1.0]])
    q = np.array([[0.25, 0.0, 0.75]])
    plain = losses.SoftmaxCrossEntropy()(np.array([[0.0, 1.0]]), np.array([[0.25, 0.75]]))
    loss = losses.SoftmaxCrossEntropy()
    assert loss(z, q) == plain
    assert np.isfinite(loss.backward()).all()
    assert losses.KLDivergence()(np.log(np.maximum(q, 1e-300)), q) == pytest.approx(0.0, abs=1e-15)
    with np.errstate(divide="ignore"):
        _, saved = ops.kl_divergence.forward(np, np.log(q), q)
    assert all(np.isfinite(g).all() for g in ops.kl_divergence.backward(np, np.ones(()), saved))


@CASES
def test_one_sample_and_none(name):
    cls, options, kind, _, _ = TABLE[name]
    z, t, w = draw(kind, 1, RNG)
    if kind in ("labels", "pixels"):
        t[...] = 1
    loss = cls(**options)
    alone = loss(z, t)
    np.testing.assert_allclose(
        loss(z, t, np.array([0.25])), alone, rtol=1e-14
    )  # alone, its weight divides out
    for weights in (None, w[:0]):
        assert loss(z[:0], t[:0], weights) == 0.0
        assert loss.backward().shape == z[:0].shape
    assert loss(z, t, np.zeros(1)) == 0.0
    assert (loss.backward() == 0.0).all()


def test_one_class_is_certain():
    cost, gradient = xnn.value_and_grad(lambda z: ops.softmax_cross_entropy(z, np.array([0, 0])))(
        np.array([[3.0], [-1e4]])
    )
    assert cost == 0.0
    assert (gradient == 0.0).all()


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 2, 2)])
@pytest.mark.parametrize("labels", ["zeros", "ones", "probabilities"])
def test_one_class_teaches_nothing_and_is_refused(shape, labels):
    z = np.zeros(shape)
    t = np.ones(shape) if labels == "probabilities" else np.full(z[:, 0].shape, int(labels == "ones"))
    with pytest.raises(ShapeError, match=r"one class, whose probability is always 1: .* BinaryCross"):
        losses.SoftmaxCrossEntropy()(z, t)


def test_where_every_label_is_ignored_nothing_counts():
    loss = losses.SoftmaxCrossEntropy(ignore_index=-1, label_smoothing=0.1, class_weight=WEIGHTS)
    assert loss(np.ones((2, 4)), np.array([-1, -1])) == 0.0
    assert (loss.backward() == 0.0).all()
    no_weight = losses.SoftmaxCrossEntropy(class_weight=(1.0, 0.0), label_smoothing=0.5)
    assert no_weight(np.ones((1, 2)), np.array([1])) == 0.0  # its count is 0 though its terms are not
    assert (no_weight.backward() == 0.0).all()


def test_a_label_outside_that_is_not_the_ignored_one_gives_nan(lib):
    z, t = lib.to_device(np.zeros((3, 2))), lib.to_device(np.array([0, -100, 7]))
    value, saved = forward_of(
        ops.softmax_cross_entropy, lib.math, (z, t), {"ignore_index": -100, "reduction": "none"}
    )
    assert np.isnan(lib.to_host(value)).tolist() == [False, False, True]
    assert lib.to_host(value)[:2].tolist() == [math.log(2), 0.0]
    gradient = lib.to_host(
        backward_of(ops.softmax_cross_entropy, lib.math, lib.xp.ones_like(value), saved)[0]
    )
    assert np.isnan(gradient).any(axis=1).tolist() == [False, False, True]
    assert (gradient[1] == 0.0).all()


@CASES
def test_every_backend(lib, name):
    cls, options, kind, _, _ = TABLE[name]
    z, t, w = draw(kind, 5, np.random.default_rng(4), "float32")
    for reduction in ("mean", "none"):
        here, there = cls(**options, reduction=reduction), cls(**options, reduction=reduction)
        value = there(*map(lib.to_device, (z, t, w)))
        np.testing.assert_allclose(lib.to_host(value), here(z, t, w), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(lib.to_host(there.backward()), here.backward(), rtol=1e-5, atol=1e-6)


def test_one_hot_integers_are_probabilities():
    z, t, _ = draw("labels", 5, RNG)
    for dtype in ("int64", "uint8", "bool", "float32"):
        found = losses.SoftmaxCrossEntropy()(z, np.eye(4)[t].astype(dtype))
        np.testing.assert_allclose(found, losses.SoftmaxCrossEntropy()(z, t), rtol=1e-14)


# Refusals.


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: losses.MSE(reduction="average"), OptionError, "'mean', 'sum' or 'none'"),
        (lambda: losses.MSE("batchmean"), OptionError, "'mean', 'sum' or 'none'"),
        (lambda: S(label_smoothing=1.0), OptionError, r"label_smoothing .*\[0, 1\)"),
        (lambda: S(label_smoothing="0.1"), OptionError, "label_smoothing"),
        (lambda: S(class_weight=[1.0, -1.0]), OptionError, "class_weight must be"),
        (lambda: S(class_weight=[1.0, np.nan]), OptionError, "class_weight must be"),
        (lambda: S(class_weight=np.ma.masked_less([1.0, 0.5], 0.9)), OptionError, "class_weight must be"),
        (lambda: S(class_weight=2.0), OptionError, "class_weight must be"),
        (lambda: S(class_weight="balanced"), OptionError, "class_weight must be"),
        (lambda: S(class_weight={0: 1.0}), OptionError, "class_weight must be"),
        (lambda: S(class_weight=[[1.0], [2.0, 3.0]]), OptionError, "class_weight must be"),
        (lambda: S(ignore_index=1.0), OptionError, "ignore_index"),
        (lambda: S(ignore_index=True), OptionError, "ignore_index"),
        (lambda: B(pos_weight=-1.0), OptionError, "pos_weight must be"),
        (lambda: B(pos_weight="3"), OptionError, "pos_weight must be"),
        (lambda: losses.Huber(0.0), OptionError, "delta .* above 0"),
        (lambda: losses.Huber(np.inf), OptionError, "delta"),
        (lambda: losses.Focal(gamma=-1), OptionError, "gamma"),
        (lambda: losses.Focal(alpha=1.5), OptionError, "alpha"),
        (lambda: S(class_weight=[1.0])(np.ones((2, 3)), np.array([0, 1])), ShapeError, "class_weight has 1"),
        (
            lambda: S(ignore_index=0)(np.ones((2, 2)), np.eye(2)),
            OptionError,
            "ignore_index is for integer labels",
        ),
        (lambda: S()(np.ones((2, 2)), np.array([[0.5, 0.5], [0.5, 0.6]])), LabelError, "sum to 1.1"),
        (lambda: S()(np.ones((2, 2)), np.array([[1.5, -0.5], [0.5, 0.5]])), LabelError, "got -0.5"),
        (lambda: S()(np.ones((2, 2)), np.array([[np.nan, 1], [0, 1]])), LabelError, "NaN"),
        (lambda: S()(np.ones((2, 2)), np.array([["a", "b"]] * 2)), DTypeError, "numbers"),
        (lambda: S()(np.ones(2), np.array([0, 1])), ShapeError, r"outputs \(n, classes\)"),
        (lambda: S(ignore_index=-1)(np.ones((2, 2)), np.array([-1, 2])), LabelError, "from 2 to 2"),
        (lambda: S()(np.ones((2, 3, 4)), np.zeros((2, 3), int)), ShapeError, r"labels of shape \(n, 4\)"),
        (lambda: B(pos_weight=[1.0])(np.ones((2, 2)), np.ones((2, 2))), ShapeError, "pos_weight has 1"),
        (lambda: B(pos_weight=-1), OptionError, "pos_weight must be a finite number at least 0, got -1"),
        (lambda: B(pos_weight=True), OptionError, "pos_weight must be a finite number"),
        (lambda: B(pos_weight=np.array("a")), OptionError, "pos_weight must be a finite number"),
        (lambda: losses.Hinge()(np.ones((2, 1)), np.array([[0], [1]])), LabelError, r"2 \* targets - 1"),
        (lambda: losses.Focal()(np.ones((1, 1)), np.array([[2.0]])), LabelError, r"\[0, 1\]"),
        (lambda: losses.KLDivergence()(np.zeros((1, 2)), np.ones((1, 2))), LabelError, "sum to 1 over"),
        (lambda: losses.KLDivergence()(np.zeros(2), np.ones(2)), ShapeError, "classes"),
        (
            lambda: losses.MSE()(np.ones((2, 1)), np.ones((2, 1)), np.ones(3)),
            ShapeError,
            "one number a sample",
        ),
        (lambda: losses.MSE()(np.ones((2, 1)), np.ones((2, 1)), [[1.0], [1.0]]), ShapeError, "a sample"),
        (lambda: losses.MSE()(np.ones((2, 1)), np.ones((2, 1)), [1.0, -1.0]), OptionError, "at least 0"),
        (lambda: losses.MSE()(np.ones((2, 1)), np.ones((2, 1)), ["a", "b"]), DTypeError, "numbers"),
        (lambda: ops.mse(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1))), ShapeError, r"a sample, \(n,\)"),
        (lambda: ops.mse(np.ones(2), np.ones(2), reduction="avg"), OptionError, "reduction must be"),
        (lambda: ops.mse(np.ones(2, int), np.ones(2)), DTypeError, "floating-point"),
        (lambda: ops.softmax_cross_entropy(np.ones((2, 2), int), np.eye(2)), DTypeError, "floating-point"),
        (lambda: ops.softmax_cross_entropy(np.ones((2, 2)), np.ones(2)), DTypeError, "integer labels"),
        (
            lambda: ops.softmax_cross_entropy(np.ones((2, 2)), np.eye(2), ignore_index=1),
            OptionError,
            "ignore_index is for integer labels",
        ),
        (
            lambda: ops.softmax_cross_entropy(np.ones((2, 2)), np.array([0, 1]), class_weight=(1.0,)),
            ShapeError,
            "each of the 2 classes",
        ),
        (
            lambda: ops.binary_cross_entropy(np.ones((2, 2)), np.ones((2, 2)), pos_weight=(1.0, 2.0, 3.0)),
            ShapeError,
            "pos_weight",
        ),
        (lambda: ops.kl_divergence(np.ones(2), np.ones(2)), ShapeError, "classes"),
    ],
)
def test_refuses(build, error, message):
    with pytest.raises(error, match=message):
        build()


# In training: programs, kernels, numerics, weights.


def task(name, n=70, seed=5):
    """Data of the kind a loss takes, and a network whose outputs are; with weights, of which some are 0."""
    kind = TABLE[name][2]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5)).astype(np.float32)
    _, t, w = draw(kind, n, rng, "float32")
    w[::7] = 0.0
    return x, t, w


def fit(name, kernels, weighted, numerics="fast", reduction="mean", dtype="float32", batch_size=32, lr=0.02):
    cls, options, _, _, _ = TABLE[name]
    x, t, w = task(name)
    model = xnn.Sequential(
        layers.Dense(5, 6, dtype=dtype), layers.Tanh(), layers.Dense(6, 4, dtype=dtype), seed=2
    )
    trainer = xnn.Trainer(
        model,
        cls(**options, reduction=reduction),
        optimizers.SGD(lr),
        metrics=[],
        kernels=kernels,
        numerics=numerics,
    )
    data = (x, t), (x, t, w) if weighted else (x, t)
    history = trainer.fit(
        *data, epochs=2, batch_size=batch_size, sample_weight=w if weighted else None, progress=False
    )
    return np.concatenate([p.value.ravel() for p in model.parameters()]), history, trainer


TRAINED = pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n][2] != "pixels"])


@pytest.mark.sampled(7)
@TRAINED
@pytest.mark.parametrize(
    ("weighted", "reduction"),
    [
        (False, "sum"),
        (True, "mean"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((False, "mean"), (True, "sum"))),
    ],
)
def test_kernels_and_ops_train_alike(name, weighted, reduction):
    """Bit for bit in exact numerics; and by hand, layer by layer, as in the program."""
    by_ops, history_by_ops, _ = fit(name, "ops", weighted, "exact", reduction)
    for kernels in ("numpy", "compiled") if find_spec("numba") else ("numpy",):
        exact, history, _ = fit(name, kernels, weighted, "exact", reduction)
        assert exact.tobytes() == by_ops.tobytes(), kernels
        assert history.epochs == history_by_ops.epochs, kernels
        fast, _, _ = fit(name, kernels, weighted, "fast", reduction)
        np.testing.assert_allclose(fast, by_ops, rtol=1e-3, atol=1e-4, err_msg=kernels)


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("one_thread")
@TRAINED
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_program_takes_the_steps_one_takes_by_hand(name, weighted, numerics):
    cls, options, _, _, _ = TABLE[name]
    x, t, w = task(name, 32)
    loss, rule = cls(**options), optimizers.SGD(0.1)

    def network():
        return xnn.Sequential(layers.Dense(5, 6), layers.Tanh(), layers.Dense(6, 4), seed=2)

    by_hand, model = network(), network()
    with xnn.numerics(numerics):
        for _ in range(3):
            value = loss.forward(by_hand.forward(x, training=True), t, w if weighted else None)
            by_hand.backward(loss.backward())
            rule.step(by_hand.parameters())
    trainer = xnn.Trainer(
        model, cls(**options), optimizers.SGD(0.1), metrics=[], kernels="ops", numerics=numerics
    )
    history = trainer.fit(
        (x, t), epochs=3, batch_size=32, sample_weight=w if weighted else None, shuffle=False, progress=False
    )
    assert history["loss"][-1] == pytest.approx(float(value), rel=1e-6)
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert a.value.tobytes() == b.value.tobytes()


@pytest.mark.sampled(7)
@TRAINED
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_epochs_loss_does_not_depend_on_the_batches(name, weighted, reduction):
    """With a learning rate of 0 it is the loss of all samples at once, as evaluation's and validation's is."""
    cls, options, _, _, _ = TABLE[name]
    x, t, w = task(name)
    weights = w if weighted else None
    _, history, trainer = fit(
        name, "auto", weighted, reduction=reduction, dtype="float64", batch_size=9, lr=0.0
    )
    expected = float(cls(**options, reduction=reduction)(trainer.model.predict(x), t, weights))
    for batch_size in (1, 9, 33, 500):
        found = trainer.evaluate((x, t), batch_size, weights)["loss"]
        assert found == pytest.approx(expected, rel=1e-13)
    assert history["loss"] == pytest.approx([expected] * 2, rel=1e-13)
    assert history["val_loss"] == pytest.approx([expected] * 2, rel=1e-13)


def test_a_batch_in_which_nothing_counts_teaches_nothing():
    """In batches of 2 of 8 samples, half of which have a weight of 0, or an ignored label."""
    x, t, w = np.eye(8, 5, dtype=np.float32), np.arange(8) % 4, np.repeat([1.0, 0.0], 4)
    ignored = np.where(w > 0, t, -1)
    found = []
    for loss, labels, weights in (
        (S(), t, w),
        (S(ignore_index=-1), ignored, None),
        (S(), t[:4], None),
    ):
        model = xnn.Sequential(layers.Dense(5, 4), seed=1)
        trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), metrics=[])
        history = trainer.fit(
            (x[: len(labels)], labels),
            epochs=3,
            batch_size=2,
            sample_weight=weights,
            shuffle=False,
            progress=False,
        )
        found.append((model.predict(x), history["loss"]))
    for predictions, curve in found[:2]:
        np.testing.assert_allclose(predictions, found[2][0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(curve, found[2][1], rtol=1e-6)


@pytest.mark.parametrize("targets", ["labels", "probabilities"])
def test_twenty_steps_of_pytorch_with_class_and_sample_weights(targets):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((40, 5)), rng.random(40) + 0.1
    t = rng.integers(0, 4, 40) if targets == "labels" else onehot_like(rng, 40, 4)
    model = xnn.Sequential(
        layers.Dense(5, 6, dtype="float64"), layers.Tanh(), layers.Dense(6, 4, dtype="float64"), seed=3
    )
    first, second = torch.nn.Linear(5, 6, dtype=torch.float64), torch.nn.Linear(6, 4, dtype=torch.float64)
    with torch.no_grad():
        for theirs, ours in ((first, model.layers[0]), (second, model.layers[2])):
            theirs.weight.copy_(torch.tensor(ours.weight.value.T))
            theirs.bias.copy_(torch.tensor(ours.bias.value))
    rule = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.3, momentum=0.9)
    counts = torch.ones(40, dtype=torch.float64)
    if targets == "labels":
        counts = torch.tensor(class_counts(t))
    for step in range(20):
        rows = slice(step % 4 * 10, step % 4 * 10 + 10)
        terms = torch.nn.functional.cross_entropy(
            second(torch.tanh(first(torch.tensor(x[rows])))),
            torch.tensor(t[rows]),
            torch.tensor(WEIGHTS, dtype=torch.float64),
            reduction="none",
            label_smoothing=0.1,
        )
        weights = torch.tensor(w[rows])
        rule.zero_grad()
        ((terms * weights).sum() / (counts[rows] * weights).sum()).backward()
        rule.step()
    trainer = xnn.Trainer(model, S(0.1, WEIGHTS), optimizers.SGD(0.3, momentum=0.9), metrics=[])
    trainer.fit((x, t), epochs=5, batch_size=10, sample_weight=w, shuffle=False, progress=False)
    np.testing.assert_allclose(model.layers[0].weight.value, first.weight.detach().numpy().T, rtol=1e-9)
    np.testing.assert_allclose(model.layers[2].bias.value, second.bias.detach().numpy(), rtol=1e-9)


def test_class_weights_are_sample_weights_of_each_ones_class():
    _, t, _ = task("labels")
    z = np.random.default_rng(1).standard_normal((len(t), 4))
    by_class = S(class_weight=WEIGHTS)(z, t)
    by_sample = S()(z, t, np.asarray(WEIGHTS)[t])
    np.testing.assert_allclose(by_class, by_sample, rtol=1e-14)


@pytest.mark.sampled(7)
@CASES
@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_workers_share_a_batch(name, workers, reduction, weighted):
    """Loss, total and their own rows' gradients are those of one worker, to the bit, in exact numerics."""
    cls, options, kind, _, _ = TABLE[name]
    z, t, w = draw(kind, 20, np.random.default_rng(7), "float32")
    loss = cls(**options, reduction=reduction)
    arrays = (z, t, w) if weighted else (z, t)

    def work(rows):
        part = [a[rows] for a in arrays]
        xp, given = LIB.math, loss._options(LIB, z)
        value, saved = forward_of(loss.op, xp, part, given)
        total = apply_rule(loss.op.total, xp, part, given)
        return value, total, *backward_of(loss.op, xp, np.ones((), np.float32), saved)

    with xnn.numerics("exact"):
        whole = work(slice(None))
    bounds = [0, *sorted(np.random.default_rng(workers).integers(0, 21, workers - 1)), 20]
    found = by_workers(bounds, work)
    for rank in range(workers):
        rows = slice(bounds[rank], bounds[rank + 1])
        value, total, *gradients = found[rank]
        assert (bits_of(value), bits_of(total)) == (bits_of(whole[0]), bits_of(whole[1]))
        for own, of_all in zip(gradients, whole[2:], strict=True):
            assert own is None or bits_of(own) == bits_of(of_all[rows])


class LogCosh(LossOp):
    """The one that xnn.ops.losses writes out."""

    def terms(self, xp, predicted, target):
        difference = predicted - target
        return xp.log(0.5 * (xp.exp(difference) + xp.exp(-difference))), difference

    def slopes(self, xp, share, difference):
        dp = xp.tanh(difference) * share
        return dp, -dp


class Halved(losses.Loss):
    """A loss that computes in its own way: half the weighted mean squared error."""

    def forward(self, outputs, targets, sample_weight=None):
        weights = np.ones(len(outputs)) if sample_weight is None else sample_weight
        difference = outputs - targets
        share = weights[:, None] / (weights.sum() * outputs.shape[1])
        self._saved = share * difference
        return np.sum(share * difference * difference) / 2

    def backward(self):
        return self._saved


def test_a_loss_of_ones_own_is_weighted_too():
    x, y, w = task("mse")

    class Own(losses.Loss):
        op = LogCosh()

    report = xnn.gradient_check(Own.op, y[:3].astype(float), 0.5 * y[:3], w[:3])
    assert report, report
    found = []
    for loss in (Own(), Halved(), losses.MSE()):
        model = xnn.Sequential(layers.Dense(5, 4, dtype="float64"), seed=1)
        trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), metrics=[])
        history = trainer.fit((x, y), epochs=2, batch_size=33, sample_weight=w, progress=False)
        assert history["loss"][1] < history["loss"][0]
        found.append((trainer.evaluate((x, y), 9, w)["loss"], trainer.evaluate((x, y), 70, w)["loss"]))
        assert found[-1][0] == pytest.approx(found[-1][1], rel=1e-13)


def test_what_a_trainer_refuses():
    x, t, w = task("labels")

    def trainer(loss=None):
        return xnn.Trainer(xnn.Sequential(layers.Dense(5, 4), seed=1), loss or S(), optimizers.SGD(0.1))

    with pytest.raises(OptionError, match="one number a batch"):
        trainer(S(reduction="none"))
    for weights, error, message in (
        (w[:-1], ShapeError, "one number a sample"),
        (w[:, None], ShapeError, "one number a sample"),
        (-w, OptionError, "at least 0"),
        (0 * w, OptionError, "every sample_weight is 0"),
        (w.astype(float) * 1e-300, OptionError, "every sample_weight is 0 in float32"),
        (w.astype(float) + 1e300, DTypeError, "sample_weight 0 holds a number too large for float32"),
        (w * np.nan, OptionError, "finite"),
        ([None] * len(w), DTypeError, "numbers"),
    ):
        for call in (
            lambda weights=weights: trainer().fit((x, t), sample_weight=weights, progress=False),
            lambda weights=weights: trainer().fit((x, t), (x, t, weights), progress=False),
            lambda weights=weights: trainer().evaluate((x, t), sample_weight=weights),
        ):
            with pytest.raises(error, match=message):
                call()
    with pytest.raises(OptionError, match="must be a pair"):
        trainer().fit((x, t, w), progress=False)
    large = np.where(np.arange(len(x)) == 3, 1e39, 1.0)[:, None]
    for data, what in (((x * large, t), "sample"), ((x, large * np.ones(4)), "target")):
        with pytest.raises(DTypeError, match=f"{what} 3 holds a number too large for float32"):
            trainer(losses.MSE() if what == "target" else None).fit(data, progress=False)
    with pytest.raises(ShapeError, match="class_weight has 3"):
        trainer(S(class_weight=[1, 2, 3])).fit((x, t), progress=False)


def test_weights_on_a_device_and_of_any_number(lib):
    x, t, w = task("labels")
    w = np.round(w * 4)
    found = []
    for weights in (w, lib.to_device(w), w.astype(np.uint8), w.tolist()):
        model = xnn.Sequential(layers.Dense(5, 4), seed=1)
        trainer = xnn.Trainer(model, S(class_weight=np.array(WEIGHTS)), optimizers.SGD(0.1))
        history = trainer.fit((x, t), sample_weight=weights, progress=False)
        found.append((history["loss"][0], trainer.evaluate((x, t), sample_weight=weights)["loss"]))
    assert all(f == pytest.approx(found[0]) for f in found)


def test_weights_on_another_backend_do_not_mix_in(lib):
    if lib.is_host:
        pytest.skip("these are the arrays it takes")
    z = lib.to_device(np.ones((2, 2), np.float32))
    for weights in (np.ones(2), [1.0, 1.0]):
        with pytest.raises(MixedArraysError):
            losses.MSE()(z, z, weights)


def test_one_hot_targets_train_as_labels_do():
    x, t, _ = task("labels")
    found = []
    for targets in (t, np.eye(4)[t], np.eye(4, dtype=np.uint8)[t]):
        model = xnn.Sequential(layers.Dense(5, 4), seed=1)
        trainer = xnn.Trainer(model, S(), optimizers.SGD(0.5), metrics=[])
        found.append(trainer.fit((x, targets), epochs=3, progress=False)["loss"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert found[1] == found[2]


def test_a_run_with_weights_that_diverges_is_diagnosed():
    x, t, w = task("mse")
    with pytest.raises(xnn.errors.DivergenceError, match=r"step \d+ "):
        xnn.Trainer(
            xnn.Sequential(layers.Dense(5, 4), seed=1), losses.MSE(), optimizers.SGD(1e30), metrics=[]
        ).fit((x, t), epochs=9, sample_weight=w, progress=False)
