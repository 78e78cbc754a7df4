"""The operations of the fused kernels on blocks: in float32 where bits and counts are the same, else in float64."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from normstab.norms.cpu.block_steps import (
    ADD,
    CAST,
    MUL,
    SQRT,
    SUB,
    add_block,
    cast_block,
    div_block,
    mul_block,
    sub_block,
)
from normstab.norms.cpu.environment import SLOTS, context_at, field, mark_at, slot
from normstab.norms.cpu.wide_blocks import wide_block
from normstab.norms.fused.layer_table import FIELDS
from normstab.numerics.kernels.cpu.compile import outside

__all__ = ["operate"]

IS_FAST, AT_TABLE = FIELDS.index("is_fast"), SLOTS.index("table")


@outside
def operate(kind, a, b, y, group, first, n, site, env):  # pragma: no cover - compiled
    """Set y to the rounded and counted results of an operation on values number first .. of a group.

    a, b and y are addresses of blocks; `y` is none of the operands. A cast and a root have their operand twice.
    """
    marks, context, table = mark_at(env, site), context_at(env, site), slot(env, AT_TABLE)
    if kind == SQRT or not field(env, IS_FAST):
        wide_block(kind, a, b, y, group, first, n, context, env)
    elif kind == MUL:
        mul_block(a, b, y, n, table, marks, context)
    elif kind == ADD:
        add_block(a, b, y, n, table, marks, context)
    elif kind == SUB:
        sub_block(a, b, y, n, table, marks, context)
    elif kind == CAST:
        cast_block(a, y, n, table, marks, context)
    else:
        div_block(a, b, y, n, table, marks, context)
