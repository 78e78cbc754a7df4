"""The smallest set that still does it: QuickXplain over ranked candidates, then one by one.

It knows nothing of networks: `suffices` says whether a set of names does. Every answer is asked for once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Asked", "Found", "OutOfBudget", "minimal_set"]

Members = tuple[str, ...]


class OutOfBudget(Exception):
    """Raised by `suffices` when nothing more may be asked; the search ends with the best set so far."""


@dataclass(frozen=True)
class Asked:
    """A set that was tried, and whether it sufficed."""

    members: Members
    suffices: bool


@dataclass(frozen=True)
class Found:
    """The result of a search. `members` is None where not even all candidates together suffice, or none was found yet.

    `is_minimal`: every member has been dropped by itself, and each time the rest did not suffice. `asked` has
    every set that was tried, in order. `is_complete` is False where the budget ended first.
    """

    members: Members | None
    is_minimal: bool
    asked: tuple[Asked, ...]
    is_complete: bool


def minimal_set(candidates: Sequence[str], suffices: Callable[[Members], bool]) -> Found:
    """Return a subset of `candidates` (the likeliest first) that suffices, and of which no member can be dropped.

    Prefixes of 1, 2, 4 ... candidates are tried until one suffices: with a good ranking that costs log k
    questions. Within the prefix QuickXplain finds a set of k members in about 2 k log2(n / k) + 2 k questions. It
    assumes that a larger set is never worse; the last pass does not: it drops each member by itself and asks
    again, so that minimality is shown, not assumed.
    Source: Junker, "QuickXplain: preferred explanations and relaxations for over-constrained problems", AAAI 2004.
    """
    questions = _Questions(tuple(dict.fromkeys(candidates)), suffices)
    try:
        prefix = questions.sufficient_prefix()
        if prefix is None:
            return Found(None, False, questions.asked, True)
        members = questions.in_order(questions.explain((), False, prefix))
        members = questions.without_dispensable(members, prefix)
    except OutOfBudget:
        return Found(questions.best(), False, questions.asked, False)
    return Found(members, True, questions.asked, True)


class _Questions:
    """The questions asked so far, with their answers."""

    def __init__(self, candidates: Members, suffices: Callable[[Members], bool]) -> None:
        self._candidates, self._suffices = candidates, suffices
        self._answers: dict[Members, bool] = {}

    @property
    def asked(self) -> tuple[Asked, ...]:
        """Every set that was tried, in order."""
        return tuple(Asked(members, answer) for members, answer in self._answers.items())

    def in_order(self, members: Members) -> Members:
        """Return the members in the candidates' order."""
        return tuple(name for name in self._candidates if name in members)

    def ask(self, members: Members) -> bool:
        """Return whether the set suffices; a set is tried once."""
        wanted = self.in_order(members)
        if wanted not in self._answers:
            self._answers[wanted] = self._suffices(wanted)
        return self._answers[wanted]

    def best(self) -> Members | None:
        """Return the smallest set that was seen to suffice, or None."""
        return min((members for members, answer in self._answers.items() if answer), key=len, default=None)

    def sufficient_prefix(self) -> Members | None:
        """Return the first of the prefixes of 0, 1, 2, 4 ... candidates that suffices; None where not even all do."""
        size = 0
        while not self.ask(self._candidates[:size]):
            if size >= len(self._candidates):
                return None
            size = max(1, 2 * size)
        return self._candidates[:size]

    def explain(self, kept: Members, has_grown: bool, open_: Members) -> Members:
        """Return the members of `open_` that are needed beside `kept`, given that all of them together suffice."""
        if has_grown and self.ask(kept):
            return ()
        if len(open_) <= 1:
            return open_
        middle = len(open_) // 2
        first, second = open_[:middle], open_[middle:]
        needed_second = self.explain((*kept, *first), True, second)
        needed_first = self.explain((*kept, *needed_second), bool(needed_second), first)
        return (*needed_first, *needed_second)

    def without_dispensable(self, members: Members, fallback: Members) -> Members:
        """Return `members` less those that can be dropped, one by one, until each that is left has proved needed.

        Where a larger set was worse than a smaller one, QuickXplain's answer may not suffice by itself: then the
        members of `fallback`, which does, are dropped one by one instead.
        """
        kept = members if self.ask(members) else fallback
        is_changed = True
        while is_changed:
            is_changed = False
            for name in reversed(kept):  # the least likely first
                rest = tuple(other for other in kept if other != name)
                if self.ask(rest):
                    kept, is_changed = rest, True
        return kept
