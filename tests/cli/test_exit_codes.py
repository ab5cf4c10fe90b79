"""The exit codes tell divergence, bad data, a disk and memory apart, in all commands and in the help."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from command_line import run

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
