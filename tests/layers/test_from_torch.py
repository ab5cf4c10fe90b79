"""xnn.from_torch, and the files of model.save in PyTorch. What needs no PyTorch is tested without it."""

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xnn
from xnn import initializers, layers
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.layers.files import weights_sha256

PAGE = (Path(__file__).parents[2] / "docs" / "from_pytorch.md").read_text(encoding="utf-8")
with_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: .ci/full installs it"
)


def arrays(**shapes):
    """Random arrays of these shapes, by names in which "_" stands for ".", as a state_dict."""
    random = np.random.default_rng(0)
    return {name.replace("__", "."): random.standard_normal(shape) for name, shape in shapes.items()}


def mlp(*sizes):
    """Dense layers of these sizes, the first after a Rescale, so that they are layers 1, 3, 5, ..."""
    model = [layers.Rescale(0.5)]
    for inputs, outputs in itertools.pairwise(sizes):
        model += [layers.Dense(inputs, outputs), layers.ReLU()]
    return xnn.Sequential(*model[:-1], seed=1)


class Block(layers.Layer):
    """A layer of one's own with layers and an array inside, named as those of a network."""

    def __init__(self):
        super().__init__()
        self.gain = layers.Parameter("gain", (4, 4), initializers.Ones())
        self.fc1, self.fc2 = layers.Dense(4, 4), layers.Dense(4, 4)

    def compute(self, x):
        return self.fc2(self.fc1(x) @ self.gain)


class TestWithoutTorch:
    def test_a_square_weight_of_dense_is_transposed(self):
        given = arrays(weight=(3, 3), bias=(3,))
        dense = xnn.from_torch(given, layers.Dense(3, 3))
        assert np.array_equal(dense.weight.value, given["weight"].T.astype("float32"))
        assert dense.weight.value.flags.c_contiguous
        assert not np.array_equal(dense.weight.value, dense.weight.value.T)

    @pytest.mark.parametrize(
        "layer", [layers.Embedding(3, 3), layers.LayerNorm((3, 3)), layers.Conv2D(3, 3, 3)]
    )
    def test_no_other_weight_is(self, layer):
        given = arrays(**{name: array.shape for name, array in layer.named_state()})
        xnn.from_torch(given, layer)
        for name, array in layer.named_state():
            assert np.array_equal(array.value, given[name].astype("float32"))

    def test_the_arrays_are_copies(self):
        given = {name: array.astype("float32") for name, array in arrays(weight=(5, 4)).items()}
        table = xnn.from_torch(given, layers.Embedding(5, 4))
        before = table.weight.value.copy()
        given["weight"][:] = 0.0
        assert np.array_equal(table.weight.value, before)

    def test_numbers_in_names_are_the_order_also_of_the_alphabet(self):
        sizes = [3] * 13
        given = arrays(**{f"net__{2 * n}__{name}": shape for n in range(12) for name, shape in
                          (("weight", (3, 3)), ("bias", (3,)))})  # fmt: skip
        model, other = (xnn.from_torch(d, mlp(*sizes)) for d in (given, dict(sorted(given.items()))))
        assert list(dict(sorted(given.items())))[2] == "net.10.bias"
        assert weights_sha256(model) == weights_sha256(other)
        for n in range(12):
            assert np.array_equal(model[2 * n + 1].bias.value, given[f"net.{2 * n}.bias"].astype("float32"))

    def test_the_same_names_belong_together_in_any_order(self):
        given = arrays(fc2__weight=(4, 4), fc2__bias=(4,), gain=(4, 4), fc1__bias=(4,), fc1__weight=(4, 4))
        block = xnn.from_torch({f"module.{name}": array for name, array in given.items()}, Block())
        assert np.array_equal(block.fc1.weight.value, given["fc1.weight"].T.astype("float32"))
        assert np.array_equal(block.fc2.weight.value, given["fc2.weight"].T.astype("float32"))
        assert np.array_equal(block.gain.value, given["gain"].astype("float32"))  # as it is

    def test_a_layer_of_ones_own_in_a_model_goes_by_the_order(self):
        given = arrays(
            gain=(4, 4), a__weight=(4, 4), a__bias=(4,), b__weight=(4, 4), b__bias=(4,), c__weight=(2, 4)
        )
        model = xnn.from_torch(given, xnn.Sequential(Block(), layers.Dense(4, 2, bias=False)))
        assert np.array_equal(model[0].fc2.weight.value, given["b.weight"].T.astype("float32"))
        assert np.array_equal(model[1].weight.value, given["c.weight"].T.astype("float32"))

    def test_names_choose_the_layer(self):
        given = arrays(head__weight=(3, 3), head__bias=(3,), body__weight=(3, 3), body__bias=(3,))
        model = xnn.from_torch(given, mlp(3, 3, 3), names={"body": "1", "head": "3"})
        assert np.array_equal(model[3].weight.value, given["head.weight"].T.astype("float32"))
        assert np.array_equal(model[1].bias.value, given["body.bias"].astype("float32"))

    @pytest.mark.parametrize("counter", [np.int64(7), 7])
    def test_the_counter_of_batch_norm_is_left_out(self, counter):
        given = arrays(weight=(3,), bias=(3,), running_mean=(3,), running_var=(3,))
        norm = xnn.from_torch({**given, "num_batches_tracked": counter}, layers.BatchNorm(3))
        assert np.array_equal(norm.running_var.value, given["running_var"].astype("float32"))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("given", ["float16", "float32", "float64", ">f4"])
    def test_floats_become_the_models_dtype(self, given, dtype):
        weight = arrays(weight=(3, 3))["weight"].astype(given)
        table = xnn.from_torch({"weight": weight}, layers.Embedding(3, 3, dtype=dtype))
        assert table.weight.value.dtype == dtype
        assert np.array_equal(table.weight.value, weight.astype(dtype))

    def test_the_model_was_not_trained_by_xnn(self):
        model = mlp(3, 3)
        model.numerics = "exact"
        assert xnn.from_torch(arrays(weight=(3, 3), bias=(3,)), model) is model
        assert model.numerics is None

    def test_every_backend(self, lib):
        model = mlp(3, 2)
        given = arrays(weight=(2, 3), bias=(2,))
        xnn.from_torch({"weight": lib.to_device(given["weight"]), "bias": given["bias"]}, model)
        assert model.backend is lib
        assert np.array_equal(lib.to_host(model[1].weight.value), given["weight"].T.astype("float32"))

    def test_an_array_of_two_layers_takes_equal_arrays_only(self):
        class Tied(layers.Layer):
            def __init__(self):
                super().__init__()
                self.a = layers.Dense(3, 3, bias=False)
                self.b = layers.Add(layers.Identity(), self.a)

            def compute(self, x):
                return self.b(self.a(x))

        given, tied = arrays(a__weight=(3, 3), b__1__weight=(3, 3)), Tied()
        before = tied.a.weight.value
        with pytest.raises(OptionError, match=r"a\.weight and b\.1\.weight have different numbers"):
            xnn.from_torch(given, tied)
        assert tied.a.weight.value is before
        xnn.from_torch({**given, "b.1.weight": given["a.weight"]}, tied)
        assert np.array_equal(tied.a.weight.value, given["a.weight"].T.astype("float32"))

    def test_pytorch_and_tensorboard_are_not_imported(self):
        code = (
            "import sys, xnn; xnn.from_torch; xnn.callbacks; print({'torch', 'tensorboard'} & {*sys.modules})"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said == "set()\n"


NAN, HUGE = np.array([0.0, np.nan, 1.0]), np.array([1e300, 0.0, 0.0])
GOOD = arrays(a__weight=(3, 3), a__bias=(3,), b__weight=(2, 3), b__bias=(2,))


@pytest.mark.parametrize(
    ("given", "names", "kind", "message"),
    [
        ({**GOOD, "c.weight": np.ones((2, 2))}, None, OptionError, r"3 modules \(a, b, c\), .* 2 layers .*\(1, 3\)"),
        ({n: a for n, a in GOOD.items() if n[0] == "a"}, None, OptionError, r"1 modules \(a\)"),
        ({}, None, OptionError, r"0 modules"),
        ({n: a for n, a in GOOD.items() if n != "a.bias"}, None, OptionError,
         r"a has weight, and layer 1 .* needs weight, bias: build"),
        ({**GOOD, "a.running_mean": np.ones(3)}, None, OptionError, "a has weight, bias, running_mean, and"),
        ({**GOOD, "a.num_batches_tracked": np.ones(3)}, None, OptionError, "a has weight, bias, num_batches"),
        ({**GOOD, "b.weight": np.ones((3, 2))}, None, ShapeError,
         r"b\.weight has shape \(3, 2\), and 3\.weight .* needs \(2, 3\) in the layout of torch\.nn\.Linear"),
        ({**GOOD, "a.bias": np.ones((3, 1))}, None, ShapeError, r"a\.bias has shape \(3, 1\), .* needs \(3,\)$"),
        ({**GOOD, "b.bias": np.array([1, 2])}, None, DTypeError, r"b\.bias holds int64"),
        ({**GOOD, "b.bias": np.array([True, False])}, None, DTypeError, r"b\.bias holds bool"),
        ({**GOOD, "b.bias": np.array([1j, 2])}, None, DTypeError, r"b\.bias holds complex"),
        ({**GOOD, "b.bias": "b"}, None, DTypeError, r"b\.bias must be an array"),
        ({**GOOD, "b.bias": None}, None, DTypeError, r"b\.bias must be an array"),
        ({**GOOD, "a.bias": NAN}, None, DTypeError, r"a\.bias holds NaN or infinity"),
        ({**GOOD, "a.bias": np.full(3, np.inf)}, None, DTypeError, "infinity"),
        ({**GOOD, "a.bias": HUGE}, None, DTypeError, r"a\.bias holds numbers that are too large for float32"),
        ({"state_dict": GOOD, "epoch": 3}, None, OptionError, r"checkpoint\['state_dict'\]"),
        ({**GOOD, 3: np.ones(3)}, None, OptionError, "arrays by name"),
        ("model.pt", None, OptionError, r"torch\.load\(path, weights_only=True\)"),
        (Path("model.safetensors"), None, OptionError, r"safetensors\.numpy\.load_file\(path\)"),
        (None, None, OptionError, "takes a state_dict"),
        (dict(sorted(GOOD.items())), None, OptionError, "order of the alphabet.*give names"),
        (GOOD, ["1", "3"], OptionError, "names must be a dict"),
        (GOOD, {"a": "1"}, OptionError, "names lacks 'b': give each module once, a, b"),
        (GOOD, {"a": "1", "b": "1"}, OptionError, "names has '1', which is no layer .*: give each layer once, 1, 3"),
        (GOOD, {"a": "1", "b": "2"}, OptionError, "names has '2', which is no layer"),
        (GOOD, {"a": "1", "c": "3"}, OptionError, "names has 'c', which is no module"),
        (GOOD, {"a": "3", "b": "1"}, ShapeError, "a.weight has shape"),
        (GOOD, {"a": "1", "b": ["3"]}, OptionError, r"has \['3'\], which is no layer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_the_model_stays(given, names, kind, message):
    model = mlp(3, 3, 2)
    before = weights_sha256(model)
    model.numerics = "fast"
    with pytest.raises(kind, match=message):
        xnn.from_torch(given, model, names)
    assert weights_sha256(model) == before
    assert model.numerics == "fast"


def test_a_name_that_the_order_gives_another_layer_is_refused():
    class Net(layers.Layer):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.out = (layers.Dense(3, 3) for _ in range(3))

        def compute(self, x):
            return self.out(self.fc2(self.fc1(x)))

    given = arrays(**{f"{name}__{array}": shape for name in ("fc2", "fc1", "head")
                      for array, shape in (("weight", (3, 3)), ("bias", (3,)))})  # fmt: skip
    with pytest.raises(
        OptionError, match="fc2 would go into layer fc1, by the order, and there is a layer fc2"
    ):
        xnn.from_torch(given, Net())


def test_wrong_arguments():
    with pytest.raises(OptionError, match="got 3 as the model"):
        xnn.from_torch(GOOD, 3)
    with pytest.raises(OptionError, match="all weights must fit"):
        xnn.from_torch(GOOD, mlp(3, 3, 2), strict=False)


# Against PyTorch.


def seen(network):
    """The network after some training batches, with weights and statistics that are all different."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5 if name.endswith("var") else -0.5, 1.0, generator=generator)
    return network.eval()


def networks():
    """By name: a network of PyTorch, a function that builds the model, and a batch."""
    from torch import nn

    random = np.random.default_rng(1)
    images, rows = random.random((5, 1, 12, 12), np.float32), random.standard_normal((7, 6)).astype("float32")
    words = random.integers(0, 9, (6, 4))
    return {
        "mlp": (
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)),
            lambda: [layers.Dense(6, 6), layers.ReLU(), layers.Dense(6, 6, bias=False), layers.Tanh(),
                     layers.Dense(6, 3)],
            rows,
        ),
        "lenet": (
            nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(4, 4, (3, 2), stride=2, bias=False), nn.BatchNorm2d(4, affine=False, eps=1e-3), nn.ReLU(),
                nn.Flatten(), nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
            ),
            lambda: [
                layers.Conv2D(1, 4, 3, padding=1), layers.BatchNorm(4), layers.ReLU(), layers.MaxPool2D(2),
                layers.Conv2D(4, 4, (3, 2), stride=2, bias=False), layers.BatchNorm(4, 1e-3, affine=False),
                layers.ReLU(), layers.Flatten(), layers.Dense(24, 8), layers.BatchNorm(8), layers.ReLU(),
                layers.Dense(8, 3),
            ],
            images,
        ),
        "layer norm": (
            nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Sequential(nn.Linear(6, 2))),
            lambda: [layers.Dense(6, 6), layers.LayerNorm(6), layers.GELU(), xnn.Sequential(layers.Dense(6, 2))],
            rows,
        ),
        "embedding": (
            nn.Sequential(nn.Embedding(9, 9), nn.LayerNorm((4, 9)), nn.Flatten(), nn.Linear(36, 3)),
            lambda: [layers.Embedding(9, 9), layers.LayerNorm((4, 9)), layers.Flatten(), layers.Dense(36, 3)],
            words,
        ),
    }  # fmt: skip


def outputs(network, x):
    import torch

    with torch.no_grad():
        return network(torch.tensor(x)).double().numpy()


@with_torch
@pytest.mark.parametrize("name", ["mlp", "lenet", "layer norm", "embedding"])
class TestOutputs:
    def test_from_pytorch(self, name):
        network, build, x = networks()[name]
        model = xnn.from_torch(seen(network).state_dict(), xnn.Sequential(*build(), seed=5))
        np.testing.assert_allclose(model.predict(x), outputs(network, x), rtol=1e-5, atol=1e-5)
        # With another first layer the names are others, and the order is the same.
        moved = xnn.from_torch(network.state_dict(), xnn.Sequential(layers.Identity(), *build(), seed=6))
        assert weights_sha256(moved) == weights_sha256(model)

    def test_for_pytorch(self, name, tmp_path):
        from safetensors.torch import load_file

        network, build, x = networks()[name]
        model = xnn.Sequential(*build(), seed=5)
        random = np.random.default_rng(2)
        for _, array in model.named_state():
            array.value = random.uniform(0.2, 1.0, array.shape)
        model.save(tmp_path / "model.safetensors")
        arrays = load_file(tmp_path / "model.safetensors")
        for place, layer in (
            (n, layer) for n, layer in enumerate(model) if isinstance(layer, (layers.Dense, xnn.Sequential))
        ):
            key = f"{place}.weight" if isinstance(layer, layers.Dense) else f"{place}.0.weight"
            arrays[key] = arrays[key].T
        network.load_state_dict(arrays)  # raises unless all names and shapes are there
        np.testing.assert_allclose(outputs(network.eval(), x), model.predict(x), rtol=1e-5, atol=1e-5)

    def test_there_and_back(self, name, tmp_path):
        from safetensors.torch import save_file

        network, build, _ = networks()[name]
        save_file(seen(network).state_dict(), tmp_path / "network.safetensors")
        from safetensors.numpy import load_file

        model, other = xnn.Sequential(*build(), seed=5), xnn.Sequential(*build(), seed=6)
        xnn.from_torch(load_file(tmp_path / "network.safetensors"), model)
        xnn.from_torch(network.state_dict(), other)
        assert weights_sha256(model) == weights_sha256(other)


@with_torch
class TestTensors:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_dtypes(self, dtype):
        import torch

        network, build, x = networks()["mlp"]
        network = seen(network).to(getattr(torch, dtype))
        model = xnn.from_torch(network.state_dict(), xnn.Sequential(*build()))
        assert model.dtype == "float32"
        np.testing.assert_allclose(
            model.predict(x), outputs(network.to(torch.float64), x.astype(float)), rtol=1e-4
        )

    def test_training_one_network_leaves_the_other(self):
        network, build, x = networks()["mlp"]
        model = xnn.from_torch(dict(network.named_parameters()), xnn.Sequential(*build()))  # with gradients
        before = outputs(network, x)
        trainer = xnn.Trainer(model, xnn.losses.MSE(), xnn.optimizers.SGD(0.1))
        trainer.fit((x, np.ones((len(x), 3), np.float32)), epochs=2, progress=False)
        assert np.array_equal(outputs(network, x), before)

    @pytest.mark.parametrize(
        "change",
        [lambda t, torch: t.to("meta"), lambda t, torch: t.to(torch.int8), lambda t, torch: t.to_sparse()],
        ids=["meta", "int8", "sparse"],
    )
    def test_tensors_without_numbers_are_refused(self, change):
        import torch

        tensor = change(torch.ones(3, 3), torch)
        with pytest.raises(DTypeError, match=r"^weight "):
            xnn.from_torch({"weight": tensor}, layers.Embedding(3, 3))

    def test_a_module_is_not_a_state_dict(self):
        with pytest.raises(OptionError, match=r"give its \.state_dict\(\)"):
            xnn.from_torch(networks()["mlp"][0], mlp(3, 3))

    def test_a_network_of_ones_own(self):
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.gain = nn.Parameter(torch.ones(4, 4))
                self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                return self.fc2(self.fc1(x) @ self.gain)

        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList([Net(), Net()])

            def forward(self, x):
                return self.blocks[1](self.blocks[0](x))

        network, x = seen(Twice()), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
        model = xnn.from_torch(network.state_dict(), xnn.Sequential(Block(), Block()))
        np.testing.assert_allclose(model.predict(x), outputs(network, x), rtol=1e-5)


# docs/from_pytorch.md: each row of its table, of xnn's layers and of PyTorch's modules.

SIZES = {"inputs": 5, "outputs": 4, "features": 3, "rows": 2, "columns": 7}


def rows():
    """The cells of the table, without the first row."""
    lines = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in cells] for cells in lines]


def documented(cell):
    """The shapes that a cell names, by the array's name."""
    found = re.findall(r"`(\w+)` (\([^)]*\))", cell)
    return {name: eval(shape, {}, SIZES) for name, shape in found}


def built(module, cell):
    return eval(cell.strip("`"), {}, {**vars(module), **SIZES})


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0])
def test_the_arrays_of_a_layer_are_documented(cells):
    assert {n: a.shape for n, a in built(layers, cells[0]).named_state()} == documented(cells[1])


@with_torch
@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[2])
def test_the_arrays_of_a_module_are_documented(cells):
    from torch import nn

    state = built(nn, cells[2]).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == documented(cells[3])
    xnn.from_torch(state, built(layers, cells[0]))


def test_every_layer_with_arrays_is_in_the_table():
    tried = {"inputs": 3, "outputs": 3, "in_channels": 3, "out_channels": 3, "kernel_size": 3, "features": 3,
             "num_embeddings": 3, "embedding_dim": 3}  # fmt: skip
    with_arrays = set()
    for name, kind in layers.Layer.own.items():
        try:
            layer = kind(**{key: 3 for key in tried if key in xnn.options.argument_names(kind)})
        except (TypeError, ValueError):
            continue  # it needs other arguments, and so has no sizes
        if list(layer.named_state()):
            with_arrays.add(name)
    assert with_arrays == {re.match(r"`(\w+)\(", cells[0])[1] for cells in rows()}
