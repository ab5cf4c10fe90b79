"""What help(), a repr and a wrong argument tell of layers, losses and initializers."""

import inspect
import pydoc

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, ops
from xnn.errors import OptionError
from xnn.layers import Add, Conv2D, Dense, Dropout, Function, Parallel, ReLU, Rescale, Sequential
from xnn.layers.files import full_text

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (layers, losses)
    for name in module.__all__
    if isinstance(getattr(module, name), type)
}
TAKES_ANY = {"Function", "Loss"}  # an op's options


def squeezed(text):
    """Without spaces and what `help` draws: from Python 3.13 on it shows each parameter in a line of its own."""
    return "".join(text.replace("|", "").split()).replace("/,", "")


@pytest.mark.parametrize("name", PUBLIC)
def test_help_lists_the_options_and_nothing_else(name):
    kind = PUBLIC[name]
    signature = inspect.signature(kind)
    catch_all = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert catch_all <= ({"options"} if kind.__name__ in TAKES_ANY else {"layers", "parameters"})
    text = pydoc.plain(pydoc.render_doc(kind))
    own = f"__init__(self{''.join(f', {p}' for p in map(str, signature.parameters.values()))}) -> 'None'"
    assert squeezed(own) in squeezed(text)
    documented = set(signature.parameters) - {"layers"}
    for option in documented if kind.__name__ not in ("LossOverBatches", "Composite", "Container") else ():
        assert option in kind.__doc__, option


@pytest.mark.parametrize("name", PUBLIC)
def test_every_docstring_has_an_example(name):
    base = ("LossOverBatches", "Composite", "Container")
    assert ">>>" in PUBLIC[name].__doc__ or PUBLIC[name].__name__ in base


@pytest.mark.parametrize("name", [n for n, kind in vars(layers).items() if hasattr(kind, "op")])
def test_a_layers_options_are_its_ops_with_the_same_defaults(name):
    kind = getattr(layers, name)
    if not issubclass(kind, layers.activations._Activation):
        return
    options = [p for p in inspect.signature(kind.op.forward).parameters.values() if p.kind is p.KEYWORD_ONLY]
    own = inspect.signature(kind).parameters
    assert [(p.name, p.default) for p in options] == [(p.name, p.default) for p in own.values()]
    assert kind().options(np) == {p.name: p.default for p in options}


def test_the_simplest_ones():
    assert str(inspect.signature(layers.ReLU)) == "() -> 'None'"
    assert list(inspect.signature(layers.LeakyReLU).parameters) == ["negative_slope"]
    assert list(inspect.signature(Conv2D).parameters)[:4] == [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
    ]
    assert list(inspect.signature(Sequential).parameters) == ["layers", "seed"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Dense(3, 4, activation="relu"),
            "Dense has no option 'activation'; it takes inputs, outputs, bias",
        ),
        (lambda: Dense(3), "Dense: missing a required argument: 'outputs'; it takes inputs"),
        (lambda: Sequential(ReLU(), name="mlp"), r"Sequential has no option 'name'; it takes layers, seed"),
        (lambda: Dropout(0.5, True, 3), "Dropout: too many positional arguments; it takes rate, seed"),
        (
            lambda: ReLU(inplace=True),
            r"ReLU: got an unexpected .*'inplace'; it takes no options",
        ),
        (lambda: losses.MSE(weight=1), "MSE has no option 'weight'; it takes reduction$"),
        (lambda: Function(ops.softmax, axes=1), r"Function\(softmax\) has no option 'axes'; it takes axis"),
    ],
)
def test_a_wrong_argument_is_answered_with_those_there_are(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_subclass_that_passes_a_wrong_argument_is_told_whose_it_is():
    class Wide(Dense):
        def __init__(self):
            super().__init__(3, 300, width=2)

    with pytest.raises(OptionError, match=r"^Dense has no option 'width'"):
        Wide()


WIDE = np.linspace(0.0, 1.0, 784)
REPRS = [
    (Dense(784, 100), "Dense(784, 100)"),
    (Dense(2, 1, bias=False, dtype="float64"), "Dense(2, 1, bias=False, dtype='float64')"),
    (ReLU(), "ReLU()"),
    (layers.LeakyReLU(), "LeakyReLU()"),
    (layers.LeakyReLU(0.2), "LeakyReLU(negative_slope=0.2)"),
    (Conv2D(1, 8, 3), "Conv2D(1, 8, 3)"),
    (Conv2D(1, 8, (3, 5), padding=1), "Conv2D(1, 8, (3, 5), padding=1)"),
    (layers.MaxPool2D(2), "MaxPool2D(2)"),
    (layers.AvgPool2D(3, stride=2), "AvgPool2D(3, stride=2)"),
    (layers.BatchNorm(3), "BatchNorm(3)"),
    (layers.LayerNorm((2, 3), epsilon=1e-3), "LayerNorm((2, 3), epsilon=0.001)"),
    (layers.Embedding(5, 2), "Embedding(5, 2)"),
    (layers.Reshape((1, 28, 28)), "Reshape((1, 28, 28))"),
    (Rescale(0.5), "Rescale(0.5)"),
    (Rescale(WIDE), "Rescale((0.0, 0.001277139208173691, 0.002554278416347382, ... 784 in all))"),
    (Function(ops.softmax, axis=1), "Function(softmax, axis=1)"),
    (Add(layers.Identity(), Dense(2, 2)), "Add(Identity(), Dense(2, 2))"),
    (Parallel(ReLU(), ReLU(), axis=2), "Parallel(ReLU(), ReLU(), axis=2)"),
    (Sequential(Dense(784, 100), ReLU(), seed=3), "Sequential(Dense(784, 100), ReLU())"),
    (
        Sequential(*(Dense(2, 2) for _ in range(20))),
        "Sequential(Dense(2, 2), Dense(2, 2), Dense(2, 2), Dense(2, 2), Dense(2, 2), Dense(2, 2), "
        "... 13 more ..., Dense(2, 2))",
    ),
    (losses.MSE(), "MSE()"),
    (losses.MSE("sum"), "MSE(reduction='sum')"),
    (losses.SoftmaxCrossEntropy(), "SoftmaxCrossEntropy()"),
    (losses.SoftmaxCrossEntropy(label_smoothing=0.1), "SoftmaxCrossEntropy(label_smoothing=0.1)"),
    (losses.BinaryCrossEntropy([1.0] * 100), "BinaryCrossEntropy(pos_weight=(1.0, 1.0, 1.0, ... 100 in all))"),
    (losses.Focal(alpha=None), "Focal(alpha=None)"),
    (losses.Huber(), "Huber()"),
    (initializers.Glorot(), "Glorot()"),
    (initializers.He("uniform", slope=0.2), "He(distribution='uniform', slope=0.2)"),
    (initializers.Constant(1.0), "Constant(1.0)"),
    (Dense(1, 1).weight, "<Parameter weight (1, 1) float32>"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "text"), REPRS, ids=[text[:40] for _, text in REPRS])
def test_a_repr_is_short_and_omits_defaults(made, text):
    assert repr(made) == text


def test_a_layer_of_ones_own_has_a_repr_too():
    class Gate(layers.Layer):
        def __init__(self, features):
            super().__init__()
            self.gain = layers.Parameter("gain", (features,), initializers.Ones())

        def compute(self, x):
            return x * self.gain

    assert repr(Gate(3)) == "Gate()"


def test_what_files_and_logs_say_of_a_layer_is_what_version_0_1_said():
    model = Sequential(
        Rescale([1.0, 2.0]),
        Conv2D(1, 2, 3),
        layers.MaxPool2D(2),
        Parallel(ReLU(), layers.GELU("tanh"), axis=2),
    )
    assert [full_text(layer) for layer in (*model.layers, Function(ops.softmax, axis=1), Dense(2, 3))] == [
        "Rescale(scale=[1.0, 2.0], offset=0.0, dtype='float32')",
        "Conv2D(in_channels=1, out_channels=2, kernel_size=[3, 3], stride=[1, 1], padding=[0, 0], dilation=[1, 1], "
        "bias=True, dtype='float32')",
        "MaxPool2D(kernel_size=[2, 2], stride=[2, 2], padding=[0, 0], dilation=[1, 1])",
        "Parallel(ReLU(), GELU(approximate='tanh'), axis=2)",
        "Function(op='softmax', axis=1)",
        "Dense(inputs=2, outputs=3, bias=True, dtype='float32')",
    ]
    assert full_text(Sequential(Dense(1, 1, bias=False))) == (
        "Sequential(Dense(inputs=1, outputs=1, bias=False, dtype='float32'))"
    )


def test_a_saved_model_names_what_cannot_be_built_as_before(tmp_path):
    class Own(Dense):
        pass

    Sequential(Own(2, 3)).save(tmp_path / "m.safetensors")
    with pytest.raises(OptionError, match=r"Own\(inputs=2, outputs=3, bias=True, dtype='float32'\)"):
        xnn.load(tmp_path / "m.safetensors")
