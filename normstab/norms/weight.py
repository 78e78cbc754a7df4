"""Weight norm and bounded weight norm, as torch parametrizations, in native or emulated arithmetic.

    w = g (v / ||v||)   per slice of `dim`, g learned (weight norm) or the constant rho (bounded weight norm)

||v|| is the l2, l1 or linf norm. Gradients, s = ||v||, v^ = v / s, u = ds/dv: dv = (g / s) (dw - u sum(v^ dw)),
dg = sum(v^ dw); u is v^ for l2, sign(v) for l1, sign(v) at the first largest abs(v) for linf.
Sites, forward: `input gamma rho.const square dispersion.sum dispersion.sum.cast sqrt divide scale`; backward:
`grad product product.sum project subtract slope scale dgamma`.
Source: Salimans and Kingma 2016, equations 2 and 3; Hoffer et al. 2018, section 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from normstab.errors import NormstabError, near
from normstab.norms.dispersion import first_largest
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import opaque, plain
from normstab.numerics.precision import Precision
from normstab.torch_private import modes_off

__all__ = ["BoundedWeightNorm", "WeightNorm", "bounded_weight_norm", "weight_norm"]

KINDS = ("l2", "l1", "linf")


def weight_norm(module: nn.Module, name: str = "weight", *, norm: str = "l2", dim: int | None = 0) -> nn.Module:
    """Make `module.weight` g (v / ||v||) with g and v learned, one g per slice of `dim`; return the module.

    `dim` None takes one norm over the whole weight. The state_dict has the keys of torch's own weight_norm:
    `parametrizations.weight.original0` is g and `original1` is v. `module.parametrizations.weight[0].arithmetic`
    sets the arithmetic. Raises NormstabError for an unknown norm or a `dim` that the weight does not have.
    """
    return _register(module, name, lambda weight: WeightNorm(norm, _checked_dim(dim, weight)))


def bounded_weight_norm(
    module: nn.Module, name: str = "weight", *, norm: str = "l2", dim: int | None = 0, rho: float | None = None
) -> nn.Module:
    """Make `module.weight` rho (v / ||v||) with v learned and rho a constant of the layer; return the module.

    `rho` None is the mean norm of the slices as they are now; it is a buffer, so the state_dict has it.
    """

    def build(weight: Tensor) -> BoundedWeightNorm:
        axis = _checked_dim(dim, weight)
        mean_norm = float(
            _norm(weight.detach().double(), norm, _slices(weight, axis), Arithmetic("native")).value.mean()
        )
        return BoundedWeightNorm(norm, axis, mean_norm if rho is None else rho, weight)

    return _register(module, name, build)


def _register(module: nn.Module, name: str, build: Any) -> nn.Module:
    """Parametrize `module.name` by what `build` makes of it."""
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise NormstabError(f"{type(module).__name__} has no tensor {name!r} to normalize")
    parametrize.register_parametrization(module, name, build(weight), unsafe=True)
    return module


def _checked_dim(dim: int | None, weight: Tensor) -> int | None:
    """Return `dim` counted from the front, or raise."""
    if dim is None:
        return None
    if not -weight.dim() <= dim < weight.dim():
        raise NormstabError(f"dim {dim} is out of range for a weight of shape {tuple(weight.shape)}")
    return dim % weight.dim()


def _slices(weight: Tensor, dim: int | None) -> Reduction:
    """Return the reduction over everything but `dim`."""
    shape = tuple(weight.shape)
    axes = tuple(axis for axis in range(len(shape)) if axis != dim)
    return Reduction(shape, axes, tuple(size if axis == dim else 1 for axis, size in enumerate(shape)))


class _Scaling(nn.Module):
    """What both parametrizations share: the norm, the slices, the arithmetic."""

    def __init__(self, norm: str, dim: int | None) -> None:
        super().__init__()
        if norm not in KINDS:
            raise NormstabError(f"unknown weight norm {norm!r}{near(norm, KINDS)} ({', '.join(KINDS)})")
        self.norm, self.dim = norm, dim
        self._ar = Arithmetic("native")

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic in which the weight is normalized; `native` is plain torch."""
        return self._ar

    @arithmetic.setter
    def arithmetic(self, value: Arithmetic | Precision | str) -> None:
        self._ar = value if isinstance(value, Arithmetic) else Arithmetic(value)

    def scaled(self, g: Tensor | float, v: Tensor) -> Tensor:
        """Return g (v / ||v||)."""
        slices, ar = _slices(v, self.dim), self._ar
        if ar.is_native:
            return g * (v / _norm(v, self.norm, slices, ar).value)
        gain = g if isinstance(g, Tensor) else None
        return _Plan(self.norm, slices, ar, None if isinstance(g, Tensor) else g).emulate(gain, v)

    def extra_repr(self) -> str:
        """Describe the norm."""
        return f"norm={self.norm}, dim={self.dim}"


class WeightNorm(_Scaling):
    """The parametrization of `weight_norm`: (g, v) -> g (v / ||v||)."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """Return the weight."""
        return self.scaled(g, v)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return g = ||weight|| and v = weight."""
        return _norm(weight, self.norm, _slices(weight, self.dim), Arithmetic("native")).value, weight


class BoundedWeightNorm(_Scaling):
    """The parametrization of `bounded_weight_norm`: v -> rho (v / ||v||)."""

    rho: Tensor

    def __init__(self, norm: str, dim: int | None, rho: float, weight: Tensor) -> None:
        super().__init__(norm, dim)
        if not (rho > 0 and rho < float("inf")):
            raise NormstabError(f"rho is a positive norm, found {rho}")
        self.register_buffer("rho", torch.tensor(rho, dtype=torch.float32, device=weight.device))

    def forward(self, v: Tensor) -> Tensor:
        """Return the weight."""
        return self.scaled(float(self.rho), v)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return v = weight."""
        return weight


class _Norm(NamedTuple):
    """||v|| of each slice (its axes of size 1), and the member of a maximum."""

    value: Tensor
    members: Tensor | None = None


def _norm(v: Tensor, kind: str, slices: Reduction, ar: Arithmetic) -> _Norm:
    """Return the norm of each slice of `v`, a result in the compute format."""
    if kind == "linf":
        rows_RN = slices.rows(ar.abs(v))
        members = first_largest(rows_RN)
        return _Norm(slices.keepdim(rows_RN.gather(1, members)), members)
    terms = ar.in_format("square").mul(v, v, operation="square") if kind == "l2" else ar.abs(v)
    total = ar.sum(terms, slices.axes, keepdim=True, operation="dispersion.sum")
    if kind == "l1":
        return _Norm(ar.in_format("sum").cast(total, "dispersion.sum.cast"))
    if ar.precision.sum is not None:
        total = ar.in_format("sum").cast(total, "dispersion.sum.cast")
    return _Norm(ar.sqrt(total, operation="sqrt"))


class _Plan(NamedTuple):
    """Everything about one emulated weight but its tensors; `rho` None says that g is one of those."""

    kind: str
    slices: Reduction
    ar: Arithmetic
    rho: float | None

    @property
    def is_native(self) -> bool:
        """Whether plain torch computes, and differentiates."""
        return self.ar.is_native

    @opaque
    def emulate(self, gain: Tensor | None, v: Tensor) -> Tensor:
        """Return g (v / ||v||) in the arithmetic, differentiable by backward, once."""
        gain, v = None if gain is None else plain(gain), plain(v)
        weight: Tensor = _Emulated.apply(gain, v, self)  # type: ignore[no-untyped-call]
        return weight


class _Emulated(torch.autograd.Function):
    """g (v / ||v||) with every operation rounded, forward and backward."""

    @staticmethod
    def forward(ctx: Any, gain: Tensor | None, v: Tensor, plan: _Plan) -> Tensor:
        ar = plan.ar
        with modes_off():
            v_cast = ar.cast(v, "input")
            g: Tensor | float = ar.cast(gain, "gamma") if gain is not None else ar.constant(plan.rho or 0.0, "rho")
            norm = _norm(v_cast, plan.kind, plan.slices, ar)
            unit = ar.div(v_cast, norm.value, operation="divide")
            weight = ar.mul(g, unit, operation="scale")
        ctx.save_for_backward(v_cast, unit, norm.value, norm.members, g if isinstance(g, Tensor) else None)
        ctx.plan, ctx.rho = plan, None if isinstance(g, Tensor) else g
        return weight.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        plan: _Plan = ctx.plan
        v, unit, norm, members, gain = ctx.saved_tensors
        with modes_off():
            ar = plan.ar.towards("backward").in_format("gradient")
            dw = ar.cast(grad, "grad")
            product = ar.mul(unit, dw, operation="product")
            total = ar.sum(product, plan.slices.axes, keepdim=True, operation="product.sum")
            direction = _direction(v, unit, members, plan, ar)
            rest = ar.sub(dw, ar.mul(direction, total, operation="project"), operation="subtract")
            slope = ar.div(ctx.rho if gain is None else gain, norm, operation="slope")
            dv = ar.mul(slope, rest, operation="scale")
            dg = ar.cast(total, "dgamma") if ctx.needs_input_grad[0] else None
        return dg, dv, None


def _direction(v: Tensor, unit: Tensor, members: Tensor | None, plan: _Plan, ar: Arithmetic) -> Tensor:
    """Return u = d||v||/dv."""
    if plan.kind == "l2":
        return unit
    if members is None:
        return ar.sign(v)
    signs_RN = plan.slices.rows(ar.sign(v))
    return plan.slices.unrows(torch.zeros_like(signs_RN).scatter(1, members, signs_RN.gather(1, members)))
