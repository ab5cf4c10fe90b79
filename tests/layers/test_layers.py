"""Layers, by hand and in a Sequential."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.backends import Purpose, Stream, backend_of, current_numerics
from xnn.errors import DTypeError, GraphError, MixedArraysError, OptionError, ShapeError
from xnn.layers import (
    Affine,
    Dense,
    Dropout,
    Flatten,
    Function,
    Linear,
    ReLU,
    Rescale,
    Sequential,
    Sigmoid,
    Softmax,
)


def host(lib, array):
    return lib.to_host(array)


def test_dense_by_hand(lib):
    layer = Dense(3, 2, seed=4)
    x, dout = lib.to_device(np.ones((5, 3), np.float32)), lib.to_device(np.ones((5, 2), np.float32))
    y = layer.forward(x)
    w = host(lib, layer.weight.value)
    np.testing.assert_allclose(host(lib, y), np.ones((5, 3)) @ w, rtol=1e-6)
    np.testing.assert_allclose(host(lib, layer.backward(dout)), np.ones((5, 2)) @ w.T, rtol=1e-6)
    assert host(lib, layer.weight.grad).tolist() == [[5.0, 5.0]] * 3
    assert host(lib, layer.bias.grad).tolist() == [5.0, 5.0]
    assert layer.backward(dout, input_gradient=False) is None
    assert host(lib, layer.weight.grad).tolist() == [[5.0, 5.0]] * 3


@settings(max_examples=25)
@given(
    lead=st.lists(st.integers(1, 4), min_size=1, max_size=3), inputs=st.integers(1, 6), outputs=st.integers(1, 6),
    bias=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_dense_is_pytorchs_linear(lead, inputs, outputs, bias, seed):
    torch = pytest.importorskip("torch")
    own = Dense(inputs, outputs, bias=bias, dtype="float64", seed=seed)
    theirs = torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    theirs.weight.data = torch.tensor(own.weight.value.T.copy())
    if bias:
        own.bias.value = np.arange(outputs) - 1.5
        theirs.bias.data = torch.tensor(own.bias.value)
    rng = np.random.default_rng(seed)
    x, dy = rng.normal(size=(*lead, inputs)), rng.normal(size=(*lead, outputs))
    given_x = torch.tensor(x, requires_grad=True)
    wanted = theirs(given_x)
    wanted.backward(torch.tensor(dy))
    np.testing.assert_allclose(own.forward(x), wanted.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(own.backward(dy), given_x.grad, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(own.weight.grad, theirs.weight.grad.T, rtol=1e-12, atol=1e-13)
    if bias:
        np.testing.assert_allclose(own.bias.grad, theirs.bias.grad, rtol=1e-12, atol=1e-13)


def test_dense_without_bias():
    layer = Dense(3, 2, bias=False, seed=1)
    assert layer.bias is None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    layer.forward(np.ones((1, 3), np.float32))
    layer.backward(np.ones((1, 2), np.float32))
    assert layer.weight.grad.shape == (3, 2)


def test_each_forward_returns_a_fresh_array():
    layer = Dense(2, 2, seed=0)
    first = layer.forward(np.ones((1, 2), np.float32))
    kept = first.copy()
    layer.forward(np.zeros((1, 2), np.float32))
    assert first.tolist() == kept.tolist()


def test_dense_names():
    assert Affine is Dense is Linear


def test_forward_keeps_the_callers_array(lib):
    x = np.array([[-1.0, 2.0]], dtype=np.float32)
    for layer in (ReLU(), Sigmoid(), Softmax(), Rescale(2.0), Dropout(0.5)):
        given = lib.to_device(x)
        layer.forward(given, training=True)
        layer.backward(given)
        assert host(lib, given).tolist() == [[-1.0, 2.0]]


class TestErrors:
    def test_backward_before_forward(self):
        for layer in (Dense(1, 1), ReLU(), Dropout(0.5), Sequential(Dense(1, 1))):
            with pytest.raises(GraphError, match="before its forward"):
                layer.backward(np.ones((1, 1), np.float32))

    @pytest.mark.parametrize("shape", [(2,), (4, 2), ()])
    def test_width(self, shape):
        with pytest.raises(ShapeError, match=r"Dense\(3, 2\)"):
            Dense(3, 2).forward(np.ones(shape, np.float32))

    def test_dtype_does_not_drift(self):
        with pytest.raises(DTypeError, match="float32 numbers and got float64"):
            Dense(3, 2).forward(np.ones((1, 3)))
        with pytest.raises(DTypeError, match="Rescale"):
            Dense(3, 2).forward(np.ones((1, 3), np.uint8))

    @pytest.mark.parametrize(
        "build",
        [
            lambda: Dense(0, 1),
            lambda: Dense(1, -1),
            lambda: Dense(2.5, 1),
            lambda: Dense(True, 1),
            lambda: Dense(1, 1, dtype="float16"),
            lambda: Dropout(1.0),
            lambda: Dropout(-0.1),
            lambda: Rescale(float("nan")),
            lambda: Function(np.exp),
            lambda: Sequential(Dense),
            lambda: Sequential(np.exp),
            lambda: initializers.Normal(-1.0),
            lambda: initializers.Glorot("gaussian"),
            lambda: initializers.He()(Stream(0, Purpose.WEIGHTS), (3,)),
        ],
    )
    def test_options(self, build):
        with pytest.raises(OptionError):
            build()

    def test_the_same_layer_twice(self):
        layer = ReLU()
        with pytest.raises(OptionError, match="twice"):
            Sequential(layer, layer)

    def test_assigning_another_shape(self):
        with pytest.raises(ShapeError, match=r"\(1, 2\)"):
            Dense(1, 2).weight.value = np.ones((2, 1), np.float32)


class TestWeights:
    def test_a_seed_draws_each_layer_from_its_position(self, lib):
        model = Sequential(Dense(4, 4), Dense(4, 4), seed=3)
        same = Sequential(Dense(4, 4), Dense(4, 4), seed=3)
        other = Sequential(Dense(4, 4), Dense(4, 4), seed=4)
        values = [host(lib, m.layers[i].weight.value) for m in (model, same, other) for i in (0, 1)]
        assert values[0].tobytes() == values[2].tobytes()
        assert values[1].tobytes() == values[3].tobytes()
        assert len({v.tobytes() for v in values}) == 4
        # The draw itself, written out: Glorot normal from the layer's stream, rounded to float32.
        drawn = np.sqrt(2 / 8) * Stream(3, Purpose.WEIGHTS, 1, 0).normal((4, 4))
        assert values[1].tobytes() == drawn.astype(np.float32).tobytes()

    def test_a_layer_alone_takes_its_own_seed_and_keeps_it(self):
        alone = Dense(3, 3, seed=9)
        before = alone.weight.value.copy()
        assert Sequential(ReLU(), alone, seed=1).layers[1].weight.value.tolist() == before.tolist()

    def test_assigned_weights_are_kept(self):
        layer = Dense(2, 1)
        layer.weight.value = [[1.0], [2.0]]
        model = Sequential(layer, seed=5)
        assert model.predict([[1.0, 1.0]]).tolist() == [[3.0]]
        assert layer.weight.value.dtype == np.float32

    @pytest.mark.parametrize(
        ("init", "variance"),
        [
            (initializers.Glorot(), 2 / 500),
            (initializers.Glorot("uniform"), 2 / 500),
            (initializers.He(), 2 / 200),
            (initializers.He("uniform"), 2 / 200),
            (initializers.Normal(0.3), 0.09),
            (initializers.Zeros(), 0.0),
        ],
    )
    def test_initializers(self, init, variance):
        w = init(Stream(0, Purpose.WEIGHTS), (200, 300))
        assert w.dtype == np.float64
        assert w.mean() == pytest.approx(0, abs=3e-3)
        assert w.var() == pytest.approx(variance, rel=0.02)
        if getattr(init, "distribution", "") == "uniform":
            assert np.abs(w).max() <= np.sqrt(3 * variance)

    def test_float64(self):
        model = Sequential(Dense(2, 2, dtype="float64"))
        assert model.dtype == "float64"
        assert model.predict(np.ones((1, 2), np.float32)).dtype == np.float64

    def test_frozen_shows(self):
        layer = Dense(1, 1)
        layer.weight.frozen = True
        assert "frozen" in repr(layer.weight)


class TestDtype:
    def test_assigned_values_are_converted(self):
        layer = Dense(3, 2, seed=0)
        layer.weight.value, layer.bias.value = np.ones((3, 2)), np.zeros(2)
        assert layer.forward(np.ones((1, 3), np.float32)).dtype == np.float32

    def test_a_wider_gradient_is_refused(self):
        layer = Dense(3, 2, seed=0)
        y = layer.forward(np.ones((1, 3), np.float32))
        with pytest.raises(DTypeError, match="outputs of float32 and got a gradient of float64"):
            layer.backward(y - np.zeros((1, 2)))

    def test_layers_before_a_conversion(self):
        """uint8 through Flatten into Rescale; float64 into float32: gradients come back in the input's dtype."""
        model = Sequential(Flatten(), Rescale(1 / 255), Dense(4, 2), seed=0)
        model.forward(np.ones((3, 2, 2), np.uint8), training=True)
        assert model.backward(np.ones((3, 2), np.float32)).shape == (3, 2, 2)
        wide = Sequential(Dense(2, 2, dtype="float64"), Rescale(2.0), Dense(2, 1), seed=0)
        wide.forward(np.ones((3, 2)))
        assert wide.backward(np.ones((3, 1), np.float32)).dtype == np.float64

    def test_numbers_per_feature_that_do_not_fit(self):
        with pytest.raises(ShapeError, match="rescale of"):
            Sequential(Rescale([1.0, 2.0, 3.0]), Dense(4, 2)).predict(np.ones((2, 4)))


class TestNested:
    def test_every_layer_has_a_stream_of_its_own(self):
        model = Sequential(Dense(4, 4), Sequential(Dense(4, 4), Sequential(Dense(4, 4))), Dense(4, 4), seed=3)
        flat = Sequential(*(Dense(4, 4) for _ in range(4)), seed=3)
        names = [name for name, _ in model.named_parameters()][::2]
        assert names == ["0.weight", "1.0.weight", "1.1.0.weight", "2.weight"]
        nested = [p.value.tobytes() for p in model.parameters()]
        assert nested == [p.value.tobytes() for p in flat.parameters()]
        assert len(set(nested[::2])) == 4

    def test_the_outer_seed_rules_unless_the_inner_has_one(self):
        def inner_weight(outer, inner):
            model = Sequential(Sequential(Dense(2, 2), seed=inner), seed=outer)
            return model.parameters()[0].value.tobytes()

        assert inner_weight(1, None) != inner_weight(2, None)
        assert inner_weight(1, 7) == inner_weight(2, 7)

    def test_an_inner_model_with_a_seed_keeps_its_weights(self):
        inner = [Sequential(Dense(3, 3), Dense(3, 3), seed=5) for _ in range(2)]
        before = [p.value.tobytes() for p in inner[0].parameters()]
        outer = Sequential(*inner, Dense(3, 3), seed=1)
        after = [p.value.tobytes() for p in outer.parameters()]
        assert after[:8] == before + before
        flat = Sequential(*(Dense(3, 3) for _ in range(5)), seed=1)
        assert after[8] == flat.parameters()[8].value.tobytes()

    def test_a_moved_model_keeps_its_weights_and_place(self, other):
        inner = Sequential(Dense(3, 3)).to(other.name)
        before = inner.predict(np.ones((1, 3))).tolist()
        Sequential(inner, Dense(3, 2).to(other.name), seed=9)
        assert inner.backend is other
        assert inner.predict(np.ones((1, 3))).tolist() == before
        inner.layers[0].weight.value = np.eye(3).tolist()
        assert inner.predict(np.ones((1, 3))).tolist() == [[1, 1, 1]]

    def test_the_last_op_is_found_inside(self):
        assert Sequential(Dense(1, 1), Sequential(Sigmoid())).threshold == 0.5
        assert Sequential(Function(ops.sigmoid)).threshold == 0.5
        assert Sequential().threshold == Sequential(Dense(1, 1)).threshold == 0.0

    def test_masks_differ(self):
        model = Sequential(Dropout(0.5), Sequential(Dropout(0.5)))
        model.set_stream(3, 0)
        x = np.ones((8, 8), np.float32)
        assert model.layers[0].forward(x, True).tolist() != model.layers[1].forward(x, True).tolist()

    def test_predict_runs_them(self):
        model = Sequential(Dense(3, 4), Sequential(ReLU(), Dense(4, 2)), seed=0)
        flat = Sequential(Dense(3, 4), ReLU(), Dense(4, 2), seed=0)
        x = np.ones((2, 3))
        assert model.predict(x).shape == flat.predict(x).shape == (2, 2)
        assert "1 Sequential" in model.summary()


def test_a_model_can_be_copied_after_use():
    import copy

    model = Sequential(Rescale([1.0, 2.0]), Dense(2, 1), seed=0)
    model.forward(np.ones((1, 2), np.float32))
    assert copy.deepcopy(model).predict([[1.0, 1.0]]).tolist() == model.predict([[1.0, 1.0]]).tolist()
    function = Function(ops.exp)
    assert copy.deepcopy(function).op is function.op


def test_an_empty_batch_of_images():
    assert Sequential(Flatten(), Dense(4, 1)).predict(np.zeros((0, 2, 2))).shape == (0, 1)


def test_an_op_that_forgets_its_tuple_is_told_so():
    class NoPair(xnn.Op):
        def forward(self, xp, x):
            return x * x

        def backward(self, xp, grad, x):
            return (grad,)

    class NoTuple(xnn.Op):
        def forward(self, xp, x):
            return x * x, x

        def backward(self, xp, grad, x):
            return 2.0 * x * grad

    class TwoForOne(NoTuple):
        def backward(self, xp, grad, x):
            return grad, grad

    x = np.ones((2, 2))
    with pytest.raises(GraphError, match="pair"):
        Function(NoPair()).forward(x)
    layer = Function(NoTuple())
    layer.forward(x)
    with pytest.raises(GraphError, match="one gradient per input"):
        layer.backward(x)
    with pytest.raises(GraphError, match="2 gradients for 1 inputs"):
        xnn.grad(lambda v: ops.sum(TwoForOne()(v)))(x)


def test_calling_is_forward():
    layer, x = ReLU(), np.array([[-1.0, 1.0]])
    assert layer(x).tolist() == [[0.0, 1.0]]
    assert layer.backward(x).tolist() == [[0.0, 1.0]]


class TestDropout:
    def test_masks_are_the_same_on_every_backend(self, lib):
        layer = Dropout(0.25, seed=8)
        x = lib.to_device(np.ones((40, 7), np.float32))
        y = host(lib, layer.forward(x, training=True))
        keep = Stream(8, Purpose.DROPOUT, 0, 0).keep(0, 280, 0.25).reshape(40, 7)
        assert y.tobytes() == np.where(keep, np.float32(1 / 0.75), np.float32(0)).tobytes()
        assert host(lib, layer.backward(x)).tobytes() == y.tobytes()

    def test_each_step_has_a_mask_of_its_own_and_can_be_returned_to(self):
        layer, x = Dropout(0.5, seed=1), np.ones((9, 9))
        first, second = layer.forward(x, training=True), layer.forward(x, training=True)
        assert first.tolist() != second.tolist()
        layer.set_stream(1, 0)
        assert layer.forward(x, training=True).tolist() == first.tolist()
        layer.set_stream(1, 0, row=4)
        assert layer.forward(x[4:], training=True).tolist() == first[4:].tolist()

    def test_layers_of_a_model_have_masks_of_their_own(self):
        model = Sequential(Dropout(0.5), Dropout(0.5))
        model.set_stream(3, 7)
        x = np.ones((8, 8), np.float32)
        one, two = (layer.forward(x, training=True) for layer in model.layers)
        assert one.tolist() != two.tolist()

    def test_inference_changes_nothing(self):
        layer, x = Dropout(0.5), np.ones((2, 2))
        assert layer.forward(x).tolist() == x.tolist()
        assert layer.backward(x).tolist() == x.tolist()
        assert Dropout(0.0).forward(x, training=True).tolist() == x.tolist()


def test_rescale(lib):
    x = lib.to_device(np.array([[0, 255], [51, 102]], np.uint8))
    y = host(lib, Rescale(1 / 255).forward(x))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [[0, 1], [0.2, 0.4]], rtol=1e-6)
    each = host(lib, Rescale([1.0, 0.5], [0.0, -1.0], dtype="float64").forward(x))
    np.testing.assert_allclose(each, [[0, 126.5], [51, 50]])


class TestSequential:
    def model(self):
        return Sequential(
            Rescale(1 / 255),
            Dense(784, 100),
            ReLU(),
            Dense(100, 200),
            ReLU(),
            Dense(200, 10),
            Softmax(),
            seed=0,
        )

    def test_names(self):
        assert [name for name, _ in self.model().named_parameters()] == [
            "1.weight",
            "1.bias",
            "3.weight",
            "3.bias",
            "5.weight",
            "5.bias",
        ]

    def test_summary(self):
        lines = self.model().summary().splitlines()
        assert "1 Dense" in lines[2]
        assert "78,500" in lines[2]
        assert "156,900" in lines[2]
        assert lines[-1].split() == ["total", "(10,)", "100,710", "202,204"]
        assert "(12,)" in Sequential(Flatten()).summary((3, 4))
        with pytest.raises(OptionError, match="input_shape"):
            Sequential(ReLU()).summary()
        with pytest.raises(ShapeError, match="cannot take"):
            self.model().summary((783,))

    def test_predict_is_a_door(self, lib):
        model = self.model()
        x = np.random.default_rng(0).integers(0, 256, (10, 784)).astype(np.uint8)
        outputs = model.predict(x, batch_size=3)
        assert isinstance(outputs, np.ndarray)
        assert outputs.shape == (10, 10)
        np.testing.assert_allclose(outputs, model.predict(lib.to_device(x)), rtol=1e-5, atol=1e-7)
        there = model.predict(x, batch_size=3, on_host=False)
        assert backend_of(there) is lib
        np.testing.assert_array_equal(lib.to_host(there), outputs)
        assert model.predict_classes(x).tolist() == outputs.argmax(1).tolist()
        assert model.predict(x[:0]).shape == (0, 10)
        assert all(layer._tape is None for layer in model.layers)

    def test_predict_refuses(self):
        model = self.model()
        with pytest.raises(ShapeError):
            model.predict(np.ones((2, 5)))
        with pytest.raises(ShapeError):
            model.predict(3.0)
        with pytest.raises(DTypeError):
            model.predict(np.array([["a"]]))
        with pytest.raises(OptionError):
            model.predict(np.ones((1, 784)), batch_size=0)
        with pytest.raises(ShapeError, match="predict_classes"):
            Sequential(ReLU()).predict_classes(np.ones((2, 3, 4)))

    @pytest.mark.parametrize("number", [1e300, -1e39, 4e38])
    def test_a_number_too_large_for_the_models_dtype(self, number):
        """It would become infinite on the way; infinity and NaN themselves go through."""
        model = Sequential(Dense(2, 1, seed=0))
        x = np.array([[1.0, 2.0], [number, 2.0]])
        for predict in (model.predict, model.predict_classes):
            with pytest.raises(DTypeError, match=r"a sample holds .*too large for float32: scale"):
                predict(x)
        x[1, 0] = np.inf
        assert np.isfinite(model.predict(x)).tolist() == [[True], [False]]

    @pytest.mark.parametrize("number", [1e300, -1e39])
    def test_a_weight_too_large_for_its_dtype(self, number):
        layer = Dense(2, 1, seed=0)
        said = (
            rf"weight was assigned numbers up to {abs(number):g}, and float32 has none above 3.4e\+38: scale"
        )
        with pytest.raises(DTypeError, match=said.replace("e+300", r"e\+300").replace("e+39", r"e\+39")):
            layer.weight.value = np.array([[np.inf], [number]])

    def test_a_single_output_is_a_yes_or_no(self):
        layer = Dense(1, 1, seed=0)
        layer.weight.value = [[1.0]]
        assert Sequential(layer).predict_classes([[-1.0], [0.5]]).tolist() == [0, 1]

    def test_nan_is_no_class(self):
        with pytest.raises(DTypeError, match="sample 1 are NaN"):
            Sequential(Dense(1, 2)).predict_classes([[1.0], [np.nan]])

    def test_a_sigmoid_output_says_yes_above_a_half(self):
        layer = Dense(1, 1, seed=0)
        layer.weight.value = [[1.0]]
        assert Sequential(layer, Sigmoid()).predict_classes([[-1.0], [0.5]]).tolist() == [0, 1]

    def test_integers_are_never_scaled_behind_the_users_back(self):
        layer = Dense(1, 1, seed=0)
        layer.weight.value = [[1.0]]
        assert Sequential(layer).predict(np.array([[200]], np.uint8)).tolist() == [[200.0]]

    def test_backward_to_the_data_and_not(self, lib):
        model = Sequential(Rescale(0.5), Dense(3, 4), ReLU(), Dense(4, 2), seed=1)
        x = lib.to_device(np.ones((2, 3), np.float32))
        dout = lib.to_device(np.ones((2, 2), np.float32))
        model.forward(x, training=True)
        dx = model.backward(dout)
        first = [host(lib, p.grad) for p in model.parameters()]
        model.forward(x, training=True)
        assert model.backward(dout, input_gradient=False) is None
        assert dx.shape == (2, 3)
        for a, p in zip(first, model.parameters(), strict=True):
            assert a.tobytes() == host(lib, p.grad).tobytes()

    def test_a_model_without_weights(self):
        model = Sequential(ReLU())
        model.forward(np.array([[1.0, -1.0]]), training=True)
        assert model.backward(np.ones((1, 2)), input_gradient=False) is None
        assert model.backward(np.ones((1, 2))).tolist() == [[1.0, 0.0]]
        assert model.backend.name == "numpy"

    def test_to_moves_weights_and_nothing_else_does(self, other):
        model = Sequential(Dense(2, 2), seed=1)
        before = model.predict(np.ones((1, 2)))
        model.forward(np.ones((1, 2), np.float32))
        model.backward(np.ones((1, 2), np.float32))
        assert model.to(other.name) is model
        assert model.backend is other
        with pytest.raises(MixedArraysError):
            model.forward(np.ones((1, 2), np.float32))
        assert model.predict(np.ones((1, 2))).tolist() == before.tolist()
        assert other.to_host(model.parameters()[0].grad).tolist() == [[1, 1], [1, 1]]
        model.to("numpy").forward(np.ones((1, 2), np.float32))

    def test_repr_rebuilds(self):
        text = repr(Sequential(Rescale(0.5), Dense(2, 3), Dropout(0.25), Function(ops.exp)))
        assert text == "Sequential(Rescale(0.5), Dense(2, 3), Dropout(rate=0.25), Function(exp))"

    def test_function_layer(self):
        model = Sequential(Function(ops.exp))
        np.testing.assert_allclose(model.predict(np.zeros((1, 2))), [[1, 1]])


def test_every_layer_is_a_row_of_the_export_table():
    assert {"Dense", "ReLU", "Sequential"} <= set(layers.__all__)
    for name in layers.__all__:
        assert getattr(layers, name).__doc__


def test_a_parameter_that_two_layers_share_is_refused():
    """Layer by layer the second gradient would overwrite the first."""

    class Tied(layers.Dense):
        def __init__(self, other):
            self.weight, self.bias = other.own_parameters

    one = layers.Dense(3, 3)
    with pytest.raises(OptionError, match=r"0\.weight and 1\.weight are one parameter"):
        Sequential(one, Tied(one), seed=0)


def test_a_parameter_is_not_replaced():
    """It would be another than the one that is trained and saved."""
    layer = layers.Dense(2, 2)
    with pytest.raises(OptionError, match=r"assign an array to \.weight\.value"):
        layer.weight = np.ones((2, 2))
    layer.weight.value = np.ones((2, 2), np.float32)


def test_a_layer_with_a_forward_of_its_own_and_no_op():
    """It trains, evaluates and predicts; one with nothing of its own is refused in words."""

    class Doubled(layers.Layer):
        def forward(self, x, training=False):
            self._ran = backend_of(x).name, x.dtype, current_numerics()
            return x + x

        def backward(self, dout, input_gradient=True):
            return dout + dout

    x, y = np.eye(6, dtype=np.float32), np.arange(6)
    model = xnn.Sequential(layers.Dense(6, 6), Doubled(), seed=0)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.5))
    history = trainer.fit((x, y), validation=(x, y), epochs=30, progress=False)
    assert history.epochs[-1]["val_loss"] < history.epochs[0]["val_loss"]
    assert model.predict(x).shape == (6, 6)
    with pytest.raises(OptionError, match="Layer needs an `op`"):
        layers.Layer().forward(x)
