"""`xnn predict` of photos and folders of images, the forms of what it prints, and `xnn train` on a folder."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from command_line import one_json, refused, run

import xnn
from xnn import layers
from xnn.cli.predictions import Form, Lines, probabilities
from xnn.data import synthetic_digits
from xnn.data.digit_photos import read_digit
from xnn.layers import files

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def model(model, tmp_path):
    """The model of the other tests, as one that was trained on synthetic digits by their name."""
    files.save(xnn.load(model), tmp_path / "digits.safetensors", {"dataset": "synthetic", "features": 784})
    return tmp_path / "digits.safetensors"


@pytest.fixture
def photos(tmp_path):
    """Three photos of drawn digits, 2.png, 10.png and note.txt."""
    folder = tmp_path / "photos"
    folder.mkdir()
    x, _ = synthetic_digits(2, seed=5)
    for name, pixels in zip(("2.png", "10.png"), x.reshape(-1, 28, 28), strict=True):
        ink = np.asarray(Image.fromarray(pixels).resize((140, 140)), float) / 255
        Image.fromarray((220 - 180 * ink).astype(np.uint8)).save(folder / name)
    (folder / "note.txt").write_text("hello")
    return folder


def test_a_photo_is_prepared_as_the_samples_of_the_model(model, photos):
    net, digit = xnn.load(model), read_digit(photos / "2.png")
    result = run("predict", model, photos / "2.png", "--show")
    assert result.stdout == f"{net.predict_classes(digit.reshape(1, -1))[0]}\n"
    first, *picture, said = result.stderr.splitlines()
    assert first == "2.png, as the network sees it:"
    assert len(picture) == 30
    drawn = np.array([[c != " " for c in line[1:-1:2]] for line in picture[1:-1]])
    np.testing.assert_array_equal(drawn, digit >= 256 / 5)
    assert "prepared as MNIST's digits are" in said


def test_a_folder_in_the_order_of_its_names_and_every_form(model, photos):
    net = xnn.load(model)
    x = np.stack([read_digit(photos / name).reshape(-1) for name in ("2.png", "10.png")])
    outputs = net.predict(x).astype(np.float64)
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    classes = outputs.argmax(axis=1).tolist()
    result = run("predict", model, photos)
    assert result.stdout == f"2.png: {classes[0]}\n10.png: {classes[1]}\n"
    assert "1 neither PNG nor JPEG: skipped" in result.stderr
    rows = list(csv.DictReader(io.StringIO(run("predict", model, photos, "--csv", "--proba").stdout)))
    assert [(row["file"], int(row["prediction"])) for row in rows] == list(
        zip(("2.png", "10.png"), classes, strict=True)
    )
    got = [[float(row[f"probability_{n}"]) for n in range(10)] for row in rows]
    np.testing.assert_allclose(got, shares, atol=1e-6)
    report = one_json(run("predict", model, photos, "--json", "--proba"))
    assert report.pop("labels") == list(range(10))
    np.testing.assert_allclose(report.pop("probabilities"), shares, atol=1e-6)
    assert report == {"predictions": classes, "files": ["2.png", "10.png"], "accuracy": None}
    top = one_json(run("predict", model, photos, "--json", "--top", 2))["top"]
    assert [[pair["label"] for pair in row] for row in top] == np.argsort(-outputs, axis=1)[:, :2].tolist()
    text = run("predict", model, photos, "--top", 2).stdout.splitlines()
    assert text[0].startswith(f"2.png: {classes[0]} {shares[0].max():.4f}, ")
    table = run("predict", model, photos, "--top", 1, "--csv").stdout.splitlines()
    assert table[0] == "file,prediction,label_1,probability_1"
    assert run("predict", model, photos, "--proba").stdout.count(", 9 0.") == 2


def test_resize_and_none(model, photos):
    net = xnn.load(model)
    pixels = Image.open(photos / "2.png").resize((28, 28), Image.Resampling.BILINEAR)
    expected = net.predict_classes(np.asarray(pixels).reshape(1, -1))[0]
    result = run("predict", model, photos / "2.png", "--prepare", "resize")
    assert (result.stdout, result.stderr) == (f"{expected}\n", "xnn: 1 of 1 resized to 28x28\n")
    refused(run("predict", model, photos / "2.png", "--prepare", "none"), 4, "140x140", "28x28")
    pixels.save(photos / "2.png")
    result = run("predict", model, photos / "2.png", "--prepare", "none")
    assert (result.stdout, result.stderr) == (f"{expected}\n", "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("broken.png",), 4, "broken.png is no PNG or JPEG"),
        (("white.png",), 4, "no digit stands out"),
        (("none.png",), 4, "none.png"),
        (("a.gif",), 2, "images must be PNG or JPEG"),
        (("empty",), 4, "holds no PNG or JPEG"),
        (("white.png", "--header"), 2, "--header"),
        (("synthetic", "--show"), 2, "--show and --prepare are for images"),
        (("synthetic", "--proba", "--top", 2), 2, "omit one"),
        (("synthetic", "--csv", "--json"), 2, "omit one"),
        (("synthetic", "--top", 0), 2, "--top"),
    ],
)
def test_what_is_refused(model, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "a.gif").write_bytes(b"x")
    Image.new("L", (50, 50), 255).save("white.png")
    refused(run("predict", model, *words), code, message)


@pytest.mark.parametrize(
    ("inputs", "notes", "message"),
    [
        (4, {"columns": {"names": [], "features": [0, 1, 2, 3], "targets": [4]}}, "was trained on a table"),
        (64, {"dataset": "digits"}, "from 0 to 16"),
        (7, {}, "no square image"),
        (4, {"image": [2]}, ""),
        (4, {"image": ["a"]}, "its notes say that image"),
        (4, {"task": "regression"}, ""),
    ],
)
def test_models_that_take_no_images_say_so(tmp_path, inputs, notes, message):
    files.save(xnn.Sequential(layers.Dense(inputs, 2), seed=0), tmp_path / "m.safetensors", notes)
    Image.new("L", (2, 2), 9).save(tmp_path / "x.png")
    result = run("predict", tmp_path / "m.safetensors", tmp_path / "x.png")
    assert (result.exit_code != 0) == bool(message)
    assert message in result.stderr
    if notes.get("task"):
        refused(
            run("predict", tmp_path / "m.safetensors", tmp_path / "x.png", "--top", 1), 2, "predicts numbers"
        )


def test_one_output_is_the_probability_of_class_1(tmp_path):
    net = xnn.Sequential(layers.Dense(1, 1), seed=0)
    net[0].weight.value = [[1.0]]
    files.save(net, tmp_path / "m.safetensors", {"labels": ["no", "yes"]})
    np.save(tmp_path / "x.npy", np.array([[0.0], [np.log(3.0)], [-800.0]]))
    report = one_json(run("predict", tmp_path / "m.safetensors", tmp_path / "x.npy", "--json", "--proba"))
    np.testing.assert_allclose(report["probabilities"], [[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]], atol=1e-6)
    assert report["labels"] == ["no", "yes"]


def test_infinite_outputs_have_no_probabilities(model):
    shares = probabilities("m", xnn.load(model), np.array([[np.inf, 0.0], [-np.inf, 0.0]]), "")
    np.testing.assert_array_equal(shares, [[np.nan, np.nan], [0.0, 1.0]])


def test_train_on_a_folder_and_predict_in_its_names(tmp_path):
    random = np.random.default_rng(0)
    for name, color in (("red", 0), ("blue", 2)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 90, (9, 5, 3), np.uint8)
            pixels[..., color] += 150
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    words = ("train", "--dataset", tmp_path / "pets", "--hidden", 8, "--epochs", 8, "--batch-size", 4)
    result = run(
        *words, "--image-size", "6x4", "--save", tmp_path / "m.safetensors", "--record", tmp_path / "r.jsonl"
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.count("24 of 24 images were resized to 6x4") == 1
    result = run("predict", tmp_path / "m.safetensors", tmp_path / "pets" / "red", "--csv")
    assert result.stdout.splitlines()[1:] == [f"{number}.png,red" for number in range(12)]
    assert "12 of 12 resized to 6x4" in result.stderr
    assert '"image_size": [6, 4]' in (tmp_path / "r.jsonl").read_text()
    refused(run(*words, "--image-size", "6"), 2, "height x width")


#: Labels and names that are commands to a terminal, or that a table must quote.
STRANGE = ("r\x1b[31m", "a\nb", "c\rd", "e\r\nf", 'q"uote', "co,mma", "=1+1", "t\tab", "x\u2028y", " s ", "é")


def test_a_table_has_names_and_labels_as_they_are_and_a_terminal_has_them_escaped(capsys):
    def printed(on_terminal):
        with Lines(Form(csv=True, proba=True)) as lines:
            lines.on_terminal = on_terminal
            lines.add(list(STRANGE), STRANGE, np.eye(len(STRANGE)), STRANGE)
            lines.show(None)
        return capsys.readouterr().out

    text = printed(False)
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == ["file", "prediction", *(f"probability_{label}" for label in STRANGE)]
    assert [tuple(row[:2]) for row in rows] == [(label, label) for label in STRANGE]
    assert "=1+1,=1+1," in text
    text = printed(True)
    assert text.count("\n") == len(STRANGE) + 1
    assert text.replace("\n", "").isprintable()


def test_names_that_are_no_text_are_printed_in_every_form(model, photos):
    """A file system may hold names of any bytes."""
    try:
        (photos / "2.png").rename(photos / "\udcff.png")
    except OSError:  # one that holds text alone
        pytest.skip("this file system holds no such names")
    assert run("predict", model, photos).stdout.splitlines()[1].startswith(r"\udcff.png: ")
    assert run("predict", model, photos, "--csv").stdout.splitlines()[2].startswith(r"\udcff.png,")
    assert one_json(run("predict", model, photos, "--json"))["files"][1] == "\udcff.png"
