"""Shortens a program's list of calls by seven rules: six merge several calls into one, one lets two change places.

Each is applied wherever the backend's table has a kernel for the result. `tests/training/test_program.py` compares
each with the list it replaces.

| rule | what becomes one call |
|---|---|
| rescale_into_gather | the gathering of a batch, and the Rescale that is its only reader |
| moments_into_normalize | the gradients of normalize and of its moments, and their sum |
| activation_into_dense | dense, conv2d or normalize and the activation after it; backward, the gradients of both |
| loss_with_gradient | a loss's forward and its backward |
| relu_behind_max_pool | nothing: ReLU has a quarter of the numbers, or fewer, and all results keep their bits |
| penalty_into_sum | the gradient of an L2 penalty, and its sum with the gradient of the data |
| sgd_into_dense | the products that give a weight's gradient, and its update: W <- W - rate x^T dz |

No list computes the gradient for the data, since nothing reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xnn import ops
from xnn.backends.kernels.calls import Call, KernelTable, Slot

__all__ = ["RULES", "fuse"]

Calls = list[Call]

#: The numbers of a Rescale that a gather takes over.
_NUMBERS = ("scale", "offset", "shift")
#: Ops whose kernels may apply the activation that follows.
_ACTIVATED = ops.dense, ops.conv2d, ops.normalize


def fuse(calls: Calls, table: KernelTable, keep_gradients: bool = False) -> Calls:
    """Apply all rules to a list of calls. keep_gradients: omit the rules that leave no gradient."""
    for rule in RULES:
        if not (keep_gradients and rule is sgd_into_dense):
            calls = rule(calls, table)
    return calls


def _readers(calls: Calls, slot: Slot) -> list[Call]:
    return [call for call in calls if any(slot is read for read in call.reads)]


def _only_reader(calls: Calls, slot: Slot | None) -> Call | None:
    readers = [] if slot is None else _readers(calls, slot)
    return readers[0] if len(readers) == 1 else None


def _backward_of(calls: Calls, forward: Call) -> Call | None:
    return next((call for call in calls if call.forward is forward), None)


def _replace(calls: Calls, old: Sequence[Call | None], new: Sequence[Call]) -> Calls:
    """Put each new call in the place of its last part, where all that it reads has been computed."""
    place = {new_call.parts[-1]: new_call for new_call in new}
    return [place.get(call, call) for call in calls if call in place or call not in old]


def rescale_into_gather(calls: Calls, table: KernelTable) -> Calls:
    """Scale a batch while it is gathered."""
    for gather in [call for call in calls if call.kind == "gather"]:
        rescale = _only_reader(calls, gather.writes[0])
        if rescale is None or rescale.key != ("forward", ops.rescale) or _backward_of(calls, rescale):
            continue
        options = dict(gather.options)
        options |= {key: rescale.options[key] for key in _NUMBERS if key in rescale.options}
        fused = Call("gather", None, (), rescale.writes, options, parts=(gather, rescale))
        if table.accepts(fused):
            calls = _replace(calls, (gather, rescale), (fused,))
    return calls


def moments_into_normalize(calls: Calls, table: KernelTable) -> Calls:
    """Backward through a normalization: dx by the numbers themselves and by their mean and variance, in one call."""
    for plain in [call for call in calls if call.key == ("backward", ops.normalize)]:
        direct, moved = plain.writes[:2]
        through, adding = _only_reader(calls, moved), _only_reader(calls, direct)
        if (
            through is None
            or through.key != ("backward", ops.moments)
            or adding is None
            or adding.kind != "add"
        ):
            continue
        norm, moments, indirect = plain.forward, through.forward, through.writes[0]
        if norm is None or moments is None or direct is None or indirect is None:
            continue
        if _only_reader(calls, indirect) is not adding or moments.reads[0] is not norm.reads[0]:
            continue
        ours = tuple(slot for slot in adding.reads if slot in (direct, indirect))
        alone = len(adding.reads) == 2
        total = adding.writes[0] if alone else Slot(f"{direct.name} in all", direct.shape, direct.dtype)
        added = adding if alone else Call("add", None, ours, (total,))
        fused = Call(
            "backward", ops.normalize, plain.reads, (total, None, *plain.writes[2:]), {"moments": moments},
            forward=norm, parts=(plain, through, added),
        )  # fmt: skip
        if not table.accepts(fused):
            continue
        new: dict[Call, Call | None] = {through: fused, plain: None, adding: None}
        if not alone and total is not None:
            reads = tuple(total if slot is ours[0] else slot for slot in adding.reads if slot is not ours[1])
            new[adding] = Call("add", None, reads, adding.writes)
        calls = [call for old in calls if (call := new.get(old, old)) is not None]
    return calls


def activation_into_dense(calls: Calls, table: KernelTable) -> Calls:
    """Forward, y = f(x W + b) in one call. Backward, dz = dy f'(z) from y, then dx, dW and db from dz.

    So too for the other ops in _ACTIVATED, where the table has kernels for it.
    """
    for dense in [call for call in calls if call.kind == "forward" and call.op in _ACTIVATED]:
        activation = _only_reader(calls, dense.writes[0])
        if activation is None or activation.kind != "forward":
            continue
        down, up = _backward_of(calls, dense), _backward_of(calls, activation)
        forward = Call(
            "forward",
            dense.op,
            dense.reads,
            activation.writes,
            dense.options,
            activation=activation.op,
            parts=(dense, activation),
        )
        old, new = [dense, activation], [forward]
        if down is not None and up is not None:
            if _only_reader(calls, up.writes[0]) is not down:
                continue
            new.append(
                Call(
                    "backward",
                    dense.op,
                    up.reads,
                    down.writes,
                    down.options,
                    forward=forward,
                    parts=(up, down),
                )
            )
            old += [up, down]
        elif up is not None or down is not None:
            continue
        if all(table.accepts(call) for call in new):
            calls = _replace(calls, old, new)
    return calls


def relu_behind_max_pool(calls: Calls, table: KernelTable) -> Calls:
    """max(relu(x)) = relu(max(x)). Where windows have several largest elements after ReLU, they are 0 and have no
    gradient, so that the gradient for x is the same, too.
    """
    for relu in [call for call in calls if call.key == ("forward", ops.relu)]:
        pool = _only_reader(calls, relu.writes[0])
        if pool is None or pool.key != ("forward", ops.max_pool2d) or pool.writes[0] is None:
            continue
        pooled = _like(pool.writes[0], "before relu")
        first = Call("forward", pool.op, relu.reads, (pooled,), pool.options)
        second = Call("forward", relu.op, (pooled,), pool.writes, relu.options)
        new = {relu: first, pool: second}
        up, down = _backward_of(calls, pool), _backward_of(calls, relu)
        if up is not None and down is not None and up.writes[0] is not None:
            if _only_reader(calls, up.writes[0]) is not down:
                continue
            gradient = _like(pooled, "gradient")
            new[up] = Call("backward", relu.op, up.reads, (gradient,), down.options, forward=second)
            new[down] = Call("backward", pool.op, (gradient,), down.writes, up.options, forward=first)
        elif up is not None or down is not None:
            continue
        if all(table.accepts(call) for call in new.values()):
            calls = [new.get(call, call) for call in calls]
    return calls


def _like(slot: Slot, words: str) -> Slot:
    return Slot(f"{slot.name} {words}", slot.shape, slot.dtype)


def loss_with_gradient(calls: Calls, table: KernelTable) -> Calls:
    """Compute the loss and its gradient in one call: softmax and cross-entropy share an exponential.

    Where other numbers are added to the loss, such as a penalty, the call stands before their sum.
    """
    for last in [call for call in calls if call.kind == "backward" and call.reads[0].name == "one"]:
        forward = last.forward
        if forward is None or forward not in calls:
            continue
        fused = Call("loss", forward.op, forward.reads, (*forward.writes, *last.writes[:1]), forward.options,
                     parts=(forward, last))  # fmt: skip
        if any(slot is not None for slot in last.writes[1:]) or not table.accepts(fused):
            continue
        value = forward.writes[0]
        if value is not None and any(call.kind == "forward" for call in _readers(calls, value)):
            calls = [fused if call is forward else call for call in calls if call is not last]
        else:
            calls = _replace(calls, (forward, last), (fused,))
    return calls


def penalty_into_sum(calls: Calls, table: KernelTable) -> Calls:
    """Add the gradient of an L2 penalty to the gradients of the data in one pass: dw <- dw + strength w."""
    for penalty in [call for call in calls if call.key == ("backward", ops.l2_penalty)]:
        sums = [_only_reader(calls, slot) for slot in penalty.writes]
        adding = [call for call in sums if call is not None and call.kind == "add" and len(call.reads) == 2]
        if len(adding) < len(penalty.writes) or len({*adding}) < len(adding):
            continue
        ours = {id(slot) for slot in penalty.writes}
        others = [slot for call in adding for slot in call.reads if id(slot) not in ours]
        if len(others) < len(adding):
            continue
        parts = penalty, *sorted(adding, key=calls.index)
        fused = Call(
            "backward", ops.l2_penalty, (*penalty.reads, *others), tuple(call.writes[0] for call in adding),
            forward=penalty.forward, parts=parts,
        )  # fmt: skip
        # A sum may lead to another: where outputs are penalized, their gradient leads to that of the weights.
        before = calls[: calls.index(parts[-1])]
        early = any(slot is not None and _readers(before, slot) for slot in fused.writes)
        if table.accepts(fused) and not early:
            calls = _replace(calls, (penalty, *adding), (fused,))
    return calls


def sgd_into_dense(calls: Calls, table: KernelTable) -> Calls:
    """Do the update of plain SGD in the product that gives the gradient, if nothing else reads the gradient."""
    for update in [call for call in calls if call.kind == "update" and call.rule.plain]:
        rest = list(update.columns())
        for backward in [call for call in calls if call.key == ("backward", ops.dense)]:
            own = {id(slot) for slot in backward.writes[1:] if slot is not None}
            columns = [column for column in update.columns() if id(column[1]) in own]
            if not own or len(columns) < len(own) or any(_readers(calls, c[1]) != [update] for c in columns):
                continue
            value = {id(gradient): parameter for parameter, gradient in columns}
            writes = [None if slot is None else value.get(id(slot), slot) for slot in backward.writes]
            part = _update_of(update, columns)
            fused = Call(
                "backward", ops.dense, backward.reads, tuple(writes), forward=backward.forward,
                rule=update.rule, parts=(*(backward.parts or (backward,)), part),
            )  # fmt: skip
            if table.accepts(fused):
                rest = [column for column in rest if column not in columns]
                calls = [fused if call is backward else call for call in calls]
        replaced = [_update_of(update, rest)] if rest else []
        position = calls.index(update)
        calls = [*calls[:position], *replaced, *calls[position + 1 :]]
    return calls


def _update_of(update: Call, columns: Sequence[tuple[Slot, ...]]) -> Call:
    """Make the update call of these parameters from the update call of a group."""
    values, gradients, *state = zip(*columns, strict=True)
    kept = sum(state, ())
    return Call("update", update.op, values + gradients + kept, values + kept, rule=update.rule)


RULES: tuple[Callable[[Calls, KernelTable], Calls], ...] = (
    rescale_into_gather,
    moments_into_normalize,
    activation_into_dense,
    relu_behind_max_pool,
    loss_with_gradient,
    penalty_into_sum,
    sgd_into_dense,
)
