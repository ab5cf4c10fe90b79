"""The report of a run: what it gathers, against the definitions; its text, size, and what is said to be missing."""

import base64
import json
import re
import zlib

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.report import Examples, Run, gather, page_of
from xnn.report.of_trainer import run_of_trainer
from xnn.report.page import LARGEST
from xnn.report.picture import png, sheet, small

HOSTILE = "</script><script>alert(1)</script>\u2028'\"&{{data}}<!--"
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (90, 16)).astype(np.uint8)
Y = RNG.integers(0, 3, 90)


def fitted(*watchers, epochs=2, loss=None, outputs=3, y=Y):
    model = xnn.Sequential(
        layers.Rescale(1 / 255), layers.Dense(16, 5), layers.ReLU(), layers.Dense(5, outputs), seed=0
    )
    trainer = xnn.Trainer(
        model, loss or losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=watchers
    )
    trainer.fit((X, y), validation=(X[:9], y[:9]), epochs=epochs, progress=False)
    return trainer


def data_in(page):
    """The JSON in a page, read as a browser reads it."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def pixels_of(address):
    """The bytes of a grey or palette PNG in a data: address, (height, width)."""
    file = base64.b64decode(address.partition(",")[2])
    width, height = (int.from_bytes(file[at : at + 4], "big") for at in (16, 20))
    at = file.index(b"IDAT")
    length = int.from_bytes(file[at - 4 : at], "big")
    rows = zlib.decompress(file[at + 4 : at + 4 + length])
    return np.frombuffer(rows, np.uint8).reshape(height, width + 1)[:, 1:]


def test_what_a_trainers_report_shows(tmp_path):
    trainer = fitted(callbacks.Checkpoint(tmp_path, keep=9), epochs=3)
    (run,) = gather([run_of_trainer(trainer, (X, Y))], 10**6)["runs"]
    assert run["curves"]["epoch"] == [1, 2, 3]
    np.testing.assert_allclose(run["curves"]["series"]["val_loss"], trainer.history["val_loss"], rtol=1e-5)
    assert [step["step"] for step in run["snapshots"]["steps"]] == [3, 6, 9]
    assert run["layers"]["parameters"] == 16 * 5 + 5 + 5 * 3 + 3
    assert [row["after"] for row in run["layers"]["rows"]] == [[16], [5], [5], [3]]
    assert run["layers"]["operations"] == sum(row["operations"] for row in run["layers"]["rows"])
    found, said = run["classes"], trainer.model.predict_classes(X)
    for true in range(3):
        for predicted in range(3):
            there = np.flatnonzero((true == Y) & (said == predicted))
            assert found["matrix"][true][predicted] == len(there)
            shown = found["cells"].get(f"{true},{predicted}", [])
            rows = [found["gallery"][item["item"]]["row"] for item in shown]
            assert len(rows) == min(12, len(there))
            assert set(rows) <= set(there.tolist())
    sure = [item["sure"] for item in found["wrong"]]
    assert sure == sorted(sure, reverse=True)
    assert all(item["true"] != item["said"] for item in found["wrong"])
    first = found["gallery"][0]
    assert pixels_of(first["image"]).tolist() == X[first["row"]].reshape(4, 4).tolist()
    assert run["facts"]["Digests (SHA-256)"]["losses of all steps"] == trainer.history.losses_sha256


def test_histograms_have_the_numbers_of_the_weights_gradients_and_outputs(tmp_path):
    trainer = fitted(callbacks.Checkpoint(tmp_path, keep=9))
    (run,) = gather([run_of_trainer(trainer, (X, Y))], 10**6)["runs"]
    steps = run["snapshots"]["steps"]
    weight = trainer.model[1].weight.value
    assert steps[-1]["weights"]["1.weight"]["norm"] == pytest.approx(float(np.linalg.norm(weight)), rel=1e-3)
    assert sum(steps[-1]["weights"]["1.weight"]["counts"]) == weight.size
    for name in ("1.weight", "3.bias"):
        assert len({(step["weights"][name]["low"], step["weights"][name]["high"]) for step in steps}) == 1
    loss = losses.SoftmaxCrossEntropy()
    loss.forward(trainer.model.forward(X), Y)
    trainer.model.backward(loss.backward())
    slope = trainer.model[1].weight.grad
    assert steps[-1]["gradients"]["1.weight"]["norm"] == pytest.approx(float(np.linalg.norm(slope)), rel=1e-3)
    assert sum(steps[-1]["outputs"]["2 ReLU"]["counts"]) == 90 * 5
    assert steps[-1]["outputs"]["2 ReLU"]["low"] == 0.0


def test_the_model_is_left_as_it_is(tmp_path):
    trainer = fitted(callbacks.Checkpoint(tmp_path, keep=9))
    before = [p.value.copy() for p in trainer.model.parameters()]
    trainer.report(tmp_path / "r.html", (X, Y))
    for parameter, value in zip(trainer.model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.value, value)
    after = trainer.fit((X, Y), epochs=1, progress=False)["loss"]
    assert after == fitted(epochs=3).history["loss"][-1:]


def test_texts_of_files_stay_texts():
    model = xnn.Sequential(layers.Dense(16, 3), seed=0)
    run = Run(HOSTILE, [{"epoch": 1, HOSTILE: 0.5}], model, labels=(HOSTILE, "b", "c"), command=HOSTILE)
    run.examples = Examples(X.astype(np.float32), Y, HOSTILE, columns=(HOSTILE,) * 16)
    run.facts = {HOSTILE: {HOSTILE: HOSTILE}}
    page = page_of([run])
    assert page.count("<script") == page.count("</script") == 2
    assert "alert(1)</script" not in page
    assert page.count("<!--") == 1  # the second line
    (found,) = data_in(page)["runs"]
    assert found["name"] == found["command"] == found["classes"]["names"][0] == HOSTILE
    assert found["facts"] == {HOSTILE: {HOSTILE: HOSTILE}}
    assert HOSTILE in found["classes"]["gallery"][0]["text"]


def test_a_page_asks_for_nothing_and_runs_only_its_own_script():
    import hashlib

    page = page_of([Run("a")])
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "default-src 'none'" in page
    (digest,) = re.findall(r"script-src 'sha256-([^']+)'", page)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == digest


def test_a_page_of_large_images_and_weights_is_small_enough():
    x = RNG.integers(0, 256, (1500, 3 * 64 * 64)).astype(np.uint8)
    y = np.arange(1500) % 50
    model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(3 * 64 * 64, 50), seed=0)
    runs = [Run(name, [{"epoch": n, "loss": 1 / n} for n in range(1, 3000)], model) for name in "ab"]
    for run in runs:
        run.examples = Examples(x.reshape(-1, 3, 64, 64).reshape(1500, -1), y, "noise", (64, 64))
        run.snapshots = []
    page = page_of(runs)
    assert len(page.encode()) < LARGEST
    found = data_in(page)["runs"][0]
    assert len(found["curves"]["epoch"]) <= 601
    assert found["curves"]["epoch"][-1] == 2999
    assert len(found["classes"]["kept"]) == 40
    assert found["classes"]["gallery"]


def test_what_is_missing_is_said():
    (run,) = gather([run_of_trainer(fitted())], 10**6)["runs"]
    assert "data=(x_test, y_test)" in run["classes"]
    assert "samples" in run["snapshots"]["notes"][0]
    assert "no weights" not in json.dumps(run)
    (run,) = gather([run_of_trainer(fitted(), (X, Y + 5))], 10**6)["runs"]
    assert (
        run["classes"]
        == "the samples given to report has classes up to 7, and the model knows 3: name other data (--data)."
    )


def test_a_single_output_and_a_regression():
    yes = (Y > 0).astype(np.float32)[:, None]
    trainer = fitted(loss=losses.BinaryCrossEntropy(), outputs=1, y=yes)
    found = gather([run_of_trainer(trainer, (X, yes[:, 0].astype(int)))], 10**6)["runs"][0]["classes"]
    said = trainer.model.predict(X)[:, 0] > 0
    assert found["matrix"][1][1] == int((said & (yes[:, 0] == 1)).sum())
    assert found["calibration"]["error"] == pytest.approx(
        xnn.metrics.CalibrationError()(trainer.model.predict(X), yes), abs=1e-3
    )
    numbers = X[:, :1] / 255.0
    trainer = fitted(loss=losses.MSE(), outputs=1, y=numbers)
    found = gather([run_of_trainer(trainer, (X, numbers))], 10**6)["runs"][0]["classes"]
    worst = int(np.abs(trainer.model.predict(X) - numbers).argmax())
    assert found["gallery"][found["wrong"][0]["item"]]["row"] == worst
    assert found["scores"]["RMSE"] == pytest.approx(
        np.sqrt(np.mean((trainer.model.predict(X) - numbers) ** 2)), rel=1e-4
    )


@pytest.mark.parametrize("loss", [losses.SoftmaxCrossEntropy(), losses.MSE()])
def test_in_exact_numerics_it_shows_the_same_kinds_of_numbers(loss):
    y = Y if isinstance(loss, losses.SoftmaxCrossEntropy) else RNG.normal(size=(90, 1))
    with xnn.numerics("exact"):
        trainer = fitted(loss=loss, outputs=3 if y.ndim == 1 else 1, y=y)
        (run,) = gather([run_of_trainer(trainer, (X, y))], 10**6)["runs"]
    assert run["classes"]["kind"] == ("classes" if y.ndim == 1 else "numbers")
    outputs = trainer.model.predict(X)
    if y.ndim == 1:
        assert run["classes"]["accuracy"] == pytest.approx((outputs.argmax(axis=1) == y).mean(), abs=1e-5)
    else:
        error = np.abs(outputs.astype(float) - y).mean()
        assert run["classes"]["scores"]["MAE"] == pytest.approx(error, rel=1e-4)


def test_what_the_targets_are_follows_from_the_loss():
    """One-hot rows are classes for a cross-entropy, and integers are numbers for a distance."""
    trainer = fitted(epochs=1)
    of_labels, of_rows, of_none = (
        gather([run_of_trainer(trainer, data)], 10**5)["runs"][0]["classes"]
        for data in ((X, Y), (X, np.eye(3, dtype=int)[Y]), (X[:0], Y[:0]))
    )
    assert of_rows == of_labels
    assert "holds no samples" in of_none
    trainer = fitted(epochs=1, loss=losses.MSE(), outputs=1, y=Y[:, None])
    assert run_of_trainer(trainer, (X, Y[:, None])).task == "regression"


def test_bad_arguments(tmp_path):
    trainer = fitted(epochs=1)
    with pytest.raises(OptionError, match=r"must end in \.html"):
        trainer.report(tmp_path / "a.txt")
    with pytest.raises(OptionError, match="pair"):
        trainer.report(tmp_path / "a.html", X)
    with pytest.raises(ShapeError, match="a target for each"):
        trainer.report(tmp_path / "a.html", (X, Y[:5]))
    with pytest.raises(DTypeError, match="class c as the integer c"):
        trainer.report(tmp_path / "a.html", (X, Y.astype(str)))
    assert list(tmp_path.iterdir()) == []


def test_pictures():
    image = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
    address = "," + base64.b64encode(png(image)).decode()
    assert pixels_of(address).tolist() == image.tolist()
    assert small(np.arange(16.0).reshape(4, 4), 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]
    tiles = np.array([[[0.0, 2.0]], [[-1.0, np.nan]]])
    found = pixels_of("," + base64.b64encode(sheet(tiles)).decode())
    assert found[:, :2].tolist()[0] == [127, 254]


class Halved(xnn.Sequential):
    """A model that computes in a way of its own, so that nobody knows what its layers take."""

    buildable = False

    def compute(self, x, training):
        return self.layers[0].run(x, training) + self.layers[1].run(x, training)


def test_inner_layers_are_shown_with_what_they_take_and_give():
    inner = layers.Sequential(layers.Dense(5, 4), layers.ReLU())
    both = layers.Parallel(layers.Add(layers.Identity(), layers.Tanh()), inner)
    model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(16, 5), both, layers.Dense(9, 3), seed=0)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    trainer.fit((X, Y), epochs=1, progress=False)
    (run,) = gather([run_of_trainer(trainer, (X, Y))], 10**6)["runs"]
    found = [(row["depth"], row["kind"], row["before"], row["after"]) for row in run["layers"]["rows"]]
    assert [row["branch"] for row in run["layers"]["rows"]] == [0, 0, 0, 1, 1, 2, 2, 0, 0, 0]
    assert found[2:-1] == [
        (0, "Parallel", [5], [9]),
        (1, "Add", [5], [5]),
        (2, "Identity", [5], [5]),
        (2, "Tanh", [5], [5]),
        (1, "Sequential", [5], [4]),
        (2, "Dense", [5], [4]),
        (2, "ReLU", [4], [4]),
    ]
    outputs = run["snapshots"]["steps"][-1]["outputs"]
    names = [
        "2 Parallel",
        "2.0 Add",
        "2.0.0 Identity",
        "2.0.1 Tanh",
        "2.1 Sequential",
        "2.1.0 Dense",
        "2.1.1 ReLU",
    ]
    assert list(outputs)[2:-1] == names
    hidden = inner.forward(model[1].forward(model[0].forward(X)))
    assert outputs["2.1.1 ReLU"]["mean"] == pytest.approx(float(hidden.mean()), rel=1e-3)
    assert {"2.1.0.weight", "3.weight"} <= set(run["snapshots"]["steps"][-1]["gradients"])


@pytest.mark.parametrize("outer", [lambda model: model, xnn.Sequential])
def test_inside_a_container_of_yours_nothing_is_guessed(outer):
    model = outer(Halved(layers.Dense(16, 3), layers.Dense(16, 3), seed=0))
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    trainer.fit((X / 255, Y), epochs=1, progress=False)
    (run,) = gather([run_of_trainer(trainer, (X / 255, Y))], 10**6)["runs"]
    assert [row["kind"] for row in run["layers"]["rows"]] == ["Halved"]
    assert [name.split()[-1] for name in run["snapshots"]["steps"][-1]["outputs"]] == ["Halved"]
