"""Measures the seconds that xnn and PyTorch take to train MNIST to a given accuracy.

A recipe fixes the network, batch size, epochs, update rule and the learning rate of every step. Initial weights are
Glorot normal, biases zero. The libraries draw other random numbers, so each recipe is run with several seeds; a time
counts only if the median accuracy on the test images reaches the target. Contestants take turns, seed by seed, each
in a process of its own, so that a disturbance of the machine meets all of them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xnn import data, losses, optimizers
from xnn.backends import backend as use
from xnn.benchmarks.peers import need
from xnn.benchmarks.suite import quartiles
from xnn.errors import DataNotFoundError, OptionError
from xnn.options import check_count, check_real
from xnn.runs.mlp import mlp
from xnn.runs.process import Process, serve
from xnn.schedules import OneCycle
from xnn.training import Trainer

__all__ = ["CONTESTANTS", "RECIPES", "Recipe", "main", "text", "to_accuracy"]

_WARM_UP_STEPS = 20
_FETCHED = ("mnist", "fashion-mnist")


@dataclass(frozen=True)
class Recipe:
    """How to train inputs - hidden[0] - ... - classes, with ReLU between the layers and softmax cross-entropy.

    name: of the recipe. hidden: widths of the hidden layers. batch_size, epochs: of the training.
    optimizer: "adam" with `betas`, or "sgd" with `momentum` and `nesterov`. Raises OptionError for another.
    peak, warmup, start, end: the learning rate of step t is OneCycle(peak, steps, warmup, start, end)(t).
    scale, offset: the network's inputs are pixels * scale + offset.
    """

    name: str
    hidden: tuple[int, ...]
    batch_size: int
    epochs: int
    optimizer: str
    peak: float
    warmup: float = 0.3
    start: float = 25.0
    end: float = 1e4
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    nesterov: bool = False
    scale: float = 1 / 255
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd"):
            raise OptionError(f"{self.name}: optimizer must be adam or sgd, got {self.optimizer!r}")

    def steps(self, rows: int) -> int:
        """The number of steps of all epochs. The last batch of an epoch may be smaller than the others."""
        return self.epochs * -(-rows // self.batch_size)

    def schedule(self, rows: int) -> OneCycle:
        """The learning rate of each step, for `rows` samples."""
        return OneCycle(self.peak, self.steps(rows), self.warmup, self.start, self.end)


_KNOWN = (
    # The usual recipe. The two libraries are compared by it.
    Recipe("one-cycle", (256,), 256, 5, "adam", 0.008),
    # The fastest of about sixty recipes that reach 98.0 % reliably: the mean of seeds 100 to 123 is 98.10 %, the
    # standard deviation 0.08 %. With so few steps a short memory (betas) and an early peak help. On the same seeds
    # 144 units reach 98.08 %; two epochs of 256 units at batch size 128 reach 98.11 % and take an eighth longer.
    Recipe("three-epochs", (160,), 256, 3, "adam", 0.012, warmup=0.05, betas=(0.8, 0.95)),
)
RECIPES = {recipe.name: recipe for recipe in _KNOWN}


class _Contestant:
    """A library that trains recipes on one data set: images uint8 (n, inputs), labels, test images and labels."""

    def __init__(self, dataset: str, threads: int) -> None:
        found = data.load(dataset)
        # All samples but the test data are trained on: nothing is chosen by validation here.
        self.x: Any = np.concatenate([found.x_train, found.x_val])
        self.y: Any = np.concatenate([found.y_train, found.y_val])
        self.x_test: Any = found.x_test
        self.y_test: Any = found.y_test
        self.classes = found.classes
        self.inputs = found.x_train.shape[1]

    def train(self, recipe: Recipe, seed: int, rows: int) -> tuple[float, Callable[[], float]]:
        """Train a new model on the first `rows` images. Returns (seconds, a function that returns the accuracy).

        The time includes the steps, drawing each epoch's order, making batches, and the learning rates. It excludes
        building the model and the optimizer.
        """
        raise NotImplementedError

    def run(self, recipe: Recipe, seed: int) -> dict[str, float]:
        """Train the whole recipe: the seconds of training, and the accuracy on the test images."""
        seconds, accuracy = self.train(recipe, seed, len(self.x))
        return {"seconds": seconds, "accuracy": accuracy()}

    def warm_up(self, recipe: Recipe, seed: int) -> dict[str, float]:
        """Train a few steps, so that everything is compiled before the measurement."""
        start = time.perf_counter()
        rows = min(len(self.x), _WARM_UP_STEPS * recipe.batch_size)
        _, accuracy = self.train(recipe, seed, rows)
        accuracy()
        return {"seconds": time.perf_counter() - start}


class _Xnn(_Contestant):
    """xnn's Trainer, called as a user calls it. Images stay bytes; each batch is scaled while it is gathered."""

    kernels, backend = "auto", "numpy"

    def train(self, recipe: Recipe, seed: int, rows: int) -> tuple[float, Callable[[], float]]:
        rescale = recipe.scale, recipe.offset
        with use(self.backend):
            model = mlp(self.inputs, recipe.hidden, self.classes, rescale=rescale, seed=seed)
        rate = recipe.schedule(rows)
        optimizer: optimizers.Optimizer
        if recipe.optimizer == "adam":
            optimizer = optimizers.Adam(rate, betas=recipe.betas)
        else:
            optimizer = optimizers.SGD(rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
        trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizer, metrics=[], kernels=self.kernels)
        given = self.x[:rows], self.y[:rows]
        start = time.perf_counter()
        trainer.fit(given, epochs=recipe.epochs, batch_size=recipe.batch_size, seed=seed, progress=False)
        seconds = time.perf_counter() - start
        return seconds, lambda: float(np.mean(model.predict_classes(self.x_test) == self.y_test))


class _XnnNumpy(_Xnn):
    kernels = "numpy"


class _XnnCupy(_Xnn):
    backend = "cupy"


class _Torch(_Contestant):
    """PyTorch in eager mode: images as float32, batches by index_select, fused optimizers.

    The loss is not copied to Python. Slower variants: foreach optimizers, and x[rows] instead of index_select.
    """

    def __init__(self, dataset: str, threads: int) -> None:
        torch = self.torch = need("torch")
        torch.set_num_threads(threads)
        super().__init__(dataset, threads)
        self.y = torch.tensor(self.y)
        self.y_test = torch.tensor(self.y_test)
        self.bytes = torch.tensor(self.x), torch.tensor(self.x_test)
        self.scaled = 0.0, 0.0

    def _rescale(self, scale: float, offset: float) -> None:
        """Scale the images as float32, unless they have this scale and offset already."""
        if self.scaled != (scale, offset):
            self.x, self.x_test = (images.float().mul_(scale).add_(offset) for images in self.bytes)
            self.scaled = scale, offset

    def build(self, recipe: Recipe, seed: int, rows: int) -> tuple[Any, Any, Any]:
        """The network, the optimizer, and a schedule with the same learning rates as Recipe.schedule."""
        torch = self.torch
        torch.manual_seed(seed)
        widths = self.inputs, *recipe.hidden, self.classes
        stack: list[Any] = []
        for inputs, outputs in itertools.pairwise(widths):
            dense = torch.nn.Linear(inputs, outputs)
            torch.nn.init.xavier_normal_(dense.weight)
            torch.nn.init.zeros_(dense.bias)
            stack += [dense, torch.nn.ReLU()]
        net = torch.nn.Sequential(*stack[:-1])
        if recipe.optimizer == "adam":
            optimizer = torch.optim.Adam(net.parameters(), recipe.peak, recipe.betas, fused=True)
        else:
            optimizer = torch.optim.SGD(
                net.parameters(), recipe.peak, recipe.momentum, nesterov=recipe.nesterov, fused=True
            )
        steps = recipe.steps(rows)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            recipe.peak,
            total_steps=steps,
            pct_start=recipe.warmup + 1 / steps,  # PyTorch's peak is one step before pct_start * steps
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=recipe.start,
            final_div_factor=recipe.end / recipe.start,  # PyTorch divides the first rate, OneCycle the peak
        )
        return net, optimizer, schedule

    def train(self, recipe: Recipe, seed: int, rows: int) -> tuple[float, Callable[[], float]]:
        torch = self.torch
        self._rescale(recipe.scale, recipe.offset)
        net, optimizer, schedule = self.build(recipe, seed, rows)
        loss = torch.nn.CrossEntropyLoss()
        start = time.perf_counter()
        for _ in range(recipe.epochs):
            for batch in torch.randperm(rows).split(recipe.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss(net(self.x.index_select(0, batch)), self.y.index_select(0, batch)).backward()
                optimizer.step()
                schedule.step()
        seconds = time.perf_counter() - start

        def accuracy() -> float:
            with torch.no_grad():
                return float((net(self.x_test).argmax(1) == self.y_test).double().mean())

        return seconds, accuracy


CONTESTANTS: dict[str, type[_Contestant]] = {
    "xnn": _Xnn,
    "xnn-numpy": _XnnNumpy,
    "xnn-cupy": _XnnCupy,
    "torch": _Torch,
}


class _Server:
    """Answers the commands of `to_accuracy`. Recipes arrive as dictionaries."""

    def __init__(self, name: str, dataset: str, threads: int) -> None:
        self.contestant = CONTESTANTS[name](dataset, threads)

    def run(self, recipe: dict[str, Any], seed: int) -> dict[str, float]:
        return self.contestant.run(_recipe(recipe), seed)

    def warm_up(self, recipe: dict[str, Any], seed: int) -> dict[str, float]:
        return self.contestant.warm_up(_recipe(recipe), seed)


def _recipe(fields: dict[str, Any]) -> Recipe:
    """A Recipe from a dictionary that was read from JSON, which has lists where Recipe has tuples."""
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return Recipe(**given)


def main() -> None:
    """Answer commands for one contestant from standard input until it ends."""
    serve(_Server)


def to_accuracy(
    target: float,
    recipes: Sequence[Recipe] = tuple(RECIPES.values()),
    contestants: Sequence[str] = ("xnn", "torch"),
    seeds: int = 5,
    threads: int = 1,
    say: Callable[[str], None] = lambda line: None,
    dataset: str = "mnist",
) -> list[dict[str, Any]]:
    """Train every recipe with every contestant and every seed. Returns a dictionary for each recipe and contestant.

    target: the accuracy to reach, in [0, 1].
    recipes: what to train; default: all of RECIPES.
    contestants: of "xnn", "xnn-numpy", "xnn-cupy", "torch"; default: ("xnn", "torch").
    seeds: how many; 5 by default. The seeds are 0, 1, ...
    threads: of each contestant; default: 1.
    say: called with a line of progress.
    dataset: the data set's name; default: "mnist".

    The keys of a dictionary:
    recipe, contestant                      their names
    seconds, median_seconds, quartiles      the times of all seeds
    accuracies, median_accuracy             the accuracies on the test images
    reached                                 whether the median accuracy is at least the target
    warm_up_seconds                         the time of a few steps before, with compiling
    reason                                  why there are no times, else empty

    Raises OptionError for an unknown contestant or a target outside [0, 1], and DataNotFoundError if the data set is
    not on disk.
    """
    unknown = [name for name in contestants if name not in CONTESTANTS]
    if unknown:
        raise OptionError(f"no contestant is called {unknown[0]!r}; choose {', '.join(CONTESTANTS)}")
    target, seeds = check_real("target", target, 0.0, 1.0), check_count("seeds", seeds)
    if dataset in _FETCHED and dataset not in data.on_disk():
        raise DataNotFoundError(
            f"{dataset} is not on disk, and benchmarks download nothing. Put its files into a folder {dataset}/ "
            f"and set XNN_DATA_HOME to the folder above it, or fetch them with xnn train --dataset {dataset}"
        )
    workers: list[Process] = []
    entries: list[dict[str, Any]] = []
    try:
        for name in contestants:
            say(f"{name} starts")
            workers.append(Process(name, "xnn.benchmarks.time_to_accuracy", threads))
            workers[-1].ask(name=name, dataset=dataset, threads=threads)
        absent = [worker.error for worker in workers]
        for recipe in recipes:
            for worker, reason in zip(workers, absent, strict=True):
                worker.error = reason  # a recipe that failed does not stop the next one
            turn = [_entry(recipe, worker) for worker in workers]
            for seed in range(seeds):
                for worker, entry in zip(workers, turn, strict=True):
                    say(f"{recipe.name}, seed {seed}: {worker.name}")
                    answer = worker.ask(do="run", recipe=asdict(recipe), seed=seed)
                    entry["reason"] = worker.error
                    entry["seconds"].append(answer.get("seconds"))
                    entry["accuracies"].append(answer.get("accuracy"))
            entries += turn
    finally:
        for worker in workers:
            worker.close()
    return [_judge(entry, target) for entry in entries]


def _entry(recipe: Recipe, worker: Process) -> dict[str, Any]:
    """Warm up, and return an entry without times."""
    warm = worker.ask(do="warm_up", recipe=asdict(recipe), seed=0)
    return {
        "recipe": recipe.name,
        "contestant": worker.name,
        "warm_up_seconds": warm.get("seconds"),
        "seconds": [],
        "accuracies": [],
        "reason": worker.error,
    }


def _judge(entry: dict[str, Any], target: float) -> dict[str, Any]:
    """Add medians, quartiles and `reached` to an entry. An entry with a reason loses its times."""
    if entry["reason"]:
        return {**entry, "seconds": [], "accuracies": [], "reached": False}
    accuracy = statistics.median(entry["accuracies"])
    low, median, high = quartiles(entry["seconds"])
    return {
        **entry,
        "median_seconds": median,
        "quartiles": [low, high],
        "median_accuracy": accuracy,
        "reached": accuracy >= target,
    }


def text(results: Sequence[dict[str, Any]], target: float) -> str:
    """The results as a table, with the ratio xnn / torch of each recipe, and xnn's fastest recipe.

    Times are shown only where the target was reached.
    """
    lines = [
        f"seconds to {target:.1%} of the test images, medians",
        f"  {'':<14}{'':<12}{'seconds':>9}{'quartiles':>15}{'accuracy':>10}{'warm-up s':>11}",
    ]
    for e in results:
        line = f"  {e['recipe']:<14}{e['contestant']:<12}"
        if e["reason"]:
            lines.append(f"{line}no figure: {e['reason']}")
            continue
        seconds, spread = f"{e['median_seconds']:.2f}", "{:.2f} - {:.2f}".format(*e["quartiles"])
        if not e["reached"]:
            lines.append(f"{line}not reached: {e['median_accuracy']:.2%} after {seconds} s")
            continue
        line += f"{seconds:>9}{spread:>15}{e['median_accuracy']:>10.2%}{e['warm_up_seconds']:>11.2f}"
        lines.append(line)
    reached = {(e["recipe"], e["contestant"]): float(e["median_seconds"]) for e in results if e["reached"]}
    for recipe in dict.fromkeys(e["recipe"] for e in results):
        if (recipe, "xnn") in reached and (recipe, "torch") in reached:
            ratio = reached[recipe, "xnn"] / reached[recipe, "torch"]
            lines.append(f"  {recipe}: xnn / torch: {ratio:.2f}")
    own = {key: seconds for key, seconds in reached.items() if key[1].startswith("xnn")}
    if own:
        best = min(own, key=own.__getitem__)
        lines.append(f"  fastest of xnn: {best[0]}, {own[best]:.2f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
