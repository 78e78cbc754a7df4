"""Nested tuples, lists and dictionaries, mapped and flattened: what stands for torch's own where it is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["leaves", "mapped", "mapped_only"]


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a nested structure of tuples, lists and dictionaries with `function` of its leaves."""
    if isinstance(tree, dict):
        return {name: mapped(function, x) for name, x in tree.items()}
    if isinstance(tree, list | tuple):
        made = [mapped(function, x) for x in tree]
        return getattr(type(tree), "_make", type(tree))(made)
    return function(tree)


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of a nested structure, in order."""
    found: list[Any] = []
    mapped(found.append, tree)
    return found


def mapped_only(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a nested structure with `function` of those leaves that are of a type."""
    return mapped(lambda x: function(x) if isinstance(x, kind) else x, tree)
