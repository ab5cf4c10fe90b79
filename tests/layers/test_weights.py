"""Files that xnn writes: weights, logs, plots. Whole or not at all, and believed only after a check."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from model_bytes import joined, parts

import xnn
from xnn import Op, layers, losses, ops, optimizers
from xnn.callbacks import JsonLines
from xnn.errors import CorruptFileError, DataError, DataNotFoundError, MissingExtraError, OptionError
from xnn.files import check_plot, check_writable, write_atomically
from xnn.history import History
from xnn.layers import Dense, Dropout, Function, ReLU, Rescale, Sequential, files
from xnn.training import Trainer


def values(model):
    """Every parameter: name, dtype, shape, bytes."""
    host = model.backend.to_host
    return [(n, p.dtype, p.shape, host(p.value).tobytes()) for n, p in model.named_parameters()]


def small(seed=0, dtype="float32"):
    return Sequential(Dense(3, 4, dtype=dtype), ReLU(), Dense(4, 2, dtype=dtype), seed=seed)


def everything(dtype):
    """Every kind of layer, numbers per feature that no float32 holds, and weights that training moved."""
    offset = [0.1, -1e-17, 1 / 3]
    model = Sequential(
        Rescale([1 / 255, 3.0, 1e30], offset, dtype), Dense(3, 5, dtype=dtype), layers.Tanh(), Dropout(0.25),
        Dense(5, 4, bias=False, dtype=dtype), layers.Sigmoid(), Function(ops.exp), layers.Flatten(),
        layers.Linear(4, 3, dtype=dtype), layers.Softmax(), seed=2**64 - 1,
    )  # fmt: skip
    for n, (_, p) in enumerate(model.named_parameters()):
        p.value = (np.arange(p.size).reshape(p.shape) / 7 - n / 3).astype(dtype)
    return model


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, dtype):
    model, path = everything(dtype), tmp_path / "m.safetensors"
    model.save(path)
    loaded = xnn.load(path)
    assert values(loaded) == values(model)
    assert loaded.seed == model.seed
    assert [repr(layer) for layer in loaded.layers] == [repr(layer) for layer in model.layers]
    np.testing.assert_array_equal(loaded.layers[0].scale, model.layers[0].scale)
    np.testing.assert_array_equal(loaded.layers[0].offset, model.layers[0].offset)
    x = np.array([[1.5, -2.0, 3e-30], [0.0, 1.0, 0.0]])
    assert loaded.predict(x).tobytes() == model.predict(x).tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_odd_values_survive(tmp_path):
    model, path = small(), tmp_path / "m.safetensors"
    odd = [-0.0, 1e-45, np.finfo("f4").max, np.inf, -np.inf, np.nan]
    model.layers[0].weight.value = np.array(odd * 2, dtype=np.float32).reshape(3, 4)
    model.save(path)
    assert values(xnn.load(path)) == values(model)


def test_round_trip_between_backends(tmp_path, lib):
    """Saved from any backend, loaded on the current one."""
    model, path = small(), tmp_path / "m.safetensors"
    assert model.backend is lib
    model.save(path)
    assert xnn.load(path).backend is lib
    with xnn.backend("numpy"):
        loaded = xnn.load(path)
        assert loaded.backend.name == "numpy"
        assert values(loaded) == values(model)


def test_no_layers_with_weights(tmp_path):
    path = tmp_path / "m.safetensors"
    Sequential(ReLU(), Dropout(0.5)).save(path)
    assert repr(xnn.load(path)) == repr(Sequential(ReLU(), Dropout(0.5)))


def test_training_goes_on_from_a_file(tmp_path):
    """A loaded model trains to the same bits as the one that was saved."""
    x, y = np.arange(30.0).reshape(10, 3) / 30, np.arange(10) % 2
    model, path = small(), tmp_path / "m.safetensors"
    model.save(path)
    for m in (model, loaded := xnn.load(path)):
        Trainer(m, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)).fit((x, y), progress=False)
    assert values(loaded) == values(model)


def test_metadata_and_notes(tmp_path):
    path = tmp_path / "m.safetensors"
    files.save(small(seed=5), path, {"dataset": "toy", "epochs": 3})
    about = files.metadata(path)
    assert about["notes"] == {"dataset": "toy", "epochs": 3}
    assert (about["seed"], about["numerics"]) == (5, "fast")
    assert [layer["type"] for layer in about["layers"]] == ["Dense", "ReLU", "Dense"]


def test_weights_sha256_is_what_it_says(tmp_path):
    model = small()
    raw = b"".join(p.value.astype("<f4").tobytes() for p in model.parameters())
    assert files.weights_sha256(model) == hashlib.sha256(raw).hexdigest()
    path = tmp_path / "m.safetensors"
    model.save(path)
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["weights_sha256"] == files.weights_sha256(model)


# ---------------------------------------------------------------- what save refuses


class Square(Op):
    def forward(self, xp, x):
        return x * x, x

    def backward(self, xp, grad, x):
        return (2.0 * x * grad,)


class Exp(Square):
    """Another function under the name of one of xnn's own."""


class Own(layers.ReLU):
    pass


Impostor = type("Dense", (Dense,), {})


class OwnModel(Sequential):
    pass


@pytest.mark.parametrize(
    "layer",
    [Function(Square()), Function(Exp()), Own(), Impostor(3, 3), OwnModel(ReLU())],
    ids=["own op", "own op named exp", "own layer", "own layer named Dense", "own model"],
)
def test_a_layer_that_cannot_be_built_again_keeps_its_weights(tmp_path, layer):
    """The weights are saved; load says who must build the model, and load_weights brings them back."""
    model, path = Sequential(Dense(3, 3), layer, seed=1), tmp_path / "m.safetensors"
    model.save(path)
    with pytest.raises(OptionError, match=r"own code, then model\.load_weights"):
        xnn.load(path)
    kept = values(model)
    for parameter in model.parameters():
        parameter.value = parameter.value * 0
    model.load_weights(path)
    assert values(model) == kept


def test_nested_models_load(tmp_path):
    model, path = Sequential(Sequential(Dense(2, 2), seed=4), ReLU()), tmp_path / "m.safetensors"
    model.save(path)
    assert values(xnn.load(path)) == values(model)


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "real.safetensors", tmp_path / "m.safetensors"
    target.write_bytes(b"before")
    link.symlink_to(target)
    small().save(link)
    assert link.is_symlink()
    assert xnn.load(target).layers


@pytest.mark.parametrize("name", ["m.pt", "m", "missing/m.safetensors", "."])
def test_save_refuses_places(tmp_path, name):
    with pytest.raises(OptionError, match="cannot write"):
        small().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what load refuses


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "m.safetensors"
    small().save(path)
    return path


def changed(content, **about):
    """The file with other entries in xnn's own description."""
    header, body = parts(content)
    description = json.loads(header["__metadata__"]["xnn"]) | about
    header["__metadata__"]["xnn"] = json.dumps(description)
    return joined(header, body)


def described(content, text):
    """The file with another text in the place of xnn's own description."""
    header, body = parts(content)
    header["__metadata__"]["xnn"] = text
    return joined(header, body)


def without_metadata(content):
    header, body = parts(content)
    del header["__metadata__"]
    return joined(header, body)


def renamed(content):
    header, body = parts(content)
    header["7.weight"] = header.pop("2.weight")
    return joined(header, body)


def reshaped(content):
    header, body = parts(content)
    header["0.weight"]["shape"].reverse()
    return joined(header, body)


def bfloat16(content):
    """As most language models are stored; NumPy has no such type."""
    entry = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}
    return joined({"w": entry}, b"\0\0\x80\x3f")


def flipped(content):
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


DENSE = {"type": "Dense", "inputs": 3, "outputs": 4, "bias": True, "dtype": "float32"}
DAMAGE = {
    "empty": lambda c: b"",
    "text": lambda c: b"weights, honestly",
    "truncated header": lambda c: c[:50],
    "truncated body": lambda c: c[:-1],
    "longer": lambda c: c + b"x",
    "one bit": flipped,
    "huge header": lambda c: b"\xff" * 8 + c[8:],
    "zip": lambda c: b"PK\x03\x04" + c,
    "foreign": without_metadata,
    "bfloat16": bfloat16,
    "renamed": renamed,
    "reshaped": reshaped,
    "another format": lambda c: changed(c, format=99),
    "no layers": lambda c: changed(c, layers=None),
    "layers of text": lambda c: changed(c, layers=["Dense"]),
    "fewer layers": lambda c: changed(c, layers=[DENSE]),
    "unknown layer": lambda c: changed(c, layers=[{"type": "Conv99"}]),
    "not a layer": lambda c: changed(c, layers=[{"type": "Parameter"}]),
    "dangerous": lambda c: changed(c, layers=[{"type": "__builtins__"}]),
    "unknown op": lambda c: changed(c, layers=[{"type": "Function", "op": "system"}]),
    "unknown option": lambda c: changed(c, layers=[DENSE | {"colour": "red"}]),
    "wrong option": lambda c: changed(c, layers=[DENSE | {"inputs": -3}]),
    "bad rate": lambda c: changed(c, layers=[{"type": "Dropout", "rate": "high"}]),
    "bad seed": lambda c: changed(c, seed=-1),
    "frozen is a number": lambda c: changed(c, frozen=3),
    "frozen holds numbers": lambda c: changed(c, frozen=[3]),
    "frozen holds a stranger": lambda c: changed(c, frozen=["9.weight"]),
    "notes are text": lambda c: changed(c, notes="x"),
    "notes are null": lambda c: changed(c, notes=None),
    "numerics of another name": lambda c: changed(c, numerics="half"),
    "numerics are a list": lambda c: changed(c, numerics=["fast"]),
    "format is true": lambda c: changed(c, format=True),
    "seed is text": lambda c: changed(c, seed="0"),
    "seed is true": lambda c: changed(c, seed=True),
    "layer is a number": lambda c: changed(c, layers=[3]),
    "type is a list": lambda c: changed(c, layers=[{"type": ["Dense"]}]),
    "layer without a type": lambda c: changed(c, layers=[{"inputs": 3}]),
    "inner layers are a number": lambda c: changed(c, layers=[{"type": "Sequential", "layers": 3}]),
    "a scale of 400 digits": lambda c: changed(c, layers=[{"type": "Rescale", "scale": 10**400}]),
    "an empty scale": lambda c: changed(c, layers=[{"type": "Rescale", "scale": []}]),
    "description of 100,000 brackets": lambda c: described(c, "[" * 100_000),
    "description is a list": lambda c: described(c, "[]"),
    "description is a number of 5,000 digits": lambda c: described(c, "9" * 5000),
    "petabytes of weights": lambda c: changed(c, layers=[DENSE | {"inputs": 2**24, "outputs": 2**24}]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_load_refuses(saved, name):
    saved.write_bytes(DAMAGE[name](saved.read_bytes()))
    with pytest.raises(CorruptFileError) as caught:
        xnn.load(saved)
    assert str(saved) in str(caught.value)
    assert name != "one bit" or "damaged: fetch it again, or train again" in str(caught.value)


def test_load_missing(tmp_path):
    for path in (tmp_path / "m.safetensors", tmp_path):
        for read in (xnn.load, files.metadata, small().load_weights):
            with pytest.raises(DataNotFoundError) as caught:
                read(path)
            assert str(path) in str(caught.value)


def test_load_weights(tmp_path, lib):
    """Into a model on any backend; the parameters stay there."""
    path = tmp_path / "m.safetensors"
    small(seed=1).save(path)
    model = small(seed=2)
    assert values(model) != values(small(seed=1))
    model.load_weights(path)
    assert values(model) == values(small(seed=1))
    assert model.backend is lib


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Sequential(Dense(3, 4)), r"unknown 2\.bias, 2\.weight"),
        (lambda: Sequential(*small().layers, Dense(2, 2)), r"missing 3\.bias, 3\.weight"),
        (lambda: Sequential(ReLU(), *small().layers), r"missing 1\.bias"),
        (lambda: Sequential(Dense(3, 4), ReLU(), Dense(4, 3)), r"2\.weight"),
        (lambda: small(dtype="float64"), r"float32.*float64"),
    ],
    ids=["fewer", "more", "elsewhere", "wider", "float64"],
)
def test_load_weights_that_do_not_fit(saved, model, message):
    """Nothing changes, not even the parameters that would have fitted."""
    model = model()
    for p in model.parameters():
        p.value = np.full(p.shape, 0.5, p.dtype)
    before = values(model)
    with pytest.raises(CorruptFileError, match=message):
        model.load_weights(saved)
    assert values(model) == before


@pytest.mark.parametrize("name", ["truncated body", "one bit", "foreign", "bfloat16"])
def test_load_weights_checks_the_file_too(saved, name):
    saved.write_bytes(DAMAGE[name](saved.read_bytes()))
    model = small(seed=9)
    before = values(model)
    with pytest.raises(CorruptFileError):
        model.load_weights(saved)
    assert values(model) == before


# ---------------------------------------------------------------- writing


def fails_with(error):
    def failing(*args, **options):
        raise error

    return failing


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("function", "there"),
    [
        ("open", False),
        ("fsync", False),
        ("replace", False),
        ("fsync", True),
        ("replace", True),
        ("chmod", True),
    ],
)
def test_write_on_a_full_disk(tmp_path, monkeypatch, function, there):
    path = tmp_path / "f"
    if there:
        path.write_bytes(b"before")
    monkeypatch.setattr(os, function, fails_with(FULL))
    with pytest.raises((DataError, OptionError), match="No space left") as caught:
        write_atomically(path, b"after")
    assert str(path) in str(caught.value)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"before")] * there


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_write_that_is_interrupted(tmp_path, monkeypatch, error):
    path = tmp_path / "f"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", fails_with(error))
    with pytest.raises(type(error)):
        write_atomically(path, b"after")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"before")]


def test_save_where_files_cannot_grow(tmp_path, capsys):
    """The kernel really refuses the bytes: a limit on file sizes stands in for a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.safetensors"
    small().save(path)
    before = path.read_bytes()
    large = Sequential(Dense(200, 200))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the file would have 160,000 bytes
    try:
        with pytest.raises(DataError, match="untouched"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
    large.save(path)
    assert values(xnn.load(path)) == values(large)


def test_write_keeps_and_sets_permissions(tmp_path):
    path, new = tmp_path / "f", tmp_path / "new"
    path.write_bytes(b"before")
    path.chmod(0o640)
    before = os.umask(0o027)
    try:
        write_atomically(path, b"after")
        write_atomically(new, b"")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"after"
    assert [p.stat().st_mode & 0o777 for p in (path, new)] == [0o640, 0o640]
    path.chmod(0o600)
    write_atomically(path, b"again")
    assert path.stat().st_mode & 0o777 == 0o600


def test_check_writable(tmp_path, monkeypatch):
    assert check_writable(str(tmp_path / "a.PNG"), (".png", ".svg")) == tmp_path / "a.PNG"
    assert check_writable(tmp_path / "any") == tmp_path / "any"
    assert list(tmp_path.iterdir()) == []  # it only looks
    for path, suffixes, message in (
        (tmp_path / "a.gif", (".png", ".svg"), r"\.png or \.svg"),
        (tmp_path, (), "folder"),
        (tmp_path / "no" / "f", (), "no folder"),
    ):
        with pytest.raises(OptionError, match=message) as caught:
            check_writable(path, suffixes)
        assert str(path) in str(caught.value)
    old = tmp_path / "old"
    old.touch()
    with monkeypatch.context() as patch:  # root may write everywhere
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(OptionError, match="no permission"):
            check_writable(old)
    monkeypatch.setattr(os, "open", fails_with(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(OptionError, match="Permission denied"):
        check_writable(tmp_path / "f")


def test_check_writable_below_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(OptionError, match="no folder"):
        check_writable(tmp_path / "f" / "g")


# ---------------------------------------------------------------- history and plot


def curve(epochs, *names):
    return History([{"epoch": n + 1, **dict.fromkeys(names, 1.0 / (n + 1))} for n in range(epochs)])


def test_history_columns_and_digest():
    history = curve(3, "loss")
    assert history["loss"] == [1.0, 0.5, 1 / 3]
    with pytest.raises(KeyError, match="the history has"):
        history["val_loss"]
    numbers = np.array([0.1, 2.0, 3.0], dtype=np.float32)
    history.add(numbers[:1], 5, 0.5)
    history.add(numbers[1:], 9, 1.5)
    assert (history.steps, history.samples, history.seconds) == (3, 14, 2.0)
    assert history.losses_sha256 == hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()
    assert (History().ms_per_step, History().samples_per_second) == (0.0, 0.0)
    assert History(steps=4, samples=8, seconds=2.0).ms_per_step == 500.0
    assert History(steps=4, samples=8, seconds=2.0).samples_per_second == 4.0


CURVES = [
    (5, ("loss", "accuracy", "val_loss", "val_accuracy"), 2),
    (1, ("loss", "accuracy"), 2),
    (3, ("loss", "val_loss"), 1),
    (0, (), 1),  # ended by Ctrl-C within the first epoch
]


@pytest.mark.parametrize(("epochs", "names", "panels"), CURVES)
def test_plot_svg(tmp_path, epochs, names, panels):
    pytest.importorskip("matplotlib")
    path = tmp_path / "c.svg"
    curve(epochs, *names).plot(path)
    ids = [e.get("id", "") for e in ET.parse(path).iter()]
    assert sum(i.startswith("axes_") for i in ids) == panels
    assert sum(i.startswith("legend_") for i in ids) == panels * (epochs > 0)


def test_a_history_shows_itself_in_a_few_lines():
    history = curve(300, "loss", "val_loss")
    history.epochs[-1]["confusion_matrix"] = [[0] * 100] * 100
    history.add(np.zeros(1200), 9600, 1.5)
    history.stopped = "enough"
    assert repr(history) == (
        "<History: 300 epochs, 1,200 steps, 9,600 samples, 1.50 s\n epoch 300  loss 0.0033  val_loss 0.0033\n"
        " stopped: enough>"
    )
    assert repr(History(interrupted=True)) == "<History: 0 epochs, 0 steps, 0 samples, 0.00 s\n interrupted>"


@pytest.mark.parametrize("epochs", [0, 3])
def test_plot_png(tmp_path, epochs):
    pytest.importorskip("matplotlib")
    path = tmp_path / "c.PNG"
    curve(epochs, "loss", "val_loss").plot(path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 300
    assert height > 300
    assert [p.name for p in tmp_path.iterdir()] == ["c.PNG"]


def test_plot_refuses(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match=r"\.png or \.svg"):
        curve(1, "loss").plot(tmp_path / "c.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        check_plot(tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_plot_on_a_full_disk(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(os, "fsync", fails_with(FULL))
    with pytest.raises(DataError, match="No space left"):
        curve(1, "loss").plot(tmp_path / "c.svg")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the log


def train(*callbacks, epochs=3):
    x, y = np.arange(30.0).reshape(10, 3) / 30, np.arange(10) % 2
    trainer = Trainer(small(), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=callbacks)
    history = trainer.fit((x, y), validation=(x, y), epochs=epochs, batch_size=4, progress=False)
    return trainer.model, history


def test_json_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start", "dataset": "older"}\n')
    _, history = train(JsonLines(path, {"dataset": "toy"}))
    start, *epochs, end = [json.loads(line) for line in path.read_text().splitlines()]
    assert (start["event"], start["dataset"], start["epochs"]) == ("start", "toy", 3)
    assert start["plan"] == history.plan
    assert [e["event"] for e in epochs] == ["epoch"] * 3
    for line, entry in zip(epochs, history.epochs, strict=True):
        assert {k: line[k] for k in entry} == entry  # a float64 survives JSON exactly
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "epoch"} <= entry.keys()
    assert (end["event"], end["steps"], end["interrupted"]) == ("end", 9, False)
    times = [line["seconds"] for line in (start, *epochs, end)]
    assert times == sorted(times)


def test_json_lines_are_there_while_training_runs(tmp_path):
    path = tmp_path / "log.jsonl"

    class Reader(xnn.training.trainer.Callback):
        seen = ()

        def on_epoch_end(self, history, entry):
            self.seen += (len(path.read_text().splitlines()),)

    reader = Reader()
    train(JsonLines(path), reader)
    assert reader.seen == (2, 3, 4)


def test_json_lines_refuse_a_place_at_once(tmp_path):
    with pytest.raises(OptionError, match="cannot write"):
        JsonLines(tmp_path / "missing" / "log.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_training_goes_on_when_the_log_is_full_from_the_start(capsys):
    model, history = train(JsonLines("/dev/full"))
    assert values(model) == values(train()[0])
    assert len(history.epochs) == 3
    err = capsys.readouterr().err
    assert err.count("/dev/full") == 1  # said once, not at every epoch
    assert "No space left" in err


def test_training_goes_on_when_the_disk_fills_up(tmp_path, monkeypatch, capsys):
    path = tmp_path / "log.jsonl"

    write, lines = os.write, []

    def fills_up(descriptor, content):
        """Two lines have room, and half of the third."""
        lines.append(content)
        if len(lines) > 3:
            raise FULL
        return write(descriptor, content[: len(content) // 2] if len(lines) == 3 else content)

    monkeypatch.setattr("xnn.callbacks.line_file.os.write", fills_up)
    model, history = train(JsonLines(path))
    assert values(model) == values(train()[0])
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "epoch"]
    assert len(history.epochs) == 3
    assert capsys.readouterr().err.count("No space left") == 1
