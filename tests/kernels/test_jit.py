"""Numba's cache: where none can be written or trusted, machine code is compiled without one."""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

import xnn
from xnn import layers, losses, optimizers
from xnn.backends.kernels import compiled_kernels, compiled_loops, compiling, jit
from xnn.backends.kernels.image_calls import run_no_images
from xnn.backends.kernels.jit import Loop
from xnn.backends.kernels.rows import run_nothing, run_nothing_together

MODULE = """
from xnn.backends.kernels.jit import jit

@jit
def inner(x):
    return x + 1.0

@jit
def outer(x):
    return 2.0 * inner(x)
"""
USE = """
import loops
from xnn.backends.kernels.jit import load
load(lambda: loops.outer(1.0), loops.outer)
print(loops.outer(2.0), loops.outer.stats.cache_path)
"""
FULL_DISK = """
import contextlib
from numba.core import caching
@contextlib.contextmanager
def full(self, path):
    raise OSError(28, "No space left on device")
    yield
caching.IndexDataCacheFile._open_for_write = full
"""


def compiled(folder, program=USE, **variables):
    """Run a program beside a module with two compiled functions. Returns its result, its cache and standard error."""
    (folder / "loops.py").write_text(MODULE)
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result, cache = done.stdout.split()
    return float(result), cache, done.stderr


def test_no_folder_for_the_cache(tmp_path):
    """Neither NUMBA_CACHE_DIR nor __pycache__ nor the user's cache can be made, whoever the user is."""
    (tmp_path / "file").touch()
    (tmp_path / "__pycache__").touch()
    nowhere = tmp_path / "file" / "no"
    found = compiled(tmp_path, NUMBA_CACHE_DIR=nowhere, HOME=nowhere, XDG_CACHE_HOME=nowhere)
    assert found == (6.0, "None", "")


@pytest.mark.slow
def test_a_cache_that_fills_the_disk(tmp_path):
    result, _, said = compiled(tmp_path, FULL_DISK + USE, NUMBA_CACHE_DIR=tmp_path / "cache")
    assert (result, said) == (6.0, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the folders of users apart")
@pytest.mark.parametrize(
    "fault",
    [
        "open file",
        *(
            pytest.param(f, marks=pytest.mark.slow)
            for f in ("folder of another", "file of another", "open folder")
        ),
    ],
)
def test_a_cache_that_others_can_write_is_not_loaded(tmp_path, fault):
    """Its files are pickles, and loading one runs what is in it. One line says so, and the result is right."""
    cache = tmp_path / "cache"
    _, used, said = compiled(tmp_path, NUMBA_CACHE_DIR=cache)
    assert (said, used.startswith(str(cache))) == ("", True)
    (file, *_) = cache.rglob("*.nbi")
    # Loading this file would end the process.
    file.write_bytes(b"cos\n_exit\n(I7\ntR.")
    place = file if "file" in fault else file.parent
    if "open" in fault:
        place.chmod(0o777)
    elif os.getuid() == 0:
        os.chown(place, 65534, -1)
    else:
        pytest.skip("only root can give a file to another user")
    result, used, said = compiled(tmp_path, NUMBA_CACHE_DIR=cache)
    assert (result, used) == (6.0, "None")
    assert said.count("\n") == 1
    assert said.startswith(f"xnn: Numba's cache {file.parent} ")
    assert ("every" if "open" in fault else "another") + " user" in said


@pytest.fixture
def square(tmp_path, monkeypatch):
    """A function in a file of its own, whose machine code is cached beside it."""
    (tmp_path / "squares.py").write_text("def square(x):\n    return x * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_cached", [])
    yield importlib.import_module("squares").square
    del sys.modules["squares"]


def test_machine_code_is_compiled_again_when_a_file_with_loops_has_changed(square, monkeypatch):
    hits = []
    for stamp in ("now", "now", "later"):
        monkeypatch.setattr(jit, "_stamp", lambda stamp=stamp: stamp)
        compiled = jit.jit(square)
        assert compiled(3.0) == 9.0
        hits.append(sum(compiled.stats.cache_hits.values()))
    assert hits == [0, 1, 0]


def test_a_numba_with_another_cache_compiles_without_one(square, monkeypatch):
    monkeypatch.setattr(jit, "_add_stamp", lambda compiled: compiled._cache._none_of_this_name)
    compiled = jit.jit(square)
    assert (compiled(3.0), compiled.stats.cache_path) == (9.0, None)


def test_machine_code_is_compiled_again_when_a_file_with_constants_has_changed():
    folder = Path(jit.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*_loops.py"))
    used = re.findall(r"^from xnn\.(?:ops|ops\.|backends\.)(\w*) import (.+)", text, re.MULTILINE)
    named = {module.__name__.rpartition(".")[2] for module in jit._CONSTANTS}
    assert {name for module, names in used for name in ([module] if module else names.split(", "))} == named
    assert len(jit._stamp.__wrapped__()) == len([*folder.glob("*.py")]) + len(named)


LOOPS = [
    Loop(function, np.dtype(dtype))
    for function in (compiled_loops.copy, compiled_loops.add, compiled_loops.fold_bias)
    for dtype in ("float32", "float64")
]


@pytest.fixture
def no_machine_code(tmp_path, monkeypatch):
    """An empty cache, for this process and those that it starts."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    forget()
    yield
    forget()


def forget():
    jit._code_of.cache_clear()
    jit._addresses.clear()


def test_another_process_compiles_what_nobody_has_taken(no_machine_code, tmp_path):
    assert all(loop.waits_for_compiler for loop in LOOPS)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "2").touch()
    assert compiling.start_helper(str(taken), LOOPS).wait(120) == 0
    assert [loop.waits_for_compiler for loop in LOOPS] == [number == 2 for number in range(len(LOOPS))]
    assert sorted(file.name for file in taken.iterdir()) == [str(number) for number in range(len(LOOPS))]


def test_another_process_compiles_what_runs_loops(no_machine_code, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    starts = [compiling.Start(start, np.dtype("float32")) for start in (run_nothing, run_no_images)]
    assert compiling.start_helper(str(taken), starts).wait(120) == 0
    names = {path.name.split("-")[0] for path in Path(numba.config.CACHE_DIR).rglob("*.nbc")}
    assert names == {"row_runner.run", "image_loops.run_images"}


@pytest.mark.parametrize(
    ("parts", "shape", "starts"),
    [
        ((layers.Conv2D(1, 2, 3), layers.Flatten(), layers.Dense(72, 3)), (1, 8, 8), (run_nothing, run_no_images)),
        ((layers.Dense(9, 4), layers.LayerNorm(4), layers.Dense(4, 3)), (9,), (run_nothing, run_nothing_together)),
    ],
    ids=["images", "features"],
)  # fmt: skip
def test_the_table_lets_helpers_compile_what_runs_its_loops(parts, shape, starts, monkeypatch):
    given = set()
    monkeypatch.setattr(compiled_kernels, "compile_loops", lambda loops, more: given.update(more))
    x, y = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32), np.arange(8) % 3
    model = xnn.Sequential(*parts, seed=0)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels="compiled")
    trainer.fit((x, y), epochs=1, batch_size=8, progress=False)
    assert given == {compiling.Start(start, np.dtype("float32")) for start in starts}


def test_loops_are_compiled_whoever_helps(no_machine_code, monkeypatch, tmp_path_factory):
    """Helpers that cannot be started, that fail, and that do all; there is none for a few loops."""
    started = []

    def helper(*arguments, start=compiling.start_helper):
        started.append(arguments)
        return start(*arguments)

    monkeypatch.setattr(compiling, "start_helper", helper)
    monkeypatch.setattr(compiling, "own_threads", lambda: 3)
    compiling.compile_loops(LOOPS[:4])
    assert not started
    compiling.compile_loops([*LOOPS, *LOOPS])
    assert [len(loops) for _, loops in started] == [len(LOOPS)] * 2
    assert not any(loop.waits_for_compiler for loop in LOOPS)
    fails = tmp_path_factory.mktemp("programs") / "python"
    fails.symlink_to(shutil.which("false") or sys.executable)
    shutil.rmtree(numba.config.CACHE_DIR)
    forget()
    taken = []
    monkeypatch.setattr(compiling, "_compile_next", lambda folder, loops: taken.append(loops))
    for program in (str(fails), "nowhere/python", "/usr/bin/blender", None):
        monkeypatch.setattr(sys, "executable", program)
        compiling.compile_loops(LOOPS)
    assert [len(loops) for loops in taken] == [len(LOOPS)] * 3, "all but where no process can be started"
    assert all(loop.waits_for_compiler for loop in LOOPS)
    assert len(started) == 2 + 2 + 1, "a helper is started only by what is called Python"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bar(Terminal):
    """What stands for a terminal while rich shows a bar on it."""

    rich_proxied_file = None


@pytest.fixture
def said_soon(no_machine_code, monkeypatch):
    """A function that lets standard error be a stream. What is said of compiling is said there, and soon."""
    monkeypatch.setattr(jit, "_LONG", 0.0)
    monkeypatch.setattr(jit, "_OFTEN", 0.01)
    monkeypatch.setattr(jit, "_told", threading.Lock())

    def use(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


LINE = "xnn: kernels are compiled for this processor; Numba keeps them for the next run\n"


def test_progress_of_compiling_on_a_terminal(said_soon):
    stream = said_soon(Terminal())
    compiling.compile_loops(LOOPS)
    begin, *shown, blank, end = stream.getvalue().split("\r")
    assert (begin, blank.strip(), end) == (LINE, "", "")
    assert len(blank) == len(shown[-1])
    counts = [int(re.fullmatch(r"xnn: compiling kernels: ([0-6]) of 6", text)[1]) for text in shown]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize(("stream", "said"), [(io.StringIO, ""), (Bar, LINE)])
def test_no_progress_of_compiling(said_soon, monkeypatch, stream, said):
    """Elsewhere than on a terminal, and beside another bar."""
    monkeypatch.setattr(compiling, "own_threads", lambda: 1)
    monkeypatch.setattr(compiling, "_compile_next", lambda taken, work: time.sleep(0.2))
    used = said_soon(stream())
    compiling.compile_loops(LOOPS)
    assert used.getvalue() == said


def test_machine_code_of_two_signatures_is_never_in_one_file(no_machine_code):
    """Also where two processes save at once, each without the other's entry."""
    for loop in LOOPS[:2]:
        jit._code_of(loop)[0]._cache._cache_file._load_index = dict
        loop.compiled()
    files = {path.name for path in Path(numba.config.CACHE_DIR).rglob("*.nbc")}
    assert len(files) == 2, files


def test_without_a_temporary_folder_loops_are_compiled_here(no_machine_code, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    compiling.compile_loops(LOOPS)
    assert all(loop.compiled() for loop in LOOPS)


def test_what_this_process_has_is_not_compiled_again_when_the_cache_is_gone(no_machine_code):
    for loop in LOOPS:
        loop.compiled()
    shutil.rmtree(numba.config.CACHE_DIR)
    assert not any(loop.waits_for_compiler for loop in LOOPS)


def test_what_is_pythons_own_program(monkeypatch):
    for name, own in {
        "/usr/bin/python3.13t": True, "C:/py/pythonw.exe": True, "/opt/pypy3": True, "": False, None: False,
        "/opt/python-studio": False, "pythonservice.exe": False, "/usr/bin/blender": False,
    }.items():  # fmt: skip
        monkeypatch.setattr(sys, "executable", name)
        assert compiling._is_python() is own
    monkeypatch.setattr(sys, "executable", "/opt/app/python")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not compiling._is_python()
