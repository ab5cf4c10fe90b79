"""Time to accuracy: both contestants train the same recipe; which times count; one run in processes."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from click.testing import CliRunner

from xnn.backends import available_backends
from xnn.benchmarks import time_to_accuracy
from xnn.benchmarks.time_to_accuracy import CONTESTANTS, RECIPES, Recipe, text, to_accuracy
from xnn.cli import main
from xnn.data import synthetic_digits
from xnn.errors import DataNotFoundError, OptionError
from xnn.runs.process import Process
from xnn.schedules import OneCycle

# The data set has 600 rows: 9 whole batches and a smaller one in each epoch.
ADAM = Recipe("tiny-adam", (16,), 64, 3, "adam", 0.02, betas=(0.8, 0.9))
NESTEROV = Recipe(
    "tiny-sgd", (32, 16), 64, 6, "sgd", 0.1, warmup=0.25, start=10.0, end=100.0, nesterov=True, offset=-0.1
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A file of 600 training images, of which 60 become validation data, and 200 test images."""
    x, y = synthetic_digits(800)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, x_train=x[:600], y_train=y[:600], x_test=x[600:], y_test=y[600:])
    return str(path)


def test_recipes_go_through_json_as_they_are():
    for name, recipe in {**RECIPES, "tiny-sgd": NESTEROV}.items():
        assert recipe.name == name
        assert time_to_accuracy._recipe(json.loads(json.dumps(asdict(recipe)))) == recipe
    assert RECIPES["one-cycle"].steps(60_000) == 5 * 235
    with pytest.raises(OptionError, match="adam or sgd, got 'lion'"):
        replace(ADAM, optimizer="lion")


@pytest.mark.parametrize("recipe", [ADAM, NESTEROV], ids=lambda recipe: recipe.name)
def test_xnn_takes_the_recipes_rates_and_learns(recipe, dataset, monkeypatch):
    rates = {}

    class Recorded(OneCycle):
        def __call__(self, step):
            rates[step] = super().__call__(step)
            return rates[step]

    monkeypatch.setattr(time_to_accuracy, "OneCycle", Recorded)
    contestant = CONTESTANTS["xnn-numpy"](dataset, 1)
    assert len(contestant.x) == 600
    answer = contestant.run(recipe, 0)
    assert list(rates) == list(range(recipe.steps(600)))
    assert max(rates.values()) == pytest.approx(recipe.peak, rel=0.1)
    assert answer["accuracy"] > 0.5
    assert contestant.run(recipe, 0)["accuracy"] == answer["accuracy"]


@pytest.mark.parametrize("recipe", [ADAM, NESTEROV, *RECIPES.values()], ids=lambda recipe: recipe.name)
def test_pytorch_takes_the_same_rates(recipe, dataset):
    """The learning rate of PyTorch's optimizer before each step is the recipe's."""
    pytest.importorskip("torch")
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    rates = []
    contestant = CONTESTANTS["torch"](dataset, 1)

    def look(optimizer, *_):
        rates.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(look)
    try:
        seconds, count = contestant.train(recipe, 0, 600)
    finally:
        hook.remove()
    schedule = recipe.schedule(600)
    np.testing.assert_allclose(rates, [schedule(step) for step in range(recipe.steps(600))], rtol=1e-9)
    assert seconds > 0
    assert count() > (0.5 if recipe in (ADAM, NESTEROV) else 0.0)
    _, optimizer, rate = contestant.build(recipe, 0, 60_000)
    schedule = recipe.schedule(60_000)
    for step in range(recipe.steps(60_000)):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(step), rel=1e-9)
        optimizer.step()  # without gradients it does nothing
        rate.step()


def test_pytorch_is_given_the_same_network_and_inputs(dataset):
    torch = pytest.importorskip("torch")
    contestant, own = CONTESTANTS["torch"](dataset, 1), CONTESTANTS["xnn"](dataset, 1)
    net, optimizer, _ = contestant.build(NESTEROV, 0, 600)
    assert [tuple(p.shape) for p in net.parameters()] == [(32, 784), (32,), (16, 32), (16,), (10, 16), (10,)]
    assert torch.count_nonzero(net[0].bias) == 0
    assert float(net[0].weight.detach().std()) == pytest.approx((2 / 816) ** 0.5, rel=0.05)  # Glorot
    assert optimizer.defaults["nesterov"]
    assert optimizer.defaults["momentum"] == 0.9
    assert contestant.build(ADAM, 0, 600)[1].defaults["betas"] == (0.8, 0.9)
    contestant.train(NESTEROV, 0, 64)
    np.testing.assert_allclose(contestant.x, own.x * NESTEROV.scale + NESTEROV.offset, rtol=1e-5, atol=1e-6)
    contestant.train(ADAM, 0, 64)
    np.testing.assert_allclose(contestant.x, own.x / 255, rtol=1e-6)


def judged(recipe, contestant, seconds, accuracies, reason=""):
    entry = {"recipe": recipe, "contestant": contestant, "warm_up_seconds": 0.5, "reason": reason}
    return time_to_accuracy._judge({**entry, "seconds": seconds, "accuracies": accuracies}, 0.98)


def test_a_time_counts_only_if_the_median_accuracy_reached_the_target():
    results = [
        judged("slow", "xnn", [2.0, 9.0, 1.0], [0.979, 0.985, 0.98]),
        judged("slow", "torch", [4.0, 4.5, 3.0], [0.981, 0.982, 0.983]),
        judged("quick", "xnn", [1.0, 1.5, 1.25], [0.981, 0.982, 0.983]),
        judged("quick", "torch", [1.0, 1.0, 1.0], [0.979, 0.9799, 0.983]),
        judged("short", "xnn", [0.5, 0.5, 0.5], [0.97, 0.97, 0.97]),
        judged("short", "torch", [3.0], [0.99], "torch is not there"),
    ]
    assert [e["reached"] for e in results] == [True, True, True, False, False, False]
    assert results[0]["median_seconds"] == 2.0
    assert results[0]["quartiles"] == [1.5, 5.5]
    assert results[0]["median_accuracy"] == 0.98
    assert results[5]["seconds"] == []
    told = text(results, 0.98).splitlines()
    assert told[0].startswith("seconds to 98.0%")
    assert told[2].split() == ["slow", "xnn", "2.00", "1.50", "-", "5.50", "98.00%", "0.50"]
    assert told[5].endswith("not reached: 97.99% after 1.00 s")
    assert told[7].endswith("no figure: torch is not there")
    assert told[8:] == ["  slow: xnn / torch: 0.50", "  fastest of xnn: quick, 1.25 s"]
    assert "fastest" not in text(results[3:], 0.98)


def test_contestants_in_processes(dataset, tmp_path, monkeypatch):
    """A library that is not installed, a recipe that fails, and one that works."""
    (tmp_path / "torch.py").write_text("raise ImportError('an empty shell')")
    monkeypatch.syspath_prepend(tmp_path)
    said = []
    recipes = (replace(ADAM, name="breaks", optimizer="sgd", peak=1e30), ADAM)
    results = to_accuracy(0.5, recipes, ("xnn-numpy", "torch"), 2, 1, said.append, dataset)
    assert [(e["recipe"], e["contestant"]) for e in results] == [
        ("breaks", "xnn-numpy"),
        ("breaks", "torch"),
        ("tiny-adam", "xnn-numpy"),
        ("tiny-adam", "torch"),
    ]
    assert "not finite" in results[0]["reason"]
    assert "pip install torch" in results[1]["reason"]
    assert "pip install torch" in results[3]["reason"]
    good = results[2]
    assert good["reached"]
    assert good["reason"] == ""
    assert len(good["seconds"]) == len(good["accuracies"]) == 2
    assert min(*good["seconds"], good["warm_up_seconds"]) > 0
    assert "tiny-adam, seed 1: xnn-numpy" in said
    assert "fastest of xnn: tiny-adam" in text(results, 0.5)
    json.dumps(results)


def test_a_process_that_dies_is_a_reason(dataset):
    worker = Process("xnn-numpy", "xnn.benchmarks.time_to_accuracy", 1)
    assert worker.ask(name="xnn-numpy", dataset=dataset, threads=1) == {"ready": True}
    worker._process.kill()
    worker._process.wait()
    assert worker.ask(do="run", recipe=asdict(ADAM), seed=0) == {}
    assert "the process of xnn-numpy ended unexpectedly" in worker.error
    worker.close()


def test_what_cannot_be_run(monkeypatch):
    with pytest.raises(OptionError, match="'keras'; choose xnn, xnn-numpy, xnn-cupy, torch"):
        to_accuracy(0.98, contestants=("xnn", "keras"))
    with pytest.raises(OptionError, match="target"):
        to_accuracy(98)
    with pytest.raises(OptionError, match="seeds"):
        to_accuracy(0.98, seeds=0)
    monkeypatch.setattr("xnn.data.on_disk", lambda: {"synthetic": "drawn by xnn"})
    with pytest.raises(DataNotFoundError, match="set XNN_DATA_HOME"):
        to_accuracy(0.98)


@pytest.mark.parametrize(("accuracies", "code"), [((0.981, 0.982), 0), ((0.981, 0.979), 1)])
def test_the_command(monkeypatch, tmp_path, accuracies, code):
    """The exit code is 1 if a recipe of xnn does not reach the accuracy."""

    def invented(target, contestants, threads, say):
        assert [name for name in contestants if name != "xnn-cupy"] == ["xnn", "torch"]
        assert ("xnn-cupy" in contestants) == (not available_backends()["cupy"])
        say("a, seed 0: xnn")
        entries = (judged("a", "xnn", [1.0], [accuracies[0]]), judged("b", "xnn", [2.0], [accuracies[1]]))
        return [*entries, judged("a", "torch", [2.0], [0.98])]

    monkeypatch.setattr(time_to_accuracy, "to_accuracy", invented)
    arguments = ["bench", "--to-accuracy", "0.98", "--peers", "torch", "--json", str(tmp_path / "a.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "a: xnn / torch: 0.50" in result.output
    assert result.stderr.splitlines()[0] == "  a, seed 0: xnn"
    assert json.loads((tmp_path / "a.json").read_text())["target"] == 0.98
    wrong = CliRunner().invoke(main, ["bench", "--to-accuracy", "0.98", "--peers", "jax"])
    assert wrong.exit_code == 2
    assert "and takes one peer: use --peers torch" in wrong.output
