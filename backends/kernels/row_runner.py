"""Runs tables of rows: in order, or shared by the threads of a team. Numba compiles the loops.

A row is the address of a loop's machine code, up to fifteen numbers for it (addresses of buffers, sizes and flags),
and three more: FIRST and LAST are the range that the row has of the loop's elements, and BEFORE says how many rows of
the table must be done before it. So rows that share the range of one loop may run at the same time.

**A team.** Each thread takes the next row that nobody has taken, waits until the rows before it are done, runs it,
and counts it as done. No thread waits for one that has taken nothing: one that wakes up late finds that others have
done its share. Which thread runs a row changes no bit.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from xnn.backends.kernels.jit import jit
from xnn.backends.kernels.micro_kernels import atomic_next, call_loop

__all__ = ["BEFORE", "FIRST", "LAST", "WIDTH", "give_way", "run", "run_together"]

FIRST, LAST, BEFORE, WIDTH = 16, 17, 18, 19  #: columns of a row, and how many there are
_LOOKS = 64  #: how often a thread looks whether it may go on, before it lets another one have its core
_DONE = 64  #: bytes from the counter of rows taken to that of rows done: another line of the cache


@intrinsic  # type: ignore[untyped-decorator]
def _wait(context: Any, address: Any, least: Any, give_way: Any) -> Any:
    """Wait until the int64 at an address is at least `least`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b, word = builder, ir.IntType(64)
        place = b.inttoptr(arguments[0], word.as_pointer())
        entry = b.block
        look, again, rest, end = (b.append_basic_block(name) for name in ("look", "again", "rest", "end"))
        b.branch(look)
        b.position_at_end(look)
        looks = b.phi(word)
        found = b.load_atomic(place, "acquire", 8)
        b.cbranch(b.icmp_signed(">=", found, arguments[1]), end, again)
        b.position_at_end(again)
        if platform.machine() in ("x86_64", "AMD64"):  # another thread of the same core runs faster meanwhile
            pause = ir.FunctionType(ir.VoidType(), [])
            b.call(b.module.declare_intrinsic("llvm.x86.sse2.pause", (), pause), [])
        more = b.add(looks, word(1))
        b.cbranch(b.icmp_signed("<", more, word(_LOOKS)), look, rest)
        b.position_at_end(rest)
        kind = ir.FunctionType(ir.IntType(32), [])
        b.call(b.inttoptr(arguments[2], kind.as_pointer()), [])
        b.branch(look)
        for number, block in ((word(0), entry), (more, again), (word(0), rest)):
            looks.add_incoming(number, block)
        b.position_at_end(end)
        return context.get_dummy_value()

    return types.void(address, least, give_way), generate


def _system_function() -> Any:
    if os.name == "nt":
        return ctypes.windll.kernel32.SwitchToThread  # type: ignore[attr-defined]
    return ctypes.CDLL(None).sched_yield


#: The address of the system's function by which a thread lets another one have its core.
give_way = int(ctypes.cast(_system_function(), ctypes.c_void_p).value or 0)


@jit
def run(table: Any, moves: Any, steps: int, like: Any) -> None:
    """Execute the rows of a table, int64 (rows, WIDTH), in order, and do that `steps` times.

    moves: int64 (n, 3): row and column of an address, and how many bytes are added to it after each step. In this way
        each step reads row numbers of its own, for example. At the end the addresses are as before.
    like: the number 1 of the program's dtype. A literal 1.0 would widen float32 loops.
    """
    for _ in range(steps):
        for i in range(table.shape[0]):
            row = table.ctypes.data + 8 * WIDTH * i
            call_loop(table[i, 0], row, table[i, FIRST], table[i, LAST], 1, 0, 0, like)
        for n in range(moves.shape[0]):
            table[moves[n, 0], moves[n, 1]] += moves[n, 2]
    for n in range(moves.shape[0]):
        table[moves[n, 0], moves[n, 1]] -= steps * moves[n, 2]


@jit
def run_together(table: Any, moves: Any, steps: int, like: Any, counters: Any, give_way: int) -> Any:
    """Take part in what `run` does, until no row is left to take. Returns how many rows this thread has run.

    counters: int64 zeros, two lines of the cache, of all threads: how many rows are taken, and how many are done.
    """
    count, own, done = table.shape[0], np.empty(WIDTH, np.int64), 0
    taken = np.int64(counters.ctypes.data)
    while True:
        number = atomic_next(taken)
        if number >= steps * count:
            return done
        step, i = number // count, number % count
        row = np.int64(table.ctypes.data) + 8 * WIDTH * i
        if step and moves.shape[0]:  # the table is everybody's
            for column in range(WIDTH):  # own[:] = table[i] would be compiled for five seconds
                own[column] = table[i, column]
            for n in range(moves.shape[0]):
                if moves[n, 0] == i:
                    own[moves[n, 1]] += step * moves[n, 2]
            row = np.int64(own.ctypes.data)
        _wait(taken + _DONE, step * count + table[i, BEFORE], give_way)
        call_loop(table[i, 0], row, table[i, FIRST], table[i, LAST], 1, 0, 0, like)
        atomic_next(taken + _DONE)
        done += 1
