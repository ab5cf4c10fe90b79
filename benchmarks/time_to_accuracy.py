"""Time to accuracy: the seconds a named recipe takes to train MNIST, and the accuracy it comes to; xnn and PyTorch.

A recipe fixes network, batch size, epochs, update rule and the learning rate of every step; initial weights are
Glorot's normal ones and biases zero. Contestants differ in the numbers they draw, so each recipe is run with
several seeds, and a time counts only if the median accuracy on the test images reached the target. Contestants
take turns, seed by seed, each in a process of its own, so that another program's noise hits all of them.
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
    """How to train inputs - hidden[0] - ... - classes, ReLU between, with softmax cross-entropy.

    optimizer: "adam" with `betas`, or "sgd" with `momentum` (`nesterov`). The learning rate of step t is
    xnn.schedules.OneCycle(peak, steps, warmup, start, end)(t). The inputs are pixels * scale + offset.
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
        """Of all epochs; the last batch of each may be smaller."""
        return self.epochs * -(-rows // self.batch_size)

    def schedule(self, rows: int) -> OneCycle:
        """The learning rate of each step of training on so many rows."""
        return OneCycle(self.peak, self.steps(rows), self.warmup, self.start, self.end)


_KNOWN = (
    # The usual one, by which the two are compared.
    Recipe("one-cycle", (256,), 256, 5, "adam", 0.008),
    # The cheapest of some sixty tried that reaches 98.0 % with something to spare: 98.10 % in the mean of the seeds
    # 100 to 123, standard deviation 0.08 %. So few steps want a short memory and an early peak. On the same seeds
    # 144 units came to 98.08 %, and two epochs of 256 units, batch 128, to 98.11 % in an eighth more time.
    Recipe("three-epochs", (160,), 256, 3, "adam", 0.012, warmup=0.05, betas=(0.8, 0.95)),
)
RECIPES = {recipe.name: recipe for recipe in _KNOWN}


class _Contestant:
    """What all share: training images uint8 (n, inputs) and labels, the test images, and how many classes."""

    def __init__(self, dataset: str, threads: int) -> None:
        found = data.load(dataset)
        # Both train on all that is not test data; the split is for those who choose by validation.
        self.x: Any = np.concatenate([found.x_train, found.x_val])
        self.y: Any = np.concatenate([found.y_train, found.y_val])
        self.x_test: Any = found.x_test
        self.y_test: Any = found.y_test
        self.classes = found.classes
        self.inputs = found.x_train.shape[1]

    def train(self, recipe: Recipe, seed: int, rows: int) -> tuple[float, Callable[[], float]]:
        """Train a fresh model on the first `rows` images: seconds, and what counts its accuracy.

        Timed are the steps and all they need: each epoch's order, batches, learning rates. Building model and
        optimizer is not.
        """
        raise NotImplementedError

    def run(self, recipe: Recipe, seed: int) -> dict[str, float]:
        """The whole recipe: seconds of training, and accuracy on the test images, which is not timed."""
        seconds, accuracy = self.train(recipe, seed, len(self.x))
        return {"seconds": seconds, "accuracy": accuracy()}

    def warm_up(self, recipe: Recipe, seed: int) -> dict[str, float]:
        """A few steps of the recipe: what is compiled is compiled here."""
        start = time.perf_counter()
        rows = min(len(self.x), _WARM_UP_STEPS * recipe.batch_size)
        _, accuracy = self.train(recipe, seed, rows)
        accuracy()
        return {"seconds": time.perf_counter() - start}


class _Xnn(_Contestant):
    """The Trainer, as a user calls it; bytes stay bytes and are scaled while a batch is gathered."""

    kernels = "auto"

    def train(self, recipe: Recipe, seed: int, rows: int) -> tuple[float, Callable[[], float]]:
        rescale = recipe.scale, recipe.offset
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
    """The same without compiled kernels."""

    kernels = "numpy"


class _Torch(_Contestant):
    """PyTorch, eager: images float32 once and for all, batches by index_select, the fused optimizers.

    The loss is brought to the host nowhere. Slower: foreach for the update, and x[rows] for index_select.
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
        """Images as float32; kept while recipes agree on scale and offset."""
        if self.scaled != (scale, offset):
            self.x, self.x_test = (images.float().mul_(scale).add_(offset) for images in self.bytes)
            self.scaled = scale, offset

    def build(self, recipe: Recipe, seed: int, rows: int) -> tuple[Any, Any, Any]:
        """Network, optimizer, and the schedule that gives OneCycle's rates step by step."""
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
            pct_start=recipe.warmup + 1 / steps,  # its peak is one step before pct_start * steps
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=recipe.start,
            final_div_factor=recipe.end / recipe.start,  # of the first rate, where OneCycle's is of the peak
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


CONTESTANTS: dict[str, type[_Contestant]] = {"xnn": _Xnn, "xnn-numpy": _XnnNumpy, "torch": _Torch}


class _Server:
    """A contestant that answers for recipes as JSON has them."""

    def __init__(self, name: str, dataset: str, threads: int) -> None:
        self.contestant = CONTESTANTS[name](dataset, threads)

    def run(self, recipe: dict[str, Any], seed: int) -> dict[str, float]:
        """The whole recipe."""
        return self.contestant.run(_recipe(recipe), seed)

    def warm_up(self, recipe: dict[str, Any], seed: int) -> dict[str, float]:
        """A few steps."""
        return self.contestant.warm_up(_recipe(recipe), seed)


def _recipe(fields: dict[str, Any]) -> Recipe:
    """A recipe that went through JSON, which has lists for tuples."""
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return Recipe(**given)


def main() -> None:
    """One contestant in a process of its own: serve until standard input ends."""
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
    """Every recipe by every contestant, once for each of the seeds 0, 1, ...: one entry each, recipe by recipe.

    An entry has `recipe`, `contestant`; `seconds`, all of them, their `median_seconds` and `quartiles`;
    `accuracies` on the test images, all, and `median_accuracy`; `reached`: whether that is at least the target;
    `warm_up_seconds` before the first seed, compiling included; and `reason`: why there are no figures.
    Raises OptionError for a contestant that is not there or a target that is no accuracy, and DataNotFoundError
    where the data set is not on disk: a download is no part of a benchmark.
    """
    unknown = [name for name in contestants if name not in CONTESTANTS]
    if unknown:
        raise OptionError(f"no contestant is called {unknown[0]!r}; choose {', '.join(CONTESTANTS)}")
    target, seeds = check_real("target", target, 0.0, 1.0), check_count("seeds", seeds)
    if dataset in _FETCHED and dataset not in data.on_disk():
        raise DataNotFoundError(
            f"time to accuracy needs {dataset} on disk, and it is not: put its files into a folder {dataset}/ and "
            f"point XNN_DATA_HOME at the folder above it, or fetch them with xnn train --dataset {dataset}"
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
                worker.error = reason  # a recipe that broke off says nothing of the next
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
    """An entry without figures, after the warm-up."""
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
    """The entry with medians, quartiles and the gate; one that broke off has no figures."""
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
    """A line for each recipe and contestant, the ratio xnn / torch of each recipe, and xnn's fastest recipe.

    Times are shown, and compared, only where the target was reached.
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
