"""Fits of many estimators at once, in threads: `fit_many`, and the threads that MLPSearchCV takes as well."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import FallbackToBackend, SequentialBackend, ThreadingBackend
from sklearn import get_config, set_config
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils.parallel import _FuncWrapper

from xnn.backends import current_backend
from xnn.backends.threads import limit_threads
from xnn.callbacks import Callback
from xnn.errors import OptionError
from xnn.options import check_count
from xnn.sklearn import meeting
from xnn.sklearn.meeting import Meeting
from xnn.sklearn.together import Workplace, workplace
from xnn.sklearn.training import fits_together
from xnn.training.interrupt import ending_of_thread

__all__ = ["fit_many", "in_threads", "ways"]

#: What a fit changes: estimators that share one of these are fitted one after another.
_CHANGED = np.random.RandomState, np.random.Generator, BaseEstimator, Callback

#: The warnings of the fit that this thread computes.
_warnings: ContextVar[list[warnings.WarningMessage] | None] = ContextVar("xnn_warnings", default=None)


class _Threads(ThreadingBackend):  # type: ignore[misc]
    """joblib's threads, made for fits.

    Each thread has the context variables of the thread that made this object, such as the backend and the numerics,
    and its configuration of scikit-learn. BLAS has one thread for each fit. After Ctrl-C or an exception, the fits
    that are not done end after their step with KeyboardInterrupt, and are waited for.

    alone: whether the fits are computed one after another, in the calling thread. common: where they wait for one
    another, if they do; each then has a thread.
    """

    _pool: ThreadPool | None

    def __init__(self, alone: bool, common: Meeting | None = None) -> None:
        super().__init__()
        self._alone, self._meeting = alone, common
        self._context, self._config = copy_context(), get_config()
        self._ended, self._limits = threading.Event(), ExitStack()

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        if self._alone or self.nesting_level:  # the workers that call this one have taken the cores
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        return int(super().configure(n_jobs, parallel, **options))

    def effective_n_jobs(self, n_jobs: int) -> int:
        if self._meeting is not None and n_jobs != 1:
            return self._meeting.threads
        return int(super().effective_n_jobs(n_jobs))

    def _get_pool(self) -> ThreadPool:
        if self._pool is None:
            self._ended.clear()
            self._limits.enter_context(limit_threads(1))
            # Whoever catches warnings in a thread may leave the process with the filters of another one.
            self._limits.enter_context(warnings.catch_warnings())
            self._pool = ThreadPool(self._n_jobs, self._begin_thread)
        return self._pool

    def _begin_thread(self) -> None:
        for variable, value in self._context.items():
            variable.set(value)
        set_config(**self._config)
        ending_of_thread.set(self._ends)
        workplace.set(self._meeting or Workplace())

    def _ends(self) -> bool:
        if self._ended.is_set():
            raise KeyboardInterrupt
        return False

    def submit(self, func: Any, callback: Any = None) -> Any:
        # scikit-learn's wrapper sets the process's warning filters in each thread, which is not safe. The pool's
        # threads have the configuration already.
        func.items = [
            (call.function if isinstance(call, _FuncWrapper) else call, args, options)
            for call, args, options in func.items
        ]
        if self._meeting is not None:
            func.items = [
                (self._meeting.attended()(call), args, options) for call, args, options in func.items
            ]
        return super().submit(func, callback)

    def terminate(self) -> None:
        pool = self._pool
        self._ended.set()
        try:
            super().terminate()
            if pool is not None:
                pool.join()
        finally:
            self._limits.close()


@contextmanager
def in_threads(fits: int, alone: bool = False, stacked: bool = False) -> Iterator[None]:
    """Inside the block joblib's tasks run in threads, each with one BLAS thread; by default as many as cores.

    fits: how many there are, as far as it is known. alone: whether they run one after another instead. stacked:
    whether alike fits are trained as one network, on a GPU.
    """
    token, here = fits_together.set(fits), workplace.set(Workplace())
    common = Meeting(fits) if stacked and not alone else None
    try:
        with parallel_config(backend=_Threads(alone, common), n_jobs=-1):
            yield
    finally:
        fits_together.reset(token)
        workplace.reset(here)


def ways(parameters: Iterable[tuple[str, Any]]) -> dict[str, bool]:
    """How `in_threads` computes fits, as its options "alone" and "stacked": by the backends that are asked for.

    parameters: the names and values of all estimators' parameters.
    """
    given = [value for name, value in parameters if name.rpartition("__")[2] == "backend"]
    names = {str(current_backend().name if name is None else name).partition(":")[0] for name in given}
    return {
        "alone": not names <= {"numpy", *meeting.STACKED},
        "stacked": not names.isdisjoint(meeting.STACKED),
    }


def fit_many(
    estimators: Iterable[Any],
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    rows: Sequence[Any] | None = None,
    threads: int | None = None,
) -> list[Any]:
    """Fit many estimators on the same samples, in threads or on a GPU together, and return them as a list.

    estimators: MLPClassifiers, MLPRegressors, or others of scikit-learn's kind, such as Pipelines. They may differ in
        anything.
    X, y, sample_weight: as `fit` takes them.
    rows: for each estimator the rows of X, y and sample_weight that it is fitted on, as an array of numbers or of
        booleans. Default None, all.
    threads: how many fits at a time. Default None: as many as there are cores. On a GPU: 1 for one after another;
        else the fits are prepared in turn, and alike ones trained together.

    Each fit gives what `fit` gives: the same bits in exact numerics, and in fast numerics with the same kernels and
    one BLAS thread. (Many short fits take Numba's kernels, where one alone would take NumPy's; they differ in
    rounding.) Alike fits of small networks take the programs of the first. Fits of estimators that share an object
    which a fit changes, such as a RandomState or a callback, go one after another.

    On a GPU, alike fits in fast numerics are trained as one network, whose steps are one graph: docs/sklearn.md says
    which. Each estimator gets what its own fit gives, up to rounding. Other fits go one after another, and have the
    bits of their own fits.

    Warnings are given when all is done, in the order of the estimators. When a fit raises an exception, those that
    are not done end after their step, and the exception is raised; after Ctrl-C it is KeyboardInterrupt. Raises
    OptionError if there is not one entry of `rows` for each estimator.

        >>> import numpy as np
        >>> from xnn.sklearn import MLPRegressor, fit_many
        >>> X = np.linspace(-1.0, 1.0, 40).reshape(-1, 1)
        >>> seeds = [MLPRegressor(hidden_layer_sizes=8, solver="lbfgs", random_state=seed) for seed in range(3)]
        >>> [regressor.n_layers_ for regressor in fit_many(seeds, X, X[:, 0] ** 2)]
        [3, 3, 3]
    """
    estimators = list(estimators) if isinstance(estimators, Iterable) else [type(estimators)]
    if any(isinstance(estimator, type) for estimator in estimators):
        raise OptionError(
            "fit_many takes a list of estimators, as in fit_many([MLPClassifier(), MLPClassifier()], X, y)"
        )
    threads = None if threads is None else check_count("threads", threads)
    parts = [None] * len(estimators) if rows is None else list(rows)
    if len(parts) != len(estimators):
        raise OptionError(
            f"rows has {len(parts)} entries for {len(estimators)} estimators: give one for each"
        )
    told: list[list[warnings.WarningMessage]] = [[] for _ in estimators]
    way = ways(pair for estimator in estimators for pair in estimator.get_params().items())
    way["alone"] |= not _are_apart(estimators)
    with in_threads(len(estimators), **way), _collecting():
        Parallel(n_jobs=threads)(
            delayed(_fit)(estimator, X, y, sample_weight, part, into)
            for estimator, part, into in zip(estimators, parts, told, strict=True)
        )
    for warning in (warning for several in told for warning in several):
        warnings.warn(warning.message, stacklevel=2)
    return estimators


def _fit(estimator: Any, X: Any, y: Any, sample_weight: Any, rows: Any, into: list[Any]) -> None:
    token = _warnings.set(into)
    try:
        X, y, sample_weight = (
            part if part is None or rows is None else _safe_indexing(part, rows)
            for part in (X, y, sample_weight)
        )
        estimator.fit(X, y, **({} if sample_weight is None else {"sample_weight": sample_weight}))
    finally:
        _warnings.reset(token)


def _are_apart(estimators: Sequence[Any]) -> bool:
    """Whether fits of these estimators may go on at the same time."""
    known = set[int]()
    for estimator in estimators:
        values = {"": estimator, **estimator.get_params()}
        lists = [value for value in values.values() if isinstance(value, list | tuple)]
        own = {
            id(v) for v in (*values.values(), *(v for some in lists for v in some)) if isinstance(v, _CHANGED)
        }
        if own & known:
            return False
        known |= own
    return True


@contextmanager
def _collecting() -> Iterator[None]:
    """Inside the block the warnings of `_fit` go to its list."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def collect(
            message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
        ) -> None:
            into = _warnings.get()
            if into is None:
                show(message, category, filename, lineno, file, line)
            else:
                into.append(warnings.WarningMessage(message, category, filename, lineno))

        warnings.showwarning = collect
        yield
