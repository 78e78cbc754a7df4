"""`assert_stable`: a module in a format against itself in a wide one, output and gradients, with the culprit named.

Runs copies: the module that was given is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError, lookup
from normstab.numerics.bounds import Step
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Ledger, Site
from normstab.numerics.precision import Precision
from normstab.numerics.recipes import RECIPES
from normstab.numerics.sums.kernels_of_sums import are_losses_cheap
from normstab.simulation import simulate
from normstab.simulation.aten.parts.complex_parts import as_real
from normstab.testing.culprit import Trace, find_culprit, own_offences
from normstab.testing.differences import Difference, compare
from normstab.testing.error_bounds.run_errors import RunErrors
from normstab.testing.output_verdict import (
    FAILING,
    SpreadError,
    spread_error,
    unless_unsimulated,
    verdict_without_training,
)
from normstab.testing.runner.listeners import LISTENER
from normstab.testing.subject import copied, copied_module, floating_tensors
from normstab.testing.tolerances import Tolerance, derive_tolerance, result_format
from normstab.torch_private import tree_leaves

__all__ = ["Stability", "assert_stable", "check_stable"]

# A gradient below this share of the largest is float64's noise about zero.
NOISE = 1e-12

Spec = str | Precision | AnyFormat


@dataclass(frozen=True)
class Stability:
    """What a comparison found: the differences, the ledger of the run in the format, and the culprit in words."""

    precision: Precision
    against: Precision
    differences: tuple[Difference, ...]
    ledger: Ledger = field(repr=False)
    culprit: str
    unrecognised: Mapping[str, int]
    verdict: str = "STABLE"
    reason: str = ""
    site: Site | None = None

    @property
    def passed(self) -> bool:
        """Whether the verdict is milder than DEGRADED; INCONCLUSIVE passes."""
        return self.verdict not in FAILING

    @property
    def worst(self) -> Difference:
        """The difference with the greatest share of its allowance used."""
        return max(self.differences, key=lambda d: (not d.passed, d.mismatched / max(d.total, 1), d.error))

    def __str__(self) -> str:
        if self.passed:
            worst = self.worst
            tensors = f"{len(self.differences)} tensors, worst error {worst.error:.3g} in {worst.name}"
            return f"{self.verdict.lower()} in {self.precision}: {self.reason} ({tensors})"
        failed = [difference for difference in self.differences if not difference.passed]
        where = f", made at {self.site}" if self.site is not None else ""
        off = f"{self.worst.name} off by {self.worst.ulps:.3g} ulps"
        lines = [f"{self.verdict} in {result_format(self.precision)}: {off}{where}"]
        lines += ["Tensor-likes are not close!", "", str(self.worst), "", self.reason[:1].upper() + self.reason[1:]]
        lines += [f"Also: {d.name}, greatest difference {d.error:.3g}" for d in failed if d is not self.worst][:8]
        lines += [f"Precision: {self.precision}, against {self.against}", self.culprit]
        if self.unrecognised:
            lines.append(f"Not simulated, computed as torch does: {', '.join(self.unrecognised)}")
        return "\n".join(line for line in lines)


def assert_stable(
    module: nn.Module,
    x: Any,
    *,
    precision: Spec | None = None,
    against: Spec = "fp64",
    rtol: float | None = None,
    atol: float | None = None,
    grad: bool = True,
    seed: int = 0,
    rules: Mapping[str, Spec] | None = None,
    recipe: str | None = None,
    msg: str | None = None,
) -> None:
    """Fail unless `module(x)` in `precision` is close to itself in `against`, gradients included.

    `precision` is fp16 where nothing is said. `x` is a tensor, a tuple of arguments or a mapping of keyword
    arguments. The gradients are those of the inner product of the outputs with fixed N(0, 1) tensors, for floating
    inputs and parameters. `rules` are those of `simulate`, for `precision`; `recipe`, the name of a machine such as
    "amp-bf16", takes its place. `rtol` and `atol` go together, as in torch.testing.assert_close; without them the
    tolerance is derived from the format and the number of roundings (`normstab.testing.tolerances`), and an error
    above a tenth of a tensor's spread, or a tensor that became constant, fails whatever it allows. Raises
    AssertionError with the largest error, its index, ulps and bits, and the site where it was made; `msg` replaces
    that text.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, not this one
    found = check_stable(
        module,
        x,
        precision=precision,
        against=against,
        rtol=rtol,
        atol=atol,
        grad=grad,
        seed=seed,
        rules=rules,
        recipe=recipe,
    )
    listener = LISTENER.get()
    complaint = listener.complaint(found) if listener is not None else None if found.passed else str(found)
    if complaint is not None:
        raise AssertionError(msg if msg is not None else complaint)


def check_stable(
    module: nn.Module,
    x: Any,
    *,
    precision: Spec | None = None,
    against: Spec = "fp64",
    rtol: float | None = None,
    atol: float | None = None,
    grad: bool = True,
    seed: int = 0,
    rules: Mapping[str, Spec] | None = None,
    recipe: str | None = None,
) -> Stability:
    """Return how `module(x)` in `precision` differs from itself in `against`; see `assert_stable`."""
    if (rtol is None) != (atol is None):
        raise NormstabError("rtol and atol go together: give both, or neither for the derived tolerance")
    narrow, wide = _machine(precision, recipe), Precision.parse(against)
    if narrow.is_native:
        raise NormstabError("precision 'native' rounds nothing; name a format to test, such as fp16")
    ledger = Ledger(losses=are_losses_cheap(narrow))
    expected, reference = _run(module, x, wide, seed, grad=grad, ledger=Ledger())
    given = None if rtol is None or atol is None else Tolerance(rtol, atol, "as given")
    bounds = RunErrors() if given is None else None
    found, trace = _run(module, x, narrow, seed, grad=grad, ledger=ledger, rules=rules, bounds=bounds)
    if [v.shape for v in found.values()] != [v.shape for v in expected.values()]:
        raise NormstabError(f"the outputs in {narrow} and {wide} have different shapes; is the module deterministic?")
    roundings = ((), ()) if bounds is None else bounds.of_all(ledger, narrow)
    differences, errors = _compared(found, expected, narrow, roundings, given)
    verdict, reason = unless_unsimulated(trace.run, *_verdict(differences, errors, narrow))
    own = own_offences(ledger, lambda own: _run(module, x, Precision.parse("fp32"), seed, grad=grad, ledger=own))
    culprit = find_culprit(trace, reference, ledger, own)
    stability = Stability(
        narrow,
        wide,
        tuple(differences),
        ledger,
        culprit.sentence,
        dict(trace.run.unrecognised),
        verdict,
        reason,
        culprit.site,
    )
    return _told(stability)


def _told(stability: Stability) -> Stability:
    """Return what a comparison found, having told whoever listens to this test."""
    listener = LISTENER.get()
    if listener is not None:
        listener.hear(stability)
    return stability


def _machine(precision: Spec | None, recipe: str | None) -> Precision:
    """Return the precision given, that of a recipe (keys may follow its name), or fp16 where neither is."""
    if recipe is None:
        return Precision.parse("fp16" if precision is None else precision)
    if precision is not None:
        raise NormstabError(f"precision={str(precision)!r} and recipe={recipe!r}: give one of them")
    head = recipe.partition(";")[0]
    if not head.startswith("uniform:"):
        lookup(RECIPES, head, what="recipe")
    return Precision.parse(recipe)


def _compared(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    precision: Precision,
    roundings: tuple[Sequence[Step], Sequence[Step]],
    given: Tolerance | None,
) -> tuple[list[Difference], list[SpreadError]]:
    """Return every tensor's difference, and its error as a share of its spread where the tolerance is derived.

    `roundings` are the steps on the way to an output, and to a gradient; none are known where a tolerance is given.
    """
    differences, errors, scales = [], [], _scales(expected)
    for name, value in found.items():
        elements = value.numel()
        steps = roundings[name.startswith("gradient")]
        tolerance = given or derive_tolerance(precision, steps, elements=elements, scale=scales[name])
        differences.append(compare(name, value, expected[name], result_format(precision), tolerance))
        if given is None and float(expected[name].abs().max() if elements else 0.0) >= scales[name]:
            bound = tolerance.atol + tolerance.rtol * scales[name]
            errors.append(spread_error(name, value, expected[name], bound))
    return differences, errors


def _scales(expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the magnitude by which each tensor is measured: its largest.

    A gradient that cancels to noise (a bias before a batch norm) is measured by the largest gradient, of whose errors
    it is made.
    """
    own = {name: float(v.abs().nan_to_num(0.0, posinf=0.0).max()) if v.numel() else 0.0 for name, v in expected.items()}
    largest = max((scale for name, scale in own.items() if name.startswith("gradient")), default=0.0)
    return {
        name: largest if name.startswith("gradient") and scale < NOISE * largest else scale
        for name, scale in own.items()
    }


def _verdict(differences: Sequence[Difference], errors: Sequence[SpreadError], precision: Precision) -> tuple[str, str]:
    """Return the verdict and why: of values that are not finite, then of the tolerance, then of the spread."""
    lost = next((d for d in differences if not d.passed and not math.isfinite(d.error)), None)
    if lost is not None:
        return "NONFINITE", f"the {lost.name} is inf or NaN where the wide run is finite"
    verdict, reason = verdict_without_training(errors, result_format(precision))
    outside = next((d for d in differences if not d.passed), None)
    if verdict not in FAILING and outside is not None:
        return "DEGRADED", f"the {outside.name} lies outside its tolerance"
    return verdict, reason if errors else "every tensor lies within the given tolerance"


def _run(
    module: nn.Module,
    x: Any,
    precision: Precision,
    seed: int,
    *,
    grad: bool,
    ledger: Ledger,
    rules: Mapping[str, Spec] | None = None,
    bounds: RunErrors | None = None,
) -> tuple[dict[str, Tensor], Trace]:
    """Run a copy of `module`; return outputs and gradients by name, and every operation's result."""
    is_wide = precision.is_native or not precision.format().fits_float32
    dtype = torch.float32 if precision.is_native or not is_wide else torch.float64
    model = copied_module(module, dtype)
    args, kwargs = _arguments(x, dtype)
    leaves = tree_leaves((args, kwargs))
    inputs = [v for v in leaves if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex())]
    for v in inputs:
        v.requires_grad_(grad)
    trace = Trace()
    if bounds is not None:
        bounds.watch(model)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
        torch.manual_seed(seed)
        see = None if bounds is None else bounds.see
        with simulate(model, precision, seed=seed, ledger=ledger, rules=rules, observer=trace.see, watcher=see) as run:
            outputs = floating_tensors(model(*args, **kwargs))
            if grad and any(output.requires_grad for output in outputs):
                _pull_back(outputs, seed)
    trace.run = run
    if not outputs:
        raise NormstabError("the module returned no floating-point tensor; there is nothing to compare")
    results = {f"output {i}" if len(outputs) > 1 else "output": v.detach() for i, v in enumerate(outputs)}
    if grad:
        results.update({f"gradient of input {i}": as_real(v.grad) for i, v in enumerate(inputs) if v.grad is not None})
        results.update({f"gradient of {n}": as_real(p.grad) for n, p in model.named_parameters() if p.grad is not None})
    return results, trace


def _arguments(x: Any, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments, floating tensors copied in `dtype`."""
    made = copied(x, dtype)
    if isinstance(made, Mapping):
        return (), dict(made)
    return (made if isinstance(made, tuple) else (made,)), {}


def _pull_back(outputs: list[Tensor], seed: int) -> None:
    """Back-propagate fixed N(0, 1) tensors."""
    generator = torch.Generator().manual_seed(seed)
    differentiable = [output for output in outputs if output.requires_grad]
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for v in differentiable]
    torch.autograd.backward(differentiable, cotangents)
