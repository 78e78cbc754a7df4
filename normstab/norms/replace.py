"""Swap the norm of the normalization layers of anyone's network, in place, by rules.

A layer keeps its parameters, buffers, hooks, state_dict keys and `isinstance`: only its class changes, to a
subclass of what it was (as torch.nn.utils.parametrize does). A layer whose own forward does more than
normalize (an activation, a permutation) keeps that forward; the call of torch's functional norm inside it is
what is swapped. What cannot be swapped safely is left, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from normstab.errors import NormstabError
from normstab.norms import modules
from normstab.norms.catalogue import NormSpec, parse_norm
from normstab.norms.foreign import recognise, with_mixin
from normstab.numerics.rules import DEFAULT, Rules
from normstab.numerics.spelling.arguments import check_instance

__all__ = ["Replacement", "replace_norms_"]

REPLACED_BY: dict[type[nn.Module], type[modules.Normalizing]] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.InstanceNorm1d: modules.InstanceNorm1d,
    nn.InstanceNorm2d: modules.InstanceNorm2d,
    nn.InstanceNorm3d: modules.InstanceNorm3d,
    nn.LayerNorm: modules.LayerNorm,
    nn.GroupNorm: modules.GroupNorm,
    nn.RMSNorm: modules.RMSNorm,
}


@dataclass(frozen=True)
class Replacement:
    """What `replace_norms_` did: the norm of each layer it replaced, and why it left each other one."""

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {norm}" for name, norm in self.replaced.items()]
        return "\n".join(lines + [f"{name}: left, {reason}" for name, reason in self.left.items()])


def replace_norms_(
    model: nn.Module, to: str | NormSpec | Mapping[str, str | NormSpec | None], *, norm_constant: float = 1.0
) -> Replacement:
    """Give the normalization layers of `model` the norm `to`, in place; return what was replaced and what left.

    `to` is a norm, or rules {name: norm}: the exact dotted name of a layer wins, then the first "re:" pattern
    that matches the whole name, then the nearest module around it with a rule, then "_default"; None leaves a
    layer as it is. Values are untouched:
    the running statistics of a trained l2 net still hold variances, which another norm's evaluation would
    take for scales, so train on, or pass data with momentum None, before evaluating.

    Raises NormstabError for an unknown norm, and for an exact name or a pattern that meets no such layer.
    """
    check_instance(model, nn.Module, "replace_norms_: model", "a torch.nn.Module")
    wanted = to if isinstance(to, Mapping) else {DEFAULT: to}
    norms = {rule: None if norm is None else parse_norm(norm) for rule, norm in wanted.items()}
    layers = {name: layer for name, layer in model.named_modules() if is_norm(layer)}
    rules = norm_rules(norms, layers)
    result = Replacement()
    for name, layer in layers.items():
        rule = rules.key_for(name)
        spec = rules.of(name)
        if spec is None:
            result.left[name] = f"rule {rule!r} says so" if rule in norms else "no rule names it"
        elif reason := replace_layer_(layer, spec, norm_constant):
            result.left[name] = reason
        else:
            result.replaced[name] = str(spec)
    return result


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is one of torch's norms or ours, or says in its class's name that it is a norm."""
    return isinstance(layer, (modules.Normalizing, nn.SyncBatchNorm, *REPLACED_BY)) or (
        "Norm" in type(layer).__name__ and not any(True for _ in layer.children())
    )


def norm_rules(norms: Mapping[str, NormSpec | None], layers: Collection[str]) -> Rules[NormSpec | None]:
    """Return the rules; raise for one that meets no layer, which is a misspelling, and for one of an operation."""
    rules = Rules(norms, None)
    if rules.know_operations:
        raise NormstabError(f"a norm is of a whole layer, so its rule names no operation: {', '.join(norms)}")
    rules.check(layers, what="no normalization layer is called")
    return rules


def replace_layer_(layer: nn.Module, spec: NormSpec, norm_constant: float) -> str | None:
    """Give one layer the norm, or return why it is left as it is."""
    factor = norm_constant if spec.has_constant else 1.0
    if not isinstance(layer, modules.Normalizing):
        if isinstance(layer, nn.SyncBatchNorm):
            return "its statistics are shared between processes"
        if any(parameter.is_meta for parameter in layer.parameters()):
            return "its parameters are on the meta device"
        ours = REPLACED_BY.get(type(layer))
        if ours is None:
            found = recognise(layer)
            if isinstance(found, str):
                return found
            ours = with_mixin(found, type(layer))
        layer.__class__ = ours
    assert isinstance(layer, modules.Normalizing)
    layer.set_norm(spec, factor)
    return None
