"""What a traced program depends on: two layers with the same outline have the same program."""

from __future__ import annotations

from dataclasses import dataclass, field

from normstab.norms.catalogue import Scheme
from normstab.norms.dispersion import DISPERSIONS, Dispersion
from normstab.norms.reduction import Reduction
from normstab.numerics.precision import Precision

__all__ = ["Outline"]


@dataclass(frozen=True)
class Outline:
    """What a program depends on: the layer, its arithmetic, which parameters it has, and the functions of its scale.

    These are looked up by the kind, so that a kind whose functions are replaced has another program.
    """

    scheme: Scheme
    reduction: Reduction
    precision: Precision
    has_gamma: bool = True
    has_beta: bool = True
    dispersion: Dispersion | None = field(init=False)

    def __hash__(self) -> int:
        # Of what tells most layers of a network apart, for it is asked for several times in every pass.
        return hash((self.reduction.view, self.reduction.axes, self.has_gamma))

    def __post_init__(self) -> None:
        spec = self.scheme.spec
        object.__setattr__(self, "dispersion", None if spec is None else DISPERSIONS[spec.kind])
