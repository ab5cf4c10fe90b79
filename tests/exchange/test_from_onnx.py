"""ONNX files as models: those that xnn wrote, graphs made by hand, PyTorch's, and what is refused."""

import importlib.util
import json
import re

import exported_models
import numpy as np
import pytest

import xnn
from xnn import exchange, layers
from xnn.errors import CorruptFileError, DataError, DataNotFoundError
from xnn.exchange.from_onnx import read_onnx
from xnn.layers import Sequential

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

MODELS = list(exported_models.all_models())
#: Exported as several operators for which there is no layer: its mean is read twice.
ONE_WAY = {"var"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "model", "shape", "positive"), MODELS, ids=[case[0] for case in MODELS])
def test_a_model_comes_back(name, model, shape, positive, tmp_path):
    exchange.to_onnx(model, tmp_path / "net.onnx", shape)
    if name.split("-")[0] in ONE_WAY:
        with pytest.raises(DataError, match="is the operator Mul, of several values"):
            exchange.from_onnx(tmp_path / "net.onnx")
        return
    back = exchange.from_onnx(tmp_path / "net.onnx")
    back.save(tmp_path / "net.safetensors")
    x = exported_models.samples(model, shape, 7, positive)
    right = model.predict(x)
    for found in (back, xnn.load(tmp_path / "net.safetensors")):
        y = found.predict(x)
        assert (y.dtype, y.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(y, right, rtol=1e-6, atol=1e-6)
    exchange.to_onnx(back, tmp_path / "again.onnx", shape)
    np.testing.assert_allclose(
        exchange.from_onnx(tmp_path / "again.onnx").predict(x), right, rtol=1e-6, atol=1e-6
    )


def test_layers_and_weights_come_back_as_they_were(tmp_path):
    block = Sequential(
        layers.Conv2D(4, 4, 3, padding=1, bias=False), layers.BatchNorm(4), layers.GELU("tanh")
    )
    model = Sequential(
        layers.Rescale(1 / 255, shift=3.0), layers.Reshape((1, 8, 8)), layers.Conv2D(1, 4, (3, 2), padding="same"),
        layers.LeakyReLU(0.1), layers.Add(layers.Identity(), block), layers.MaxPool2D(2), layers.Flatten(),
        layers.Dense(64, 6), layers.LayerNorm(6), layers.SiLU(), layers.Dense(6, 3), seed=2,
    )  # fmt: skip
    exported_models.changed(model)
    exchange.to_onnx(model, tmp_path / "net.onnx")
    back = exchange.from_onnx(tmp_path / "net.onnx")
    assert repr(list(back)) == repr(list(model))
    assert back.seed == 2
    for (name, ours), (_, theirs) in zip(model.named_state(), back.named_state(), strict=True):
        assert np.array_equal(ours.value, theirs.value), name


def test_notes_come_back(tmp_path):
    notes = {"labels": ["a", "b"], "task": "classification", "features": 3, "color": "red"}
    model = Sequential(layers.Dense(3, 2))
    model.numerics = "exact"
    exchange.to_onnx(model, tmp_path / "net.onnx", notes=notes)
    found = read_onnx(tmp_path / "net.onnx")
    del notes["color"]
    assert found.notes == notes
    assert found.model.numerics == "exact"
    assert found.model.seed is None


def test_another_programs_metadata_are_passed_over(tmp_path):
    file = onnx.load_model_from_string(graph_of([helper.make_node("Relu", ["x"], ["y"])]))
    helper.set_model_props(file, {"labels": "cat, dog", "seed": json.dumps("x"), "numerics": "1"})
    onnx.save(file, tmp_path / "net.onnx")
    found = read_onnx(tmp_path / "net.onnx")
    assert (found.notes, found.model.seed, found.model.numerics) == ({}, None, None)


# Graphs made by hand.


def graph_of(
    nodes, shape=("n", 4), output=("n", None), kind=TensorProto.FLOAT, opset=20, outputs=("y",), **constants
):
    """The bytes of a model with these nodes and constants."""
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, output) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def f32(*values):
    return np.array(values, np.float32)


RANDOM = np.random.default_rng(3)
W = RANDOM.normal(size=(4, 3)).astype(np.float32)
KERNEL = RANDOM.normal(size=(2, 1, 3, 3)).astype(np.float32)
node = helper.make_node


def images(nodes, rank=4, shape=("n", 1, 6, 6), **constants):
    return graph_of(nodes, shape, ("n", *[None] * (rank - 1)), **constants)


def like_gelu(quotient, root):
    """x (1 + erf(quotient)) / 2, where quotient are the inputs of a Div."""
    return graph_of(
        [
            node("Div", quotient, ["a"]),
            node("Erf", ["a"], ["b"]),
            node("Add", ["b", "one"], ["c"]),
            node("Mul", ["x", "c"], ["d"]),
            node("Mul", ["d", "half"], ["y"]),
        ],
        r=root, one=np.float32(1), half=np.float32(0.5),
    )  # fmt: skip


#: Graphs, and the layers that they become.
GRAPHS = {
    "Gemm with alpha, beta and a transposed weight": (
        graph_of(
            [node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0, transB=1)],
            w=W.T.copy(),
            b=f32(1, 2, 3),
        ),
        "Dense(4, 3)",
    ),
    "Gemm with one number as the bias": (
        graph_of([node("Gemm", ["x", "w", "b"], ["y"])], w=W, b=f32(2)),
        "Dense(4, 3)",
    ),
    "MatMul and Add": (
        graph_of([node("MatMul", ["x", "w"], ["h"]), node("Add", ["b", "h"], ["y"])], w=W, b=f32(1, 2, 3)),
        "Dense(4, 3)",
    ),
    "MatMul and a number": (
        graph_of([node("MatMul", ["x", "w"], ["h"]), node("Add", ["b", "h"], ["y"])], w=W, b=np.float32(2)),
        "Dense(4, 3, bias=False), Rescale(1.0, offset=2.0)",
    ),
    "a weight that is transposed in the graph": (
        graph_of([node("Transpose", ["w"], ["v"]), node("MatMul", ["x", "v"], ["y"])], w=W.T.copy()),
        "Dense(4, 3, bias=False)",
    ),
    "Constant nodes": (
        graph_of(
            [
                node("Constant", [], ["c"], value=numpy_helper.from_array(f32(2, 3, 4, 5))),
                node("Constant", [], ["d"], value_float=0.5),
                node("Mul", ["c", "x"], ["h"]),
                node("Sub", ["h", "d"], ["y"]),
            ]
        ),
        "Rescale(array(2.0, 3.0, 4.0, 5.0), offset=-0.5)",
    ),
    "standardizing": (
        graph_of(
            [node("Sub", ["x", "m"], ["h"]), node("Div", ["h", "s"], ["y"])],
            m=f32(1, 2, 3, 4),
            s=np.float32(4),
        ),
        "Rescale(0.25, shift=array(1.0, 2.0, 3.0, 4.0))",
    ),
    "1 - x and -x": (
        graph_of([node("Sub", ["c", "x"], ["h"]), node("Neg", ["h"], ["y"])], c=np.float32(1)),
        "Rescale(1.0, offset=-1.0)",
    ),
    "integers that become numbers": (
        graph_of(
            [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT), node("Relu", ["h"], ["y"])],
            kind=TensorProto.UINT8,
        ),
        "Rescale(1.0), ReLU()",
    ),
    "a clip without limits": (graph_of([node("Clip", ["x"], ["h"]), node("Relu", ["h"], ["y"])]), "ReLU()"),
    "x sigmoid(x)": (graph_of([node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])]), "SiLU()"),
    "a half of x sigmoid(x)": (
        graph_of(
            [
                node("Sigmoid", ["x"], ["s"]),
                node("Mul", ["s", "x"], ["h"]),
                node("Mul", ["h", "half"], ["y"]),
            ],
            half=np.float32(0.5),
        ),
        "SiLU(), Rescale(0.5)",
    ),
    "GELU of erf, divided": (
        graph_of(
            [
                node("Div", ["x", "r"], ["a"]),
                node("Erf", ["a"], ["b"]),
                node("Add", ["b", "one"], ["c"]),
                node("Mul", ["x", "c"], ["d"]),
                node("Mul", ["d", "half"], ["y"]),
            ],
            r=np.float32(2**0.5),
            one=np.float32(1),
            half=np.float32(0.5),
        ),
        "GELU()",
    ),
    "GELU of erf, multiplied": (
        graph_of(
            [
                node("Mul", ["x", "half"], ["h"]),
                node("Mul", ["r", "x"], ["a"]),
                node("Erf", ["a"], ["b"]),
                node("Add", ["one", "b"], ["c"]),
                node("Mul", ["h", "c"], ["y"]),
            ],
            r=np.float32(0.5**0.5),
            one=np.float32(1),
            half=np.float32(0.5),
        ),
        "GELU()",
    ),
    "a residual connection": (
        graph_of(
            [
                node("Relu", ["x"], ["h"]),
                node("Tanh", ["h"], ["a"]),
                node("Exp", ["a"], ["b"]),
                node("Add", ["b", "h"], ["y"]),
            ]
        ),
        "ReLU(), Add(Sequential(Tanh(), Function(exp)), Identity())",
    ),
    "branches in branches": (
        graph_of(
            [
                node("Tanh", ["x"], ["a"]),
                node("Relu", ["a"], ["b"]),
                node("Add", ["a", "b"], ["c"]),
                node("Sum", ["c", "x", "x"], ["y"]),
            ]
        ),
        "Add(Sequential(Tanh(), Add(Identity(), ReLU())), Identity(), Identity())",
    ),
    "joined along an axis": (
        graph_of([node("Relu", ["x"], ["a"]), node("Concat", ["a", "x"], ["y"], axis=-1)]),
        "Parallel(ReLU(), Identity(), axis=-1)",
    ),
    "Clip, Dropout and Identity": (
        graph_of(
            [
                node("Identity", ["x"], ["a"]),
                node("Dropout", ["a", "r"], ["b"]),
                node("Clip", ["b", "", "c"], ["y"]),
            ],
            r=np.float32(0.1),
            c=np.float32(0.5),
        ),
        "Dropout(rate=0.1), Function(clip, max=0.5)",
    ),
    "default attributes": (
        graph_of(
            [
                node("LeakyRelu", ["x"], ["a"]),
                node("Elu", ["a"], ["b"]),
                node("Gelu", ["b"], ["c"]),
                node("Selu", ["c"], ["d"]),
                node("Softmax", ["d"], ["y"]),
            ]
        ),
        "LeakyReLU(), ELU(), GELU(), SELU(), Softmax()",
    ),
    "a convolution with automatic padding": (
        images([node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")], w=KERNEL),
        "Conv2D(1, 2, 3, padding=1, bias=False)",
    ),
    "a network of images": (
        images(
            [
                node("Conv", ["x", "w", "b"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                node("BatchNormalization", ["a", "one", "b", "b", "one"], ["c"]),
                node("Relu", ["c"], ["d"]),
                node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
                node("GlobalAveragePool", ["e"], ["f"]),
                node("Reshape", ["f", "target"], ["g"]),
                node("LogSoftmax", ["g"], ["y"], axis=1),
            ],
            2,
            w=KERNEL,
            b=f32(0.5, -0.5),
            one=f32(1, 2),
            target=np.array([-1, 2]),
        ),
        "Conv2D(1, 2, 3, padding=1), BatchNorm(2), ReLU(), AvgPool2D(2), "
        "GlobalAvgPool(), Flatten(), LogSoftmax(axis=1)",
    ),
    "a size that the graph computes": (
        images(
            [
                node("Shape", ["x"], ["s"], start=0, end=1),
                node("Concat", ["s", "rest"], ["t"], axis=0),
                node("Reshape", ["x", "t"], ["y"]),
            ],
            2,
            rest=np.array([-1]),
        ),
        "Flatten()",
    ),
    "Unsqueeze and Squeeze": (
        graph_of(
            [
                node("Unsqueeze", ["x", "one"], ["a"]),
                node("Tanh", ["a"], ["b"]),
                node("Squeeze", ["b", "one"], ["y"]),
            ],
            one=np.array([1]),
        ),
        "Reshape((1, 4)), Tanh(), Flatten()",
    ),
    "means of images, axes as an attribute": (
        images([node("ReduceMean", ["x"], ["y"], axes=[-1, -2], keepdims=0)], 2, opset=17),
        "GlobalAvgPool()",
    ),
    "a maximum": (
        graph_of([node("ReduceMax", ["x", "axes"], ["y"])], axes=np.array([1])),
        "Function(max, axis=(1,), keepdims=True)",
    ),
    "an embedding of int32": (
        graph_of(
            [
                node("Cast", ["x"], ["a"], to=TensorProto.INT64),
                node("Gather", ["w", "a"], ["b"]),
                node("Flatten", ["b"], ["y"]),
            ],
            kind=TensorProto.INT32,
            w=W,
        ),
        "Embedding(4, 3), Flatten()",
    ),
    "a normalization without a shift": (
        graph_of([node("LayerNormalization", ["x", "w"], ["y"], epsilon=0.1)], w=f32(1, 2, 3, 4)),
        "LayerNorm((4,), epsilon=0.1)",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_by_hand(name, tmp_path):
    content, text = GRAPHS[name]
    (tmp_path / "net.onnx").write_bytes(content)
    model = exchange.from_onnx(tmp_path / "net.onnx")
    said = re.sub(r"array\((\d[\d., ]*)\)", lambda m: f"array({m[1]})", repr(list(model))[1:-1])
    assert shortened(said) == shortened(text)
    (value,) = onnx.load_model_from_string(content).graph.input
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    x = RANDOM.integers(0, 4, (5, *shape)) if kind.kind in "iu" else RANDOM.normal(size=(5, *shape))
    (right,) = ReferenceEvaluator(onnx.load_model_from_string(content)).run(None, {"x": x.astype(kind)})
    np.testing.assert_allclose(model.predict(x.astype(kind)), right, rtol=1e-5, atol=1e-6)


def shortened(text):
    """A text of layers without blanks and brackets, which NumPy's versions print differently."""
    return re.sub(r"[\s\[\]]|array|dtype='float32'|,(?=\))", "", text)


UNKNOWN = {
    "an operator": (
        graph_of([node("Hardmax", ["x"], ["y"], name="/head/Hardmax")]),
        "node '/head/Hardmax' is the operator Hardmax, for which xnn has no layer",
    ),
    "a product of values": (
        graph_of([node("Tanh", ["x"], ["a"]), node("Mul", ["a", "x"], ["y"], name="gate")]),
        "node 'gate' is the operator Mul, of several values",
    ),
    "weights of float16": (
        graph_of(
            [
                node("Cast", ["w"], ["v"], to=TensorProto.FLOAT16),
                node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
                node("MatMul", ["a", "v"], ["b"]),
                node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
            ],
            w=W,
        ),
        "is the operator MatMul, whose input 1 is of float16",
    ),
    "a weight that is computed": (
        graph_of([node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["y"])]),
        "is the operator MatMul, of several",
    ),
    "a matrix on the left": (
        graph_of(
            [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["w", "t"], ["y"])], w=W.T.copy()
        ),
        "is the operator MatMul, which multiplies from the left",
    ),
    "a batch that is joined": (
        graph_of([node("ReduceSum", ["x"], ["y"])]),
        "is the operator ReduceSum, which joins the samples",
    ),
    "groups": (
        images([node("Conv", ["x", "w"], ["y"], group=2)], shape=("n", 2, 6, 6), w=KERNEL),
        "several groups of channels",
    ),
    "padding on one side": (
        images([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 1, 1])]),
        "another padding at the end",
    ),
    "means without the padding": (
        images([node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
        "leave out the padding",
    ),
    "ceil_mode": (
        images([node("MaxPool", ["x"], ["y"], kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1)]),
        "with ceil_mode=1",
    ),
    "an option that xnn does not take": (
        images(
            [node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[2, 2, 2, 2], count_include_pad=1)]
        ),
        "is the operator AveragePool, which cannot be a layer: padding (2, 2) of a pooling",
    ),
    "a weight of another shape": (
        graph_of([node("LayerNormalization", ["x", "w"], ["y"])], w=W),
        "whose scale has not the shape",
    ),
    "a bias of another shape": (
        graph_of([node("Gemm", ["x", "w", "b"], ["y"])], w=W, b=np.ones((5, 3), np.float32)),
        "is the operator Gemm, which cannot be a layer",
    ),
    "windows of one axis": (
        graph_of([node("MaxPool", ["x"], ["y"], kernel_shape=[2])], ("n", 1, 6), ("n", 1, None)),
        "windows of 1 axes",
    ),
    "one layer read by two branches": (
        graph_of(
            [
                node("Relu", ["x"], ["a"]),
                node("Tanh", ["a"], ["b"]),
                node("Exp", ["x"], ["c"]),
                node("Add", ["a", "c"], ["d"]),
                node("Add", ["b", "d"], ["y"]),
            ]
        ),
        "is read in a way that xnn's branches",
    ),
    "branches of two shapes": (
        graph_of(
            [node("ReduceSum", ["x", "axes"], ["a"]), node("Add", ["a", "x"], ["y"])], axes=np.array([1])
        ),
        "of values of different shapes",
    ),
    "a constant of the batch's shape": (
        graph_of([node("Add", ["x", "c"], ["y"])], (2, 4), (2, 4), c=np.ones((2, 4), np.float32)),
        "not the shape of a sample",
    ),
    "the batch in a row": (
        graph_of([node("Reshape", ["x", "target"], ["y"])], (3, 4), (1, 12), target=np.array([1, 12])),
        "not a known shape",
    ),
    "another SELU": (graph_of([node("Selu", ["x"], ["y"], alpha=1.0)]), "another alpha or gamma"),
    "erf of a quotient the other way": (
        like_gelu(["r", "x"], np.float32(2**0.5)),
        "operator Mul, of several values",
    ),
    "erf with several roots": (like_gelu(["x", "r"], f32(1, 2, 3, 4)), "operator Mul, of several values"),
    "a sum with a constant": (
        graph_of([node("Sum", ["x", "c"], ["y"])], c=np.ones(4, np.float32)),
        "operator Sum, of values and constants",
    ),
    "a join with a constant": (
        graph_of([node("Concat", ["x", "c"], ["y"], axis=0)], c=np.ones((1, 4), np.float32)),
        "operator Concat, of values and constants",
    ),
    "whole parts": (
        graph_of(
            [
                node("Cast", ["x"], ["a"], to=TensorProto.INT32),
                node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
            ]
        ),
        "computes with numbers of int32",
    ),
    "arithmetic of integers": (
        graph_of(
            [
                node("Cast", ["x"], ["a"], to=TensorProto.INT64),
                node("Div", ["a", "c"], ["b"]),
                node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
            ],
            c=np.array(2),
        ),
        "operator Div, of numbers of int64",
    ),
    "a second output": (
        images(
            [
                node("MaxPool", ["x"], ["a", "b"], kernel_shape=[2, 2]),
                node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
            ]
        ),
        "operator MaxPool, whose output 1 is read",
    ),
    "a softmax over the batch": (
        graph_of([node("Softmax", ["x"], ["y"], axis=-2)]),
        "operator Softmax, along the axis of the batch",
    ),
    "a join of batches": (
        graph_of([node("Relu", ["x"], ["a"]), node("Concat", ["x", "a"], ["y"], axis=-2)]),
        "operator Concat, along the axis of the batch",
    ),
    "random numbers": (
        graph_of([node("RandomNormal", [], ["c"], shape=[4]), node("Add", ["x", "c"], ["y"])]),
        "operator RandomNormal",
    ),
    "a divisor of 0": (
        graph_of([node("Div", ["x", "c"], ["y"])], c=np.array(0.0, np.float32)),
        "or a divisor of 0",
    ),
    "operators deep inside one another": (
        graph_of(
            [
                node("Mul", [f"a{n}" if n else "x", "c"], [f"a{n + 1}" if n < 1999 else "y"])
                for n in range(2000)
            ],
            c=np.array(1.5, np.float32),
        ),
        "too deep inside one another",
    ),
    "no dependence on the input": (graph_of([node("Identity", ["w"], ["y"])], w=W), "is made by no node"),
    "two outputs": (
        graph_of([node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["z"])], outputs=("y", "z")),
        "1 inputs and 2 outputs",
    ),
    "an old opset": (
        graph_of([node("Relu", ["x"], ["y"])], opset=11),
        "opset 11, and xnn reads 13 and later",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_xnn_does_not_cover_is_named(name, tmp_path):
    content, said = UNKNOWN[name]
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        exchange.from_onnx(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "net.onnx") in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataNotFoundError, match="there is no file"):
        exchange.from_onnx(tmp_path / "no.onnx")
    whole = graph_of([node("Gemm", ["x", "w"], ["y"])], w=W)
    for content in (b"hello", whole[: len(whole) // 2], b"", whole.replace(b"Gemm", b"Gexm")):
        (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(DataError) as caught:
            exchange.from_onnx(tmp_path / "net.onnx")
        assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CorruptFileError)


def test_changed_files_are_errors_in_words(tmp_path):
    """Bytes of a file are changed at random: it is read, or refused, and nothing else."""
    model = Sequential(
        layers.Reshape((1, 6, 6)), layers.Conv2D(1, 2, 3), layers.BatchNorm(2), layers.MaxPool2D(2), layers.Flatten(),
        layers.Add(layers.Dense(8, 4), layers.Dense(8, 4)), layers.Softplus(2.0), layers.Rescale(2.0, 1.0), seed=0,
    )  # fmt: skip
    exchange.to_onnx(model, tmp_path / "net.onnx")
    whole, random = (tmp_path / "net.onnx").read_bytes(), np.random.default_rng(5)
    ends = {"read": 0, "refused": 0}
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        content[random.integers(0, len(content), random.integers(1, 4))] = random.integers(0, 256)
        (tmp_path / "net.onnx").write_bytes(content.tobytes())
        try:
            exchange.from_onnx(tmp_path / "net.onnx")
            ends["read"] += 1
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
            ends["refused"] += 1
    assert min(ends.values()) > 15


def test_weights_in_a_file_of_their_own(tmp_path):
    """As PyTorch writes large networks."""
    file = onnx.load_model_from_string(graph_of([node("Gemm", ["x", "w"], ["y"])], w=W))
    onnx.save(file, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert (tmp_path / "net.data").exists()
    assert np.array_equal(exchange.from_onnx(tmp_path / "net.onnx")[0].weight.value, W)
    (tmp_path / "net.data").unlink()
    with pytest.raises(CorruptFileError, match="is not an ONNX file that can be read"):
        exchange.from_onnx(tmp_path / "net.onnx")


# PyTorch's exporter.


def networks():
    from torch import nn

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            return nn.functional.silu(x + self.norm(self.conv(x)))

    images = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Residual(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3), nn.LogSoftmax(1),
    )  # fmt: skip
    dense = nn.Sequential(
        nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8),
        nn.LeakyReLU(0.2), nn.Linear(8, 3), nn.Softmax(1),
    )  # fmt: skip
    return {"images": (images, (5, 1, 8, 8)), "dense": (dense, (5, 6))}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "onnxscript")),
    reason="PyTorch and onnxscript are not installed: .ci/full installs them",
)
@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("name", ["images", "dense"])
def test_networks_of_pytorch(name, opset, tmp_path):
    import torch

    network, shape = networks()[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    network.train()(x)  # moves the running statistics
    network.eval()
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        network, (x,), tmp_path / "net.onnx", dynamo=True, opset_version=opset, dynamic_shapes=({0: batch},),
        verbose=False,
    )  # fmt: skip
    model = exchange.from_onnx(tmp_path / "net.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(x.numpy()), network(x).numpy(), rtol=1e-5, atol=1e-5)
