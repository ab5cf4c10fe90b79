"""Scores of xnn.sklearn's estimators beside those of scikit-learn's own MLP, over several seeds.

    python -m xnn.benchmarks.studies.scikit_learn_scores [--seeds 10] [--epochs 300]

A line shows the mean and the standard deviation over the seeds, of accuracy or R2 on a third of the data, for
scikit-learn, xnn, and xnn with dtype="float32". A seed chooses the split, the initial weights and the order of the
samples. Samples are standardized; parameters are the default ones but max_iter. `off` is how far the mean of xnn is
from that of scikit-learn, in standard errors of the latter: below 1 it is noise.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["DATA", "california_like", "compared", "main"]


def california_like(rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Samples of 8 features and house prices, made up like those of the California data: skewed, with a ceiling.

    Returns float64 arrays (rows, 8) and (rows,).
    """
    random = np.random.default_rng(0)
    income = random.lognormal(1.2, 0.45, rows)
    age = random.integers(1, 53, rows)
    rooms = random.lognormal(1.65, 0.3, rows)
    bedrooms = rooms * random.normal(0.2, 0.03, rows)
    people = random.lognormal(7.0, 0.7, rows)
    household = random.lognormal(1.05, 0.25, rows)
    latitude, longitude = random.uniform(32.5, 42.0, rows), random.uniform(-124.0, -114.0, rows)
    coast = np.hypot(latitude - 36.0, longitude + 122.0)
    price = 0.45 * income + 0.008 * age - 0.5 * np.log(household) + 1.5 * np.exp(-coast / 2.0)
    samples = np.stack([income, age, rooms, bedrooms, people, household, latitude, longitude], axis=1)
    return samples, np.minimum(price + random.normal(0.0, 0.3, rows), 5.0)


def _of_scikit_learn(name: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def load() -> tuple[np.ndarray, np.ndarray]:
        from sklearn import datasets

        samples, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
        return samples, targets

    return load


#: By name: whether the targets are classes, and a function that returns samples and targets.
DATA: dict[str, tuple[bool, Callable[[], tuple[np.ndarray, np.ndarray]]]] = {
    "digits": (True, _of_scikit_learn("digits")),
    "breast cancer": (True, _of_scikit_learn("breast_cancer")),
    "wine": (True, _of_scikit_learn("wine")),
    "diabetes": (False, _of_scikit_learn("diabetes")),
    "California-like": (False, california_like),
}


def compared(name: str, seeds: int, **options: Any) -> dict[str, np.ndarray]:
    """The scores of each estimator on one of DATA, (seeds,), by "scikit-learn", "xnn" and "xnn float32"."""
    from sklearn import neural_network
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    from xnn import sklearn

    classes, load = DATA[name]
    kind = "MLPClassifier" if classes else "MLPRegressor"
    samples, targets = load()
    scores: dict[str, list[float]] = {"scikit-learn": [], "xnn": [], "xnn float32": []}
    for seed in range(seeds):
        parts = train_test_split(samples, targets, test_size=1 / 3, random_state=seed)
        scaler = StandardScaler().fit(parts[0])
        train, test = scaler.transform(parts[0]), scaler.transform(parts[1])
        for estimator, found in zip(
            (
                getattr(neural_network, kind)(random_state=seed, **options),
                getattr(sklearn, kind)(random_state=seed, **options),
                getattr(sklearn, kind)(random_state=seed, dtype="float32", **options),
            ),
            scores.values(),
            strict=True,
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(estimator.fit(train, parts[2]).score(test, parts[3]))
    return {which: np.array(found) for which, found in scores.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table. arguments: those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=300, help="max_iter")
    given = parser.parse_args(arguments)
    print(f"{'':18}{'scikit-learn':>18}{'xnn':>18}{'xnn float32':>18}{'off':>8}{'off':>8}")
    for name in DATA:
        scores = compared(name, given.seeds, max_iter=given.epochs)
        theirs, *ours = scores.values()
        means = (f"{found.mean():10.4f} ({found.std():.4f})" for found in scores.values())
        print(
            f"{name:18}",
            *(f"{mean:>17}" for mean in means),
            *(f"{_off(o, theirs):7.2f}" for o in ours),
            flush=True,
        )


def _off(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far the mean is from scikit-learn's, in standard errors of that."""
    error = float(theirs.std(ddof=1)) / np.sqrt(len(theirs))
    return float(ours.mean() - theirs.mean()) / error if error else 0.0


if __name__ == "__main__":
    main()
