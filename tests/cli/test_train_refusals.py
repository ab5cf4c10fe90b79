"""Options and data of xnn train that do not fit together, and what the report says of a run."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
from command_line import refused, run
from training_by_hand import TRAIN, report

import xnn
from xnn.data import load
from xnn.errors import OptionError
from xnn.runs.spec import RunSpec

# What does not go together.


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
        ("--optimizer lbfgs --lr 1", "--lr is for optimizers that train on batches"),
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
        (
            "digits.npz",
            "--warmup 10",
            ("--warmup is 10: it must be shorter than the run of 10 steps, 5 an epoch",),
        ),
    ],
)
def test_refused_for_these_data(folder, tmp_path, data, words, messages):
    log = tmp_path / "log.jsonl"
    refused(run("train", *TRAIN, "--dataset", folder / data, "--log", log, *words.split()), 2, *messages)
    assert not log.exists()


# What the report says of a run, and exact numerics.


ALL = ("--schedule", "cosine", "--warmup", 2, "--clip-norm", 0.5, "--weight-decay", 0.001, "--augment")
ALL += ("--momentum", 0.9, "--label-smoothing", 0.1, "--class-weight", "balanced", "--average", 0.9)


def test_json_and_log_say_what_was_run(digits, tmp_path):
    """They have options that are not the default, and every number that depends on the data."""
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
    again = RunSpec.from_json(json.loads(json.dumps(found)), "0.1.0")
    assert again.as_json() == {**found, "hidden": (8,)}
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
    """Options that only a later xnn knows are named in an error."""
    known = report("--dataset", digits, "--epochs", 1)["run"]
    with pytest.raises(OptionError, match=r"made by xnn 9\.9, with options that this xnn"):
        RunSpec.from_json({**known, **change}, "9.9")


def test_divergence_with_averages(digits, tmp_path):
    path = tmp_path / "m.safetensors"
    words = ("--dataset", digits, "--lr", "1e30", "--average", 0.9, "--save", path)
    result = run("train", *TRAIN, *words)
    assert result.exit_code == 3
    assert "before that step" in result.stderr
    assert all(np.isfinite(p.value).all() for p in xnn.load(path).parameters())


@pytest.mark.sampled(8)
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


# What a newcomer gets wrong.


DENSE = '[[layers]]\ntype = "Dense"\n'


@pytest.mark.parametrize(
    ("network", "messages"),
    [
        ('[[layers]]\ntype = "ReLU"\n', (":1: ", "nothing to train")),
        (f"{DENSE}outputs = 9\n\n{DENSE}outputs = 7\n", (":5: ", "0 to 9", "7 outputs")),
        (f'{DENSE}outputs = "classes"\n[[layers]]\ntype = "Softmax"\n', (":4: ", "remove that layer")),
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
    ids=["no weights", "outputs", "softmax", "embedding", "flat", "flat, with channels"],
)
def test_a_network_that_does_not_fit_is_refused_with_its_line(digits, tmp_path, network, messages):
    (tmp_path / "net.toml").write_text(network)
    result = run("train", "--model", tmp_path / "net.toml", "--dataset", digits, "--epochs", 1)
    refused(result, result.exit_code, f"{tmp_path / 'net.toml'}", *messages)
    assert result.exit_code in (2, 4)


def test_a_single_class_is_said_to_be_one(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    (tmp_path / "one.csv").write_text("".join(f"{a},{b},cat\n" for a, b in x.tolist()))
    model = tmp_path / "m.safetensors"
    result = run("train", *TRAIN, "--dataset", tmp_path / "one.csv", "--save", model)
    assert result.exit_code == 0
    assert result.stderr.startswith("xnn: one class, cat: there is nothing to tell apart")
    for option, line in (("--proba", "cat (cat 1.0000)"), ("--top=2", "cat 1.0000")):
        assert run("predict", model, tmp_path / "one.csv", option).stdout.splitlines() == [line] * 30


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
