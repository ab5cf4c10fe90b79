"""Real processes of MPI with GPUs. `.ci/emulator.py` makes an environment with CuPy and MPI."""

import sys

import pytest
from test_mpi import MISSING, PROGRAM, alone, ranks, result, without_ranks

from xnn.backends import available_backends

REASON = available_backends()["cupy"] or (f"no {' and no '.join(MISSING)}" if MISSING else "")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "CuPy and MPI run")
COMPILING = 300  # seconds, on a busy machine
WORDS = PROGRAM, "none", "exact", "mpi"


def on(backend, *words):
    """The words that run a program with this backend."""
    code = (
        f"import os, runpy, sys; os.environ['XNN_BACKEND'] = '{backend}'; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    )
    return "-c", code, *map(str, words)


def test_a_process_on_a_gpu_beside_one_on_the_cpu_gives_the_bits_of_one_process():
    other = ":", "-n", "1", sys.executable, *on("numpy", *WORDS)
    found = result(ranks(1, *on("cupy", *WORDS), *other, patience=COMPILING))
    assert (found["ranks"], found["backend"]) == (2, "cupy:0")
    assert without_ranks(found) == without_ranks(result(alone(PROGRAM, "none", "exact", "none")))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", "cupy")
    monkeypatch.setenv("XNN_EMULATOR_DEVICES", "2")
    said = ranks(2, "-m", "xnn", "info").stdout
    assert "on cupy:0 (" in said
    assert ", rank 1 with " in said
    assert "on cupy:1 (" in said.partition(", rank 1 with ")[2] or "cupy:1:" not in said  # there is one GPU
