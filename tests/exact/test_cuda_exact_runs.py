"""Training in exact numerics by CUDA kernels: NumPy's bits in captured steps; on a GPU, or on the emulated one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_cuda_exact import exact, pytestmark
from test_exact_kernels import RUNS, X, Y

import xnn
from xnn import layers, losses, optimizers
from xnn.backends import cupy_backend, get_backend
from xnn.backends.exact.kernels import cuda_check
from xnn.backends.kernels.calls import KernelTable
from xnn.backends.kernels.cuda import data_set, launch
from xnn.data import Batches
from xnn.errors import BackendUnavailableError
from xnn.layers.files import weights_sha256
from xnn.runs.mlp import mlp

__all__ = ["exact", "pytestmark"]


def recorder():
    """The recorder of the emulated GPU; skips on a real one."""
    attached = sys.modules.get("cuda_emulator.attach")
    if attached is None or attached._driver is None:
        pytest.skip("only the emulated GPU records what is asked of it")
    return attached.recorded


def run(name, options, optimizer, floats=False, kernels="auto", **more):
    with xnn.backends.backend(name):
        model = mlp(40, (33, 20), 10, rescale=None if floats else (1 / 255, 0.0), seed=3, **options)
        x = (X / 255.0).astype(np.float32) if floats else X
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer(), kernels=kernels, **more)
        history = trainer.fit((x, Y), epochs=3, batch_size=32, progress=False)
        return history.losses_sha256, weights_sha256(model), history.epochs, history.plan["kernels"]


@pytest.mark.parametrize("floats", [False, True], ids=["pixels", "floats"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_bits_of_numpy(name, floats):
    here, there = (run(lib, *RUNS[name], floats=floats) for lib in ("numpy", "cupy"))
    assert there[:3] == here[:3]
    assert there[3] == "cuda"


def test_running_statistics_have_the_bits_of_numpy_over_several_epochs():
    """In graphs too, which come from the second epoch on: each begins with what the one before has left."""
    found = []
    for lib in ("numpy", "cupy"):
        with xnn.backends.backend(lib):
            between = layers.Dense(40, 12), layers.BatchNorm(12), layers.ReLU()
            model = xnn.Sequential(layers.Rescale(1 / 255), *between, layers.Dense(12, 10), seed=3)
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
            trainer.fit((X, Y), epochs=4, batch_size=32, progress=False)
            found.append([model.backend.to_host(buffer.value).tobytes() for buffer in model.buffers()])
    assert found[0] == found[1]


def test_the_persistent_kernel_of_fast_numerics_is_not_used(monkeypatch):
    monkeypatch.setenv("XNN_PERSISTENT", "1")
    here, there = (run(lib, *RUNS["relu, sgd"]) for lib in ("numpy", "cupy"))
    assert there[:3] == here[:3]


@pytest.mark.parametrize("floats", [False, True], ids=["pixels", "floats"])
def test_streamed_data_have_the_bits_of_numpy(monkeypatch, capsys, floats):
    """On a GPU on which it seems that there is no room for the data."""
    monkeypatch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self: 8000)
    monkeypatch.setattr(data_set, "_EIGHTH", 1)
    here, there = (run(lib, *RUNS["relu, sgd"], floats=floats) for lib in ("numpy", "cupy"))
    assert there[:3] == here[:3]
    assert "streamed" in capsys.readouterr().err


def random_network(seed):
    """A network of layers that have kernels, with an optimizer, and how its samples are given."""
    draw = np.random.default_rng(seed)
    width, parts = 40, []
    curves = [layers.ReLU, layers.Sigmoid, layers.Tanh, layers.GELU, layers.SiLU, layers.ELU, layers.Softplus]
    for _ in range(draw.integers(1, 5)):
        wider = int(draw.integers(1, 70))
        parts.append(layers.Dense(width, wider, bias=bool(draw.integers(4))))
        width = wider
        parts += [curves[draw.integers(len(curves))]()] * bool(draw.integers(5))
        parts += [layers.Dropout(float(draw.uniform(0.0, 0.7)))] * bool(draw.integers(3) == 0)
    floats = bool(draw.integers(2))
    shape = [layers.Reshape((8, 5)), layers.Flatten()] * bool(draw.integers(2))
    first = [] if floats else [layers.Rescale(1 / 255)]
    model = xnn.Sequential(*first, *shape, *parts, layers.Dense(width, 10), seed=seed)
    chosen = [
        lambda: optimizers.SGD(0.1),
        lambda: optimizers.SGD(0.05, momentum=0.9, clip_norm=0.3),
        lambda: optimizers.Adam(0.01, average=0.9),
        lambda: optimizers.AdamW(0.01, clip_value=0.01),
        lambda: optimizers.RMSProp(0.001, centered=True),
    ]
    return model, chosen[draw.integers(len(chosen))](), floats, int(draw.integers(1, 60))


@pytest.mark.parametrize("seed", range(4))
def test_random_networks_have_the_bits_of_numpy(seed, capsys):
    """Every call of them has a kernel: nothing is said of calls without one."""
    found = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            model, optimizer, floats, batch = random_network(seed)
            x = (X / 255).astype(np.float32) if floats else X
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"])
            history = trainer.fit((x, Y), epochs=2, batch_size=batch, progress=False)
            found.append((history.losses_sha256, weights_sha256(model), history.epochs))
    assert found[0] == found[1]
    assert "no CUDA kernel" not in capsys.readouterr().err


@pytest.mark.parametrize("loss", [losses.MSE, losses.Huber, losses.BinaryCrossEntropy])
def test_losses_of_numbers_have_the_bits_of_numpy(loss, capsys):
    """On samples that a Rescale standardizes in float64."""
    x, found = X.astype(np.float32) * 3, []
    t = (Y[:, None] > 4).astype(np.float32)
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            standardize = layers.Rescale(1 / x.std(axis=0).astype(float), shift=x.mean(axis=0).astype(float))
            model = xnn.Sequential(
                standardize, layers.Dense(40, 7), layers.SELU(), layers.Dense(7, 1), seed=1
            )
            trainer = xnn.Trainer(model, loss(), optimizers.SGD(0.01), metrics=[])
            history = trainer.fit((x, t), epochs=2, progress=False)
            found.append((history.losses_sha256, weights_sha256(model)))
    assert found[0] == found[1]
    assert "no CUDA kernel" not in capsys.readouterr().err


def article(optimizer):
    with xnn.backends.backend("cupy"):
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(784, 100), layers.ReLU(), layers.Dense(100, 200), layers.ReLU(),
            layers.Dense(200, 10), seed=1,
        )  # fmt: skip
        return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"])


@pytest.mark.parametrize(
    ("optimizer", "most"),
    [(optimizers.SGD(0.1), 21), (optimizers.SGD(0.1, momentum=0.9), 22), (optimizers.Adam(0.01), 22)],
    ids=["sgd", "momentum", "adam"],
)
def test_kernels_and_products_in_a_step(optimizer, most):
    """784-100-200-10 in exact numerics; by the ops a step is 656 kernels and 14 products."""
    recorded = recorder()
    trainer = article(optimizer)
    data = np.zeros((64, 784), np.uint8), np.arange(64) % 10
    rows = np.arange(32)
    with get_backend("cupy").stream():
        stepper = trainer.stepper(Batches(data, 32))
        stepper.refresh()
        for _ in range(2):  # the second time captures
            stepper.steps([rows] * 2, 0)
            stepper.take()
        with recorded() as chunk:
            stepper.steps([rows] * 2, 0)
        copy, graph = chunk
        assert copy.startswith("COPY H2D pinned")
        assert int(graph.removeprefix("GRAPH").split()[0]) <= most * 2
        assert len(stepper.program(32).by_ops) == 0


def test_results_do_not_depend_on_the_order_of_threads():
    recorder()
    from cuda_emulator.kernels import settings

    found = []
    everything = {"momentum": 0.9, "nesterov": True, "clip_norm": 1.0, "clip_value": 0.1, "average": 0.9}
    for order in ("forward", "backward", "random"):
        with settings(order=order, seed=5):
            found.append(run("cupy", {"activation": "tanh"}, lambda: optimizers.SGD(0.05, **everything)))
    assert (
        found[0]
        == found[1]
        == found[2]
        == (*run("numpy", {"activation": "tanh"}, lambda: optimizers.SGD(0.05, **everything))[:3], "cuda")
    )


CHECKED = """
import numpy as np, xnn
from xnn import layers, losses, optimizers
x = (np.arange(40 * 36) * 7919 % 251).astype(np.uint8).reshape(40, 36)
with xnn.numerics("exact"), xnn.backends.backend("cupy"):
    for data in (x, (x / 255).astype("f4")):
        first = [layers.Rescale(1 / 255)] if data.dtype == "u1" else []
        between = layers.Tanh(), layers.Dropout(0.2)
        model = xnn.Sequential(*first, layers.Dense(36, 35), *between, layers.Dense(35, 5), seed=1)
        for optimizer in (optimizers.SGD(0.1), optimizers.Adam(0.01, clip_norm=0.1)):
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"])
            history = trainer.fit((data, np.arange(40) % 5), epochs=1, batch_size=33, progress=False)
            assert history.plan["kernels"] == "cuda"
    model = xnn.Sequential(layers.Dense(36, 40), layers.GELU(), layers.Dense(40, 36), seed=1)
    optimizer = optimizers.SGD(0.1, clip_value=0.1, average=0.9)
    trainer = xnn.Trainer(model, losses.MSE(), optimizer)
    trainer.fit((data, data), epochs=1, batch_size=33, progress=False)
    images = x.reshape(40, 1, 6, 6)
    first = layers.Conv2D(1, 3, 3), layers.ReLU(), layers.MaxPool2D(2), layers.Conv2D(3, 2, 1), layers.AvgPool2D(2)
    model = xnn.Sequential(layers.Rescale(1 / 255), *first, layers.Flatten(), layers.Dense(2, 5), seed=1)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    trainer.fit((images, np.arange(40) % 5), epochs=1, batch_size=33, progress=False)
print("no races")
"""


@pytest.mark.slow  # every kernel is compiled once more
def test_no_race_and_no_access_out_of_bounds():
    """Every kernel of a step, in a process in which all kernels are checked."""
    recorder()
    environment = dict(os.environ) | {"XNN_EMULATOR_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECKED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "no races\n", done.stderr


def test_kernels_that_fuse_or_products_that_round_are_found(monkeypatch):
    """The check of a GPU's kernels: what is wrong is named, and "auto" then means the ops."""
    lib = get_backend("cupy")
    with lib.stream():
        assert not list(cuda_check.differences(lib))
    monkeypatch.setattr(cuda_check, "_passed", set())

    def rounds(feed, a, b, turned, out):
        right = product(feed, a, b, turned, out)
        return lambda: (right(), out.__setitem__(..., out.astype(np.float32)))

    product = cuda_check.product
    monkeypatch.setattr(cuda_check, "product", rounds)
    with pytest.raises(BackendUnavailableError, match=r"a product of 784 terms.*kernels='ops'"):
        lib.kernels("cuda")
    assert type(lib.kernels()) is KernelTable
    monkeypatch.setattr(cuda_check, "product", product)
    source = launch.source

    def fused(*names, **given):
        text = source(*names, **given)
        return text.replace(
            "    return r.b ? z +",
            "    return r.b && !r.two ? fma(r.products[i], r.scale, entered(r.b[j])) : r.b ? z +",
        )

    monkeypatch.setattr(launch, "source", fused)
    launch.compiled.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match="a multiplication and an addition"):
            lib.kernels("cuda")
    finally:
        launch.compiled.cache_clear()
    monkeypatch.undo()
    assert lib.kernels().name == "cuda"
