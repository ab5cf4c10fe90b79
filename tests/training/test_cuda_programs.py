"""Training by the CUDA kernels: chunks of steps, CUDA graphs, and the same numbers as on the CPU.

On a GPU, or on the emulated one. The counts of what is asked of the device need the emulated one, which records it.
"""

import gc
import inspect
import os
import signal
import sys
import threading

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers, schedules
from xnn.backends import available_backends, cupy_backend, get_backend, numerics
from xnn.backends.kernels.cuda import cublas
from xnn.backends.kernels.cuda import feed as feeds
from xnn.backends.kernels.cuda import table as tables
from xnn.backends.kernels.cuda.cublas import Product
from xnn.backends.kernels.cuda.launch import Launch
from xnn.callbacks import Callback
from xnn.data import Batches
from xnn.errors import BackendUnavailableError, DivergenceError, OptionError
from xnn.training import fit as fitting
from xnn.training import program as programs

_REASON = available_backends()["cupy"]
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy runs")

ROWS, FEATURES, CLASSES, BATCH = 250, 20, 5, 8  # 32 steps an epoch, the last of 2 rows
X = (np.arange(ROWS * FEATURES) * 7919 % 251).astype(np.uint8).reshape(ROWS, FEATURES)
Y = X.astype(int).sum(axis=1) % CLASSES


def recorder():
    """The recorder of the emulated GPU; skips on a real one."""
    attached = sys.modules.get("cuda_emulator.attach")
    if attached is None or attached._driver is None:
        pytest.skip("only the emulated GPU records what is asked of it")
    return attached.recorded


def network(*between, dtype="float32", activation=layers.ReLU):
    return xnn.Sequential(
        layers.Rescale(1 / 255, dtype=dtype), layers.Dense(FEATURES, 33, dtype=dtype), activation(), *between,
        layers.Dense(33, 12, dtype=dtype), activation(), layers.Dense(12, CLASSES, dtype=dtype), seed=3,
    )  # fmt: skip


class Losses(Callback):
    """Collects the loss of each step without watching each step."""

    def __enter__(self):
        self.steps, self.look = [], fitting.Fit.look

        def look(fit):
            values = self.look(fit)
            self.steps.extend(values)
            return values

        fitting.Fit.look = look
        return self

    def __exit__(self, *_):
        fitting.Fit.look = self.look


def train(
    name, make=network, optimizer=optimizers.SGD, epochs=3, callbacks=(), data=(X, Y), loss=None, kernels="auto",
    metrics=None, **options,
):  # fmt: skip
    """Train on a backend. Returns the trainer, the loss of each step, and the weights with the optimizer's arrays."""
    with xnn.backends.backend(name):
        model = make()
        trainer = xnn.Trainer(
            model,
            loss or losses.SoftmaxCrossEntropy(),
            optimizer(),
            metrics=metrics,
            callbacks=[c() for c in callbacks],
            kernels=kernels,
        )
        with Losses() as found:
            trainer.fit(data, epochs=epochs, progress=False, **{"batch_size": BATCH} | options)
        lib, kept = model.backend, trainer.optimizer.kept_for
        arrays = [p.value for p in model.parameters()] + [a for p in model.parameters() for _, a in kept(p)]
        return trainer, np.array(found.steps), [lib.to_host(a) for a in arrays]


def check_same(one, other, rounding=2e-4):
    """Compare two results of `train`: rounding differs from step to step, and grows."""
    np.testing.assert_allclose(one[1], other[1], rtol=rounding)
    for a, b in zip(one[2], other[2], strict=True):
        assert np.max(np.abs(a - b), initial=0.0) <= rounding * max(1e-3, np.max(np.abs(b), initial=0.0))
    for found, wanted in zip(one[0].history.epochs, other[0].history.epochs, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-3)


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "schedule": lambda: optimizers.SGD(schedules.Cosine(0.2, 320)),
    "decay by name": lambda: optimizers.SGD(0.1, weight_decay={"weight": 0.01}),
    "everything": lambda: optimizers.SGD(
        0.05, momentum=0.9, nesterov=True, clip_norm=1.0, clip_value=0.1, average=0.9
    ),
    "adam": lambda: optimizers.Adam(0.01),
    "rmsprop": lambda: optimizers.RMSProp(0.002, centered=True, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_300_steps_have_the_numbers_of_the_cpu(name):
    here, there = (train(lib, optimizer=OPTIMIZERS[name], epochs=10) for lib in ("numpy", "cupy"))
    assert there[0].history.plan["kernels"] == "cuda"
    assert len(there[1]) == 320
    check_same(there, here, 2e-3)


class Twice(layers.Layer):
    """A dense layer applied twice, so that its gradients are added."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(33, 33)

    def compute(self, x):
        return ops.tanh(self.dense(ops.relu(self.dense(x))))


def frozen():
    model = network()
    model.layers[3].weight.frozen = model.layers[1].bias.frozen = True
    return model


MODELS = {
    "shared": lambda: network(Twice()),
    "frozen": frozen,
    "gelu": lambda: network(activation=layers.GELU),
    "images": lambda: xnn.Sequential(
        layers.Rescale(1 / 255),
        layers.Reshape((4, 5)),
        layers.Flatten(),
        layers.Dense(FEATURES, CLASSES),
        seed=1,
    ),
    "dropout": lambda: network(layers.Dropout(0.3)),
    "sigmoid": lambda: network(activation=layers.Sigmoid),
    "tanh in float64": lambda: network(dtype="float64", activation=layers.Tanh),
    "no bias": lambda: xnn.Sequential(
        layers.Rescale(0.01, shift=100.0), layers.Dense(FEATURES, CLASSES, bias=False)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_numbers_of_the_cpu(name):
    here, there = (train(lib, MODELS[name]) for lib in ("numpy", "cupy"))
    assert not any(program.by_ops for program in stepper_of(there[0]).programs.values())
    check_same(there, here)


@pytest.mark.parametrize("batch", [1, 50, 1000])
def test_batches_of_any_size(batch):
    options = {"batch_size": batch, "data": (X[:60].astype(np.float32) / 255, Y[:60])}

    def model():
        return xnn.Sequential(layers.Dense(FEATURES, 12), layers.ReLU(), layers.Dense(12, CLASSES), seed=3)

    here, there = (train(name, model, **options) for name in ("numpy", "cupy"))
    check_same(there, here)


def test_lbfgs_has_the_numbers_of_the_cpu():
    pytest.importorskip("scipy")
    here, there = (
        train(name, optimizer=lambda: optimizers.LBFGS(weight_decay=0.01), epochs=5)
        for name in ("numpy", "cupy")
    )
    assert here[0].history["loss"] == pytest.approx(there[0].history["loss"], rel=1e-2)


def test_tables_by_name():
    """The ops alone have the same numbers; the names of the CPU's tables are refused."""
    here, there = (train("cupy", kernels=kernels) for kernels in ("ops", "cuda"))
    assert [t[0].history.plan["kernels"] for t in (here, there)] == ["ops", "cuda"]
    check_same(there, here)
    with pytest.raises(OptionError, match="cuda"):
        train("cupy", kernels="compiled")
    with pytest.raises(OptionError, match="cuda"):
        train("numpy", kernels="cuda")


def in_two_threads(run):
    """Call a function in two threads at the same time."""
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_have_streams_of_their_own():
    """Fits at the same time do not capture one another's steps."""
    alone = bits(train("cupy", optimizer=OPTIMIZERS["adam"]))
    look = fitting.Fit.look
    results = []

    def fit():
        with xnn.backends.backend("cupy"):
            model = network()
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), OPTIMIZERS["adam"]())
            trainer.fit((X, Y), epochs=3, batch_size=BATCH, progress=False)
            results.append([model.backend.to_host(p.value).tobytes() for p in model.parameters()])

    in_two_threads(fit)
    assert look is fitting.Fit.look
    assert results == [alone[1:7]] * 2


def test_threads_that_follow_one_another_share_a_handle():
    """A handle of cuBLAS has 32 MiB of scratch memory."""

    def used():
        gc.collect()
        return get_backend("cupy").memory()["used"]

    found = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.append(bits(train("cupy", epochs=1))))
        thread.start()
        thread.join()
        found.append(used())
    assert found[0] == found[2] == found[4]
    assert found[5] < found[1] + cublas._WORKSPACE


def stepper_of(trainer, batch=BATCH, data=(X, Y)):
    with get_backend("cupy").stream():
        return trainer.stepper(Batches(data, batch))


def bits(result):
    return [result[1].tobytes(), *(a.tobytes() for a in result[2])]


@pytest.mark.parametrize(
    "optimizer", [OPTIMIZERS["sgd"], OPTIMIZERS["everything"]], ids=["sgd", "everything"]
)
def test_captured_steps_have_the_bits_of_single_ones(monkeypatch, optimizer):
    """In graphs, without, one by one, and by chunks of another length."""
    captured = []
    capture = feeds.DeviceFeed._captured
    monkeypatch.setattr(
        feeds.DeviceFeed, "_captured", lambda self, run: captured.append(run) or capture(self, run)
    )

    def model():
        return network(layers.Dropout(0.3))

    graphs = bits(train("cupy", model, optimizer))
    assert len(captured) == 2, "31 whole batches, and one of 2 rows"

    class EachStep(Callback):
        def on_step(self, history, epoch, step, loss):
            pass

    assert bits(train("cupy", model, optimizer, callbacks=[EachStep])) == graphs
    loop = feeds.DeviceFeed.loop
    captured.clear()
    monkeypatch.setattr(
        feeds.DeviceFeed, "loop", lambda self, steps, captures, *refused: loop(self, steps, False, *refused)
    )
    assert bits(train("cupy", model, optimizer)) == graphs
    assert not captured
    monkeypatch.setattr(fitting, "_CHECK_STEPS", 7)
    assert bits(train("cupy", model, optimizer)) == graphs


def article(optimizer):
    with xnn.backends.backend("cupy"):
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(784, 100), layers.ReLU(), layers.Dense(100, 200), layers.ReLU(),
            layers.Dense(200, 10), seed=0,
        )  # fmt: skip
        return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer)


ARTICLES = [(optimizers.SGD, 15), (optimizers.Adam, 22)]


@pytest.mark.parametrize(("optimizer", "most"), ARTICLES, ids=["sgd", "adam"])
def test_kernels_and_products_of_a_step(optimizer, most):
    """What a step of 784-100-200-10 launches."""
    data = np.zeros((64, 784), np.uint8), np.arange(64) % 10
    steps = stepper_of(article(optimizer()), 32, data).program(32)._steps
    assert all(isinstance(step, (Launch, Product)) for step in steps)
    assert len(steps) <= most, steps


@pytest.mark.parametrize(("optimizer", "most"), ARTICLES, ids=["sgd", "adam"])
def test_what_the_host_asks_for_a_chunk(optimizer, most):
    """One copy and one graph for any number of steps; with the look at them at most 4 launches and 4 copies."""
    recorded = recorder()
    data = np.zeros((64, 784), np.uint8), np.arange(64) % 10
    trainer = article(optimizer())
    rows = np.arange(32)
    with get_backend("cupy").stream():
        stepper = trainer.stepper(Batches(data, 32))
        stepper.refresh()
        for count in (2, 20):
            for _ in range(2):  # the second time captures
                stepper.steps([rows] * count, 0)
                stepper.take()
            with recorded() as chunk:
                stepper.steps([rows] * count, 0)
            (copy, graph) = chunk
            assert copy.startswith("COPY H2D pinned")
            assert graph.startswith("GRAPH")
            assert int(graph.split()[1]) <= most * count
            stepper.store.is_finite()
            with recorded() as look:
                stepper.take()
                assert stepper.store.is_finite()
                stepper.keep()
            kinds = [line.split()[0] for line in chunk + look]
            assert kinds.count("GRAPH") + kinds.count("KERNEL") + kinds.count("CUBLAS") <= 4
            assert kinds.count("COPY") <= 4
            assert kinds.count("MALLOC") == 0


def test_an_epoch_waits_only_where_it_looks(monkeypatch):
    """An epoch of 50 steps of which nobody watches each: two waits, for the losses and for what is not finite."""
    recorded = recorder()
    logs = []

    class Marks(Callback):
        def on_epoch_end(self, history, results):
            logs.append(None)

    epoch = fitting.Fit.epoch

    def logged(fit):
        with recorded() as lines:
            result = epoch(fit)
        logs.append(lines)
        return result

    monkeypatch.setattr(fitting.Fit, "epoch", logged)
    train("cupy", epochs=3, data=(X[:240], Y[:240]))
    last = [line.split()[0] for line in logs[-1]]
    assert last.count("SYNC") == 2
    assert last.count("GRAPH") == 1
    assert last.count("KERNEL") == 1
    assert last.count("COPY") <= 4


def test_an_evaluation_reads_once():
    """However many batches there are, and also where the divisor of the loss and a metric are arrays."""
    recorded = recorder()
    results = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            trainer = xnn.Trainer(
                network(), losses.SoftmaxCrossEntropy(), optimizers.SGD(), metrics=["accuracy", "f1"]
            )
            weights = np.linspace(0.1, 2.0, ROWS).astype(np.float32)
            trainer.evaluate((X, Y), 50, weights)  # compiles kernels
            with recorded() as log:
                results.append(trainer.evaluate((X, Y), 50, weights))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert [line.split()[:2] for line in log].count(["SYNC", "stream"]) == 1


def test_results_do_not_depend_on_the_order_of_threads():
    recorder()
    from cuda_emulator.kernels import settings

    found = []
    for order in ("forward", "backward", "random"):
        with settings(order=order):
            found.append(bits(train("cupy", optimizer=OPTIMIZERS["everything"], epochs=1)))
    assert found[0] == found[1] == found[2]


def assigned(what):
    """A callback that changes something at the end of the second epoch."""

    class Changes(Callback):
        def on_epoch_end(self, history, results):
            if results["epoch"] == 2:
                what(self.model, self.trainer)

        def on_fit_start(self, history, epochs, steps):
            pass

    return Changes


def freeze(model, trainer):
    model.layers[1].weight.frozen = True


def weights(model, trainer):
    model.layers[1].weight.value = model.backend.xp.ones((FEATURES, 33), dtype=model.backend.xp.float32) * 0.1


def momentum(model, trainer):
    trainer.optimizer.momentum = 0.5


def rate(model, trainer):
    trainer.optimizer.learning_rate = 0.001


def drop(model, trainer):
    model.layers[3].rate = 0.9


def clear(model, trainer):
    trainer.optimizer.state.clear()


@pytest.mark.parametrize("change", [freeze, weights, momentum, rate, drop, clear], ids=lambda c: c.__name__)
def test_what_a_callback_changes_takes_effect(change):
    results = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            model = network(layers.Dropout(0.2))
            callback = assigned(change)()
            optimizer = optimizers.SGD(0.05, momentum=0.0 if change is momentum else 0.7)
            trainer = callback.trainer = xnn.Trainer(
                model, losses.SoftmaxCrossEntropy(), optimizer, callbacks=[callback]
            )
            with Losses() as found:
                trainer.fit((X, Y), epochs=4, batch_size=BATCH, progress=False)
            values = [model.backend.to_host(p.value) for p in model.parameters()]
            results.append((trainer, np.array(found.steps), values))
    check_same(*results)


@pytest.mark.parametrize("step", [0, 5, 40])
def test_a_schedule_that_changes_the_loss_takes_effect_at_the_next_step(step):
    """Within a chunk: the steps behind it need another program."""
    results = []
    for name in ("numpy", "cupy"):
        loss = losses.SoftmaxCrossEntropy()

        def schedule(number, loss=loss):
            if number == step:
                loss.label_smoothing = 0.3
            return 0.1

        results.append(train(name, optimizer=lambda s=schedule: optimizers.SGD(s), epochs=2, loss=loss))
    check_same(*results)


def test_a_divergence_is_found_and_named():
    messages = []
    for name in ("numpy", "cupy"):

        def schedule(number):
            return 1e30 if number == 40 else 0.1

        with pytest.raises(DivergenceError) as raised:
            train(name, optimizer=lambda s=schedule: optimizers.SGD(s))
        messages.append(str(raised.value))
        assert raised.value.history.steps == 41
    assert messages[0] == messages[1]


def test_an_exception_leaves_the_last_look():
    """A schedule that fails in the middle of a chunk: the model is as after the steps before."""
    states = []
    for name in ("numpy", "cupy"):

        def schedule(number):
            if number == 45:
                raise OSError("no rate")
            return 0.1

        with xnn.backends.backend(name):
            model = network()
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(schedule, momentum=0.5))
            with pytest.raises(OSError, match="no rate"):
                trainer.fit((X, Y), epochs=3, batch_size=BATCH, progress=False)
            assert trainer.optimizer.steps == trainer.step
            states.append((trainer.step, [model.backend.to_host(p.value) for p in model.parameters()]))
    assert states[0][0] == states[1][0] == 32
    for a, b in zip(states[0][1], states[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_interrupt_anywhere(monkeypatch):
    """KeyboardInterrupt in any function of training or of the CUDA kernels leaves a state that was looked at."""
    monkeypatch.setattr(fitting, "_LOOK_SECONDS", float("inf"))
    places = tuple(file.rpartition(os.sep)[0] + os.sep for file in (fitting.__file__, feeds.__file__))
    look, states = fitting.Fit.look, {}

    def state(trainer):
        return [trainer.model.backend.to_host(p.value).tobytes() for p in trainer.model.parameters()]

    def fit(trainer):
        trainer.fit((X, Y), epochs=3 - trainer.epoch, batch_size=BATCH, progress=False)
        return state(trainer)

    def fresh():
        return xnn.Trainer(network(), losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01))

    def looks(self):
        values = look(self)
        self.stepper.store.publish()
        states[self.trainer.step] = state(self.trainer)
        return values

    with xnn.backends.backend("cupy"):
        trainer = fresh()
        states[0] = state(trainer)
        monkeypatch.setattr(fitting.Fit, "look", looks)
        end = fit(trainer)
        monkeypatch.setattr(fitting.Fit, "look", look)
        assert set(states) == {0, 32, 64, 96}
        stopped = 0
        for number in range(40, 4000, 660):
            trainer, left = fresh(), number

            def watch(frame, event, _):
                nonlocal left
                generator = frame.f_code.co_flags & inspect.CO_GENERATOR  # where exceptions are only printed
                if event == "call" and not generator and frame.f_code.co_filename.startswith(places):
                    left -= 1
                    if left == -1:
                        raise KeyboardInterrupt

            sys.setprofile(watch)
            try:
                fit(trainer)
            except KeyboardInterrupt:
                stopped += 1
            finally:
                sys.setprofile(None)
            assert state(trainer) == states[trainer.step]
            assert trainer.optimizer.steps == trainer.step
            assert fit(trainer) == end
        assert stopped > 2


@pytest.mark.parametrize("before", [0, 1])
def test_ctrl_c_ends_after_the_steps_that_were_handed_over(before, monkeypatch):
    """At most 100 steps later, however long the epoch is; the numbers are those of the steps that were taken."""
    rows = np.arange(2 * 250) % ROWS
    chunks, steps = [], programs.Program.steps

    def counted(program, batches, number):
        if len(chunks) == before:
            signal.raise_signal(signal.SIGINT)
        chunks.append(steps(program, batches, number))
        return chunks[-1]

    monkeypatch.setattr(programs.Program, "steps", counted)
    with xnn.backends.backend("cupy"):
        trainer = xnn.Trainer(network(), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.01))
        history = trainer.fit((X[rows], Y[rows]), epochs=3, batch_size=2, progress=False)
    assert history.interrupted
    assert trainer.step == history.steps == trainer.optimizer.steps == 100 * (before + 1)
    assert max(chunks) <= feeds.LONGEST == 100


class ByHand(layers.Layer):
    def forward(self, x, training=False):
        return 2.0 * x

    def backward(self, dout, input_gradient=True):
        return 2.0 * dout


def test_calls_that_no_graph_can_hold_are_named_once(capsys):
    """Their steps run call by call, with the same numbers."""
    here, there = (train(name, lambda: network(ByHand())) for name in ("numpy", "cupy"))
    said = capsys.readouterr().err
    assert said.count("no CUDA graph can hold") == 1
    assert "ByHand" in said
    check_same(there, here)


MIXED = {
    "convolution": lambda: xnn.Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 4, 5)), layers.Conv2D(1, 3, 3, padding=1), layers.BatchNorm(3),
        layers.ReLU(), layers.MaxPool2D(2), layers.Dropout(0.2), layers.Flatten(), layers.Dense(12, CLASSES), seed=1,
    ),
    "layer norm": lambda: network(layers.LayerNorm(33)),
    "user's op": lambda: network(layers.Lambda(lambda x: ops.exp(-x * x))),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_models_of_kernels_and_ops_have_the_numbers_of_the_cpu(name):
    """Kernels and ops take turns on one stream; running statistics and averages are kept."""

    def optimizer():
        return optimizers.SGD(0.03, momentum=0.9, average=0.9, clip_norm=1.0)

    here, there = (train(lib, MIXED[name], optimizer) for lib in ("numpy", "cupy"))
    check_same(there, here, 5e-3)
    for (_, a), (_, b) in zip(here[0].model.named_state(), there[0].model.named_state(), strict=True):
        found = there[0].model.backend.to_host(b.value)
        np.testing.assert_allclose(found, a.value, rtol=0.02, atol=2e-3)


def test_without_cublas_the_ops_run(monkeypatch):
    lib = get_backend("cupy")

    def missing():
        raise BackendUnavailableError("no cuBLAS")

    monkeypatch.setattr(tables, "library", missing)
    assert lib.kernels("auto").name == "ops"
    with pytest.raises(BackendUnavailableError, match="no cuBLAS"):
        lib.kernels("cuda")
    monkeypatch.undo()
    with numerics("exact"):
        assert lib.kernels("auto").name == lib.kernels("cuda").name == "cuda"


def test_sample_weights_and_other_losses_have_the_numbers_of_the_cpu():
    weights = np.linspace(0.1, 2.0, ROWS).astype(np.float32)
    here, there = (train(name, sample_weight=weights) for name in ("numpy", "cupy"))
    check_same(there, here)
    targets = (X[:, :CLASSES] / 255).astype(np.float32)
    here, there = (train(name, data=(X, targets), loss=losses.MSE()) for name in ("numpy", "cupy"))
    check_same(there, here)


def test_data_that_no_kernel_gathers_stay_on_the_host(monkeypatch, capsys):
    monkeypatch.setitem(tables._KERNELS, ("gather", None), (None, lambda call: False))
    here, there = (train(name) for name in ("numpy", "cupy"))
    assert "gather" in capsys.readouterr().err
    check_same(there, here)


def test_data_on_the_gpu_are_used_where_they_are():
    lib = get_backend("cupy")
    here, there = train("numpy"), train("cupy", data=(lib.to_device(X), lib.to_device(Y)))
    check_same(there, here)


@pytest.mark.parametrize("where", ["host", "gpu", "gpu, by columns", "gpu, every second column"])
def test_what_a_callback_writes_to_the_data_counts_from_the_next_epoch(where):
    lib, results = get_backend("cupy"), []
    there = {
        "host": np.copy,
        "gpu": lib.to_device,
        "gpu, by columns": lambda x: lib.to_device(np.ascontiguousarray(x.T)).T,
        "gpu, every second column": lambda x: lib.to_device(np.repeat(x, 2, axis=1))[:, ::2],
    }
    for name in ("numpy", "cupy"):
        x = X.copy() if name == "numpy" else there[where](X)

        class Inverts(Callback):
            def on_epoch_end(self, history, results, x=x):
                x[:] = 255 - x

        results.append(train(name, data=(x, Y), callbacks=[Inverts]))
    check_same(*results)


def test_seconds_per_step_and_many_steps_without_a_look():
    """Steps are undone; the record is emptied to the host when it is full."""
    trainer = article(optimizers.SGD())
    data = np.zeros((64, 784), np.uint8), np.arange(64) % 10
    with get_backend("cupy").stream():
        stepper = trainer.stepper(Batches(data, 32))
        before = [get_backend("cupy").to_host(p.value) for p in trainer.model.parameters()]
        assert stepper.seconds_per_step(0) > 0.0
        for p, old in zip(trainer.model.parameters(), before, strict=True):
            np.testing.assert_array_equal(get_backend("cupy").to_host(p.value), old)
        for _ in range(3):
            stepper.steps([np.arange(32)] * 45, 0)
        values, counts = stepper.take()
        assert len(values) == len(counts) == 135
        assert np.all(np.diff(values) <= 0)


def test_batches_by_hand_may_be_larger_than_those_of_the_fit():
    """As on the CPU; those for which the memory of the feed is too small are one clear error."""
    found = []
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name), get_backend(name).stream():
            trainer = xnn.Trainer(network(), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
            stepper = trainer.stepper(Batches((X, Y), 2))
            stepper.refresh()
            for rows, count in ((2, 3), (150, 3), (7, 60), (200, 1)):
                stepper.steps([np.arange(rows)] * count, 0)
            found.append(stepper.take())
    assert len(found[1][0]) == 67
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)
    with pytest.raises(
        OptionError, match=r"a batch of 201 rows, .* for batches of 2: make the Stepper with .*=201"
    ):
        stepper.step(np.arange(201), 0)
    stepper.step(np.arange(2), 0)
    assert len(stepper.take()[0]) == 1


@pytest.mark.parametrize(("limit", "most"), [(100 * BATCH, 100), (7 * BATCH + 1, 7), (BATCH - 1, 1)])
def test_chunks_of_large_batches_have_fewer_steps(monkeypatch, limit, most):
    """The numbers of their rows are kept in pinned memory of the host."""
    whole = bits(train("cupy"))
    monkeypatch.setattr(feeds, "_ROW_NUMBERS", limit)
    trained = train("cupy")
    stepper = stepper_of(trained[0])
    assert stepper.programs[BATCH].most == most
    assert stepper.feed._staging[0].memory.mem.size < 8 * (max(limit, BATCH) + 2000)
    assert bits(trained) == whole


def test_evaluation_and_prediction_wait_once():
    """Losses and counts of all batches are read at the end, weighted or not; so are the outputs."""
    recorded = recorder()
    trainer = train("cupy", epochs=1)[0]
    given = {"batch_size": 30}, {"batch_size": 30, "sample_weight": np.linspace(0.1, 2.0, ROWS)}
    for options in given:
        trainer.evaluate((X, Y), **options)
        with recorded() as lines:
            trainer.evaluate((X, Y), **options)
        assert [line for line in lines if line.startswith("SYNC")] == ["SYNC stream"]
        assert len([line for line in lines if line.startswith("COPY D2H")]) == 1
    with recorded() as lines:
        outputs = trainer.model.predict(X, batch_size=30)
    assert [line for line in lines if line.startswith("SYNC")] == ["SYNC stream"]
    np.testing.assert_array_equal(outputs, trainer.model.predict(X, batch_size=ROWS))


def test_arrays_come_to_the_host_together(lib, monkeypatch):
    """Of any shape and dtype, those without elements too; large ones in several goes."""
    monkeypatch.setattr(cupy_backend, "_TOGETHER", 100)
    host = [
        np.arange(6.0).reshape(2, 3), np.float32(3).reshape(()), np.zeros((0, 4)), np.arange(50), np.array([True]),
        np.zeros(3, np.uint8),
    ]  # fmt: skip
    found = lib.to_host_all(lib.to_device(x) for x in host)
    for a, b in zip(host, found, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    assert lib.to_host_all([]) == []
    if not lib.is_host:
        turned = lib.xp.permute_dims(lib.to_device(host[0]), (1, 0))
        np.testing.assert_array_equal(lib.to_host_all([turned])[0], host[0].T)
