"""Groups of parameters that one call updates, side by side in memory.

Where a backend has kernels, the values of a group, their gradients and each array of the optimizer's state lie in one
flat buffer each, which is changed in place. A parameter's `value` is then a view of its stretch. Elsewhere updates
make fresh arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xnn.backends import Backend
from xnn.backends.kernels.calls import Call, Slot
from xnn.backends.ranks.group import Message, Ranks
from xnn.layers import Parameter
from xnn.ops import updates
from xnn.optimizers import Optimizer

__all__ = ["HEAD", "Common", "Group", "grouped"]

_ALIGNED = 16  # each parameter begins at a multiple of this many numbers: a cache line of float32
HEAD = _ALIGNED  # numbers before the gradients in a message of ranks, for what they add up besides them


class Group:
    """Parameters that one call updates: of one dtype, with one weight decay and one set of numbers in their state.

    slots: the places of their values, of their gradients, and of each array of the optimizer's state. In place, these
        are stretches of `flat`, one buffer for each kind, so that an update is one pass over everything.
    part: which numbers of each buffer this process updates. is_shared: whether other ranks update the other parts of
        the same memory, in which all but the gradients lie.
    options, numbers: the rule's options for the step, by name for an op and in order for a kernel.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: list[Parameter], steps: tuple[float, ...], by_rule: bool
    ) -> None:
        self.optimizer, self.parameters, self.steps = optimizer, parameters, steps
        # An optimizer with a `step` of its own need not say what its rule takes.
        self.width = 2 + (optimizer.arrays if by_rule else 0)
        self.names = optimizer.array_names if by_rule else ()
        self.in_place = False
        self.options = self._options() if by_rule else {}
        self.numbers = np.array(tuple(self.options.values()), float)
        self.slots: list[list[Slot]] = []
        #: Each parameter with the slots of its value, its gradient and its state.
        self.columns: list[tuple[Parameter, Slot, Slot, list[Slot]]] = []
        self.dtype = parameters[0].dtype
        self.flat: list[Any] = []
        self.changing_memory: Any = None  # of all flat buffers but that of the gradients
        self.spare: Any = None  # its end, for arrays of others
        self._room = [-(-p.size // _ALIGNED) * _ALIGNED for p in parameters]
        self.length = sum(self._room)  # of each flat buffer
        self.offsets: dict[int, tuple[int, int]] = {}
        self.part, self.is_shared = slice(0, self.length), False
        self.written = np.zeros(1, np.int64)  # the Store's counter

    @property
    def decay(self) -> float:
        """The weight decay that the optimizer now gives the first parameter; `Store.is_current` checks the others."""
        return self.optimizer.decay_of(self.parameters[0])

    def _options(self) -> dict[str, Any]:
        return self.optimizer.ordered_options(self.steps, self.decay)

    @property
    def plain(self) -> bool:
        """Whether the step is w - learning_rate g and nothing else, so that a product can do it."""
        rule = type(self.optimizer).rule is updates.sgd and self.width == 2
        return rule and not self.decay

    @property
    def steady(self) -> bool:
        """Whether the rule works element by element with the same options in every step: see `Optimizer.steady`."""
        return self.optimizer.steady

    def advance(self) -> None:
        """Compute the options of the next step."""
        self.steps = self.optimizer.advance(self.steps)
        options = self._options()
        if options != self.options:
            self.options = options
            self.numbers[:] = tuple(options.values())

    def stretches(self, call: Call) -> list[tuple[Any, ...]]:
        """The stretches of value, gradient and state that an update call changes here; neighbours are joined."""
        stretches: list[tuple[int, int]] = []
        for start, end in sorted(self.offsets[id(column[0])] for column in call.columns()):
            if stretches and stretches[-1][1] == start:
                stretches[-1] = stretches[-1][0], end
            else:
                stretches.append((start, end))
        first, last = self.part.start, self.part.stop
        own = [
            (max(start, first), min(end, last)) for start, end in stretches if start < last and end > first
        ]
        return [tuple(flat[start:end] for flat in self.flat) for start, end in own]

    def changing(self) -> list[list[Slot]]:
        """The slots that a step changes: of values and of each array of the state."""
        return [self.slots[0], *self.slots[2:]]

    def changing_flat(self) -> list[Any]:
        """The memory that a step changes, in one array: all flat buffers but that of the gradients."""
        return [self.changing_memory]

    def allocate(
        self, lib: Backend, gradient: Any = None, spare: int = 0, ranks: Ranks | None = None
    ) -> None:
        """Make the slots, and in place their buffers as views of flat ones.

        gradient: the flat buffer of the gradients; None (default) if updates make fresh arrays. spare: how many
        numbers more `changing_flat` has room for, in `spare`. ranks: those that share the other buffers, if they can.
        """
        self.in_place = gradient is not None
        kinds = ("value", "gradient", *(f"state {n}" for n in range(self.width - 2)))
        dtype = self.parameters[0].value.dtype
        self.slots = [[Slot(f"{p.name}'s {k}", p.shape, dtype) for p in self.parameters] for k in kinds]
        self.columns = [
            (p, value, gradient, state)
            for p, (value, gradient, *state) in zip(
                self.parameters, zip(*self.slots, strict=True), strict=True
            )
        ]
        if not self.in_place:
            return
        length = (len(kinds) - 1) * self.length
        memory = None if ranks is None else ranks.memory(length, dtype)
        if memory is None or ranks is None:
            memory = lib.buffer((length + spare,), dtype)
            memory[...] = 0
        else:
            lines = ranks.share(self.length // _ALIGNED)
            self.part, self.is_shared = slice(lines.start * _ALIGNED, lines.stop * _ALIGNED), True
        self._lay_out(memory, gradient)

    def leave(self, lib: Backend) -> None:
        """Move the slots to a copy of the memory that ranks share, for a rank that ends its training alone.

        No step may follow: kernels keep the addresses that slots had when they were made.
        """
        if self.is_shared:
            memory, self.is_shared = self.changing_memory, False
            self._lay_out(lib.buffer(memory.shape, memory.dtype, memory), self.flat[1])

    def _lay_out(self, memory: Any, gradient: Any) -> None:
        """Make the slots' arrays views of these buffers."""
        length = (self.width - 1) * self.length
        self.changing_memory, self.spare = memory, memory[length:]
        value, *state = memory[:length].reshape(-1, self.length)
        self.flat, ends = [value, gradient, *state], np.cumsum(self._room)
        for flat, slots in zip(self.flat, self.slots, strict=True):
            for slot, parameter, end, extent in zip(slots, self.parameters, ends, self._room, strict=True):
                start = int(end) - extent
                slot.array = flat[start : start + parameter.size].reshape(parameter.shape)
                slot.fixed = True
                self.offsets[id(slot)] = start, int(end)


class Common(NamedTuple):
    """What ranks may have in common where kernels change parameters in place.

    ranks: those that may keep values and state in the same memory; None if each keeps its own. message: makes the
    Message of so many numbers of a dtype in which gradients lie; None if they are added up elsewhere.
    """

    ranks: Ranks | None
    message: Callable[[int, str], Message] | None


def _by_elements(optimizer: Optimizer) -> bool:
    """Whether its rule works element by element, as xnn's do."""
    rule = getattr(type(optimizer), "rule", None)
    return rule is not None and vars(updates).get(rule.__name__) is rule


def grouped(
    lib: Backend,
    optimizer: Optimizer,
    parameters: Sequence[Parameter],
    by_rule: bool,
    in_place: bool,
    spare: Mapping[str, int] | None = None,
    common: Common | None = None,
) -> tuple[list[Group], dict[str, Message]]:
    """The parameters that are not frozen, in groups with their slots, and the messages of which gradients are parts.

    by_rule: whether calls of the optimizer's rule update them, rather than its own `step`. spare: for each dtype, how
    many numbers more the memory of its first group has. common: what ranks have in common; a message of gradients
    begins with HEAD other numbers. None (default): there are no ranks.
    """
    alike: dict[Any, list[Parameter]] = {}
    for p in parameters:
        if not p.frozen:
            own = (optimizer.state_of(p).numbers, optimizer.decay_of(p)) if by_rule else ()
            alike.setdefault((p.dtype, own), []).append(p)
    groups = [
        Group(optimizer, members, own[0] if own else (), by_rule) for (_, own), members in alike.items()
    ]
    new_message = None if common is None else common.message
    ranks = common.ranks if common is not None and by_rule and _by_elements(optimizer) else None
    rest, messages = dict(spare or {}), dict[str, Message]()
    for dtype in dict.fromkeys(group.dtype for group in groups):
        same = [group for group in groups if group.dtype == dtype]
        count, start = sum(group.length for group in same), 0
        if new_message is not None:
            messages[dtype] = new_message(HEAD + count, dtype)
            gradients = messages[dtype].array[HEAD:]
        elif in_place:
            gradients = lib.buffer((count,), dtype)
        if in_place:
            gradients[...] = 0
        for group in same:
            gradient = gradients[start : start + group.length] if in_place else None
            group.allocate(lib, gradient, rest.pop(dtype, 0), ranks)
            start += group.length
    return groups, messages
