"""Optimizers: PyTorch's and optax's steps, in programs and by hand; weight decay by parameter, clipping, L-BFGS."""

import os
import signal
import sys
from functools import cache

import numpy as np
import pytest

import xnn
from xnn import data, layers, losses, optimizers
from xnn.backends import get_backend
from xnn.benchmarks.exactness.digest_run import Training
from xnn.callbacks import Callback
from xnn.errors import DivergenceError, MissingExtraError, NumericsError, OptionError
from xnn.layers import Parameter
from xnn.layers.files import weights_sha256
from xnn.ops import updates
from xnn.ops.apply import apply_rule
from xnn.options import check_real
from xnn.runs.mlp import mlp

X, Y = data.synthetic_digits(330)
LIB = get_backend("numpy")


@pytest.fixture(params=["numpy", "compiled"])
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


def parameter(value, name="weight", dtype="float64"):
    p = Parameter(name, value.shape, lambda stream, shape: np.zeros(shape), dtype)
    p.value = value
    return p


# The rules against PyTorch's and optax's.

THEIRS = {"learning_rate": "lr", "epsilon": "eps"}
THEIR_NAMES = {"AdaGrad": "Adagrad", "RMSProp": "RMSprop", "AdaDelta": "Adadelta", "Nadam": "NAdam"}
RULES = [
    ("AdaGrad", {}),
    ("AdaGrad", {"learning_rate": 0.1, "epsilon": 1e-3, "weight_decay": 0.02}),
    ("RMSProp", {}),
    ("RMSProp", {"alpha": 0.9, "momentum": 0.8, "weight_decay": 0.02}),
    ("RMSProp", {"centered": True}),
    ("RMSProp", {"learning_rate": 0.003, "centered": True, "momentum": 0.9, "epsilon": 1e-4}),
    ("AdaDelta", {}),
    ("AdaDelta", {"learning_rate": 0.3, "rho": 0.8, "epsilon": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"learning_rate": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.3, "amsgrad": True}),
    ("Nadam", {}),
    ("Nadam", {"betas": (0.8, 0.99), "momentum_decay": 0.1, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize(("dtype", "tight"), [("float32", 1e-6), ("float64", 1e-12)])
def test_thirty_steps_of_pytorch(name, options, dtype, tight):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    start = rng.normal(size=(3, 4)).astype(dtype)
    p, ours = parameter(start.copy(), dtype=dtype), getattr(optimizers, name)(**options)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which NAdam keeps its product
    try:
        w = torch.tensor(start, requires_grad=True)
        kind = getattr(torch.optim, THEIR_NAMES.get(name, name))
        theirs = kind([w], **{THEIRS.get(k, k): v for k, v in options.items()})
        for _ in range(30):
            # Not near 0: a rule that divides by the size of the gradient would magnify its last bit.
            gradient = (np.sign(rng.normal(size=(3, 4))) * (0.1 + rng.random((3, 4)))).astype(dtype)
            p.grad, w.grad = gradient, torch.tensor(gradient)
            ours.step([p])
            theirs.step()
            np.testing.assert_allclose(p.value, w.detach().numpy(), rtol=3 * tight, atol=tight)
            assert p.value.dtype == dtype
    finally:
        torch.set_default_dtype(before)
    assert np.abs(p.value - start).max() > 1e-5


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "weight_decay": 0.2}])
def test_thirty_steps_of_optax(options):
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(4)
    start = rng.normal(size=(3, 4))
    p, ours = parameter(start.copy()), optimizers.Lion(0.01, **options)
    b1, b2 = options.get("betas", (0.9, 0.99))
    theirs = optax.lion(0.01, b1=b1, b2=b2, weight_decay=options.get("weight_decay", 1e-3))
    with jax.enable_x64(True):
        w = jax.numpy.asarray(start)
        state = theirs.init(w)
        for _ in range(30):
            p.grad = rng.normal(size=(3, 4))
            ours.step([p])
            change, state = theirs.update(jax.numpy.asarray(p.grad), state, w)
            w = optax.apply_updates(w, change)
            np.testing.assert_allclose(p.value, np.asarray(w), rtol=1e-12, atol=1e-14)


def test_first_steps_written_out():
    """The formulas for the first step, from w = 1 with gradient g."""
    g, rate = 0.5, 0.1
    first = {
        optimizers.AdaGrad(rate): 1 - rate,
        optimizers.RMSProp(rate, alpha=0.75): 1 - rate / 0.5,
        optimizers.AdaDelta(rate, rho=0.75, epsilon=0.01): 1
        - rate * g * 0.1 / np.sqrt(0.25 * 0.25 + 0.01),
        optimizers.Adam(rate, amsgrad=True): 1 - rate,
        optimizers.AdamW(rate, weight_decay=0.5): 0.95 - rate,
        optimizers.Lion(rate, weight_decay=0.5): 1 - rate * 1.5,
    }  # fmt: skip
    for optimizer, expected in first.items():
        p = parameter(np.ones(1))
        p.grad = np.array([g])
        optimizer.step([p])
        np.testing.assert_allclose(p.value, [expected], rtol=1e-6, err_msg=type(optimizer).__name__)
    # Nadam with mu constant: momentum_decay = 0 makes it beta1 / 2.
    p = parameter(np.ones(1))
    p.grad = np.array([g])
    optimizers.Nadam(rate, betas=(0.8, 0.9), epsilon=0.0, momentum_decay=0.0).step([p])
    np.testing.assert_allclose(p.value, [1 - rate * (1 + 0.4 * 0.2 / (1 - 0.4 * 0.4))], rtol=1e-14)


def test_a_variance_that_rounding_makes_negative_is_zero():
    """With a constant gradient s - m^2 is 0 up to rounding, and its root would be NaN where it is negative."""
    p, rule = (
        parameter(np.zeros(50, np.float32), dtype="float32"),
        optimizers.RMSProp(1e-4, 0.5, 1e-3, 0, True),
    )
    gradient = np.linspace(0.1, 3, 50).astype(np.float32)
    for _ in range(80):
        p.grad = gradient
        rule.step([p])
    assert np.isfinite(p.value).all()


EVERY = {
    "sgd": lambda **o: optimizers.SGD(0.05, momentum=0.9, **o),
    "adagrad": lambda **o: optimizers.AdaGrad(0.02, **o),
    "rmsprop": lambda **o: optimizers.RMSProp(0.002, centered=True, momentum=0.5, **o),
    "adadelta": lambda **o: optimizers.AdaDelta(0.5, **o),
    "adam": lambda **o: optimizers.Adam(0.003, **o),
    "amsgrad": lambda **o: optimizers.Adam(0.003, amsgrad=True, **o),
    "adamw": lambda **o: optimizers.AdamW(0.003, **o),
    "nadam": lambda **o: optimizers.Nadam(0.003, **o),
    "lion": lambda **o: optimizers.Lion(0.001, **o),
}
BY_NAME = {"weight": 1e-2}


def network(dtype="float32"):
    return xnn.Sequential(
        layers.Rescale(1 / 255, dtype=dtype), layers.Dense(784, 24, dtype=dtype), layers.Tanh(),
        layers.Dense(24, 10, dtype=dtype), seed=3,
    )  # fmt: skip


def train(rule, kernels="ops", epochs=1, model=None, **options):
    model = model or network()
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rule, kernels=kernels, threads=1, **options)
    history = trainer.fit((X, Y), epochs=epochs, batch_size=32, seed=5, progress=False)
    return trainer, history


def by_hand(rule, steps=11):
    """The first epoch of `train`, by hand."""
    model, loss = network(), losses.SoftmaxCrossEntropy()
    for rows in list(data.Batches((X, Y), 32, seed=5).numbers(0))[:steps]:
        loss.forward(model.forward(X[rows], training=True), Y[rows])
        model.backward(loss.backward(), input_gradient=False)
        rule.step(model.parameters())
    return model


@cache
def exact_by_ops(name, number):
    """The digests of an epoch in exact numerics by ops, and that of its weights by hand. number: in OPTIONS."""
    trainer, history = train(EVERY[name](**OPTIONS[number]), numerics="exact")
    with xnn.numerics("exact"):
        hand = by_hand(EVERY[name](**OPTIONS[number]))
    return (weights_sha256(trainer.model), history.losses_sha256), weights_sha256(hand)


def weights(model):
    return np.concatenate([model.backend.to_host(p.value).ravel() for p in model.parameters()])


OPTIONS = [{}, {"weight_decay": BY_NAME, "clip_norm": 0.3, "clip_value": 0.01}]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "decay and clipping"])
@pytest.mark.parametrize("name", EVERY)
class TestPrograms:
    def test_are_the_steps_by_hand_bit_for_bit(self, name, options):
        trainer, _ = train(EVERY[name](**options))
        model = by_hand(EVERY[name](**options))
        assert weights(trainer.model).tobytes() == weights(model).tobytes()
        for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True):
            assert p.grad.tobytes() == q.grad.tobytes()

    @pytest.mark.sampled(3)
    def test_kernels_change_rounding_only(self, kernels, name, options):
        (one, first), (two, second) = train(EVERY[name](**options)), train(EVERY[name](**options), kernels)
        assert second["loss"][0] == pytest.approx(first["loss"][0], rel=1e-3)
        for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
            # The last bit of a gradient near 0 may turn the sign of Lion's step, and change a scaled step much.
            assert np.median(np.abs(p.value - q.value)) <= 1e-6
            state, other = (t.optimizer.state_of(w) for t, w in ((one, p), (two, q)))
            assert len(state.arrays) == len(other.arrays)
            assert state.numbers == other.numbers

    @pytest.mark.sampled(6)
    def test_exact_bits_are_those_of_every_kernel_and_of_the_steps_by_hand(self, kernels, name, options):
        trainer, history = train(EVERY[name](**options), kernels, numerics="exact")
        found = (weights_sha256(trainer.model), history.losses_sha256)
        by_ops, weights_by_hand = exact_by_ops(name, OPTIONS.index(options))
        assert found == by_ops
        assert found[0] == weights_by_hand

    @pytest.mark.sampled(4)
    def test_two_fits_of_one_epoch_are_one_of_two(self, kernels, name, options):
        one, _ = train(EVERY[name](**options), kernels, epochs=2)
        two, _ = train(EVERY[name](**options), kernels)
        two.fit((X, Y), batch_size=32, seed=5, progress=False)
        assert weights_sha256(one.model) == weights_sha256(two.model)
        assert one.optimizer.steps == two.optimizer.steps == 22


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["adagrad", "nadam", "lion"])
def test_exact_bits_do_not_see_the_number_of_workers(lib, name):
    def build():
        model = mlp(784, (12,), 10, "tanh", rescale=(1 / 255, 0.0), seed=3)
        return model, losses.SoftmaxCrossEntropy(), EVERY[name](weight_decay=BY_NAME, clip_norm=0.2)

    found = []
    for workers in (0, 1, 3):
        run = Training(build, "exact", workers=workers)
        found.append((run.fit(X[:100], Y[:100]), weights_sha256(run.model)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", EVERY)
def test_every_backend(lib, name):
    """A step does not change the arrays given, a snapshot can be restored, and the update is that of NumPy."""
    start, gradient = np.linspace(-1, 1, 6), np.linspace(0.5, -2, 6)
    p, rule = parameter(lib.to_device(start)), EVERY[name](clip_norm=1.0, clip_value=1.5)
    q, plain = parameter(start), EVERY[name](clip_norm=1.0, clip_value=1.5)
    for _ in range(3):
        given, p.grad, q.grad = p.value, lib.to_device(gradient), gradient
        kept = rule.snapshot()
        rule.step([p])
        plain.step([q])
    np.testing.assert_allclose(lib.to_host(p.value), q.value, rtol=1e-13)
    after, p.value, p.grad = p.value, given, lib.to_device(gradient)
    rule.restore(kept)
    rule.step([p])
    assert lib.to_host(p.value).tobytes() == lib.to_host(after).tobytes()
    assert gradient.tolist() == np.linspace(0.5, -2, 6).tolist()


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "nadam"])
def test_a_layer_that_is_frozen_and_thawed(kernels, name):
    """Programs then have other groups of parameters."""

    class Thaw(Callback):
        def on_epoch_end(self, history, entry):
            trainer.model.layers[3].weight.frozen = False

    found = []
    for table in ("ops", kernels):
        model = network()
        model.layers[3].weight.frozen = True
        before = model.layers[3].weight.value.copy()
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), EVERY[name](clip_norm=0.5), kernels=table)
        trainer.fit((X, Y), batch_size=32, seed=5, progress=False)
        assert model.layers[3].weight.value.tobytes() == before.tobytes()
        trainer.callbacks.append(Thaw())
        trainer.fit((X, Y), epochs=2, batch_size=32, seed=5, progress=False)
        assert model.layers[3].weight.value.tobytes() != before.tobytes()
        found.append(weights(model))
    assert np.median(np.abs(found[0] - found[1])) <= 1e-6


# Weight decay by parameter.


class TestWeightDecay:
    def test_by_name_by_function_and_by_number(self):
        def decayed(weight_decay):
            ps = [parameter(np.ones((2, 2)), "weight"), parameter(np.ones(2), "bias")]
            for p in ps:
                p.grad = np.zeros(p.shape)
            optimizers.SGD(0.1, weight_decay=weight_decay).step(ps)
            return [float(p.value.ravel()[0]) for p in ps]

        assert decayed(0.5) == [0.95, 0.95]
        assert decayed({"weight": 0.5}) == [0.95, 1.0]
        assert decayed({"weight": np.float32(0.5), "bias": 1}) == [0.95, 0.9]
        assert decayed(lambda p: 0.5 if len(p.shape) > 1 else 0.0) == [0.95, 1.0]

    def test_pytorchs_parameter_groups(self):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(1)
        ps = [parameter(rng.normal(size=(3, 2)), "weight"), parameter(rng.normal(size=2), "bias")]
        ws = [torch.tensor(p.value, requires_grad=True) for p in ps]
        theirs = torch.optim.AdamW(
            [{"params": ws[:1]}, {"params": ws[1:], "weight_decay": 0.0}], weight_decay=0.3
        )
        ours = optimizers.AdamW(weight_decay={"weight": 0.3})
        for _ in range(20):
            for p, w in zip(ps, ws, strict=True):
                p.grad = rng.normal(size=p.shape)
                w.grad = torch.tensor(p.grad)
            ours.step(ps)
            theirs.step()
        for p, w in zip(ps, ws, strict=True):
            np.testing.assert_allclose(p.value, w.detach().numpy(), rtol=1e-12)

    def test_groups_of_a_program(self, kernels):
        """There is a group for each decay; plain SGD is folded into a product only where no parameter has a decay."""
        trainer, history = train(optimizers.SGD(0.1, weight_decay=BY_NAME), kernels)
        assert not history.plan["folded"]
        first = trainer.model.layers[1].weight
        trainer, history = train(
            optimizers.SGD(0.1, weight_decay=lambda p: 0.1 if p.shape == first.shape else 0.0), kernels
        )
        assert history.plan["folded"]

    @pytest.mark.parametrize("after", [BY_NAME, 0.01, lambda p: 0.01 / len(p.shape)])
    def test_a_callback_may_change_it(self, kernels, after):
        class Change(Callback):
            def on_epoch_end(self, history, entry):
                trainer.optimizer.weight_decay = after

        found = []
        for table in ("ops", kernels):
            trainer, _ = train(optimizers.SGD(0.1), table)
            trainer.callbacks.append(Change())
            trainer.fit((X, Y), epochs=2, batch_size=32, seed=5, progress=False)
            found.append(weights(trainer.model))
        trainer, _ = train(optimizers.SGD(0.1), epochs=2)
        trainer.optimizer.weight_decay = after
        trainer.fit((X, Y), batch_size=32, seed=5, progress=False)
        assert weights(trainer.model).tobytes() == found[0].tobytes()
        np.testing.assert_allclose(found[1], found[0], atol=2e-5)

    def test_a_name_that_no_parameter_has(self):
        with pytest.raises(OptionError, match=r"names 'weights', and the parameters are called weight, bias"):
            train(optimizers.SGD(0.1, weight_decay={"weight": 0.1, "weights": 0.1}))
        with pytest.raises(OptionError, match="names 'scale'"):
            optimizers.Adam(weight_decay={"scale": 0.1}).step([parameter(np.ones(2))])

    @pytest.mark.parametrize("answer", [-1.0, float("nan"), None, "0.1", np.ones(2)])
    def test_a_function_that_gives_no_decay(self, answer):
        with pytest.raises(OptionError, match="weight_decay of weight must be a finite number at least 0"):
            train(optimizers.SGD(0.1, weight_decay=lambda p: answer))

    @pytest.mark.parametrize("answer", [-1.0, float("nan"), None, "0.1", np.ones(2)])
    def test_a_function_that_gives_no_decay_later(self, kernels, answer):
        answers = [0.1]
        rule = optimizers.SGD(0.1, weight_decay=lambda p: answers[-1])
        train(rule, kernels)
        answers.append(answer)
        with pytest.raises(OptionError, match="weight_decay of weight must be a finite number at least 0"):
            train(rule, kernels)
        with pytest.raises(OptionError, match="weight_decay of weight must be a finite number at least 0"):
            by_hand(rule)

    def test_a_mapping_that_is_changed(self):
        rule = optimizers.SGD(0.1, weight_decay=BY_NAME)
        rule.weight_decay["weight"] = 0.5
        assert rule.decay_of(parameter(np.ones(2))) == 0.5
        rule.weight_decay["weight"] = -1.0
        with pytest.raises(OptionError, match=r"weight_decay of weight must be .*, got -1\.0"):
            rule.decay_of(parameter(np.ones(2)))


class TestOptionsThatAreAssigned:
    @pytest.mark.parametrize("rate", [-0.1, float("inf"), None, "0.1", True, lambda step: -1.0, lambda: 0.1])
    def test_a_learning_rate(self, rate):
        rule = optimizers.SGD(0.1)
        with pytest.raises(OptionError, match="learning"):
            rule.learning_rate = rate
        assert rule.learning_rate == 0.1

    @pytest.mark.parametrize("decay", [-0.1, float("inf"), None, "0.1", [0.1], {"weight": -1.0}])
    def test_a_weight_decay(self, decay):
        rule = optimizers.SGD(0.1, weight_decay=0.2)
        with pytest.raises(OptionError, match=r"weight_decay.* must be a finite number at least 0"):
            rule.weight_decay = decay
        assert rule.weight_decay == 0.2

    @pytest.mark.parametrize("answer", [-1.0, float("nan"), float("inf"), None, "0.1", np.ones(2)])
    def test_a_schedule_that_gives_no_rate_later(self, kernels, answer):
        rule = optimizers.SGD(lambda step: answer if step == 5 else 0.1)
        with pytest.raises(OptionError, match=r"learning_rate\(5\) must be a finite number at least 0"):
            train(rule, kernels)
        with pytest.raises(OptionError, match=r"learning_rate\(5\) must be a finite number at least 0"):
            by_hand(optimizers.SGD(rule.learning_rate))

    def test_numpys_numbers_become_pythons(self):
        rule = optimizers.SGD(lambda step: np.float64(0.25), weight_decay=lambda p: np.float64(0.5))
        assert type(rule.rate) is type(rule.decay_of(parameter(np.ones(2)))) is float
        rule.learning_rate = rule.weight_decay = np.float64(0.5)
        assert type(rule.rate) is type(rule.decay_of(parameter(np.ones(2)))) is float

    @pytest.mark.parametrize("decay", [0.1, BY_NAME, lambda p: 0.1])
    @pytest.mark.parametrize("rate", [0.1, lambda step: 0.1])
    def test_are_not_checked_anew_at_each_step(self, monkeypatch, rate, decay):
        seen, check = [], check_real
        monkeypatch.setattr("xnn.optimizers.optimizer.check_real", lambda *o: (seen.append(o), check(*o))[1])
        rule = optimizers.SGD(rate, weight_decay=decay)
        by_hand(rule, steps=1)
        first = len(seen)
        assert first <= 7  # each option, and what a function says of each parameter
        train(rule, model=network())
        assert len(seen) <= first + 4  # a new model's parameters

    @pytest.mark.parametrize(
        ("rule", "text"),
        [
            (optimizers.SGD(), "SGD(learning_rate=0.01)"),
            (optimizers.SGD(1, 0.9, nesterov=True), "SGD(learning_rate=1.0, momentum=0.9, nesterov=True)"),
            (optimizers.Adam(clip_norm=1, average=0.99), "Adam(learning_rate=0.001, clip_norm=1.0, average=0.99)"),
            (optimizers.Nadam(betas=(0.8, 0.9)), "Nadam(learning_rate=0.002, betas=(0.8, 0.9))"),
            (optimizers.Lion(weight_decay=BY_NAME), "Lion(learning_rate=0.0001, weight_decay={'weight': 0.01})"),
            (
                optimizers.AdamW(xnn.schedules.Constant(0.1), weight_decay=len),
                "AdamW(learning_rate=Constant(rate=0.1), weight_decay=len)",
            ),
        ],
        ids=str,
    )  # fmt: skip
    def test_repr(self, rule, text):
        assert repr(rule) == text


# Clipping.


class Gradients(Callback):
    """Every step's gradients as the optimizer saw them."""

    needs_gradients = True

    def __init__(self, model):
        self.model, self.norms, self.largest = model, [], []

    def on_step(self, history, epoch, step, loss):
        flat = np.concatenate([p.grad.ravel() for p in self.model.parameters()])
        self.norms.append(float(np.linalg.norm(flat)))
        self.largest.append(float(np.abs(flat).max()))


class TestClipping:
    @pytest.mark.parametrize("limit", [0.5, 1e3])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_pytorchs(self, dtype, limit):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(2)
        gradients = [rng.normal(size=shape).astype(dtype) for shape in ((4, 3), (3,), ())]
        ws = [torch.zeros(g.shape, dtype=getattr(torch, dtype), requires_grad=True) for g in gradients]
        for how, ours in (
            (torch.nn.utils.clip_grad_norm_, updates.clip_by_norm),
            (torch.nn.utils.clip_grad_value_, updates.clip_by_value),
        ):
            for w, g in zip(ws, gradients, strict=True):
                w.grad = torch.tensor(g)
            how(ws, limit)
            for w, g in zip(ws, ours(np, *gradients, limit=limit), strict=True):
                assert g.dtype == dtype
                np.testing.assert_allclose(g, w.grad.numpy(), rtol=1e-6 if dtype == "float32" else 1e-14)

    def test_dtypes_stay_where_two_meet(self, lib):
        pair = [lib.to_device(np.ones(4, np.float32)), lib.to_device(np.ones(5))]
        clipped = updates.clip_by_norm(lib.xp, *pair, limit=0.3)
        assert [g.dtype for g in clipped] == [g.dtype for g in pair]
        np.testing.assert_allclose(lib.to_host(clipped[0]), 0.1, rtol=1e-5)
        np.testing.assert_allclose(lib.to_host(pair[0]), 1.0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("rule", [updates.clip_by_norm, updates.clip_by_value])
    @pytest.mark.parametrize("mode", ["fast", "exact"])
    def test_what_is_not_finite_is_not_hidden(self, lib, rule, bad, mode):
        with xnn.numerics(mode), np.errstate(all="ignore"):
            given = [lib.to_device(np.array([1.0, bad], np.float32)), lib.to_device(np.ones(2, np.float32))]
            clipped = apply_rule(rule, lib.math, given, {"limit": 0.5})
        assert not np.isfinite(lib.to_host(clipped[0])[1])

    def test_a_norm_that_overflows_is_not_hidden(self):
        with np.errstate(all="ignore"):
            (clipped,) = updates.clip_by_norm(np, np.full(3, 1e30, np.float32), limit=1.0)
        assert np.isnan(clipped).all()

    def test_in_training(self, kernels):
        for options, limits in (
            ({"clip_norm": 0.2}, (0.2, 1)),
            ({"clip_value": 0.005}, (9, 0.005)),
            ({"clip_norm": 0.2, "clip_value": 0.01}, (0.2, 0.01)),
        ):
            model = network()
            watch = Gradients(model)
            _, history = train(
                optimizers.SGD(0.1, **options), kernels, model=model, callbacks=[watch], epochs=2
            )
            assert max(watch.norms) <= limits[0] * (1 + 1e-6)
            assert max(watch.largest) <= limits[1]
            assert history["loss"][1] < history["loss"][0]
        assert not history.plan["folded"]

    def test_keeps_sgd_from_being_folded(self, kernels):
        trainer, history = train(optimizers.SGD(0.1, clip_norm=0.2), kernels)
        assert not history.plan["folded"]
        norm = np.linalg.norm(np.concatenate([p.grad.ravel() for p in trainer.model.parameters()]))
        assert norm <= 0.2 * (1 + 1e-6)
        _, history = train(optimizers.SGD(0.1), kernels)
        assert history.plan["folded"]

    def test_nothing_to_clip(self):
        model = network()
        before = weights_sha256(model)
        for p in model.parameters():
            p.frozen = True
        with pytest.raises(OptionError, match="nothing to train"):
            train(optimizers.SGD(0.1, clip_norm=0.1), model=model)
        assert weights_sha256(model) == before
        optimizers.SGD(0.1, clip_norm=0.1).step(model.parameters())

    def test_a_limit_beyond_every_gradient_changes_nothing(self):
        plain, _ = train(optimizers.SGD(0.1, momentum=0.9))
        clipped, _ = train(optimizers.SGD(0.1, momentum=0.9, clip_norm=1e6, clip_value=1e6))
        assert weights_sha256(plain.model) == weights_sha256(clipped.model)

    def test_a_callback_may_change_it(self, kernels):
        class Change(Callback):
            def on_epoch_end(self, history, entry):
                trainer.optimizer.clip_norm = 0.1

        found = []
        for table in ("ops", kernels):
            trainer, _ = train(optimizers.SGD(0.1), table)
            trainer.callbacks.append(Change())
            trainer.fit((X, Y), epochs=2, batch_size=32, seed=5, progress=False)
            flat = np.concatenate([p.grad.ravel() for p in trainer.model.parameters()])
            assert np.linalg.norm(flat) <= 0.1 * (1 + 1e-6)
            found.append(weights(trainer.model))
        np.testing.assert_allclose(found[1], found[0], atol=2e-5)

    def test_an_optimizer_with_an_update_of_its_own_clips_once(self, kernels):
        class Own(optimizers.SGD):
            def update(self, p):
                p.value = p.value - np.float32(self.rate) * p.grad

        own, _ = train(Own(0.1, clip_norm=0.2), kernels)
        plain, _ = train(optimizers.SGD(0.1, clip_norm=0.2))
        np.testing.assert_allclose(weights(own.model), weights(plain.model), atol=1e-6)

    @pytest.mark.parametrize("options", [{"clip_norm": 0.1}, {"clip_value": 0.1}])
    def test_divergence_is_named_as_without(self, kernels, options):
        class Bad(xnn.Op):
            def forward(self, xp, x):
                return x, None

            def backward(self, xp, grad, saved):
                return (grad * xp.inf,)

        model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(784, 10), layers.Function(Bad()), seed=1)
        with pytest.raises(DivergenceError, match=r"the gradient of 1.weight is not finite"):
            train(optimizers.SGD(0.1, **options), kernels, model=model)
        assert np.isfinite(weights(model)).all()

    def test_lion_does_not_hide_it_either(self):
        p, rule = parameter(np.ones(3)), optimizers.Lion(0.1)
        p.grad = np.array([np.inf, np.nan, 1.0])
        rule.step([p])
        assert np.isfinite(p.value).tolist() == [False, False, True]


@pytest.mark.parametrize(
    "build",
    [
        lambda: optimizers.AdaGrad(epsilon=-1),
        lambda: optimizers.RMSProp(alpha=1.0),
        lambda: optimizers.RMSProp(momentum=1.0),
        lambda: optimizers.RMSProp(epsilon=-1e-8),
        lambda: optimizers.AdaDelta(rho=1.5),
        lambda: optimizers.AdamW(betas=(1.0, 0.9)),
        lambda: optimizers.AdamW(weight_decay=-0.1),
        lambda: optimizers.Nadam(momentum_decay=-1),
        lambda: optimizers.Nadam(betas=(0.9, 1)),
        lambda: optimizers.Lion(betas=(0.9, 1.0)),
        lambda: optimizers.Lion(-1e-4),
        lambda: optimizers.Lion(betas=("a", 0.9)),
        lambda: optimizers.SGD(clip_norm=0),
        lambda: optimizers.SGD(clip_norm=-1.0),
        lambda: optimizers.SGD(clip_norm=float("inf")),
        lambda: optimizers.Adam(clip_value=0.0),
        lambda: optimizers.Adam(clip_value="1"),
        lambda: optimizers.Adam(clip_value=True),
        lambda: optimizers.Adam(weight_decay={"weight": -1}),
        lambda: optimizers.Adam(weight_decay={"weight": None}),
        lambda: optimizers.Adam(weight_decay="0.1"),
        lambda: optimizers.Adam(weight_decay=[0.1, 0.0]),
    ],
)
def test_options_that_make_no_sense(build):
    with pytest.raises(OptionError, match=r"must be (a finite number|above 0)"):
        build()


@pytest.mark.parametrize("rule", [optimizers.Adam, optimizers.AdamW, optimizers.Nadam, optimizers.Lion])
@pytest.mark.parametrize("betas", [0.9, None, (0.9,), (0.9, 0.99, 0.999), "ab"])
def test_betas_are_two(rule, betas):
    with pytest.raises(OptionError, match="betas must be two numbers"):
        rule(betas=betas)


# L-BFGS.


def regression(dtype="float64"):
    x = np.random.default_rng(0).normal(size=(90, 3)).astype(dtype)
    y = (np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:]).astype(dtype)
    model = xnn.Sequential(
        layers.Dense(3, 12, dtype=dtype), layers.Tanh(), layers.Dense(12, 1, dtype=dtype), seed=2
    )
    return model, (x, y)


class TestLBFGS:
    @pytest.fixture(autouse=True)
    def _scipy(self):
        pytest.importorskip("scipy")

    def fit(self, optimizer, epochs=60, dtype="float64", model=None, batch_size=32, **options):
        own, pair = regression(dtype)
        trainer = xnn.Trainer(model or own, losses.MSE(), optimizer, **options)
        return trainer, trainer.fit(pair, epochs=epochs, batch_size=batch_size, progress=False)

    def test_a_linear_model_is_solved(self):
        """Least squares has one solution, with a penalty too."""
        x = np.random.default_rng(1).normal(size=(40, 3))
        y = x @ [[1.0], [-2.0], [0.5]] + 0.1 * np.random.default_rng(2).normal(size=(40, 1))
        for decay in (0.0, 0.3):
            model = xnn.Sequential(layers.Dense(3, 1, bias=False, dtype="float64"), seed=0)
            trainer = xnn.Trainer(model, losses.MSE(), optimizers.LBFGS(1e-9, weight_decay=decay), metrics=[])
            history = trainer.fit((x, y), epochs=100, batch_size=16, progress=False)
            solved = np.linalg.solve(2 / 40 * x.T @ x + decay * np.eye(3), 2 / 40 * x.T @ y)
            np.testing.assert_allclose(model.layers[0].weight.value, solved, rtol=1e-7)
            assert 1 <= len(history.epochs) < 100
            assert history.epochs[-1]["loss"] == pytest.approx(np.mean((x @ solved - y) ** 2), rel=1e-7)

    def test_history_validation_and_callbacks(self, kernels):
        class Watch(Callback):
            def on_step(self, history, epoch, step, loss):
                seen.append((epoch, step, loss, trainer.evaluate(pair)["loss"]))

        seen = []
        model, pair = regression()
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.LBFGS(), callbacks=[Watch()], kernels=kernels)
        history = trainer.fit(pair, validation=pair, epochs=25, batch_size=32, progress=False)
        assert [e["epoch"] for e in history.epochs] == list(range(1, 26))
        assert all(b <= a for a, b in zip(history["loss"], history["loss"][1:], strict=False))
        np.testing.assert_allclose(history["val_loss"], history["loss"], rtol=1e-12)
        assert [s[:2] for s in seen] == [(n, 1) for n in range(25)]
        np.testing.assert_allclose([s[2] for s in seen], [s[3] for s in seen], rtol=1e-12)
        assert history.steps >= 25
        assert history.samples == 90 * history.steps == 90 * trainer.step
        assert trainer.evaluate(pair)["loss"] == pytest.approx(history["loss"][-1], rel=1e-12)
        again = trainer.fit(pair, epochs=2, batch_size=32, progress=False)
        assert [e["epoch"] for e in again.epochs] == [26, 27]
        assert again["loss"][1] < history["loss"][-1]

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_how_the_data_are_cut_does_not_matter(self, lib, dtype):
        """Nor does the backend matter: the search is the same up to rounding."""
        _, one = self.fit(optimizers.LBFGS(), epochs=5, dtype=dtype)
        _, other = self.fit(optimizers.LBFGS(), epochs=5, dtype=dtype, batch_size=90)
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-3 if dtype == "float32" else 1e-9)

    def test_scikit_learns(self):
        """The same minimum of the same convex problem: softmax regression with an L2 penalty."""
        linear = pytest.importorskip("sklearn.linear_model")
        x, y = np.random.default_rng(3).normal(size=(60, 4)), np.arange(60) % 3
        model = xnn.Sequential(layers.Dense(4, 3, dtype="float64"), seed=0)
        rule = optimizers.LBFGS(1e-10, weight_decay={"weight": 0.1})
        xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rule).fit((x, y), epochs=200, progress=False)
        theirs = linear.LogisticRegression(C=1 / (0.1 * 60), tol=1e-10, max_iter=1000).fit(x, y)
        np.testing.assert_allclose(model.layers[0].weight.value, theirs.coef_.T, atol=1e-6)

    def test_frozen_parameters_stay(self):
        model, pair = regression()
        model.layers[0].weight.frozen = True
        before = model.layers[0].weight.value.copy()
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.LBFGS())
        history = trainer.fit(pair, epochs=20, progress=False)
        assert model.layers[0].weight.value.tobytes() == before.tobytes()
        assert history["loss"][-1] < history["loss"][0]
        for p in model.parameters():
            p.frozen = True
        with pytest.raises(OptionError, match="nothing to train"):
            trainer.fit(pair, progress=False)

    def test_where_nothing_counts_nothing_changes(self, kernels):
        """The mean over no labels and its gradient are 0, not 0 / 0."""
        x, y = np.ones((9, 4)), np.zeros(9, int)
        loss = losses.SoftmaxCrossEntropy(ignore_index=0)
        model = xnn.Sequential(layers.Dense(4, 3, dtype="float64"), seed=1)
        before = weights_sha256(model)
        trainer = xnn.Trainer(model, loss, optimizers.LBFGS(), kernels=kernels)
        history = trainer.fit((x, y), epochs=3, batch_size=4, progress=False)
        assert weights_sha256(model) == before
        assert all(entry["loss"] == 0.0 for entry in history.epochs)

    def test_ctrl_c_ends_after_the_iteration(self):
        class Stop(Callback):
            def on_epoch_end(self, history, entry):
                if entry["epoch"] == 3:
                    os.kill(os.getpid(), signal.SIGINT)

        trainer, history = self.fit(optimizers.LBFGS(), callbacks=[Stop()])
        assert len(history.epochs) == 3
        assert history.interrupted
        assert trainer.evaluate(regression()[1])["loss"] == pytest.approx(history["loss"][-1], rel=1e-12)

    def test_a_loss_that_is_not_finite(self, kernels):
        class Overflow(xnn.Op):
            def forward(self, xp, x):
                self.calls = getattr(self, "calls", 0) + 1
                return (x if self.calls < 20 else x * xp.nan), None

            def backward(self, xp, grad, saved):
                return (grad,)

        op = Overflow()
        model = xnn.Sequential(*regression()[0].layers, layers.Function(op), seed=2)
        with pytest.raises(DivergenceError, match="those of the iteration before") as caught:
            self.fit(optimizers.LBFGS(), model=model, kernels=kernels)
        op.calls = 0
        last = caught.value.history.epochs[-1]["loss"]
        evaluated = xnn.Trainer(model, losses.MSE(), optimizers.SGD()).evaluate(regression()[1])
        assert evaluated["loss"] == pytest.approx(last, rel=1e-12)

    def test_refusals(self):
        with pytest.raises(OptionError, match="give it to a Trainer"):
            optimizers.LBFGS().step([])
        model = xnn.Sequential(
            layers.Dense(3, 8, dtype="float64"), layers.Dropout(0.5), layers.Dense(8, 1, dtype="float64")
        )
        with pytest.raises(OptionError, match="draw random numbers"):
            self.fit(optimizers.LBFGS(), model=model)
        with pytest.raises(NumericsError, match="choose another optimizer"):
            self.fit(optimizers.LBFGS(), dtype="float32", numerics="exact")
        for options in ({"tolerance": -1}, {"memory": 0}, {"weight_decay": -1}):
            with pytest.raises(OptionError, match="must be"):
                optimizers.LBFGS(**options)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[scipy\]"'):
        optimizers.LBFGS()


def test_step_takes_the_gradients_that_grad_returns():
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    one, two = (xnn.Sequential(layers.Dense(3, 2), seed=1) for _ in range(2))
    loss = losses.MSE()
    for rule, model in (
        (optimizers.Adam(0.1, clip_norm=0.5), one),
        (optimizers.Adam(0.1, clip_norm=0.5), two),
    ):
        parameters = model.parameters()
        for _ in range(3):
            if model is one:
                loss(model(x), y)
                model.backward(loss.backward())
                rule.step(parameters)
            else:
                rule.step(parameters, xnn.grad(lambda p, m=model: loss(m(x), y))(parameters))
    assert weights_sha256(one) == weights_sha256(two)
    with pytest.raises(OptionError, match="got 1 gradients for 2 parameters"):
        rule.step(parameters, [parameters[0].grad])
