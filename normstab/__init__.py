"""Find out whether a network survives a number format, where it breaks first, and what helps.

The public names load on first use: importing normstab costs neither torch nor numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from normstab.errors import near
from normstab.numerics.kernels import process as _process  # noqa: F401  (which notes the process, before anything forks)

__version__ = "0.1.0"

if TYPE_CHECKING:
    import normstab.search as search
    from normstab.errors import NormstabError
    from normstab.norms.catalogue import NORMS
    from normstab.norms.modules import (
        BatchNorm1d,
        BatchNorm2d,
        BatchNorm3d,
        GroupNorm,
        InstanceNorm,
        InstanceNorm1d,
        InstanceNorm2d,
        InstanceNorm3d,
        LayerNorm,
        MeanOnlyBatchNorm1d,
        MeanOnlyBatchNorm2d,
        MeanOnlyBatchNorm3d,
        RMSNorm,
    )
    from normstab.norms.noise.norm_noise import NormNoise
    from normstab.norms.replace import Replacement, replace_norms_
    from normstab.norms.scale_range import ScaleRange, scale_range
    from normstab.norms.weight import bounded_weight_norm, weight_norm
    from normstab.numerics.arithmetic import Arithmetic
    from normstab.numerics.formats import FORMATS, FixedFormat, Format, parse_format
    from normstab.numerics.ledger import First, Ledger, Site, Tally
    from normstab.numerics.philox import Key
    from normstab.numerics.precision import Accumulation, Precision, Rounding
    from normstab.numerics.rounding import cast
    from normstab.numerics.scaled.quantize import quantize
    from normstab.simulation.record import record
    from normstab.simulation.simulate import simulate

__all__ = [
    "FORMATS",
    "NORMS",
    "Accumulation",
    "Arithmetic",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "First",
    "FixedFormat",
    "Format",
    "GroupNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Key",
    "LayerNorm",
    "Ledger",
    "MeanOnlyBatchNorm1d",
    "MeanOnlyBatchNorm2d",
    "MeanOnlyBatchNorm3d",
    "NormNoise",
    "NormstabError",
    "Precision",
    "RMSNorm",
    "Replacement",
    "Rounding",
    "ScaleRange",
    "Site",
    "Tally",
    "bounded_weight_norm",
    "cast",
    "parse_format",
    "quantize",
    "record",
    "replace_norms_",
    "scale_range",
    "search",
    "simulate",
    "weight_norm",
]

_HOME = {
    "normstab.errors": ("NormstabError",),
    "normstab.norms.catalogue": ("NORMS",),
    "normstab.norms.modules": (
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "GroupNorm",
        "InstanceNorm",
        "InstanceNorm1d",
        "InstanceNorm2d",
        "InstanceNorm3d",
        "LayerNorm",
        "MeanOnlyBatchNorm1d",
        "MeanOnlyBatchNorm2d",
        "MeanOnlyBatchNorm3d",
        "RMSNorm",
    ),
    "normstab.norms.noise.norm_noise": ("NormNoise",),
    "normstab.norms.replace": ("Replacement", "replace_norms_"),
    "normstab.norms.scale_range": ("ScaleRange", "scale_range"),
    "normstab.norms.weight": ("bounded_weight_norm", "weight_norm"),
    "normstab.numerics.arithmetic": ("Arithmetic",),
    "normstab.numerics.formats": ("FORMATS", "FixedFormat", "Format", "parse_format"),
    "normstab.numerics.ledger": ("First", "Ledger", "Site", "Tally"),
    "normstab.numerics.philox": ("Key",),
    "normstab.numerics.precision": ("Accumulation", "Precision", "Rounding"),
    "normstab.numerics.rounding": ("cast",),
    "normstab.numerics.scaled.quantize": ("quantize",),
    "normstab.simulation.record": ("record",),
    "normstab.simulation.simulate": ("simulate",),
}
_PARTS = ("search",)  # offered as they are: `ns.search.promote`
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


if not TYPE_CHECKING:  # a type checker that saw this function would take every misspelt name for an object

    def __getattr__(name: str) -> object:
        if name in _PARTS:
            return import_module(f"normstab.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'normstab' has no attribute {name!r}{near(name, __all__)}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)  # looked up once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
