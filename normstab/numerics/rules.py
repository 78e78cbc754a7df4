"""Rules: which value - a precision, a norm - a module or an operation has, by the keys that a user writes.

The one resolver: simulate, scenarios, replace_norms_, headroom, remedies and reports ask it, so that a report
speaks of the machine that ran. It knows names, not modules: nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from normstab.errors import NormstabError, near
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import Precision
from normstab.numerics.spelling.names import check_name

__all__ = ["DEFAULT", "OUTSIDE", "Rules", "plain_operation", "precision_rules"]

DEFAULT = "_default"
"""The key of what no other rule names."""

OUTSIDE = "(outside)"
"""The name of the code outside every module; no module's name, so neither a pattern nor the root's rule meets it."""

PATTERN, OPERATION, BETWEEN = "re:", "op:", "::"

Value = TypeVar("Value")


@dataclass(frozen=True)
class RuleKey:
    """A key as its parts: a module's exact name or a pattern of names, and an operation; None where it has none."""

    text: str
    module: str | None = None
    pattern: re.Pattern[str] | None = None
    operation: str | None = None

    @classmethod
    def parse(cls, text: str) -> RuleKey:
        """Return the parts of `MODULE`, `re:PATTERN`, either with `::OPERATION`, or `op:OPERATION`."""
        if text.startswith(OPERATION):
            return cls(text, operation=_operation(text, text.removeprefix(OPERATION)))
        where, between, what = text.rpartition(BETWEEN) if BETWEEN in text else (text, "", "")
        operation = _operation(text, what) if between else None
        if not where.startswith(PATTERN):
            return cls(text, module=where, operation=operation)
        try:
            return cls(text, pattern=re.compile(where.removeprefix(PATTERN)), operation=operation)
        except (re.error, OverflowError, RecursionError) as reason:  # the others: a{10^20}, and brackets in brackets
            raise NormstabError(f"rules: {text!r} is no regular expression: {reason}") from None

    def names(self, module: str) -> bool:
        """Return whether the key is about the module of this name, by its own name and not by one around it."""
        if self.pattern is not None:
            return module != OUTSIDE and self.pattern.fullmatch(module) is not None
        return self.module is None or self.module == module


class Rules(Generic[Value]):
    """Values by rule, the most specific first.

    `MODULE::OPERATION`, `re:PATTERN::OPERATION`, `op:OPERATION`, the module's exact name, `re:PATTERN` (the whole
    name; of several the one written first), the nearest module around it that has a rule, `(outside)`, `_default`.
    """

    def __init__(self, rules: Mapping[str, Value], default: Value) -> None:
        self.default = rules.get(DEFAULT, default)
        self.by_key: Mapping[str, Value] = {DEFAULT: self.default, **rules}
        keys = [RuleKey.parse(text) for text in rules if text != DEFAULT]
        self._of_operations = sorted((key for key in keys if key.operation is not None), key=_generality)
        self._of_modules = sorted((key for key in keys if key.operation is None), key=_generality)
        self._keys_of_operations = {key.text for key in self._of_operations}
        self._found: dict[tuple[str, str | None], str] = {}

    def of(self, module: str, operation: str | None = None) -> Value:
        """Return the value of a module, or of one operation in it; "" is the root, `OUTSIDE` the code outside."""
        return self.by_key[self.key_for(module, operation)]

    def key_for(self, module: str, operation: str | None = None) -> str:
        """Return the key of the rule that decides; `_default` where none does."""
        asked = (module, operation)
        if asked not in self._found:
            self._found[asked] = next(self._deciding(module, operation), DEFAULT)
        return self._found[asked]

    def map(self, function: Callable[[Value], Value]) -> Rules[Value]:
        """Return the same rules with every value changed."""
        return Rules({key: function(value) for key, value in self.by_key.items()}, function(self.default))

    def of_operation(self, module: str, operation: str) -> Value | None:
        """Return the value of the rule about this very operation; None where the module's rule decides."""
        key = self.key_for(module, operation)
        return self.by_key[key] if key in self._keys_of_operations else None

    def meeting(self, module: str, operation: str) -> list[str]:
        """Return every key about an operation that meets this one of a module, whether it decides or not."""
        plain = plain_operation(operation)
        return [key.text for key in self._of_operations if key.operation == plain and key.names(module)]

    def operations(self) -> dict[str, str]:
        """Return the operation of every key that is about one."""
        return {key.text: key.operation for key in self._of_operations if key.operation is not None}

    def _deciding(self, module: str, operation: str | None) -> Iterator[str]:
        """Yield the keys that meet an operation of a module, the most specific first."""
        if operation is not None:
            yield from self.meeting(module, operation)
        for around in enclosing(module):
            yield from (key.text for key in self._of_modules if key.names(around))

    def values(self) -> list[Value]:
        """Return every value that may be used, the default first."""
        return list(self.by_key.values())

    @property
    def know_operations(self) -> bool:
        """Whether some rule is about an operation, so that a module alone does not decide."""
        return bool(self._of_operations)

    def check(self, modules: Collection[str], *, what: str = "the model has no module") -> None:
        """Raise NormstabError for a rule that meets none of `modules`, nor one inside of what it names.

        `what` begins the sentence on a name. Whether an operation exists is not known here.
        """
        names = {around for module in modules for around in enclosing(module)} | {OUTSIDE}
        for key in (*self._of_operations, *self._of_modules):
            if not any(key.names(name) for name in names):
                found = f"{what} {key.module!r}{near(key.module, modules)}" if key.module is not None else "no match"
                raise NormstabError(f"rules: {key.text!r}: {found} ({_listed(modules)})")


def precision_rules(
    rules: Mapping[str, str | Precision | AnyFormat] | None, precision: str | Precision | AnyFormat
) -> Rules[Precision]:
    """Return rules of precisions, parsed; `precision` is for what no rule names."""
    parsed = {check_name(key, "a rule's key"): Precision.parse(value) for key, value in (rules or {}).items()}
    return Rules(parsed, Precision.parse(precision))


def plain_operation(operation: str) -> str:
    """Return the name that a rule uses: no leading underscores, nor the suffix of a constant or of an addend."""
    return operation.lstrip("_").removesuffix(".const").removesuffix(".load")


def enclosing(module: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it, the nearest first, the root "" last."""
    yield module
    while module and module != OUTSIDE:
        module = module.rpartition(".")[0]
        yield module


def _generality(key: RuleKey) -> int:
    """Return 0 for a key with a module's name, 1 for a pattern, 2 for every module."""
    return 0 if key.module is not None else 1 if key.pattern is not None else 2


def _operation(text: str, name: str) -> str:
    """Return the operation in a key, or raise where there is none."""
    if not name:
        raise NormstabError(f"rules: {text!r} names no operation; a key is MODULE::OPERATION or op:OPERATION")
    return plain_operation(name)


def _listed(names: Collection[str], most: int = 12) -> str:
    """Return the names in a row, at most a dozen of them."""
    shown = [name or '""' for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "there are none"
