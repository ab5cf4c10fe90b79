"""Times fits and predictions of xnn.sklearn's classifier beside those of scikit-learn's own.

    python -m xnn.benchmarks.studies.scikit_learn [--repeat 9] [--small] [--search]

Both get the same data, parameters and random state, and so the same initial weights and orders of samples. They take
turns; a line shows the median of each in milliseconds, and the median of the ratios of paired turns with its
quartiles. Fits are whole calls of `fit`, with the checks of scikit-learn and all that xnn prepares; the line
`first fit` is the first in a new process. MNIST is used if it is on disk (XNN_DATA_HOME), else random images of its
size.

--search times grid searches on the digits instead: 64 candidates, 5 folds, 20 epochs. MLPSearchCV with two threads is
paired with GridSearchCV, over xnn's estimator and over scikit-learn's, with one and with two processes. Each runs in
a new process, twice: the first search starts workers and loads kernels.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from xnn import data
from xnn.benchmarks.suite import quartiles
from xnn.errors import DataNotFoundError

__all__ = ["main", "paired"]

_SETTLE = 0.15  # seconds between two turns: OpenBLAS's threads spin for 0.11 s after a product
#: Epochs of a fit on MNIST: few, since an epoch takes as long as another.
_EPOCHS = 8


def paired(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int
) -> tuple[float, float, list[float]]:
    """The median seconds of two functions that are called in turns, and the ratio of each pair of turns."""
    seconds: list[tuple[float, float]] = []
    for turn in range(repeat):
        both = {}
        for which in (ours, theirs) if turn % 2 else (theirs, ours):
            time.sleep(_SETTLE)
            start = time.perf_counter()
            which()
            both[which] = time.perf_counter() - start
        seconds.append((both[ours], both[theirs]))
    mine, other = (statistics.median(column) for column in zip(*seconds, strict=True))
    return mine, other, [a / b for a, b in seconds]


def _images() -> tuple[np.ndarray, np.ndarray]:
    try:
        first, first_labels, second, second_labels, *_ = data.load("mnist")
        images, labels = np.concatenate([first, second]), np.concatenate([first_labels, second_labels])
    except DataNotFoundError:
        random = np.random.default_rng(0)
        images, labels = random.integers(0, 256, (60_000, 784), np.uint8), random.integers(0, 10, 60_000)
    return images / np.float32(255.0), labels


def _tasks(small: bool) -> dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """Samples, labels and parameters of each fit, by name."""
    from sklearn.datasets import load_digits, load_iris

    found = {}
    for name, load in (("iris", load_iris), ("digits", load_digits)):
        samples, labels = load(return_X_y=True)
        found[f"{name}, 200 epochs"] = samples, labels, {"n_iter_no_change": 1000}
        found[f"{name}, 1 epoch"] = samples, labels, {"max_iter": 1}
    if not small:
        samples, labels = _images()
        options = {"max_iter": _EPOCHS, "n_iter_no_change": 1000, "batch_size": 200}
        found["MNIST float32"] = samples, labels, options
        found["MNIST float64"] = samples.astype(np.float64), labels, options
    return found


def _first_fit() -> None:
    """Print the milliseconds of the first fits in new processes: on iris, 200 epochs."""
    code = (
        "import time, warnings; warnings.simplefilter('ignore'); from sklearn.datasets import load_iris; "
        "from {} import MLPClassifier; X, y = load_iris(return_X_y=True); start = time.perf_counter(); "
        "MLPClassifier(random_state=0, n_iter_no_change=1000).fit(X, y); print(time.perf_counter() - start)"
    )

    def fit(module: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    pairs = [(fit("xnn.sklearn"), fit("sklearn.neural_network")) for _ in range(3)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    _show("iris, first fit", mine, other, [a / b for a, b in pairs])


#: What --search pairs MLPSearchCV with: the search, the module of the estimator, and n_jobs.
_SEARCHES = {
    "xnn, n_jobs=1": ("GridSearchCV", "xnn.sklearn", 1),
    "xnn, n_jobs=2": ("GridSearchCV", "xnn.sklearn", 2),
    "scikit-learn, n_jobs=1": ("GridSearchCV", "sklearn.neural_network", 1),
    "scikit-learn, n_jobs=2": ("GridSearchCV", "sklearn.neural_network", 2),
}
_SEARCH = """
import os, time, warnings
os.environ["PYTHONWARNINGS"] = "ignore"; warnings.simplefilter("ignore")
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from xnn.sklearn import MLPSearchCV
from {module} import MLPClassifier
X, y = load_digits(return_X_y=True)
grid = {{"alpha": np.logspace(-5, 1, 8), "learning_rate_init": np.logspace(-3.5, -1.5, 8)}}
for _ in range(2):
    search = {search}(MLPClassifier({hidden}, max_iter=20, random_state=0), grid, cv=5, n_jobs={jobs}, refit=False)
    start = time.perf_counter(); search.fit(X / 16.0, y); print(time.perf_counter() - start)
"""


def _search(repeat: int) -> None:
    """Print the milliseconds of searches, the first and the second of a process."""

    def times(search: str, module: str, jobs: int, hidden: int) -> list[float]:
        code = _SEARCH.format(search=search, module=module, jobs=jobs, hidden=hidden)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return [float(line) for line in done.stdout.split()]

    for hidden in (16, 100):
        for name, other in _SEARCHES.items():
            pairs = [
                (times("MLPSearchCV", "xnn.sklearn", 2, hidden), times(*other, hidden)) for _ in range(repeat)
            ]
            for which, turn in enumerate(("first", "second")):
                ours, theirs = zip(*((a[which], b[which]) for a, b in pairs), strict=True)
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                _show(
                    f"({hidden},), {name}, {turn}", statistics.median(ours), statistics.median(theirs), ratios
                )


def _show(name: str, ours: float, theirs: float, ratios: list[float]) -> None:
    low, middle, high = quartiles(ratios)
    print(
        f"{name:38}{1e3 * ours:12.3f}{1e3 * theirs:12.3f}{middle:8.2f}  {low:.2f} .. {high:.2f}", flush=True
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table. arguments: those of the command line."""
    from sklearn import neural_network

    from xnn import sklearn

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="without MNIST")
    parser.add_argument("--search", action="store_true", help="times grid searches instead")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if given.search:
        print(f"{'ms':38}{'MLPSearchCV':>12}{'GridSearchCV':>12}{'ratio':>8}  quartiles")
        _search(given.repeat)
        return
    kinds = sklearn.MLPClassifier, neural_network.MLPClassifier
    print(f"{'ms':38}{'xnn':>12}{'scikit-learn':>12}{'ratio':>8}  quartiles")
    _first_fit()
    for name, (samples, labels, options) in _tasks(given.small).items():
        ours, theirs = (kind(random_state=0, **options) for kind in kinds)
        ours.fit(samples[:500], labels[:500])  # compiles
        _compare(f"fit, {name}", given.repeat, [ours, theirs], lambda e, X, y: e.fit(X, y), samples, labels)
        predicting, times = ("", 1) if "MNIST" in name else (" 100 rows one by one", 100)
        if "200 epochs" in name:
            continue
        rows = samples if times == 1 else samples[:1]
        _compare(
            f"predict, {name.partition(',')[0]}{predicting}",
            given.repeat,
            [ours, theirs],
            lambda e, X, y, times=times: [e.predict(X) for _ in range(times)],
            rows,
            labels,
        )
        if name == "MNIST float32":
            _show_products(given.repeat, theirs, samples, labels)
        if times > 1:
            _compare(
                f"partial_fit, {name.partition(',')[0]}",
                given.repeat,
                [ours, theirs],
                lambda e, X, y: e.partial_fit(X, y),
                samples,
                labels,
            )


def _show_products(repeat: int, theirs: Any, samples: np.ndarray, labels: np.ndarray) -> None:
    """Show the matrix products of a fit and of a prediction alone, beside the whole call of scikit-learn."""
    size, widths = theirs.batch_size, [samples.shape[1], *theirs.hidden_layer_sizes, 10]
    weights = [np.ones(shape, samples.dtype) for shape in pairwise(widths)]
    outputs = [np.ones((size, width), samples.dtype) for width in widths]

    def train() -> None:
        for start in list(range(0, len(samples), size)) * theirs.max_iter:
            outputs[0] = samples[start : start + size]
            for x, w, y in zip(outputs, weights, outputs[1:], strict=False):
                _ = x @ w, x.T @ y
            for w, y in zip(weights[1:], outputs[2:], strict=True):
                _ = y @ w.T

    def predict() -> None:
        _ = samples @ weights[0] @ weights[1]

    print("In the column of xnn the products alone, and as many operations at the rate of a large product:")
    rate = _rate(samples.dtype, repeat)
    once = 2.0 * len(samples) * sum(w.size for w in weights)  # the operations of a forward pass
    backward = 2.0 * once - 2.0 * len(samples) * weights[0].size  # the samples have no gradient
    ways = {
        "the fit": (train, lambda: theirs.fit(samples, labels), theirs.max_iter * (once + backward)),
        "the prediction": (predict, lambda: theirs.predict(samples), once),
    }
    for name, (products, whole, operations) in ways.items():
        mine, other, ratios = paired(products, whole, repeat)
        _show(f"products of {name}", mine, other, ratios)
        least = operations / rate
        _show(f"least time of {name}", least, other, [least / other])


def _rate(dtype: Any, repeat: int) -> float:
    """The floating-point operations of a product of two large matrices in a second."""
    a = np.ones((2048, 2048), dtype)
    out, seconds = np.empty_like(a), list[float]()
    for _ in range(repeat + 1):  # the first makes BLAS ready
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        seconds.append(time.perf_counter() - start)
    return 2.0 * len(a) ** 3 / statistics.median(seconds[1:])


def _compare(
    name: str, repeat: int, estimators: list[Any], call: Callable[..., Any], X: np.ndarray, y: np.ndarray
) -> None:
    """Show what the same call takes on two estimators."""
    ours, theirs = estimators
    _show(name, *paired(lambda: call(ours, X, y), lambda: call(theirs, X, y), repeat))


if __name__ == "__main__":
    main()
