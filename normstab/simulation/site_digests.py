"""Digests: what each operation of one pass returned, told in a few numbers, so that two passes can be compared later.

A digest is plain data: the shape, a hash of all the bytes, a mean, a root mean square, and some elements.
Tensors are not kept.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normstab.norms.modules import Normalizing
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Site
from normstab.numerics.precision import Precision
from normstab.simulation.around.compilation import named_modules
from normstab.simulation.simulate import simulate
from normstab.torch_private import modes_off

__all__ = ["Digest", "digests_of"]

KEPT = 256  # elements of a result that a stored digest holds, at most


@dataclass(frozen=True)
class Digest:
    """The `call`-th result of a site. `sample` holds some elements, float64, in base64 (see `elements`)."""

    site: str
    call: int
    shape: tuple[int, ...]
    nonfinite: int
    mean: float
    rms: float
    sha256: str
    sample: str

    @property
    def elements(self) -> NDArray[np.float64]:
        """The sampled elements."""
        return np.frombuffer(base64.b64decode(self.sample), dtype="<f8")

    def to_json(self) -> dict[str, Any]:
        """Return the digest as JSON data."""
        return {**asdict(self), "shape": list(self.shape)}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Digest:
        """Return the digest that `to_json` made."""
        return Digest(**{**plain, "shape": tuple(plain["shape"])})


def digests_of(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    precision: str | Precision | AnyFormat,
    *,
    rules: Mapping[str, Any] | None = None,
    seed: int = 0,
    expand: bool = False,
    most: int = KEPT,
    notes: list[str] | None = None,
) -> list[Digest]:
    """Return the digests of what `run(model)` computes, in order, forward and backward, in `precision`.

    `native` is float32 throughout. Of each result at most `most` elements are sampled. What the simulation notes is
    added to `notes`. Layers written against an
    Arithmetic show their output, and the gradient of their input, at `norm`.
    """
    spec = Precision.parse(precision)
    seen = _Seen(most)
    hooks = [
        layer.register_forward_hook(seen.around(name))
        for name, layer in named_modules(model)
        if isinstance(layer, Normalizing)
    ]
    try:
        inside = Precision.parse("fp32") if spec.is_native else spec
        with simulate(model, inside, seed=seed, rules=rules, expand=expand, observer=seen.see) as done:
            run(model)
        if notes is not None:
            notes += done.notes
    finally:
        for hook in hooks:
            hook.remove()
    return seen.digests


class _Seen:
    """The digests of what an observer was shown."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.digests: list[Digest] = []
        self._calls: Counter[Site] = Counter()

    def around(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Return the forward hook of a norm layer that the simulation does not look into."""

        def see(layer: nn.Module, args: Any, output: Tensor) -> None:
            self.see(Site(name, "norm", "forward"), output)
            if args[0].requires_grad:
                args[0].register_hook(lambda gradient: self.see(Site(name, "norm", "backward"), gradient))

        return see

    def see(self, site: Site, result: Tensor) -> None:
        """Digest one result."""
        with torch.no_grad(), modes_off():
            flat = result.detach().double().cpu().reshape(-1).contiguous()
            finite = flat[flat.isfinite()]
            self.digests.append(
                Digest(
                    str(site),
                    self._calls[site],
                    tuple(result.shape),
                    flat.numel() - finite.numel(),
                    float(finite.mean()) if finite.numel() else 0.0,
                    float(finite.square().mean().sqrt()) if finite.numel() else 0.0,
                    hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16],
                    base64.b64encode(flat[_places(flat.numel(), self.most)].numpy().astype("<f8").tobytes()).decode(),
                )
            )
        self._calls[site] += 1


@cache
def _places(n: int, most: int) -> Tensor:
    """Return which of n elements are kept: one from each of `most` stretches, never in step with a row's length."""
    if n <= most:
        return torch.arange(n)
    stretch = torch.arange(most)
    return stretch * n // most + stretch * 40503 % (n // most)
