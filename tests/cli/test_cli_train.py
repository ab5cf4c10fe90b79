"""Losses, optimizers, schedules and augmentation of xnn train: an option does what the library does by that name."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
from command_line import run

import xnn
from xnn import layers, losses, optimizers, schedules
from xnn.cli import main
from xnn.cli.options import LOSS_NAMES, OPTIMIZER_NAMES
from xnn.data import load, synthetic_digits
from xnn.errors import OptionError
from xnn.layers.files import metadata, weights_sha256
from xnn.runs.mlp import mlp
from xnn.runs.schedule_text import NAMED, read_schedule, schedule_text
from xnn.runs.spec import LOSSES, OPTIMIZERS, Run, balanced_weights
from xnn.training import Trainer

TRAIN = ("--hidden", "8", "--epochs", 2, "--batch-size", 50, "--threads", 1)  # 240 rows: five steps an epoch
STEPS = 10


def report(*args):
    result = run("train", *TRAIN, *args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result, code, *messages):
    """One line on standard error, and nothing trained."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert all(message in line for message in messages), line
    assert line.startswith(("xnn: ", "Error: "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets of 300 samples, of which 240 are for training: digits, two classes, two numbers."""
    path = tmp_path_factory.mktemp("data")
    x, y = synthetic_digits(300, seed=1)
    np.savez(path / "digits.npz", x=x, y=y)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    rows = [
        f"{','.join(map(str, row))},{'yes' if row[0] + row[1] * row[2] > 0.5 else 'no'}" for row in x.tolist()
    ]
    (path / "two.csv").write_text("\n".join(["a,b,c,d,kind", *rows]) + "\n")
    np.savetxt(
        path / "numbers.csv", np.column_stack([x, x @ rng.normal(size=4)]), delimiter=",", header="a,b,c,d,y"
    )
    return path


@pytest.fixture(scope="module")
def digits(folder):
    return folder / "digits.npz"


def trained(path, loss, rule, augment=(), y=None, outputs=None):
    """The digest of what the library makes of the same data, by hand."""
    data = load(path)
    outputs = outputs or data.classes
    net = mlp(data.x_train.shape[1], (8,), outputs, rescale=data.rescaling(), augment=augment)
    y = data.y_train if y is None else y(data.y_train)
    Trainer(net, loss, rule, threads=1).fit((data.x_train, y), epochs=2, batch_size=50, progress=False)
    return weights_sha256(net)


# ---------------------------------------------------------------- optimizers


def test_the_names_in_help_are_those_of_the_registries():
    assert tuple(OPTIMIZERS) == OPTIMIZER_NAMES
    assert tuple(LOSSES) == LOSS_NAMES
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
    """A weight decay that is the optimizer's own goes without saying."""
    found = report("--dataset", digits, *words.split())
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), rule)
    assert found["run"].get("weight_decay") == recorded


def test_lbfgs(folder, tmp_path):
    """Its epochs are iterations; what is said to be over all the data is."""
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
    """What is tested and saved are the averages; the epochs' numbers and losses are those without."""
    path = tmp_path / "m.safetensors"
    plain = report("--dataset", digits)
    found = report("--dataset", digits, "--average", 0.9, "--save", path)
    assert found["weights_sha256"] != plain["weights_sha256"]
    assert all(found[key] == plain[key] for key in ("losses_sha256", "history"))
    data = load(digits)
    net = mlp(784, (8,), 10, rescale=data.rescaling())
    rule = optimizers.SGD(0.1, average=0.9)
    trainer = Trainer(net, losses.SoftmaxCrossEntropy(), rule, threads=1)
    trainer.fit((data.x_train, data.y_train), epochs=2, batch_size=50, progress=False)
    with rule.averaged():
        assert weights_sha256(net) == found["weights_sha256"] == weights_sha256(xnn.load(path))
        tested = trainer.evaluate((data.x_test, data.y_test))
    assert (found["test_loss"], found["test_accuracy"]) == (tested["loss"], tested["accuracy"])
    words = run("train", *TRAIN, "--dataset", digits, "--average", 0.9).stdout
    assert "tested and saved: the moving average" in words


# ---------------------------------------------------------------- losses


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
    """One output for those that say yes or no; labels keep their names; predict does better than chance."""
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
    """As its user guide has them, and compute_class_weight where it is installed."""
    counts = np.array([50, 30, 20])
    assert balanced_weights(counts) == [100 / 150, 100 / 90, 100 / 60]
    assert balanced_weights(np.array([6, 0, 2])) == [8 / 12, 1.0, 2.0]
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    y = np.repeat(np.arange(3), counts)
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(balanced_weights(counts), expected, rtol=1e-15)


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("text", "schedule", "full"),
    [
        ("constant", schedules.Constant(2.0), "constant"),
        ("step", schedules.Step(2.0, 11), "step:every=11"),
        ("step:every=7, factor=0.5", schedules.Step(2.0, 7, 0.5), "step:every=7,factor=0.5"),
        ("exponential", schedules.Exponential(2.0, 0.9, 8), "exponential:factor=0.9,every=8"),
        ("exponential:factor=1e-1,every=1", schedules.Exponential(2.0, 0.1), "exponential:factor=0.1"),
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
    """32 steps, 8 an epoch fill in what is left open; the full text needs neither."""
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
    """Over all the steps of the run; the record has the peak, not the first rate."""
    found = report("--dataset", digits, *words.split())
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), optimizers.SGD(schedule))
    assert found["run"]["lr"] == float(words.split()[-1] if "--lr" in words else 0.1)
    assert ("schedule" in found["run"]) == ("--schedule" in words and "constant" not in words)


def test_the_schedule_is_by_default_that_of_the_optimizer(digits):
    found = report("--dataset", digits, "--optimizer", "adamw", "--schedule", "cosine")
    rule = optimizers.AdamW(schedules.Cosine(0.001, STEPS))
    assert found["weights_sha256"] == trained(digits, losses.SoftmaxCrossEntropy(), rule)


# ---------------------------------------------------------------- augmentation


@pytest.mark.parametrize(("words", "strength"), [((), 0.5), ((0.25,), 0.25)])
def test_augmentation(digits, tmp_path, words, strength):
    """Behind the Rescale, by itself and before the layers of a file; saved with the model."""
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


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize("command", [("train",), ("verify", "threads=1", "threads=2")])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--momentum 0.9 --optimizer adam", "--momentum is for sgd and rmsprop, not for adam"),
        ("--momentum 1", "momentum"),
        ("--label-smoothing 0.1 --loss mse", "--label-smoothing is for cross-entropy, not for mse"),
        ("--label-smoothing 1", "[0, 1), got 1.0"),
        ("--class-weight balanced --loss focal", "--class-weight is for cross-entropy, not for focal"),
        ("--class-weight heavy", "balanced"),
        ("--loss likelihood", "likelihood"),
        ("--schedule cosin", "there is no schedule 'cosin'"),
        ("--schedule step:every=0", "every must be a positive integer, got 0"),
        ("--warmup 0", "warmup"),
        ("--warmup 5 --schedule onecycle", "onecycle:warmup=0.3"),
        ("--lr 0", "--lr must be above 0"),
        ("--lr nan", "--lr must be a finite number"),
        ("--clip-norm 0", "clip_norm must be above 0"),
        ("--clip-norm nan", "clip_norm"),
        ("--weight-decay -1", "weight_decay"),
        ("--average 1", "average"),
        ("--augment inf", "--augment must be a finite number in [0, 10)"),
        ("--optimizer lbfgs --lr 1", "--lr is for optimizers that take steps"),
        ("--optimizer lbfgs --schedule cosine", "--schedule is for"),
        ("--optimizer lbfgs --clip-norm 1", "--clip-norm is for"),
        ("--optimizer lbfgs --average 0.9", "--average is for"),
        ("--optimizer lbfgs --dropout 0.1", "--dropout is for"),
        ("--optimizer lbfgs --augment 1", "--augment is for"),
    ],
)
def test_refused_before_data_are_fetched(monkeypatch, command, words, message):
    monkeypatch.setattr("xnn.cli.train.load", lambda *args, **options: pytest.fail("data were fetched"))
    refused(run(*command, "--dataset", "nosuch", *words.split()), 2, message)


def test_patience_and_averages(monkeypatch):
    monkeypatch.setattr("xnn.cli.train.load", lambda *args, **options: pytest.fail("data were fetched"))
    refused(run("train", "--patience", 3, "--average", 0.9), 2, "--patience", "--average")


@pytest.mark.parametrize(
    ("data", "words", "messages"),
    [
        ("digits.npz", "--loss bce", ("a classification of 10 classes", "choose cross-entropy")),
        ("digits.npz", "--loss mse", ("a classification of 10 classes", "choose cross-entropy")),
        ("two.csv", "--loss l1", ("of 2 classes", "choose cross-entropy, bce, focal, hinge")),
        ("numbers.csv", "--loss hinge", ("a regression", "choose mse, l1, huber")),
        ("numbers.csv", "--loss cross-entropy", ("a regression", "choose mse, l1, huber")),
        ("numbers.csv", "--label-smoothing 0.1", ("--label-smoothing is for classes", "a regression")),
        ("numbers.csv", "--class-weight balanced", ("--class-weight is for classes", "a regression")),
        ("numbers.csv", "--augment", ("--augment is for images", "4 numbers")),
        ("digits.npz", "--warmup 10", ("shorter than the run of 10 steps, 5 an epoch, got 10",)),
    ],
)
def test_refused_for_these_data(folder, tmp_path, data, words, messages):
    log = tmp_path / "log.jsonl"
    refused(run("train", *TRAIN, "--dataset", folder / data, "--log", log, *words.split()), 2, *messages)
    assert not log.exists()


# ---------------------------------------------------------------- what is told of it, and exact numerics

ALL = ("--schedule", "cosine", "--warmup", 2, "--clip-norm", 0.5, "--weight-decay", 0.001, "--augment")
ALL += ("--momentum", 0.9, "--label-smoothing", 0.1, "--class-weight", "balanced", "--average", 0.9)


def test_json_and_log_say_what_was_run(digits, tmp_path):
    """What is not the default, and every number that the data decided."""
    log = tmp_path / "log.jsonl"
    plain = report("--dataset", digits)["run"]
    network = {"hidden": [8], "activation": "relu", "dropout": 0.0}
    assert plain == {**network, "optimizer": "sgd", "lr": 0.1, "batch_size": 50, "seed": 0}
    found = report("--dataset", digits, *ALL, "--log", log)["run"]
    assert found == {
        **plain, "schedule": "cosine:steps=8", "warmup": 2, "clip_norm": 0.5, "weight_decay": 0.001, "augment": 0.5,
        "momentum": 0.9, "label_smoothing": 0.1, "class_weight": "balanced", "average": 0.9,
    }  # fmt: skip
    assert json.loads(log.read_text().splitlines()[0])["run"] == found
    again = Run.from_record(json.loads(json.dumps(found)), "0.1.0")
    assert again.as_record() == {**found, "hidden": (8,)}
    assert again.resolved(load(digits), 999) == again


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": 5},
        {"schedule": "cosine:beginning=1"},
        {"optimizer": []},
        {"loss": "mae"},
        {"augment": "much"},
        {"warmup": 1.5},
        {"hidden": 3},
        {"hidden": None, "model": [{"type": "Dense"}]},
    ],
)
def test_records_of_other_options(digits, change):
    """What a later xnn may have written is told by name, not by a traceback."""
    known = report("--dataset", digits, "--epochs", 1)["run"]
    with pytest.raises(OptionError, match=r"of xnn 9\.9 and of a run that this xnn"):
        Run.from_record({**known, **change}, "9.9")


def test_divergence_with_averages(digits, tmp_path):
    path = tmp_path / "m.safetensors"
    words = ("--dataset", digits, "--lr", "1e30", "--average", 0.9, "--save", path)
    result = run("train", *TRAIN, *words)
    assert result.exit_code == 1
    assert "before that step" in result.stderr
    assert all(np.isfinite(p.value).all() for p in xnn.load(path).parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "nadam"])
def test_exact_numerics_with_everything(digits, optimizer):
    """Ops and kernels give the same bits."""
    words = [*ALL, "--optimizer", optimizer, "--numerics", "exact", "--dataset", digits]
    if optimizer != "sgd":
        del words[words.index("--momentum") : words.index("--momentum") + 2]
    digests = [
        [report(*words, "--kernels", kernels)[key] for key in ("weights_sha256", "losses_sha256")]
        for kernels in ("ops", "numpy")
    ]
    assert digests[0] == digests[1]


def test_every_activation_has_its_name_on_the_command_line():
    from xnn.runs.mlp import ACTIVATIONS

    option = next(p for p in main.commands["train"].params if p.name == "activation")
    assert list(option.type.choices) == list(ACTIVATIONS)


# ---------------------------------------------------------------- what a newcomer gets wrong


DENSE = '[[layers]]\ntype = "Dense"\n'


@pytest.mark.parametrize(
    ("network", "messages"),
    [
        ('[[layers]]\ntype = "ReLU"\n', (":1: ", "nothing to train")),
        (f"{DENSE}outputs = 9\n\n{DENSE}outputs = 7\n", (":5: ", "0 to 9", "7 outputs")),
        (f'{DENSE}outputs = "classes"\n[[layers]]\ntype = "Softmax"\n', (":4: ", "take that layer away")),
        (
            '[[layers]]\ntype = "Embedding"\nnum_embeddings = 10\nembedding_dim = 2\n[[layers]]\ntype = "Flatten"\n'
            f'{DENSE}outputs = "classes"\n',
            (":1: ", "must lie in 0 .. 9"),
        ),
        (
            '\n[[layers]]\ntype = "Conv2D"\nout_channels = 2\nkernel_size = 3\n',
            (":2: ", "(784,)", "put a Reshape first"),
        ),
        (
            '[[layers]]\ntype = "Conv2D"\nin_channels = 1\nout_channels = 2\nkernel_size = 3\n',
            (":1: ", "Reshape((channels, height, width))"),
        ),
    ],
    ids=["no weights", "outputs", "softmax", "embedding", "flat", "flat, channels told"],
)
def test_a_network_that_does_not_fit_is_refused_with_its_line(digits, tmp_path, network, messages):
    (tmp_path / "net.toml").write_text(network)
    result = run("train", "--model", tmp_path / "net.toml", "--dataset", digits, "--epochs", 1)
    refused(result, result.exit_code, f"{tmp_path / 'net.toml'}", *messages)
    assert result.exit_code in (1, 2)


def test_a_single_class_is_said_to_be_one(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    (tmp_path / "one.csv").write_text("".join(f"{a},{b},cat\n" for a, b in x.tolist()))
    result = run("train", *TRAIN, "--dataset", tmp_path / "one.csv")
    assert result.exit_code == 0
    assert result.stderr.startswith("xnn: one class, cat: there is nothing to tell apart")


@pytest.mark.parametrize("kinds", ["named", "numbered"])
def test_predict_says_which_classes_the_model_does_not_know(folder, tmp_path, kinds):
    table, model = folder / "two.csv", tmp_path / "m.safetensors"
    x = np.loadtxt(table, delimiter=",", skiprows=1, usecols=range(4))
    names = ("no", "yes") if kinds == "named" else ("0", "1")
    kind = [names[int(row[0] > 0)] for row in x]
    lines = [",".join([*map(str, row), name]) for row, name in zip(x.tolist(), kind, strict=True)]
    (tmp_path / "known.csv").write_text("\n".join(lines))
    other = "2" if kinds == "numbered" else "maybe"
    lines[3] = lines[3].rpartition(",")[0] + "," + other
    (tmp_path / "other.csv").write_text("\n".join(lines))
    run("train", *TRAIN, "--dataset", tmp_path / "known.csv", "--save", model)
    assert run("predict", model, tmp_path / "known.csv").stderr.startswith("accuracy ")
    result = run("predict", model, tmp_path / "other.csv")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 300)
    said = f"1 of 300 samples are of a class that the model does not know ({other}"
    assert said in result.stderr
    assert "accuracy 0" not in result.stderr
    assert json.loads(run("predict", model, tmp_path / "other.csv", "--json").stdout)["accuracy"] is None


@pytest.mark.parametrize("strength", ["50", "10", "inf"])
def test_a_strength_out_of_range_is_named_by_its_option(digits, strength):
    result = run("train", *TRAIN, "--dataset", digits, "--augment", strength)
    refused(result, 2, "--augment must be a finite number in [0, 10)", strength)


@pytest.mark.parametrize("quiet", [(), ("--quiet",), ("--json",)])
def test_each_file_that_was_written_is_named(digits, tmp_path, quiet):
    files = {"--save": tmp_path / "m.safetensors", "--record": tmp_path / "r.jsonl"}
    if find_spec("matplotlib"):
        files["--plot"] = tmp_path / "c.svg"
    result = run(
        "train", *TRAIN, "--dataset", digits, *(part for pair in files.items() for part in pair), *quiet
    )
    assert result.exit_code == 0
    heads = {"--save": "model", "--record": "record of 10 steps", "--plot": "learning curves"}
    for option, path in files.items():
        assert path.exists()
        assert (f"{heads[option]}: {path}" in result.stdout) == (not quiet)
