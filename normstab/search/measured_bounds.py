"""How far from the bound: every sum, mean, product, softmax and norm of a network beside its a-priori error bound.

The network runs once, forward and backward, in the precision; each result is compared with float64 on the very
operands that the operation had, so that an error is the operation's own. Bounds are those of `numerics.bounds`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.modules import BatchForward, GroupNorm, InstanceForward, LayerNorm, Normalizing, RMSNorm
from normstab.norms.reduction import Reduction
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Site
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision
from normstab.search.bound_cases import CASES, Bounding, Case, norm_cases
from normstab.simulation import Run, simulate
from normstab.simulation.around.operands import read_operands
from normstab.simulation.aten.overloads import plan_of
from normstab.torch_private import TorchDispatchMode, modes_off

__all__ = ["Bounds", "SiteBound", "bounds", "input_of", "reduction_of"]


@dataclass(frozen=True)
class SiteBound:
    """Of one kind of result at one site: the longest sum `n`, how many were compared, and errors by the condition.

    `bound` is deterministic, `likely` probabilistic, `measured` the largest error found; `ratio` and `likely_ratio` are
    the largest errors as shares of the bounds. None where no bound with a proven constant is known. `beyond` results
    overflowed, or were not finite: no bound speaks of them.
    """

    site: str
    operation: str
    n: int
    results: int
    beyond: int
    bound: float | None
    likely: float | None
    measured: float
    ratio: float | None
    likely_ratio: float | None


@dataclass(frozen=True)
class Bounds:
    """The sites in the order in which they first ran; one probabilistic bound fails with probability `failure`."""

    precision: str
    failure: float
    sites: tuple[SiteBound, ...]
    notes: tuple[str, ...]

    @property
    def violations(self) -> tuple[SiteBound, ...]:
        """The sites whose error exceeds the deterministic bound: there should be none."""
        return tuple(site for site in self.sites if site.ratio is not None and site.ratio > 1.0)


def bounds(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    precision: str | Precision | AnyFormat = "fp16",
    loss: Callable[[Any], Tensor] | None = None,
    failure: float = 1e-3,
    seed: int = 0,
) -> Bounds:
    """Return the bounds and the errors of a copy of `model` on `args` and `kwargs`, in `precision`.

    `loss` makes a number of the output and adds the backward pass. Raises NormstabError for a precision that rounds
    nothing, or whose products take operands in another format.
    """
    spec = _bounded(precision)
    if not 0.0 < failure < 1.0:
        raise NormstabError(f"failure is a probability between 0 and 1, found {failure}")
    module = copy.deepcopy(model).float()
    found = _Found(Bounding(spec, failure))
    last: list[Site] = []
    with simulate(module, spec, seed=seed, observer=lambda site, result: last.append(site)) as run:
        for name, layer in module.named_modules():
            if isinstance(layer, Normalizing):
                layer.register_forward_pre_hook(found.seen_by(name, layer, seed), with_kwargs=True)
        with _Measuring(found, last, run, seed):
            output = module(*args, **(kwargs or {}))
            value = None if loss is None else loss(output)
            if value is not None and value.requires_grad:
                value.backward()
    return Bounds(str(spec), failure, tuple(found.sites.values()), tuple(run.notes))


def _bounded(precision: str | Precision | AnyFormat) -> Precision:
    """Return the precision; raise for one of whose results no bound is known."""
    spec = Precision.parse(precision)
    if spec.is_native:
        raise NormstabError("precision 'native' rounds nothing; name a format to bound, such as fp16")
    if spec.operand_input is not None or spec.operand_weight is not None or spec.operand_grad is not None:
        raise NormstabError(f"precision {spec}: no bound is known for products of scaled operands")
    if spec.autocast != "none":
        raise NormstabError(f"precision {spec}: no bound is known for operands that autocast narrows")
    return spec


@dataclass
class _Found:
    """What was measured so far, by site and operation."""

    bounding: Bounding
    sites: dict[tuple[str, str], SiteBound] = field(default_factory=dict)

    def add(self, site: str, case: Case) -> None:
        """Add the results of one case to those of its site."""
        new = _measured(site, case, self.bounding.precision.format())
        old = self.sites.get((site, case.operation))
        self.sites[site, case.operation] = new if old is None else _merged(old, new)

    def seen_by(self, name: str, layer: Normalizing, seed: int) -> Callable[[nn.Module, Any, Any], None]:
        """Return the hook that measures a layer written against an Arithmetic, from its input."""

        def measure(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            x = input_of(args, kwargs)
            reduction = reduction_of(layer, x)
            if reduction is None:
                return
            eps = float(getattr(layer, "eps", 0.0) or 0.0)
            spec = None if layer.norm == "mean-only" else parse_norm(layer.norm)
            scheme = Scheme(spec, eps=eps, constant_factor=layer.norm_constant, centres=not isinstance(layer, RMSNorm))
            self.add_norm(Site(name, "norm", "forward"), x, scheme, reduction, seed)

        return measure

    def add_norm(self, site: Site, x: Tensor, scheme: Scheme, reduction: Reduction, seed: int) -> None:
        """Measure the mean and the scale of a norm of `x`."""
        with modes_off():
            for case in norm_cases(self.bounding, x.detach().float(), scheme, reduction, Key(seed, str(site))):
                self.add(str(site), case)


class _Measuring(TorchDispatchMode):
    """Stands above the simulation: lets it compute, then measures what it rounded."""

    def __init__(self, found: _Found, last: list[Site], run: Run, seed: int) -> None:
        super().__init__()
        self.found, self.last, self.run, self.seed = found, last, run, seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        plan, kwargs = plan_of(func), kwargs or {}
        if plan.kind == "composite":
            with self:
                return func.decompose(*args, **kwargs)
        self.last.clear()
        result = func(*args, **kwargs)
        is_measured = plan.name in CASES or plan.name in NORMS
        if is_measured and self.last and not plan.written:
            self._measure(self.last[-1], plan.name, func, args, kwargs, result)
        return result

    def _measure(self, site: Site, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Measure one operation on the operands that it had: parameters as their rounded copies."""
        with torch.no_grad(), modes_off():
            if name in NORMS:
                scheme, reduction = NORMS[name](args)
                if scheme is not None:
                    self.found.add_norm(site, args[0], scheme, reduction, self.seed)
                return
            seen = read_operands(args, kwargs, self.run.parameters, ())
            for case in CASES[name](self.found.bounding, func, seen.args, seen.kwargs, result):
                self.found.add(str(site), case)


def _measured(site: str, case: Case, format: AnyFormat) -> SiteBound:
    """Return the largest error of a case, and of its bounds the largest share."""
    found, exact, condition = (x.reshape(-1) for x in (case.found, case.exact, case.condition))
    may_overflow = condition >= float(format.max) / 2 if case.worst is not None else torch.zeros_like(found).bool()
    is_bounded = found.isfinite() & exact.isfinite() & ~(may_overflow & (found.abs() >= float(format.max)))
    if case.has_overflowed:
        is_bounded = torch.zeros_like(is_bounded)
    error, condition = (found - exact).abs()[is_bounded], condition[is_bounded]
    worst, likely = (None if b is None else b.reshape(-1)[is_bounded] for b in (case.worst, case.likely))
    return SiteBound(
        site, case.operation, case.n, found.numel(), int((~is_bounded).sum()),
        _largest(worst, condition), _largest(likely, condition), _largest(error, condition) or 0.0,
        _largest(error, worst), _largest(error, likely),
    )  # fmt: skip


def _largest(part: Tensor | None, whole: Tensor | None) -> float | None:
    """Return the largest quotient where the whole is not zero; None where either is unknown, 0 of nothing."""
    if part is None or whole is None:
        return None
    shares = (part / whole)[whole > 0]
    return float(shares.max()) if shares.numel() else 0.0


def _merged(a: SiteBound, b: SiteBound) -> SiteBound:
    """Return what two calls of one site show together."""
    return replace(
        a,
        n=max(a.n, b.n),
        results=a.results + b.results,
        beyond=a.beyond + b.beyond,
        measured=max(a.measured, b.measured),
        bound=_larger(a.bound, b.bound),
        likely=_larger(a.likely, b.likely),
        ratio=_larger(a.ratio, b.ratio),
        likely_ratio=_larger(a.likely_ratio, b.likely_ratio),
    )


def _larger(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)


# ------------------------------------------------------------------------------------- which values share a scale

L2 = parse_norm("l2")
Described = tuple[Scheme | None, Reduction]


def _of_batch(args: Any, *, training: bool, eps: float) -> Described:
    """Batch norm by the batch's own statistics; in evaluation nothing is added up."""
    return Scheme(L2, eps=eps) if training else None, Reduction.of_batch(args[0].shape)


NORMS: dict[str, Callable[[Any], Described]] = {
    "native_batch_norm": lambda args: _of_batch(args, training=args[5], eps=args[7]),
    "_native_batch_norm_legit": lambda args: _of_batch(args, training=args[-3], eps=args[-1]),
    "_batch_norm_with_update": lambda args: _of_batch(args, training=True, eps=args[6]),
    "cudnn_batch_norm": lambda args: _of_batch(args, training=args[5], eps=args[7]),
    "native_layer_norm": lambda args: (Scheme(L2, eps=args[4]), Reduction.of_layer(args[0].shape, args[1])),
    "native_group_norm": lambda args: (Scheme(L2, eps=args[7]), Reduction.of_group(args[3:6], args[6])),
}


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a layer is called with, by position or by name."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


def reduction_of(layer: Normalizing, x: Tensor) -> Reduction | None:
    """Return which values share a scale in a layer of ours; None where a forward of its own decides."""
    if isinstance(layer, BatchForward):
        return Reduction.of_batch(x.shape) if layer.training or layer.running_mean is None else None
    if isinstance(layer, InstanceForward):
        return Reduction.of_instance(x.shape) if layer.training or layer.running_mean is None else None
    if isinstance(layer, LayerNorm | RMSNorm):
        return Reduction.of_layer(x.shape, layer.normalized_shape)
    return Reduction.of_group(x.shape, layer.num_groups) if isinstance(layer, GroupNorm) else None
