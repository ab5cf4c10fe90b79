"""The command line as a whole: exit codes, wrong options, output that cannot be written, Ctrl-C, help."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import command, one_json, refused, run

import xnn
from xnn.cli import main
from xnn.layers import files

# NumPy's kernels, since Numba takes longer to import than all the rest.
TRAIN = ("--hidden", "16", "--epochs", 2, "--batch-size", 50, "--kernels", "numpy")
without_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")


WRONG = [
    ("--backend nosuch", {}, "nosuch"),
    ("", {"XNN_BACKEND": "nosuch"}, "XNN_BACKEND"),
    ("", {"XNN_BACKEND": "NumPy"}, "NumPy"),
    ("", {"XNN_NUMERICS": "half"}, "XNN_NUMERICS"),
    ("--dataset mnist", {"XNN_DATA_HOME": "nowhere"}, "XNN_DATA_HOME"),
    ("--dataset mnist --data-home nowhere", {}, "nowhere"),
    ("--dataset nosuch", {}, "nosuch"),
    ("--hidden abc", {}, "abc"),
    ("--hidden 10,0", {}, "10,0"),
    ("--hidden 10,-5", {}, "10,-5"),
    ("--hidden 1.5", {}, "1.5"),
    ("--hidden ,", {}, "','"),
    ("--hidden 100,,200", {}, "100,,200"),
    ("--hidden 100,", {}, "100,"),
    ("--lr -1", {}, "-1"),
    ("--lr nan", {}, "nan"),
    ("--lr inf", {}, "inf"),
    ("--lr fast", {}, "fast"),
    ("--dropout 1.5", {}, "1.5"),
    ("--dropout 1", {}, "1"),
    ("--dropout -0.1", {}, "-0.1"),
    ("--dropout nan", {}, "nan"),
    ("--epochs 0", {}, "epochs"),
    ("--epochs many", {}, "epochs"),
    ("--patience 0", {}, "patience"),
    ("--patience 1.5", {}, "patience"),
    ("--batch-size 0", {}, "batch"),
    ("--seed -1", {}, "seed"),
    ("--seed 18446744073709551616", {}, "seed"),
    ("--threads 0", {}, "threads"),
    ("--optimizer muon", {}, "muon"),
    ("--activation mish", {}, "mish"),
    ("--nosuch", {}, "nosuch"),
    ("surplus", {}, "surplus"),
    ("--save no/m.safetensors", {}, "no folder"),
    ("--save m.pt", {}, "safetensors"),
    ("--plot c.gif", {}, "c.gif"),
    ("--plot no/c.png", {}, "no folder"),
    ("--log no/log.jsonl", {}, "no folder"),
]


@pytest.mark.parametrize(("args", "variables", "message"), WRONG, ids=[f"{a}{v or ''}" for a, v, _ in WRONG])
def test_wrong_options(digits, tmp_path, monkeypatch, args, variables, message):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(run("train", "--dataset", digits, *TRAIN, "--json", *args.split()), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_wrong_option_in_a_real_process(digits):
    """In a process of its own: the exit code, and one line on standard error without a traceback."""
    done = command("train", "--dataset", digits, env={**os.environ, "XNN_BACKEND": "nosuch"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("XNN_BACKEND", "nosuch", "numpy", "cupy"))


@pytest.mark.parametrize("value", ["", " numpy "])
def test_empty_variables_are_unset_ones(digits, monkeypatch, value):
    monkeypatch.setenv("XNN_BACKEND", value)
    monkeypatch.setenv("XNN_NUMERICS", "")
    assert one_json(run("train", "--dataset", digits, *TRAIN, "--json"))["backend"] == "numpy"


def test_option_before_variable(digits, monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", "nosuch")
    report = one_json(run("train", "--dataset", digits, *TRAIN, "--json", "--backend", "numpy"))
    assert report["backend"] == "numpy"


@without_cupy
@pytest.mark.parametrize("how", ["option", "variable", "check"])
def test_cupy_where_it_is_missing(digits, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("XNN_BACKEND", "cupy")
    args = ("check",) if how == "check" else ("train", "--dataset", digits, *TRAIN)
    result = run(*args, *(() if how == "variable" else ("--backend", "cupy")))
    refused(result, 1, "pip install")
    assert "ctk" in result.stderr


@pytest.mark.parametrize("content", [b"", b"1,2\n3,x\n", b"1,2,3\n4,5\n"])
def test_corrupt_data(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    refused(run("train", "--dataset", path, *TRAIN), 4, "t.csv")


def test_nan_in_the_data(tmp_path):
    path = tmp_path / "t.npz"
    x = np.arange(60.0).reshape(20, 3)
    x[7, 1] = np.nan
    np.savez(path, x=x, y=np.arange(20) % 2)
    refused(run("train", "--dataset", path, *TRAIN), 4, "NaN")


def test_divergence(digits, tmp_path):
    """In a process of its own, so that a warning of NumPy's on standard error would be seen."""
    path = tmp_path / "m.safetensors"
    done = command("train", "--dataset", digits, *TRAIN, "--lr", "1e30", "--json", "--save", path)
    assert (done.returncode, done.stdout) == (3, "")
    why, kept = done.stderr.splitlines()
    assert "as it was before that step" in kept
    assert "step " in why
    assert "layer " in why
    assert "learning_rate" in why
    assert all(np.isfinite(p.value).all() for p in xnn.load(path).parameters())
    assert "step " in files.metadata(path)["notes"]["error"]


def test_a_network_too_large_for_the_memory(digits, monkeypatch):
    """One line. The test refuses the allocation, since a system may promise memory that it does not have."""

    def refuse(*arguments):
        raise MemoryError("Unable to allocate 57.0 TiB")

    monkeypatch.setattr("xnn.initializers.Glorot.__call__", refuse)
    result = run("train", "--dataset", digits, *TRAIN)
    refused(result, 6, "57.0 TiB")
    assert "--hidden" in result.stderr


def test_plot_without_matplotlib(digits, tmp_path, monkeypatch):
    """The error comes before training."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    log = tmp_path / "log.jsonl"
    result = run("train", "--dataset", digits, *TRAIN, "--plot", tmp_path / "c.png", "--log", log)
    refused(result, 1, "pip install")
    assert not log.exists()


def test_save_on_a_full_disk(digits, tmp_path, monkeypatch):
    """The results are printed although the file cannot be written."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("train", "--dataset", digits, *TRAIN, "--json", "--save", path)
    assert result.exit_code == 5
    assert json.loads(result.stdout)["epochs"] == 2
    assert "No space left" in result.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.safetensors", b"before")]


@pytest.mark.sampled(8)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("output", ["closed pipe", "full disk"])
def test_report_that_cannot_be_printed(digits, tmp_path, output):
    """As in `xnn train | head`, and `xnn train > report.txt` on a full disk: the model is saved all the same."""
    path = tmp_path / "m.safetensors"
    if output == "full disk":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    words = [sys.executable, "-m", "xnn", "train", "--dataset", digits, *map(str, TRAIN), "--save", path]
    done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(out)
    assert done.returncode == (5 if output == "full disk" else 1)
    assert "Traceback" not in done.stderr
    assert [p.shape for p in xnn.load(path).parameters()] == [(784, 16), (16,), (16, 10), (10,)]


@pytest.mark.sampled(8)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("args", [("--help",), ("--version",), ("train", "--help")])
def test_help_on_a_full_disk(args):
    words = [sys.executable, "-m", "xnn", *args]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (5, "xnn: cannot write the output: No space left on device\n")


@pytest.mark.sampled(8)
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c(digits, tmp_path, as_json):
    """Ctrl-C after the first epoch gives exit code 130, a report, and a saved model."""
    log, path = tmp_path / "log.jsonl", tmp_path / "m.safetensors"
    words = [sys.executable, "-m", "xnn", "train", "--dataset", digits, "--hidden", "16"]
    words += ["--epochs", "10000000", "--log", log, "--save", path, *(["--json"] if as_json else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not (log.exists() and '"epoch"' in log.read_text()):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in out
    saved = files.weights_sha256(xnn.load(path))
    end = json.loads(log.read_text().splitlines()[-1])
    assert (end["event"], end["interrupted"]) == ("end", True)
    if as_json:
        report = json.loads(out)
        assert report["interrupted"] is True
        assert report["weights_sha256"] == saved
        assert report["steps"] == end["steps"] > 0
        assert len(report["history"]) == report["epochs"] > 0
    else:
        assert saved[:16] in out
        assert str(path) in out


def test_ctrl_c_before_training(digits, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("xnn.cli.train.load", interrupted)
    result = run("train", "--dataset", digits)
    assert (result.exit_code, result.stderr.strip()) == (130, "xnn: interrupted")


# Help.


COMMANDS = ("train", "predict", "export", "import", "info", "bench", "check", "verify")

# What start-up does not need: modules of the libraries that only some run asks for.
LATER = {
    *("array_api_compat", "array_api_strict", "cupy", "llvmlite", "matplotlib", "numba", "onnx", "platformdirs"),
    *("pooch", "requests", "rich", "safetensors", "scipy", "sklearn", "threadpoolctl", "torch"),
}  # fmt: skip


def loaded_by(program):
    """The names of the modules that a program has loaded at its end, and its finished process."""
    program = f"import sys\ntry:\n    {program}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split()), done


def test_import_xnn_imports_nothing_heavy():
    """Neither `import xnn` nor the use of its public names imports packages that only some runs need."""
    names, _ = loaded_by("import xnn")
    assert {"xnn", "numpy"} <= names
    assert not names & {*LATER, "click", "ssl"}
    names, _ = loaded_by("import xnn; [getattr(xnn, name) for name in xnn.__all__]")
    assert not names & {*LATER, "click", "ssl"}


@pytest.mark.parametrize("preset", ["norms", "lenet"])
def test_numpys_kernels_do_without_numba(preset):
    """A fit and an evaluation by them import neither it nor LLVM."""
    names, _ = loaded_by(
        "import xnn; from xnn.benchmarks import networks; "
        f"model, (x, y) = networks.in_xnn({preset!r}), xnn.data.synthetic_digits(40); "
        "trainer = xnn.Trainer("
        "model, xnn.losses.SoftmaxCrossEntropy(), xnn.optimizers.SGD(0.01), kernels='numpy'); "
        "assert trainer.fit((x, y), epochs=1, batch_size=20, progress=False).plan['kernels'] == 'numpy'; "
        "trainer.evaluate((x, y))"
    )
    assert "xnn.backends.kernels.numpy_kernels" in names
    assert not names & {"numba", "llvmlite"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["predict", "-h"], ["--version"]])
def test_help_imports_nothing_heavy(args):
    """Help must come at once: what a command needs is imported when the command runs."""
    names, done = loaded_by(f"from xnn.cli import main; main({args!r}, prog_name='xnn')")
    assert not names & {*LATER, "ssl"}
    assert "click" in names
    assert ("Usage: xnn" in done.stdout) == ("--version" not in args)
    if args[0].startswith("--"):  # the group's own: no command is imported, and no layer
        assert "xnn.cli" in names
        assert not names & {"xnn.layers", *(f"xnn.cli.{name}" for name in COMMANDS)}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_the_first_sentence_of_its_help(name):
    (line,) = (line for line in run("--help").stdout.splitlines() if line.startswith(f"  {name} "))
    text = " ".join(run(name, "--help").stdout.split())
    assert f" {line.split(maxsplit=1)[1]} " in text
    command = main.get_command(None, name)
    assert command.name == name
    assert all(option.help for option in command.params if option.param_type_name == "option")


def test_an_unknown_command():
    refused(run("trian"), 2, "No such command 'trian'")


def test_help_explains_itself():
    text = run("--help").stdout
    assert all(name in text for name in (*COMMANDS, "130"))
    assert xnn.__version__ in run("--version").stdout
    options = (
        "hidden",
        "activation",
        "optimizer",
        "lr",
        "batch-size",
        "epochs",
        "seed",
        "dropout",
        "threads",
    )
    for option in (*options, "dataset", "backend", "save", "plot", "log", "json", "quiet"):
        assert f"--{option}" in run("train", "--help").stdout
