"""Kernels of exact numerics on the CPU: the ops' slices and sums over buffers, with matrix products by NumPy's BLAS.

Between two products a kernel makes passes over arrays: it slices, adds a bias, rounds, updates. There are two sets of
passes with the same names: in plain NumPy (`numpy_passes.py`) and as compiled loops (`compiled_passes.py`). Both give
the bits of the ops: `tests/exact/test_exact_kernels.py` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.image_kernels import image_kernels
from xnn.backends.exact.ops import DenseBits
from xnn.backends.exact.slices import splitter, sum_bits
from xnn.backends.kernels.blas import gemm
from xnn.backends.kernels.calls import Call, KernelTable, Runnable, chain
from xnn.backends.kernels.numpy_kernels import is_plain_loss
from xnn.backends.kernels.update_kernels import RULES, serves_adam, serves_update, update_by_rule
from xnn.ops import updates
from xnn.ops.metrics import accuracy

__all__ = ["ExactTable", "splitters"]


def splitters(lib: Any, bits: int) -> np.ndarray:
    """Return a table of the constants that round float32 numbers to slices of `bits` bits, one for each exponent.

    `slices.splitter` computes the constants. The constant for a number x is at the index (the bits of |x|) >> 23.
    """
    fields = np.arange(256, dtype=np.int64)
    wide = np.where(fields == 255, 2047, np.where(fields == 0, 0, fields + 896))  # in float64
    return np.asarray(lib.to_host(splitter(lib, lib.to_device(wide), bits)))


class ExactTable(KernelTable):
    """The kernels of exact numerics; calls that they cannot run are run by the exact op.

    lib: the NumPy backend. passes: the module with the set of passes. name: of the table, for the execution plan.
    """

    in_place = True

    def __init__(self, lib: Any, passes: Any, name: str) -> None:
        self.lib, self.passes, self.name = lib, passes, name
        passes.prepare(lib.exact)
        kernels: dict[tuple[str, Any], Any] = {
            ("gather", None): (_gather, _serves_gather),
            ("forward", ops.dense): (self._dense, self._serves_dense),
            ("backward", ops.dense): (self._dense_backward, self._serves_dense),
            ("metric", accuracy): (self._accuracy, _serves_labels),
            ("update", updates.sgd): (self._sgd, _float32(serves_update)),
            ("update", updates.adam): (self._adam, _float32(serves_adam)),
            **{("update", rule): (self._by_rule, _float32(serves_update)) for rule in RULES},
            ("loss", ops.softmax_cross_entropy): (self._cross_entropy, _serves_loss),
            **image_kernels(lib, passes, splitters),
        }
        super().__init__(kernels)

    def _serves_dense(self, call: Call) -> bool:
        """Whether x is a batch of rows, W a matrix, b fits, and the module `passes` can compute the activation."""
        forward = call.forward or call
        x, w, *bias = forward.reads
        fits = len(x.shape) == len(w.shape) == 2 and all(b.shape == w.shape[1:] for b in bias)
        wanted = call is not forward and call.writes[0] is not None
        return (
            fits
            and all(
                np.dtype(s.dtype) == np.float32 for s in (*forward.reads, *forward.writes) if s is not None
            )
            and forward.activation in (None, *self.passes.ACTIVATIONS)
            and not (wanted and x.scaled is not None)  # pixels have no gradient
        )

    def _dense(self, call: Call) -> Runnable:
        """y = f(x W + b). The slice of W, and x as it was multiplied, are kept for the backward call."""
        p, lib = self.passes, self.lib
        x, w, *bias = (slot.array for slot in call.reads)
        y = call.writes[0].array  # type: ignore[union-attr]
        (n, inputs), outputs = x.shape, w.shape[1]
        scaled = call.reads[0].scaled
        bits = DenseBits(inputs, outputs, None if scaled is None else scaled.bits)
        one = lib.buffer(w.shape, np.float64)
        wide = lib.buffer((2 * n if scaled is None else n, inputs), np.float64)
        products = lib.buffer((len(wide), outputs), np.float64)
        product = gemm(wide, one, products)
        weight_table = splitters(lib, bits.weight)
        high, low = splitters(lib, bits.x), splitters(lib, 2 * bits.x + 1)
        scale = 1.0 if scaled is None else scaled.scale
        b = bias[0] if bias else None
        kept = lib.buffer(y.shape, np.float64) if call.activation in (ops.sigmoid, ops.tanh) else None
        finish = p.finish(products, scale, b, y, call.activation, kept)
        next_slice = _NextSlice()
        cut_weights = p.slice_tensor(w, weight_table, one, next_slice.state)
        prepare = p.slice_rows(x, high, low, wide) if scaled is None else p.widen(x.integers, wide)
        call.saved = {
            "one": one, "wide": wide, "bits": bits, "scale": scale, "y64": kept, "next_slice": next_slice,
            "table": weight_table,
        }  # fmt: skip

        def run() -> None:
            if not next_slice.holds():
                cut_weights()
            prepare()
            product()
            finish()

        return run

    def _dense_backward(self, call: Call) -> Runnable:
        """Compute dz from dy in place, then dx, then dW and db.

        If the update is folded in, the last two steps change W and b; dx comes before, from the old W.
        """
        p, lib, forward = self.passes, self.lib, call.forward
        assert forward is not None
        kept = forward.saved
        x, dz = forward.reads[0].array, call.reads[0].array
        n, outputs = dz.shape
        inputs, bits = x.shape[1], kept["bits"]
        _, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
        db = rest[0] if rest else None
        steps = self._gradient_of_input(call)
        rate, next_slice = None if call.rule is None else _Rate(call.rule), kept["next_slice"]
        if rate is not None:
            next_slice.written = call.rule.written
        columns, sums = bits.dy_column(n), splitters(lib, sum_bits(n))
        high, low = splitters(lib, columns), None
        wide = np.empty((0, outputs)) if dw is None else lib.buffer((n, outputs), np.float64)
        one = kept["wide"]
        if dw is not None and bits.integers is None:
            one, wide = lib.buffer(x.shape, np.float64), lib.buffer((n, 2 * outputs), np.float64)
            steps.append(p.slice_columns(x, splitters(lib, bits.x_column(n)), one))
            low = splitters(lib, 2 * columns + 1)
        if dw is not None or db is not None:
            steps.append(p.slice_gradient(dz, high, low, wide, sums, db, rate))
        if dw is not None:
            products = lib.buffer((inputs, wide.shape[1]), np.float64)
            update = kept["table"], kept["one"], next_slice.state
            steps += [
                gemm(one.T, wide, products),
                p.weight_gradient(products, kept["scale"], dw, rate, *update),
            ]
        return chain(*steps) if rate is None else chain(rate.read, *steps)

    def _gradient_of_input(self, call: Call) -> list[Runnable]:
        """The steps of dense's backward pass that add up no rows: dz from dy in place, then dx, from the weights."""
        p, lib, forward = self.passes, self.lib, call.forward
        assert forward is not None
        kept, dz, slot = forward.saved, call.reads[0].array, call.writes[0]
        (n, outputs), inputs, bits = dz.shape, forward.reads[0].array.shape[1], kept["bits"]
        steps: list[Runnable] = []
        if forward.activation is not None:
            y = forward.writes[0].array  # type: ignore[union-attr]
            steps.append(p.activation_gradient(forward.activation, y, kept["y64"], dz))
        if slot is not None:
            wide = lib.buffer((2 * n, outputs), np.float64)
            products = lib.buffer((2 * n, inputs), np.float64)
            steps += [
                p.slice_rows(dz, splitters(lib, bits.dy), splitters(lib, 2 * bits.dy + 1), wide),
                gemm(wide, kept["one"].T, products),
                p.finish(products, 1.0, None, slot.array, None, None),
            ]
        return steps

    def _cross_entropy(self, call: Call) -> Runnable:
        z, labels = (slot.array for slot in call.reads)
        loss, g = (slot.array for slot in call.writes)  # type: ignore[union-attr]
        return self.passes.cross_entropy(self.lib.exact, z, labels, loss, g)  # type: ignore[no-any-return]

    def _accuracy(self, call: Call) -> Runnable:
        (outputs, labels), count = (slot.array for slot in call.reads), call.writes[0]
        assert count is not None
        return self.passes.count_right(outputs, labels, count.array)  # type: ignore[no-any-return]

    def _sgd(self, call: Call) -> Runnable:
        return _updates(partial(self.passes.sgd, self.lib.exact), call)

    def _adam(self, call: Call) -> Runnable:
        return _updates(partial(self.passes.adam, self.lib.exact), call)

    def _by_rule(self, call: Call) -> Runnable:
        return update_by_rule(self.lib.exact)(call)


class _Rate:
    """The learning rate of the current step, for kernels with a folded update, in an array that passes can read."""

    def __init__(self, group: Any) -> None:
        self.group, self.value = group, np.zeros(1)

    def read(self) -> None:
        self.value[0] = self.group.options["learning_rate"]


class _NextSlice:
    """Tells whether the slice of W that an update has computed can be used in the next step.

    It can if W's largest exponent is still the one of the slice, and nothing else has written to W since.

    state: two integers that the passes write: 1 if the exponent is the same, and the exponent.
    written: a counter that changes whenever something else may have written to W, or None if no update computes
        the slice.
    """

    def __init__(self) -> None:
        self.state = np.zeros(2, np.int64)
        self.written: Any = None
        self._seen = -1

    def holds(self) -> bool:
        """Whether the slice can be used; if not, the caller slices W now."""
        if self.written is None:
            return False
        seen, self._seen = self._seen, int(self.written[0])
        return seen == self._seen and bool(self.state[0])


def _updates(update: Any, call: Call) -> Runnable:
    return chain(*(update(call.rule, *arrays) for arrays in call.rule.stretches(call)))


def _float32(test: Callable[[Call], bool]) -> Callable[[Call], bool]:
    return lambda call: test(call) and np.dtype(call.reads[0].dtype) == np.float32


def _serves_labels(call: Call) -> bool:
    """Whether the outputs have shape (n, classes) and the labels (n,)."""
    outputs, labels = call.reads
    return len(outputs.shape) == 2 and outputs.shape[1] > 0 and len(labels.shape) == 1 and _serves(call)


def _serves(call: Call) -> bool:
    outputs, labels = call.reads
    return bool(np.dtype(outputs.dtype) == np.float32 and np.dtype(labels.dtype) == np.int64)


def _serves_loss(call: Call) -> bool:
    return is_plain_loss(call) and _serves(call)


def _serves_gather(call: Call) -> bool:
    """Whether the source is a NumPy array of integers that are copied unchanged: pixels with a scale, or labels."""
    source, target = call.options["source"], call.writes[0]
    assert target is not None
    if not isinstance(source, np.ndarray) or not source.flags.c_contiguous:
        return False
    if "scale" in call.options:
        return target.scaled is not None and source.dtype == target.scaled.integers.dtype
    return source.dtype.kind in "iu" and source.dtype == target.dtype and target.scaled is None


def _gather(call: Call) -> Runnable:
    source, rows, slot = call.options["source"], call.options["cursor"].rows, call.writes[0]
    assert slot is not None
    target = slot.array if slot.scaled is None else slot.array.integers

    def run() -> None:
        source.take(rows, 0, target, "clip")

    return run
