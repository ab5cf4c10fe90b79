"""What `xnn train` runs, as values: the options that determine a run, and the model, loss and optimizer they mean."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np

from xnn import __version__, layers, losses
from xnn.data import Dataset
from xnn.errors import OptionError, XnnError
from xnn.layers import Layer, Sequential
from xnn.layers.augment import STRONGEST
from xnn.losses import Loss
from xnn.optimizers import Optimizer
from xnn.options import check_real
from xnn.runs import architecture
from xnn.runs.architecture import Architecture
from xnn.runs.digests import data_sha256
from xnn.runs.mlp import mlp
from xnn.runs.names import LOSSES, LOSSES_OF_CLASSES, LOSSES_OF_TWO_CLASSES, OPTIMIZERS, losses_for
from xnn.runs.schedule_text import read_schedule, schedule_text
from xnn.schedules import Schedule, Warmup
from xnn.training import Trainer
from xnn.training.inputs import check_trainable

__all__ = ["RunSpec", "balanced_weights"]

# Learning rates that differ from the optimizer's own default. 0.1 is the article's, for classes; the unscaled targets
# of a regression, such as house prices, need smaller steps.
_RATES = {("sgd", "classification"): 0.1, ("sgd", "regression"): 0.01}

_MLP_ONLY = {"hidden", "activation", "dropout"}  # a network from a file replaces these
_NOT_FOR_LBFGS = ("lr", "schedule", "warmup", "clip_norm", "average", "dropout", "augment")


@dataclass(frozen=True)
class RunSpec:
    """The options of `xnn train` that determine a run, together with the data and the machine.

    hidden: widths of the hidden layers.
    activation: a name in names.ACTIVATIONS.
    optimizer: a name in names.OPTIMIZERS.
    lr: the learning rate, or the largest one of a schedule; None for the default of the optimizer.
    batch_size: samples in a batch.
    seed: of initial weights, shuffles and masks.
    dropout: rate after each hidden layer.
    model: a network that replaces hidden, activation and dropout; default None.
    loss: a name in names.LOSSES; default None, the first loss for the data.
    label_smoothing: in [0, 1), for the cross-entropy; default 0.
    class_weight: "balanced" or None, for the cross-entropy.
    momentum: of SGD or RMSProp; default 0.
    weight_decay: default None, that of the optimizer.
    clip_norm: largest norm of all gradients together; default None, no limit.
    schedule: a text such as "step:every=1000,factor=0.5"; default None, a constant rate.
    warmup: steps in which the rate rises from 0; default None.
    average: decay of the moving average of the weights; default None, no average.
    augment: strength of the random changes to images; default 0, none.
    scale_target: whether a regression learns its targets with mean 0 and deviation 1; default False.
    standardize: "float64" if columns of tables are standardized in float64; default None, in the model's dtype, as
        version 0.1 did. `from_options` chooses "float64".

    A record leaves out the options from `model` on that have their default.
    Raises OptionError for options that do not go together, as far as this is known without the data.
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
    scale_target: bool = False
    standardize: str | None = None

    def __post_init__(self) -> None:
        self._check_optimizer()
        self._check_loss()
        check_real("--augment", self.augment, 0.0, STRONGEST)
        check_real("--dropout", self.dropout, 0.0, 1.0)
        if self.lr is not None and not check_real("--lr", self.lr, 0.0):
            raise OptionError(f"--lr must be above 0, got {self.lr}: nothing would be learned")
        if self.warmup is not None and (self.schedule or "").startswith("onecycle"):
            raise OptionError(
                "--warmup and --schedule onecycle both say how the rate rises: omit --warmup, or give its share of "
                "the run as in onecycle:warmup=0.3"
            )
        # Builds schedule and optimizer, so that they check their options before data are fetched. The lengths of a
        # run and of an epoch are not known yet; any will do for this.
        self._optimizer(self._rate(1_000_000, 1000))

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"there is no optimizer {self.optimizer!r}: choose {', '.join(OPTIMIZERS)}")
        if self.momentum and "momentum" not in _defaults(OPTIMIZERS[self.optimizer]):
            able = [name for name, kind in OPTIMIZERS.items() if "momentum" in _defaults(kind)]
            raise OptionError(f"--momentum is for {' and '.join(able)}, not for {self.optimizer}: omit it")
        if OPTIMIZERS[self.optimizer].minimizes:
            for name in _NOT_FOR_LBFGS:
                if getattr(self, name):
                    raise OptionError(
                        f"{_option(name)} is for optimizers that train on batches, and {self.optimizer} minimizes "
                        "the loss over all the data at once: omit it"
                    )

    def _check_loss(self) -> None:
        if self.loss is not None and self.loss not in LOSSES:
            raise OptionError(f"there is no loss {self.loss!r}: choose {', '.join(LOSSES)}")
        if self.class_weight not in (None, "balanced"):
            raise OptionError(f"--class-weight must be balanced, got {self.class_weight!r}")
        losses.SoftmaxCrossEntropy(self.label_smoothing)  # checks it before data are fetched
        for name in ("label_smoothing", "class_weight"):
            if getattr(self, name) and self.loss not in (None, *LOSSES_OF_CLASSES):
                raise OptionError(f"{_option(name)} is for cross-entropy, not for {self.loss}: omit it")

    @classmethod
    def from_options(cls, model: str | None, **options: Any) -> RunSpec:
        """The run that these command-line options mean; `model` is the name of a TOML file, or None."""
        network = None if model is None else architecture.read(model)
        return cls(**options, model=network, standardize="float64")

    @classmethod
    def from_json(cls, run: dict[str, Any], version: str) -> RunSpec:
        """The run that a record describes.

        run: what `as_json` returned, without the data set's name.
        version: the version of xnn that wrote it, for the message.

        Raises OptionError for options that this version of xnn does not have.
        """
        absent = _MLP_ONLY if "model" in run else {"model"}
        needed = {field.name: field.default is MISSING for field in fields(cls) if field.name not in absent}
        missing = {name for name, required in needed.items() if required} - run.keys()
        problem = ", ".join(sorted(run.keys() - needed.keys() | missing))
        try:
            if not problem:
                network: dict[str, Any] = {"hidden": tuple(run.get("hidden", ()))}
                if "model" in run:
                    network |= {"activation": "", "dropout": 0.0, "model": Architecture(run["model"])}
                return cls(**{**run, **network})
        except (OptionError, TypeError, AttributeError) as error:  # the last two: a value of the wrong type
            problem = str(error)
        raise OptionError(
            f"the record was made by xnn {version}, with options that this xnn, {__version__}, does not know "
            f"({problem}): verify it with that version"
        )

    def as_json(self) -> dict[str, Any]:
        """The run as JSON values, which `from_json` reads."""
        options = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }
        if self.model is None:
            return options
        return {k: v for k, v in options.items() if k not in _MLP_ONLY} | {"model": self.model.layers}

    def check_numerics(self, numerics: str) -> None:
        """Raise OptionError if the optimizer cannot run in these numerics."""
        if numerics == "exact" and OPTIMIZERS[self.optimizer].minimizes:
            raise OptionError(
                f"--optimizer {self.optimizer} uses SciPy, whose bits are not the same everywhere: choose another "
                "optimizer, or --numerics fast"
            )

    def steps_per_epoch(self, data: Dataset) -> int:
        """The number of batches in an epoch; the last one may be smaller."""
        return -(-len(data.x_train) // self.batch_size)

    def resolved(self, data: Dataset, steps: int) -> RunSpec:
        """This run with all options filled in that depend on the data, and without those that equal a default.

        steps: the length of the run, which a schedule needs.

        Two resolved runs are equal if they train in the same way; a record holds a resolved run.
        Raises OptionError for options that do not fit the data.
        """
        known = replace(self, loss=self._loss_name(data))
        if known.loss == next(iter(losses_for(data))):
            known = replace(known, loss=None)
        if data.scale is not None:
            known = replace(known, standardize=None)
        if self.scale_target and data.task != "regression":
            raise OptionError(
                f"--scale-target is for a regression, and {data.name} has {data.classes} classes: omit it"
            )
        if self.augment and data.image is None:
            raise OptionError(
                f"--augment is for images, and a sample of {data.name} is {data.x_train.shape[1]} numbers that form "
                "no square image of bytes: omit it, or give an .npz file with x of shape (n, height, width) or "
                "(n, channels, height, width)"
            )
        kind = OPTIMIZERS[self.optimizer]
        usual = _defaults(kind)
        if self.weight_decay == usual["weight_decay"]:
            known = replace(known, weight_decay=None)
        if kind.minimizes:
            return known
        rate = self.lr or _RATES.get((self.optimizer, data.task), usual.get("learning_rate"))
        per_epoch = self.steps_per_epoch(data)
        if self.warmup is not None and self.warmup >= steps:
            raise OptionError(
                f"--warmup is {self.warmup:,}: it must be shorter than the run of {steps:,} steps, {per_epoch:,} an "
                "epoch"
            )
        text = schedule_text(
            read_schedule(self.schedule or "constant", 1.0, steps - (self.warmup or 0), per_epoch)
        )
        return replace(known, lr=rate, schedule=None if text == "constant" else text)

    def build(self, data: Dataset) -> tuple[Sequential, Loss, Optimizer]:
        """The model, loss and optimizer for these data. The run must be `resolved`.

        Raises OptionError or ShapeError for a network that does not fit the data, with its line in the file.
        """
        name = self._loss_name(data)
        outputs = 1 if name in LOSSES_OF_TWO_CLASSES else data.classes
        if data.task == "classification" and data.classes == 1:
            outputs = 2  # the second class never comes; of one alone, there is nothing to compute
        scaling: Any = data.scaling_layer() if self.standardize else data.rescaling()
        shape = tuple(data.x_train.shape[1:])
        moved: list[Layer] = []
        if self.augment and data.image:
            moved = layers.augmentation(data.image, self.augment)
        if self.model is None:
            network = self.hidden, outputs, self.activation, self.dropout, scaling, self.seed, moved
            model = mlp(shape[0], *network)
        else:
            model = self.model.build(shape, outputs, scaling, self.seed, moved)
        data.check_range(model.dtype, samples=not model.takes_float64)
        # The text of a resolved schedule has all its numbers, so the two lengths are not used.
        loss, optimizer = self._loss(name, data), self._optimizer(self._rate(1, 1))
        if self.model is not None:
            _check_network(self.model, model, loss, optimizer, data.x_train, self.targets(data.y_train))
        return model, loss, optimizer

    def with_targets(self, data: Dataset) -> Dataset:
        """The data with the targets that this run learns: those of a regression standardized, if asked for."""
        return data.with_scaled_targets() if self.scale_target and data.task == "regression" else data

    def targets(self, y: np.ndarray) -> np.ndarray:
        """The targets in the form that the loss takes.

        A loss of two classes takes one column of 0 and 1; hinge takes -1 and 1. All others take y as it is.
        """
        if self.loss not in LOSSES_OF_TWO_CLASSES:
            return y
        return (2 * y - 1 if self.loss == "hinge" else y)[:, None]

    def _loss_name(self, data: Dataset) -> str:
        possible = losses_for(data)
        name = self.loss or next(iter(possible))
        what = "a regression" if data.task == "regression" else f"a classification of {data.classes} classes"
        if name not in possible:
            raise OptionError(f"--loss {name} is not for {data.name}, {what}: choose {', '.join(possible)}")
        for option in ("label_smoothing", "class_weight"):
            if getattr(self, option) and name not in LOSSES_OF_CLASSES:
                raise OptionError(f"{_option(option)} is for classes, and {data.name} is {what}: omit it")
        return name

    def _loss(self, name: str, data: Dataset) -> Loss:
        if name not in LOSSES_OF_CLASSES:
            return LOSSES[name]()
        counts = data.class_counts["training"]
        weights = balanced_weights(np.pad(counts, (0, int(len(counts) == 1)))) if self.class_weight else None
        return losses.SoftmaxCrossEntropy(self.label_smoothing, weights)

    def _rate(self, steps: int, per_epoch: int) -> float | Schedule:
        """The learning rate or schedule, for a run and an epoch of this many steps."""
        rate: float | Schedule = self.lr or 1.0
        if self.schedule is not None:
            rate = read_schedule(self.schedule, self.lr or 1.0, steps, per_epoch)
        return rate if self.warmup is None else Warmup(rate, self.warmup)

    def _optimizer(self, rate: float | Schedule) -> Optimizer:
        """The optimizer. Options that were not given are left to its class."""
        kind: Any = OPTIMIZERS[self.optimizer]
        given = {name: getattr(self, name) for name in ("weight_decay", "clip_norm", "average")}
        given |= {"momentum": self.momentum or None, "learning_rate": None if kind.minimizes else rate}
        optimizer: Optimizer = kind(**{name: value for name, value in given.items() if value is not None})
        return optimizer

    def record_header(self, data: Dataset) -> dict[str, Any]:
        """What a record says of this run: the version of xnn, the options, and the digest of the data.

        The run must be `resolved`.
        """
        run = {"dataset": data.name, **self.as_json()}
        return {"xnn": __version__, "run": run, "data_sha256": data_sha256(data.x_train, data.y_train)}


def balanced_weights(counts: np.ndarray) -> list[float]:
    """Weights with which all classes count alike, however many samples each one has.

    counts: samples of each class, shape (classes,).

    With n samples of k classes, a class of m samples weighs n / (k m), as with scikit-learn's
    class_weight="balanced". A class without samples weighs 1 and is not among the k.

    >>> import numpy as np
    >>> balanced_weights(np.array([6, 0, 2]))
    [0.6666666666666666, 1.0, 2.0]
    """
    samples, there = int(counts.sum()), int(np.count_nonzero(counts))
    return [samples / (there * int(count)) if count else 1.0 for count in counts]


def _check_network(
    source: Architecture, network: Sequential, loss: Loss, optimizer: Optimizer, x: np.ndarray, y: np.ndarray
) -> None:
    """Check a file's network against data and loss, so that an error names the layer's line in the file."""
    try:
        place = source.last
        Trainer(network, loss, optimizer)  # checks how the network ends
        check_trainable(network)
        loss.check(y, network.output_shape(tuple(x.shape[1:])))
        if network.takes_integers:
            place = source.first
            network.prepare(x)
    except XnnError as error:
        raise type(error)(f"{place}: {error}") from error


def _defaults(kind: type[Optimizer]) -> dict[str, Any]:
    """The arguments of an optimizer's class, with their defaults."""
    return {name: argument.default for name, argument in inspect.signature(kind).parameters.items()}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
