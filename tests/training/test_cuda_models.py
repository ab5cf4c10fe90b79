"""Training of convolutions, normalizations, embeddings by CUDA kernels: captured, with the numbers of the CPU."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_cuda_programs import (
    CLASSES,
    FEATURES,
    Launch,
    Product,
    X,
    Y,
    bits,
    check_same,
    network,
    pytestmark,
    recorder,
    stepper_of,
    train,
)

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import get_backend
from xnn.backends.kernels import fusion
from xnn.callbacks import Callback, EarlyStopping
from xnn.data import Batches
from xnn.errors import DivergenceError

__all__ = ["pytestmark"]


VALIDATION = X[:60], Y[:60]


def images(*between, pool=layers.MaxPool2D):
    return xnn.Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 4, 5)), layers.Conv2D(1, 3, 3, padding=1), *between,
        layers.ReLU(), pool(2), layers.Flatten(), layers.Dense(12, CLASSES), seed=1,
    )  # fmt: skip


class Residual(layers.Layer):
    """x + f(norm(x)): the gradient of x is a sum of three."""

    def __init__(self):
        super().__init__()
        self.norm, self.dense = layers.LayerNorm(33), layers.Dense(33, 33)

    def compute(self, x):
        return x + ops.tanh(self.dense(self.norm(x)))


class Twice(layers.Layer):
    """The same normalization applied twice: its statistics move twice in a step."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNorm(33)

    def compute(self, x, training):
        return self.norm(ops.relu(self.norm(x)))


class DrawsTwice(layers.Layer):
    """Layers that draw random numbers, each applied twice: it draws others the second time."""

    def __init__(self):
        super().__init__()
        self.layers = (
            layers.Dropout(0.3),
            layers.RandomAffine(1.0, 20.0, shape=(4, 5)),
            layers.ElasticDeformation(5.0, 1.0, (4, 5)),
        )

    def compute(self, x, training):
        for layer in (*self.layers, *self.layers):
            x = layer(x)
        return x


def frozen_norm():
    norm = layers.BatchNorm(3)
    norm.weight.frozen = True
    return images(norm)


MODELS = {
    "convolution": images,
    "batch norm": lambda: images(layers.BatchNorm(3)),
    "without weights": lambda: images(layers.BatchNorm(3, affine=False), pool=layers.AvgPool2D),
    "frozen weight": frozen_norm,
    "batch norm of rows": lambda: network(layers.BatchNorm(33, momentum=0.3), layers.Tanh()),
    "layer norm": lambda: network(layers.LayerNorm(33)),
    "residual": lambda: network(Residual()),
    "data first": lambda: xnn.Sequential(
        layers.Rescale(1 / 255), layers.BatchNorm(FEATURES), layers.Dense(FEATURES, CLASSES), seed=2
    ),
    "global mean": lambda: xnn.Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 4, 5)), layers.Conv2D(1, CLASSES, 2, bias=False),
        layers.GlobalAvgPool(), seed=2,
    ),
    "augmentation": lambda: xnn.Sequential(
        layers.Rescale(1 / 255), *layers.augmentation((4, 5), 3.0), layers.Dense(FEATURES, CLASSES), seed=2
    ),
    "layers that draw twice": lambda: xnn.Sequential(
        layers.Rescale(1 / 255), DrawsTwice(), layers.Dense(FEATURES, CLASSES), seed=2
    ),
    "embedding": lambda: xnn.Sequential(
        layers.Embedding(256, 6), layers.Flatten(), layers.Dense(6 * FEATURES, CLASSES), seed=2
    ),
    "mean of an embedding": lambda: xnn.Sequential(
        layers.Embedding(256, 6), layers.Lambda(lambda x: ops.mean(x, axis=1)), layers.Dense(6, CLASSES), seed=2
    ),
}  # fmt: skip


def norm_of_another_model(axis):
    """A normalization whose weights belong to another model, so that ops run it, and the activation after it."""
    other = xnn.Sequential(layers.BatchNorm(33))
    for parameter in other.parameters():
        parameter.frozen = True

    class Norm(layers.Layer):
        def compute(self, x):
            return ops.relu(ops.normalize(x, ops.moments(x, axis=axis), *other.parameters(), axis=axis))

    return Norm()


@pytest.mark.parametrize("axis", [(0,), (1,)])
def test_what_a_fused_gradient_replaces_runs_as_its_forward_calls_do(axis):
    """The ops run the gradient of normalize, and with it of moments, whose forward call then is the op's too."""
    here, there = (train(lib, lambda: network(norm_of_another_model(axis))) for lib in ("numpy", "cupy"))
    assert {"moments", "normalize"} <= set(by_ops(there[0]))
    check_same(there, here, 5e-3)


@pytest.mark.parametrize("batch_size", [125, 50, 60])
def test_layers_draw_after_a_fit_what_they_draw_after_one_on_the_cpu(batch_size):
    """A forward pass in training by hand takes the next numbers of each layer."""

    def make():
        return xnn.Sequential(
            layers.Rescale(1 / 255),
            layers.Dropout(0.3),
            DrawsTwice(),
            layers.Dense(FEATURES, CLASSES),
            seed=2,
        )

    outputs = []
    for name in ("numpy", "cupy"):
        trainer = train(name, make, batch_size=batch_size)[0]
        lib, parts = trainer.model.backend, trainer.model.layers[1:3]
        ones = lib.to_device(np.ones((3, FEATURES), np.float32))
        outputs.append([lib.to_host(part.forward(ones, training=True)) for part in parts])
    for here, there in zip(*outputs, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def state_of(trainer):
    return [trainer.model.backend.to_host(value.value) for _, value in trainer.model.named_state()]


def by_ops(trainer):
    return [call.name for program in stepper_of(trainer).programs.values() for call in program.by_ops]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_captured_with_the_numbers_of_the_cpu(name):
    here, there = (
        train(
            lib,
            MODELS[name],
            lambda: optimizers.SGD(0.03, momentum=0.9),
            batch_size=50,
            validation=VALIDATION,
        )
        for lib in ("numpy", "cupy")
    )
    assert not by_ops(there[0])
    check_same(there, here, 5e-3)
    for a, b in zip(state_of(here[0]), state_of(there[0]), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.02, atol=2e-3)


def test_lbfgs_and_restored_epochs_keep_the_statistics_of_the_cpu():
    """Both go back to earlier numbers: after a line search, and to the best epoch."""
    pytest.importorskip("scipy")

    def make():  # without a bias, whose gradient is 0 but for rounding
        return xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(FEATURES, 12, bias=False), layers.BatchNorm(12), layers.Tanh(),
            layers.Dense(12, CLASSES), seed=1,
        )  # fmt: skip

    for optimizer, callbacks in (
        (optimizers.LBFGS, ()),
        (lambda: optimizers.Adam(0.05), (lambda: EarlyStopping(patience=1, monitor="loss"),)),
    ):
        here, there = (train(lib, make, optimizer, 4, callbacks, batch_size=250) for lib in ("numpy", "cupy"))
        assert here[0].history["loss"] == pytest.approx(there[0].history["loss"], rel=1e-3)
        for a, b in zip(state_of(here[0]), state_of(there[0]), strict=True):
            np.testing.assert_allclose(b, a, rtol=0.02, atol=2e-3)


def test_captured_normalization_has_the_bits_of_single_steps():
    """The callback sees each step, so nothing is captured."""

    class EachStep(Callback):
        def on_step(self, history, epoch, step, loss):
            pass

    def make():
        return images(layers.BatchNorm(3))

    one, other = train("cupy", make), train("cupy", make, callbacks=[EachStep])
    assert bits(one) == bits(other)
    assert [a.tobytes() for a in state_of(one[0])] == [a.tobytes() for a in state_of(other[0])]


def kept(each_step):
    """A callback that keeps the running statistics as it finds them."""

    class Keeps(Callback):
        def __init__(self):
            self.found = []

        def keep(self):
            norm = self.model.layers[3]
            self.found.append(
                [
                    (b.value, np.array(self.lib.to_host(b.value)))
                    for b in (norm.running_mean, norm.running_var)
                ]
            )

        def on_epoch_end(self, history, results):
            self.keep()

    if each_step:
        Keeps.on_step = lambda self, history, epoch, step, loss: self.keep()
    return Keeps()


@pytest.mark.parametrize("each_step", [False, True])
def test_callbacks_see_the_running_statistics_of_the_step_and_may_keep_them(each_step):
    found = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            model, callback = images(layers.BatchNorm(3)), kept(each_step)
            callback.model, callback.lib = model, get_backend(name)
            trainer = xnn.Trainer(
                model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05), callbacks=[callback]
            )
            trainer.fit((X, Y), epochs=2, batch_size=50, progress=False)
            found.append([seen for pair in callback.found for _, seen in pair])
            for held, seen in (one for pair in callback.found for one in pair):
                np.testing.assert_array_equal(
                    callback.lib.to_host(held), seen
                )  # later steps left it as it was
    assert len(found[0]) == (24 if each_step else 4)
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-5)


def test_statistics_that_a_callback_assigns_take_effect():
    found = []

    class Assigns(Callback):
        def on_epoch_end(self, history, results):
            if results["epoch"] == 1:
                buffer = self.model.layers[3].running_mean
                buffer.value = buffer.value * 0.0 + 7.0
                self.assigned = buffer.value

    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            model, callback = images(layers.BatchNorm(3)), Assigns()
            callback.model = model
            trainer = xnn.Trainer(
                model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05), callbacks=[callback]
            )
            trainer.fit((X, Y), epochs=2, batch_size=50, progress=False)
            found.append(model.backend.to_host(model.layers[3].running_mean.value))
            assert np.all(model.backend.to_host(callback.assigned) == 7.0)
    np.testing.assert_allclose(*found, rtol=1e-3)
    assert np.all(found[0] > 2.0)


@pytest.mark.parametrize("change", [{"rotation": 90.0}, {"sigma": 0.3}], ids=str)
def test_options_of_an_augmentation_that_a_callback_assigns_take_effect(change):
    class Assigns(Callback):
        def on_epoch_end(self, history, results):
            for name, value in change.items():
                setattr(self.model.layers[1 if name == "sigma" else 2], name, value)

    found = []
    for name in ("numpy", "cupy", "without"):
        with xnn.backends.backend("cupy" if name == "without" else name):
            model, callback = MODELS["augmentation"](), Assigns()
            callback.model = model
            calls = [] if name == "without" else [callback]
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05), callbacks=calls)
            found.append(trainer.fit((X, Y), epochs=3, batch_size=50, progress=False)["loss"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert abs(found[2][2] - found[1][2]) > 1e-4


def test_measured_and_diverged_steps_leave_the_statistics_as_they_were():
    with xnn.backends.backend("cupy"):
        model = images(layers.BatchNorm(3))
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05))
        trainer.fit((X, Y), epochs=1, batch_size=50, progress=False)
        before = [a.tobytes() for a in state_of(trainer)]
        with get_backend("cupy").stream():
            stepper = trainer.stepper(Batches((X, Y), 50))
            stepper.seconds_per_step(0)
        assert [a.tobytes() for a in state_of(trainer)] == before
        trainer.optimizer.learning_rate = lambda step: 0.05 if step < 8 else 1e38
        with pytest.raises(DivergenceError):
            trainer.fit((X, Y), epochs=2, batch_size=50, progress=False)
        assert all(np.isfinite(a).all() for a in state_of(trainer))


def test_the_gradient_through_the_moments_is_one_call_with_the_same_numbers(monkeypatch):
    """Against the list without this rule, which the ops run."""
    for name in ("batch norm", "residual"):
        found = []
        for rules in (
            fusion.RULES,
            [rule for rule in fusion.RULES if rule is not fusion.moments_into_normalize],
        ):
            monkeypatch.setattr(fusion, "RULES", rules)
            found.append(train("cupy", MODELS[name], epochs=1))
            missing = by_ops(found[-1][0])
        assert "moments" in missing
        check_same(*found, 2e-3)


def lenet5(optimizer):
    folder = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, folder)
    try:
        from lenet5 import lenet5 as make
    finally:
        sys.path.remove(folder)
    with xnn.backends.backend("cupy"):
        return xnn.Trainer(make(), losses.SoftmaxCrossEntropy(), optimizer)


def test_kernels_and_products_of_a_step_of_lenet5():
    data = np.zeros((128, 784), np.uint8), np.arange(128) % 10
    program = stepper_of(lenet5(optimizers.Adam()), 64, data).program(64)
    assert not program.by_ops
    assert len([step for step in program._steps if isinstance(step, (Launch, Product))]) <= 45
    assert len(program._steps) <= 45, "with the copies of Reshape and Flatten"


def test_what_the_host_asks_for_a_chunk_of_batch_normalization():
    """Whatever the number of steps; the statistics are copied and looked at together with the weights."""
    recorded = recorder()
    with xnn.backends.backend("cupy"):
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Reshape((1, 4, 5)), layers.Conv2D(1, 3, 3), layers.BatchNorm(3),
            layers.ReLU(), layers.Flatten(), layers.BatchNorm(18), layers.Dense(18, CLASSES), seed=1,
        )  # fmt: skip
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam())
    rows = np.arange(32)
    with get_backend("cupy").stream():
        stepper = trainer.stepper(Batches((X, Y), 32))
        stepper.refresh()
        for count in (2, 20):
            for _ in range(2):  # the second time captures
                stepper.steps([rows] * count, 0)
                stepper.take()
            stepper.store.is_finite()
            with recorded() as lines:
                stepper.steps([rows] * count, 0)
                stepper.take()
                assert stepper.store.is_finite()
                stepper.keep()
            kinds = [line.split()[0] for line in lines]
            assert kinds.count("GRAPH") + kinds.count("KERNEL") + kinds.count("CUBLAS") <= 4
            assert kinds.count("COPY") <= 4


@pytest.mark.parametrize("name", ["batch norm", "layer norm", "mean of an embedding", "augmentation"])
def test_results_do_not_depend_on_the_order_of_threads(name):
    recorder()
    from cuda_emulator.kernels import settings

    found = []
    for order in ("forward", "backward", "random"):
        with settings(order=order):
            found.append(bits(train("cupy", MODELS[name], epochs=1, batch_size=50)))
    assert found[0] == found[1] == found[2]
