"""Every operation in torch's own database of operations (`op_db`), forward and backward, against torch.

In fp32 nothing is lost, so the values are torch's own; in fp16 what torch computes in half is computed. Its samples
have the shapes, strides, options and special cases that torch is tested with.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import normstab as ns

SHARDS, SAMPLES, MOST_FAILURES = 12, 6, 20
# Of each value and of the greatest: torch sums in float32, in its own order; we in float64, with one rounding.
TOLERANCE = 1e-4
# Their result is whatever lay in memory.
UNINITIALISED = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "resize_")


class Calls(nn.Module):
    """A module that calls an operation."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.operation(*args, **kwargs)


class Outcome(NamedTuple):
    """The tensors that an operation returned, and the gradients of its inputs."""

    results: list[Tensor]
    gradients: list[Tensor | None]


def operations() -> list[Any]:
    """Return torch's database, without what has no result to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    return [x for x in module.op_db if torch.float32 in x.supported_dtypes("cpu") and x.name not in UNINITIALISED]


def samples(operation: Any, most: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], bool]]:
    """Yield arguments, named ones, and whether gradients are asked for."""
    with_gradient = operation.supports_autograd and torch.float32 in operation.supported_backward_dtypes("cpu")
    for sample in islice(operation.sample_inputs("cpu", torch.float32, requires_grad=with_gradient), most):
        yield (sample.input, *sample.args), sample.kwargs, with_gradient


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def run(operation: Any, args: Any, kwargs: Any, precision: str | None, *, backward: bool) -> Outcome:
    """Run an operation on copies of its arguments, plain or simulated; "half": in torch's own float16."""
    dtype = torch.float16 if precision == "half" else None

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        y = x.detach().clone()
        return (y.to(dtype) if dtype is not None and y.is_floating_point() else y).requires_grad_(x.requires_grad)

    args, kwargs = pytree.tree_map(copied, (args, kwargs))
    torch.manual_seed(0)
    model = Calls(operation)
    if precision in (None, "half"):
        results = _call(model, args, kwargs, backward=backward)
    else:
        assert precision is not None
        with ns.simulate(model, precision):
            results = _call(model, args, kwargs, backward=backward)
    return Outcome(results, [x.grad for x in tensors((args, kwargs)) if x.requires_grad])


def _call(model: Calls, args: Any, kwargs: Any, *, backward: bool) -> list[Tensor]:
    results = tensors(model(*args, **kwargs))
    wanted = [x for x in results if x.requires_grad and x.is_floating_point()] if backward else []
    if wanted:
        sum((x.float() if x.layout == torch.strided else x.to_dense().float()).sum() for x in wanted).backward()
    return [x.detach() for x in results]


def differs(found: Tensor | None, expected: Tensor | None) -> str:
    """Return how a result is another one, or nothing."""
    if found is None or expected is None:
        return "" if found is expected else f"{found} for {expected}"
    if found.layout != torch.strided or expected.layout != torch.strided:
        return "" if found.layout == expected.layout else f"layout {found.layout} for {expected.layout}"
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{tuple(found.shape)} {found.dtype} for {tuple(expected.shape)} {expected.dtype}"
    if not (found.is_floating_point() or found.is_complex()):
        return "" if torch.equal(found, expected) else "other whole numbers"
    finite = expected[expected.isfinite()].abs()
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    if torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        return ""
    at = int((found - expected).abs().nan_to_num(torch.inf).argmax())
    return f"{found.flatten()[at].item()} for {expected.flatten()[at].item()}"


def failures(operation: Any, most: int) -> Iterator[str]:
    """Yield what is wrong with an operation."""
    for args, kwargs, backward in samples(operation, most):
        try:
            expected = run(operation, args, kwargs, None, backward=backward)
            again = run(operation, args, kwargs, None, backward=backward)
        except Exception:
            continue  # torch itself refuses: its samples are for several checks
        for precision in ("fp32", "fp16"):
            try:
                found = run(operation, args, kwargs, precision, backward=backward)
            except Exception as error:
                if precision == "fp32" or _computes_in_half(operation, args, kwargs, backward=backward):
                    yield f"{precision}: {type(error).__name__}: {error!s:.150}"
                continue
            if precision == "fp32":
                yield from _wrong(found, expected, again)


def _wrong(found: Outcome, expected: Outcome, again: Outcome) -> Iterator[str]:
    """Yield what differs, of results that torch itself repeats."""
    for name in Outcome._fields:
        ours, torchs, repeated = (getattr(outcome, name) for outcome in (found, expected, again))
        if len(ours) != len(torchs):
            yield f"{len(ours)} {name} for {len(torchs)}"
        for i, (a, b, c) in enumerate(zip(ours, torchs, repeated, strict=False)):
            if not differs(c, b) and (how := differs(a, b)):
                yield f"fp32: {name}[{i}]: {how}"


def _computes_in_half(operation: Any, args: Any, kwargs: Any, *, backward: bool) -> bool:
    """Whether torch computes an operation, and its gradient, in float16."""
    try:
        run(operation, args, kwargs, "half", backward=backward)
    except Exception:
        return False
    return True


def report(chosen: list[Any], most: int) -> list[str]:
    """Return what is wrong with some operations, one line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            f"{operation.name}.{operation.variant_test_name}: {failure}"
            for operation in chosen
            for failure in islice(failures(operation, most), 2)
        ]


@pytest.mark.nightly
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_operation_of_torch_is_computed_as_torch_does(shard: int) -> None:
    found = report(operations()[shard::SHARDS], SAMPLES)
    assert not found, "\n".join(found[:MOST_FAILURES])


def test_some_operations_of_torch_are_computed_as_torch_does() -> None:
    """A short form of the one above, of a fixed draw; those that once went wrong are always in it."""
    everything = operations()
    once_wrong = {"norm", "native_layer_norm", "native_group_norm", "native_batch_norm", "sparse.mm", "cdist"}
    chosen = random.Random(14).sample(everything, 24) + [x for x in everything if x.name in once_wrong]
    found = report(chosen, 1)
    assert not found, "\n".join(found[:MOST_FAILURES])
