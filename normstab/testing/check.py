"""`check`: will this model survive this precision? An answer from one pass, or from a few training steps.

The model runs three times on one input: in fp64, in float32 with exponents recorded, and in the precision.
Copies run; the model that was built is left as it is. Rendering the answer is check_text's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from normstab.assess.causes.blame import Blame, blame
from normstab.assess.causes.headroom import Headroom, headroom
from normstab.assess.causes.remedies import REMEDIES, Remedy
from normstab.assess.causes.whatif import predicted
from normstab.assess.runs import Run
from normstab.errors import NormstabError
from normstab.norms.replace import replace_norms_
from normstab.numerics.formats import FORMATS, AnyFormat
from normstab.numerics.ledger import Ledger, Tally
from normstab.numerics.precision import Precision
from normstab.simulation import Run as Simulated
from normstab.simulation import record, simulate
from normstab.testing.check_input import InputSpec
from normstab.testing.check_record import BLAMED, as_run, norm_layers
from normstab.testing.subject import Subject, floating_tensors, subject_of
from normstab.testing.tolerances import derive_tolerance

__all__ = ["SEVERITY", "Answer", "check"]

# Verdicts, the mildest first.
SEVERITY = ("STABLE", "DEGRADED", "DIVERGED", "COLLAPSED", "NONFINITE")
LEARNING_RATE = 0.01
# Training in the precision has left the reference when its last loss is this share above it (contract: 50 %).
LOSS_SHARE = 0.5


@dataclass(frozen=True)
class Forecast:
    """Of one preset: the shares of float32's results that it would overflow and flush, and the worst site."""

    format: str
    overflow: float
    underflow: float
    worst_site: str
    worst_share: float


@dataclass(frozen=True)
class Answer:
    """What `check` found. `first` has the first site and step of each kind of offence, with the user's line of code.

    `error` is the largest output error relative to the largest output in fp64, `allowed` the derived tolerance.
    """

    verdict: str
    reason: str
    precision: Precision
    error: float
    allowed: float
    losses: tuple[float, ...]
    reference_losses: tuple[float, ...]
    blame: Blame | None
    first: Mapping[str, tuple[str, int, str]]
    worst_sites: Sequence[tuple[str, Tally]]
    headroom: Sequence[Headroom]
    forecast: Sequence[Forecast]
    remedies: Sequence[Remedy]
    unrecognised: Mapping[str, int]
    notes: Sequence[str]
    replaced: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the verdict is no worse than DEGRADED."""
        return SEVERITY.index(self.verdict) <= SEVERITY.index("DEGRADED")


@dataclass(frozen=True)
class _Outcome:
    """One run of the subject: the first outputs, every loss, and whether anything was not finite, and what."""

    outputs: list[Tensor]
    losses: tuple[float, ...]
    nonfinite: str | None


def check(
    built: Any,
    *,
    inputs: Sequence[InputSpec] = (),
    precision: str | Precision | AnyFormat = "fp16",
    norm: str | None = None,
    train_steps: int = 0,
    seed: int = 0,
) -> Answer:
    """Return whether what a factory built survives `precision`.

    `built` is a module, or (module, batch, loss); `inputs` are made from `seed` when there is no batch. `norm`
    swaps the normalization layers first. Without `train_steps` one forward and backward pass is compared with
    fp64; with them that many SGD steps on the batch too. Raises NormstabError for input that cannot be run;
    what the arithmetic does to the numbers never raises.
    """
    spec = Precision.parse(precision)
    if spec.is_native:
        raise NormstabError("precision 'native' rounds nothing; name a format to check, such as fp16")
    subject, replaced = _with_norm(subject_of(built, inputs, seed), norm)
    steps = max(1, train_steps)
    reference = _run(subject.copied(torch.float64), seed, steps)
    recorded = _recorded(subject, seed)
    ledger, narrow = Ledger(histogram=True), subject.copied(torch.float32)
    optimizer = _optimizer(narrow.module)
    with simulate(narrow.module, spec, optimizer=optimizer, seed=seed, ledger=ledger) as run:
        found = _run(narrow, seed, steps, optimizer)
    scale = max((float(x.abs().max()) for x in reference.outputs if x.numel()), default=0.0)
    error = _Error(_largest_error(found.outputs, reference.outputs), _allowed(spec, ledger, reference, scale), scale)
    verdict, reason = _verdict(found, reference, error, str(spec.format()))
    of_precision = as_run(ledger, spec, norm_layers(narrow.module), found.losses, is_finite=found.nonfinite is None)
    return Answer(
        verdict=verdict,
        reason=reason,
        precision=spec,
        error=error.share,
        allowed=error.allowed_share,
        losses=found.losses,
        reference_losses=reference.losses,
        blame=blame(of_precision),
        first=_first_offences(run),
        worst_sites=_worst_sites(ledger),
        headroom=headroom(of_precision),
        forecast=[_forecast(recorded, name) for name in FORMATS if name not in ("fp64", "fp32")],
        remedies=[remedy for offer in REMEDIES.values() if (remedy := offer(of_precision, spec)) is not None],
        unrecognised=dict(sorted(run.unrecognised.items())),
        notes=tuple(run.notes),
        replaced=replaced,
    )


@dataclass(frozen=True)
class _Error:
    """The largest output error, what rounding alone allows, and the largest output, by which both are scaled."""

    largest: float
    allowed: float
    scale: float

    @property
    def share(self) -> float:
        """The error relative to the largest output."""
        return self.largest / self.scale if self.scale else self.largest

    @property
    def allowed_share(self) -> float:
        """The allowance relative to the largest output."""
        return self.allowed / self.scale if self.scale else self.allowed


def _with_norm(subject: Subject, norm: str | None) -> tuple[Subject, dict[str, str]]:
    """Return the subject with its normalization layers swapped, in a copy, and which were."""
    if norm is None:
        return subject, {}
    subject = replace(subject, module=copy.deepcopy(subject.module))
    replaced = replace_norms_(subject.module, norm).replaced
    if not replaced:
        raise NormstabError(f"--norm {norm}: the model has no normalization layer that can be replaced")
    return subject, replaced


def _allowed(spec: Precision, ledger: Ledger, reference: _Outcome, scale: float) -> float:
    """Return the largest output error that roundings which behave like chance would leave."""
    calls = sum(1 for site in ledger if site.direction == "forward")
    elements = sum(x.numel() for x in reference.outputs)
    tolerance = derive_tolerance(spec, roundings=calls, elements=elements, scale=scale)
    return tolerance.atol + tolerance.rtol * scale


def _first_offences(run: Simulated) -> dict[str, tuple[str, int, str]]:
    """Return the first site, step and line of code of each kind of offence."""
    return {
        counter: (str(first.site), first.step, run.sources.of(first.site) or "")
        for counter in BLAMED
        if (first := run.first(counter)) is not None
    }


def _optimizer(module: nn.Module) -> torch.optim.Optimizer | None:
    """Return plain SGD on the parameters that take part, or None where there are none."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=LEARNING_RATE) if trained else None


def _run(subject: Subject, seed: int, steps: int, optimizer: torch.optim.Optimizer | None = None) -> _Outcome:
    """Run forward and backward, and the optimizer between steps; stop at the first loss that is not finite."""
    optimizer = optimizer if optimizer is not None else _optimizer(subject.module)
    outputs: list[Tensor] = []
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            output, loss = subject.forward()
            if step == 0:
                outputs = [x.detach().double().clone() for x in floating_tensors(output)]
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                return _Outcome(outputs, tuple(losses), "the loss")
            if loss.requires_grad:
                loss.backward()
            gradients = [p.grad for p in subject.module.parameters() if p.grad is not None]
            if not all(bool(g.isfinite().all()) for g in gradients):
                return _Outcome(outputs, tuple(losses), "a gradient")
            if optimizer is not None and steps > 1:
                optimizer.step()
                optimizer.zero_grad()
    is_finite = all(bool(x.isfinite().all()) for x in outputs)
    return _Outcome(outputs, tuple(losses), None if is_finite else "an output")


def _recorded(subject: Subject, seed: int) -> Run:
    """Return a plain float32 pass with the exponents of every result."""
    plain = subject.copied(torch.float32)
    with record(plain.module) as log:
        outcome = _run(plain, seed, 1)
    return as_run(log.ledger, Precision.parse("fp32"), norm_layers(plain.module), outcome.losses)


def _forecast(recorded: Run, name: str) -> Forecast:
    """Return what the exponents of a plain run foretell for one preset."""
    over = under = total = 0.0
    worst, worst_share = "", 0.0
    for site, tally in recorded.totals.items():
        if tally.histogram is None or not tally.histogram.finite_nonzero:
            continue
        n = tally.histogram.finite_nonzero
        lost = predicted(tally.histogram, FORMATS[name])
        over, under, total = over + n * lost[0], under + n * lost[1], total + n
        if sum(lost) > worst_share:
            worst, worst_share = site, sum(lost)
    return Forecast(name, over / max(total, 1.0), under / max(total, 1.0), worst, worst_share)


def _largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of the outputs; infinite where one is not finite and the other is."""
    largest = 0.0
    for a, b in zip(found, expected, strict=True):
        difference = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(math.inf, posinf=math.inf)
        largest = max(largest, float(difference.max())) if difference.numel() else largest
    return largest


def _verdict(found: _Outcome, reference: _Outcome, error: _Error, name: str) -> tuple[str, str]:
    """Return the gravest verdict that holds, and why."""
    if reference.nonfinite:
        raise NormstabError(f"{reference.nonfinite} is not finite even in fp64: mend the model or its input first")
    if found.nonfinite:
        return "NONFINITE", f"{found.nonfinite} became inf or NaN in step {len(found.losses) - 1}; in fp64 it is finite"
    for a, b in zip(found.outputs, reference.outputs, strict=True):
        if a.numel() > 1 and bool((a == a.flatten()[0]).all()) and not bool((b == b.flatten()[0]).all()):
            return "COLLAPSED", f"the output is constant in {name} and is not in fp64"
    start, end, wanted = found.losses[0], found.losses[-1], reference.losses[-1]
    if len(found.losses) > 1 and wanted <= reference.losses[0] and (end > start or end > wanted * (1 + LOSS_SHARE)):
        return "DIVERGED", f"the loss went from {start:.4g} to {end:.4g}; in fp64 it ends at {wanted:.4g}"
    text = f"the largest output error is {error.share:.2%} of the largest output"
    if error.largest > error.allowed:
        return "DEGRADED", f"{text}; rounding alone allows {error.allowed_share:.2%}"
    return "STABLE", f"{text}, within the {error.allowed_share:.2%} of rounding"


def _worst_sites(ledger: Ledger, most: int = 10) -> list[tuple[str, Tally]]:
    """Return the sites with the greatest share of results lost to overflow, NaN or underflow."""
    lost = []
    for site, tally in ledger.items():
        harmed = tally.overflow + tally.nan_produced + tally.underflow
        if harmed:
            lost.append((-(tally.overflow + tally.nan_produced > 0), -harmed / tally.count, str(site), tally))
    return [(name, tally) for _, _, name, tally in sorted(lost, key=lambda row: row[:3])[:most]]
