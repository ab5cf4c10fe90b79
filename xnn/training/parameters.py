"""The arrays that training changes, as programs and the trainer share them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xnn.backends import Backend, backend_of
from xnn.backends.kernels.calls import Slot
from xnn.errors import MixedArraysError
from xnn.layers import Buffer, Parameter
from xnn.optimizers import Optimizer, State
from xnn.training.groups import Common, Group, grouped

__all__ = ["Store", "finite", "has_nan", "is_real"]


def finite(lib: Backend, *arrays: Any) -> bool:
    """Whether every element of every array is finite. Waits for the device, once."""
    return lib.finite(arrays)


def has_nan(lib: Backend, array: Any) -> bool:
    """Whether any element of the array is NaN. Waits for the device."""
    return bool(lib.to_host(lib.xp.any(lib.xp.isnan(array))))


def is_real(array: Any) -> bool:
    """Whether it is an array of floating-point numbers."""
    return hasattr(array, "dtype") and backend_of(array).xp.isdtype(array.dtype, "real floating")


class Store:
    """The slots of a fit's parameters, gradients, state, buffers and averages. Its programs share them.

    `attach` takes in what was assigned to parameters or optimizer; `publish` gives them what steps have made.
    Kernels change arrays in place, so that callbacks get copies (`hand_out`): what they keep does not change.

    parameters: all of the model's. in_place: whether kernels change parameters in place. buffers: the model's.
    buffers_in_place: whether kernels change those in place too. common: what ranks have in common; None (default)
    if there are none.

    values, gradients: the slot of each parameter, and of the gradient of each that is not frozen.
    asks_optimizer: whether the optimizer's own `step` or `update` takes the steps, since it does more than its rule
        says; it then clips gradients and keeps averages itself.
    messages: those in which gradients lie, by dtype.
    is_shared: whether ranks have values and state in the same memory, of which each updates a part. They write to all
        of it only when no rank reads what was there before (`wait`).
    folded: the parameters whose update a product does, so that they have no gradient to show.
    written: counts how often something other than a step may have written to parameters. Kernels that keep something
        computed from a parameter look at it.
    """

    def __init__(
        self,
        lib: Backend,
        optimizer: Optimizer,
        parameters: Sequence[Parameter],
        in_place: bool,
        buffers: Sequence[Buffer] = (),
        buffers_in_place: bool = False,
        common: Common | None = None,
    ) -> None:
        self.lib, self.optimizer, self.in_place, self.parameters = lib, optimizer, in_place, list(parameters)
        self.asks_optimizer = optimizer.steps_itself
        self.clipping = [] if self.asks_optimizer else optimizer.clipping
        self.average = None if self.asks_optimizer else optimizer.average
        optimizer.check_parameters(self.parameters)
        spare = Counter[str]()
        for buffer in buffers if buffers_in_place else ():
            spare[buffer.dtype] += buffer.size
        by_rule = not self.asks_optimizer
        given = self.parameters, by_rule, in_place, spare, common
        self.groups, self.messages = grouped(lib, optimizer, *given)
        self.is_shared = any(group.is_shared for group in self.groups)
        self._ranks = common.ranks if common is not None and self.is_shared else None
        self._plain = self._is_plain()
        columns = [column for group in self.groups for column in group.columns]
        self.values = {p: value for p, value, _, _ in columns}
        self.gradients = {p: gradient for p, _, gradient, _ in columns}
        self.written = np.zeros(1, np.int64)
        for group in self.groups:
            group.written = self.written
        self.running: Any = None  # the cursor of the program that stepped last
        self.folded: set[Parameter] = set()
        self.buffers = list(buffers)
        self.kept: dict[Buffer, Slot] = {}  # those that programs read or change
        self._stretches: dict[Buffer, Any] = {}  # of the memory where kernels change them
        self._more_memory: list[Any] = []  # of buffers whose dtype no group has
        self._lay_out_buffers(spare)
        self.moving: set[Buffer] = set()  # those that programs change
        self.outside: dict[Parameter, Slot] = {}
        self._live = not in_place  # whether parameters and optimizer have the arrays that steps change
        self.averages = {
            p: Slot(f"{p.name}'s average", p.shape, p.value.dtype)
            for p in self.parameters
            if self.average is not None and (p in self.gradients or p in optimizer.averages)
        }
        self._copied: list[
            tuple[Any, Any]
        ] = []  # of frozen parameters, with the arrays that may be written to
        self.attach()
        self.frozen = {p: p.value for p in parameters if p.frozen}
        self.values.update({p: self._frozen_slot(p, array) for p, array in self.frozen.items()})

    def _frozen_slot(self, parameter: Parameter, array: Any) -> Slot:
        """Make the slot of a frozen parameter: its own array, or a contiguous copy for kernels."""
        readable = self.lib.clean(array) if self.in_place else array
        if self.in_place and not readable.flags.c_contiguous:
            readable = self.lib.buffer(readable.shape, readable.dtype, readable)
        if readable is not array:
            self._copied.append((readable, array))
        return Slot(f"{parameter.name}'s value", parameter.shape, array.dtype, readable, fixed=self.in_place)

    def _lay_out_buffers(self, sizes: Mapping[str, int]) -> None:
        """Give each buffer that kernels change a stretch of memory, beside that of parameters: one copy has both."""
        for dtype, size in sizes.items():
            spare = [g.spare for g in self.groups if g.spare is not None and g.spare.size == size]
            spare = [flat for flat in spare if flat.dtype == dtype]
            if not spare:
                spare = [self.lib.buffer((size,), dtype)]
                spare[0][...] = 0
                self._more_memory += spare
            start = 0
            for buffer in [buffer for buffer in self.buffers if buffer.dtype == dtype]:
                self._stretches[buffer] = spare[0][start : start + buffer.size].reshape(buffer.shape)
                start += buffer.size

    def is_current(self, parameters: Sequence[Parameter]) -> bool:
        """Whether the groups still fit: parameters may have been frozen, the optimizer's options changed."""
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
        width, names = 2 + self.optimizer.arrays, self.optimizer.array_names
        return all(
            (group.width, group.names, group.steps) == (width, names, self.optimizer.state_of(p).numbers)
            for group in self.groups
            for p in group.parameters
        )

    def _is_plain(self) -> list[bool]:
        return [] if self.asks_optimizer else [group.plain for group in self.groups]

    def attach(self) -> None:
        """Take in the values and the state that were assigned since the last `publish`."""
        self.touch()
        self.take_values()
        for buffer, slot in self.kept.items():
            self._take(slot, buffer.value)
        for parameter, slot in self.outside.items():
            slot.array = self.lib.clean(parameter.value)
        for p, slot in self.averages.items():
            known = self.optimizer.averages.get(p)
            # Buffers change in place: the first average is a copy.
            self._take(slot, self.lib.xp.asarray(p.value, copy=True) if known is None else known)
        for group in () if self.asks_optimizer else self.groups:
            for parameter, _, _, slots in group.columns:
                if self._has_state(parameter, slots, group):
                    continue
                state = self.optimizer.state_of(parameter)
                for slot, array in zip(slots, state.arrays, strict=True):
                    self._take(slot, array)
                arrays = state.arrays if self.in_place else tuple(slot.array for slot in slots)
                self.optimizer.state[parameter] = State(arrays, state.numbers, group.names)

    def _has_state(self, parameter: Parameter, slots: list[Slot], group: Group) -> bool:
        """Whether the optimizer's state of a parameter is what the slots and the group hold."""
        known = self.optimizer.state.get(parameter)
        return (
            known is not None
            and (known.numbers, known.names, len(known.arrays)) == (group.steps, group.names, len(slots))
            and all(array is slot.array for array, slot in zip(known.arrays, slots, strict=True))
        )

    def _take(self, slot: Slot, array: Any) -> None:
        if slot.array is not array:
            if backend_of(array) is not self.lib:
                raise MixedArraysError(
                    f"{slot.name} was replaced by an array of {backend_of(array).address}, and the fit runs on "
                    f"{self.lib.address}: assign an array of {self.lib.address}, or move the model between two fits"
                )
            slot.put(self.lib.clean(array))

    def keep(self, buffer: Buffer) -> Slot:
        """The slot in which programs keep a buffer's array; `publish` gives the array to the buffer."""
        known, stretch = self.kept.get(buffer), self._stretches.get(buffer) if buffer in self.moving else None
        if known is None or (stretch is not None and not known.fixed):  # programs may begin to change it
            value = self.lib.clean(buffer.value if known is None else known.array)
            if stretch is None:
                self.kept[buffer] = Slot(buffer.name, buffer.shape, value.dtype, value, replaced=True)
            else:
                self.kept[buffer] = Slot(buffer.name, buffer.shape, value.dtype, stretch, fixed=True)
                self._take(self.kept[buffer], value)
        return self.kept[buffer]

    def read(self, parameter: Parameter) -> Slot:
        """The slot in which a program reads a parameter; a frozen one from outside the model gets a new slot."""
        if parameter in self.values:
            return self.values[parameter]
        if parameter not in self.outside:
            value = self.lib.clean(parameter.value)
            self.outside[parameter] = Slot(parameter.name, parameter.shape, value.dtype, value, replaced=True)
        return self.outside[parameter]

    def touch(self) -> None:
        """Note that something other than a program's step may have written to a parameter."""
        self.written += 1
        for copy, array in self._copied:
            np.copyto(copy, self.lib.clean(array))

    def advance(self) -> None:
        """Compute the options of the next step."""
        if not self.asks_optimizer:
            for group in self.groups:
                group.advance()
            self.optimizer.steps += 1

    def ask_optimizer(self) -> None:
        """Take one step by the optimizer's own `step`."""
        for parameter, slot in self.gradients.items():
            parameter.grad = self._own(slot)
        self.optimizer.step(self.parameters)
        self.take_values()

    def is_finite(self) -> bool:
        """Whether everything that steps change is finite: values, buffers, the optimizer's state and averages.

        A buffer that no step changes may hold infinities, as a mask does, but not NaN. Ranks that share memory ask
        together, and get one answer: none of them goes back while another still reads.
        """
        if self.in_place:
            arrays = self._flats()
        else:
            arrays = [slot.array for group in self.groups for slots in group.changing() for slot in slots]
        arrays += [slot.array for b, slot in self.kept.items() if b in self.moving and not slot.fixed]
        arrays += [slot.array for slot in self.averages.values()]
        if self.asks_optimizer:  # it keeps what it likes
            arrays += [a for p in self.parameters for _, a in self.optimizer.kept_for(p) if is_real(a)]
        others = [buffer.array for buffer in self.buffers if buffer not in self.moving]
        fine = finite(self.lib, *others) or not any(has_nan(self.lib, array) for array in others)
        found = finite(self.lib, *arrays) and fine
        return found if self._ranks is None else bool(self._ranks.gather(np.array([found])).all())

    def changed(self) -> list[tuple[int, int]]:
        """Which arrays were assigned and differ from those that steps made: number and checksum, to compare ranks."""
        pairs = [pair for group in self.groups for pair in self._assigned(group)]
        return [
            (n, zlib.crc32(array.tobytes()))
            for n, (slot, array) in enumerate(pairs)
            if backend_of(array) is self.lib and not np.array_equal(array, slot.array)
        ]

    def _assigned(self, group: Group) -> Iterator[tuple[Slot, Any]]:
        """The slots of values and state, with the arrays that parameters and optimizer have."""
        for parameter, value, _, state in group.columns:
            yield value, parameter.value
            known = self.optimizer.state.get(parameter)
            yield from zip(state, () if known is None else known.arrays, strict=False)

    def leave(self) -> None:
        """Go on with a copy of what ranks share; no step may follow."""
        for group in self.groups:
            group.leave(self.lib)
        self.is_shared, self._ranks = False, None

    def wait(self) -> None:
        """Return when all ranks that share this memory have called it; at once if there are none."""
        if self._ranks is not None:
            self._ranks.wait()

    def take_values(self) -> None:
        """Take in the values that were assigned to parameters."""
        for group in self.groups:
            for parameter, slot, _, _ in group.columns:
                self._take(slot, parameter.value)
                if not self.in_place:
                    parameter.value = slot.array

    def _own(self, slot: Slot) -> Any:
        """A slot's array, or a copy of one that kernels change in place."""
        return self.lib.xp.asarray(slot.array, copy=True) if slot.fixed else slot.array

    def go_live(self) -> None:
        """Give parameters the arrays that steps change: layers and optimizers written by hand read them."""
        if not self._live and not self.asks_optimizer:
            self._live = True
            for group in self.groups:
                for parameter, value, _, _ in group.columns:
                    parameter.value = value.array
            for buffer, slot in self.kept.items():
                buffer.value = slot.array

    def hand_out(self) -> None:
        """Give parameters and optimizer copies of the arrays that steps change in place, for callbacks to keep."""
        if not (self.in_place and self._live):
            return
        self._live = False
        for p, slot in self.averages.items():
            self.optimizer.averages[p] = self._own(slot)
        for buffer, slot in self.kept.items():
            buffer.value = self._own(slot)
        for group in self.groups:
            for parameter, value, gradient, state in group.columns:
                parameter.value = self._own(value)
                if parameter not in self.folded and parameter.grad is gradient.array:
                    parameter.grad = self._own(gradient)
                if not self.asks_optimizer:
                    arrays = tuple(self._own(slot) for slot in state)
                    self.optimizer.state[parameter] = State(arrays, group.steps, group.names)

    def release(self) -> None:
        """Note that others may assign arrays to parameters before the next step, which need no copies."""
        self._live = not self.in_place

    def publish(self) -> None:
        """Give parameters, buffers and the optimizer the arrays that the steps so far have made."""
        self._live = True
        for buffer, slot in self.kept.items():
            buffer.value = slot.array
        for p, slot in self.averages.items():
            self.optimizer.averages[p] = slot.array
        for group in self.groups:
            for parameter, value, gradient, state in group.columns:
                parameter.value = self._own(value) if self.asks_optimizer else value.array
                if parameter in self.folded:
                    parameter.fold_gradient()
                else:
                    parameter.grad = gradient.array
                if not (self.asks_optimizer or self._has_state(parameter, state, group)):
                    self.optimizer.state[parameter] = State(
                        tuple(s.array for s in state), group.steps, group.names
                    )

    def _flats(self) -> list[Any]:
        """The memory that steps change in place."""
        return [*(flat for g in self.groups for flat in g.changing_flat()), *self._more_memory]

    def snapshot(self, into: Any = None) -> Any:
        """Values, buffers, averages, state and the optimizer's numbers as they are now.

        into: an older snapshot, whose memory is used again.
        """
        if not self.in_place:
            kept: Any = [[s.array for s in slots] for g in self.groups for slots in g.changing()]
        else:
            flats = self._flats()
            kept = [np.empty_like(flat) for flat in flats] if into is None else into[0]
            for copy, flat in zip(kept, flats, strict=True):
                np.copyto(copy, flat)
        held = [
            b.value if b not in self.kept else None if self.kept[b].fixed else self.kept[b].array
            for b in self.buffers
        ]
        averages = [self._own(slot) for slot in self.averages.values()]
        fresh = held, averages
        return kept, fresh, [group.steps for group in self.groups], self.optimizer.snapshot()

    def restore(self, snapshot: Any, alone: bool = False) -> None:
        """Go back to a snapshot, parameters and optimizer too.

        alone: whether this rank alone ends its training: what it shares does not change then, and no step may follow.
        """
        if alone:
            self.leave()
        kept, (held, averages), steps, before = snapshot
        self.touch()
        if self.in_place:
            flats = self._flats()
            for copy, flat in zip(kept, flats, strict=True):
                np.copyto(flat, copy)
        else:
            rows = [slots for g in self.groups for slots in g.changing()]
            for arrays, slots in zip(kept, rows, strict=True):
                for array, slot in zip(arrays, slots, strict=True):
                    slot.array = array
        for buffer, array in zip(self.buffers, held, strict=True):
            place = self.kept.get(buffer)
            if place is not None and array is not None:
                place.put(array)
            buffer.value = array if place is None else place.array
        for slot, array in zip(self.averages.values(), averages, strict=True):
            slot.put(array)
        for group, numbers in zip(self.groups, steps, strict=True):
            group.steps = numbers
        self.optimizer.restore(before)
        self.publish()
