"""Trainer: what it computes, when it stops, and what it refuses before it starts."""

import os
import signal
import threading

import numpy as np
import pytest

import xnn
from xnn import data, layers, losses, metrics, optimizers
from xnn.backends.threads import limit_threads
from xnn.callbacks import Callback
from xnn.errors import (
    DivergenceError,
    DTypeError,
    LabelError,
    MixedArraysError,
    OptionError,
    ShapeError,
)
from xnn.history import History
from xnn.layers.files import weights_sha256
from xnn.runs.mlp import mlp
from xnn.training.inputs import prepare

X, Y = data.synthetic_digits(700)


def trainer(dropout=0.0, optimizer=None, seed=1, hidden=(16,), **options):
    model = mlp(784, hidden, 10, "relu", dropout, (1 / 255, 0.0), seed)
    rule = optimizers.SGD(0.1) if optimizer is None else optimizer
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rule, **options)


def fit(t, epochs=1, **options):
    return t.fit((X, Y), epochs=epochs, progress=False, **{"seed": 5, **options})


def test_learns_and_reports(lib):
    t = trainer(optimizer=optimizers.SGD(0.1, momentum=0.9))
    history = fit(t, epochs=3, validation=(X[:100], Y[:100]))
    assert list(history.epochs[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert history["epoch"] == [1, 2, 3]
    assert history["loss"][2] < 0.5 * history["loss"][0]
    assert history["val_accuracy"][2] > 0.9
    assert history.steps == 3 * 22
    assert history.samples == 3 * 700
    assert history.plan["backend"] == lib.address
    assert history.plan["batch_size"] == 32
    result = t.evaluate((X, Y))
    assert result["accuracy"] == np.mean(t.model.predict_classes(X) == Y)
    assert t.evaluate((X, Y), batch_size=33)["loss"] == pytest.approx(result["loss"], rel=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_the_loop_is_the_articles_steps(lib):
    """One epoch of fit against the same steps written out: every loss and every weight, bit for bit."""
    t = trainer(dropout=0.3, kernels="ops")
    history = fit(t)
    by_hand = trainer(dropout=0.3)
    model, loss = by_hand.model, losses.SoftmaxCrossEntropy()
    found = []
    for step, (x, y) in enumerate(data.Batches((X, Y), 32, seed=5).epoch(0)):
        model.set_stream(5, step)
        found.append(float(loss.forward(model.forward(lib.to_device(x), training=True), lib.to_device(y))))
        model.backward(loss.backward())
        by_hand.optimizer.step(model.parameters())
    assert weights_sha256(model) == weights_sha256(t.model)
    again = History()
    again.add(np.array(found), 700, 1.0)
    assert again.losses_sha256 == history.losses_sha256
    sizes = np.array([32] * 21 + [28])
    assert history["loss"][0] == pytest.approx(np.sum(sizes * found) / 700, rel=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_another():
    runs = []
    for weights, shuffles in ((1, 5), (1, 5), (1, 6), (2, 5)):
        t = trainer(dropout=0.2, seed=weights)
        runs.append((fit(t, seed=shuffles).losses_sha256, weights_sha256(t.model)))
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3


@pytest.mark.parametrize("optimizer", [lambda: optimizers.SGD(0.1, momentum=0.9), optimizers.Adam])
def test_two_fits_of_one_epoch_are_one_of_two(optimizer):
    once, twice = trainer(0.2, optimizer()), trainer(0.2, optimizer())
    fit(once, epochs=2)
    fit(twice)
    fit(twice)
    assert weights_sha256(once.model) == weights_sha256(twice.model)


def test_device_arrays_are_accepted_and_stay(lib):
    on_host, on_device = trainer(), trainer()
    fit(on_host)
    on_device.fit((lib.to_device(X), lib.to_device(Y)), seed=5, progress=False)
    assert weights_sha256(on_host.model) == weights_sha256(on_device.model)


def test_float_images_and_lists():
    model = xnn.Sequential(layers.Dense(2, 2), seed=0)
    t = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.5))
    t.fit(([[0.0, 1.0], [1.0, 0.0]], [1, 0]), epochs=50, progress=False)
    assert t.evaluate(([[0.0, 1.0], [1.0, 0.0]], [1, 0]))["accuracy"] == 1.0
    assert model.parameters()[0].value.dtype == np.float32


def test_regression_and_yes_or_no():
    x = np.linspace(-1, 1, 64)[:, None]
    model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 1), seed=0)
    t = xnn.Trainer(model, losses.MSE(), optimizers.Adam(0.02), metrics=[])
    history = t.fit((x, 2 * x + 1), epochs=60, batch_size=16, progress=False)
    assert history["loss"][-1] < 0.01 * history["loss"][0]
    assert list(t.evaluate((x, 2 * x + 1))) == ["loss"]
    model = xnn.Sequential(layers.Dense(1, 1), seed=0)
    t = xnn.Trainer(model, losses.BinaryCrossEntropy(), optimizers.SGD(1.0))
    assert t.fit((x, (x > 0).astype(int)), epochs=30, progress=False)["accuracy"][-1] == 1.0


def test_a_metric_of_your_own():
    def top_two(xp, outputs, targets):
        best = xp.argsort(outputs, axis=1)[:, -2:]
        return xp.sum(best == targets[:, None])

    result = trainer(metrics=["accuracy", top_two]).evaluate((X, Y))
    assert result["top_two"] > result["accuracy"] > 0


def test_a_metric_may_be_a_plain_number(lib):
    def samples(xp, outputs, targets):
        return outputs.shape[0]

    history = fit(trainer(metrics=[samples, lambda xp, o, t: np.float64(o.shape[0])]))
    assert history["samples"] == history["<lambda>"] == [1.0]
    assert fit(trainer(metrics=samples))["samples"] == [1.0]


def test_means_do_not_depend_on_how_many_steps_are_looked_at_together(monkeypatch):
    def magnitude(xp, outputs, targets):
        return xp.sum(xp.abs(outputs))

    found = []
    for steps in (1, 3, 100):
        monkeypatch.setattr("xnn.training.fit._CHECK_STEPS", steps)
        found.append(fit(trainer(metrics=["accuracy", magnitude]), epochs=2).epochs)
    assert found[0] == found[1] == found[2]


def test_the_usual_metrics_are_the_losss():
    x = np.ones((4, 1))
    model = xnn.Sequential(layers.Dense(1, 1), seed=0)
    assert list(xnn.Trainer(model, losses.MSE(), optimizers.SGD()).evaluate((x, x))) == ["loss"]
    assert list(xnn.Trainer(model, losses.BinaryCrossEntropy(), optimizers.SGD()).evaluate((x, x))) == [
        "loss",
        "accuracy",
    ]


def test_a_loss_that_is_computed_otherwise_is_evaluated_so():
    class Double(losses.MSE):
        def compute(self, outputs, targets):
            return 2.0 * super().compute(outputs, targets)

    x = np.ones((4, 1))
    model = xnn.Sequential(layers.Dense(1, 1), seed=0)
    single, double = (
        xnn.Trainer(model, loss, optimizers.SGD()).evaluate((x, x)) for loss in (losses.MSE(), Double())
    )
    assert double["loss"] == 2 * single["loss"]


def test_every_callback_hears_the_end(capsys):
    heard = []

    class Breaks(Callback):
        def on_fit_end(self, history):
            heard.append("first")
            raise RuntimeError("broken")

    class Second(Callback):
        def on_fit_end(self, history):
            heard.append("second")

    with pytest.raises(RuntimeError, match="broken"):
        fit(trainer(callbacks=[Second(), Breaks()]))
    assert sorted(heard) == ["first", "second"]


def test_frozen_layers_stay():
    t = trainer()
    first = t.model.parameters()[0]
    first.frozen = True
    before = first.value
    fit(t)
    assert first.value is before


class TestDivergence:
    def test_names_step_batch_and_layer_and_keeps_the_weights_before(self):
        t = trainer(optimizer=optimizers.SGD(1e25))
        with np.errstate(all="ignore"), pytest.raises(DivergenceError) as caught:
            fit(t)
        message = str(caught.value)
        assert "step 2 (epoch 1, batch 2)" in message
        assert "layer 1 (Dense)" in message or "layer 3 (Dense)" in message
        assert "learning_rate than 1e+25" in message
        assert all(np.isfinite(p.value).all() for p in t.model.parameters())

    def test_the_step_that_failed_is_found_among_many(self):
        """A weight set to infinity by a callback-like hand after 150 steps; the replay must name step 151."""
        t = trainer()

        class Bomb(optimizers.SGD):
            def step(self, parameters):
                self.count = getattr(self, "count", 0) + 1
                if self.count == 151:
                    parameters[2].grad = parameters[2].grad * np.float32(np.inf)
                super().step(parameters)

        t.optimizer = Bomb(0.1)
        with np.errstate(all="ignore"), pytest.raises(DivergenceError) as caught:
            t.fit((X, Y), epochs=20, batch_size=32, progress=False)
        message = str(caught.value)
        assert "step 151 (epoch 7, batch 19)" in message
        assert "the update made 3.weight not finite" in message

    def test_batch_numbers_after_another_fit_and_what_is_kept(self):
        t = trainer()
        fit(t, batch_size=350)
        t.optimizer = optimizers.SGD(1e25)
        with pytest.raises(DivergenceError, match=r"step 4 \(epoch 2, batch 2\)") as caught:
            fit(t, batch_size=10)
        assert t.step == 3  # as many as are in the weights
        assert isinstance(caught.value.history, History)
        assert caught.value.history.error.startswith("DivergenceError: step 4")
        assert (caught.value.history.steps, caught.value.history.samples) == (1, 10)

    def test_a_frozen_parameters_gradient_is_nobodys_fault(self):
        class Endless(xnn.Op):
            def forward(self, xp, x):
                return x * np.float32(1), None

            def backward(self, xp, grad, saved):
                return (grad * np.float32(np.inf),)

        model = xnn.Sequential(layers.Dense(2, 2), layers.Function(Endless()), layers.Dense(2, 1), seed=0)
        for parameter in model.parameters()[:2]:
            parameter.frozen = True
        t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1))
        y = np.zeros((40, 1))
        y[33] = 1e30
        with pytest.raises(DivergenceError, match=r"step 34 .*loss \(MSE\) is inf"):
            t.fit((np.ones((40, 2)), y), batch_size=1, shuffle=False, progress=False)

    def test_a_callback_that_changes_the_rate_is_no_hardware_fault(self):
        class Raise(Callback):
            def on_check(self, history, epoch, step, loss, metrics):
                t.optimizer.learning_rate = 1e25

        t = trainer(callbacks=[Raise()])
        with pytest.raises(DivergenceError, match="layer"):
            fit(t, epochs=2)

    @pytest.mark.parametrize(
        ("faulty", "message"),
        [("forward", r"the output of layer 1 \(Bad\)"), ("backward", "the gradient of 0.weight")],
    )
    def test_tells_output_from_gradient(self, faulty, message):
        class BadOp(xnn.Op):
            def forward(self, xp, x):
                return (x * np.float32(np.nan) if faulty == "forward" else x * 1), None

            def backward(self, xp, grad, saved):
                return (grad * np.float32(np.inf),)

        class Bad(layers.Layer):
            op = BadOp()

        model = xnn.Sequential(layers.Dense(2, 2), Bad(), seed=0)
        t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), metrics=[])
        with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=message):
            t.fit((np.ones((4, 2)), np.zeros((4, 2))), progress=False)

    def test_a_loss_that_overflows_from_finite_outputs(self):
        model = xnn.Sequential(layers.Dense(1, 1, bias=False), seed=0)
        model.parameters()[0].value = np.full((1, 1), 1e30, np.float32)
        t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.0), metrics=[])
        with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=r"the loss \(MSE\) is inf"):
            t.fit((np.ones((4, 1)), np.zeros((4, 1))), progress=False)

    def test_data_that_turn_bad_on_the_device_are_named(self, other):
        with xnn.backend(other.name) as lib:
            x = np.ones((8, 2), np.float32)
            x[5, 1] = np.inf
            model = xnn.Sequential(layers.Dense(2, 1), seed=0)
            t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), metrics=[])
            with np.errstate(all="ignore"), pytest.raises(DivergenceError, match="row 5 of the data"):
                t.fit((lib.to_device(x), lib.to_device(np.ones((8, 1), np.float32))), progress=False)


class TestInterrupt:
    def test_the_step_in_hand_is_finished_and_what_was_done_is_reported(self):
        class Interrupt(Callback):
            def on_epoch_end(self, history, entry):
                if entry["epoch"] == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        handler = signal.getsignal(signal.SIGINT)
        t = trainer(callbacks=[Interrupt()])
        history = fit(t, epochs=5)
        assert history.interrupted
        assert len(history.epochs) == 2
        assert history.steps == t.step == 2 * 22
        assert signal.getsignal(signal.SIGINT) is handler
        by_hand = trainer()
        fit(by_hand, epochs=2)
        assert weights_sha256(by_hand.model) == weights_sha256(t.model)

    def test_an_epoch_cut_short_is_begun_again(self):
        """Ctrl-C in the third step: that step is finished, the epoch is not counted."""

        class Rule(optimizers.SGD):
            def step(self, parameters):
                super().step(parameters)
                if t.step == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        t = trainer(optimizer=Rule(0.1))
        history = fit(t)
        assert history.interrupted
        assert (history.epochs, history.steps, t.step, t.epoch) == ([], 3, 3, 0)
        t.optimizer = optimizers.SGD(0.1)
        assert fit(t)["epoch"] == [1]

    def test_one_in_the_last_step_loses_no_epoch(self):
        class Rule(optimizers.SGD):
            def step(self, parameters):
                super().step(parameters)
                if t.step == 21:
                    os.kill(os.getpid(), signal.SIGINT)

        t = trainer(optimizer=Rule(0.1))
        history = fit(t, epochs=3)
        assert history.interrupted
        assert len(history.epochs) == t.epoch == 1

    def test_a_second_one_ends_at_once(self):
        class Twice(Callback):
            def on_epoch_end(self, history, entry):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            fit(trainer(callbacks=[Twice()]), epochs=5)

    def test_other_threads_train_too(self):
        results = []
        thread = threading.Thread(target=lambda: results.append(fit(trainer())))
        thread.start()
        thread.join()
        assert results[0].steps == 22


class TestRefusals:
    @pytest.mark.parametrize(
        ("x", "y", "error", "message"),
        [
            (X, Y[:-1], ShapeError, "as many samples"),
            (X[:0], Y[:0], ShapeError, "at least one"),
            (X[:, :5], Y, ShapeError, "784"),
            (X, Y + 1, LabelError, r"0 \.\. 9"),
            (X, Y - 1, LabelError, "from -1"),
            (X, Y.astype(float), LabelError, "integer"),
            (np.where(X == 0, np.nan, X), Y, DTypeError, "sample 0"),
            (X.astype(str), Y, DTypeError, "numbers"),
        ],
    )
    def test_data(self, x, y, error, message):
        t = trainer()
        for call in (t.fit, t.evaluate):
            with pytest.raises(error, match=message):
                call((x, y))
        with pytest.raises(error, match=message):
            t.fit((X, Y), validation=(x, y), progress=False)
        assert t.step == 0

    def test_not_a_pair(self):
        with pytest.raises(OptionError, match="pair"):
            trainer().fit(X)

    @pytest.mark.parametrize(
        "options",
        [
            {"epochs": 0},
            {"epochs": 1.5},
            {"batch_size": 0},
            {"batch_size": "32"},
            {"seed": -1},
            {"seed": 0.5},
        ],
    )
    def test_options(self, options):
        with pytest.raises(OptionError):
            fit(trainer(), **options)

    def test_parts(self):
        model, loss, rule = trainer().model, losses.MSE(), optimizers.SGD()
        for parts in ((None, loss, rule), (model, "mse", rule), (model, loss, optimizers.SGD)):
            with pytest.raises(OptionError, match="Trainer needs"):
                xnn.Trainer(*parts)
        with pytest.raises(OptionError, match="no metric"):
            xnn.Trainer(model, loss, rule, metrics=["f2"])
        with pytest.raises(OptionError, match="activation"):
            mlp(1, (1,), 1, "mish")

    @pytest.mark.parametrize(
        ("last", "loss"),
        [(layers.Softmax(), losses.SoftmaxCrossEntropy()), (layers.Sigmoid(), losses.BinaryCrossEntropy())],
    )
    def test_a_layer_that_the_loss_includes(self, last, loss):
        with pytest.raises(OptionError, match="from logits"):
            xnn.Trainer(xnn.Sequential(layers.Dense(2, 2), last), loss, optimizers.SGD())

    def test_callbacks_and_metrics(self):
        with pytest.raises(OptionError, match="Callback"):
            trainer(callbacks=[print])
        with pytest.raises(OptionError, match="must have different names"):
            trainer(metrics=[lambda xp, o, t: 0, lambda xp, o, t: 1])
        started = []

        class Started(Callback):
            def on_fit_start(self, history, epochs, steps_per_epoch):
                started.append(True)

        model = xnn.Sequential(layers.Dense(784, 2), seed=0)
        matrix = metrics.ConfusionMatrix(binary=True)
        t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(), metrics=matrix, callbacks=[Started()])
        with pytest.raises(ShapeError, match="say yes or no 2 times"):
            t.fit((X, np.zeros((700, 2))), progress=False)
        assert not started

    def test_arrays_of_another_backend(self):
        strict = pytest.importorskip("array_api_strict")
        with pytest.raises(MixedArraysError):
            trainer().fit((strict.zeros((2, 784)), strict.zeros(2, dtype=strict.int64)), progress=False)

    def test_accuracy_of_what_has_none(self):
        with pytest.raises(ShapeError, match="accuracy"):
            metrics.accuracy(np, np.ones((2, 3)), np.ones((2, 2)))


def test_threads_are_limited_inside_fit_and_restored():
    from xnn.backends.threads import blas_threads

    before, seen = blas_threads(), []

    class Look(Callback):
        def on_check(self, history, epoch, step, loss, metrics):
            seen.append((blas_threads(), history.plan["threads"]))

    fit(trainer(callbacks=[Look()], threads=1))
    assert set(seen) == {(1, 1)}
    assert blas_threads() == before


class Heavy(optimizers.SGD):
    """Remembers more than its rule says, from its first step on, and changes it in place."""

    def step(self, parameters):
        if not hasattr(self, "seen"):
            self.seen = np.zeros(1)
        self.seen += 1
        self.learning_rate = 0.1 / self.seen[0]
        super().step(parameters)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
@pytest.mark.parametrize("kind", ["scheduled", "heavy"])
def test_measuring_threads_leaves_no_trace(kernels, kind):
    """The steps that are timed are taken back, or, where they cannot be, not taken."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    runs = {}
    for threads in ("auto", 1):
        rates = [0.01, *[0.002] * 21]  # nothing after the last step of the fit
        optimizer = optimizers.Adam(rates.__getitem__) if kind == "scheduled" else Heavy(0.1)
        chosen = trainer(dropout=0.2, optimizer=optimizer, threads=threads, kernels=kernels)
        with limit_threads(1):
            history = fit(chosen)
        assert optimizer.steps == history.steps == 22
        runs[threads] = history.losses_sha256, weights_sha256(chosen.model)
        if kind == "scheduled":
            assert history.plan["threads_because"] == (
                "measured: fastest of 1" if threads == "auto" else "asked for"
            )
    assert runs["auto"] == runs[1]


def test_a_measurement_that_fails_leaves_no_trace():
    """Such as one that Ctrl-C ends: weights, and the optimizer's numbers, are those from before."""
    t = trainer(optimizer=optimizers.Adam(), threads="auto", kernels="numpy")
    before = weights_sha256(t.model)

    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    stepper = t.stepper(data.Batches(prepare(t.model, t.loss, t.metrics, (X, Y), "training"), 32, seed=5))
    stepper.lib.synchronize, kept = interrupt, stepper.lib.synchronize
    try:
        with pytest.raises(KeyboardInterrupt):
            stepper.seconds_per_step(0)
    finally:
        stepper.lib.synchronize = kept
    assert weights_sha256(t.model) == before
    assert t.optimizer.steps == 0
    assert not any(stepper.collected)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_weight_decay_that_a_callback_sets_is_heeded(kernels):
    """Where plain SGD was folded into the products it no longer may be."""
    if kernels == "compiled":
        pytest.importorskip("numba")

    class Decay(Callback):
        def on_epoch_end(self, history, entry):
            t.optimizer.weight_decay = 0.5

    t = trainer(kernels=kernels, callbacks=[Decay()], threads=1)
    fit(t, epochs=3)
    by_ops = trainer(kernels="ops", threads=1)
    fit(by_ops)
    by_ops.optimizer.weight_decay = 0.5
    fit(by_ops, epochs=2)
    for p, q in zip(t.model.parameters(), by_ops.model.parameters(), strict=True):
        np.testing.assert_allclose(p.value, q.value, atol=2e-5)


@pytest.mark.slow
def test_nothing_grows_with_epochs():
    """An epoch's entry in the history, and not one array more."""
    import gc
    import tracemalloc

    held = []

    class Weigh(Callback):
        def on_epoch_end(self, history, entry):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        fit(trainer(callbacks=[Weigh()], optimizer=optimizers.Adam()), epochs=5)
    finally:
        tracemalloc.stop()
    assert held[4] - held[1] < 5_000  # the smallest weight array alone has 50,000 bytes


def test_the_progress_bar_on_a_terminal(monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    trainer().fit((X, Y), validation=(X[:50], Y[:50]), epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 2" in shown
    assert "val_accuracy" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernels", [*(pytest.param(k, marks=pytest.mark.slow) for k in ("ops", "numpy")), "compiled"]
)
def test_the_twelfth_epoch_peaks_where_the_second_did(kernels):
    """And below one copy of the images: they are gathered batch by batch, and stay bytes until then."""
    import gc
    import tracemalloc

    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = np.tile(X, (10, 1)), np.tile(Y, 10)
    peaks = []

    class Weigh(Callback):
        def on_epoch_end(self, history, entry):
            peaks.append(tracemalloc.get_traced_memory()[1])
            gc.collect()
            tracemalloc.reset_peak()

    t = trainer(optimizer=optimizers.Adam(), kernels=kernels)
    fit(t)  # what is imported, compiled or looked up once
    t.callbacks.append(Weigh())
    tracemalloc.start()
    try:
        t.fit((x, y), (X[:100], Y[:100]), epochs=12, batch_size=250, progress=False)
    finally:
        tracemalloc.stop()
    assert peaks[11] - peaks[1] < 20_000  # the row numbers of one epoch alone have 56,000 bytes
    assert max(peaks) < x.nbytes


def test_callbacks_are_a_sequence_of_them():
    for wrong in (Callback(), 3, [Callback]):
        with pytest.raises(OptionError, match="callbacks must be a list"):
            trainer(callbacks=wrong)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_with_nothing_to_train_is_refused(lib, frozen):
    dense = layers.Dense(3, 2)
    net = layers.Sequential(*([dense] if frozen else []), layers.ReLU(), seed=0)
    for parameter in net.parameters():
        parameter.frozen = True
    trainer = xnn.Trainer(net, losses.MSE(), optimizers.SGD(0.1))
    with pytest.raises(OptionError, match="frozen = False" if frozen else "no layer of it has weights"):
        trainer.fit((np.ones((4, 3)), np.ones((4, 2 if frozen else 3))), progress=False)


def test_names_of_classes_and_a_triple_are_refused_with_what_to_do():
    trainer = xnn.Trainer(
        layers.Sequential(layers.Dense(3, 2), seed=0), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    )
    x, y = np.ones((4, 3)), np.array([0, 1, 0, 1])
    for names in (["a", "b", "a", "b"], np.array(["a", "b", "a", "b"], dtype=object)):
        with pytest.raises(LabelError, match=r"numpy\.unique\(names, return_inverse=True\)"):
            trainer.fit((x, names), progress=False)
    with pytest.raises(OptionError, match=r"tuple of 3; .* sample_weight="):
        trainer.fit((x, y, np.ones(4)), progress=False)
