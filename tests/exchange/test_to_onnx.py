"""Models as ONNX files: checked by onnx.checker, and run by onnxruntime beside predict."""

import inspect
import json

import exported_models
import numpy as np
import pytest

import xnn
from xnn import exchange, initializers, layers, losses, ops, optimizers
from xnn.errors import DTypeError, MissingExtraError, OptionError, ShapeError
from xnn.layers import Function, Sequential

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
MODELS = list(exported_models.all_models())


def session(path):
    """onnxruntime, on one thread."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "model", "shape", "positive"), MODELS, ids=[case[0] for case in MODELS])
def test_onnxruntime_computes_what_predict_does(name, model, shape, positive, tmp_path):
    path = tmp_path / "net.onnx"
    exchange.to_onnx(model, path, shape)
    onnx.checker.check_model(str(path), full_check=True)
    run = session(path)
    for count in (1, 7, 256):
        x = exported_models.samples(model, shape, count, positive)
        right, (found,) = model.predict(x), run.run(None, {"x": x})
        assert found.dtype == right.dtype
        assert found.shape == right.shape
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


def test_every_layer_that_a_file_can_hold_is_exported():
    """A new layer needs a row in xnn.exchange.weighted, or its op one in xnn.exchange.functions."""
    assert exported_models.OF_LAYERS.keys() == layers.Layer.own.keys()
    for name, cases in exported_models.OF_LAYERS.items():
        for inside, _ in cases:
            kinds = {type(layer).__name__ for layer in Sequential(*inside).all_layers()}
            assert name in kinds


def test_every_op_of_one_input_is_exported_or_left_out_for_a_reason():
    names = set()
    for name in ops.__all__:
        op = getattr(ops, name)
        if isinstance(op, ops.Op):
            inputs = [
                p
                for p in list(inspect.signature(op.forward).parameters.values())[1:]
                if p.kind is not p.KEYWORD_ONLY
            ]
            if len([p for p in inputs if p.default is p.empty]) == 1:
                names.add(name)
    tried = {name for name in names if any(case.op is getattr(ops, name) for case in TRIED)}
    assert names - tried == exported_models.WITHOUT_A_FORM.keys()


TRIED = [*exported_models.OF_OPS, *exported_models.OF_POSITIVE]


@pytest.mark.parametrize(
    "name", ["Dense", "BatchNorm", "LayerNorm", "Rescale", "Add", "GELU", "Softplus", "Conv2D"]
)
def test_models_of_float64(name, tmp_path):
    """onnx's own evaluator has all operators in float64, and onnxruntime lacks some of them."""
    from onnx.reference import ReferenceEvaluator

    def widened(layer):
        config = layer.config()
        inner = [widened(one) for one in config.pop("layers", ())]
        config = {**config, "dtype": "float64"} if "dtype" in config else config
        config.pop("seed", None)
        return type(layer)(*inner, **config)

    for inside, shape in exported_models.OF_LAYERS[name]:
        model = exported_models.changed(Sequential(*map(widened, inside), seed=1))
        if model.first_array() is None and name == "LayerNorm":
            continue  # predict gives it float32, which it refuses
        exchange.to_onnx(model, tmp_path / "net.onnx", shape)
        x = exported_models.samples(model, shape, 5).astype(np.float64)
        (found,) = ReferenceEvaluator(str(tmp_path / "net.onnx")).run(
            None, {"x": x.astype(_input_dtype(tmp_path))}
        )
        if any(layer.parameters() for layer in model):
            assert _input_dtype(tmp_path) == np.float64
        np.testing.assert_allclose(found, model.predict(x), rtol=1e-6, atol=1e-6)


def _input_dtype(folder):
    graph = onnx.load(folder / "net.onnx").graph
    return onnx.helper.tensor_dtype_to_np_dtype(graph.input[0].type.tensor_type.elem_type)


def test_what_the_file_says(tmp_path):
    model = Sequential(layers.Dense(3, 2), seed=4)
    exchange.to_onnx(
        model, tmp_path / "net.onnx", notes={"labels": ["cat", "dög", 3], "task": "classification"}
    )
    file = onnx.load(tmp_path / "net.onnx")
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 20)]
    assert file.ir_version == 9
    assert (file.producer_name, file.producer_version) == ("xnn", xnn.__version__)
    kept = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
    assert kept == {"seed": 4, "labels": ["cat", "dög", 3], "task": "classification"}
    (x,) = file.graph.input
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["n", 3]
    assert {array.name for array in file.graph.initializer} == {"0.weight", "0.bias"}


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = Sequential(layers.Dense(3, 2), layers.Softplus(2.0), seed=4)
    for name in ("a.onnx", "b.onnx"):
        exchange.to_onnx(model, tmp_path / name, notes={"b": 1, "a": 2})
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_trained_network_of_images(tmp_path):
    """Scaling, a residual connection and augmentation together, after some steps that move the running statistics."""
    block = Sequential(layers.Conv2D(4, 4, 3, padding=1), layers.BatchNorm(4), layers.SiLU())
    model = Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 8, 8)), *layers.augmentation((8, 8), 0.5),
        layers.Conv2D(1, 4, 3, padding="same"), layers.ReLU(), layers.Add(layers.Identity(), block),
        layers.MaxPool2D(2), layers.Flatten(), layers.Dropout(0.1), layers.Dense(64, 3), seed=2,
    )  # fmt: skip
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (60, 64)).astype(np.uint8), random.integers(0, 3, 60)
    xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01)).fit(
        (x, y), epochs=2, progress=False
    )
    exchange.to_onnx(model, tmp_path / "net.onnx")
    (found,) = session(tmp_path / "net.onnx").run(None, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-5)


def test_every_backend_writes_the_same_file_and_reads_it(lib, tmp_path):
    def model():
        inside = [layers.Dense(4, 6), layers.BatchNorm(6), layers.GELU(), layers.Dense(6, 2)]
        return Sequential(layers.Rescale(0.5), *inside, seed=1)

    exchange.to_onnx(model(), tmp_path / "there.onnx")
    exchange.to_c(model(), tmp_path / "there.c", "net")
    with xnn.backend("numpy"):
        here = model()
        exchange.to_onnx(here, tmp_path / "here.onnx")
        exchange.to_c(here, tmp_path / "here.c", "net")
        x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        right = here.predict(x)
    for ending in ("onnx", "c"):
        assert (tmp_path / f"there.{ending}").read_bytes() == (tmp_path / f"here.{ending}").read_bytes()
    back = exchange.from_onnx(tmp_path / "here.onnx")
    assert back.backend is lib
    np.testing.assert_allclose(back.predict(x), right, rtol=1e-5, atol=1e-6)


class Gate(layers.Layer):
    def __init__(self):
        super().__init__()
        self.gain = layers.Parameter("gain", (3,), initializers.Ones())

    def compute(self, x):
        return x * self.gain


class Twice(ops.Op):
    def forward(self, xp, x):
        return x + x, None

    def backward(self, xp, grad, saved):
        return (grad + grad,)


class OwnModel(Sequential):
    def compute(self, x, training):
        return super().compute(x, training)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            Sequential(layers.Dense(3, 3), Gate()),
            r"layer 1 of the model, Gate\(\), cannot be exported to ONNX: no other program has your code",
        ),
        (
            Sequential(layers.Dense(3, 3), Sequential(Function(Twice()))),
            r"1\.0 of the model, Function\(t.* no other program has your code",
        ),
        (
            Sequential(layers.Lambda(ops.tanh), layers.Dense(3, 3)),
            r"layer 0 of the model, Lambda.* no other program has your code",
        ),
        (
            Sequential(layers.Dense(3, 3), Function(ops.getitem, index=0)),
            r"layer 1 of the model, Function\(getitem.* other layers of the same effect may do",
        ),
        (Sequential(layers.Dense(3, 3), Function(ops.mean)), "joins the samples of a batch"),
        (Sequential(layers.Dense(3, 3), Function(ops.max, axis=0)), "joins the samples of a batch"),
        (Sequential(layers.Dense(3, 3), Function(ops.transpose)), "moves the axis of the batch"),
        (OwnModel(layers.Dense(3, 3)), "^OwnModel"),
        (Sequential(layers.ReLU()), "needs the shape of one sample"),
        (layers.Dense(3, 3), "only a Sequential is exported"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(model, said, tmp_path):
    with pytest.raises(OptionError, match=said) as caught:
        exchange.to_onnx(model, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_softmax_over_the_batch_is_refused(tmp_path):
    with pytest.raises(OptionError, match="joins the samples of a batch"):
        exchange.to_onnx(Sequential(layers.Dense(2, 2), layers.Softmax(axis=0)), tmp_path / "net.onnx")


def test_layers_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="last axis must be 4"):
        exchange.to_onnx(Sequential(layers.Dense(3, 3), layers.Dense(4, 3)), tmp_path / "net.onnx")
    with pytest.raises(DTypeError, match=r"layer 1 .* takes float64 and gets float32"):
        exchange.to_onnx(
            Sequential(layers.Dense(3, 3), layers.Dense(3, 3, dtype="float64")), tmp_path / "net.onnx"
        )
    with pytest.raises(DTypeError, match=r"takes int64 and gets float32"):
        exchange.to_onnx(Sequential(layers.Dense(3, 3), layers.Embedding(3, 3)), tmp_path / "net.onnx")


def test_notes_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r"the note 'labels' is .* no value of JSON"):
        exchange.to_onnx(Sequential(layers.Dense(3, 3)), tmp_path / "net.onnx", notes={"labels": {1, 2}})


@pytest.mark.parametrize("notes", [["labels"], {1: "a"}])
def test_notes_must_have_names(notes, tmp_path):
    with pytest.raises(OptionError, match="notes must be a dict of names"):
        exchange.to_onnx(Sequential(layers.Dense(3, 3)), tmp_path / "net.onnx", notes=notes)


def test_a_model_that_is_too_large_for_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xnn.exchange.onnx_graph._MOST_BYTES", 47)
    with pytest.raises(OptionError, match="holds less than 2 GiB"):
        exchange.to_onnx(Sequential(layers.Dense(3, 3)), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_the_file_is_checked(tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.onnx"):
        exchange.to_onnx(Sequential(layers.Dense(3, 3)), tmp_path / "net.txt")


def test_without_the_package_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[onnx\]"'):
        exchange.to_onnx(Sequential(layers.Dense(3, 3)), tmp_path / "net.onnx")
