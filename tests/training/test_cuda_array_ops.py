"""Ops without CUDA kernels in captured steps: graphs record the array operations that they ask for."""

import gc
import random

import numpy as np
import pytest
from test_cuda_programs import (
    BATCH,
    CLASSES,
    FEATURES,
    X,
    Y,
    bits,
    check_same,
    in_two_threads,
    network,
    pytestmark,
    recorder,
    train,
)

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import backend_of, get_backend
from xnn.backends.kernels.cuda import array_ops
from xnn.backends.kernels.cuda import feed as feeds
from xnn.backends.kernels.cuda.cublas import cublas_of
from xnn.backends.kernels.cuda.table import CudaTable
from xnn.callbacks import Callback
from xnn.errors import DivergenceError

__all__ = ["pytestmark"]


@pytest.fixture
def gpu():
    return get_backend("cupy")


@pytest.fixture
def captured(monkeypatch):
    """How many graphs were made."""
    made = []
    capture = feeds.DeviceFeed._captured
    monkeypatch.setattr(
        feeds.DeviceFeed, "_captured", lambda self, run: made.append(self) or capture(self, run)
    )
    return made


SHAPES = [
    ((4, 3), (3, 5)), ((3,), (3, 5)), ((4, 3), (3,)), ((3,), (3,)), ((2, 4, 3), (3, 5)), ((2, 4, 3), (2, 3, 5)),
    ((4, 3), (2, 3, 5)), ((2, 1, 4, 3), (3, 3, 5)), ((3,), (2, 3, 5)), ((2, 4, 3), (3,)), ((0, 3), (3, 5)),
    ((4, 0), (0, 5)), ((2, 1, 1), (1, 1)), ((1, 3), (3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_products(gpu, shapes, dtype):
    """As NumPy's matmul: of vectors, of several matrices, of transposed ones and of parts."""
    a, b = (np.arange(np.prod(shape)).reshape(shape).astype(dtype) - 2 for shape in shapes)
    with gpu.stream(), array_ops.products_on(cublas_of(gpu.cupy.cuda.get_current_stream())):
        there = [gpu.to_device(x) for x in (a, b)]
        turned = [gpu.cupy.ascontiguousarray(x.T).T for x in there]
        parts = [gpu.to_device(np.concatenate([x, x], axis=-1))[..., : x.shape[-1]] for x in (a, b)]
        for left, right in (there, turned, parts, (there[0], turned[1])):
            found = gpu.math.matmul(left, right)
            assert found.dtype == dtype
            np.testing.assert_array_equal(gpu.to_host(found), a @ b)
        if a.ndim > 1 and a.shape[-1] != 1:
            with pytest.raises(ValueError, match=r"matmul|shapes|mismatch"):
                gpu.math.matmul(there[0], there[0][..., None, :, :1][..., :1, :])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_functions_of_the_namespace_are_those_of_numpy(gpu, dtype):
    x = np.array([-3, -1, 0, 1, 5], dtype)
    if dtype != "int64":
        x = np.concatenate([x, np.array([np.nan, np.inf, -np.inf, -0.0], dtype)])
    there, zeros = gpu.to_device(x), np.zeros_like(x)
    with np.errstate(invalid="ignore"):
        for bounds in [(-1, 2), (None, 0), (0, None), (None, None), (2, -1), (np.nan, 1.0)][
            : 6 if dtype != "int64" else 5
        ]:
            if bounds != (None, None):
                np.testing.assert_array_equal(gpu.to_host(gpu.math.clip(there, *bounds)), np.clip(x, *bounds))
            assert gpu.math.clip(there, *bounds).dtype == dtype
        np.testing.assert_array_equal(gpu.to_host(gpu.math.sign(there)), np.sign(x))
    np.testing.assert_array_equal(
        gpu.to_host(gpu.math.clip(there, gpu.to_device(zeros), 1)), np.clip(x, zeros, 1)
    )


class Gated(layers.Layer):
    """A user's layer with products, sums, broadcasting and a parameter."""

    def __init__(self):
        super().__init__()
        self.gain = layers.Parameter("gain", (33, 33), xnn.initializers.Normal(0.1))

    def compute(self, x):
        y = ops.matmul(x, ops.transpose(self.gain)) - ops.mean(x, axis=1, keepdims=True)
        return ops.sin(x) * ops.sigmoid(y) + ops.abs(x) / 2.0


def gated():
    return network(Gated())


def adam():
    return optimizers.Adam(0.01, clip_norm=1.0)


class EachStep(Callback):
    def on_step(self, history, epoch, step, loss):
        pass


def test_graphs_have_the_bits_of_single_steps(captured):
    """31 batches of one size and one of another; the graphs of both share their memory."""
    with_graphs = train("cupy", gated, adam, epochs=5)
    assert len(captured) == 2
    check_same(with_graphs, train("numpy", gated, adam, epochs=5), 1e-3)
    assert bits(train("cupy", gated, adam, epochs=5, callbacks=[EachStep])) == bits(with_graphs)


def test_nobody_gets_the_memory_of_a_graph():
    """Arrays that are made between two launches, of all sizes, stay as they are; and so do the numbers of the fit."""
    undisturbed = bits(train("cupy", gated, adam, epochs=6))
    held = []

    class Holds(Callback):
        def on_epoch_end(self, history, results):
            lib = get_backend("cupy")
            for array in held:
                assert bool(lib.xp.all(array == 7.0))
            gc.collect()
            lib.cupy.get_default_memory_pool().free_all_blocks()
            for memory in array_ops.MEMORIES:
                memory.pool.free_all_blocks()  # as CuPy does when memory is short
            for size in (1, 50, 100, 128, 200, 300, 500, 1000, 2000, 10**4, 10**5):
                held.extend(lib.xp.full(size, 7.0, dtype=lib.xp.float32) for _ in range(20))

    assert bits(train("cupy", gated, adam, epochs=6, callbacks=[Holds])) == undisturbed
    assert len(held) == 6 * 220


def test_the_memory_of_graphs_is_counted_and_goes_back(gpu):
    gc.collect()
    before = len(array_ops.MEMORIES)
    used = []

    class Looks(Callback):
        def on_epoch_end(self, history, results):
            used.append((gpu.memory()["peak"], sum(m.pool.total_bytes() for m in array_ops.MEMORIES)))

    with gpu.measured() as measured:
        trainer = train("cupy", gated, adam, epochs=3, callbacks=[Looks])[0]
    assert used[0][1] == 0  # nothing is captured in the first epoch
    assert used[-1][0] >= used[-1][1] > 0
    assert measured.peak >= used[-1][1] // 2
    del trainer
    gc.collect()
    assert gpu.memory()["peak"] >= used[-1][1]
    assert len(array_ops.MEMORIES) == before


def test_memory_that_is_short_is_taken_from_the_default_pool(gpu, monkeypatch):
    freed = []

    class Short:
        """The runtime's error for the first piece of memory."""

        device_id = 0

        def __init__(self, size):
            self.size = size
            if not freed:
                raise gpu.cupy.cuda.runtime.CUDARuntimeError(2)

    monkeypatch.setattr(gpu.cupy.cuda, "Memory", Short)
    monkeypatch.setattr(gpu.cupy.cuda, "MemoryPointer", lambda block, offset: block)
    monkeypatch.setattr(
        gpu.cupy,
        "get_default_memory_pool",
        lambda: type("P", (), {"free_all_blocks": lambda s: freed.append(1)})(),
    )
    pools = []
    monkeypatch.setattr(gpu.cupy.cuda, "MemoryPool", pools.append)
    memory = array_ops.GraphMemory()
    assert isinstance(pools[0](512), Short)
    assert freed == [1]
    assert len(memory._held) == 1


def test_threads_can_train_at_the_same_time():
    alone = [a.tobytes() for a in train("cupy", gated, adam)[2]]
    results = []

    def fit():
        with xnn.backends.backend("cupy"):
            model, optimizer = gated(), adam()
            xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer).fit(
                (X, Y), epochs=3, batch_size=BATCH, progress=False
            )
            results.append([model.backend.to_host(p.value).tobytes() for p in model.parameters()])

    in_two_threads(fit)
    assert results == [alone[: len(results[0])]] * 2


class AsksTheHost(xnn.Op):
    def forward(self, xp, x):
        return x * 2.0 if float(xp.max(x)) > -1e9 else x, None

    def backward(self, xp, grad, saved):
        return (grad * 2.0,)


class FromTheHost(xnn.Op):
    def forward(self, xp, x):
        return x + xp.asarray(np.arange(33), dtype=x.dtype, device=x.device), None

    def backward(self, xp, grad, saved):
        return (grad,)


@pytest.mark.parametrize("op", [AsksTheHost(), FromTheHost()], ids=lambda op: op.name)
def test_an_op_that_calls_the_host_is_named_once_and_runs_call_by_call(op, capsys, captured):
    here, there = (train(name, lambda: network(layers.Function(op)), epochs=4) for name in ("numpy", "cupy"))
    said = capsys.readouterr().err
    assert said.count("no CUDA graph can hold") == 1
    assert op.name in said
    assert captured
    check_same(there, here)


class Noisy(xnn.Op):
    def forward(self, xp, x):
        return x * (1.0 + 0.1 * random.random()), None

    def backward(self, xp, grad, saved):
        return (grad,)


class NoisyMetric(xnn.metrics.Metric):
    name = "noisy"

    def count(self, xp, outputs, targets):
        return xp.sum(outputs * (1.0 + 0.1 * random.random()), axis=0)


def test_an_op_or_metric_that_does_not_repeat_its_numbers_runs_in_every_step(capsys, captured):
    """An op should draw no random numbers; a graph would draw the same ones again and again."""
    for make, metrics in ((lambda: network(layers.Function(Noisy())), None), (network, [NoisyMetric()])):
        train("cupy", make, epochs=3, metrics=metrics)
        said = capsys.readouterr().err
        assert said.count("no CUDA graph can hold") == 1
        assert "noisy" in said or "count" in said
    assert not captured


BOX = {"factor": 1.0}  # that ops, a metric and a rule read


class Boxed(xnn.Op):
    def forward(self, xp, x):
        return x * BOX["factor"], BOX["factor"]

    def backward(self, xp, grad, factor):
        return (grad * factor,)


class Reversal(xnn.Op):
    def forward(self, xp, x):
        return x * 1.0, None

    def backward(self, xp, grad, saved):
        return (grad * -BOX["factor"],)


class NoisySlope(Reversal):
    def backward(self, xp, grad, saved):
        return (grad * random.random(),)


class BoxedMetric(xnn.metrics.Metric):
    name = "boxed"

    def count(self, xp, outputs, targets):
        return xp.sum(outputs * BOX["factor"], axis=0)


class BoxedMean(layers.Layer):
    def __init__(self):
        super().__init__()
        self.mean = layers.Buffer("mean", (33,), xnn.initializers.Zeros())

    def compute(self, x):
        def rule(xp, old, y):
            return (old + (xp.mean(y, axis=0) - old) * (0.5 * BOX["factor"]),)

        self.keep([self.mean], rule, x)
        return x - self.mean


@pytest.mark.parametrize(
    "part", [Boxed(), Reversal(), BoxedMean(), BoxedMetric()], ids=lambda x: type(x).__name__
)
def test_what_ops_read_elsewhere_takes_effect_when_a_callback_changes_it(part, captured):
    """A dictionary, a global name, whatever it is: no attribute of the op changes."""
    results = []

    class Writes(Callback):
        def on_epoch_end(self, history, results):
            BOX["factor"] = 0.5 if results["epoch"] >= 3 else 1.0

    for name in ("numpy", "cupy"):
        BOX["factor"] = 1.0
        metric = isinstance(part, BoxedMetric)
        layer = layers.Function(part) if isinstance(part, xnn.Op) else type(part)()
        make = network if metric else lambda layer=layer: network(layer)
        results.append(train(name, make, epochs=6, callbacks=[Writes], metrics=[part] if metric else None))
    check_same(*results[::-1])
    assert len(captured) == 4  # of the two lengths of chunks, before and after the change


class LateMean(BoxedMean):
    """Its buffer is read from the beginning, and changes only once a callback says so."""

    moves = False

    def compute(self, x):
        return super().compute(x) if self.moves else x - self.mean


@pytest.mark.parametrize("places", [True, False])
def test_buffers_that_begin_to_change_go_on_from_step_to_step(places, monkeypatch):
    """places: whether buffers have memory where kernels change them; without it no graph can hold the change."""
    monkeypatch.setattr(CudaTable, "buffers_in_place", places)
    BOX["factor"], results = 1.0, []
    for name in ("numpy", "cupy"):
        layer = LateMean()

        class Begins(Callback):
            def on_epoch_end(self, history, results, layer=layer):
                layer.moves = results["epoch"] >= 2

        results.append(train(name, lambda layer=layer: network(layer), epochs=6, callbacks=[Begins]))
        mean = layer.mean.value
        results[-1][2].append(np.asarray(mean if name == "numpy" else get_backend(name).to_host(mean)))
    check_same(*results[::-1])


@pytest.mark.parametrize("loss", [losses.SoftmaxCrossEntropy, losses.MSE])
def test_data_on_the_gpu_that_a_callback_writes_to_take_effect(loss):
    """As on the CPU, samples and targets, if they need no conversion."""
    targets = Y if loss is losses.SoftmaxCrossEntropy else np.eye(CLASSES, dtype=np.float32)[Y]
    found = []
    for name in ("numpy", "cupy"):
        lib = get_backend(name)
        x, y = (lib.to_device(part.copy()) for part in ((X / 255).astype(np.float32), targets))

        class Writes(Callback):
            def on_epoch_end(self, history, results, x=x, y=y):
                x[...] = x * 0.9
                y[...] = y[::-1] + 0

        make = lambda: xnn.Sequential(layers.Dense(FEATURES, CLASSES), seed=1)  # noqa: E731
        found.append(train(name, make, epochs=3, callbacks=[Writes], data=(x, y), loss=loss()))
    check_same(*found[::-1])


class CountedByHand(losses.Loss):
    """The weighted mean of squares, whose divisor is a Python number or an array."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def compute(self, outputs, targets, weight):
        return ops.sum(ops.mean((outputs - targets) ** 2, axis=1) * weight) / ops.sum(weight)

    def total(self, outputs, targets, weight):
        return float(len(outputs)) if self.number else backend_of(weight).xp.sum(weight)


@pytest.mark.parametrize("number", [True, False])
def test_the_divisor_of_a_loss_of_the_users_may_be_a_python_number(number):
    data = (X / 255.0).astype("float32"), np.cos(np.arange(len(X) * CLASSES)).reshape(-1, CLASSES)
    weights = np.linspace(0.1, 2.0, len(X))
    here, there = (
        train(name, data=data, loss=CountedByHand(number), sample_weight=weights)
        for name in ("numpy", "cupy")
    )
    check_same(there, here)


def test_a_backward_that_does_not_repeat_its_numbers_runs_in_every_step(capsys, captured):
    train("cupy", lambda: network(layers.Function(NoisySlope())), epochs=3)
    assert "no CUDA graph can hold: noisyslope" in capsys.readouterr().err
    assert not captured


class Scaled(xnn.Op):
    """An op whose attribute somebody changes."""

    factor = 1.0

    def forward(self, xp, x):
        return x * self.factor, self.factor

    def backward(self, xp, grad, factor):
        return (grad * factor,)


@pytest.mark.parametrize("each_time", [False, True])
def test_attributes_of_an_op_that_change_take_effect(each_time, captured):
    """Whether a callback assigns them once, or the op itself in each step."""
    results = []
    for name in ("numpy", "cupy"):
        op = Scaled()
        op.factor = 1.0

        class Assigns(Callback):
            def on_epoch_end(self, history, results, op=op):
                if results["epoch"] == 3:
                    op.factor = 0.5

        if each_time:
            forward = op.forward
            op.forward = lambda xp, x, op=op, forward=forward: (
                setattr(op, "factor", op.factor * 0.999),
                forward(xp, x),
            )[1]
        results.append(train(name, lambda op=op: network(layers.Function(op)), epochs=6, callbacks=[Assigns]))
    check_same(*results[::-1])
    assert len(captured) == (0 if each_time else 4)


def test_a_frozen_parameter_from_outside_may_be_replaced():
    """A graph has the address of its array; a new array takes effect."""
    results = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            outside = layers.Dense(33, 33, seed=5)
            for parameter in outside.parameters():
                parameter.frozen = True

        class Shifted(layers.Layer):
            def compute(self, x, held=(outside,)):
                return x + ops.tanh(held[0](x))

        class Assigns(Callback):
            def on_epoch_end(self, history, results, outside=outside):
                if results["epoch"] == 3:
                    outside.bias.value = outside.bias.value + 1.0

        results.append(train(name, lambda: network(Shifted()), epochs=5, callbacks=[Assigns]))
    check_same(*results[::-1])


def test_a_divergence_is_found_where_the_cpu_finds_it():
    errors = []
    for name in ("numpy", "cupy"):
        rate = lambda step: 0.05 if step < 200 else 1e30  # noqa: E731
        with pytest.raises(DivergenceError) as raised:
            train(name, gated, lambda rate=rate: optimizers.SGD(rate), epochs=8)
        errors.append(str(raised.value).split(":")[0])
    assert errors[0] == errors[1]


def test_results_do_not_depend_on_the_order_of_threads():
    recorder()
    from cuda_emulator.kernels import settings

    found = []
    for order in ("forward", "random"):
        with settings(order=order):
            found.append(bits(train("cupy", gated, adam, epochs=2, batch_size=50)))
    assert found[0] == found[1]


def test_what_the_host_asks_for_a_chunk():
    """One copy and one graph, whatever the ops in it."""
    recorded = recorder()
    with xnn.backends.backend("cupy"):
        model = xnn.Sequential(layers.Dense(FEATURES, 33), Gated(), layers.Dense(33, CLASSES), seed=1)
        trainer = xnn.Trainer(model, losses.Focal(), optimizers.Adam(), metrics=["f1", "mae"])
    with get_backend("cupy").stream():
        data = (X / 255.0).astype(np.float32), np.eye(CLASSES, dtype=np.float32)[Y]
        stepper = trainer.stepper(xnn.data.Batches(data, 32))
        stepper.refresh()
        for count in (2, 20):
            for _ in range(2):
                stepper.steps([np.arange(32)] * count, 0)
                stepper.take()
            with recorded() as chunk:
                stepper.steps([np.arange(32)] * count, 0)
            assert [line.split()[0] for line in chunk] == ["COPY", "GRAPH"]
            with recorded() as look:
                stepper.take()
            assert [line.split()[0] for line in look].count("SYNC") == 1
