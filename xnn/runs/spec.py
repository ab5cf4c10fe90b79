"""A run of `xnn train`: what, beside the data and the machine, determines it, and what is built from that."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np

from xnn import __version__, layers, losses, optimizers
from xnn.data import Dataset
from xnn.errors import OptionError, XnnError
from xnn.layers import Layer, Sequential
from xnn.layers.augment import STRONGEST
from xnn.losses import Loss
from xnn.optimizers import Optimizer
from xnn.options import check_count, check_real
from xnn.runs import architecture
from xnn.runs.architecture import Architecture
from xnn.runs.digests import data_sha256
from xnn.runs.mlp import mlp
from xnn.runs.schedule_text import read_schedule, schedule_text
from xnn.schedules import Schedule, Warmup
from xnn.training import Trainer
from xnn.training.inputs import check_trainable

__all__ = ["LOSSES", "OPTIMIZERS", "Run"]

#: The optimizers by plain names.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": optimizers.SGD,
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "nadam": optimizers.Nadam,
    "rmsprop": optimizers.RMSProp,
    "adagrad": optimizers.AdaGrad,
    "adadelta": optimizers.AdaDelta,
    "lion": optimizers.Lion,
    "lbfgs": optimizers.LBFGS,
}
# The article's for classes; unscaled targets, as house prices are, need smaller steps. Others have their class's.
_RATES = {("sgd", "classification"): 0.1, ("sgd", "regression"): 0.01}

# The losses of each kind of task, the usual one first; those of two classes look at a single output.
_OF_CLASSES: dict[str, type[Loss]] = {"cross-entropy": losses.SoftmaxCrossEntropy}
_OF_TWO_CLASSES: dict[str, type[Loss]] = {
    "bce": losses.BinaryCrossEntropy,
    "focal": losses.Focal,
    "hinge": losses.Hinge,
}
_OF_NUMBERS: dict[str, type[Loss]] = {"mse": losses.MSE, "l1": losses.L1, "huber": losses.Huber}
#: The losses by plain names.
LOSSES = _OF_CLASSES | _OF_TWO_CLASSES | _OF_NUMBERS

_MLP = {"hidden", "activation", "dropout"}  # the network where no file says it
_ONLY_BY_STEPS = ("lr", "schedule", "warmup", "clip_norm", "average", "dropout", "augment")


@dataclass(frozen=True)
class Run:
    """Options of `xnn train` that a record carries; those from `model` on only where they are not the default.

    model: an architecture, in place of hidden, activation and dropout. lr: the first rate, or a schedule's peak.
    Raises OptionError for what does not go together, as far as that can be told without the data.
    """

    hidden: tuple[int, ...]
    activation: str
    optimizer: str
    lr: float | None
    batch_size: int
    seed: int
    dropout: float
    model: Architecture | None = None
    loss: str | None = None
    label_smoothing: float = 0.0
    class_weight: str | None = None
    momentum: float = 0.0
    weight_decay: float | None = None
    clip_norm: float | None = None
    schedule: str | None = None
    warmup: int | None = None
    average: float | None = None
    augment: float = 0.0

    def __post_init__(self) -> None:
        self._check_optimizer()
        self._check_loss()
        check_real("--augment", self.augment, 0.0, STRONGEST)
        if self.lr is not None and not check_real("--lr", self.lr, 0.0):
            raise OptionError(f"--lr must be above 0, got {self.lr}: nothing would be learned")
        if self.warmup is not None:
            check_count("--warmup", self.warmup)
            if (self.schedule or "").startswith("onecycle"):
                raise OptionError(
                    "--warmup and --schedule onecycle both say how the rate rises: onecycle:warmup=0.3 is a share of "
                    "the run"
                )
        if self.schedule is not None:
            read_schedule(self.schedule, 1.0, 1_000_000, 1000)  # what is wrong with it does not hang on these
        self._rule(1.0)

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"there is no optimizer {self.optimizer!r}: choose {', '.join(OPTIMIZERS)}")
        if self.momentum and "momentum" not in _defaults(OPTIMIZERS[self.optimizer]):
            able = [name for name, kind in OPTIMIZERS.items() if "momentum" in _defaults(kind)]
            raise OptionError(
                f"--momentum is for {' and '.join(able)}, not for {self.optimizer}: leave it away"
            )
        if OPTIMIZERS[self.optimizer].minimizes:
            for name in _ONLY_BY_STEPS:
                if getattr(self, name):
                    raise OptionError(
                        f"{_option(name)} is for optimizers that take steps, and {self.optimizer} searches the "
                        "minimum of the loss over all the data: leave it away"
                    )

    def _check_loss(self) -> None:
        if self.loss is not None and self.loss not in LOSSES:
            raise OptionError(f"there is no loss {self.loss!r}: choose {', '.join(LOSSES)}")
        if self.class_weight not in (None, "balanced"):
            raise OptionError(f"--class-weight must be balanced, got {self.class_weight!r}")
        check_real("--label-smoothing", self.label_smoothing, 0.0, 1.0)
        for name in ("label_smoothing", "class_weight"):
            if getattr(self, name) and self.loss not in (None, *_OF_CLASSES):
                raise OptionError(f"{_option(name)} is for cross-entropy, not for {self.loss}: leave it away")

    @classmethod
    def from_options(cls, model: str | None, **options: Any) -> Run:
        """Of the command's options; `model` is a file's name."""
        return cls(**options, model=None if model is None else architecture.read(model))

    @classmethod
    def from_record(cls, run: dict[str, Any], version: str) -> Run:
        """The options that a record holds. Raises OptionError for those of another xnn that this one has not."""
        absent = _MLP if "model" in run else {"model"}
        known = {field.name: field.default is MISSING for field in fields(cls) if field.name not in absent}
        missing = {name for name, needed in known.items() if needed} - run.keys()
        odd = ", ".join(sorted(run.keys() - known.keys() | missing))
        try:
            if not odd:
                network: dict[str, Any] = {"hidden": tuple(run.get("hidden", ()))}
                if "model" in run:
                    network |= {"activation": "", "dropout": 0.0, "model": Architecture(run["model"])}
                return cls(**{**run, **network})
        except (OptionError, TypeError, AttributeError) as error:  # the latter of values of another kind
            odd = str(error)
        raise OptionError(
            f"the record is of xnn {version} and of a run that this xnn, {__version__}, does not know ({odd}): "
            "verify it with that version"
        )

    def as_record(self) -> dict[str, Any]:
        """What from_record takes, as JSON values."""
        options = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }
        if self.model is None:
            return options
        return {k: v for k, v in options.items() if k not in _MLP} | {"model": self.model.layers}

    def check_numerics(self, numerics: str) -> None:
        """Raises OptionError for what these numerics do not have."""
        if numerics == "exact" and OPTIMIZERS[self.optimizer].minimizes:
            raise OptionError(
                f"--optimizer {self.optimizer} searches with SciPy, whose bits are not the same everywhere: choose "
                "another optimizer, or --numerics fast"
            )

    def resolved(self, data: Dataset, steps: int) -> Run:
        """This run of so many steps over these data with every number that follows from them, and nothing that goes
        without saying: what is to be built, recorded and compared.

        Raises OptionError for what does not fit the data.
        """
        known = replace(self, loss=self._loss_name(data))
        if known.loss == next(iter(_losses_for(data))):
            known = replace(known, loss=None)
        if self.augment and data.image is None:
            raise OptionError(
                f"--augment is for images, and a sample of {data.name} is {data.x_train.shape[1]} numbers, no square "
                "of bytes: leave it away, or give an .npz with x (n, height, width) or (n, channels, height, width)"
            )
        kind = OPTIMIZERS[self.optimizer]
        usual = _defaults(kind)
        if self.weight_decay == usual["weight_decay"]:
            known = replace(known, weight_decay=None)
        if kind.minimizes:
            return known
        rate = self.lr or _RATES.get((self.optimizer, data.task), usual.get("learning_rate"))
        per_epoch = -(-len(data.x_train) // self.batch_size)
        if self.warmup is not None and self.warmup >= steps:
            raise OptionError(
                f"--warmup must be shorter than the run of {steps:,} steps, {per_epoch:,} an epoch, "
                f"got {self.warmup:,}"
            )
        text = schedule_text(
            read_schedule(self.schedule or "constant", 1.0, steps - (self.warmup or 0), per_epoch)
        )
        return replace(known, lr=rate, schedule=None if text == "constant" else text)

    def build(self, data: Dataset) -> tuple[Sequential, Loss, Optimizer]:
        """The model, loss and optimizer for these data, of a run that is `resolved`."""
        name = self._loss_name(data)
        outputs = 1 if name in _OF_TWO_CLASSES else data.classes
        scaling, shape = data.rescaling(), tuple(data.x_train.shape[1:])
        moved: list[Layer] = []
        if self.augment and data.image:
            moved = layers.augmentation(data.image, self.augment)
        if self.model is None:
            network = self.hidden, outputs, self.activation, self.dropout, scaling, self.seed, moved
            model = mlp(shape[0], *network)
        else:
            model = self.model.build(shape, outputs, scaling, self.seed, moved)
        data.check_range(model.dtype)
        loss, rule = self._loss(name, data), self._rule(self._rate())
        if self.model is not None:
            _check_network(self.model, model, loss, rule, data.x_train, self.targets(data.y_train))
        return model, loss, rule

    def targets(self, y: np.ndarray) -> np.ndarray:
        """The data's targets as the loss takes them: two classes in a column, of 0 and 1, or -1 and 1 for hinge."""
        if self.loss not in _OF_TWO_CLASSES:
            return y
        return (2 * y - 1 if self.loss == "hinge" else y)[:, None]

    def _loss_name(self, data: Dataset) -> str:
        possible = _losses_for(data)
        name = self.loss or next(iter(possible))
        what = "a regression" if data.task == "regression" else f"a classification of {data.classes} classes"
        if name not in possible:
            raise OptionError(f"--loss {name} is not for {data.name}, {what}: choose {', '.join(possible)}")
        for option in ("label_smoothing", "class_weight"):
            if getattr(self, option) and name not in _OF_CLASSES:
                raise OptionError(
                    f"{_option(option)} is for classes, and {data.name} is {what}: leave it away"
                )
        return name

    def _loss(self, name: str, data: Dataset) -> Loss:
        if name not in _OF_CLASSES:
            return LOSSES[name]()
        weights = balanced_weights(data.class_counts["training"]) if self.class_weight else None
        return losses.SoftmaxCrossEntropy(self.label_smoothing, weights)

    def _rate(self) -> float | Schedule:
        rate: float | Schedule = self.lr or 1.0
        if self.schedule is not None:
            rate = read_schedule(self.schedule, self.lr or 1.0, 1, 1)  # which, resolved, says all itself
        return rate if self.warmup is None else Warmup(rate, self.warmup)

    def _rule(self, rate: float | Schedule) -> Optimizer:
        """The optimizer; an option that was not given is its class's own."""
        kind: Any = OPTIMIZERS[self.optimizer]
        given = {name: getattr(self, name) for name in ("weight_decay", "clip_norm", "average")}
        given |= {"momentum": self.momentum or None, "learning_rate": None if kind.minimizes else rate}
        rule: Optimizer = kind(**{name: value for name, value in given.items() if value is not None})
        return rule

    def about(self, data: Dataset) -> dict[str, Any]:
        """What a record says of it, if it is `resolved`."""
        run = {"dataset": data.name, **self.as_record()}
        return {"xnn": __version__, "run": run, "data_sha256": data_sha256(data.x_train, data.y_train)}


def balanced_weights(counts: np.ndarray) -> list[float]:
    """scikit-learn's class_weight="balanced": n / (k count) for each of the k classes that have a sample, else 1."""
    samples, there = int(counts.sum()), int(np.count_nonzero(counts))
    return [samples / (there * int(count)) if count else 1.0 for count in counts]


def _check_network(
    source: Architecture, network: Sequential, loss: Loss, rule: Optimizer, x: np.ndarray, y: np.ndarray
) -> None:
    """What only the data and the loss tell of a file's network is refused here, with the layer's line."""
    try:
        place = source.last
        Trainer(network, loss, rule)  # looks at how the network ends
        check_trainable(network)
        loss.check(y, network.output_shape(tuple(x.shape[1:])))
        if network.takes_integers:
            place = source.first
            network.prepare(x)
    except XnnError as error:
        raise type(error)(f"{place}: {error}") from error


def _losses_for(data: Dataset) -> dict[str, type[Loss]]:
    """Those that these data can be trained with, the usual one first."""
    if data.task == "regression":
        return _OF_NUMBERS
    return _OF_CLASSES | _OF_TWO_CLASSES if data.classes == 2 else _OF_CLASSES


def _defaults(kind: type[Optimizer]) -> dict[str, Any]:
    """An optimizer's own arguments, with their defaults."""
    return {name: argument.default for name, argument in inspect.signature(kind).parameters.items()}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
