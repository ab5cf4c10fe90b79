"""Losses, optimizers, schedules and augmentation of xnn train: an option does what the library does by that name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import refused, run
from training_by_hand import STEPS, TRAIN, report, trained

import xnn
from xnn import layers, losses, optimizers, schedules
from xnn.cli import main
from xnn.data import load
from xnn.errors import OptionError
from xnn.layers.files import metadata, weights_sha256
from xnn.runs.mlp import mlp
from xnn.runs.names import ACTIVATIONS, LOSSES, OPTIMIZERS
from xnn.runs.schedule_text import NAMED, read_schedule, schedule_text
from xnn.runs.spec import balanced_weights
from xnn.training import Trainer

# Optimizers.


def test_the_names_on_the_command_line_are_those_of_the_tables():
    options = {option.name: option.type for option in main.get_command(None, "train").params}
    for name, table in (("optimizer", OPTIMIZERS), ("loss", LOSSES), ("activation", ACTIVATIONS)):
        assert list(options[name].choices) == list(table)
    text = " ".join(run("train", "--help").stdout.split())
    assert all(f" {name}" in text or f":{name}" in text for name in NAMED)
    public = {name for name in optimizers.__all__ if name not in ("Optimizer", "State", "WeightDecay")}
    assert {kind.__name__ for kind in OPTIMIZERS.values()} == public


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_every_optimizer_with_its_own_rate(digits, name):
    rule = optimizers.SGD(0.1) if name == "sgd" else OPTIMIZERS[name]()
    found = report("--dataset", digits, "--optimizer", name)
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), rule)
    assert (found["run"]["optimizer"], found["run"]["lr"]) == (name, rule.rate)


@pytest.mark.parametrize(
    ("words", "rule", "recorded"),
    [
        ("--momentum 0.9 --weight-decay 0.01", optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01), 0.01),
        ("--optimizer rmsprop --momentum 0.5", optimizers.RMSProp(momentum=0.5), None),
        ("--optimizer adamw --weight-decay 0", optimizers.AdamW(weight_decay=0.0), 0.0),
        ("--optimizer adamw --weight-decay 0.01", optimizers.AdamW(), None),
        ("--clip-norm 0.1 --lr 0.5", optimizers.SGD(0.5, clip_norm=0.1), None),
    ],
)
def test_options_of_optimizers(digits, words, rule, recorded):
    """A weight decay that equals the optimizer's default is not recorded."""
    found = report("--dataset", digits, *words.split())
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), rule)
    assert found["run"].get("weight_decay") == recorded


@pytest.mark.slow
def test_lbfgs(folder, tmp_path):
    """An epoch of L-BFGS is one iteration over all the data."""
    pytest.importorskip("scipy")
    words = ("--dataset", folder / "two.csv", "--optimizer", "lbfgs", "--weight-decay", "1e-3")
    log = tmp_path / "log.jsonl"
    found = report(*words, "--epochs", 30, "--log", log)
    assert (found["epochs"], found["run"]["lr"]) == (30, None)
    assert found["history"][-1]["loss"] < 0.25 * found["history"][0]["loss"]
    assert len(log.read_text().splitlines()) == 32
    record = tmp_path / "r.jsonl"
    report(*words, "--record", record)
    sides = ("kernels=ops,threads=1", "kernels=ops,threads=1")
    result = run("verify", *sides, *words, "--hidden", "8", "--numerics", "fast", "--steps", 4)
    assert result.exit_code == 0, result.output
    assert "4 steps, " in result.stdout
    words = (*sides, "--dataset", folder / "numbers.csv", "--hidden", "", "--optimizer", "lbfgs")
    result = run("verify", *words, "--numerics", "fast", "--steps", 500)
    assert result.exit_code == 2
    assert "came to its end in step" in result.stderr
    for command in (("train",), ("verify", *sides)):
        refused(
            run(*command, "--optimizer", "lbfgs", "--numerics", "exact", "--dataset", "nosuch"),
            2,
            "SciPy",
            "lbfgs",
        )


def test_averaged_weights(digits, tmp_path):
    """The averages are tested and saved. Losses and the numbers of the epochs are those of the weights."""
    path = tmp_path / "m.safetensors"
    plain = report("--dataset", digits)
    found = report("--dataset", digits, "--average", 0.9, "--save", path)
    assert found["weights_sha256"] != plain["weights_sha256"]
    assert all(found[key] == plain[key] for key in ("losses_sha256", "history"))
    data = load(digits)
    net = mlp(784, (8,), 10, rescale=data.scaling_layer())
    rule = optimizers.SGD(0.1, average=0.9)
    trainer = Trainer(net, losses.SoftmaxCrossEntropy(), rule, threads=1)
    trainer.fit((data.x_train, data.y_train), epochs=2, batch_size=50, progress=False)
    with rule.averaged():
        assert weights_sha256(net) == found["weights_sha256"] == weights_sha256(xnn.load(path))
        tested = trainer.evaluate((data.x_test, data.y_test))
    assert (found["test_loss"], found["test_accuracy"]) == (tested["loss"], tested["accuracy"])
    words = run("train", *TRAIN, "--dataset", digits, "--average", 0.9).stdout
    assert "tested and saved: the moving average" in words


# Losses.


@pytest.mark.parametrize(
    ("name", "loss", "targets"),
    [
        ("bce", losses.BinaryCrossEntropy(), lambda y: y[:, None]),
        ("focal", losses.Focal(), lambda y: y[:, None]),
        ("hinge", losses.Hinge(), lambda y: 2 * y[:, None] - 1),
        ("cross-entropy", losses.SoftmaxCrossEntropy(), lambda y: y),
    ],
)
def test_losses_of_two_classes(folder, tmp_path, name, loss, targets):
    """Losses of two classes need one output. Labels keep their names, and predictions are better than chance."""
    path, table = tmp_path / "m.safetensors", folder / "two.csv"
    found = report("--dataset", table, "--loss", name)
    outputs = 2 if name == "cross-entropy" else 1
    assert found["weights_sha256"] == trained(table, loss, optimizers.SGD(0.1), y=targets, outputs=outputs)
    assert found["run"].get("loss") == (None if name == "cross-entropy" else name)
    words = ("--loss", name, "--epochs", 30, "--optimizer", "adam", "--lr", 0.02)
    found = report("--dataset", table, *words, "--save", path)
    predicted = run("predict", path, table)
    assert set(predicted.stdout.split()) == {"yes", "no"}
    accuracy = float(predicted.stderr.split()[1])
    assert accuracy > 0.85
    assert found["test_accuracy"] > 0.75
    data = load(table)
    right = xnn.load(path).predict_classes(data.x_test) == data.y_test
    assert found["test_accuracy"] == pytest.approx(np.mean(right))
    chances = run("predict", path, table, "--proba")
    if name == "hinge":
        refused(chances, 2, "trained with the hinge loss, whose outputs are no probabilities")
    else:
        assert chances.exit_code == 0


@pytest.mark.parametrize(
    ("name", "loss"), [("mse", losses.MSE()), ("l1", losses.L1()), ("huber", losses.Huber())]
)
def test_losses_of_numbers(folder, name, loss):
    table = folder / "numbers.csv"
    found = report("--dataset", table, "--loss", name)
    assert found["weights_sha256"] == trained(table, loss, optimizers.SGD(0.01))
    assert found["run"].get("loss") == (None if name == "mse" else name)


def test_label_smoothing_and_class_weights(digits):
    counts = np.bincount(load(digits).y_train)
    loss = losses.SoftmaxCrossEntropy(0.1, 240 / (10 * counts))
    found = report("--dataset", digits, "--label-smoothing", 0.1, "--class-weight", "balanced")
    assert found["weights_sha256"] == trained(digits, loss, optimizers.SGD(0.1))


def test_balanced_weights_are_scikit_learns():
    """The weights are those of scikit-learn's user guide, and of compute_class_weight if it is installed."""
    counts = np.array([50, 30, 20])
    assert balanced_weights(counts) == [100 / 150, 100 / 90, 100 / 60]
    assert balanced_weights(np.array([6, 0, 2])) == [8 / 12, 1.0, 2.0]
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    y = np.repeat(np.arange(3), counts)
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(balanced_weights(counts), expected, rtol=1e-15)


# Schedules.


@pytest.mark.parametrize(
    ("text", "schedule", "full"),
    [
        ("constant", schedules.Constant(2.0), "constant"),
        ("step", schedules.Step(2.0, 11), "step:every=11"),
        ("step:every=7, factor=0.5", schedules.Step(2.0, 7, 0.5), "step:every=7,factor=0.5"),
        ("exponential", schedules.Exponential(2.0, 0.9, 8), "exponential:factor=0.9,every=8"),
        (
            "exponential:factor=1e-1,every=1",
            schedules.Exponential(2.0, 0.1),
            "exponential:factor=0.1,every=1",
        ),
        ("polynomial:power=2", schedules.Polynomial(2.0, 32, 2.0), "polynomial:steps=32,power=2.0"),
        ("cosine", schedules.Cosine(2.0, 32), "cosine:steps=32"),
        ("cosine:end=0.1,steps=9", schedules.Cosine(2.0, 9, 0.1), "cosine:steps=9,end=0.1"),
        ("restarts:growth=2", schedules.CosineRestarts(2.0, 8, 2), "restarts:steps=8,growth=2"),
        (
            "onecycle:shape=cosine,warmup=0.5",
            schedules.OneCycle(2.0, 32, 0.5, shape="cosine"),
            "onecycle:steps=32,warmup=0.5,shape=cosine",
        ),
    ],
)
def test_a_schedule_as_text_and_back(text, schedule, full):
    """A run of 32 steps, 8 in an epoch, fills in omitted arguments. The full text does not need these numbers."""
    found = read_schedule(text, 2.0, 32, 8)
    assert found == schedule
    assert schedule_text(found) == full
    assert read_schedule(full, 2.0, 1, 1) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "there is no schedule 'cosin': choose constant, step"),
        ("", "there is no schedule ''"),
        ("warmup", "there is no schedule 'warmup'"),
        ("multistep", "there is no schedule 'multistep'"),
        ("Cosine", "there is no schedule 'Cosine'"),
        ("cosine:", "'' is not one of its arguments: cosine takes NAME=VALUE with steps, end"),
        ("cosine:rate=1", "'rate=1' is not one"),
        ("cosine:steps", "'steps' is not one"),
        ("cosine:steps=", "'steps=' is not one"),
        ("constant:end=1", "constant takes nothing"),
        ("step:every=5,every=6", "'every=6' is given twice"),
        ("step:every=1.5", "every must be a positive integer, got 1.5"),
        ("step:every=often", "every must be a positive integer, got 'often'"),
        ("step:factor=nan", "factor must be a finite number"),
        ("cosine:end=-1", "end must be a finite number at least 0"),
        ("onecycle:shape=sine", "shape must be 'line' or 'cosine'"),
    ],
)
def test_a_text_that_is_no_schedule(text, message):
    with pytest.raises(OptionError, match="schedule") as caught:
        read_schedule(text, 1.0, 10, 5)
    assert message in str(caught.value)
    assert text == "" or repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ("--schedule cosine", schedules.Cosine(0.1, STEPS)),
        ("--schedule onecycle --lr 0.5", schedules.OneCycle(0.5, STEPS)),
        ("--schedule step", schedules.Step(0.1, 4)),
        ("--schedule exponential", schedules.Exponential(0.1, 0.9, 5)),
        ("--schedule restarts", schedules.CosineRestarts(0.1, 5)),
        ("--schedule polynomial --warmup 3", schedules.Warmup(schedules.Polynomial(0.1, STEPS - 3), 3)),
        ("--warmup 9 --lr 0.2", schedules.Warmup(0.2, 9)),
        ("--schedule constant", 0.1),
    ],
)
def test_schedules(digits, words, schedule):
    """A schedule is as long as the run. The record has its peak, not its first rate."""
    found = report("--dataset", digits, *words.split())
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), optimizers.SGD(schedule))
    assert found["run"]["lr"] == float(words.split()[-1] if "--lr" in words else 0.1)
    assert ("schedule" in found["run"]) == ("--schedule" in words and "constant" not in words)


def test_the_schedule_is_by_default_that_of_the_optimizer(digits):
    found = report("--dataset", digits, "--optimizer", "adamw", "--schedule", "cosine")
    rule = optimizers.AdamW(schedules.Cosine(0.001, STEPS))
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), rule)


# Augmentation.


@pytest.mark.parametrize(("words", "strength"), [((), 0.5), ((0.25,), 0.25)])
def test_augmentation(digits, tmp_path, words, strength):
    """The layers of augmentation follow the Rescale layer, with --model too, and are saved with the model."""
    path, net = tmp_path / "m.safetensors", tmp_path / "net.toml"
    found = report("--dataset", digits, "--augment", *words, "--save", path)
    moved = layers.augmentation((28, 28), strength)
    loss = losses.SoftmaxCrossEntropy()
    assert found["weights_sha256"] == trained(digits, loss, optimizers.SGD(0.1), augment=moved)
    kinds = [layer["type"] for layer in metadata(path)["layers"]]
    assert kinds[:3] == ["Rescale", "ElasticDeformation", "RandomAffine"]
    same = "[[layers]]\ntype = 'Dense'\noutputs = 8\n[[layers]]\ntype = 'ReLU'\n"
    last = "[[layers]]\ntype = 'Dense'\noutputs = 'classes'\n"
    own = f"[[layers]]\ntype = 'Rescale'\nscale = {1 / 255!r}\n"
    for front in ("", own):
        net.write_text(front + same + last)
        words_of_file = ("--dataset", digits, "--model", net, *TRAIN[2:], "--augment", *words, "--json")
        by_file = json.loads(run("train", *words_of_file).stdout)
        assert by_file["weights_sha256"] == found["weights_sha256"]
    net.write_text("[[layers]]\ntype = 'Reshape'\nshape = [1, 28, 28]\n[[layers]]\ntype = 'Flatten'\n" + last)
    assert json.loads(run("train", *words_of_file).stdout)["weights_sha256"] != found["weights_sha256"]


def test_no_augmentation_is_none(digits):
    assert report("--dataset", digits, "--augment", 0)["run"] == report("--dataset", digits)["run"]


@pytest.mark.parametrize(
    ("shape", "dtype", "image"),
    [
        ((64,), "u1", (8, 8)),
        ((8, 6), "f4", (8, 6)),
        ((3, 8, 6), "u1", (8, 6)),
        ((64,), "f4", None),
        ((60,), "u1", None),
        ((8, 6, 3), "u1", None),
        ((1,), "u1", None),
    ],
)
@pytest.mark.parametrize("parts", [False, True])
def test_which_data_are_images(tmp_path, shape, dtype, image, parts):
    path = tmp_path / "d.npz"
    x, y = (np.arange(40 * np.prod(shape)) % 251).reshape(40, *shape).astype(dtype), np.arange(40) % 2
    named = {"x_train": x, "y_train": y, "x_test": x, "y_test": y} if parts else {"x": x, "y": y}
    np.savez(path, **named)
    assert load(path).image == image
    result = run("train", *TRAIN, "--dataset", path, "--augment", "--quiet")
    if image:
        assert (result.exit_code, result.output) == (0, "")
    else:
        refused(result, 2, "--augment is for images", "d.npz", str(np.prod(shape)))


def test_what_takes_integers_cannot_be_augmented(digits, tmp_path):
    net = tmp_path / "net.toml"
    rest = "[[layers]]\ntype = 'Flatten'\n[[layers]]\ntype = 'Dense'\noutputs = 'classes'\n"
    net.write_text("[[layers]]\ntype = 'Embedding'\nnum_embeddings = 256\nembedding_dim = 2\n" + rest)
    result = run("train", "--dataset", digits, "--model", net, "--augment", "--quiet")
    refused(result, 2, "net.toml:1: Embedding takes the data as integers")
