"""GradientNorm: the norm of the gradients that the optimizer's rule got, in every way of running a step."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends import numerics
from xnn.cli import main

X = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(16, 4)
Y = np.arange(16) % 3


def made(optimizer, *watchers, **options):
    model = xnn.Sequential(layers.Dense(4, 5), layers.Tanh(), layers.Dense(5, 3), seed=0)
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, callbacks=watchers, **options)


def by_hand(trainer, x, y):
    """The norm in float64 of the loss's gradients at the present weights."""
    device = trainer.model.backend.to_device
    outputs = trainer.model.forward(device(x))
    trainer.loss.forward(outputs, device(y))
    trainer.model.backward(trainer.loss.backward())
    arrays = [np.asarray(trainer.model.backend.to_host(p.grad)) for p in trainer.model.parameters()]
    return np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))


@pytest.mark.parametrize("kernels", ["ops", "auto"])
@pytest.mark.parametrize("kind", ["fast", "exact"])
@pytest.mark.parametrize("rule", [optimizers.SGD, optimizers.Adam])
def test_it_is_the_norm_of_the_last_steps_gradients(lib, kind, rule, kernels):
    with numerics(kind):
        right = by_hand(made(rule(0.1)), X, Y)
        trainer = made(rule(0.1), callbacks.GradientNorm(), kernels=kernels)
        history = trainer.fit((X, Y), epochs=2, batch_size=16, progress=False, shuffle=False)
    assert history["gradient_norm"][0] == pytest.approx(right, rel=1e-5)
    assert history["gradient_norm"][1] != history["gradient_norm"][0]


def test_it_is_taken_after_clipping(lib):
    trainer = made(optimizers.SGD(0.1, clip_norm=0.01), callbacks.GradientNorm())
    assert trainer.fit((X, Y), progress=False)["gradient_norm"][0] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("rule", "kind"), [(optimizers.Adam, "fast"), (optimizers.SGD, "exact")])
def test_a_training_has_the_same_bits_with_it(lib, rule, kind):
    """But for plain SGD in fast numerics, which folds its step into the products of the gradients without it."""
    ends = []
    for watchers in ((), (callbacks.GradientNorm(),)):
        with numerics(kind):
            trainer = made(rule(0.1), *watchers)
            trainer.fit((X, Y), epochs=3, batch_size=5, progress=False)
        ends.append([lib.to_host(p.value).tobytes() for p in trainer.model.parameters()])
    assert ends[0] == ends[1]


def test_frozen_parameters_do_not_count():
    trainer = made(optimizers.SGD(0.1), callbacks.GradientNorm())
    first, _, last = trainer.model.layers
    trainer.fit((X, Y), batch_size=16, progress=False)
    first.weight.frozen = first.bias.frozen = True
    norm = trainer.fit((X, Y), batch_size=16, progress=False)["gradient_norm"][0]
    right = np.sqrt((last.weight.grad**2).sum() + (last.bias.grad**2).sum())
    assert norm == pytest.approx(float(right), rel=1e-5)


def test_a_run_goes_on_with_it_or_without(tmp_path):
    for count, watchers in enumerate([(), (callbacks.GradientNorm(),), ()], 1):
        trainer = made(optimizers.Adam(0.1), *watchers, callbacks.Checkpoint(tmp_path))
        trainer.resume(tmp_path)
        history = trainer.fit((X, Y), epochs=count, progress=False)
    assert ["gradient_norm" in entry for entry in history.epochs] == [False, True, False]


def test_the_command_writes_it_to_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    done = CliRunner().invoke(
        main, ["train", "--dataset", "synthetic", "--epochs", "2", "--gradient-norm", "--log", str(log)]
    )
    assert done.exit_code == 0, done.output
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    norms = [entry["gradient_norm"] for entry in entries if "gradient_norm" in entry]
    assert len(norms) == 2
    assert min(norms) > 0
