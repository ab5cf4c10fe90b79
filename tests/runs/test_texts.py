"""What records and texts keep of a run: every option, with all its digits, so that the same run verifies."""

from __future__ import annotations

import inspect
import json
from dataclasses import MISSING, fields

import numpy as np
import pytest
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_runs import RUN, SIDE, record

from xnn import Sequential, initializers, layers, schedules
from xnn.data import Dataset
from xnn.errors import OptionError
from xnn.layers import files
from xnn.runs.architecture import Architecture
from xnn.runs.digests import read_record
from xnn.runs.names import ACTIVATIONS, LOSSES, OPTIMIZERS
from xnn.runs.replay import Digests, Record, RecordSide, as_text, lock_step
from xnn.runs.schedule_text import NAMED, read_schedule, recorded_schedule, schedule_text
from xnn.runs.spec import RunSpec

COUNT, REAL = st.integers(1, 10**9), st.floats(0.0, 1e300)
# Strategies for the arguments of schedules, by their names; the others are counts or real numbers.
ARGUMENTS = {
    "warmup": st.floats(0.0, 1.0, exclude_max=True),
    "shape": st.sampled_from(["line", "cosine"]),
    **dict.fromkeys(("start", "end of onecycle"), st.floats(1.0, 1e300)),
    **dict.fromkeys(("every", "steps", "growth"), COUNT),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMED)
@given(data=st.data())
def test_every_argument_of_a_schedule_survives_its_text(name, data):
    """Also one that equals a default, of the class or of the run; and however long the run is that reads it."""
    kind, chosen = schedules.SCHEDULES[name], {}
    for field in fields(kind)[1:]:
        key = f"{field.name} of {name}" if f"{field.name} of {name}" in ARGUMENTS else field.name
        values = ARGUMENTS.get(key, REAL)
        chosen[field.name] = data.draw(
            values if field.default is MISSING else values | st.just(field.default)
        )
    schedule = kind(0.25, **chosen)
    steps, per_epoch = data.draw(COUNT), data.draw(COUNT)
    text = schedule_text(schedule)
    assert read_schedule(text, 0.25, steps, per_epoch) == schedule
    assert recorded_schedule(text) == text


SHARE = st.floats(0.0, 1.0, exclude_max=True)
# A strategy for each option of a run.
OPTIONS = {
    "hidden": st.lists(st.integers(1, 10**6), max_size=3).map(tuple),
    "activation": st.sampled_from(list(ACTIVATIONS)),
    "optimizer": st.sampled_from([name for name in OPTIMIZERS if name != "lbfgs"]),
    "lr": st.none() | st.floats(1e-300, 1e300),
    "batch_size": COUNT,
    "seed": st.integers(0, 2**64 - 1),
    "dropout": SHARE,
    "model": st.none() | st.just(Architecture([{"type": "Dense", "outputs": "classes", "bias": False}])),
    "loss": st.none() | st.sampled_from(list(LOSSES)),
    "label_smoothing": st.just(0.0) | SHARE,
    "class_weight": st.none() | st.just("balanced"),
    "momentum": st.just(0.0) | SHARE,
    "weight_decay": st.none() | SHARE,
    "clip_norm": st.none() | st.floats(1e-300, 1e300),
    "schedule": st.none() | st.sampled_from(["cosine:steps=9", "exponential:factor=0.1,every=1"]),
    "warmup": st.none() | COUNT,
    "average": st.none() | SHARE,
    "augment": st.floats(0.0, 9.0),
    "scale_target": st.booleans(),
    "standardize": st.none() | st.just("float64"),
}


@settings(max_examples=60)
@given(data=st.data())
def test_every_option_of_a_run_survives_a_record(data):
    """As JSON and back: the same run, with the same digits. Also what depends on the data is filled in only once."""
    assert OPTIONS.keys() == {field.name for field in fields(RunSpec)}
    chosen = {name: data.draw(values, label=name) for name, values in OPTIONS.items()}
    if chosen["model"] is not None:
        chosen |= {"hidden": (), "activation": "", "dropout": 0.0}
    try:
        spec = RunSpec(**chosen)
    except OptionError:  # options that do not go together, such as momentum and adam
        return
    kept = json.loads(json.dumps(spec.as_json()))
    again = RunSpec.from_json(kept, "0.2")
    assert again.as_json() == spec.as_json()
    assert repr(json.loads(json.dumps(again.as_json()))) == repr(kept)
    x, y = np.zeros((64, 784), np.uint8), np.arange(64) % 2
    samples = Dataset("bytes", x, y, x, y, x, y, sample_shape=(28, 28))
    try:
        resolved = spec.resolved(samples, 10**6)
    except OptionError:  # the warm-up is longer than this run
        return
    for again in (resolved, RunSpec.from_json(json.loads(json.dumps(resolved.as_json())), "0.2")):
        assert again.resolved(samples, 10**7).as_json() == resolved.as_json()


@pytest.mark.parametrize("strength", [0.1, 1 / 3, 1.0])
def test_every_option_of_an_augmentation_survives_a_model_file(strength):
    for layer in layers.augmentation((9, 7), strength):
        config = json.loads(json.dumps(layer.config()))
        assert config.keys() > set()
        again = type(layer)(**config)
        assert json.dumps(again.config()) == json.dumps(layer.config())
        assert files.full_text(again) == files.full_text(layer)


#: For each argument of an initializer, other values than its default.
INITIALIZER_VALUES = {
    "distribution": st.sampled_from(["normal", "uniform"]),
    "mode": st.sampled_from(["fan_in", "fan_out"]),
    **dict.fromkeys(("gain", "slope", "std"), st.floats(1e-30, 1e30)),
    **dict.fromkeys(("value", "mean"), st.floats(-1e30, 1e30)),
    "low": st.floats(-1e30, -1e-30),
    "high": st.floats(0.0, 1e30),
}


@pytest.mark.parametrize("name", [name for name in initializers.__all__ if name != "Initializer"])
@settings(max_examples=15)
@given(data=st.data())
def test_every_option_of_an_initializer_survives_a_record(name, data):
    """The network of a record draws the same weights as the one of the file, and as the initializer itself."""
    kind = getattr(initializers, name)
    options = {
        key: data.draw(INITIALIZER_VALUES[key], label=key) for key in inspect.signature(kind).parameters
    }
    plan = [{"type": "Dense", "inputs": 6, "outputs": 6, "weight_init": {"type": name, **options}}]
    networks = [Architecture(json.loads(json.dumps(given))) for given in (plan, json.loads(json.dumps(plan)))]
    built = [network.build((6,), 6, None, 3) for network in networks]
    own = Sequential(layers.Dense(6, 6, weight_init=kind(**options)), seed=3)
    weights = [model.parameters()[0].value.tobytes() for model in (*built, own)]
    assert weights[0] == weights[1] == weights[2]
    assert repr(eval(repr(kind(**options)), vars(initializers).copy())) == repr(kind(**options))


def side(**options):
    plan = {"numerics": "exact"}
    return RecordSide("r", Record({"run": options, "plan": plan}, {}, Digests("", "", ""), []))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([[1], [2]], [1, 2]),
        ([[1, 2], [3]], [[1], [2, 3]]),
        ("3", 3),
        (["a,b"], ["a", "b"]),
        (None, "None"),
        (0.1, 0.1 + 1e-17),
    ],
)
def test_options_that_look_alike_are_two_runs_only_if_they_differ(one, other):
    """They are compared by their values; a message that says what differs shows two different texts."""
    if one == other:
        assert lock_step(side(model=one), side(model=other), 0) is None
        return
    with pytest.raises(OptionError, match="two different runs") as caught:
        lock_step(side(model=one), side(model=other), 0)
    first, second = str(caught.value).partition("model is ")[2].split(" in r")[:2]
    assert first != second.removeprefix(", ")


def test_nested_lists_as_text():
    assert as_text([[1, 2], [3]]) == "[1,2],[3]"


# Records and live runs.


@pytest.mark.sampled(8)
@pytest.mark.parametrize("text", ["exponential:every=1,factor=0.9", "onecycle:warmup=0.3,end=10000"])
def test_a_record_with_arguments_that_equal_defaults_verifies(folder, text):
    """`every=1` is the default of the class, and not that of the run."""
    path = record(folder, "schedule.jsonl", "--schedule", text)
    result = run("verify", path, SIDE, "--dataset", folder / "digits.npz")
    assert result.exit_code == 0, result.output
    assert "all bits agree" in result.stdout


def test_a_part_of_a_record_that_is_shorter_than_its_warm_up_verifies(folder):
    path = record(folder, "warmup.jsonl", "--warmup", 8, "--schedule", "cosine")
    result = run("verify", path, SIDE, "--dataset", folder / "digits.npz", "--steps", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("3 steps, ")


def test_a_schedule_in_a_record_of_version_0_1(folder):
    """It left out every=1. The record verifies against a live run, and against a record made now."""
    path = record(folder, "now.jsonl", "--schedule", "exponential:every=1,factor=0.9")
    old = read_record(path)
    old.about["run"]["schedule"] = "exponential:factor=0.9"
    old.save(folder / "old.jsonl")
    for other in (SIDE, path):
        result = run("verify", folder / "old.jsonl", other, "--dataset", folder / "digits.npz")
        assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_two_live_runs_of_one_schedule(folder):
    words = ("--dataset", folder / "digits.npz", *RUN, "--schedule", "exponential:every=1,factor=0.9")
    result = run("verify", SIDE, "kernels=numpy,threads=1", *words, "--steps", 4)
    assert (result.exit_code, "schedule exponential:factor=0.9,every=1" in result.stdout) == (0, True)
