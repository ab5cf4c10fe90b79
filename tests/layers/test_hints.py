"""Mistakes that newcomers make when they write a model: each is told what was received and what is allowed."""

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import OptionError, ShapeError
from xnn.initializers import Ones
from xnn.layers import Buffer, Composite, Dense, Layer, Parameter, Reshape, Sequential


def gain(name="gain", shape=(3,), initializer=None, dtype="float32"):
    return Parameter(name, shape, initializer or Ones(), dtype)


class TestParameters:
    @pytest.mark.parametrize("second", [gain(), Buffer("gain", (2,), Ones(), "float32")])
    def test_two_of_one_name_would_be_one_in_a_file(self, second):
        buffers = [second] if isinstance(second, Buffer) else []
        with pytest.raises(OptionError, match="two parameters or buffers of one name in gain, gain"):
            Layer(gain(), *([] if buffers else [second]), buffers=buffers)

    def test_a_shape_may_be_an_integer(self):
        assert gain(shape=4).value.shape == (4,)
        for wrong in (-1, "4", (2, 1.5), None):
            with pytest.raises(OptionError, match="each extent of the shape must be an integer"):
                gain(shape=wrong)

    @pytest.mark.parametrize("dtype", ["f", "float16", None])
    def test_dtypes_are_those_of_models(self, dtype):
        with pytest.raises(OptionError, match="dtype must be 'float32' or 'float64'"):
            gain(dtype=dtype)

    def test_an_initializer_gives_an_array_of_the_shape(self):
        with pytest.raises(ShapeError, match=r"has shape \(3,\), and its initializer returned list, \[1"):
            gain(initializer=lambda stream, shape: [1.0] * 3).value  # noqa: B018
        with pytest.raises(ShapeError, match=r"returned ndarray of shape \(2,\)"):
            gain(initializer=lambda stream, shape: np.ones(2)).value  # noqa: B018

    @pytest.mark.parametrize("wrong", ["no", 1, None])
    def test_frozen_is_yes_or_no(self, wrong):
        parameter = gain()
        with pytest.raises(OptionError, match=r"gain\.frozen must be True or False"):
            parameter.frozen = wrong
        parameter.frozen = np.bool_(True)
        assert parameter.frozen is True


class TestComposite:
    def test_super_init_need_not_be_called(self):
        class Forgetful(Composite):
            def __init__(self):
                self.gain = gain()
                self.scale = 2.0

            def compute(self, x):
                return x * self.scale * self.gain

        model = Sequential(Forgetful(), seed=1)
        assert [name for name, _ in model.named_parameters()] == ["0.gain"]
        x = np.ones((4, 3), np.float32)
        assert model.forward(x).shape == (4, 3)
        model.backward(x)
        assert model.parameters()[0].grad is not None

    @pytest.mark.parametrize(
        "compute",
        [lambda self, x, gain: x, lambda self, x, gain, training: x, lambda self: 0],
    )
    def test_compute_takes_x_and_perhaps_training(self, compute):
        with pytest.raises(OptionError, match=r"Gate needs `def compute\(self, x\)` or .* self.weight: "):
            type("Gate", (Composite,), {"compute": compute})


class TestOptions:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: losses.MSE(foo=3), "MSE has no option 'foo'; it takes reduction$"),
            (lambda: losses.L1(delta=2), "L1 has no option 'delta'"),
            (lambda: losses.SoftmaxCrossEntropy(weight=[1.0, 2.0]), "no option 'weight'.*class_weight"),
            (lambda: losses.BinaryCrossEntropy(from_logits=True), "no option 'from_logits'.*pos_weight"),
            (lambda: optimizers.SGD(lr=0.1), "SGD has no option 'lr'; it takes learning_rate, .*clip_norm"),
            (lambda: optimizers.Adam(0.1, eps=1e-8), "Adam has no option 'eps'.*epsilon"),
            (lambda: optimizers.AdamW(clipnorm=1.0), "AdamW has no option 'clipnorm'.*clip_norm"),
        ],
    )
    def test_an_unknown_one_is_answered_with_those_there_are(self, make, message):
        with pytest.raises(OptionError, match=message):
            make()

    @pytest.mark.parametrize(
        ("name", "options", "hint"),
        [
            (
                "fit",
                {"validation_data": ()},
                "'validation_data'; it takes data, .*called validation",
            ),
            ("fit", {"verbose": 0}, "called progress here"),
            ("fit", {"max_iter": 5}, "called epochs here"),
            ("fit", {"random_state": 5}, "called seed here"),
            ("fit", {"callbacks": []}, r"Trainer\(\.\.\., callbacks=\[\.\.\.\]\) takes them"),
            ("fit", {"initial_epoch": 3}, "a second fit goes on"),
            ("fit", {"colour": "red"}, "fit has no option 'colour'; it takes .*, shuffle$"),
            ("evaluate", {"verbose": 0}, "evaluate has no option 'verbose'; .*only fit shows anything"),
            ("predict", {"verbose": 0}, "predict has no option 'verbose'; it takes x, .*on_host .*only fit"),
            ("Trainer", {"epochs": 3}, "Trainer has no option 'epochs'; .*fit takes it"),
            ("load", {"test_size": 0.2}, r"load has no option 'test_size'; .*split=\("),
            ("EarlyStopping", {"restore_best_weights": True}, "called restore_best here"),
            ("Dense", {"in_features": 3}, "called inputs here"),
            ("Dense", {"activation": "relu"}, "a layer of its own"),
            ("Conv2D", {"filters": 3}, "called out_channels here"),
            ("LayerNorm", {"eps": 3}, "called epsilon here"),
            ("Dropout", {"p": 0.5}, "called rate here"),
            ("Adam", {"beta_1": 0.5}, "called betas here"),
            ("SoftmaxCrossEntropy", {"weight": [1.0]}, "called class_weight here"),
            ("MSE", {"weight": [1.0]}, "takes reduction$"),
        ],
    )
    def test_one_of_another_library_is_answered_with_xnns(self, name, options, hint):
        model = Sequential(Dense(3, 3))
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1))
        pair = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
        calls = {
            "fit": lambda **options: trainer.fit(pair, **options),
            "evaluate": lambda **options: trainer.evaluate(pair, **options),
            "predict": lambda **options: model.predict(pair[0], **options),
            "Trainer": lambda **options: xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), **options),
            "load": lambda **options: xnn.data.load("synthetic", **options),
            "EarlyStopping": callbacks.EarlyStopping,
        }
        call = calls.get(name) or next(
            getattr(room, name) for room in (layers, losses, optimizers) if hasattr(room, name)
        )
        with pytest.raises(OptionError, match=hint):
            call(**options)

    def test_a_loss_of_ones_own_takes_its_ops_options(self):
        class Power(xnn.Op):
            def forward(self, xp, outputs, targets, *, power=2.0):
                return xp.mean(xp.pow(outputs - targets, power)), None

        class PowerLoss(losses.Loss):
            op = Power()

        assert PowerLoss(power=4.0).run(np.full((2, 2), 2.0), np.zeros((2, 2))) == 16.0
        with pytest.raises(
            OptionError, match="PowerLoss has no option 'exponent'; it takes reduction, power"
        ):
            PowerLoss(exponent=4.0)

    def test_a_trainer_says_what_to_pass(self):
        model = Sequential(Dense(3, 3))
        with pytest.raises(
            OptionError, match=r"an Optimizer, such as optimizers\.SGD.*, as optimizer, got 'sgd'"
        ):
            xnn.Trainer(model, losses.MSE(), "sgd")
        with pytest.raises(OptionError, match=r"a Loss, such as losses\.MSE\(\), or a function"):
            xnn.Trainer(model, "mse", optimizers.SGD())
        with pytest.raises(OptionError, match="kernels='foo' is not a table of kernels of numpy"):
            xnn.Trainer(model, losses.MSE(), optimizers.SGD(), kernels="foo")


def test_training_inside_averaged_would_be_lost():
    x = np.ones((8, 3), np.float32)
    rule = optimizers.SGD(0.1, average=0.9)
    model = Sequential(Dense(3, 3))
    trainer = xnn.Trainer(model, losses.MSE(), rule)
    trainer.fit((x, x), progress=False)
    with rule.averaged():
        with rule.averaged():
            trainer.evaluate((x, x))
        with pytest.raises(OptionError, match="train outside"):
            trainer.fit((x, x), progress=False)
        with pytest.raises(OptionError, match="train outside"):
            rule.step(model.parameters())
    trainer.fit((x, x), progress=False)


class TestModels:
    @pytest.mark.parametrize("wrong", [3, None, 2.5])
    def test_files_have_names(self, wrong):
        model = Sequential(Dense(3, 3))
        for door in (model.save, model.load_weights, xnn.load):
            with pytest.raises(OptionError, match="a file is named by a string or a path"):
                door(wrong)

    def test_summary_takes_a_shape_and_finds_one(self):
        images = Sequential(Reshape((1, 28, 28)), layers.Conv2D(1, 2, 3), layers.Flatten(), Dense(1352, 10))
        assert "(1, 28, 28)" in images.summary()
        assert images.summary() == images.summary(784) == images.summary((784,))
        with pytest.raises(OptionError, match="input_shape: each extent of the shape must be an integer"):
            images.summary("784")
        with pytest.raises(OptionError, match="summary needs input_shape"):
            Sequential(Reshape((1, 28, -1)), layers.Conv2D(1, 2, 3)).summary()


def images(*layers_, shape=(4, 28, 28)):
    return xnn.Sequential(*layers_).predict(np.zeros(shape, np.float32))


def dense():
    return xnn.Sequential(Dense(3, 2), seed=0)


def trainer(loss, outputs=1):
    return xnn.Trainer(xnn.Sequential(Dense(3, outputs)), loss, optimizers.SGD(0.1))


X = np.ones((6, 3), np.float32)
LABELS = np.arange(6) % 3


class TestShapes:
    @pytest.mark.parametrize(
        ("make", "shape"),
        [
            (dense, (3,)),
            (lambda: xnn.Sequential(layers.LayerNorm(3)), (3,)),
            (lambda: xnn.Sequential(layers.BatchNorm(3)), (3,)),
            (lambda: xnn.Sequential(layers.Flatten(), Dense(6, 1)), (2, 3)),
            (lambda: xnn.Sequential(layers.Conv2D(1, 2, 3)), (1, 8, 8)),
            (lambda: xnn.Sequential(layers.Rescale(1.0), layers.Add(Dense(3, 1), Dense(3, 1))), (3,)),
        ],
    )
    def test_one_sample_is_not_a_batch(self, make, shape):
        model, x = make(), np.ones(shape)
        with pytest.raises(
            ShapeError, match=r"predict takes a batch .* one sample of shape .*: x\[None\] is a batch"
        ):
            model.predict(x)
        assert len(model.predict(x[None])) == 1

    def test_one_row_of_indices(self):
        model = xnn.Sequential(layers.Embedding(5, 2), layers.Flatten(), Dense(6, 1))
        with pytest.raises(ShapeError, match=r"one sample of shape \(3,\)"):
            model.predict(np.array([1, 2, 3]))

    def test_what_fits_neither_way_is_not_taken_for_a_sample(self):
        with pytest.raises(ShapeError, match=r"samples of shape \(4,\): the last axis must be 3$"):
            dense().predict(np.ones((3, 4)))

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (Dense(784, 2), r"the last axis must be 784; put Flatten\(\) before it"),
            (layers.BatchNorm(784), r"the first axis must be 784; put Flatten\(\) before it"),
            (layers.LayerNorm(784), r"the last axes must be .784,.; put Flatten\(\) before it"),
            (Dense(100, 2), "the last axis must be 100$"),
            (layers.Conv2D(1, 2, 3), r"Reshape\(\(1, height, width\)\) before it adds the axis of channels"),
            (layers.Conv2D(3, 2, 3), r"got samples of shape \(28, 28\)$"),
        ],
    )
    def test_images_of_another_shape(self, layer, message):
        with pytest.raises(ShapeError, match=message):
            images(layer)

    def test_the_way_out_works(self):
        assert images(layers.Flatten(), Dense(784, 2)).shape == (4, 2)
        assert images(layers.Reshape((1, 28, 28)), layers.Conv2D(1, 2, 3)).shape == (4, 2, 26, 26)
        keras = np.zeros((2, 8, 8, 3), np.float32)
        with pytest.raises(ShapeError, match=r"numpy\.moveaxis\(x, -1, 1\) puts channels first"):
            xnn.Sequential(layers.Conv2D(3, 2, 3)).predict(keras)
        assert xnn.Sequential(layers.Conv2D(3, 2, 3)).predict(np.moveaxis(keras, -1, 1)).shape == (2, 2, 6, 6)


class TestData:
    @pytest.mark.parametrize("y", [(), (LABELS,)])
    def test_a_pair_is_one_argument(self, y):
        """Without y, and with y beside x, as in Keras and scikit-learn."""
        chosen = trainer(losses.SoftmaxCrossEntropy(), 3)
        with pytest.raises(
            OptionError,
            match=r"a pair \(x, y\) of samples and targets, got ndarray: give both in .* as in fit\(\(x, y\)\)$",
        ):
            chosen.fit(X, *y)
        with pytest.raises(OptionError, match=r"got ndarray: give both in .* as in evaluate\(\(x, y\)\)$"):
            chosen.evaluate(X, *y)
        with pytest.raises(OptionError, match=r"got ndarray: .* as in fit\(..., validation=\(x, y\)\)$"):
            chosen.fit((X, LABELS), validation=X)

    @pytest.mark.parametrize(
        "kind", [losses.MSE, losses.L1, losses.Huber, losses.Hinge, losses.BinaryCrossEntropy]
    )
    def test_class_labels_for_a_loss_of_numbers(self, kind):
        with pytest.raises(
            ShapeError, match=r"class labels are for SoftmaxCrossEntropy.*numpy\.eye\(3\)\[y\]$"
        ):
            trainer(kind(), 3).fit((X, LABELS))
        with pytest.raises(ShapeError, match=r"outputs \(n, 1\).*y\.reshape\(-1, 1\) makes a column of y$"):
            trainer(kind(), 1).fit((X, LABELS))

    def test_the_way_out_works(self):
        one_hot = np.eye(3, dtype="float32")[LABELS]
        assert trainer(losses.MSE(), 3).fit((X, one_hot), progress=False).steps == 1
        assert trainer(losses.MSE(), 1).fit((X, LABELS.reshape(-1, 1)), progress=False).steps == 1

    def test_two_classes_for_a_single_output(self):
        with pytest.raises(
            xnn.errors.ShapeError, match="BinaryCrossEntropy takes one output, and targets 0 or 1"
        ):
            trainer(losses.SoftmaxCrossEntropy(), 1).fit((X, LABELS % 2))
        with pytest.raises(xnn.errors.LabelError, match="widen the last layer"):
            trainer(losses.SoftmaxCrossEntropy(), 2).fit((X, LABELS))
