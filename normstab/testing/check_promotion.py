"""`promote --check`: what has to stay wide in a model of one's own, by passes of `check` in place of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from normstab.assess.verdicts import Verdict
from normstab.norms.replace import replace_norms_
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import Precision
from normstab.search.promotion import Judged, Promotion, Search, Subject, promote_by
from normstab.testing.check import check
from normstab.testing.check_input import InputSpec
from normstab.testing.subject import subject_of

__all__ = ["promote_check"]


def promote_check(
    built: Any,
    *,
    inputs: Sequence[InputSpec] = (),
    precision: str | Precision | AnyFormat = "fp16",
    norm: str | None = None,
    seed: int = 0,
    search: Search | None = None,
) -> Promotion:
    """Return the minimal set that has to be wide for `check` to call what a factory built STABLE, on one input.

    One forward and one backward pass for each set, nothing is trained. The answer is checked again on an input (and
    random bits) of another seed; a batch that the factory gave stays. Raises NormstabError as `check` does, and where
    nothing has to be wide.
    """
    search = replace(search or Search(), fresh_seeds=1 if search is None else search.fresh_seeds)
    spec = Precision.parse(precision)
    module = subject_of(built, inputs, seed).module
    if norm is not None:
        replace_norms_(module, norm)
    oracle = _Passes(built, inputs, spec, type(module).__name__)
    modules = [] if search.by == "class" else [name for name, _ in module.named_modules() if name]
    return promote_by(oracle, Subject(spec, modules, [seed]), search)


@dataclass
class _Passes:
    """The oracle: `check` with the rules."""

    built: Any
    inputs: Sequence[InputSpec]
    precision: Precision
    name: str
    runs: int = 0
    forks: int = 0

    def judge(
        self, members: tuple[str, ...], rules: Mapping[str, str], seeds: Sequence[int], *, from_start: bool
    ) -> Judged:
        """Return the gravest verdict over the seeds; a pass has no start to begin from."""
        others = {name: rule for name, rule in rules.items() if name != "_default"}
        found = []
        for seed in seeds:
            precision = rules.get("_default", self.precision)
            found.append(check(self.built, inputs=self.inputs, precision=precision, seed=seed, rules=others or None))
            self.runs += 1
        worst = max(found, key=lambda answer: GRAVITY[answer.verdict])
        assert worst.evidence is not None, "check keeps its evidence"
        return Judged(Verdict[worst.verdict], worst.reason, worst.evidence)


# An undecided verdict is graver than a good one.
GRAVITY = {verdict.name: rank for rank, verdict in enumerate((Verdict.STABLE, Verdict.INCONCLUSIVE))} | {
    verdict.name: 2 + rank for rank, verdict in enumerate(v for v in Verdict if v.fails)
}
