"""What training changes, side by side: parameters, their gradients, and what the optimizer remembers of them.

Where a backend has kernels, each of these lies in one flat buffer that is changed in place, so that an update is
one pass over everything; a parameter's `value` is then a view of its stretch. Elsewhere updates make fresh arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.backends.kernels.calls import Call, Slot
from xnn.layers import Buffer, Parameter
from xnn.ops import updates
from xnn.optimizers import Optimizer, State

__all__ = ["Group", "Store"]

_ALIGNED = 16  # each parameter begins at a multiple of so many numbers: a cache line of float32


class Group:
    """Parameters that take the same step: one dtype, one weight decay, one set of numbers.

    A kernel reads `options` or `numbers`.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: list[Parameter], steps: tuple[float, ...], by_rule: bool
    ) -> None:
        self.optimizer, self.parameters, self.steps = optimizer, parameters, steps
        # An optimizer that is asked itself need not say what its rule wants.
        self.width = 2 + (optimizer.arrays if by_rule else 0)
        self.in_place = False
        self.options = self._options() if by_rule else {}
        self.numbers = np.array(tuple(self.options.values()), float)
        self.slots: list[list[Slot]] = []  # of values, of gradients, of each array of the state
        self.flat: list[Any] = []
        self.offsets: dict[int, tuple[int, int]] = {}
        self.written = np.zeros(1, np.int64)  # the store's, which see

    @property
    def decay(self) -> float:
        """The weight decay, as the optimizer says it now of the first; `Store.is_current` sees to the others."""
        return self.optimizer.decay_of(self.parameters[0])

    def _options(self) -> dict[str, Any]:
        return self.optimizer.options(self.steps, self.decay)

    @property
    def plain(self) -> bool:
        """Whether the step is w - learning_rate g and nothing else, so that a product can do it."""
        rule = type(self.optimizer).rule is updates.sgd and self.width == 2
        return rule and not self.decay

    def advance(self) -> None:
        """Before each step: the numbers it is taken with."""
        self.steps = self.optimizer.advance(self.steps)
        options = self._options()
        if options != self.options:
            self.options = options
            self.numbers[:] = tuple(options.values())

    def runs(self, call: Call) -> list[tuple[Any, ...]]:
        """The flat buffers' stretches that an update changes: value, gradient and state; neighbours are joined."""
        stretches: list[tuple[int, int]] = []
        for start, end in sorted(self.offsets[id(column[0])] for column in call.columns()):
            if stretches and stretches[-1][1] == start:
                stretches[-1] = stretches[-1][0], end
            else:
                stretches.append((start, end))
        return [tuple(flat[start:end] for flat in self.flat) for start, end in stretches]

    def columns(self) -> list[tuple[Parameter, Slot, Slot, list[Slot]]]:
        """Each parameter with the slots of its value, its gradient and its state."""
        return [
            (p, value, gradient, state)
            for p, (value, gradient, *state) in zip(
                self.parameters, zip(*self.slots, strict=True), strict=True
            )
        ]

    def changing(self) -> list[list[Slot]]:
        """What a step changes: the slots of values and of each array of the state."""
        return [self.slots[0], *self.slots[2:]]

    def changing_flat(self) -> list[Any]:
        """The same as flat buffers."""
        return [self.flat[0], *self.flat[2:]]

    def allocate(self, lib: Backend, in_place: bool) -> None:
        """Slots for everything; in place also their buffers, as views of the flat ones."""
        self.in_place = in_place
        kinds = ("value", "gradient", *(f"state {n}" for n in range(self.width - 2)))
        dtype = self.parameters[0].value.dtype
        self.slots = [[Slot(f"{p.name}'s {k}", p.shape, dtype) for p in self.parameters] for k in kinds]
        if not in_place:
            return
        padded = [-(-p.size // _ALIGNED) * _ALIGNED for p in self.parameters]
        ends = np.cumsum(padded)
        self.flat = [lib.buffer((int(ends[-1]),), dtype) for _ in kinds]
        for flat, slots in zip(self.flat, self.slots, strict=True):
            flat[...] = 0
            for slot, parameter, end, extent in zip(slots, self.parameters, ends, padded, strict=True):
                start = int(end) - extent
                slot.array = flat[start : start + parameter.size].reshape(parameter.shape)
                slot.fixed = True
                self.offsets[id(slot)] = start, int(end)


class Store:
    """The groups of a fit's parameters, shared by its programs.

    attach: takes in what was assigned to parameters or optimizer since; publish: gives them what a step made.
    """

    def __init__(
        self,
        lib: Backend,
        optimizer: Optimizer,
        parameters: Sequence[Parameter],
        in_place: bool,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        self.lib, self.optimizer, self.in_place, self.parameters = lib, optimizer, in_place, list(parameters)
        #: An optimizer whose own `step` or `update` must be asked, since it does more than its rule says.
        kind = type(optimizer)
        self.asks_optimizer = kind.step is not Optimizer.step or kind.update is not Optimizer.update
        #: What gradients go through before the update; an optimizer that is asked itself clips them itself.
        self.clipping = [] if self.asks_optimizer else optimizer.clipping
        optimizer.check_parameters(self.parameters)
        alike: dict[Any, list[Parameter]] = {}
        for p in parameters:
            if not p.frozen:
                own = () if self.asks_optimizer else (optimizer.state_of(p).numbers, optimizer.decay_of(p))
                alike.setdefault((p.dtype, own), []).append(p)
        self.groups = [
            Group(optimizer, members, own[0] if own else (), by_rule=not self.asks_optimizer)
            for (_, own), members in alike.items()
        ]
        for group in self.groups:
            group.allocate(lib, in_place)
        self._plain = self._is_plain()
        columns = [column for group in self.groups for column in group.columns()]
        self.values = {p: value for p, value, _, _ in columns}
        self.gradients = {p: gradient for p, _, gradient, _ in columns}
        #: How often something but a program's steps may have written to parameters: kernels that keep something made
        #: of a parameter's value from one step to the next look at it.
        self.written = np.zeros(1, np.int64)
        self.running: Any = None  # the program that stepped last
        for group in self.groups:
            group.written = self.written
        #: Parameters whose update a product does: they have no gradient to show.
        self.folded: set[Parameter] = set()
        #: What a step makes fresh arrays of: buffers that a program keeps, and averages of weights. What a layer
        #: keeps that is run as it is stays with the buffer.
        self.buffers = list(buffers)
        self.kept: dict[Buffer, Slot] = {}
        self.average = None if self.asks_optimizer else optimizer.average
        self.averages = {
            p: Slot(f"{p.name}'s average", p.shape, p.value.dtype)
            for p in self.parameters
            if self.average is not None and (p in self.gradients or p in optimizer.averages)
        }
        self.attach()
        #: Frozen parameters' arrays are read where they are; kernels want their rows side by side.
        self.frozen = {p: p.value for p in parameters if p.frozen}
        for p, array in self.frozen.items():
            readable = np.ascontiguousarray(lib.clean(array)) if in_place else array
            self.values[p] = Slot(f"{p.name}'s value", p.shape, array.dtype, readable, fixed=in_place)

    def is_current(self, parameters: Sequence[Parameter]) -> bool:
        """Whether its groups are still the right ones: what is frozen, and the optimizer's state, may change."""
        if any(
            p.frozen != (p in self.frozen) or (p.frozen and p.value is not self.frozen[p]) for p in parameters
        ):
            return False
        if self.asks_optimizer:
            return True
        if self._plain != self._is_plain() or self.clipping != self.optimizer.clipping:
            return False
        if self.average != self.optimizer.average:
            return False
        if any(self.optimizer.decay_of(p) != group.decay for group in self.groups for p in group.parameters):
            return False
        here = {p: (group.steps, group.width) for group in self.groups for p in group.parameters}
        width = 2 + self.optimizer.arrays
        return all(here[p] == (self.optimizer.state_of(p).numbers, width) for p in parameters if not p.frozen)

    def _is_plain(self) -> list[bool]:
        return [] if self.asks_optimizer else [group.plain for group in self.groups]

    def attach(self) -> None:
        """Take in values and state that were assigned from outside; what is the store's own already stays."""
        self.touch()
        self._take_values()
        for buffer, slot in self.kept.items():
            slot.array = self.lib.clean(buffer.value)
        for p, slot in self.averages.items():
            known = self.optimizer.averages.get(p)
            # Buffers change in place: the first average is a copy.
            slot.array = self.lib.xp.asarray(p.value, copy=True) if known is None else self.lib.clean(known)
        for group in () if self.asks_optimizer else self.groups:
            for parameter, _, _, slots in group.columns():
                state = self.optimizer.state_of(parameter)
                for slot, array in zip(slots, state.arrays, strict=True):
                    self._take(slot, array)
                self.optimizer.state[parameter] = State(tuple(s.array for s in slots), state.numbers)

    def _take(self, slot: Slot, array: Any) -> None:
        if slot.array is not array:
            slot.put(self.lib.clean(array))

    def keep(self, buffer: Buffer) -> Slot:
        """Where a program keeps a buffer; `publish` gives it to the buffer from then on."""
        if buffer not in self.kept:
            value = self.lib.clean(buffer.value)
            self.kept[buffer] = Slot(buffer.name, buffer.shape, value.dtype, value)
        return self.kept[buffer]

    def touch(self) -> None:
        """Something may have been written to a parameter by others."""
        self.written += 1

    def advance(self) -> None:
        """Before each step."""
        if not self.asks_optimizer:
            for group in self.groups:
                group.advance()
            self.optimizer.steps += 1

    def ask_optimizer(self) -> None:
        """One step by the optimizer's own method, from gradients to values."""
        for parameter, slot in self.gradients.items():
            parameter.grad = slot.array
        self.optimizer.step(self.parameters)
        self._take_values()

    def _take_values(self) -> None:
        for group in self.groups:
            for parameter, slot, _, _ in group.columns():
                self._take(slot, parameter.value)
                parameter.value = slot.array

    def publish(self) -> None:
        """After a step that made fresh arrays, and after the last one in place."""
        for buffer, slot in self.kept.items():
            buffer.value = slot.array
        for p, slot in self.averages.items():
            self.optimizer.averages[p] = slot.array
        for group in self.groups:
            for parameter, value, gradient, state in group.columns():
                parameter.value = value.array
                if parameter in self.folded:
                    parameter.fold_gradient()
                else:
                    parameter.grad = gradient.array
                if not self.asks_optimizer:
                    self.optimizer.state[parameter] = State(tuple(s.array for s in state), group.steps)

    def snapshot(self, into: Any = None) -> Any:
        """Values, state and the optimizer's own numbers as they are now; buffers are copied, over an older copy."""
        if not self.in_place:
            kept: Any = [[s.array for s in slots] for g in self.groups for slots in g.changing()]
        else:
            flats = [flat for g in self.groups for flat in g.changing_flat()]
            kept = [np.empty_like(flat) for flat in flats] if into is None else into[0]
            for copy, flat in zip(kept, flats, strict=True):
                np.copyto(copy, flat)
        held = [self.kept[b].array if b in self.kept else b.value for b in self.buffers]
        fresh = held, [slot.array for slot in self.averages.values()]
        return kept, fresh, [group.steps for group in self.groups], self.optimizer.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Back to a snapshot, parameters and optimizer too."""
        kept, (held, averages), steps, before = snapshot
        self.touch()
        if self.in_place:
            flats = [flat for g in self.groups for flat in g.changing_flat()]
            for copy, flat in zip(kept, flats, strict=True):
                np.copyto(flat, copy)
        else:
            rows = [slots for g in self.groups for slots in g.changing()]
            for arrays, slots in zip(kept, rows, strict=True):
                for array, slot in zip(arrays, slots, strict=True):
                    slot.array = array
        for buffer, array in zip(self.buffers, held, strict=True):
            buffer.value = array
            if buffer in self.kept:
                self.kept[buffer].array = array
        for slot, array in zip(self.averages.values(), averages, strict=True):
            slot.array = array
        for group, numbers in zip(self.groups, steps, strict=True):
            group.steps = numbers
        self.optimizer.restore(before)
        self.publish()
