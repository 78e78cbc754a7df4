"""Recipes: named machines, each one row of data: a precision, and which layers stay wide.

A recipe's name stands wherever a precision is taken. Nothing here computes, and nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RECIPES", "UNIFORM"]


@dataclass(frozen=True)
class Recipe:
    """A named machine: `precision` says what is rounded, `wide` which layers take their operands unquantized.

    `wide` is empty or holds "first" and "last": the first and the last layer of the network that has a weight.
    """

    precision: str
    summary: str
    source: str
    wide: tuple[str, ...] = ()


_BF16 = "bf16/nearest/fp32;norm=wide"


def _mx(element: str) -> str:
    """Return the precision of an OCP MX machine: both operands and gradients in blocks of 32."""
    return f"{_BF16};operand={element}@block32:e8m0;operand.grad={element}@block32:e8m0"


# Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.2 and 6.3.
_MX_SOURCE = "OCP MX 1.0"

RECIPES: dict[str, Recipe] = {
    "half": Recipe("fp16/nearest/fp32;norm=wide;master=off", "model.half()", "torch"),
    "bfloat16": Recipe("bf16/nearest/fp32;norm=wide;master=off", "model.bfloat16()", "torch"),
    "amp-fp16": Recipe(
        "fp32/nearest/fp32;norm=wide;autocast=cuda-fp16", "torch.autocast in float16", "torch autocast_mode.h"
    ),
    "amp-bf16": Recipe(
        "fp32/nearest/fp32;norm=wide;autocast=cuda-bf16", "torch.autocast in bfloat16", "torch autocast_mode.h"
    ),
    "fp8-tensorwise": Recipe(
        f"{_BF16};operand=e4m3fn@tensor;operand.grad=e5m2@tensor",
        "e4m3 operands, e5m2 gradients, a scale per tensor",
        "torchao float8, tensorwise",
        wide=("last",),
    ),
    "fp8-rowwise": Recipe(
        f"{_BF16};operand=e4m3fn@row;operand.grad=e4m3fn@row",
        "e4m3 operands and gradients, a scale per row",
        "torchao float8, rowwise",
        wide=("last",),
    ),
    "fp8-delayed": Recipe(
        f"{_BF16};operand=e4m3fn@delayed1024;operand.grad=e5m2@delayed1024",
        "e4m3 operands, e5m2 gradients, scales from the largest of 1024 steps",
        "TransformerEngine DelayedScaling",
    ),
    "fp8-block128": Recipe(
        f"{_BF16};operand.input=e4m3fn@block128;operand.weight=e4m3fn@tile128;operand.grad=e4m3fn@block128",
        "e4m3 throughout: 1 x 128 blocks of activations and gradients, 128 x 128 tiles of weights",
        "DeepSeek-V3, arXiv 2412.19437, 3.3",
        wide=("last",),
    ),
    "mxfp8": Recipe(_mx("e4m3fn"), "e4m3 in blocks of 32", _MX_SOURCE),
    "mxfp6-e2m3": Recipe(_mx("e2m3"), "e2m3 in blocks of 32", _MX_SOURCE),
    "mxfp6-e3m2": Recipe(_mx("e3m2"), "e3m2 in blocks of 32", _MX_SOURCE),
    "mxfp4": Recipe(_mx("e2m1"), "e2m1 in blocks of 32", _MX_SOURCE),
    "mxint8": Recipe(_mx("q1.6"), "8-bit fixed point with 6 fraction bits in blocks of 32", _MX_SOURCE),
    "nvfp4": Recipe(
        f"{_BF16};operand.input=e2m1@block16:e4m3fn;operand.weight=e2m1@tile16:e4m3fn"
        ";operand.grad=e2m1@block16:e4m3fn/stochastic",
        "e2m1 in blocks of 16 with e4m3 scales and a tensor scale; stochastic gradients",
        "NVFP4 training, arXiv 2509.25149",
        wide=("last",),
    ),
    "int8": Recipe(f"{_BF16};operand=int8@row", "8-bit integers, a scale per row, forward", "LLM.int8 baselines"),
}
"""Name -> recipe."""

UNIFORM = Recipe("fp16;casts=ignore", "every result of every operation in one format, no wide type", "the paper")
"""`uniform:PRECISION`, here of fp16: it takes a parameter, and so is no row of RECIPES."""
