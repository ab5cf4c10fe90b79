"""Trains several networks of one shape at once, as one network with stacked weights: `train_stacked`.

A step of a small network leaves most of a GPU idle, and takes as many launches as that of a large one. So the weights
(inputs, outputs) of K networks become one parameter (K, inputs, outputs), and their products one batched product.
Each network has its own samples, order of the samples, penalty and learning rate. A Trainer takes the steps.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import backend
from xnn.callbacks import Callback
from xnn.errors import DeviceMemoryError, DivergenceError
from xnn.history import History
from xnn.initializers import Zeros
from xnn.layers import Buffer, Dense, Layer, Parameter, Sequential
from xnn.losses import Loss
from xnn.ops import Array
from xnn.ops.deviances import OF_SCIKIT_LEARN
from xnn.ops.op import Namespace
from xnn.optimizers import State
from xnn.sklearn.solvers import stacked_optimizer
from xnn.training import Trainer
from xnn.training.again import note_numerics
from xnn.training.room import most_memory
from xnn.training.scale import never_warn

__all__ = ["OwnFit", "train_stacked"]

_SHARE = 0.5  # of the free memory
_MANY = 32  # networks: when half of them have ended, the others get a stack of their own


class OwnFit:
    """The fit of one estimator, which is to be trained together with others.

    e: the estimator, whose network is not trained yet. trainer: what would train it alone, with its own optimizer.
    data: samples and targets. orders: makes the order of the samples in each epoch, or False for the order that they
    have. watcher: a callback, which is told of each epoch, and says when the network has converged.

    trained: whether network, optimizer and history of `trainer` are those at the end of the fit.
    """

    def __init__(
        self,
        e: Any,
        trainer: Trainer,
        data: tuple[np.ndarray, np.ndarray],
        epochs: int,
        batch_size: int,
        orders: Callable[[], Callable[[int], np.ndarray] | bool],
        watcher: Any,
    ) -> None:
        self.e, self.trainer, self.data, self.epochs, self.batch_size = e, trainer, data, epochs, batch_size
        self.watcher, self._orders, self.rows = watcher, orders, len(data[0])
        self._before, self._random = {**vars(e), "loss_curve_": [*e.loss_curve_]}, e._random_state.get_state()
        self._weights = [parameter.value for parameter in trainer.model.parameters()]
        self.begin()

    def begin(self) -> None:
        """Put everything as it was before the first step."""
        vars(self.e).clear()
        vars(self.e).update({**self._before, "loss_curve_": [*self._before["loss_curve_"]]})
        self.e._random_state.set_state(self._random)
        for parameter, value in zip(self.trainer.model.parameters(), self._weights, strict=True):
            parameter.value = value
        optimizer = self.trainer.optimizer
        optimizer.state, optimizer.steps, self.trainer.history = {}, 0, None
        self.trained, self.history, self.order = False, History(), self._orders()
        self.watcher.model = self.trainer.model
        self.watcher.on_fit_start(self.history, self.epochs, -(-self.rows // self.batch_size))

    def next_order(self) -> np.ndarray:
        """The order of the samples in the next epoch."""
        return self.order(len(self.history.epochs)) if callable(self.order) else np.arange(self.rows)

    def told(self, loss: float) -> bool:
        """Tell the watcher the mean loss of an epoch. Returns whether the fit has ended."""
        epochs = self.history.epochs
        epochs.append({"epoch": len(epochs) + 1, "loss": loss})
        self.watcher.on_epoch_end(self.history, epochs[-1])
        self.trained = bool(self.history.stopped) or len(epochs) == self.epochs
        return self.trained


def train_stacked(fits: Sequence[OwnFit]) -> None:
    """Train networks together, as many at a time as the device has memory for.

    fits: of one kind, as `Workplace` has it. Those that are not `trained` afterwards must be trained alone: one whose
    numbers do not stay finite, or for which there is no memory.
    """
    lib = fits[0].trainer.model.backend
    gc.collect()  # programs refer to themselves
    free = lib.free_memory()
    each = most_memory(fits[0].trainer, fits[0].data, fits[0].batch_size)
    most = len(fits) if free is None else max(1, int(_SHARE * free / each))
    waiting = [[*fits[start : start + most]] for start in range(0, len(fits), most)]
    while waiting:
        group = waiting.pop()
        try:
            going = group if len(group) > 1 else []
            while going:
                going = Stack(going).train()
        except (DivergenceError, DeviceMemoryError):
            group = [fit for fit in group if not fit.trained]
            for fit in group:
                fit.begin()
            waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
        gc.collect()


class _Orders:
    """The samples and targets of all networks, and the order in which each takes them, as constants of a program.

    samples, targets: those of one data set after the other, (rows of all, ...). orders: (networks, rows), for each
    network the numbers of its rows in the order of an epoch. (Whole numbers, as float64: buffers have no integers.)
    """

    def __init__(self, lib: Any, fits: Sequence[OwnFit], dtype: str) -> None:
        known, first, rows = dict[Any, OwnFit](), list[int](), fits[0].rows
        for fit in fits:
            digest = tuple(hashlib.sha256(part.tobytes()).digest() for part in fit.data)
            known.setdefault(digest, fit)
            first.append([*known].index(digest) * rows)
        x, y = (np.concatenate(parts) for parts in zip(*(fit.data for fit in known.values()), strict=True))
        if y.ndim == 1:  # labels, as the probabilities of classes
            y = np.eye(fits[0].e.n_outputs_)[y]
        self._lib, self._table = lib, np.array(first, float).reshape(-1, 1) + np.arange(rows)
        self._first = first
        self.orders = Buffer("orders", self._table.shape, Zeros(), "float64")
        self.samples = Buffer("samples", x.shape, Zeros(), dtype)
        self.targets = Buffer("targets", y.shape, Zeros(), dtype)
        for buffer, array in ((self.orders, self._table), (self.samples, x), (self.targets, y)):
            buffer.value = lib.to_device(array)

    def put(self, orders: Mapping[int, np.ndarray]) -> None:
        """Set the orders in which networks take their samples, in the array of which a graph has the address."""
        for network, order in orders.items():
            self._table[network] = self._first[network] + order
        self.orders.value[...] = self._lib.to_device(self._table)

    def chosen(self, of: Buffer, places: Any) -> Any:
        """The rows of samples or targets that stand at these places in the orders: (networks, places, ...)."""
        networks, count = self.orders.shape[0], places.shape[0]
        numbers = ops.reshape(ops.take(self.orders, places, axis=1), (networks * count,))
        return ops.reshape(ops.take(of, numbers), (networks, count, *of.shape[1:]))


class _Networks(Layer):
    """Multilayer perceptrons of one shape, each on samples of its own: places in the orders (n,) -> (K, n, outputs).

    y_k = f(x_k W_k + b_k) in each layer, for network k.
    """

    buildable = False
    takes_integers = True

    def __init__(self, orders: _Orders, like: Sequential, count: int) -> None:
        self._orders, self._outputs = orders, like.parameters()[-1].size
        self.dtype = like.dtype
        for number, layer in enumerate(like.layers):
            if isinstance(layer, Dense):
                sizes = {"weight": (count, layer.inputs, layer.outputs), "bias": (count, 1, layer.outputs)}
                for name, shape in sizes.items():
                    setattr(self, f"{name}_{number}", Parameter(name, shape, Zeros(), like.dtype))
            else:
                setattr(self, f"activation_{number}", type(layer)())
        #: The loss of each network, times the samples, summed over the batches of an epoch so far.
        self.losses = Buffer("losses", (count,), Zeros(), "float64")
        super().__init__()

    def compute(self, x: Any) -> Any:
        y = self._orders.chosen(self._orders.samples, x)
        parts = iter(self.stacked)
        for weight, bias in zip(parts, parts, strict=True):
            y = y @ weight + bias
            number = weight.name.partition("_")[2]
            following = getattr(self, f"activation_{int(number) + 1}", None)
            y = y if following is None else following(y)
        return y

    @property
    def stacked(self) -> list[Parameter]:
        """The weights and biases, in the order in which each network has its own."""
        return [parameter for parameter in self.own_parameters if not parameter.is_constant]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self._outputs,)

    def flops(self, shape: tuple[int, ...]) -> None:
        return None


def _added(xp: Namespace, sums: Array, losses: Array, *, rows: int) -> tuple[Array]:
    return (sums + xp.astype(losses, sums.dtype) * float(rows),)


class _Losses(Loss):
    """The sum of the networks' losses, each the mean over its samples and its penalty; the layer keeps each one's."""

    def __init__(self, networks: _Networks, orders: _Orders, fits: Sequence[OwnFit]) -> None:
        super().__init__()
        e = fits[0].e
        self._networks, self._orders = networks, orders
        self._op = ops.softmax_cross_entropy if e.out_activation_ == "softmax" else OF_SCIKIT_LEARN[e.loss]
        self._strengths = Buffer("strengths", (len(fits),), Zeros(), networks.dtype)
        self._strengths.value = networks.backend.to_device(np.array([0.5 * fit.e.alpha for fit in fits]))
        self._penalizes = e.alpha > 0.0

    def compute(self, outputs: Any, targets: Any) -> Any:
        count, rows, width = outputs.shape
        flat = count * rows, width
        wanted = ops.reshape(self._orders.chosen(self._orders.targets, targets), flat)
        terms = self._op(ops.reshape(outputs, flat), wanted, reduction="none")
        each = ops.mean(ops.reshape(terms, (count, math.prod(terms.shape) // count)), axis=1)
        if self._penalizes:
            weights = self._networks.stacked[::2]
            squares = [ops.reshape(w, (count, 1, -1)) @ ops.reshape(w, (count, -1, 1)) for w in weights]
            whole = functools.reduce(ops.add, squares)
            each = each + ops.reshape(whole, (count,)) * (self._strengths * (1.0 / rows))
        self._networks.keep([self._networks.losses], _added, each, rows=rows)
        return ops.sum(each)

    def recognize(self, outputs: Array, targets: Array, *sample_weight: Array) -> None:
        """The number that the Trainer sees is of no use: each network has its own."""

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """The targets are places in the orders. Each network's own have been checked."""

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        return targets


class Stack(Callback):
    """Networks that are trained together: `train`. It is told of each epoch as a callback of their Trainer."""

    def __init__(self, fits: Sequence[OwnFit]) -> None:
        own = fits[0].trainer
        self.fits, self.lib, self._own = fits, own.model.backend, own.optimizer
        self._batch_size, self._rows = fits[0].batch_size, fits[0].rows
        self._orders = _Orders(self.lib, fits, own.model.dtype)
        #: Of the networks' own optimizers, which have all taken as many steps.
        self._steps = own.optimizer.steps
        self._numbers = own.optimizer.state_of(own.model.parameters()[0]).numbers
        with backend(self.lib.name):
            self._networks = _Networks(self._orders, own.model, len(fits))
            model = Sequential(self._networks)
        never_warn(model)
        self._optimizer = stacked_optimizer(self._own)
        columns = zip(*(fit.trainer.model.parameters() for fit in fits), strict=True)
        for stacked, parameters in zip(self._networks.stacked, columns, strict=True):
            self._fill(stacked, parameters)
        loss = _Losses(self._networks, self._orders, fits)
        self._trainer = Trainer(
            model, loss, self._optimizer, [], callbacks=[self], threads=own.threads, numerics="fast"
        )

    def _fill(self, stacked: Parameter, parameters: Sequence[Parameter]) -> None:
        """Put the networks' values, states and learning rates side by side."""
        xp, optimizers = self.lib.xp, [fit.trainer.optimizer for fit in self.fits]
        states = [o.state_of(p).arrays for o, p in zip(optimizers, parameters, strict=True)]
        columns = [[p.value for p in parameters], *zip(*states, strict=True)]
        stacked.value, *arrays = (xp.reshape(xp.stack(column), stacked.shape) for column in columns)
        numbers: dict[str, Any] = {
            "rate": np.array([optimizer.rate for optimizer in optimizers]).reshape(-1, 1, 1),
            "step": self._steps,
        }
        for name in self._optimizer.array_names[len(arrays) :]:
            spread = np.broadcast_to(numbers[name], stacked.shape)
            arrays.append(self.lib.to_device(spread.astype(stacked.dtype)))
        self._optimizer.state[stacked] = State(tuple(arrays), (), self._optimizer.array_names)

    def train(self) -> list[OwnFit]:
        """Train until all networks have ended, or half of many, and return those that go on."""
        places = np.arange(self._rows)
        left = max(fit.epochs - len(fit.history.epochs) for fit in self.fits)
        self._reorder()
        history = self._trainer.fit(
            (places, places), None, left, self._batch_size, progress=False, shuffle=False
        )
        if history.interrupted:
            raise KeyboardInterrupt
        going = [number for number, fit in enumerate(self.fits) if not fit.trained]
        for number in going:
            self._take(number)
        return [self.fits[number] for number in going]

    def _reorder(self) -> None:
        self._orders.put({n: fit.next_order() for n, fit in enumerate(self.fits) if not fit.trained})

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """Tell each network's watcher, end those that are done, and set the orders of the next epoch."""
        summed = self._networks.losses
        losses = (self.lib.to_host(summed.value) / self._rows).tolist()
        summed.value = self.lib.to_device(np.zeros(len(self.fits)))
        for _ in range(-(-self._rows // self._batch_size)):
            self._steps, self._numbers = self._steps + 1, self._own.advance(self._numbers)
        for number, fit in enumerate(self.fits):
            if not fit.trained and fit.told(losses[number]):
                self._end(number)
        going = sum(not fit.trained for fit in self.fits)
        if not going or 2 * going <= len(self.fits) >= _MANY:
            history.stopped = "most networks have ended"
        else:
            self._reorder()

    def _end(self, network: int) -> None:
        """Give a network what it has become. Its learning rate becomes 0, so that its numbers stay finite."""
        self._take(network)
        place = self._optimizer.array_names.index("rate")
        for stacked in self._networks.stacked:
            self._optimizer.state[stacked].arrays[place][network, ...] = 0.0

    def _take(self, network: int) -> None:
        """Give a network copies of its weights and of its optimizer's state."""
        trainer, xp = self.fits[network].trainer, self.lib.xp
        optimizer, names = trainer.optimizer, trainer.optimizer.array_names
        for stacked, parameter in zip(self._networks.stacked, trainer.model.parameters(), strict=True):
            arrays = stacked.value, *self._optimizer.state[stacked].arrays[: len(names)]
            parts = [xp.reshape(array[network, ...], parameter.shape) for array in arrays]
            value, *kept = (xp.asarray(part, copy=True) for part in parts)
            parameter.value, optimizer.state[parameter] = value, State(tuple(kept), self._numbers, names)
        optimizer.steps, trainer.history = self._steps, self.fits[network].history
        note_numerics(trainer.model, "fast")
