"""Expectations: what a scenario's `expect:` says, and whether the runs met it, missed it, or do not tell.

One function and one row of FORMS for each form; the numbers come from METRICS, the thresholds from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from normstab.assess.expected.contrast import EVERY, contrast, judge_contrast
from normstab.assess.expected.evidence import absent_evidence
from normstab.assess.expected.group_selection import contexts, paired_runs, selected
from normstab.assess.expected.hard_failures import decided_by_failures
from normstab.assess.expected.outcome import Finding, Outcome, all_of, any_of
from normstab.assess.expected.statements import point_text, statement_of
from normstab.assess.judgement import GroupJudgement, judge_group
from normstab.assess.points import point_words
from normstab.assess.runs import Group
from normstab.assess.swept import SWEPT
from normstab.assess.verdicts import Verdict
from normstab.experiment.scenario.expectation import (
    AnyExpectation,
    BoundExpectation,
    Expectation,
    IdenticalExpectation,
    OrderExpectation,
    RecoveryExpectation,
    VerdictExpectation,
    WithinExpectation,
)
from normstab.experiment.scenario.spec import Cell

__all__ = ["FORMS", "ExpectationResult", "Findings", "judge_expectation"]


@dataclass(frozen=True)
class Findings:
    """What expectations are judged by: the judged groups of trained runs, and the groups of swept ones.

    `cells` are those of the grid as resolved, where it is known; of these `missing` have no record.
    """

    judged: Sequence[GroupJudgement]
    swept: Sequence[Group] = ()
    cells: Sequence[Cell] = ()
    missing: frozenset[str] = frozenset()

    def groups(self, metric: str = "") -> list[Group]:
        """Return the groups that have `metric`: swept ones for a metric of sweeps, else trained ones."""
        return list(self.swept) if metric in SWEPT else [found.group for found in self.judged]

    def judgement(self, group: Group) -> GroupJudgement:
        """Return what was judged of a trained group; one of some of its seeds is judged here."""
        return self._by_group.get(id(group)) or judge_group(group)

    @cached_property
    def _by_group(self) -> Mapping[int, GroupJudgement]:
        """The judgements by the identity of their group, all of which are kept here."""
        return {id(found.group): found for found in self.judged}


@dataclass(frozen=True)
class ExpectationResult:
    """An expectation, what it says in words, and what was found."""

    expectation: Expectation
    statement: str
    finding: Finding

    @property
    def outcome(self) -> Outcome:
        """Whether it is met."""
        return self.finding.outcome

    @property
    def claim(self) -> str | None:
        """The id of the claim it tests."""
        return self.expectation.claim


def judge_expectation(expectation: Expectation, found: Findings, *, only_smoke: bool = False) -> ExpectationResult:
    """Return whether `expectation` holds; with `only_smoke`, those not marked so are not evaluated."""
    if only_smoke and not expectation.smoke:
        finding = Finding(Outcome.NOT_EVALUATED, "not judged in the smoke form; run without --smoke")
    else:
        finding = _finding(expectation, found)
    return ExpectationResult(expectation, statement_of(expectation), finding)


def _finding(expectation: Any, found: Findings) -> Finding:
    """Return what one expectation of any form finds; one of `any` looks for the evidence of each part."""
    if not isinstance(expectation, AnyExpectation):
        absent = absent_evidence(expectation, found.cells, found.missing)
        if absent is not None:
            return absent
    finding: Finding = FORMS[type(expectation)](expectation, found)
    return finding


def judge_verdicts(expectation: VerdictExpectation, found: Findings) -> Finding:
    """Return whether every selected cell has an allowed verdict.

    A gap that spans the tolerance is STABLE or DEGRADED, so it meets an expectation that allows both.
    """
    groups = selected(found.groups(), expectation.where)
    findings = [_verdicts_of(found.judgement(group), expectation.verdicts) for group in groups]
    return all_of([finding for group in findings for finding in group])


def _verdicts_of(group: GroupJudgement, allowed: Sequence[str]) -> list[Finding]:
    """Return one finding for each verdict among the seeds of a group, with the reason of its first seed."""
    findings = []
    for verdict in dict.fromkeys(cell.verdict for cell in group.cells):
        alike = [cell for cell in group.cells if cell.verdict is verdict]
        is_open = verdict is Verdict.INCONCLUSIVE
        is_either = is_open and group.gap is not None and {"STABLE", "DEGRADED"} <= set(allowed)
        outcome = Outcome.INCONCLUSIVE if is_open else Outcome.NOT_MET
        if is_either or str(verdict) in allowed:
            outcome = Outcome.MET
        seeds = "1 seed" if len(group.cells) == 1 else f"{len(alike)} of {len(group.cells)} seeds"
        reason = f"{point_words(group.coordinates)}: {verdict} ({seeds}), {alike[0].reason}"
        findings.append(Finding(outcome, reason, f"{verdict} ({seeds})"))
    return findings


def judge_bound(expectation: BoundExpectation, found: Findings) -> Finding:
    """Return whether the metric of every selected group, pooled over seeds, lies within the bounds."""
    low, high = expectation.at_least, expectation.at_most
    findings = []
    for group in selected(found.groups(expectation.metric), expectation.where):
        must_end_well = (low if EVERY[expectation.metric].more_is_better else high) is not None
        sides: tuple[list[Group], list[Group]] = ([group], []) if must_end_well else ([], [group])
        failed = decided_by_failures(expectation.metric, *sides, expectation.at)
        measured = contrast([group], [1.0], expectation.metric, expectation.at)
        findings.append(failed or judge_contrast(measured, low, high, point_words(group.coordinates)))
    return all_of(findings)


def judge_order(expectation: OrderExpectation, found: Findings) -> Finding:
    """Return whether the better side leads the worse one by the amount, in every context.

    The lead is better minus worse, or worse minus better for a metric of which less is better. A relative amount
    is a share of the worse side.
    """
    sign = 1.0 if EVERY[expectation.metric].more_is_better else -1.0
    is_relative = expectation.by.unit == "%"
    kept = 1.0 + sign * expectation.by.amount if is_relative else 1.0
    findings = []
    for pair in contexts(found.groups(expectation.metric), expectation.where, [expectation.better, expectation.worse]):
        failed = decided_by_failures(expectation.metric, pair[:1], pair[1:], expectation.at)
        if failed is not None:
            findings.append(failed)
            continue
        measured = contrast(pair, [sign, -sign * kept], expectation.metric, expectation.at)
        lead = contrast(pair, [sign, -sign], expectation.metric, expectation.at)
        subject = f"{_against(expectation.better, expectation.worse, pair[0])}, lead"
        finding = judge_contrast(measured, 0.0 if is_relative else expectation.by.amount, None, subject)
        findings.append(finding if not is_relative else _with_lead(finding, lead))
    return all_of(findings)


def _against(better: Mapping[str, Any], worse: Mapping[str, Any], context: Group) -> str:
    """Return the two sides, and the coordinates they share, in words."""
    shared = {axis: value for axis, value in context.coordinates.items() if axis not in {**better, **worse}}
    return f"{point_text(better)} over {point_text(worse)}" + (f" at {point_words(shared)}" if shared else "")


def _with_lead(finding: Finding, lead: Any) -> Finding:
    """Return a finding on a relative lead with the plain lead beside it."""
    plain = f"{lead.estimate:.3g}" if lead.values else "none"
    return Finding(finding.outcome, f"{finding.reason} beyond the wanted share (plain lead {plain})", plain)


def judge_within(expectation: WithinExpectation, found: Findings) -> Finding:
    """Return whether the metric is equivalent, within the tolerance, to the reference's or to that of other cells."""
    findings = []
    for pair in _pairs_within(expectation, found.groups(expectation.metric)):
        failed = decided_by_failures(expectation.metric, pair, [], expectation.at)
        if failed is not None:
            findings.append(failed)
            continue
        subject = f"{point_words(pair[0].coordinates)}, difference"
        amount = expectation.within.amount
        if expectation.within.unit != "%":
            measured = contrast(pair, [1.0, -1.0], expectation.metric, expectation.at)
            findings.append(judge_contrast(measured, -amount, amount, subject))
            continue
        above = contrast(pair, [1.0, amount - 1.0], expectation.metric, expectation.at)
        below = contrast(pair, [-1.0, 1.0 + amount], expectation.metric, expectation.at)
        findings += [judge_contrast(side, 0.0, None, f"{subject} to the bound") for side in (above, below)]
    return all_of(findings)


def _pairs_within(expectation: WithinExpectation, groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Return the groups to compare, each with its reference or with the group that differs as `of` says."""
    if isinstance(expectation.of, Mapping):
        own = {axis: value for axis, value in expectation.where.items() if axis in expectation.of}
        rest = {axis: value for axis, value in expectation.where.items() if axis not in expectation.of}
        return contexts(groups, rest, [own, expectation.of])
    by_run = {run.id: group for group in groups for run in group.runs}
    pairs: list[tuple[Group, ...]] = []
    for group in selected(groups, expectation.where):
        wide = next(iter(group.pairs.values()), None)
        if wide is not None and wide.id in by_run:
            pairs.append((group, by_run[wide.id]))
    return pairs


def judge_recovery(expectation: RecoveryExpectation, found: Findings) -> Finding:
    """Return whether the recovered side regains the share of the gap from low to high.

    Low and high are numbers, worse or better: decay may be told by the training loss that it adds. Judged only where
    the gap exceeds twice its standard error. Where the high side died there is nothing to regain; where the low side
    did, a side that stayed finite regained it.
    """
    share, findings = expectation.at_least, []
    sides = [expectation.recovered, expectation.low, expectation.high]
    for trio in contexts(found.groups(expectation.metric), expectation.where, sides):
        failed = decided_by_failures(expectation.metric, (trio[0], trio[2]), trio[1:2], expectation.at)
        if failed is not None:
            findings.append(failed)
            continue
        gap = contrast(trio[1:], [-1.0, 1.0], expectation.metric, expectation.at)
        error = gap.standard_error
        if not gap.values or error is None or gap.estimate <= 2.0 * error:
            shown = "unknown" if not gap.values or error is None else f"{gap.estimate:.3g} +- {error:.2g}"
            reason = f"the gap to recover is {shown}, not above twice its standard error; more seeds or a larger form"
            findings.append(Finding(Outcome.INCONCLUSIVE, reason, shown))
            continue
        measured = contrast(trio, [1.0, share - 1.0, -share], expectation.metric, expectation.at)
        regained = contrast(trio[:2], [1.0, -1.0], expectation.metric, expectation.at)
        text = f"{100 * regained.estimate / gap.estimate:.0f} % of {gap.estimate:.3g}"
        finding = judge_contrast(measured, 0.0, None, f"regained {text}; beyond the wanted share")
        findings.append(Finding(finding.outcome, finding.reason, text))
    return all_of(findings)


def judge_identical(expectation: IdenticalExpectation, found: Findings) -> Finding:
    """Return whether the paired cells end with the same bits: weights, channel norms and predictions."""
    findings = []
    for pair in contexts(found.groups(), expectation.where, expectation.identical):
        for a, b in paired_runs(pair):
            differing = [name for name, same in _same_bits(a.record, b.record).items() if not same]
            outcome = Outcome.NOT_MET if differing else Outcome.MET
            what = f"differ in {', '.join(differing)}" if differing else "are equal bit for bit"
            findings.append(Finding(outcome, f"{a.id} and {b.id} {what}", what))
    return all_of(findings)


def _same_bits(a: Any, b: Any) -> dict[str, bool]:
    """Return, per part of two records that tells of the final weights, whether it is the same."""
    same = {"predictions": a.predictions == b.predictions and bool(a.predictions.labels)}
    if a.weights_sha256 is not None and b.weights_sha256 is not None:
        same["weights"] = a.weights_sha256 == b.weights_sha256
    if a.epochs and b.epochs:
        same["channel norms"] = a.epochs[-1].weight_norms == b.epochs[-1].weight_norms
        same["test loss"] = a.epochs[-1].test_loss == b.epochs[-1].test_loss
    return same


def judge_any(expectation: AnyExpectation, found: Findings) -> Finding:
    """Return whether at least one of the listed expectations is met; those outside the grid do not count."""
    findings = [_finding(inner, found) for inner in expectation.any]
    evaluated = [finding for finding in findings if finding.outcome is not Outcome.NOT_EVALUATED]
    return any_of(evaluated) if evaluated else findings[0]


FORMS: dict[type[Any], Callable[[Any, Findings], Finding]] = {
    VerdictExpectation: judge_verdicts,
    BoundExpectation: judge_bound,
    OrderExpectation: judge_order,
    WithinExpectation: judge_within,
    RecoveryExpectation: judge_recovery,
    IdenticalExpectation: judge_identical,
    AnyExpectation: judge_any,
}
"""How each form of an expectation is judged."""
