"""Sequential, the model: layers one after another, with predict, summary, save and load."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Never, overload

import numpy as np

from xnn import ops
from xnn.backends import (
    Purpose,
    Stream,
    admit,
    backend_of,
    chosen_numerics,
    current_numerics,
    numerics,
)
from xnn.backends.host_arrays import as_host_array
from xnn.backends.numerics import NUMERICS
from xnn.backends.ranks.group import Ranks
from xnn.backends.row_sources import Converted, is_on_host, reads_rows, row_blocks, row_range
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.graph import Node
from xnn.graph.scope import Scope
from xnn.layers import files
from xnn.layers.activations import Reshape
from xnn.layers.containers import Container
from xnn.layers.dense import Dense, Rescale
from xnn.layers.flops import added, flops_of
from xnn.layers.hidden import check_nothing_hidden
from xnn.layers.layer import Layer
from xnn.layers.parts import Parts
from xnn.layers.prediction import takes
from xnn.ops import Op
from xnn.ops.op import size_of
from xnn.options import check_count, check_shape, explained_call, refuse_unknown

__all__ = ["Sequential", "classes_of", "first_of", "known_shape", "load"]


class Sequential(Container):
    """A model: each layer's output is the next one's input.

    layers: Layer objects, each of them once; a Sequential may be one of them.
    seed: an integer, from which the weights are drawn; 0 by default. The layers, those of nested models included, are
        numbered in order, and each number has a random stream of its own. A nested model with a seed of its own draws
        its weights from that.
        Layers that were built with a seed, and weights that were assigned, stay as they are.

    Parameters are named by position: `1.weight`, `1.bias`, `2.0.weight`.
    Raises OptionError for something that is not a layer, a layer or parameter that is there twice, and for layers and
    parameters in places where the model does not find them (see `Layer`).

        >>> import numpy as np
        >>> import xnn
        >>> from xnn import layers
        >>> model = xnn.Sequential(layers.Dense(4, 8), layers.ReLU(), layers.Dense(8, 3), seed=1)
        >>> model
        Sequential(Dense(4, 8), ReLU(), Dense(8, 3))
        >>> model.predict(np.zeros((2, 4))).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> print(model.summary())
        layer    output shape  parameters  FLOPs/sample
        0 Dense  (8,)                  40            72
        1 ReLU   (8,)                   0             8
        2 Dense  (3,)                  27            51
        total    (3,)                  67           131
    """

    def __init__(self, *layers: Layer, seed: int | None = None) -> None:
        super().__init__(*layers, seed=None if seed is None else Stream(seed, Purpose.WEIGHTS).seed)
        self.parameters()  # raises for a parameter that two layers share
        check_nothing_hidden(self)
        for _, array in self.named_state():
            array.array  # noqa: B018 - draws it

    def compute(self, x: Any, training: bool) -> Any:
        for layer in self.layers:
            x = layer.run(x, training)
        return x

    def _node(self, x: Node, training: bool) -> Any:
        if type(self).compute is not Sequential.compute:
            return super()._node(x, training)
        for layer in self.layers:
            x = layer(x, training)
        return x

    @property
    def dtype(self) -> str:
        """The dtype of the first parameter by name, or of the first buffer; "float32" if there are none."""
        first = self.first_array()
        return "float32" if first is None else first.dtype

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """Whether `first_layer` takes integers as they are."""
        return self.first_layer is not None and self.first_layer.takes_integers

    @property
    def takes_float64(self) -> bool:  # type: ignore[override]
        """Whether `first_layer` takes samples of float64 as they are."""
        return self.first_layer is not None and self.first_layer.takes_float64

    def check_wide(self, x: np.ndarray) -> None:
        if self.first_layer is not None:
            self.first_layer.check_wide(x)

    def check_integers(self, x: np.ndarray) -> None:
        if self.first_layer is not None:
            self.first_layer.check_integers(x)

    def prepare(self, x: Any, part: slice = slice(None)) -> Any:
        """Samples as the first layer takes them.

        x: an array of numbers, or a list. They are converted to the model's dtype (float16, bfloat16 and the like,
            too), except integers for a first layer that takes them as they are (Rescale, Embedding), and float64 for
            a Rescale with a shift. Nothing is scaled.
        part: which rows are checked, of samples that are read from files; default all. Other processes check others.

        Raises DTypeError for an array that does not hold numbers.
        """
        x = admit(self.backend, as_host_array(x, "x", by_rows=True))
        check = self._check_of(x.dtype) if is_on_host(x) else None
        if not reads_rows(x):
            if check is not None:
                check(x)
            return self._as_taken(x)
        sample = self._as_taken(np.asarray(x[:1]))  # raises for what is no number
        if check is not None:
            for _, block in row_blocks(x, part):
                check(block)
        unchanged = sample.dtype == x.dtype and current_numerics() == "fast"
        return x if unchanged else Converted(x, self._as_taken)

    def _check_of(self, dtype: np.dtype[Any]) -> Callable[[np.ndarray], None] | None:
        """The check for numbers out of the first layer's range, if it takes samples of this dtype as they are."""
        if dtype == np.float64 and self.takes_float64:
            return self.check_wide
        return self.check_integers if dtype.kind in "iub" and self.takes_integers else None

    def _as_taken(self, x: Any) -> Any:
        """An array of samples in the dtype in which the first layer takes them."""
        lib = backend_of(x)
        xp = lib.xp
        if x.dtype == xp.float64 and self.takes_float64:
            return x
        if x.dtype == getattr(xp, self.dtype):
            return lib.clean(x)
        if not xp.isdtype(x.dtype, ("real floating", "integral", "bool")):
            raise DTypeError(f"samples must be numbers, got an array of {x.dtype}")
        if not xp.isdtype(x.dtype, "real floating") and self.takes_integers:
            return x
        return lib.clean(xp.astype(x, getattr(xp, self.dtype)))

    @overload
    def predict(self, x: Any, batch_size: int = ..., *, on_host: Literal[True] = ...) -> np.ndarray: ...

    @overload
    def predict(self, x: Any, batch_size: int = ..., *, on_host: bool) -> Any: ...

    def predict(self, x: Any, batch_size: int = 1024, *, on_host: bool = True, **unknown: Never) -> Any:
        """The outputs for samples, as a NumPy array (n, ...), with the layers' inference behaviour.

        x: samples (n, ...), a host array, a list or an array of the model's backend.
        batch_size: how many samples go through the model at a time; 1024 by default. Where a GPU's memory is not
            enough for them, fewer do.
        on_host: whether to return a NumPy array; False leaves the outputs where the model is. Default True.

        It computes in the numerics that were chosen; if none were, in those that the model was trained in. In fast
        numerics on the CPU, a model of xnn's layers with convolution, pooling or activations such as GELU is computed
        by the kernels of training, some samples at a time: its outputs can differ from those of `model(x)` in the
        last bits. What was changed in the model before a call counts in it. Raises
        ShapeError, DTypeError or LabelError for samples that do not fit, such as numbers too large for the model's
        dtype. NaN and infinity go through the model.
        """
        refuse_unknown(Sequential.predict, unknown)
        return self._predict(x, batch_size, on_host)

    def _predict(self, x: Any, batch_size: int, on_host: bool, ranks: Ranks | None = None) -> Any:
        """As `predict`. ranks: those that share the batches; each returns the outputs for all samples."""
        check_count("batch_size", batch_size)
        trained = self.numerics if self.numerics in NUMERICS else None
        with numerics(chosen_numerics() or trained):
            return self._outputs(x, batch_size, on_host, ranks)

    def _outputs(self, x: Any, batch_size: int, on_host: bool, ranks: Ranks | None) -> Any:
        lib = self.backend
        given = as_host_array(x, "x", by_rows=True)
        starts = range(0, max(1, *given.shape[:1]) if given.ndim else 1, batch_size)
        starts = starts if ranks is None else starts[ranks.share(len(starts))]
        own = slice(starts.start, starts.stop)
        with np.errstate(over="ignore"):
            x = self.prepare(given, own)
            _check_converted(given, x, own if reads_rows(given) else slice(None))
        if x.ndim < 1:
            raise ShapeError(f"predict needs a batch of samples (n, ...), got shape {tuple(x.shape)}")
        if not takes(self, x):
            self._check_samples(tuple(x.shape))  # before any work
        batches = (_range(x, start, min(start + batch_size, x.shape[0])) for start in starts)
        with lib.guard(), Scope(records=False):
            parts = Parts(self)
            outputs = (part for batch in batches for part in parts(batch))
            if ranks is not None:
                return ranks.gather_rows(lib.to_host_all(outputs))
            return np.concatenate(lib.to_host_all(outputs)) if on_host else lib.xp.concat([*outputs], axis=0)

    def _check_samples(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless this is the shape of a batch of samples that fit."""
        try:
            self.output_shape(shape[1:])
        except ShapeError:
            if self._fits(shape):
                raise ShapeError(
                    f"predict takes a batch of samples (n, ...), and got one sample of shape {shape}: x[None] is a "
                    "batch of it"
                ) from None
            raise

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Whether this is the shape of a sample that the model takes."""
        try:
            self.output_shape(shape)
        except ShapeError:
            return False
        return True

    @explained_call()
    def predict_classes(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """The class of each sample, int64 (n,): the index of the largest output.

        Of a model with a single output: 1 where it is above `threshold`, else 0. The arguments are those of
        `predict`. Raises ShapeError for other outputs than (n, classes), DTypeError for outputs that are NaN, and
        OptionError for a regression: a model that ends in a Rescale to the units of its targets.
        """
        last = self.layers[-1] if self.layers else None
        if isinstance(last, Rescale):
            raise OptionError(
                f"predict_classes is for outputs that are classes, and the model ends in {last!r}, which makes the "
                "numbers of a regression: predict(x) returns them"
            )
        return classes_of(self.predict(x, batch_size), self.threshold)

    @property
    def first_layer(self) -> Layer | None:
        """The first layer that does more than reshape its input, in nested models too; None if there is none."""
        return first_of(self.layers)

    @property
    def last_op(self) -> Op | None:
        """The op of the last layer, in nested models too; None if it has none."""
        last = self.layers[-1] if self.layers else None
        return last.last_op if isinstance(last, Sequential) else getattr(last, "op", None)

    @property
    def threshold(self) -> float:
        """The single output above which the class is 1: 0.5 after a sigmoid, 0 for a logit."""
        return 0.5 if self.last_op is ops.sigmoid else 0.0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if type(self).compute is not Sequential.compute:
            return super().output_shape(shape)
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def flops(self, shape: tuple[int, ...]) -> int | None:
        found = []
        for layer in self.layers:
            found.append(flops_of(layer, shape))
            shape = layer.output_shape(shape)
        return added(found)

    @explained_call()
    def summary(self, input_shape: int | tuple[int, ...] | None = None) -> str:
        """A table of the layers: output shape, parameters, floating-point operations per sample.

        input_shape: the shape of one sample. It may be omitted if the model begins with a Reshape, also behind a
            Rescale, or if the first layer with weights is a Dense.

        Operations are counted for xnn's own layers, and for those of yours that have `flops`. "-" stands for others.
        Raises OptionError if input_shape is needed, ShapeError if it does not fit.
        """
        if input_shape is None and (input_shape := known_shape(self)) is None:
            raise OptionError(
                "summary needs input_shape=(...), the shape of one sample, unless a Reshape or Dense has it"
            )
        rows = [("layer", "output shape", "parameters", "FLOPs/sample")]
        input_shape = shape = check_shape("input_shape", input_shape)
        for position, layer in enumerate(self.layers):
            flops = flops_of(layer, shape)
            shape = layer.output_shape(shape)
            count = sum(p.size for p in layer.parameters())
            rows.append((f"{position} {type(layer).__name__}", str(shape), f"{count:,}", _shown(flops)))
        total = sum(p.size for p in self.parameters())
        rows.append(("total", str(shape), f"{total:,}", _shown(flops_of(self, input_shape))))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows
        )

    def config(self) -> dict[str, Any]:
        return {"seed": self.seed, **super().config()}

    @explained_call()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write layers and weights to a .safetensors file, whole or not at all; `xnn.load` reads it.

        A file holds no code: of a model with layers or ops of your own it holds the weights, which `load_weights`
        puts into a model that your code builds. Raises OptionError for a place that cannot be written, DiskError when
        the disk is full.
        """
        files.save(self, path)

    @explained_call()
    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Read the weights of a file into this model, which has the same names and shapes; all of them or none.

        Raises DataNotFoundError for a file that is not there, CorruptFileError for one that does not fit.
        """
        files.load_weights(self, path)


def _shown(flops: int | None) -> str:
    return "-" if flops is None else f"{flops:,}"


def known_shape(model: Sequential) -> tuple[int, ...] | None:
    """The shape of one sample, if a Reshape is first, also behind a Rescale, or a Dense the first layer with weights.

    None if neither says it.
    """
    start = next((layer for layer in model.layers if not isinstance(layer, Rescale)), None)
    if isinstance(start, Reshape) and -1 not in start.shape:
        return (size_of(start.shape),)
    first = next((layer for layer in model.layers if layer.parameters()), None)
    return (first.inputs,) if isinstance(first, Dense) else None


def load(path: str | os.PathLike[str]) -> Sequential:
    """The model that `Sequential.save` wrote, on the current backend.

    path: the .safetensors file.

    Raises DataNotFoundError for a file that is not there, CorruptFileError for one that does not hold a model, and
    OptionError for a model with layers of your own: build it with your code, then call `model.load_weights(path)`.
    """
    model = files.load(path)
    assert isinstance(model, Sequential)
    return model


def first_of(layers: Sequence[Layer]) -> Layer | None:
    """The first of these layers that does more than reshape its input, in nested models too."""
    for layer in layers:
        found = layer.first_layer if isinstance(layer, Sequential) else layer
        if found is not None and getattr(found, "op", None) not in (ops.flatten, ops.reshape, ops.identity):
            return found
    return None


def _range(x: Any, start: int, stop: int) -> Any:
    """The samples from `start` up to `stop` of an array, which is on the host or on a device."""
    return row_range(x, start, stop) if is_on_host(x) else x[start:stop, ...]


def _check_converted(given: Any, x: Any, part: slice) -> None:
    """Raise DTypeError for a finite number in these rows that is infinite in the model's dtype."""
    if given is x or not is_on_host(x) or x.dtype.kind != "f" or not x.ndim:
        return
    for start, block in row_blocks(x, part):
        wrong = np.isinf(block)
        if wrong.any() and (wrong := wrong & np.isfinite(here := given[start : start + len(block)])).any():
            raise DTypeError(
                f"a sample holds {here[wrong].flat[0]:g}, which is too large for {x.dtype}: scale the samples, or "
                "build the layers with dtype='float64'"
            )


def classes_of(outputs: np.ndarray, threshold: float, before: int = 0) -> np.ndarray:
    """Return the predicted class of each sample, from the outputs (n, classes). Raises DTypeError for NaN.

    With several outputs it is the number of the largest one; with one output it is 1 above the threshold, else 0.

    before: how many samples came before, for the message. Default 0.
    """
    if outputs.ndim != 2:
        raise ShapeError(f"predict_classes needs outputs (n, classes), the model gives {outputs.shape}")
    wrong = np.flatnonzero(np.isnan(outputs).any(axis=1))
    if wrong.size:
        raise DTypeError(
            f"the outputs for sample {before + int(wrong[0])} are NaN: look for NaN or infinity in the sample or the "
            "weights"
        )
    return (outputs[:, 0] > threshold).astype(np.int64) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
