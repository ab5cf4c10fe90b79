"""`xnn export` and `xnn import`: files that commands write and read, their notes, and what is refused."""

import json

import numpy as np
import pytest
from command_line import command, refused, run

import xnn
from xnn import exchange, layers
from xnn.layers import files

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")


@pytest.fixture(scope="module")
def table(folder):
    """A classifier of a table with names of classes, and a regression with scaled targets."""
    for name, words in (("two", ("--target", "kind")), ("numbers", ("--scale-target",))):
        where = folder / f"{name}.safetensors"
        words = (
            "train",
            "--dataset",
            folder / f"{name}.csv",
            *words,
            "--hidden",
            "5",
            "--epochs",
            1,
            "--quiet",
        )
        result = run(*words, "--save", where)
        assert result.exit_code == 0, result.output
    return folder


def evaluated(path, x):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(None, {"x": x})[0]


@pytest.mark.parametrize("name", ["two", "numbers"])
def test_a_model_of_a_table_takes_rows_as_they_are(table, tmp_path, name):
    model, out = table / f"{name}.safetensors", tmp_path / "net.onnx"
    result = run("export", model, out)
    assert (result.exit_code, result.output) == (0, "")
    x = np.random.default_rng(1).normal(size=(9, 4))
    np.testing.assert_allclose(evaluated(out, x), xnn.load(model).predict(x), rtol=1e-5, atol=1e-6)
    kept = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}
    assert kept["labels" if name == "two" else "task"] == (["no", "yes"] if name == "two" else "regression")
    assert kept["columns"]["names"][1:4] == ["b", "c", "d"]
    assert kept["features"] == 4


def test_the_shape_of_samples_may_be_given(tmp_path):
    model = tmp_path / "net.safetensors"
    xnn.Sequential(layers.Conv2D(1, 2, 3), layers.GlobalAvgPool(), layers.Dense(2, 3), seed=0).save(model)
    refused(
        run("export", model, tmp_path / "net.onnx"),
        2,
        "needs the shape of one sample",
        "--input-shape 1,28,28",
    )
    assert run("export", model, tmp_path / "net.onnx", "--input-shape", "1,6,5").exit_code == 0
    x = np.random.default_rng(0).normal(size=(3, 1, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(
        evaluated(tmp_path / "net.onnx", x), xnn.load(model).predict(x), rtol=1e-5, atol=1e-6
    )
    refused(run("export", model, tmp_path / "net.onnx", "--input-shape", "2,6,5"), 4, "takes images")
    refused(run("export", model, tmp_path / "net.onnx", "--input-shape", "a"), 2, "positive integers")


def test_what_is_refused(table, tmp_path):
    model = table / "two.safetensors"
    refused(run("export", tmp_path / "no", tmp_path / "net.onnx"), 4, "there is no file")
    refused(run("export", model, tmp_path / "net.txt"), 2, "must end in .onnx")
    refused(run("export", model, model), 2, "must end in .onnx")
    own = tmp_path / "own.safetensors"
    xnn.Sequential(layers.Dense(3, 2), layers.Lambda(np.tanh), seed=0).save(own)
    refused(run("export", own, tmp_path / "net.onnx"), 2, "Lambda(tanh)", "not one of xnn's own layers")


def test_all_formats_at_once(table, tmp_path):
    model = table / "two.safetensors"
    words = (
        tmp_path / "net.onnx",
        "--c",
        tmp_path / "net.c",
        "--torch",
        tmp_path / "net.py",
        "--name",
        "flower",
    )
    result = run("export", model, *words)
    assert (result.exit_code, result.output) == (0, "")
    names = {"net.onnx", "net.c", "net.py", "net_weights.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "void flower_predict(const double *x, float *y)" in (tmp_path / "net.c").read_text()


def test_options_of_formats_that_do_not_fit(table, tmp_path):
    model = table / "two.safetensors"
    refused(run("export", model), 2, "nothing is to be written")
    refused(
        run("export", model, "--name", "net", "--torch", tmp_path / "net.py"),
        2,
        "--name net is for the function",
    )
    refused(run("export", model, "--c", tmp_path / "net.c", "--name", "1"), 2, "beginning of a name of C")
    refused(run("export", model, "--c", tmp_path / "net.cpp"), 2, "must end in .c")
    refused(run("export", model, "--torch", tmp_path / "net.pt"), 2, "must end in .py")
    refused(
        run("export", model, tmp_path / "net.onnx", "--c", tmp_path / "no" / "net.c"), 2, "there is no folder"
    )
    weights = tmp_path / "net_weights.safetensors"
    weights.write_bytes(model.read_bytes())
    refused(
        run("export", weights, "--torch", tmp_path / "net.py"), 2, "the weights of --torch would overwrite"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net_weights.safetensors"]


def test_a_model_comes_back_with_its_notes(table, tmp_path):
    model = table / "two.safetensors"
    assert run("export", model, tmp_path / "net.onnx").exit_code == 0
    result = run("import", tmp_path / "net.onnx", tmp_path / "back.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout == "".join(f"{n} {layer!r}\n" for n, layer in enumerate(xnn.load(model)))
    assert files.metadata(tmp_path / "back.safetensors")["notes"] == files.metadata(model)["notes"]
    first, second = (
        run("predict", path, table / "two.csv") for path in (model, tmp_path / "back.safetensors")
    )
    assert (first.exit_code, first.output) == (0, second.output)
    assert set(first.stdout.split()) == {"no", "yes"}


def test_rows_of_a_table_are_images_of_an_imported_network(tmp_path):
    images = layers.Reshape((1, 2, 2)), layers.Conv2D(1, 2, 1), layers.Flatten(), layers.Dense(8, 3)
    exchange.to_onnx(xnn.Sequential(*images, seed=0), tmp_path / "net.onnx")
    assert run("import", tmp_path / "net.onnx", tmp_path / "net.safetensors").exit_code == 0
    (tmp_path / "rows.csv").write_text("1,2,3,4\n5,6,7,8\n")
    result = run("predict", tmp_path / "net.safetensors", tmp_path / "rows.csv")
    assert (result.exit_code, len(result.stdout.split())) == (0, 2), result.output


def test_metadata_that_mean_something_else_are_left_out(table, tmp_path):
    """They would keep `xnn predict` from reading the model."""
    assert run("export", table / "two.safetensors", tmp_path / "net.onnx").exit_code == 0
    network = onnx.load(tmp_path / "net.onnx")
    others = {"labels": '"no, yes"', "task": '"detect"', "classes": "[" * 3000, "features": "2"}
    onnx.helper.set_model_props(network, others)
    onnx.save(network, tmp_path / "net.onnx")
    assert run("import", tmp_path / "net.onnx", tmp_path / "net.safetensors").exit_code == 0
    assert files.metadata(tmp_path / "net.safetensors")["notes"] == {"features": 2}


def test_what_an_import_refuses(table, tmp_path):
    network, out = tmp_path / "net.onnx", tmp_path / "net.safetensors"
    refused(run("import", network, out), 4, "there is no file")
    refused(run("import", network, tmp_path / "net.txt"), 2, "must end in .safetensors")
    network.write_bytes(b"nothing")
    refused(run("import", network, out), 4, "is not an ONNX file that can be read")
    helper = onnx.helper
    sides = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Hardmax", ["x"], ["y"], name="end")], "g", sides[:1], sides[1:]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), network)
    refused(
        run("import", network, out), 4, "the node 'end' is the operator Hardmax, for which xnn has no layer"
    )
    assert not out.exists()


def test_without_the_package_onnx(table, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    refused(run("export", table / "two.safetensors", tmp_path / "net.onnx"), 1, 'pip install ".[onnx]"')
    refused(run("import", "net.onnx", tmp_path / "net.safetensors"), 1, 'pip install ".[onnx]"')


def test_the_help_needs_no_onnx():
    done = command("export", "--help")
    assert done.returncode == 0
    assert "Write a trained model" in done.stdout


def test_a_folder_and_a_checkpoint_in_the_place_of_a_model(table, tmp_path):
    words = ("--dataset", table, "--hidden", 4, "--epochs", 1, "--quiet", "--checkpoint", tmp_path / "ck")
    assert run("train", *words).exit_code == 0
    refused(run("export", tmp_path / "ck", tmp_path / "net.onnx"), 4, "is a folder: name a file in it")
    last = next((tmp_path / "ck").glob("step*.safetensors"))
    refused(
        run("export", last, tmp_path / "net.onnx"), 4, "xnn train --resume --save FILE makes a model file"
    )
    saved = tmp_path / "net.safetensors"
    assert run("train", *words, "--resume", "--save", saved).exit_code == 0
    assert run("export", saved, tmp_path / "net.onnx").exit_code == 0
