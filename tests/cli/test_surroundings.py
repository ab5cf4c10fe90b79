"""Commands in odd surroundings: closed streams, signals, interpreter options, locales, and names with escapes."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import one_json, refused, run
from naming import plain

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.files import StandardError, notice, printable

# NumPy's kernels, since Numba takes longer to import than all the rest.
TRAIN = ["--hidden", "8", "--epochs", "2", "--batch-size", "50", "--threads", "1", "--kernels", "numpy"]
posix = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell and signals")
linux = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")


def shell(redirection, *words, **options):
    """Run `python -m xnn` with a redirection such as "2>&-" by the shell."""
    line = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "xnn", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)


# Standard streams.


@pytest.mark.sampled(8)
@linux
@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "2>&- <&-", "2</dev/null"])
def test_standard_error_that_cannot_be_written(digits, tmp_path, streams):
    """Notices are lost, and everything else is as it was. Opened files do not get the number of the closed stream."""
    saved, log = tmp_path / "m.safetensors", tmp_path / "l.jsonl"
    words = ("train", "--dataset", digits, *TRAIN, "--json", "--save", saved, "--log", log)
    done = shell(streams, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["weights_sha256"] == xnn.layers.files.weights_sha256(xnn.load(saved))
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 4


@pytest.mark.sampled(8)
@linux
@pytest.mark.parametrize(
    ("words", "code", "streams"),
    [
        ("trian", 2, "2>/dev/full"),
        ("train --epochs 0", 2, "2>&-"),
        ("train --dataset nosuch", 2, "2>&-"),
        ("predict nosuch mnist", 4, "2>/dev/full"),
    ],
)
def test_the_exit_code_of_an_error_that_cannot_be_shown(words, code, streams):
    done = shell(streams, *words.split())
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.sampled(8)
@linux
@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", ">/dev/full 2>/dev/full", "</dev/null >/dev/full"])
def test_results_that_cannot_be_printed(digits, tmp_path, streams):
    """The model is saved, and one line says so where it can be shown. The exit code is 5 where the disk is full."""
    path = tmp_path / "m.safetensors"
    done = shell(streams, "train", "--dataset", digits, *TRAIN, "--save", path)
    assert (done.returncode, done.stdout) == (5 if "full" in streams else 1, "")
    if "2>" not in streams:
        assert done.stderr.startswith("xnn: cannot write the output: ")
        assert done.stderr.count("\n") == 1
    assert xnn.load(path).layers


def failing(error):
    class Stream(io.StringIO):
        def write(self, text):
            raise error

        def isatty(self):
            return True

    return Stream()


@pytest.mark.parametrize(
    "stream", [None, failing(BrokenPipeError()), failing(OSError(5, "EIO")), "closed"], ids=plain
)
def test_a_training_in_python_without_standard_error(monkeypatch, tmp_path, stream):
    """Progress bars and notices go to it."""
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", out)
    x = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(64, 1)
    watchers = [
        callbacks.EpochLines(),
        callbacks.JsonLines("/dev/full" if os.path.exists("/dev/full") else "nul"),
    ]
    model = xnn.Sequential(layers.Dense(1, 1), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), callbacks=watchers)
    assert len(trainer.fit((x, x), epochs=2).epochs) == 2
    notice("a line")
    assert "a line" not in out.getvalue()
    assert StandardError().isatty() in (True, False)


def test_no_stream_is_used_without_its_guard():
    """sys.stderr may be None, and print(file=None) prints on standard output; `notice` and StandardError know it."""
    root = Path(xnn.__file__).parent
    known = {root / "files.py", root / "cli" / "surroundings.py"}
    faulty = ("file=sys.stderr", "sys.stderr.", "stderr=True", "err=True")
    for file in sorted(root.rglob("*.py")):
        if file not in known and "benchmarks" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert [word for word in faulty if word in text] == [], file


# Signals.


@pytest.mark.sampled(8)
@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_training_that_is_asked_to_end_saves_its_model(digits, tmp_path, number):
    """As Ctrl-C does; the exit code is that of the signal."""
    log, path = tmp_path / "log.jsonl", tmp_path / "m.safetensors"
    words = [sys.executable, "-m", "xnn", "train", "--dataset", digits, *TRAIN, "--quiet"]
    words += ["--epochs", "10000000", "--log", log, "--save", path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (log.exists() and '"epoch"' in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert xnn.load(path).layers
    assert json.loads(log.read_text().splitlines()[-1])["interrupted"] is True


@pytest.mark.sampled(8)
@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_download_that_is_ended_leaves_no_part_of_a_file(tmp_path, number):
    """The server sends half a file and no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = (
            "import sys, xnn.data.datasets as datasets, xnn.data.sources as sources\n"
            f"datasets._MNIST_MIRRORS = ('http://127.0.0.1:{server.getsockname()[1]}/',)\n"
            "sources._TIMEOUT = 60.0\n"
            "from xnn.cli import main\n"
            "main(['train', '--dataset', 'mnist'], prog_name='xnn')"
        )
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(tmp_path),
            "XNN_DATA_HOME": "",
            "no_proxy": "127.0.0.1",
        }
        words = [sys.executable, "-c", program]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(200_000))
                deadline = time.monotonic() + 60
                while not any(file.is_file() for file in tmp_path.rglob("*")):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (128 + number, "xnn: interrupted")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("place", ["save", "evaluate", "result"])
def test_ctrl_c_while_the_results_are_written(digits, tmp_path, monkeypatch, place):
    """Nothing is lost; the exit code is 130 all the same."""
    owner, name = {
        "save": (layers.files, "save"),
        "evaluate": (xnn.Trainer, "evaluate"),
        "result": (layers.files, "weights_sha256"),
    }[place]
    right = getattr(owner, name)

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return right(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)
    path = tmp_path / "m.safetensors"
    result = run("train", "--dataset", digits, *TRAIN, "--json", "--save", path)
    assert (result.exit_code, json.loads(result.stdout)["epochs"]) == (130, 2)
    assert xnn.load(path).layers


@posix
@pytest.mark.parametrize("module", ["numpy", "click"])
def test_ctrl_c_while_modules_are_imported(tmp_path, module):
    """A module of that name, which `python -m` finds first, stands for the time in which the real one is imported."""
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / f"{module}.py").write_text(interrupt)
    words = [sys.executable, "-m", "xnn", "train"]
    environment = {**os.environ, "PYTHONPATH": str(Path(xnn.__file__).parents[1])}
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_a_program_imports_xnn(tmp_path):
    """A program of the user's gets its KeyboardInterrupt."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    program = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(Path(xnn.__file__).parents[1])!r}]\n"
    program += "try:\n    import xnn\nexcept KeyboardInterrupt:\n    print('mine')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "mine\n")


# Interpreter options, variables and folders.

HELPS = """
from xnn.cli import main
for name in ("", "train", "predict", "export", "import", "info", "bench", "check", "verify"):
    try:
        main([*filter(None, [name]), "--help"], prog_name="xnn")
    except SystemExit:
        pass
"""


@pytest.mark.slow
def test_help_without_docstrings():
    """`python -OO` removes them, and help is the same."""
    texts = [
        subprocess.run(
            [sys.executable, *flags, "-c", HELPS], capture_output=True, text=True, timeout=60, check=True
        )
        for flags in ([], ["-OO"])
    ]
    assert texts[0].stdout.count("Usage: xnn ") == 9
    assert texts[0].stdout == texts[1].stdout


def test_no_check_is_an_assert():
    """`python -O` removes asserts. Those there are say a type to mypy."""
    root, found = Path(xnn.__file__).parents[1], 0
    for file in (file for part in ("xnn", "backends", "benchmarks") for file in (root / part).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node.test)
                assert text.endswith(" is not None") or text.startswith("isinstance("), (
                    f"{file}:{node.lineno}: {text}"
                )
                found += 1
    assert found > 10


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        (["-W", "error"], {}),
        pytest.param(["-OO"], {}, marks=pytest.mark.slow),
        ([], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        pytest.param([], {"COLUMNS": "1", "LINES": "1", "TERM": "dumb"}, marks=pytest.mark.slow),
        ([], {"HOME": "/nonexistent", "XDG_CACHE_HOME": ""}),
        pytest.param([], {"HOME": None}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_in_odd_surroundings(folder, tmp_path, flags, variables):
    """A table whose name and labels are not ASCII; the same bits as here."""
    table, saved = tmp_path / "dätä.csv", tmp_path / "m€.safetensors"
    table.write_text((folder / "two.csv").read_text().replace("yes", "ja✓"), encoding="utf-8")
    numba = ["--kernels", "auto"] if "HOME" in variables else []  # it has its cache below HOME
    options = [*TRAIN, *numba]
    here = one_json(run("train", "--dataset", table, *options, "--json"))
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    words = ["-m", "xnn", "train", "--dataset", table, *options, "--save", saved]
    done = subprocess.run(
        [sys.executable, *flags, *words], capture_output=True, env=environment, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert here["weights_sha256"][:16] in done.stdout.decode()
    assert xnn.load(saved).layers


@pytest.mark.slow
def test_a_folder_with_files_named_like_modules(digits, tmp_path):
    """The installed command and the processes that it starts do not import them."""
    for name in ("numpy", "random", "json", "backends", "xnn", "click"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "bin" / "xnn"
    script.parent.mkdir()
    script.write_text("import sys\nfrom xnn.__main__ import main\nsys.exit(main())\n")
    words = [
        sys.executable,
        script,
        "verify",
        "threads=1",
        "kernels=ops",
        "--dataset",
        digits,
        "--steps",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(xnn.__file__).parents[1])}
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all bits agree" in done.stdout


def test_a_data_home_of_a_user_who_is_not_there(monkeypatch):
    refused(
        run("train", "--dataset", "mnist", "--data-home", "~no such user/x"), 2, "there is no such folder"
    )
    monkeypatch.setenv("XNN_DATA_HOME", "~no such user/x")
    assert run("info").exit_code == 2


# Text from files and from the command line.

ESCAPE = "\x1b[31mred\x07"


@pytest.mark.parametrize("text", ["a\nb", ESCAPE, "\x9b31m", "\u202ereversed", "\udcff", "\r", "\x7f"])
def test_control_characters_are_escaped(text, capsys):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("unicode_escape", "surrogatepass") == text
    assert printable("plain ä € 漢 'quoted' \\") == "plain ä € 漢 'quoted' \\"
    notice(f"xnn: {text}")
    assert capsys.readouterr().err == f"xnn: {shown}\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("train", "--dataset", f"no\n{ESCAPE}.csv"), 4),
        (("train", "--dataset", f"no\n{ESCAPE}"), 2),
        (("train", "--model", f"no\n{ESCAPE}.toml"), 4),
        (("train", "--save", f"no\n{ESCAPE}/m.safetensors"), 2),
        (("train", "--schedule", f"no\n{ESCAPE}"), 2),
        (("train", f"surplus\n{ESCAPE}"), 2),
        (("train", f"--no\n{ESCAPE}"), 2),
        (("train", "--activation", f"no\n{ESCAPE}"), 2),
        (("train", "--hidden", f"no\n{ESCAPE}"), 2),
        ((f"no\n{ESCAPE}",), 2),
        (("predict", f"no\n{ESCAPE}", "mnist"), 4),
        (("verify", f"no\n{ESCAPE}", "threads=1"), 2),
        (("bench", "--preset", f"no\n{ESCAPE}", "--backend", "numpy"), 2),
        (("bench", "--peers", f"no\n{ESCAPE}"), 2),
        (("check", "--backend", f"no\n{ESCAPE}"), 2),
    ],
)
def test_escapes_on_the_command_line_reach_no_terminal(words, code):
    """An error is one line, whatever its names hold."""
    result = run(*words)
    assert result.exit_code == code, result.output
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage: ", "Try "))]
    assert len(lines) == 1
    assert "\\x1b[31mred\\x07" in lines[0].replace("\\\\", "\\")


def test_escapes_in_files_reach_no_terminal(folder, tmp_path):
    """Names of classes in notes, and names of files in the results."""
    table = tmp_path / f"t\n{ESCAPE}.csv"
    rows = [f"{n % 7},{n % 3},{'rare' if n % 9 == 0 else 'often'}{ESCAPE}" for n in range(200)]
    table.write_text("\n".join(["a,b,kind", *rows]) + "\n")
    saved, record = tmp_path / f"m\n{ESCAPE}.safetensors", tmp_path / f"r\n{ESCAPE}.jsonl"
    result = run("train", "--dataset", table, *TRAIN, "--save", saved, "--record", record)
    assert (result.exit_code, "\x1b" in result.output) == (0, False)
    assert "rare\\x1b[31mred" in result.stderr
    assert f"model: {printable(str(saved))}" in result.stdout.splitlines()
    result = run("verify", record, record)
    assert (result.exit_code, "\x1b" in result.output) == (0, False)


def test_escapes_in_variables_reach_no_terminal(monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", f"no\n{ESCAPE}")
    result = run("info")
    assert (result.exit_code, "\x1b" in result.output) == (2, False)
