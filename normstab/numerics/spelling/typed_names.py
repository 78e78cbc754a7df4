"""Names of formats that people type and that are none here: what they stand for, or the question to ask back.

A name of torch, numpy or C that can mean one format only stands for it. One that may mean several is asked about:
a wrong guess would answer another question. Where a whole machine is named, `machine_format` asks.
"""

from __future__ import annotations

__all__ = ["ASKED_FORMATS", "FP8", "OTHER_NAMES"]

OTHER_NAMES = {
    "float64": "fp64",
    "double": "fp64",
    "f64": "fp64",
    "float32": "fp32",
    "float": "fp32",
    "single": "fp32",
    "f32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "f16": "fp16",
    "bfloat16": "bf16",
    "tensorfloat32": "tf32",
    "float8_e4m3fn": "e4m3fn",
    "float8_e5m2": "e5m2",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
    "float4_e2m1fn": "e2m1",
}
"""Another name of a format -> its preset."""

FP8 = "e4m3fn (max 448) or e5m2 (max 57344)"
"""The formats of 8 bits that hardware has."""
ASKED_FORMATS = {
    "fp8": FP8,
    "float8": FP8,
    "fp6": "e2m3 (max 7.5) or e3m2 (max 28)",
    "fp4": "e2m1 (max 6)",
}
"""A name of several formats -> those that may be meant."""
