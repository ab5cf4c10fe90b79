"""The exit codes tell divergence, bad data, a disk and memory apart, in all commands and in the help."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from command_line import run

import xnn
from xnn import errors
from xnn.cli.exit_codes import EXIT_CODES, exit_code

TRAIN = ("train", "--hidden", "8", "--batch-size", 50, "--quiet")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OptionError("no"), 2),
        (errors.UnknownBackendError("no"), 2),
        (errors.DivergenceError("no"), 3),
        (errors.DataNotFoundError("no"), 4),
        (errors.CorruptFileError("no"), 4),
        (errors.LabelError("no"), 4),
        (errors.ShapeError("no"), 4),
        (errors.DiskError("no"), 5),
        (OSError(errno.ENOSPC, "full"), 5),
        (OSError(errno.EROFS, "read-only"), 5),
        (OSError(errno.EDQUOT, "quota"), 5),
        (caused(errors.DataNotFoundError("cannot write"), OSError(errno.ENOSPC, "full")), 5),
        (caused(errors.DataNotFoundError("cannot read"), OSError(errno.EACCES, "no permission")), 4),
        (MemoryError("no"), 6),
        (OSError(errno.ENOMEM, "memory"), 6),
        (caused(errors.DataError("cannot map"), OSError(errno.ENOMEM, "memory")), 6),
        (errors.DeviceMemoryError("no"), 6),
        (caused(errors.CorruptFileError("too large"), MemoryError()), 6),
        (errors.BackendUnavailableError("no"), 1),
        (caused(errors.BackendUnavailableError("GPU full"), MemoryError()), 1),
        (errors.MissingExtraError("no"), 1),
        (OSError(errno.EPIPE, "closed"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error, code):
    assert exit_code(error) == code
    assert f"{code} " in EXIT_CODES


def test_the_help_lists_them():
    assert run("--help").stdout.endswith(
        "".join(f"  {line}\n" for line in EXIT_CODES.removeprefix("\b\n").splitlines())
    )


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, x=rng.normal(size=(300, 4)).astype(np.float32), y=rng.integers(0, 3, 300))
    return path


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_memory(*arguments, **options):
    raise MemoryError("Unable to allocate 9.0 TiB")


@pytest.mark.parametrize(
    ("words", "broken", "code"),
    [
        ((), None, 0),
        (("--lr", "-1"), None, 2),
        (("--lr", "1e30"), None, 3),
        (("--dataset", "nosuch.csv"), None, 4),
        (("--save", "m.safetensors"), ("os.fsync", full), 5),
        ((), ("xnn.initializers.Glorot.__call__", no_memory), 6),
        ((), ("xnn.cli.train.load", no_memory), 6),
        ((), ("xnn.cli.train.load", full), 5),
    ],
)
def test_xnn_train_ends_with_them(table, tmp_path, monkeypatch, words, broken, code):
    monkeypatch.chdir(tmp_path)
    if broken:
        monkeypatch.setattr(*broken)
    result = run(*TRAIN, "--dataset", table, *words)
    assert result.exit_code == code, result.stderr
    assert bool(result.stderr) == bool(code)


def test_a_process_ends_with_them(table, tmp_path):
    """A folder that goes while it trains is a failing disk, and not a wrong option."""
    saved = tmp_path / "gone" / "m.safetensors"
    saved.parent.mkdir()
    program = (
        "import shutil, sys, xnn.cli.train as train\n"
        "load = train.load\n"
        f"train.load = lambda *a, **o: (shutil.rmtree({str(saved.parent)!r}), load(*a, **o))[1]\n"
        "from xnn.cli import main\n"
        "main(sys.argv[1:])"
    )
    words = map(str, [*TRAIN, "--dataset", table, "--save", saved])
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 5, done.stderr
    assert "there is no folder" in done.stderr
    assert run("predict", saved, table).exit_code == 4


MISSING = [
    "predict no.safetensors data.npz", "predict m.safetensors no.npz", "predict m.safetensors no/folder",
    "predict m.safetensors no.png", "export no.safetensors out.onnx", "import no.onnx out.safetensors", "report no",
    "report no.jsonl", "report m.safetensors --data no.npz", "report m.safetensors --data no/folder",
    "train --dataset no.csv", "train --dataset no/folder", "train --model no.toml --dataset data.npz",
    "verify no.jsonl threads=1", "verify threads=1 no.jsonl", "verify threads=1 threads=2 --dataset no.npz",
]  # fmt: skip
DAMAGED = [
    "predict bad.safetensors data.npz", "predict m.safetensors bad.npz", "predict m.safetensors bad.csv",
    "export bad.safetensors out.onnx", "import bad.onnx out.safetensors", "report bad.safetensors",
    "report bad.csv", "train --dataset bad.npz", "train --dataset bad.csv", "verify bad.csv threads=1",
]  # fmt: skip
UNFIT = [
    "predict m.safetensors wide.npz", "report m.safetensors --data numbers.npz",
    "export m.safetensors out.onnx --input-shape 7",
]  # fmt: skip
WRONG = [
    "predict m.safetensors nosuch", "train --dataset nosuch", "report m.safetensors --data nosuch",
    "verify threads=1 threads=2 --dataset nosuch", "train --model bad.toml --dataset data.npz",
    "verify nosuch threads=1",
    "train --dataset data.npz --save no/m.safetensors", "train --dataset data.npz --report no/r.html",
    "train --dataset data.npz --log no/l.jsonl", "export m.safetensors no/out.onnx",
    "import m.onnx no/out.safetensors", "report m.safetensors -o no/r.html",
    "predict m.safetensors data.npz --output no/o.npy", "train --dataset data.npz --backend nosuch",
    "check --backend nosuch", "verify backend=nosuch threads=1", "predict m.safetensors data.npz --backend nosuch",
]  # fmt: skip


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((words, 4) for words in (*MISSING, *DAMAGED, *UNFIT)),
        *((words, 2) for words in WRONG),
    ],
)
def test_one_kind_of_mistake_has_one_code_in_all_commands(table, tmp_path, monkeypatch, words, code):
    pytest.importorskip("onnx")
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    xnn.Sequential(xnn.layers.Dense(4, 3), seed=0).save("m.safetensors")
    for ending in ("safetensors", "onnx", "npz", "csv", "toml"):
        (tmp_path / f"bad.{ending}").write_text("= nothing")
    rng = np.random.default_rng(0)
    np.savez("wide.npz", x=rng.normal(size=(40, 9)), y=rng.integers(0, 3, 40))
    np.savez("numbers.npz", x=rng.normal(size=(40, 4)), y=rng.normal(size=40))
    result = run(*words.split())
    assert result.exit_code == code, result.stderr
    assert not {"out.onnx", "out.safetensors", "report.html"} & set(os.listdir())


def test_a_disk_that_cannot_be_written_has_its_code_before_the_work_too(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xnn.files._temporary", lambda *path: full())
    result = run(*TRAIN, "--dataset", table, "--save", "m.safetensors")
    assert (result.exit_code, "No space left" in result.stderr) == (5, True)
