"""Training by the persistent kernel, a chunk in one launch, held to the program on the CPU and on the GPU.

On a GPU of compute capability 9.0, or on the emulated one, there mostly with small clusters, which are faster.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from test_cuda_kernels import run_with_checks
from test_cuda_programs import (
    BATCH,
    CLASSES,
    FEATURES,
    ROWS,
    X,
    Y,
    bits,
    check_same,
    frozen,
    network,
    recorder,
    train,
)

import xnn
from xnn import layers, losses, ops, optimizers, schedules
from xnn.backends import available_backends, cupy_backend, get_backend
from xnn.backends.kernels.cuda import launch, persistent_rule
from xnn.callbacks import Callback
from xnn.data import Batches
from xnn.errors import DivergenceError, OptionError, XnnError
from xnn.training import fit as fitting

_REASON = available_backends()["cupy"]
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy runs")
ROOT = Path(launch.__file__).parent
_CHECK = "XNN_EMULATOR_CHECK"
CHECKED = _CHECK in os.environ  # so that each step takes long


@pytest.fixture(autouse=True)
def _on(monkeypatch):
    """The switch is on, and a cluster has few threads."""
    monkeypatch.setenv("XNN_PERSISTENT", "1")
    monkeypatch.setattr(persistent_rule, "_THREADS", 64)
    monkeypatch.setitem(persistent_rule._LIMITS, 9, (4, 227 * 1024))


def perceptron(*widths, activations=(layers.ReLU,), scale=1 / 255):
    """A network of Dense layers with these activations in turn."""
    parts = [] if scale is None else [layers.Rescale(scale)]
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        if number:
            parts.append(activations[(number - 1) % len(activations)]())
        parts.append(layers.Dense(inputs, outputs))
    return xnn.Sequential(*parts, seed=3)


CURVES = (
    lambda: layers.LeakyReLU(0.2), lambda: layers.ELU(0.7), layers.SELU, layers.GELU,
    lambda: layers.GELU(approximate="tanh"), layers.SiLU, lambda: layers.Softplus(1.5),
)  # fmt: skip
#: Networks of 1 to 8 layers. Some layers are narrower than the cluster is wide.
NETWORKS = {
    "1 layer": (lambda: perceptron(FEATURES, CLASSES), lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True)),
    "2 layers": (lambda: perceptron(FEATURES, 33, CLASSES, activations=[layers.Tanh]), lambda: optimizers.Adam(0.01)),
    "3 layers": (lambda: perceptron(FEATURES, 33, 12, CLASSES), lambda: optimizers.SGD(0.1)),
    "4 layers": (
        lambda: perceptron(FEATURES, 7, 19, 3, CLASSES, activations=[layers.Sigmoid, layers.ReLU, layers.Tanh]),
        lambda: optimizers.AdamW(0.01, amsgrad=True),
    ),
    "8 layers": (
        lambda: perceptron(FEATURES, 9, 6, 11, 5, 8, 10, 3, CLASSES, activations=CURVES),
        lambda: optimizers.RMSProp(0.002, centered=True, momentum=0.5),
    ),
}  # fmt: skip


def ran(result):
    """A result of `train`, of which the persistent kernel has run all steps."""
    assert result[0].history.plan["persistent"], result[0].history.plan["persistent_because"]
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_numbers_of_the_cpu(name):
    """Over 96 steps, of which each 32nd has 2 rows: weights, state, losses and accuracies."""
    make, optimizer = NETWORKS[name]
    few = {"data": (X[:18], Y[:18]), "epochs": 2} if CHECKED else {}
    here, there = (train(lib, make, optimizer, **few) for lib in ("numpy", "cupy"))
    check_same(ran(there), here, 2e-3 if name == "8 layers" else 2e-4)


def test_the_program_has_the_same_numbers(monkeypatch):
    """Captured in a graph, on the same GPU."""
    there = ran(train("cupy"))
    monkeypatch.setenv("XNN_PERSISTENT", "0")
    graph = train("cupy")
    assert graph[0].history.plan["persistent"] is False
    check_same(there, graph)


RULES = {
    "sgd": lambda: optimizers.SGD(schedules.Cosine(0.2, 96), weight_decay=0.01),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "decay by name": lambda: optimizers.SGD(0.1, weight_decay={"weight": 0.01}),
    "adagrad": lambda: optimizers.AdaGrad(0.05),
    "rmsprop": lambda: optimizers.RMSProp(0.002),
    "adadelta": lambda: optimizers.AdaDelta(1.0),
    "adam": lambda: optimizers.Adam(0.01, weight_decay=0.01),
    "adamw": lambda: optimizers.AdamW(0.01),
    "nadam": lambda: optimizers.Nadam(0.01),
    "lion": lambda: optimizers.Lion(0.001),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_have_the_numbers_of_the_cpu(name):
    here, there = (
        train(lib, lambda: perceptron(FEATURES, 6, CLASSES), RULES[name]) for lib in ("numpy", "cupy")
    )
    check_same(ran(there), here)


@pytest.mark.parametrize("batch", [1, 33, 128])
def test_batches_of_any_size(batch):
    """Of float32 data and int32 labels. Batches of 33 end with one of 27, those of 128 have 60 rows."""
    data = (X[:60] / 255).astype(np.float32), Y[:60].astype(np.int32)
    make = lambda: perceptron(FEATURES, 12, CLASSES, scale=None)  # noqa: E731
    here, there = (train(lib, make, batch_size=batch, data=data) for lib in ("numpy", "cupy"))
    check_same(ran(there), here)


def test_scales_of_each_feature_and_labels_without_a_metric():
    make = lambda: xnn.Sequential(  # noqa: E731
        layers.Rescale(np.linspace(0.001, 0.01, FEATURES), shift=np.arange(FEATURES)),
        layers.Dense(FEATURES, 6), layers.ReLU(), layers.Dense(6, CLASSES), seed=1,
    )  # fmt: skip
    results = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            model = make()
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), metrics=[])
            history = trainer.fit((X, Y), epochs=2, batch_size=BATCH, progress=False)
            results.append((history, [model.backend.to_host(p.value) for p in model.parameters()]))
    assert results[1][0].plan["persistent"]
    assert results[1][0]["loss"] == pytest.approx(results[0][0]["loss"], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_the_whole_cluster(monkeypatch):
    """784-100-200-10 by 16 blocks of 512 threads."""
    monkeypatch.undo()
    monkeypatch.setenv("XNN_PERSISTENT", "1")
    x = (np.arange(80 * 784) * 7919 % 251).astype(np.uint8).reshape(80, 784)
    data = x, np.arange(80) % 10
    make = lambda: perceptron(784, 100, 200, 10)  # noqa: E731
    here, there = (train(lib, make, batch_size=32, data=data, epochs=2) for lib in ("numpy", "cupy"))
    assert "16 blocks" in ran(there)[0].history.plan["persistent_because"]
    check_same(there, here)


def test_results_depend_neither_on_threads_nor_on_chunks(monkeypatch):
    """Several orders of threads and blocks, steps one by one, and chunks of another length give the same bits."""
    optimizer, make = NETWORKS["3 layers"][1], NETWORKS["3 layers"][0]
    expected = bits(ran(train("cupy", make, optimizer)))

    class EachStep(Callback):
        def on_step(self, history, epoch, step, loss):
            pass

    assert bits(ran(train("cupy", make, optimizer, callbacks=[EachStep]))) == expected
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_CHECK_STEPS", 7)
        assert bits(ran(train("cupy", make, optimizer))) == expected
    recorder()
    from cuda_emulator.kernels import settings

    for order in ("backward", "random"):
        with settings(order=order):
            assert bits(ran(train("cupy", make, optimizer))) == expected


def test_what_the_host_asks_for_a_chunk():
    """One copy and one launch, for any number of steps."""
    recorded = recorder()
    with xnn.backends.backend("cupy"):
        trainer = xnn.Trainer(network(), losses.SoftmaxCrossEntropy(), optimizers.Adam())
    rows = np.arange(BATCH)
    with get_backend("cupy").stream():
        stepper = trainer.stepper(Batches((X, Y), BATCH))
        stepper.refresh()
        for count in (1, 2, 100):
            with recorded() as chunk:
                stepper.steps([rows] * count, 0)
            (copy, kernel) = chunk
            assert copy.startswith("COPY H2D pinned")
            assert kernel == "KERNEL train"
            losses_of_chunk, counts = stepper.take()
            assert len(losses_of_chunk) == len(counts) == count


def needs(gradients):
    class Callbacks(Callback):
        needs_gradients = gradients

    return Callbacks


#: What the kernel cannot run, and what the plan then says.
OTHERS = {
    "dropout": ({"make": lambda: network(layers.Dropout(0.3))}, "no draw"),
    "normalization": ({"make": lambda: network(layers.LayerNorm(33))}, "a layer is "),
    "an op without a kernel": ({"make": lambda: network(layers.Lambda(ops.sin))}, "no CUDA kernel"),
    "a softmax": ({"make": lambda: network(layers.Softmax())}, "a layer is softmax"),
    "another loss": ({"loss": losses.MSE(), "data": (X, X[:, :CLASSES] / 255)}, "the loss is mse"),
    "label smoothing": ({"loss": losses.SoftmaxCrossEntropy(label_smoothing=0.1)}, "options: label_smoothing"),
    "sample weights": ({"sample_weight": np.ones(ROWS)}, "sample weights"),
    "frozen": ({"make": frozen}, "frozen"),
    "no bias": (
        {"make": lambda: xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(FEATURES, CLASSES, bias=False))},
        "no bias",
    ),
    "float64": ({"make": lambda: network(dtype="float64")}, "the dtype is not float32"),
    "an activation at the end": (
        {"make": lambda: xnn.Sequential(*network().layers, layers.GELU())}, "the last layer has an activation",
    ),
    "two activations": ({"make": lambda: network(layers.Tanh(), layers.GELU())}, "a layer is"),
    "images": (
        {"make": lambda: xnn.Sequential(layers.Rescale(1 / 255), layers.Reshape((4, 5)), layers.Flatten(),
                                        layers.Dense(FEATURES, CLASSES))}, "a layer is ",
    ),
    "clipping": ({"optimizer": lambda: optimizers.SGD(clip_norm=1.0)}, "no clip_by_norm"),
    "an average": ({"optimizer": lambda: optimizers.SGD(average=0.9)}, "no moving_average"),
    "gradients": ({"callbacks": [needs(True)]}, "callbacks read gradients"),
    "a large batch": ({"batch_size": 130}, "130 rows, and the most is 128"),
    "a large network": ({"make": lambda: perceptron(FEATURES, 1000, CLASSES), "batch_size": 32}, "KB of shared"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_kernel_cannot_run_is_run_by_the_program(name):
    options, why = OTHERS[name]
    here, there = (train(lib, **{"epochs": 1} | options) for lib in ("numpy", "cupy"))
    plan = there[0].history.plan
    assert plan["persistent"] is False
    assert why in plan["persistent_because"]
    np.testing.assert_allclose(there[1], here[1], rtol=1e-3)


def test_streamed_data_are_read_by_the_program(monkeypatch):
    monkeypatch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self: 1000)
    here, there = (train(lib, epochs=1) for lib in ("numpy", "cupy"))
    plan = there[0].history.plan
    assert (plan["persistent"], plan["persistent_because"]) == (False, "the data are streamed from the host")
    check_same(there, here)


@pytest.mark.parametrize("metrics", [["f1"], ["accuracy", "f1"]])
def test_other_metrics_are_counted_by_the_program(metrics):
    with xnn.backends.backend("cupy"):
        trainer = xnn.Trainer(network(), losses.SoftmaxCrossEntropy(), optimizers.SGD(), metrics=metrics)
        history = trainer.fit((X, Y), batch_size=BATCH, progress=False)
    assert history.plan["persistent"] is False
    assert set(history.epochs[0]) == {"epoch", "loss", *metrics}


@pytest.mark.parametrize(
    ("attribute", "error"),
    [
        ("_MAX_DYNAMIC_SHARED_SIZE", "CUDA_ERROR_INVALID_VALUE"),
        ("_NON_PORTABLE_CLUSTER_SIZE_ALLOWED", "CUDA_ERROR_INVALID_CLUSTER_SIZE"),
    ],
)
def test_a_cluster_that_the_gpu_does_not_launch_is_none(monkeypatch, attribute, error):
    """Here since an attribute of the kernel is not set: the program runs."""
    recorder()
    monkeypatch.setitem(persistent_rule._LIMITS, 9, (16, 227 * 1024))
    monkeypatch.setattr(launch, attribute, 9)
    options = {"make": lambda: perceptron(FEATURES, 401, CLASSES), "batch_size": 32, "epochs": 1}
    here, there = (train(lib, **options) for lib in ("numpy", "cupy"))
    assert f"the GPU cannot launch it: {error}" in there[0].history.plan["persistent_because"]
    check_same(there, here)


def test_it_is_off_by_default(monkeypatch):
    monkeypatch.delenv("XNN_PERSISTENT")
    plan = train("cupy", epochs=1)[0].history.plan
    assert (plan["persistent"], plan["persistent_because"]) == (False, "XNN_PERSISTENT=1 turns it on")
    assert "persistent" not in train("numpy", epochs=1)[0].history.plan
    assert "persistent" not in train("cupy", epochs=1, kernels="ops")[0].history.plan
    monkeypatch.setenv("XNN_PERSISTENT", "yes")
    with pytest.raises(OptionError, match="XNN_PERSISTENT='yes'"):
        train("cupy", epochs=1)


def test_gradients_that_are_not_kept_cannot_be_read():
    """They would be those of an earlier fit: reading one is an error, as where a product does the update."""
    trainer = ran(train("cupy", optimizer=optimizers.Adam, epochs=1))[0]
    assert trainer.history.plan["folded"]
    with pytest.raises(xnn.errors.XnnError):
        _ = trainer.model.parameters()[0].grad


@pytest.mark.parametrize("optimizer", [optimizers.SGD, optimizers.Adam])
@pytest.mark.parametrize("fault", ["rate", "data"])
def test_a_divergence_is_found_and_named(optimizer, fault):
    """A rate that is too large, or NaN in the data: the step, and what is not finite, as on the CPU."""
    messages = []
    for name in ("numpy", "cupy"):
        x = (X / 255).astype(np.float32)

        class Spoils(Callback):
            def on_epoch_end(self, history, results, x=x):
                if fault == "data":
                    x[77, 3] = np.nan

        def rate(step):
            return 1e30 if fault == "rate" and step == 40 else 0.01

        with xnn.backends.backend(name):
            model = perceptron(FEATURES, 33, 12, CLASSES, scale=None)
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer(rate), callbacks=[Spoils()])
            with pytest.raises(DivergenceError) as raised:
                trainer.fit((x, Y), epochs=3, batch_size=BATCH, progress=False)
        messages.append((str(raised.value), raised.value.history.steps, trainer.step))
    assert raised.value.history.plan["persistent"]
    assert messages[0] == messages[1]


def test_callbacks_schedules_and_changes_take_effect():
    """A callback assigns weights. A schedule changes the loss within a chunk, which ends the kernel's part."""

    class Assigns(Callback):
        def on_epoch_end(self, history, results):
            weight = self.model.layers[1].weight
            weight.value = weight.value * 0.5

    results = []
    for name in ("numpy", "cupy"):
        loss = losses.SoftmaxCrossEntropy()

        def schedule(number, loss=loss):
            if number == 70:
                loss.label_smoothing = 0.3
            return 0.1

        results.append(
            train(name, optimizer=lambda s=schedule: optimizers.SGD(s), loss=loss, callbacks=[Assigns])
        )
    check_same(*results)


def test_fits_go_on_where_the_last_one_ended():
    """The state of the optimizer goes from the kernel to the program and back."""
    results = []
    for switches in ("111", "101"):
        with xnn.backends.backend("cupy"):
            trainer = xnn.Trainer(network(), losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01))
            for switch in switches:
                os.environ["XNN_PERSISTENT"] = switch  # the fixture restores it
                trainer.fit((X, Y), epochs=1, batch_size=BATCH, progress=False)
                assert trainer.history.plan["persistent"] is (switch == "1")
            results.append([get_backend("cupy").to_host(p.value) for p in trainer.model.parameters()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


BARRIERS = (ROOT / "persistent.cu").read_text().count("cluster.sync();")


@pytest.mark.parametrize("number", range(BARRIERS))
@pytest.mark.skipif(not CHECKED, reason="in the process that checks")
def test_planted_races_are_found(monkeypatch, number):
    """Without any one of the cluster's barriers there is a race, and it is found."""
    source = launch.source

    def without(file, exact):
        parts = source(file, exact).split("cluster.sync();")
        left, right = parts[: number + 1], parts[number + 1 :]
        return "cluster.sync();".join(left) + ";" + "cluster.sync();".join(right)

    launch.compiled.cache_clear()
    monkeypatch.setattr(launch, "source", without)
    found = []
    for make, optimizer in (NETWORKS[name] for name in ("1 layer", "2 layers", "3 layers")):
        try:
            train("cupy", make, optimizer, data=(X[:18], Y[:18]), epochs=1)
        except XnnError as error:
            found.append(str(error))
    launch.compiled.cache_clear()
    assert found


@pytest.mark.slow  # every kernel is compiled once more
def test_there_are_no_races_and_no_accesses_out_of_bounds():
    """The networks once more in a process that checks every access; only the emulated GPU can."""
    recorder()
    if CHECKED:
        pytest.skip("this is the process that checks")
    run_with_checks("networks or planted", __file__)
