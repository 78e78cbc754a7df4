"""A precision per module, by name: exact name, then `re:` pattern, then the module around it, then `_default`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from normstab.errors import NormstabError
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import OPERANDS, Precision

__all__ = ["Rules"]

DEFAULT = "_default"
PATTERN = "re:"


class Rules:
    """Which precision a module has. Source of the order: torchao's FqnToConfig.

    A rule for `layer1` also holds for `layer1.0.conv1` unless a rule names that. `_default` replaces the
    precision of everything that no rule names.
    """

    def __init__(
        self, rules: Mapping[str, str | Precision | AnyFormat] | None, precision: str | Precision | AnyFormat
    ) -> None:
        rules = dict(rules or {})
        self.default = Precision.parse(rules.pop(DEFAULT, precision))
        self._exact: dict[str, Precision] = {}
        self._patterns: list[tuple[re.Pattern[str], Precision]] = []
        for name, value in rules.items():
            if name.startswith(PATTERN):
                self._patterns.append((_compiled(name), Precision.parse(value)))
            else:
                self._exact[name] = Precision.parse(value)
        self._used: set[str] = set()
        for each in self.precisions():
            _refuse_what_is_not_simulated(each)

    def of(self, name: str) -> Precision:
        """Return the precision of the module called `name`."""
        while name:
            if name in self._exact:
                return self._exact[name]
            for pattern, precision in self._patterns:
                if pattern.fullmatch(name):
                    return precision
            name = name.rpartition(".")[0]
        return self._exact.get("", self.default)

    def precisions(self) -> set[Precision]:
        """Return every precision that may be used."""
        return {self.default, *self._exact.values(), *(precision for _, precision in self._patterns)}

    def check(self, names: set[str]) -> None:
        """Raise NormstabError for a rule whose exact name is no module's."""
        from normstab.errors import near

        for name in self._exact:
            if name and name not in names:
                raise NormstabError(f"rules: the model has no module {name!r}{near(name, names)}")


def _refuse_what_is_not_simulated(precision: Precision) -> None:
    """Raise for the first key that asks for what a simulation does not do, rather than pass over it."""
    for key, usual in (("norm", "each"), ("master", "on"), ("autocast", "none"), ("collective", None)):
        if getattr(precision, key) != usual:
            raise NormstabError(f"precision {precision}: {key}={getattr(precision, key)} is not simulated")
    for key in OPERANDS:
        if (found := getattr(precision, key.replace(".", "_"))) is not None:
            raise NormstabError(f"precision {precision}: {key}={found} is not simulated")


def _compiled(name: str) -> re.Pattern[str]:
    """Return the pattern of a `re:` rule."""
    try:
        return re.compile(name.removeprefix(PATTERN))
    except re.error as reason:
        raise NormstabError(f"rules: {name!r} is no regular expression: {reason}") from None
