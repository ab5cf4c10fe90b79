"""Metrics against scikit-learn where installed and plain NumPy; batch by batch, alone and in a Trainer."""

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xnn
from xnn import layers, losses, metrics, optimizers
from xnn.callbacks import Callback, EpochLines, JsonLines, ProgressBar
from xnn.errors import DTypeError, LabelError, OptionError, ShapeError
from xnn.runs.mlp import mlp
from xnn.training.inputs import prepare

RNG = np.random.default_rng(7)
AVERAGES = ["macro", "micro", "weighted", None]
SCORES = {"precision": metrics.Precision, "recall": metrics.Recall, "f1": metrics.F1}


@pytest.fixture(autouse=True)
def _numbers_of_its_own():
    """The random numbers of a test do not depend on the tests before it."""
    RNG.bit_generator.state = np.random.default_rng(8).bit_generator.state


def updated(metric, outputs, targets, sizes=None, lib=None):
    """The metric after batches of these sizes, or of one."""
    move = (lambda x: x) if lib is None else lib.to_device
    metric.reset()
    start = 0
    for size in sizes or [len(outputs)]:
        metric.update(move(outputs[start : start + size]), move(targets[start : start + size]))
        start += size
    assert start == len(outputs)
    return metric.compute()


@st.composite
def batched(draw, most=40):
    """Samples in all, and the sizes of the batches they come in, one empty batch among them or not."""
    sizes = draw(st.lists(st.integers(0, most // 4), min_size=1, max_size=6).filter(sum))
    return sum(sizes), sizes


@st.composite
def labelled(draw, kind="float32"):
    """Outputs (n, classes) with ties, labels (n,) some of whose classes do not occur, and batch sizes."""
    n, sizes = draw(batched())
    classes, seed = draw(st.integers(2, 7)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    some = rng.choice(classes, size=draw(st.integers(1, classes)), replace=False)
    outputs = np.round(rng.normal(size=(n, classes)), 1).astype(kind)
    outputs[:, rng.integers(classes)] -= draw(st.sampled_from([0.0, 9.0]))  # a class that is never predicted
    return outputs, rng.choice(some, size=n), sizes


@st.composite
def yes_or_no(draw):
    """Outputs and targets (n, columns) of 0 and 1, and batch sizes."""
    n, sizes = draw(batched())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = n, draw(st.integers(1, 4))
    return rng.normal(size=shape).astype("float32"), (rng.random(shape) < draw(st.floats(0, 1))) * 1, sizes


@st.composite
def real(draw):
    """Outputs and targets (n, columns), and batch sizes."""
    n, sizes = draw(batched())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = rng.normal(size=(n, draw(st.integers(1, 3)))) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    targets += draw(st.sampled_from([0.0, -3.0, 1e4]))
    return targets + rng.normal(size=targets.shape), targets, sizes


class TestAgainstScikitLearn:
    @pytest.fixture(autouse=True)
    def _sklearn(self):
        self.peer = pytest.importorskip("sklearn.metrics")

    @given(labelled())
    @settings(max_examples=30)
    def test_classes(self, drawn):
        outputs, labels, sizes = drawn
        predicted, every = outputs.argmax(axis=1), range(outputs.shape[1])
        peer = self.peer
        assert updated(metrics.Accuracy(), outputs, labels, sizes) == peer.accuracy_score(labels, predicted)
        found = updated(metrics.ConfusionMatrix(), outputs, labels, sizes)
        assert found == peer.confusion_matrix(labels, predicted, labels=list(every)).tolist()
        for name, metric in SCORES.items():
            score = getattr(peer, f"{name}_score")
            for average in AVERAGES:
                known = {"labels": list(every)} if average is None else {}  # else those that occur
                wanted = score(labels, predicted, average=average, zero_division=0, **known)
                found = updated(metric(average), outputs, labels, sizes)
                np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)

    @given(yes_or_no())
    @settings(max_examples=30)
    def test_several_yes_or_no(self, drawn):
        outputs, targets, sizes = drawn
        said = (outputs > 0) * 1
        for name, metric in SCORES.items():
            score = getattr(self.peer, f"{name}_score")
            if outputs.shape[1] == 1:
                wanted = score(targets[:, 0], said[:, 0], average="binary", zero_division=0)
                for options in ({}, {"average": "binary"}, {"binary": True}, {"average": "micro"}):
                    assert updated(metric(**options), outputs, targets, sizes) == pytest.approx(wanted)
                continue
            for average in AVERAGES:
                wanted = score(targets, said, average=average, zero_division=0)
                found = updated(metric(average, binary=True), outputs, targets, sizes)
                np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)

    @given(labelled())
    @settings(max_examples=30)
    def test_two_classes(self, drawn):
        outputs, labels, sizes = drawn
        outputs, labels = outputs[:, :2], labels % 2
        for name, metric in SCORES.items():
            wanted = getattr(self.peer, f"{name}_score")(labels, outputs.argmax(axis=1), zero_division=0)
            assert updated(metric("binary"), outputs, labels, sizes) == pytest.approx(wanted)

    @given(labelled(), st.integers(1, 8))
    @settings(max_examples=30)
    def test_top_k(self, drawn, k):
        outputs, labels, sizes = drawn
        outputs = outputs + np.linspace(
            0.0, 0.01, outputs.shape[1], dtype="float32"
        )  # of equal outputs it takes the last
        if outputs.shape[1] > max(k, 2):
            wanted = self.peer.top_k_accuracy_score(labels, outputs, k=k, labels=range(outputs.shape[1]))
            assert updated(metrics.TopK(k), outputs, labels, sizes) == pytest.approx(wanted)

    @given(real())
    def test_regression(self, drawn):
        outputs, targets, sizes = drawn
        peer = self.peer
        for metric, score in (
            (metrics.MAE(), peer.mean_absolute_error),
            (metrics.MSE(), peer.mean_squared_error),
            *(((metrics.R2(), peer.r2_score),) if len(targets) > 1 else ()),
        ):
            assert updated(metric, outputs, targets, sizes) == pytest.approx(
                score(targets, outputs), rel=1e-9
            )


# By their formulas.


@given(labelled(), st.integers(1, 8))
def test_classes_by_hand(drawn, k):
    outputs, labels, sizes = drawn
    predicted, classes = outputs.argmax(axis=1), outputs.shape[1]
    assert updated(metrics.Accuracy(), outputs, labels, sizes) == np.mean(predicted == labels)
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    assert updated(metrics.ConfusionMatrix(), outputs, labels, sizes) == matrix.tolist()
    order = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
    assert updated(metrics.TopK(k), outputs, labels, sizes) == np.mean((order == labels[:, None]).any(axis=1))
    assert updated(metrics.TopK(1), outputs, labels) == updated(metrics.Accuracy(), outputs, labels)
    hits, said, true = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    scores = np.where(said + true > 0, 2 * hits / np.maximum(said + true, 1), 0)
    assert updated(metrics.F1(None), outputs, labels, sizes) == pytest.approx(scores.tolist())
    assert updated(metrics.F1(), outputs, labels, sizes) == pytest.approx(np.mean(scores[said + true > 0]))
    weighted = np.sum(scores * true) / np.sum(true)
    assert updated(metrics.F1("weighted"), outputs, labels, sizes) == pytest.approx(weighted)
    assert updated(metrics.F1("micro"), outputs, labels, sizes) == np.mean(predicted == labels)


@given(yes_or_no())
def test_yes_or_no_by_hand(drawn):
    outputs, targets, sizes = drawn
    assert updated(metrics.Accuracy(binary=True), outputs, targets, sizes) == pytest.approx(
        np.mean((outputs > 0) == targets), rel=1e-13
    )
    probability = 1 / (1 + np.exp(-outputs.astype(float)))
    one = outputs[:, :1], targets[:, :1]
    for metric in (metrics.Accuracy, metrics.F1, metrics.ConfusionMatrix):
        found = updated(metric(), *one, sizes)
        assert found == updated(metric(threshold=0.5), probability[:, :1], one[1], sizes)
        assert found == updated(metric(), one[0][:, 0], one[1][:, 0], sizes)
        assert found == updated(metric(), one[0], one[1].astype(bool), sizes)
    matrix = updated(metrics.ConfusionMatrix(), *one, sizes)
    assert matrix == [
        [int(np.sum(((one[0] > 0) == said) & (one[1] == true))) for said in (0, 1)] for true in (0, 1)
    ]


@given(real())
def test_regression_by_hand(drawn):
    outputs, targets, sizes = drawn
    error = outputs - targets
    assert updated(metrics.MAE(), outputs, targets, sizes) == pytest.approx(np.mean(abs(error)))
    assert updated(metrics.RMSE(), outputs, targets, sizes) == pytest.approx(math.sqrt(np.mean(error**2)))
    found = updated(metrics.R2(), outputs, targets, sizes)
    if len(targets) == 1:
        assert math.isnan(found)
    else:
        spread = np.sum((targets - targets.mean(axis=0)) ** 2, axis=0)
        assert found == pytest.approx(np.mean(1 - np.sum(error**2, axis=0) / spread), rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_r2_far_from_zero(dtype, offset):
    """t^2 has 24 digits, of which float64 keeps 16: a difference of sums of squares would have none left."""
    spread = 1.0 if dtype == "float32" else 1e-3
    targets = (offset + spread * RNG.normal(size=(3000, 2))).astype(dtype)
    outputs = (targets + 0.3 * spread * RNG.normal(size=targets.shape)).astype(dtype)
    t, o = targets.astype(float) - offset, outputs.astype(float) - offset
    wanted = np.mean(1 - np.sum((o - t) ** 2, axis=0) / np.sum((t - t.mean(axis=0)) ** 2, axis=0))
    tight = 1e-6 if dtype == "float32" else 1e-12
    assert 0.85 < wanted < 0.95
    for sizes in ([3000], [1] * 40 + [2960], [1000, 7, 1993]):
        assert updated(metrics.R2(), outputs, targets, sizes) == pytest.approx(wanted, rel=tight)
    order = np.argsort(targets[:, 0])  # every batch has another mean
    found = updated(metrics.R2(), outputs[order], targets[order], [10] * 300)
    assert found == pytest.approx(wanted, rel=tight)


def test_r2_of_targets_that_do_not_vary():
    flat = np.full((30, 1), 0.1, "float32")
    assert updated(metrics.R2(), flat, flat, [7, 23]) == 1.0
    assert updated(metrics.R2(), flat + 1, flat, [7, 23]) == 0.0
    both = np.concatenate([flat, RNG.normal(size=(30, 1)).astype("float32")], axis=1)
    assert updated(metrics.R2(), both, both, [30]) == 1.0
    assert math.isnan(updated(metrics.R2(), both * np.float32("nan"), both))
    assert math.isnan(updated(metrics.R2(), both, both * np.float32("nan")))


@pytest.mark.parametrize("metric", [metrics.Accuracy, metrics.F1, metrics.ConfusionMatrix, metrics.TopK])
def test_targets_may_be_probabilities(metric):
    outputs, targets = RNG.normal(size=(50, 7)), RNG.dirichlet(np.ones(7), 50)
    labels = targets.argmax(axis=1)
    wanted = updated(metric(), outputs, labels)
    assert updated(metric(), outputs, targets, [20, 30]) == wanted
    assert updated(metric(), outputs, np.eye(7, dtype=int)[labels]) == wanted
    assert updated(metric(), outputs, np.eye(7, dtype=bool)[labels]) == wanted


@pytest.mark.parametrize(
    "metric", [metrics.Accuracy, metrics.F1, metrics.ConfusionMatrix, lambda: metrics.TopK(2)]
)
def test_a_class_for_each_place(lib, metric):
    """Each pixel of images (n, classes, height, width) counts as a sample, as in PyTorch."""
    outputs, labels = RNG.normal(size=(9, 5, 3, 4)).astype("float32"), RNG.integers(0, 5, (9, 3, 4))
    rows = outputs.transpose(0, 2, 3, 1).reshape(-1, 5)
    wanted = updated(metric(), rows, labels.reshape(-1))
    targets = np.moveaxis(np.eye(5, dtype="float32")[labels], -1, 1)
    for numerics in ("fast", "exact"):
        with xnn.numerics(numerics):
            for true in (labels, targets):
                found = updated(metric(), outputs, true, [2, 7], lib)
                np.testing.assert_allclose(found, wanted, rtol=1e-13)
    with pytest.raises(LabelError):
        metric().update(outputs, labels + 1)


def test_labels_that_name_no_class_are_never_right():
    """uint8 could not name 300 classes, and -1 is not the last one."""
    outputs = np.zeros((4, 300), "float32")
    outputs[:, 256] = 1.0
    outputs[3, 299] = 2.0
    labels = np.array([256, 0, 300, -1])
    for count, wanted in (
        (metrics.accuracy, 1),
        (metrics.TopK(2).count, 1 + 1),
        (lambda *arrays: metrics.ConfusionMatrix().count(*arrays).sum(), 2),
    ):
        assert count(np, outputs, labels) == wanted
    hits, said, true = metrics.F1().count(np, outputs, labels)
    assert (hits.sum(), said.sum(), true.sum()) == (1, 4, 2)
    few = labels.astype("uint8")  # 0, 0, 44, 255
    assert metrics.accuracy(np, outputs, few) == metrics.Recall().count(np, outputs, few)[0].sum() == 0
    for metric in (metrics.Accuracy(), metrics.F1(), metrics.TopK(), metrics.ConfusionMatrix()):
        with pytest.raises(LabelError, match=r"labels must lie in 0 \.\. 299"):
            metric.update(outputs, labels)
        with pytest.raises(OptionError, match="call update"):
            metric.compute()  # the batch was not counted


def test_outputs_that_are_nan_are_nobodys_top():
    outputs = np.full((2, 4), np.nan, "float32")
    outputs[1, :3] = 1.0
    assert updated(metrics.TopK(3), outputs, np.array([0, 1])) == 0.5  # NaN, 1, 1 come first


# The same on every backend and in exact numerics.


CLASSES = RNG.normal(size=(90, 6)).astype("float32"), RNG.integers(0, 6, 90)
NUMBERS = (
    RNG.normal(size=(90, 3)).astype("float32") + 100,
    RNG.normal(size=(90, 3)).astype("float32") + 100,
)
SEVERAL = RNG.normal(size=(90, 3)).astype("float32"), RNG.integers(0, 2, (90, 3))
EVERY = [
    (metrics.Accuracy(), CLASSES),
    (metrics.TopK(2), CLASSES),
    (metrics.Precision(), CLASSES),
    (metrics.Recall("weighted"), CLASSES),
    (metrics.F1(None), CLASSES),
    (metrics.ConfusionMatrix(), CLASSES),
    (metrics.Accuracy(binary=True), SEVERAL),
    (metrics.F1(binary=True), SEVERAL),
    (metrics.ConfusionMatrix(), (SEVERAL[0][:, :1], SEVERAL[1][:, :1])),
    (metrics.MAE(), NUMBERS),
    (metrics.MSE(), NUMBERS),
    (metrics.RMSE(), NUMBERS),
    (metrics.R2(), NUMBERS),
]


@pytest.mark.parametrize(("metric", "arrays"), EVERY, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_on_every_backend(lib, numerics, metric, arrays):
    host = updated(metric, *arrays)
    with xnn.numerics(numerics):
        np.testing.assert_allclose(updated(metric, *arrays, [1, 32, 50, 7], lib), host, rtol=1e-6)


@pytest.mark.parametrize(("metric", "arrays"), EVERY, ids=lambda x: getattr(x, "name", ""))
def test_counts_do_not_depend_on_the_order(lib, metric, arrays):
    """Exact sums over a batch do not depend on the order of samples; sums of integer counts never do."""
    order = RNG.permutation(90)
    shuffled = [part[order] for part in arrays]
    with xnn.numerics("exact"):
        assert updated(metric, *shuffled, None, lib) == updated(metric, *arrays, None)
        if arrays is not NUMBERS:
            assert updated(metric, *shuffled, [50, 7, 33], lib) == updated(metric, *arrays, [32, 58])


# In a Trainer.


def test_in_a_trainer(lib):
    """Training counts the outputs of each step; with a learning rate of 0 they are those of `evaluate`."""
    x, labels = RNG.normal(size=(150, 8)).astype("float32"), RNG.integers(0, 6, 150)
    names = ["accuracy", "top5", "top2", "precision", "recall", "f1", "confusion_matrix"]
    tables = ["ops", "numpy", "compiled"] if lib.name == "numpy" else ["auto"]
    for numerics in ("fast", "exact"):
        for kernels in tables:
            model = mlp(8, (16,), 6, seed=1)
            t = xnn.Trainer(
                model,
                losses.SoftmaxCrossEntropy(),
                optimizers.SGD(0.0),
                [*names, metrics.F1("weighted", name="weighted"), metrics.Recall(None, name="each")],
                kernels=kernels,
                numerics=numerics,
            )
            entry = t.fit((x, labels), (x, labels), progress=False).epochs[0]
            with xnn.numerics(numerics):
                outputs = model.predict(x)
            wanted = {m.name: updated(m, outputs, labels) for m in t.metrics}
            found = t.evaluate((x, labels), batch_size=64)
            for name, value in wanted.items():
                assert entry[name] == entry[f"val_{name}"] == found[name] == value, (name, kernels)
            assert np.sum(entry["confusion_matrix"]) == 150
            assert len(entry["each"]) == 6


def test_regression_in_a_trainer(lib):
    x = RNG.normal(size=(150, 4)).astype("float32")
    y = 1e4 + x @ RNG.normal(size=(4, 2))
    model = xnn.Sequential(layers.Dense(4, 2), seed=0)
    model.parameters()[1].value = lib.to_device(np.full(2, 1e4, "float32"))
    t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.0), ["mae", "mse", "rmse", "r2"])
    entry = t.fit((x, y), (x, y), progress=False).epochs[0]
    outputs = model.predict(x)
    for metric in t.metrics:
        wanted = updated(metric, outputs.astype(float), y.astype("float32").astype(float))
        # The outputs themselves are rounded to 1e-3, in training otherwise than in one batch.
        assert entry[metric.name] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert entry[f"val_{metric.name}"] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert entry["mse"] == pytest.approx(entry["loss"], rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_yes_or_no_in_a_trainer(lib, outputs):
    """By name, metrics follow the loss: each output of BinaryCrossEntropy is a decision of its own."""
    x = RNG.normal(size=(150, 4)).astype("float32")
    y = (x[:, :outputs] > 0.3) * 1
    model = xnn.Sequential(layers.Dense(4, outputs), seed=0)
    loss = losses.BinaryCrossEntropy()
    entry = xnn.Trainer(model, loss, optimizers.SGD(1.0)).fit((x, y), (x, y), 20, progress=False).epochs[-1]
    right = (model.predict(x) > 0) == y
    assert entry["val_accuracy"] == pytest.approx(np.mean(right))
    assert entry["accuracy"] > 0.9
    found = xnn.Trainer(model, loss, optimizers.SGD(1.0), ["f1", "recall"]).evaluate((x, y))
    hits = np.sum(right & (y == 1), axis=0)
    assert found["recall"] == pytest.approx(np.mean(hits / np.sum(y, axis=0)))
    assert found["f1"] == pytest.approx(np.mean(2 * hits / np.sum(y + (model.predict(x) > 0), axis=0)))


def test_by_name_the_threshold_follows_the_model():
    x = RNG.normal(size=(60, 2)).astype("float32")
    y = (x[:, :1] > 0) * 1
    model = xnn.Sequential(layers.Dense(2, 1), layers.Sigmoid(), seed=0)
    found = xnn.Trainer(model, losses.MSE(), optimizers.SGD(), ["accuracy"]).evaluate((x, y))
    assert found["accuracy"] == np.mean(model.predict_classes(x) == y[:, 0])


def test_plain_accuracy_is_still_the_kernels():
    t = xnn.Trainer(mlp(8, (4,), 6), losses.SoftmaxCrossEntropy(), optimizers.SGD(), ["accuracy", "f1"])
    batches = xnn.data.Batches(
        prepare(
            t.model, t.loss, t.metrics, (CLASSES[0][:, :1] * np.ones(8, "float32"), CLASSES[1]), "training"
        ),
        32,
    )
    for name, calls in (("numpy", 1), ("compiled", 1), ("ops", 0)):
        if name == "compiled":
            pytest.importorskip("numba")
        table = t.model.backend.kernels(name)
        counted = [call for call in t.stepper(batches, table).program(32).calls if call.kind == "metric"]
        assert sum(table.accepts(call) for call in counted) == calls
        assert [call.writes[0].shape for call in counted] == [(), (3, 6)]


class Bias(metrics.Metric):
    """A metric of the user's own, with its own result."""

    name = "bias"

    def count(self, xp, outputs, targets):
        return xp.sum(outputs - targets, axis=0)

    def result(self, total, samples):
        return abs(total / samples)


def test_one_of_your_own(lib):
    x, y = (part[:, :2] for part in NUMBERS)
    model = xnn.Sequential(layers.Dense(2, 2), seed=0)
    t = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.0), Bias())
    history = t.fit((x, y), epochs=2, progress=False)
    wanted = np.abs(np.mean(model.predict(x) - y, axis=0))
    assert all(type(number) is float for number in history["bias"][0])
    np.testing.assert_allclose(history["bias"], [wanted, wanted], rtol=1e-5)
    assert updated(Bias(), x, y, [40, 50]) == pytest.approx(np.abs(np.mean(x - y, axis=0)), rel=1e-4)
    t.metrics[0].update(x, y)  # by hand, while a Trainer has it
    by_hand = t.metrics[0].compute()
    assert t.evaluate((x, y)) == t.evaluate((x, y))
    assert t.metrics[0].compute() == by_hand


def test_what_is_no_number_breaks_no_log(tmp_path, capsys, monkeypatch):
    x, labels = CLASSES
    model = xnn.Sequential(layers.Dense(6, 6), seed=0)
    shown = []

    class Look(Callback):
        def on_check(self, history, epoch, step, loss, metrics):
            shown.append(metrics)

    chosen = ["confusion_matrix", "accuracy", metrics.F1(None)]
    path = tmp_path / "log.jsonl"
    callbacks = [JsonLines(path), EpochLines(), Look()]
    t = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(), chosen, callbacks)
    history = t.fit((x, labels), (x, labels), epochs=2, progress=False)
    assert len(shown[0]["confusion_matrix"]) == 6
    epochs = [json.loads(line) for line in path.read_text().splitlines()][1:3]
    assert [entry["val_f1"] for entry in epochs] == history["val_f1"]
    assert [entry["confusion_matrix"] for entry in epochs] == history["confusion_matrix"]
    assert all(isinstance(n, int) for n in epochs[0]["confusion_matrix"][0])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2::2] for line in lines] == 2 * [["loss", "accuracy", "val_loss", "val_accuracy"]]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    t.callbacks = [ProgressBar()]
    t.fit((x, labels), progress=False)
    err = capsys.readouterr().err
    assert "accuracy" in err
    assert "[[" not in err
    pytest.importorskip("matplotlib")
    history.plot(tmp_path / "curves.svg")
    assert "confusion" not in (tmp_path / "curves.svg").read_text()


# What is refused.


def test_options():
    for wrong in (
        lambda: metrics.F1(average="samples"),
        lambda: metrics.F1(binary=1),
        lambda: metrics.Accuracy(threshold="0.5"),
        lambda: metrics.Accuracy(threshold=math.nan),
        lambda: metrics.TopK(0),
        lambda: metrics.TopK(2.0),
        lambda: metrics.MAE(name=""),
        lambda: metrics.MAE(name=3),
        lambda: metrics.get(3),
        lambda: metrics.get("top0"),
        lambda: metrics.get(metrics.F1),
    ):
        with pytest.raises(OptionError):
            wrong()
    with pytest.raises(OptionError, match=r"choose accuracy, top5, precision, .*r2"):
        metrics.get("auc")
    with pytest.raises(OptionError, match="must have different names"):
        trainer_of([metrics.F1(), metrics.F1("micro")])
    assert [m.name for m in trainer_of([metrics.F1(), metrics.F1("micro", name="micro")]).metrics] == [
        "f1",
        "micro",
    ]


def trainer_of(chosen):
    return xnn.Trainer(mlp(6, (4,), 6, seed=0), losses.SoftmaxCrossEntropy(), optimizers.SGD(), chosen)


def test_what_does_not_fit_is_refused_before_training():
    for wrong, error, words in (
        (metrics.MAE(), ShapeError, "targets of the outputs' shape"),
        (metrics.F1("binary"), ShapeError, "choose another average"),
        (metrics.Accuracy(binary=True), ShapeError, "yes or no"),
        (lambda xp, outputs, targets: None, DTypeError, "returned NoneType"),
        (lambda xp, outputs, targets: outputs, ShapeError, "one number"),
    ):
        t = trainer_of(wrong)
        before = t.model.parameters()[0].value.copy()
        with pytest.raises(error, match=words):
            t.fit(CLASSES, progress=False)
        np.testing.assert_array_equal(t.model.parameters()[0].value, before)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "error"),
    [
        (metrics.F1(), CLASSES[1], CLASSES[1], DTypeError),  # predicted classes are no outputs
        (metrics.ConfusionMatrix(), CLASSES[0], CLASSES[1] + 0.0, DTypeError),
        (metrics.TopK(), CLASSES[0][:, :1], CLASSES[1][:, None] + 0.0, ShapeError),
        (metrics.F1(), CLASSES[0], CLASSES[1][:, None], ShapeError),
        (metrics.F1(), CLASSES[0][:1], CLASSES[1], ShapeError),
        (metrics.Accuracy(), CLASSES[0], CLASSES[1][:1], ShapeError),
        (metrics.F1("binary", binary=True), *SEVERAL, ShapeError),
        (metrics.ConfusionMatrix(binary=True), *SEVERAL, ShapeError),
        (metrics.Recall(), CLASSES[0][:, :1], CLASSES[1] % 2, LabelError),  # (n, 1) takes (n, 1)
        (metrics.R2(), NUMBERS[0], NUMBERS[1][:, 0], ShapeError),
        (metrics.MSE(), np.float32(1), np.float32(1), ShapeError),
        (metrics.MAE(), CLASSES[1], CLASSES[1], DTypeError),
        (metrics.Accuracy(), CLASSES[0], CLASSES[1] + 0.5, DTypeError),
        (metrics.Accuracy(), CLASSES[0], CLASSES[1].astype(str), DTypeError),
        (metrics.Accuracy(), CLASSES[0][:, :1], CLASSES[1] % 2 + 0.0, DTypeError),  # (n, 1) takes (n, 1)
    ],
)
def test_arrays(metric, outputs, targets, error):
    with pytest.raises(error):
        metric.update(outputs, targets)
    with pytest.raises(OptionError):
        metric.compute()


def test_outputs_of_another_width():
    metric = metrics.F1()
    metric.update(*CLASSES)
    before = metric.compute()
    with pytest.raises(ShapeError, match="one width, or reset it"):
        metric.update(CLASSES[0][:, :-1], CLASSES[1] * 0)
    assert metric.compute() == before


def test_a_metric_travels_with_what_it_counted():
    for metric, arrays in EVERY:
        wanted = updated(metric, *arrays)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(metric)).compute(), wanted)


def test_the_function_is_the_metric():
    model = mlp(6, (4,), 6, seed=0)
    for chosen in (metrics.accuracy, "accuracy", metrics.Accuracy(), [metrics.Accuracy()]):
        t = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(), chosen)
        assert t.evaluate(CLASSES)["accuracy"] == np.mean(model.predict_classes(CLASSES[0]) == CLASSES[1])


def test_lists_and_one_sample():
    metric = metrics.Accuracy()
    metric.update([[0.1, 0.9]], [1])
    metric.update([[0.9, 0.1], [0.2, 0.8]], [1, 1])
    assert metric.compute() == 2 / 3
    assert metric.compute() == 2 / 3
    metric.reset()
    metric.update([[0.9, 0.1]], [0])
    assert metric.compute() == 1.0
    metric.reset()
    metric.update([[0.1, 0.2, 0.7]], [True])  # class 1, not "some class but the first"
    assert metric.compute() == 0.0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "confusion_matrix", "precision", "recall"])
def test_a_regressions_targets_are_no_classes(metric):
    x = np.ones((4, 2), np.float32)
    model = xnn.Sequential(layers.Dense(2, 1))
    for y in ([[0.2], [1.7], [0.0], [1.0]], [[-0.5], [0.5], [0.0], [1.0]]):
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(), metrics=[metric])
        with pytest.raises(LabelError, match="take metrics such as mae or r2"):
            trainer.fit((x, np.array(y)), progress=False)
        with pytest.raises(LabelError, match="counts classes"):
            trainer.evaluate((x, np.array(y)))
    yes_or_no = xnn.Trainer(model, losses.Hinge(), optimizers.SGD(), metrics=[metric])
    yes_or_no.fit((x, np.array([[-1.0], [1.0], [1.0], [-1.0]])), progress=False)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (metrics.Accuracy(), "Accuracy()"),
        (metrics.Accuracy(binary=True, threshold=0.5), "Accuracy(binary=True, threshold=0.5)"),
        (metrics.TopK(3), "TopK(k=3)"),
        (metrics.F1("weighted", name="score"), "F1(average='weighted', name='score')"),
        (metrics.R2(), "R2()"),
    ],
)
def test_repr(metric, text):
    assert repr(metric) == text
