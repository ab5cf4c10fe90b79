"""Random options and values of commands: exit code 0, 1 or 2, errors in one line, no file but those asked for."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from command_line import run
from network_texts import DENSE, layer

from xnn.data import synthetic_digits

#: Values that fit some options, and values that fit none.
TEXTS = (
    "0", "1", "2", "3", "-1", "0.5", "1.5", "1e-3", "1e9", "nan", "inf", "-inf", "1e400", "", " ", "a", "kind", "x,y",
    "8", "8,8", "8,,8", "0,8", "99999999999999999999", "0x8", "1_0", "true", "auto", "é", "\x1b[31m", "-", "--", "=",
    "classification", "regression", "balanced", "relu", "adam", "mse", "ops", "exact", "fast", "numpy", "cosine",
    "step:every=2", "step:every=2,factor=0.5", "step:every=x", "onecycle:warmup=2", "cosine:steps=-1",
    "polynomial:power=2", "restarts:steps=3", "nosuch:a=1", "constant", "exponential:factor=0.9", "step:", ":",
    "nosuch.csv", "/", ".", "out",
)  # fmt: skip

#: Option -> values that are usual for it. Some values are paths in the folder of the data.
USUAL = {
    "--dataset": ("two.csv", "numbers.csv", "digits.npz", "names.csv", "nosuch.csv"),
    "--model": ("net.toml", "wrong.toml", "nosuch.toml"),
    "--target": ("kind", "0", "-1", "y", "a"),
    "--header": (None,), "--no-header": (None,),
    "--task": ("classification", "regression"),
    "--hidden": ("", "8", "4,3", "16"),
    "--activation": ("relu", "gelu", "selu", "softplus"),
    "--dropout": ("0", "0.3", "1"),
    "--augment": ("0.3", "1"),
    "--loss": ("cross-entropy", "bce", "focal", "hinge", "mse", "l1", "huber"),
    "--label-smoothing": ("0", "0.1"),
    "--class-weight": ("balanced",),
    "--optimizer": ("sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "lion", "lbfgs"),
    "--lr": ("0.01", "0.1", "1"),
    "--schedule": ("cosine", "step:every=3", "onecycle", "polynomial:power=2", "restarts:steps=2"),
    "--warmup": ("2", "100"),
    "--momentum": ("0", "0.9"),
    "--weight-decay": ("0", "0.01"),
    "--clip-norm": ("1", "0.1"),
    "--average": ("0.9", "0.5"),
    "--batch-size": ("16", "50", "1000"),
    "--seed": ("0", "7", "18446744073709551615"),
    "--epochs": ("1", "2"),
    "--patience": ("1", "2"),
    "--backend": ("numpy", "cupy", "nosuch"),
    "--numerics": ("fast", "exact", "half"),
    "--threads": ("1", "auto"),
    "--kernels": ("auto", "ops", "numpy"),
    "--save": ("out.safetensors", "out.bin", "no/out.safetensors"),
    "--log": ("out.jsonl", "two.csv", "no/out.jsonl"),
    "--record": ("out.jsonl", "record.jsonl"),
    "--json": (None,), "--quiet": (None,),
}  # fmt: skip
PATHS = {"--dataset", "--model", "--save", "--log", "--record"}
#: Values of these may cost minutes or gigabytes, rightly.
BOUNDED = {"--hidden", "--epochs", "--batch-size"}

NET = layer("Dense", "outputs = 8") + layer("Tanh") + DENSE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small tables and digits, networks, a model and a record."""
    path = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    rows = [",".join(map(str, row)) for row in x.tolist()]
    kinds = ["no", "yes"]
    two = [f"{row},{kinds[int(first > 0)]}" for row, first in zip(rows, x[:, 0], strict=True)]
    (path / "two.csv").write_text("\n".join(["a,b,c,d,kind", *two]) + "\n")
    numbers = [f"{row},{first * 3 + 1}" for row, first in zip(rows, x[:, 0], strict=True)]
    (path / "numbers.csv").write_text("\n".join(["a,b,c,d,y", *numbers]) + "\n")
    (path / "names.csv").write_text("\n".join(["a,kind", *(f"{n},{'abc'[n % 3]}" for n in range(30))]) + "\n")
    images, labels = synthetic_digits(40, seed=1)
    np.savez(path / "digits.npz", x=images, y=labels)
    (path / "net.toml").write_text(NET)
    (path / "wrong.toml").write_text(NET.replace("Tanh", "Tahn"))
    words = (
        "--dataset",
        path / "two.csv",
        "--hidden",
        "4",
        "--epochs",
        1,
        "--threads",
        1,
        "--numerics",
        "exact",
    )
    done = run(
        "train", *words, "--save", path / "model.safetensors", "--record", path / "record.jsonl", "--quiet"
    )
    assert done.exit_code == 0, done.output
    return path


def one_of(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def options(rng, folder, most):
    """Words of random options with values."""
    words = []
    for _ in range(int(rng.integers(0, most + 1))):
        name = one_of(rng, list(USUAL))
        usual = rng.random() < 0.85 or (name in BOUNDED and rng.random() < 0.7)
        value = one_of(rng, USUAL[name] if usual else TEXTS)
        if name in BOUNDED and not usual and value[:3].isdigit():
            continue
        words.append(name)
        if value is not None:
            inside = name in PATHS and usual
            words.append(folder / value if inside else value)
    return words


def command(rng, folder):
    """The words of a command."""
    match int(rng.integers(10)):
        case 0:
            data = one_of(rng, ("two.csv", "numbers.csv", "names.csv", "digits.npz", "net.toml", "nosuch"))
            model = one_of(rng, ("model.safetensors", "model.safetensors", "two.csv", "nosuch"))
            extra = one_of(rng, ([], ["--json"], ["--output", folder / "out.npy"], ["--numerics", "half"]))
            return ["predict", folder / model, folder / data, *extra]
        case 1:
            sides = [folder / "record.jsonl", one_of(rng, ("record.jsonl", "two.csv", "nosuch"))]
            return ["verify", sides[0], folder / sides[1], *options(rng, folder, 1)]
        case 2:
            return [
                one_of(rng, ("info", "check", "train", "predict", "bench", "nosuch")),
                one_of(rng, TEXTS) or "-",
            ]
        case _:
            given = options(rng, folder, 6)
            fixed = (
                [] if "--dataset" in given else ["--dataset", folder / one_of(rng, USUAL["--dataset"][:4])]
            )
            bounds = ["--epochs", "1"] if "--epochs" not in given else []
            return ["train", *fixed, *bounds, "--threads", "1", *given]


@pytest.mark.sampled(4)
@pytest.mark.fuzz(120)
def test_a_command_ends_with_an_exit_code(rng, folder, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XNN_DATA_HOME", str(folder / "nothing"))
    monkeypatch.setattr("xnn.data.sources.cache_home", lambda: folder / "cache")
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (60, 20, 20))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = [str(word) for word in command(rng, folder)]
    said = " ".join(words)
    try:
        result = run(*words)
        assert result.exit_code in (0, 1, 2, 3, 4, 6), f"{said}\n{result.output}"
        assert "Traceback" not in result.output, said
        if result.exit_code:
            last = (result.stderr.strip().splitlines() or [""])[-1]
            assert last.startswith(("xnn: ", "Error: ", "Usage: ")), f"{said}\n{result.output}"
        elif "--json" in words:
            json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name}: {said}"))
        changed = [
            path for path, content in before.items() if not path.exists() or path.read_bytes() != content
        ]
        assert not [path for path in changed if words.count(str(path)) < 1], said
        new = {path for path in folder.rglob("*") if path.is_file()} - before.keys()
        assert all(str(path) in words or path.name in words for path in new), f"{said}: {new}"
    finally:
        for path in folder.rglob("*"):
            if path.is_file() and path not in before:
                os.remove(path)
        for path, content in before.items():
            path.write_bytes(content)
