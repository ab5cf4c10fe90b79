"""Values that no option takes: each option of each command refuses them before anything is done."""

from __future__ import annotations

import os

import pytest
from command_line import refused, run

import xnn
from xnn import layers
from xnn.cli import main

EMPTY = [
    *(
        ("train", option)
        for option in (
            "--dataset",
            "--model",
            "--data-home",
            "--save",
            "--plot",
            "--log",
            "--record",
            "--checkpoint",
            "--tensorboard",
            "--report",
        )
    ),
    *(("predict", option) for option in ("--data-home", "--output")),
    *(("export", option) for option in ("--c", "--torch")),
    *(("bench", option) for option in ("--json", "--plot", "--compare")),
    *(("report", option) for option in ("--output", "--data-home")),
    *(("verify", option) for option in ("--dataset", "--model", "--data-home")),
]


@pytest.mark.parametrize(("command", "option"), EMPTY)
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(command, option, name):
    """It is that of an unset variable of the shell, and the file would silently not be written."""
    files = {
        "export": ("m.safetensors",),
        "predict": ("m.safetensors", "mnist"),
        "report": ("m.safetensors",),
        "verify": ("threads=1", "threads=2"),
    }.get(command, ())
    refused(run(command, *files, f"{option}={name}"), 2, option, "the name is empty")


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize(
    "line",
    [("predict", "NAME", "mnist"), ("predict", "m", "NAME"), ("report", "NAME"), ("export", "NAME", "m.onnx"),
     ("export", "m", "NAME"), ("import", "NAME", "m.safetensors"), ("import", "m.onnx", "NAME")],
    ids=" ".join,
)  # fmt: skip
def test_an_argument_without_a_name_is_refused(line, name):
    """It would be the current folder."""
    refused(run(*(name if word == "NAME" else word for word in line)), 2, "the name is empty: give one")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("line", "name"),
    [
        (("train", "--epochs", "1", "--dataset"), "table.csv"),
        (("train", "--epochs", "1", "--dataset"), "data.npz"),
        (("train", "--epochs", "1", "--model"), "network.toml"),
        (("predict", "m.safetensors"), "table.csv"),
        (("predict", "m.safetensors"), "data.npy"),
        (("predict", "m.safetensors"), "photo.png"),
        (("report",), "run.jsonl"),
        (("verify", "threads=1"), "run.jsonl"),
    ],
    ids=str,
)
def test_a_pipe_is_refused_and_does_not_hang(line, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xnn.Sequential(layers.Dense(4, 2), seed=0).save("m.safetensors")
    os.mkfifo(name)
    result = run(*line, name)
    assert result.exit_code in (2, 4)
    assert len(result.stderr.splitlines()) == 1
    assert name in result.stderr


def test_no_option_for_a_file_or_folder_was_forgotten():
    commands = {
        name: main.get_command(None, name)
        for name in ("train", "report", "predict", "export", "import", "bench", "verify", "check", "info")
    }
    named = [
        (name, option.opts[0])
        for name, command in commands.items()
        for option in command.params
        if option.metavar in ("FILE", "DIR") or option.opts[0] == "--dataset"
    ]
    assert sorted(named) == sorted(EMPTY)


@pytest.mark.parametrize(
    "command", [("train",), ("verify", "threads=1", "threads=2"), ("predict", "m", "mnist")]
)
def test_a_data_home_that_is_not_there_is_refused_for_every_data_set(folder, command):
    """Also where it has no effect, as for a file."""
    words = () if command[0] == "predict" else ("--dataset", folder / "two.csv")
    refused(run(*command, *words, "--data-home", folder / "nowhere"), 2, "no such folder")


HUGE = "9" * 5000
VALUES = (
    "",
    " ",
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "é",
    HUGE,
    "true",
    "[]",
    "1,,2",
    "--",
    "=",
    "\u2028",
)


def options_with_values(command):
    """The options of a command that take a number or one of some words, with values that they refuse."""
    for option in main.get_command(None, command).params:
        if (
            option.param_type_name == "option"
            and not option.is_flag
            and (command, option.opts[0]) not in EMPTY
        ):
            for value in VALUES:
                yield command, option.opts[0], value


#: Values that an option takes, or of which only the data can tell.
ALLOWED = {
    "--hidden": {"", " ", "\u2028"},
    "--batch-sizes": {"", " ", "\u2028"},
    "--peers": {""},
    "--target": set(VALUES),
    "--augment": {"0", "--"},
    "--seed": {"0"},
    "--backend": {""},
    "--numerics": {""},
    **{
        name: {"0"}
        for name in ("--dropout", "--label-smoothing", "--momentum", "--weight-decay", "--average")
    },
}


@pytest.mark.parametrize("command", ["train", "verify", "bench"])
def test_every_option_refuses_what_it_does_not_take(monkeypatch, command):
    """With exit code 2 and one line of error, before data are read or anything is printed."""
    nothing_runs = lambda *args, **options: pytest.fail("something was run")  # noqa: E731
    for place in ("xnn.cli.train.load", "xnn.cli.verify.LiveSide", "xnn.benchmarks.suite.run_task"):
        monkeypatch.setattr(place, nothing_runs)
    monkeypatch.setattr("xnn.benchmarks.time_to_accuracy.to_accuracy", nothing_runs)
    sides = ("threads=1", "threads=2") if command == "verify" else ()
    for _, option, value in options_with_values(command):
        if value not in ALLOWED.get(option, ()):
            result = run(command, *sides, f"{option}={value}")
            assert (result.exit_code, result.stdout) == (2, ""), (option, value[:20], result.output)
            lines = [
                line
                for line in result.stderr.splitlines()
                if line and not line.startswith(("Usage: ", "Try "))
            ]
            assert len(lines) == 1, (option, value[:20], result.stderr)


@pytest.mark.parametrize("threads", ["0", "-1", "1000", HUGE, "1.5", "١", "two", ""])
def test_numbers_of_threads_that_no_machine_has(threads):
    refused(run("train", f"--threads={threads}"), 2, "--threads")
    refused(
        run("verify", "threads=1", f"threads={threads}"), 2, "threads" if threads else "neither a file nor"
    )


@pytest.mark.parametrize("width", ["99999999999", "4611686018427387904", HUGE])
def test_a_width_that_no_memory_holds(width):
    refused(run("train", "--hidden", f"8,{width}"), 2, "--hidden")
