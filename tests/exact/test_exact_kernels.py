"""Exact kernels have the bits of the exact ops: each kernel alone, and in whole runs, also on extreme numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_kernels import Both, dense_calls, loss_calls

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import Purpose, Stream, get_backend
from xnn.backends.communicator import with_communicator
from xnn.backends.exact import ScaledIntegers
from xnn.backends.exact.kernels.exact_kernels import _NextSlice, splitters
from xnn.backends.exact.slices import splitter
from xnn.backends.kernels.calls import Call, Cursor, KernelTable, Slot
from xnn.backends.threads import blas_threads
from xnn.callbacks import Callback
from xnn.layers.files import weights_sha256
from xnn.ops import updates
from xnn.ops.apply import apply_rule
from xnn.ops.metrics import accuracy
from xnn.runs.mlp import mlp

LIB = get_backend("numpy")
ACTIVATIONS = [None, ops.relu, ops.sigmoid, ops.tanh]


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def table(request):
    """A table of exact kernels; the test runs in exact numerics."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with xnn.numerics("exact"):
        yield LIB.kernels(request.param)


def numbers(shape, seed, kind="plain"):
    """Return float32 numbers as exact numerics store them: plain, over a wide range, or with NaN and infinities."""
    stream = Stream(seed, Purpose.DIRECTIONS, 950)
    x = np.asarray(stream.uniform(shape, -2.0, 2.0))
    if kind != "plain":
        x = x * 2.0 ** np.floor(Stream(seed, Purpose.DIRECTIONS, 951).uniform(shape, -140.0, 60.0))
        flat = x.reshape(-1)
        flat[::7] = 0.0
        if kind == "hostile" and flat.size > 5:
            flat[1:6] = [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38]
    return np.asarray(LIB.exact.leave(x))


def same(kernel, op):
    """Check that two arrays have the same bits; all NaNs are equal."""
    kernel, op = np.asarray(kernel), np.asarray(op)
    assert (kernel.dtype, kernel.shape) == (op.dtype, op.shape)
    np.testing.assert_array_equal(np.isnan(kernel), np.isnan(op))
    assert np.where(np.isnan(kernel), 0, kernel).tobytes() == np.where(np.isnan(op), 0, op).tobytes()


SHAPES = [(1, 1, 1), (3, 4, 2), (32, 20, 10), (33, 17, 129), (5, 1, 300), (64, 301, 7), (0, 4, 3)]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a and a.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "wide", "hostile"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_dense(table, shape, activation, bias, kind, input_gradient):
    if activation not in (None, *table.passes.ACTIVATIONS):
        pytest.skip("run by the op")
    n, k, m = shape
    both = Both(table)
    both.slot("x", numbers((n, k), 1, kind))
    both.slot("w", numbers((k, m), 2, "plain" if kind == "hostile" else kind))
    both.slot("b", numbers((m,), 3))
    both.slot("dy", numbers((n, m), 4, kind))
    for name, extent in (
        ("z", (n, m)),
        ("y", (n, m)),
        ("dz", (n, m)),
        ("dx", (n, k)),
        ("dw", (k, m)),
        ("db", (m,)),
    ):
        both.empty(name, extent, "float32")
    found = both.run(lambda s: dense_calls(s, activation, bias, input_gradient))
    for name in (
        "y" if activation else "z",
        "dw",
        *(["db"] if bias else []),
        *(["dx"] if input_gradient else []),
    ):
        same(*found[name])
    for name in ("x", "w", "b"):
        same(*found[name])


@pytest.mark.parametrize("frozen", ["dw", "db"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_dense_with_frozen_weights_or_bias(table, frozen, input_gradient):
    both = Both(table)
    both.slot("x", numbers((9, 5), 1))
    both.slot("w", numbers((5, 7), 2))
    both.slot("b", numbers((7,), 3))
    both.slot("dy", numbers((9, 7), 4, "hostile"))
    for name, extent in (("z", (9, 7)), ("dx", (9, 5)), ("dw", (5, 7)), ("db", (7,))):
        both.empty(name, extent, "float32")
    found = both.run(lambda s: dense_calls({**s, frozen: None}, None, True, input_gradient))
    for name in {"z", "dw", "db"} - {frozen} | ({"dx"} if input_gradient else set()):
        same(*found[name])


@pytest.mark.parametrize("n", [1, 60])
def test_accuracy(table, n):
    outputs = np.round(numbers((n, 5), 1), 1)  # rounded, so that rows have ties
    if n > 4:
        outputs[3, 2] = outputs[4, 0] = outputs[4, 3] = np.nan
    both = Both(table)
    both.slot("z", outputs)
    both.slot("t", np.argmax(outputs + numbers((n, 5), 2), axis=1).astype(np.int64))
    both.empty("count", (), "float32")
    kernel, op = both.run(lambda s: [Call("metric", accuracy, (s["z"], s["t"]), (s["count"],))])["count"]
    assert (kernel, kernel.dtype) == (op, np.float32)
    assert n == 1 or 0 < op < n


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_dense_of_integers(table, shape, dtype):
    n, k, m = shape
    end = np.iinfo(dtype)
    pixels = np.asarray(Stream(5, Purpose.DIRECTIONS).uniform((n, k), end.min, end.max + 1.0))
    both = Both(table)
    both.slot("w", numbers((k, m), 2, "wide"))
    both.slot("b", numbers((m,), 3))
    both.slot("dy", numbers((n, m), 4, "wide"))
    for name, extent in (("z", (n, m)), ("dw", (k, m)), ("db", (m,))):
        both.empty(name, extent, "float32")
    scaled = ScaledIntegers(LIB, np.floor(pixels).astype(dtype), 1 / 255)
    for slots in (both.first, both.second):
        slots["x"] = Slot("x", (n, k), np.dtype("f4"), scaled, scaled=scaled)
    original = Slot.allocate

    def filled(slot, lib):  # in a program the gather call fills the slot
        given = slot.array
        original(slot, lib)
        if slot.scaled is not None:
            slot.put(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slot, "allocate", filled)
        found = both.run(lambda s: dense_calls({**s, "dx": None}, None, True, True))
    for name in ("z", "dw", "db"):
        same(*found[name])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (32, 10), (7, 300), (1024, 2)])
@pytest.mark.parametrize("size", [1.0, 300.0, 1e6])
@pytest.mark.parametrize("special", [(), (np.nan,), (np.inf,), (-np.inf,), (-3e38, 3e38)])
def test_softmax_cross_entropy(table, n, classes, size, special):
    z = numbers((n, classes), 1) * np.float32(size)
    z.reshape(-1)[: len(special)] = special[: z.size]
    both = Both(table)
    both.slot("z", z)
    both.slot("t", (np.asarray(Stream(3, Purpose.DIRECTIONS).uniform((n,))) * classes).astype(np.int64))
    both.slot("one", np.ones((), np.float32))
    both.empty("loss", (), "float32")
    both.empty("g", (n, classes), "float32")

    found = both.run(loss_calls)
    for name in ("loss", "g", "z"):
        same(*found[name])


def test_gather_copies_pixels_unchanged(table):
    source = np.arange(60, dtype=np.uint8).reshape(20, 3)
    scaled = ScaledIntegers(LIB, source[:4], 0.5)
    slot = Slot("x", (4, 3), np.dtype("f4"), scaled=scaled)
    options = {"source": source, "cursor": Cursor(np.array([7, 0, 19, 7])), "scale": 0.5, "offset": 0.0}
    call = Call("gather", None, (), (slot,), options)
    assert table.accepts(call)
    slot.allocate(LIB)
    table.bind(call)()
    assert slot.array.integers.tolist() == source[[7, 0, 19, 7]].tolist()
    for wrong in (source.astype(np.float32), source.astype(np.int16), np.asfortranarray(source)):
        assert not table.accepts(Call("gather", None, (), (slot,), {**options, "source": wrong}))
    floats = Slot("x", (4, 3), np.dtype("f4"))
    assert not table.accepts(Call("gather", None, (), (floats,), {**options, "source": source.astype("f4")}))


def test_the_table_of_splitters_agrees_with_the_formula(table):
    x = np.asarray([2.0**-149, 2.0**-126, 1e-30, 0.75, 1.0, 3.0, 3.4e38, np.inf, np.nan], np.float32)
    for bits in (11, 27, 50):
        looked_up = splitters(LIB, bits)[x.view(np.int32) >> 23]
        fields = (x.astype(np.float64).view(np.int64) >> 52) & 0x7FF
        computed = splitter(LIB, np.where(fields < 897, 0, fields), bits)
        np.testing.assert_array_equal(looked_up, computed)


# Whole runs, with every rule of fusion, each optimizer, masks and several batch sizes.

X = np.asarray(Stream(1, Purpose.SYNTHETIC).uniform((150, 40), 0.0, 256.0)).astype(np.uint8)
Y = (X[:, :10].argmax(axis=1)).astype(np.int64)

RUNS = {
    "relu, sgd": ({}, lambda: optimizers.SGD(0.1)),
    "sigmoid, nesterov": ({"activation": "sigmoid"}, lambda: optimizers.SGD(0.05, 0.9, True, 1e-4)),
    "tanh, adam, dropout": (
        {"activation": "tanh", "dropout": 0.3},
        lambda: optimizers.Adam(0.01, weight_decay=1e-3),
    ),
    "relu, adam": ({}, lambda: optimizers.Adam(xnn.schedules.OneCycle(0.01, 30))),
}


def run(kernels, options, optimizer, numerics="exact", floats=False, callbacks=()):
    rescale = None if floats else (1 / 255, 0.0)
    model = mlp(40, (33, 20), 10, rescale=rescale, seed=3, **options)
    x = (X / 255.0).astype(np.float32) if floats else X
    trainer = xnn.Trainer(
        model,
        losses.SoftmaxCrossEntropy(),
        optimizer(),
        kernels=kernels,
        numerics=numerics,
        callbacks=callbacks,
    )
    history = trainer.fit((x, Y), epochs=3, batch_size=32, progress=False)
    return history.losses_sha256, weights_sha256(model), history.epochs, history.plan["kernels"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("floats", [False, True], ids=["pixels", "floats"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_bits_of_the_ops(table, name, floats):
    plain = run("ops", *RUNS[name], floats=floats)
    kernels = run(table.name.split()[0], *RUNS[name], floats=floats)
    assert kernels[:3] == plain[:3]
    assert (kernels[3], plain[3]) == (table.name, "ops")
    assert run("ops", *RUNS[name], "fast", floats)[:2] != plain[:2]


def test_a_run_has_the_bits_of_the_ops_with_and_without_gradients(table):
    """With a callback that reads gradients, SGD is not folded into the products; the bits are the same."""

    class Reads(Callback):
        needs_gradients = True

    name = table.name.split()[0]
    folded = run(name, *RUNS["relu, sgd"])
    assert run(name, *RUNS["relu, sgd"], callbacks=[Reads()])[:2] == folded[:2]


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_sgd_updates_long_arrays_as_the_op_does(table, decay):
    """Of more numbers than a pass takes at once, NaN and infinities among them."""
    w, g = numbers((40_000,), 4, "hostile"), numbers((40_000,), 5, "wide")
    options = {"learning_rate": 0.1, "weight_decay": decay}
    group = SimpleNamespace(plain=not decay, options=options, numbers=np.array([0.1, 0.0, 0.0, decay]))
    with np.errstate(all="ignore"):
        expected = apply_rule(updates.sgd, LIB.exact, (w, g), options)[0]
        table.passes.sgd(LIB.exact, group, w, g)()
    same(w, expected)


class Meddles(Callback):
    """Changes weights during a fit: in place after a step, or by assignment after an epoch."""

    def __init__(self, model, how, factor):
        self.weight, self.how, self.factor = model.layers[1].weight, how, np.float32(factor)

    def on_step(self, history, epoch, step, loss):
        if self.how == "in place" and step % 3 == 0:
            self.weight.value[...] *= self.factor

    def on_epoch_end(self, history, entry):
        if self.how == "assigned":
            self.weight.value = self.weight.value * self.factor


@pytest.mark.sampled(2)
@pytest.mark.parametrize("factor", [1.0009765625, 2.0, 0.25])
@pytest.mark.parametrize("how", ["in place", "assigned"])
def test_weights_changed_by_a_callback_are_sliced_again(table, how, factor):
    """A kernel uses the slice that its update computed only if nothing else may have changed the weights."""
    found = []
    for kernels in ("ops", table.name.split()[0]):
        model = mlp(40, (12,), 10, rescale=(1 / 255, 0.0), seed=3)
        callbacks = [Meddles(model, how, factor)]
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels, callbacks=callbacks
        )
        history = trainer.fit((X, Y), epochs=4, batch_size=32, progress=False)
        found.append((history.losses_sha256, weights_sha256(model)))
    assert found[0] == found[1]


def test_the_slice_that_an_update_computes_is_that_of_the_weights(table, monkeypatch):
    """When a kernel does not slice the weights, the slice it has is the right one; also if W's exponent changes."""
    passes, holds, made, counts = table.passes, _NextSlice.holds, {}, {True: 0, False: 0}
    cut = passes.slice_tensor

    def remembered(w, splits, one, state):
        made[id(state)] = w, splits, one
        return cut(w, splits, one, state)

    def compared(next_slice):
        held = holds(next_slice)
        counts[held] += 1
        if held:
            w, splits, one = made[id(next_slice.state)]
            anew = np.empty_like(one)
            cut(w, splits, anew, np.zeros(2, np.int64))()
            assert anew.tobytes() == one.tobytes()
        return held

    monkeypatch.setattr(passes, "slice_tensor", remembered)
    monkeypatch.setattr(_NextSlice, "holds", compared)
    x = np.asarray(Stream(3, Purpose.DIRECTIONS).uniform((150, 40), -1.0, 1.0)).astype(np.float32)
    model = mlp(40, (12,), 10, seed=3)
    spread = np.exp2(-np.arange(40.0) / 2)[:, None].astype(np.float32)  # small weights lose bits in a slice
    model.layers[0].weight.value = model.layers[0].weight.value * spread
    rate = optimizers.SGD(lambda step: 30.0 if step % 4 == 1 else 1e-4)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rate, kernels=table.name.split()[0])
    trainer.fit((x, Y), epochs=8, batch_size=50, progress=False)
    assert counts[False] > 16  # in two layers, each epoch's first step and steps where the exponent changed
    assert counts[True] > 10 or table.name == "numpy"


def test_slices_of_undone_steps_are_not_used(table):
    """threads="auto" measures steps and restores the weights; two programs share one set of parameters."""
    name, found = table.name.split()[0], []
    for threads in (1, "auto"):
        model = mlp(40, (12,), 10, rescale=(1 / 255, 0.0), seed=3)
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=name, threads=threads
        )
        history = trainer.fit((X, Y), epochs=3, batch_size=40, progress=False)
        found.append((history.losses_sha256, weights_sha256(model)))
    assert found[0] == found[1]


@pytest.mark.skipif((blas_threads() or 1) < 2, reason="one thread")
def test_the_number_of_threads_changes_no_bit(table):
    """The products are so large that OpenBLAS uses several threads; in fast numerics the bits differ."""

    def go(threads, numerics):
        model = mlp(40, (700, 300), 10, rescale=(1 / 255, 0.0), seed=3)
        name = table.name.split()[0]
        trainer = xnn.Trainer(
            model,
            losses.SoftmaxCrossEntropy(),
            optimizers.SGD(0.1),
            threads=threads,
            kernels=name,
            numerics=numerics,
        )
        history = trainer.fit((X, Y), epochs=2, batch_size=75, progress=False)
        assert history.plan["threads"] == threads
        return history.losses_sha256, weights_sha256(model)

    assert go(1, "exact") == go(2, "exact")
    assert go(1, "fast") != go(2, "fast")


@pytest.mark.parametrize("size", [2.0**-126, 1e-37, 1.0])
def test_subnormal_samples_count_as_zero(table, size):
    """To kernels and ops, subnormal numbers and -0 in samples are 0, even if large weights multiply them."""
    unit = Stream(7, Purpose.DIRECTIONS).uniform((150, 40), -1.0, 1.0)
    x = (np.asarray(unit) * size * np.exp2(np.round(5 * unit))).astype(np.float32)
    x[::3, ::5] = [-0.0] * 8
    found = []
    for kernels in ("ops", table.name.split()[0]):
        model = mlp(40, (12,), 10, seed=3)
        model.layers[0].weight.value = model.layers[0].weight.value * np.float32(0.5 / size)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels)
        history = trainer.fit((x, Y), epochs=2, progress=False)
        found.append((history.losses_sha256, weights_sha256(model), model.predict(x).tobytes()))
    assert found[0] == found[1]


def test_an_input_that_two_layers_read(table):
    """Pixels that Dense and another op read: Dense uses the integers, the other op float32."""

    class Fork(layers.Layer):
        def __init__(self):
            self.dense = layers.Dense(40, 10, seed=1)

        def compute(self, x):
            return ops.add(self.dense(x), ops.mean(x, axis=1, keepdims=True))

    def go(kernels):
        model = xnn.Sequential(layers.Rescale(1 / 255), Fork(), seed=0)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels)
        return trainer.fit((X, Y), progress=False).losses_sha256, weights_sha256(model)

    assert go(table.name.split()[0]) == go("ops")


def test_subnormal_weights_count_as_zero(table):
    """Subnormal numbers and -0 that were assigned to weights are 0 to kernels, as they are to ops."""
    found = []
    for kernels in ("ops", table.name.split()[0]):
        model = mlp(40, (12,), 10, rescale=(1 / 255, 0.0), seed=3)
        w = model.layers[1].weight.value.copy()
        w[0, :4] = [1e-40, -1e-42, -0.0, 2.0**-126]
        model.layers[1].weight.value = w
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(1e-3), kernels=kernels)
        trainer.fit((X, Y), progress=False)
        found.append(weights_sha256(model))
    assert found[0] == found[1]


def test_several_workers_use_the_ops(table):
    class Alone:
        def maximum(self, x):
            return x

        def total(self, x):
            return x

        def count(self, rows):
            return rows

    with with_communicator(Alone()):
        assert type(LIB.kernels()) is KernelTable
        assert run("auto", *RUNS["relu, sgd"])[3] == "ops"
    assert run("auto", *RUNS["relu, sgd"])[3] != "ops"
