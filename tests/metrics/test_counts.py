"""Metrics of the user's: what a count may return, and metrics called on arrays."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, metrics, optimizers
from xnn.errors import DTypeError, OptionError, ShapeError

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = np.arange(64) % 3


def trainer(metric, **options):
    model = xnn.Sequential(layers.Dense(3, 3), seed=1)
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.0), metrics=metric, **options)


def right(xp, outputs, targets):
    return xp.argmax(outputs, axis=1) == targets


def right_sum(xp, outputs, targets):
    return xp.sum(xp.astype(right(xp, outputs, targets), outputs.dtype))


def right_mean(xp, outputs, targets):
    return xp.mean(xp.astype(right(xp, outputs, targets), outputs.dtype))


def largest(xp, outputs, targets):
    return xp.max(outputs)


def root(xp, outputs, targets):
    return xp.sqrt(xp.mean(outputs * outputs))


def every_place(xp, outputs, targets):
    return xp.astype(right(xp, outputs, targets), outputs.dtype)


class Counting(metrics.Metric):
    def __init__(self, function):
        super().__init__("counted")
        self.way = function

    def count(self, xp, outputs, targets):
        return self.way(xp, outputs, targets)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_number_for_each_sample_is_the_same_as_the_sum(lib, numerics):
    found = []
    for metric in ("accuracy", right, right_sum):
        t = trainer(metric, numerics=None if lib.name == "exact" else numerics)
        x, y = lib.to_device(X), lib.to_device(Y)
        history = t.fit((x, y), (x, y), batch_size=10, progress=False)
        (name,) = (
            set(history.epochs[0]) - {"epoch", "loss", "val_loss"} - {f"val_{n.name}" for n in t.metrics}
        )
        found.append((history[name], history[f"val_{name}"], t.evaluate((x, y), batch_size=7)[name]))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == [np.mean(t.model.predict_classes(X) == Y)]


@pytest.mark.parametrize("way", [right_mean, largest, root, lambda xp, o, t: float(np.mean(np.asarray(o)))])
@pytest.mark.parametrize("kind", ["function", "class"])
@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_mean_is_refused(way, kind, kernels):
    metric = way if kind == "function" else Counting(way)
    t = trainer(metric, kernels=kernels)
    before = t.model.parameters()[0].value.copy()
    with pytest.raises(OptionError, match="a mean or a maximum: return the sum"):
        t.fit((X, Y), batch_size=10, progress=False)
    assert t.step == 0
    np.testing.assert_array_equal(t.model.parameters()[0].value, before)
    with pytest.raises(OptionError, match="a mean or a maximum"):
        t.evaluate((X, Y))
    with pytest.raises(OptionError, match="a mean or a maximum"):
        xnn.metrics.get(metric).update(X, Y)


def test_a_mean_that_is_zero_at_first_is_refused_when_it_is_not():
    metric = metrics.get(right_mean)
    metric.update(np.eye(3)[[0, 0, 0]], np.array([1, 1, 1]))
    with pytest.raises(OptionError, match="a mean"):
        metric.update(np.eye(3), np.array([0, 1, 0]))


def test_a_mean_in_a_first_batch_of_nothing_right():
    """The targets are tried in another order, too."""
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    model = xnn.Sequential(layers.Dense(3, 3), seed=0)
    model.layers[0].weight.value = np.eye(3)
    t = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.0), metrics=right_mean)
    with pytest.raises(OptionError, match="a mean"):
        t.fit((x, np.array([1, 2, 0, 1, 2, 0])), progress=False)


def test_a_class_that_counts_each_sample_is_refused():
    with pytest.raises(ShapeError, match=r"\(16,\) for 16 samples and \(32,\) for 32: add up the samples"):
        trainer(Counting(every_place)).fit((X, Y), batch_size=16, progress=False)


@pytest.mark.parametrize("numbers", [lambda o: None, lambda o: "0.5", lambda o: [1.0]])
def test_what_is_no_number(numbers):
    with pytest.raises(DTypeError, match="must return a number or an array"):
        trainer(lambda xp, outputs, targets: numbers(outputs)).fit((X, Y), progress=False)
    with pytest.raises(DTypeError, match="complex"):
        trainer(lambda xp, outputs, targets: np.sum(outputs) * 1j * np.ones(())).evaluate((X, Y))


@pytest.mark.parametrize("result", [None, "0.5", {"a": 1}, 1j])
def test_a_result_that_is_no_number(result):
    class Wrong(metrics.Metric):
        name = "wrong"

        def count(self, xp, outputs, targets):
            return xp.sum(outputs)

        def result(self, total, samples):
            return result

    with pytest.raises(OptionError, match="the result of the metric wrong is"):
        trainer(Wrong()).evaluate((X, Y))


def test_sums_of_both_signs_and_constants_are_taken():
    def bias(xp, outputs, targets):
        return xp.sum(outputs[:, 0] - 0.5)

    def samples(xp, outputs, targets):
        return outputs.shape[0]

    history = trainer([bias, samples, lambda xp, o, t: 0]).fit((X, Y), batch_size=10, progress=False)
    assert history["samples"] == [1.0]
    assert history["<lambda>"] == [0.0]


class Ratio(metrics.Metric):
    """Merges and divides in a way of its own: any count of one shape will do."""

    name = "ratio"

    def count(self, xp, outputs, targets):
        return xp.max(outputs)

    def merge(self, total, counted):
        return np.maximum(total, counted)

    def result(self, total, samples):
        return total


def test_a_metric_that_merges_otherwise():
    t = trainer(Ratio())
    assert t.evaluate((X, Y), batch_size=5)["ratio"] == float(t.model.predict(X).max())


@pytest.mark.parametrize(
    "metric",
    [
        metrics.Accuracy(),
        metrics.TopK(2),
        metrics.F1(None),
        metrics.Precision(),
        metrics.Recall(),
        metrics.ConfusionMatrix(),
        metrics.get(right),
    ],
    ids=repr,
)
def test_metrics_are_called_on_arrays(lib, metric):
    outputs, labels = lib.to_device(X), lib.to_device(Y)
    metric.reset()
    metric.update(lib.to_device(X[:5]), lib.to_device(Y[:5]))
    before, alone = metric.compute(), metric(outputs, labels)
    assert metric.compute() == before
    metric.reset()
    metric.update(outputs, labels)
    assert metric.compute() == alone
    assert metric(X.tolist(), Y.tolist()) == alone
    with pytest.raises(ShapeError, match="no samples"):
        metric(X[:0], Y[:0])


def test_regressions_are_called_too():
    assert metrics.MSE()([[1.0], [2.0]], [[1.0], [5.0]]) == 4.5
    assert metrics.R2()([[1.0], [2.0], [4.0]], [[1.0], [2.0], [3.0]]) == 0.5


class TestOptionsThatAreAssignedLater:
    @pytest.mark.parametrize(
        ("metric", "name", "value", "as_built"),
        [
            (metrics.Accuracy(binary=True), "threshold", 0.3, metrics.Accuracy(True, 0.3)),
            (metrics.Accuracy(), "binary", True, metrics.Accuracy(True)),
            (metrics.TopK(1), "k", 2, metrics.TopK(2)),
            (metrics.F1(), "average", None, metrics.F1(None)),
            (metrics.ConfusionMatrix(), "threshold", 0.25, metrics.ConfusionMatrix(threshold=0.25)),
        ],
    )
    def test_count_from_then_on(self, metric, name, value, as_built):
        binary = getattr(as_built, "binary", False) or "threshold" in repr(as_built)
        arrays = (X[:, :1], (X[:, 1:2] > 0).astype(int)) if binary else (X, Y)
        setattr(metric, name, value)
        assert metric(*arrays) == as_built(*arrays)
        assert repr(metric) == repr(as_built)
        assert metric.name == as_built.name

    @pytest.mark.parametrize(
        ("metric", "name", "value"),
        [
            (metrics.Accuracy(), "binary", "yes"),
            (metrics.Accuracy(), "threshold", np.nan),
            (metrics.TopK(), "k", 0),
            (metrics.F1(), "average", "mean"),
        ],
    )
    def test_are_checked(self, metric, name, value):
        with pytest.raises(OptionError, match=name):
            setattr(metric, name, value)

    @pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
    def test_while_training(self, kernels):
        if kernels == "compiled":
            pytest.importorskip("numba")
        metric, found = metrics.Accuracy(binary=True), []

        class Assigns(xnn.callbacks.Callback):
            def on_epoch_end(self, history, entry):
                found.append((entry["accuracy"], metric(self.model.predict(X), Y[:, None] > 1)))
                metric.threshold += 0.2

        model = xnn.Sequential(layers.Dense(3, 1), seed=1)
        t = xnn.Trainer(
            model, losses.BinaryCrossEntropy(), optimizers.SGD(0.0), metric, [Assigns()], kernels=kernels
        )
        t.fit((X, (Y[:, None] > 1).astype(int)), epochs=3, batch_size=16, progress=False)
        assert len({after for _, after in found}) > 1
        assert all(during == after for during, after in found)


BROADCASTS = [
    lambda xp, o, t: xp.sum((o - t) ** 2),
    lambda xp, o, t: xp.mean(xp.abs(o - t), axis=1),
    lambda xp, o, t: xp.sum(xp.abs(t - o), axis=0),
    lambda xp, o, t: xp.sum(xp.astype((o > 0) == (t > 0), xp.float32), axis=1),
]
COLUMN = np.linspace(-1.0, 1.0, 32, dtype=np.float32).reshape(-1, 1)


@pytest.mark.parametrize("kind", ["function", "class"])
@pytest.mark.parametrize("way", BROADCASTS)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_broadcasts_every_sample_with_every_other_is_refused(way, kind, swapped):
    wrong = way if kind == "function" else Counting(lambda xp, o, t: xp.sum(way(xp, o, t)))
    arrays = (COLUMN, 1.0 - COLUMN[:, 0] ** 2)
    with pytest.raises(ShapeError, match="every sample with every other"):
        xnn.metrics.get(wrong).update(*(arrays[::-1] if swapped else arrays))
    if not swapped:
        loss = losses.Lambda(lambda o, t: xnn.ops.mean((o[:, 0] - t) ** 2.0))
        t = xnn.Trainer(xnn.Sequential(layers.Dense(1, 1), seed=0), loss, optimizers.SGD(0.0), metrics=wrong)
        for run in (t.fit, t.evaluate):
            with pytest.raises(ShapeError, match="every sample with every other"):
                run(arrays)


@pytest.mark.parametrize("numbers", [lambda o, t: (o[:, 0] - t) ** 2, lambda o, t: (o[:, 0] > 0) == (t > 0)])
def test_metrics_that_reshape_are_taken(numbers):
    metric = xnn.metrics.get(lambda xp, o, t: xp.sum(xp.astype(numbers(o, t), xp.float32)))
    metric.update(COLUMN, COLUMN[::-1, 0])
    assert metric.compute() == pytest.approx(np.mean(numbers(COLUMN, COLUMN[::-1, 0])))
