"""xnn.threads and xnn.use_threads: limits of BLAS threads for loops that users write themselves."""

import threading

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.backends import threads as plan
from xnn.backends.threads import blas_threads
from xnn.errors import DivergenceError, OptionError


@pytest.fixture
def two():
    """At most two threads, so that the tests find the same limits on every machine."""
    if (blas_threads() or 1) < 2:
        pytest.skip("BLAS has one thread, or is unknown to threadpoolctl")
    with xnn.threads(2):
        yield
    assert blas_threads() >= 2


@pytest.mark.usefixtures("two")
class TestLimits:
    def test_a_block_limits_and_restores(self):
        with xnn.threads(1) as limit:
            assert limit == blas_threads() == 1
        assert blas_threads() == 2

    def test_none_changes_nothing(self):
        with xnn.threads(None) as limit:
            assert limit == blas_threads() == 2

    def test_the_smallest_of_nested_blocks_holds(self):
        with xnn.threads(1), xnn.threads(2) as limit:
            assert limit == blas_threads() == 1
        with xnn.threads(2):
            with xnn.threads(1):
                assert blas_threads() == 1
            assert blas_threads() == 2

    def test_an_exception_restores(self):
        with pytest.raises(ZeroDivisionError), xnn.threads(1):
            raise ZeroDivisionError
        assert blas_threads() == 2

    def test_a_function_may_be_decorated(self):
        assert xnn.threads(1)(blas_threads)() == 1
        assert blas_threads() == 2

    def test_blocks_of_several_python_threads(self):
        """The limit is the process's: it holds in the other thread too, until the last block ends."""
        opened, close, seen = threading.Event(), threading.Event(), []

        def other():
            with xnn.threads(1):
                opened.set()
                close.wait(10)
            seen.append(blas_threads())

        thread = threading.Thread(target=other)
        thread.start()
        assert opened.wait(10)
        with xnn.threads(2) as limit:
            assert limit == 1
            close.set()
            thread.join()
            assert seen == [2]
        assert blas_threads() == 2

    def test_use_threads_holds_everywhere_until_it_is_undone(self):
        xnn.use_threads(1)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(blas_threads()))
        thread.start()
        thread.join()
        with xnn.threads(2) as limit:
            assert [limit, *seen] == [1, 1]
        xnn.use_threads(2)
        assert blas_threads() == 2
        xnn.use_threads(None)
        xnn.use_threads(None)
        assert blas_threads() == 2

    def test_use_threads_inside_a_block_outlives_it(self):
        with xnn.threads(2):
            xnn.use_threads(1)
        assert blas_threads() == 1
        xnn.use_threads(None)
        assert blas_threads() == 2

    @pytest.mark.parametrize("asked", [None, 2, "auto"])
    def test_a_trainer_takes_no_more(self, asked):
        """Also for a network so large that the rule gives it two threads."""
        x = np.zeros((256, 400), np.float32)
        model = xnn.Sequential(layers.Dense(400, 400), seed=0)
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), threads=asked)
        xnn.use_threads(1)
        assert trainer.fit((x, x), batch_size=256, progress=False).plan["threads"] == 1
        xnn.use_threads(None)


@pytest.mark.usefixtures("two")
def test_a_fit_in_another_python_thread_is_limited_too():
    """threadpoolctl 3.8 lets only the thread that set a number first set it again."""
    seen = []

    class Look(callbacks.Callback):
        def on_step(self, history, epoch, step, loss):
            seen.append(blas_threads())

    def fit():
        x = np.zeros((32, 4), np.float32)
        model = xnn.Sequential(layers.Dense(4, 4), seed=0)
        xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), callbacks=[Look()], threads=1).fit((x, x))
        seen.append(blas_threads())

    for where in (lambda: None, fit):
        thread = threading.Thread(target=where)
        thread.start()
        thread.join()
    assert seen == [1, 2]


def fit_of_five_epochs(*watchers, rate=0.1, **options):
    x = np.ones((32, 4), np.float32)
    model = xnn.Sequential(layers.Dense(4, 4), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(rate), callbacks=[*watchers], threads=1)
    return trainer.fit((x, x), epochs=5, batch_size=8, progress=False, **options)


@pytest.mark.usefixtures("two")
def test_a_fit_without_callbacks_limits_threads_once(monkeypatch):
    """Whatever ends it, the limit that was there before is there again."""
    numbers, set_number = [], plan._set_num_threads

    def noted(library, threads):
        numbers.append(threads)
        set_number(library, threads)

    monkeypatch.setattr(plan, "_set_num_threads", noted)
    libraries = len(plan.blas_libraries())
    fit_of_five_epochs()
    assert numbers == [*[1] * libraries, *[2] * libraries]
    with pytest.raises(DivergenceError):
        fit_of_five_epochs(rate=1e30)
    assert blas_threads() == 2


@pytest.mark.usefixtures("two")
def test_code_of_users_between_epochs_is_not_limited():
    """A callback at an epoch's end has the number of threads that was there before."""
    seen = []

    class Look(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            seen.append(blas_threads())

    fit_of_five_epochs(Look())
    assert seen == [2] * 5


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_other_numbers_are_refused(wrong):
    before = blas_threads()
    with pytest.raises(OptionError, match="threads must be a positive integer"):
        xnn.use_threads(wrong)
    with pytest.raises(OptionError, match="threads must be a positive integer"), xnn.threads(wrong):
        pytest.fail("the block ran")
    assert blas_threads() == before
