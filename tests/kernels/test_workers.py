"""Threads that share the parts of a batch: same bits for any number, forked processes, several trainers, Ctrl-C."""

import importlib
import itertools
import multiprocessing
import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_image_kernels import net

import xnn
from xnn import layers, losses, optimizers
from xnn.backends.kernels import workers
from xnn.backends.threads import blas_threads, choose_threads
from xnn.data import Batches
from xnn.layers.files import weights_sha256


def fit(seed=0, kernels="compiled"):
    """Train a small convolutional network for a few steps; return the digest of its weights."""
    x, y = xnn.data.synthetic_digits(70)
    model = net()
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.01), kernels=kernels)
    trainer.fit((x, y), epochs=2, batch_size=33, seed=seed, progress=False)
    return weights_sha256(model)


@pytest.fixture(params=["compiled", "numpy"])
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


@pytest.fixture
def calls(kernels):
    """The module whose kernels are shared."""
    return importlib.import_module(
        f"xnn.backends.kernels.{'image_calls' if kernels == 'compiled' else 'batch_parts'}"
    )


@pytest.fixture
def threads(calls, monkeypatch):
    """Set the number of threads of the kernels, more than there are cores too."""
    return lambda count: monkeypatch.setattr(calls, "own_threads", lambda: count)


def test_bits_do_not_depend_on_the_number_of_threads(threads, kernels):
    found = set()
    for count in (1, 2, 3, 50):
        threads(count)
        found.add(fit(kernels=kernels))
    assert len(found) == 1


@pytest.mark.parametrize("images", [True, False])
def test_threads_are_ours_or_those_of_blas(images, monkeypatch, kernels, calls):
    """Ours share images, and compiled kernels the columns of BatchNorm; BLAS then has one. Else BLAS has them all."""
    seen, allowed, are_ours = set(), min(2, blas_threads()), images or kernels == "compiled"

    def share(work, parts, count):
        seen.add((count, blas_threads()))
        return work()

    rows = (
        importlib.import_module("xnn.backends.kernels.rows")
        if kernels == "compiled" and not images
        else calls
    )
    monkeypatch.setattr(rows, "share", share)
    x, y = xnn.data.synthetic_digits(64)
    model = (
        net()
        if images
        else xnn.Sequential(layers.Dense(784, 512), layers.BatchNorm(512), layers.Dense(512, 10))
    )
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.01), kernels=kernels, threads=2
    )
    plan = trainer.fit((x, y), epochs=1, batch_size=64, progress=False).plan
    if images or (are_ours and allowed > 1):
        assert seen == {(allowed, 1)}
    else:  # NumPy's kernels leave features to one thread
        assert seen <= {(1, allowed)}
    assert plan["threads"] == allowed
    assert plan.get("product_threads") == (1 if are_ours else None)


@pytest.mark.parametrize("normalized", [True, False])
def test_dense_networks_leave_their_threads_to_blas(normalized, monkeypatch):
    pytest.importorskip("numba")
    x, y = xnn.data.synthetic_digits(64)
    made = [layers.Dense(784, 64), *([layers.LayerNorm(64)] if normalized else []), layers.Dense(64, 10)]
    trainer = xnn.Trainer(
        xnn.Sequential(*made), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.01), threads=1
    )
    plan = trainer.fit((x, y), epochs=1, batch_size=64, progress=False).plan
    assert plan.get("product_threads") == (1 if normalized else None)


def test_the_rule_for_threads_counts_a_kernel_at_each_place():
    """4 kernels of 9 weights at 676 places, 2,704 x 10 weights of a dense layer."""
    model = xnn.Sequential(
        layers.Reshape((1, 28, 28)), layers.Conv2D(1, 4, 3), layers.Flatten(), layers.Dense(2704, 10)
    )
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.01))
    batches = Batches((np.zeros((320, 784), np.float32), np.zeros(320, np.int64)), 320)
    work = 320 * (676 * 4 * 9 + 27_040)
    assert trainer.choose_threads_for(batches, trainer.stepper(batches)) == choose_threads(None, work)


def test_two_trainers_in_two_threads(threads, kernels):
    threads(2)
    alone = [fit(seed, kernels) for seed in (0, 1)]
    together = [None, None]

    def run(seed):
        together[seed] = fit(seed, kernels)

    running = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert together == alone


FORK = """
import importlib, multiprocessing, sys, threading, test_workers

def fit(seed):
    threads_before = helpers()
    return test_workers.fit(seed, sys.argv[1]), threads_before, helpers()

def helpers():
    return sum(thread.name == "xnn" for thread in threading.enumerate())

importlib.import_module(f"xnn.backends.kernels.{sys.argv[2]}").own_threads = lambda: 3
(here, _, started), (other, _, _) = fit(0), fit(1)
assert started > 0, "helpers share the work before the fork"
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(fit, [0, 0, 1], chunksize=1)
assert [weights for weights, _, _ in found] == [here, here, other], found
assert found[0][1:] == (0, started), found
assert fit(0) == (here, started, started)
"""


def test_a_forked_process_has_threads_of_its_own(kernels, calls):
    """`fork` does not copy those of the first process, which would do nothing of the work."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, kernels, calls.__name__.rpartition(".")[2]],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_late_thread_takes_no_part_of_the_next_step(monkeypatch, kernels, calls):
    """Nobody would wait for it, and it could write while others read."""
    works, late = [], []

    def share(work, parts, threads):
        late.extend(earlier() for earlier in works)
        works.append(work)
        assert work() == parts

    monkeypatch.setattr(calls, "share", share)
    fit(kernels=kernels)
    assert len(works) > 8
    assert set(late) == {0}


def parts(count, log):
    """Return a function that takes parts until none is left, as a stretch of images does."""
    numbers = itertools.count()

    def work():
        done = 0
        while next(numbers) < count:
            log.append(threading.get_ident())
            done += 1
        return done

    return work


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_part_is_done_once(count):
    for number in (1, 2, 5):
        log = []
        workers.share(parts(count, log), count, number)
        assert len(log) == count


def test_threads_warn_of_what_the_caller_warns_of(monkeypatch):
    """NumPy's settings belong to a thread, and products of what is infinite are NaN without a word in a fit."""
    from xnn.backends.kernels import batch_parts

    seen = []
    started = threading.Barrier(2, timeout=20)

    def part():
        started.wait()
        seen.append((threading.get_ident(), np.geterr()["invalid"]))

    monkeypatch.setattr(batch_parts, "own_threads", lambda: 2)
    table = batch_parts.PartedTable()
    (stretch,) = table.assemble([batch_parts.PartedCall([part, part], is_heavy=True)])
    with np.errstate(invalid="ignore"):
        stretch()
    assert len({thread for thread, _ in seen}) == 2
    assert {setting for _, setting in seen} == {"ignore"}


def test_parts_are_alike_and_whole():
    from xnn.backends.kernels.batch_parts import slices_of

    for n in (1, 15, 16, 31, 32, 33, 100, 128, 1000):
        rows = [row for part in slices_of(n) for row in range(n)[part]]
        assert rows == [*range(n)]
        sizes = {part.stop - part.start for part in slices_of(n)}
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(n, 16)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_a_part(error):
    """It is raised, and what is shared afterwards is not disturbed by parts that were left."""
    for _ in range(20):
        numbers = itertools.count()

        def work(numbers=numbers):
            done = 0
            while (number := next(numbers)) < 50:
                if number == 20:
                    raise error
                done += 1
            return done

        with pytest.raises(error):
            workers.share(work, 50, 3)
        after = []
        workers.share(parts(10, after), 10, 3)
        assert len(after) == 10


def test_an_error_of_a_thread_without_a_part_disturbs_nobody():
    """The caller does all parts first; the error that comes then is not taken for one of the next call."""
    caller, done, late = threading.get_ident(), threading.Event(), threading.Event()

    def work():
        if threading.get_ident() == caller:
            done.set()
            return 2
        done.wait(10)
        late.set()
        raise ValueError

    workers.share(work, 2, 2)
    assert late.wait(10)
    for _ in range(20):
        after = []
        workers.share(parts(10, after), 10, 2)
        assert len(after) == 10


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for processors of this kind")
def test_bits_do_not_depend_on_the_width_of_vectors():
    """AVX-512 and AVX2 have other tiles, and the same sums; both fuse multiplications and additions."""
    pytest.importorskip("numba")
    found = set()
    for features in ("+avx512f,+avx512bw,+avx512dq,+avx512vl", ""):
        have = {
            **os.environ,
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": f"+avx2,+fma,{features}".strip(","),
        }
        have["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        program = "import test_workers; print(test_workers.fit())"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=have,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode < 0:
            pytest.skip("this processor has no AVX-512")
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
