"""The vector operations as kernels call them: by the addresses of their code, of the way that the kernel is given.

    Lanes.code  ->  [ copy_line | transpose | join | chain | ... ]      a function of each, of one way

The functions of a way are compiled at its first use, in a second, and cached; a kernel that calls them is compiled for
all ways at once. What operations do, and their arguments, is said where they are written: `join` in `write_join`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from normstab.numerics.kernels.cpu.compile import device, kernel
from normstab.numerics.kernels.cpu.vector.lane_bins import write_count_binades
from normstab.numerics.kernels.cpu.vector.lane_moves import write_copy_line, write_transpose, write_turn
from normstab.numerics.kernels.cpu.vector.lanes import (
    write_chain,
    write_halve,
    write_join,
    write_multiply,
    write_multiply_chain,
    write_round_in_place,
)
from normstab.numerics.kernels.cpu.vector.rounding_code import Rounder
from normstab.numerics.kernels.cpu.vector.vectors import I64, Code
from normstab.numerics.kernels.cpu.vector.ways import (
    BINNED,
    CAREFUL,
    FULL_BINNED,
    FUSED,
    KAHAN,
    TAG_OF,
    UNCOUNTED,
    WAYS,
    Lanes,
    Way,
)
from normstab.numerics.kernels.nearest import DRAWN, PLAIN

__all__ = [
    "chain",
    "code_of",
    "copy_line",
    "count_binades",
    "halve",
    "is_binned",
    "is_careful",
    "is_compensated",
    "is_counted",
    "is_drawn",
    "is_fused",
    "is_plain",
    "join",
    "multiply",
    "multiply_chain",
    "round_in_place",
    "store_addresses",
    "transpose",
    "turn",
    "word",
]

# In the order of the table of a way.
WRITTEN: tuple[Callable[..., None], ...] = (
    write_copy_line,
    write_transpose,
    write_join,
    write_chain,
    write_halve,
    write_round_in_place,
    write_multiply,
    write_multiply_chain,
)
CODE, TABLE, AWAY = (Lanes._fields.index(name) for name in ("code", "table", "away"))


def function_type(emit: Callable[..., None]) -> Any:
    """Return the LLVM type of an operation: of the address of a table, of `away`, and of its own arguments."""
    return ir.FunctionType(ir.VoidType(), [I64] * (1 + len(inspect.signature(emit).parameters)))


def written(module: Any, way: Way, emit: Callable[..., None]) -> Any:
    """Return the LLVM function, in a module, of an operation in one way."""
    function = ir.Function(module, function_type(emit), module.get_unique_name(emit.__name__))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    table, away, *arguments = function.args
    emit(Rounder(Code(builder), way, table, away), *arguments)
    builder.ret_void()
    return function


def _store_all(typing_context, tag, table):
    """Store the addresses of the operations of a way, which a tag says, at an address."""
    way = WAYS[tag.instance_class]

    def generate(context, builder, signature, arguments):
        for i, emit in enumerate(WRITTEN):
            address = builder.ptrtoint(written(builder.module, way, emit), I64)
            builder.store(address, Code(builder).at(arguments[1], 8 * i, I64))
        return context.get_dummy_value()

    return types.void(tag, types.int64), generate


store_all: Any = intrinsic(_store_all)  # typed, numba's intrinsic would want the typing context from its callers


@kernel
def store_addresses(tag, table):  # pragma: no cover - compiled
    """Store the addresses of the operations of a way: a kernel of its own for each way, which holds their code."""
    store_all(tag, table)


ADDRESSES: dict[Way, NDArray[np.int64]] = {}
"""The tables of this process, which are never given up: kernels have their addresses."""


def code_of(way: Way) -> int:
    """Return the address of the table of addresses of a way's operations, which are compiled where they are not."""
    table = ADDRESSES.get(way)
    if table is None:
        table = np.zeros(len(WRITTEN), np.int64)
        store_addresses(TAG_OF[way](0), table.ctypes.data)
        table = ADDRESSES.setdefault(way, table)  # of threads that ask at once, the first one's
    return int(table.ctypes.data)


def operation(emit: Callable[..., None]) -> Any:
    """Return the intrinsic of Lanes and a tuple of int64 arguments that calls an operation."""
    index, kind = WRITTEN.index(emit), function_type(emit)

    @intrinsic
    def called(typing_context, way, arguments):
        def generate(context, builder, signature, packed):
            code, table, away = (builder.extract_value(packed[0], i) for i in (CODE, TABLE, AWAY))
            address = builder.load(Code(builder).at(code, 8 * index, I64))
            own = [builder.extract_value(packed[1], i) for i in range(len(kind.args) - 2)]
            builder.call(builder.inttoptr(address, kind.as_pointer()), [table, away, *own])
            return context.get_dummy_value()

        return types.void(way, types.UniTuple(types.int64, len(kind.args) - 2)), generate

    return called


# What kernels call: each is documented where it is written.
copy_line, transpose, join, chain, halve, round_in_place, multiply, multiply_chain = map(operation, WRITTEN)


@device
def is_counted(way):
    """Whether anything is counted."""
    return way.counts != UNCOUNTED


@device
def is_binned(way):
    """Whether magnitudes are kept for a histogram."""
    return (way.counts == BINNED) | (way.counts == FULL_BINNED)


@device
def is_careful(way):
    """Whether what leaves the range is computed and counted."""
    return way.ends == CAREFUL


@device
def is_plain(way):
    """Whether nothing has to be rounded."""
    return way.style == PLAIN


@device
def is_compensated(way):
    """Whether sums are Kahan's."""
    return way.chain == KAHAN


@device
def is_fused(way):
    """Whether products are added unrounded."""
    return way.chain == FUSED


@device
def is_drawn(way):
    """Whether it rounds stochastically."""
    return way.style == DRAWN


def inlined(emit: Callable[..., None]) -> Any:
    """Return the intrinsic of a tuple of int64 arguments that writes an operation of no way where it is called."""
    n = len(inspect.signature(emit).parameters) - 1

    @intrinsic
    def written_there(typing_context, arguments):
        def generate(context, builder, signature, packed):
            emit(Code(builder), *(builder.extract_value(packed[0], i) for i in range(n)))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, n)), generate

    return written_there


# Of no way.
turn, count_binades = inlined(write_turn), inlined(write_count_binades)


def _word(typing_context, address):
    """Return the int64 at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], I64.as_pointer()))

    return types.int64(types.int64), generate


# The int64 at an address.
word: Any = intrinsic(_word)
