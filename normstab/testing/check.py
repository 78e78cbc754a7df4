"""`check`: will this model survive this precision? An answer from one pass, or from a few training steps.

The model runs three times on one input: in fp64, in float32 with exponents recorded, and in the precision.
Copies run; the model that was built is left as it is. Rendering the answer is check_text's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from normstab.assess.causes.blame import Blame, blame, rate
from normstab.assess.causes.headroom import Headroom, headroom
from normstab.assess.causes.remedies import REMEDIES, Remedy
from normstab.assess.constants import constant
from normstab.assess.runs import Run
from normstab.errors import NormstabError
from normstab.norms.replace import replace_norms_
from normstab.numerics.bounds import Step
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import LOSSES, Ledger, Tally
from normstab.numerics.precision import Precision
from normstab.numerics.sums.kernels_of_sums import are_losses_cheap
from normstab.simulation import Run as Simulated
from normstab.simulation import record, simulate
from normstab.simulation.forecast import Forecast
from normstab.simulation.run import worst_site
from normstab.testing.check_input import InputSpec
from normstab.testing.check_record import BLAMED, as_run, norm_layers
from normstab.testing.check_run import Outcome, Training, run_plainly, run_subject
from normstab.testing.culprit import Culprit, Trace, find_culprit, own_offences
from normstab.testing.error_bounds.run_errors import RunErrors
from normstab.testing.output_verdict import (
    FAILING,
    SEVERITY,
    SpreadError,
    spread_error,
    unless_unsimulated,
    verdict_without_training,
)
from normstab.testing.subject import Subject, subject_of
from normstab.testing.tolerances import derive_tolerance, result_format

__all__ = ["SEVERITY", "Answer", "check"]

ONE_PASS = Training()
# Of each result in a trace this many elements are kept, so that a large network's fits into memory.
SAMPLED = 4096
# Training in the precision has left the reference when its last loss is this share above it (contract: 50 %).
LOSS_SHARE = 0.5


@dataclass(frozen=True)
class Answer:
    """What `check` found. `first` has the first site and step of each kind of offence, with the user's line of code.

    `own` names those of them that the float32 run has too: the network's own. `lost` has for every kind of precision
    lost the site where most of the results had it, how many, and of how many (0 for updates, which are no results).
    `error` is the largest error of an output and `allowed` the derived bound, as shares of its spread in fp64.
    `evidence` is the ledger as the record of a run.
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
    own: Sequence[str] = ()
    lost: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    evidence: Run | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        """Whether the verdict is milder than DEGRADED; INCONCLUSIVE passes."""
        return self.verdict not in FAILING


def check(
    built: Any,
    *,
    inputs: Sequence[InputSpec] = (),
    precision: str | Precision | AnyFormat = "fp16",
    norm: str | None = None,
    train_steps: int = 0,
    seed: int = 0,
    rules: Mapping[str, str | Precision | AnyFormat] | None = None,
    training: Training = ONE_PASS,
) -> Answer:
    """Return whether what a factory built survives `precision`.

    `built` is a module, or (module, batch, loss); `inputs` are made from `seed` when there is no batch. `norm` swaps
    the normalization layers first. One forward and backward pass is compared with fp64; with `train_steps` so many
    steps of `training` too. `rules` are `simulate`'s. Raises NormstabError for input that cannot be run.
    """
    spec = _rounding(precision)
    training = replace(training, steps=train_steps or training.steps)
    subject, replaced = _with_norm(subject_of(built, inputs, seed, training.loss), norm)
    run_plainly(subject, seed)
    return replace(_answered(subject, spec, seed, rules, training), replaced=replaced)


def _answered(
    subject: Subject,
    spec: Precision,
    seed: int,
    rules: Mapping[str, str | Precision | AnyFormat] | None,
    training: Training,
) -> Answer:
    """Return whether a subject survives a precision: its run there beside its run in fp64."""
    reference, wide_trace, why_not_float64 = _reference(subject, seed, training)
    run, found, trace, bounds = _narrow_run(subject, seed, training, spec, rules)
    ledger = run.ledger
    errors = _output_errors(spec, bounds.of_outputs(ledger, spec), reference, found)
    verdict, reason = unless_unsimulated(run, *_verdict(found, reference, errors, spec))
    own = own_offences(ledger, lambda wide: _wide_run(subject, seed, training, "fp32", torch.float32, wide))
    layers, is_finite = norm_layers(subject.module), found.nonfinite is None
    of_precision = as_run(ledger, spec, layers, found.losses, is_finite=is_finite, own=own)
    return Answer(
        verdict=verdict,
        reason=reason,
        precision=spec,
        error=max((error.share for error in errors), default=0.0),
        allowed=max((error.allowed for error in errors), default=0.0),
        losses=found.losses,
        reference_losses=reference.losses,
        blame=_blamed(of_precision, verdict, find_culprit(trace, wide_trace, ledger, own)),
        first=_first_offences(run),
        own=tuple(sorted({counter for counter, site in own if (f := run.first(counter)) and f.site == site})),
        lost=_lost(ledger),
        worst_sites=_worst_sites(ledger),
        headroom=headroom(of_precision),
        forecast=_forecasts(subject, seed),
        remedies=[remedy for offer in REMEDIES.values() if (remedy := offer(of_precision, spec)) is not None],
        unrecognised=dict(sorted(run.unrecognised.items())),
        notes=(*why_not_float64, *run.notes),
        evidence=of_precision,
    )


def _rounding(precision: str | Precision | AnyFormat) -> Precision:
    """Return the precision; raise NormstabError for one that rounds nothing."""
    spec = Precision.parse(precision)
    if spec.is_native:
        raise NormstabError("precision 'native' rounds nothing; name a format to check, such as fp16")
    return spec


def _with_norm(subject: Subject, norm: str | None) -> tuple[Subject, dict[str, str]]:
    """Return the subject with its normalization layers swapped, in a copy, and which were."""
    if norm is None:
        return subject, {}
    subject = replace(subject, module=copy.deepcopy(subject.module))
    replaced = replace_norms_(subject.module, norm).replaced
    if not replaced:
        raise NormstabError(f"--norm {norm}: the model has no normalization layer that can be replaced")
    return subject, replaced


def _output_errors(spec: Precision, steps: Sequence[Step], reference: Outcome, found: Outcome) -> list[SpreadError]:
    """Return how far each output lies from fp64's, with what the roundings of `steps` alone would leave."""
    elements = sum(x.numel() for x in reference.outputs)
    errors = []
    for i, (a, b) in enumerate(zip(found.outputs, reference.outputs, strict=True)):
        scale = float(b.abs().max()) if b.numel() else 0.0
        tolerance = derive_tolerance(spec, steps, elements=elements, scale=scale)
        name = "output" if len(reference.outputs) == 1 else f"output {i}"
        errors.append(spread_error(name, a, b, tolerance.atol))
    return errors


def _verdict(found: Outcome, reference: Outcome, errors: Sequence[SpreadError], spec: Precision) -> tuple[str, str]:
    """Return the gravest verdict that holds, and why."""
    if found.nonfinite:
        return "NONFINITE", f"{found.nonfinite} became inf or NaN in step {len(found.losses) - 1}; in fp64 it is finite"
    verdict, reason = verdict_without_training(errors, result_format(spec))
    start, end, wanted = found.losses[0], found.losses[-1], reference.losses[-1]
    has_left = wanted <= reference.losses[0] and (end > start or end > wanted * (1 + LOSS_SHARE))
    if verdict != "COLLAPSED" and len(found.losses) > 1 and has_left:
        return "DIVERGED", f"the loss went from {start:.4g} to {end:.4g}; in fp64 it ends at {wanted:.4g}"
    return verdict, reason


def _blamed(run: Run, verdict: str, culprit: Culprit) -> Blame | None:
    """Return what produced the first inf or NaN; for a large error, the site that made it; else the worst underflow.

    An underflow elsewhere is no answer to an error that the comparison with fp64 finds at another site.
    """
    counted = blame(run)
    if verdict not in FAILING or culprit.site is None:
        return counted
    if counted is not None and counted.counter != "underflow" and counted.site == str(culprit.site):
        return counted
    site = str(culprit.site)
    tally = run.totals.get(site, Tally())
    if rate(tally, "underflow") >= constant("flushed_share"):
        return Blame(site, 0, "underflow", tally.underflow, tally.count)
    return Blame(site, 0, "precision", 0, 0, str(culprit.seen) if culprit.seen else None)


def _first_offences(run: Simulated) -> dict[str, tuple[str, int, str]]:
    """Return the first site, step and line of code of each kind of offence."""
    return {
        counter: (str(first.site), first.step, run.sources.of(first.site) or "")
        for counter in BLAMED
        if (first := run.first(counter)) is not None
    }


def _lost(ledger: Ledger) -> dict[str, tuple[str, int, int]]:
    """Return for every kind of precision lost the site where most of the results had it."""
    found = {counter: worst_site(ledger, counter) for counter in LOSSES}
    return {
        counter: (str(worst[0]), getattr(worst[1], counter), 0 if counter == "lost_updates" else worst[1].count)
        for counter, worst in found.items()
        if worst is not None
    }


def _reference(subject: Subject, seed: int, training: Training) -> tuple[Outcome, Trace, tuple[str, ...]]:
    """Return the run in float64 and its trace; where code does not run so wide, or not finite, in float32, and why.

    A mask that code casts through float32, or experts whose weights it makes in float32, are no fault of the model's.
    """
    try:
        outcome, trace = _wide_run(subject, seed, training, "fp64", torch.float64)
        problem = f"{outcome.nonfinite} is not finite there" if outcome.nonfinite else ""
    except Exception as error:  # whatever code of a stranger raises
        problem = f"the model does not run there ({type(error).__name__}: {str(error).strip().splitlines()[0][:160]})"
    if not problem:
        return outcome, trace, ()
    outcome, trace = _wide_run(subject, seed, training, "fp32", torch.float32)
    if outcome.nonfinite:
        raise NormstabError(f"{outcome.nonfinite} is not finite even in float32: mend the model or its input first")
    return outcome, trace, (f"compared with float32, not with float64: {problem}",)


def _narrow_run(
    subject: Subject,
    seed: int,
    training: Training,
    spec: Precision,
    rules: Mapping[str, str | Precision | AnyFormat] | None,
) -> tuple[Simulated, Outcome, Trace, RunErrors]:
    """Return the simulation in the precision, what came of it, its trace, and the bounds of its operations."""
    ledger = Ledger(histogram=True, losses=are_losses_cheap(spec))
    narrow, trace, bounds = subject.copied(torch.float32), Trace(most=SAMPLED), RunErrors()
    bounds.watch(narrow.module)
    optimizer = training.optimizer_of(narrow.module)
    simulated = partial(simulate, narrow.module, spec, seed=seed, ledger=ledger, rules=rules)
    with simulated(optimizer=optimizer, observer=trace.see, watcher=bounds.see) as run:
        return run, run_subject(narrow, seed, training, optimizer), trace, bounds


def _wide_run(
    subject: Subject, seed: int, training: Training, format: str, dtype: torch.dtype, ledger: Ledger | None = None
) -> tuple[Outcome, Trace]:
    """Return the run in a wide format and its trace."""
    trace, wide = Trace(most=SAMPLED), subject.copied(dtype)
    optimizer = training.optimizer_of(wide.module)
    with simulate(wide.module, format, optimizer=optimizer, seed=seed, ledger=ledger, observer=trace.see):
        return run_subject(wide, seed, training, optimizer), trace


def _forecasts(subject: Subject, seed: int) -> list[Forecast]:
    """Return what a plain float32 pass foretells for every narrow preset."""
    plain = subject.copied(torch.float32)
    with record(plain.module) as log:
        run_subject(plain, seed, ONE_PASS)
    return list(log.forecast(all).values())


def _worst_sites(ledger: Ledger, most: int = 10) -> list[tuple[str, Tally]]:
    """Return the sites with the greatest share of results lost, overflow and NaN first, casts of constants last."""
    lost = []
    for site, tally in ledger.items():
        harmed = tally.overflow + tally.nan_produced + tally.underflow
        if harmed:
            is_grave, is_constant = tally.overflow + tally.nan_produced > 0, site.operation.endswith(".const")
            lost.append((is_constant, not is_grave, -harmed / tally.count, str(site), tally))
    return [(row[-2], row[-1]) for row in sorted(lost, key=lambda row: row[:4])[:most]]
