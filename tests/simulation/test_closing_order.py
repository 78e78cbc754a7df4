"""A simulation that is over passes everything through, also where contexts are closed in another order than opened."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode

from normstab.errors import NormstabError
from normstab.norms.replace import replace_norms_
from normstab.simulation import record, simulate

THIRD = torch.full((4,), 1.0 / 3.0)
OUT_OF_ORDER = "closed out of order"


def is_plain() -> bool:
    """Whether nothing rounds, and nothing is left on torch's stack of modes."""
    return torch.equal(THIRD + THIRD, torch.full((4,), 2.0 / 3.0)) and not _get_current_dispatch_mode_stack()


def coarse(model: nn.Module | None = None) -> AbstractContextManager[object]:
    return simulate(nn.Linear(2, 2) if model is None else model, "uniform:e4m3fn")


OPENINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "simulate": coarse,
    "record": lambda: record(nn.Linear(2, 2)),
    "native": lambda: simulate(nn.Linear(2, 2), "native"),
    "a mode of torch": lambda: FlopCounterMode(display=False),
}


@pytest.mark.parametrize("inner", OPENINGS)
@pytest.mark.parametrize("outer", ["simulate", "record"])
def test_closing_the_outer_context_first_raises_and_leaves_nothing(outer: str, inner: str) -> None:
    first, second = OPENINGS[outer](), OPENINGS[inner]()
    first.__enter__()
    second.__enter__()
    if inner == "native":  # it has no mode of its own: there is no order to break
        first.__exit__(None, None, None)
    else:
        with pytest.raises(NormstabError, match=OUT_OF_ORDER):
            first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert is_plain()


def test_the_inner_context_goes_on_until_it_is_closed() -> None:
    first, second = coarse(), simulate(nn.Linear(2, 2), "uniform:e5m2")
    first.__enter__()
    second.__enter__()
    with pytest.raises(NormstabError, match=OUT_OF_ORDER):
        first.__exit__(None, None, None)
    assert torch.equal(THIRD + THIRD, torch.full((4,), 0.625))
    second.__exit__(None, None, None)
    assert is_plain()


def test_of_three_the_middle_may_go_first_without_waking_the_outermost() -> None:
    contexts = [simulate(nn.Linear(2, 2), f"uniform:{name}") for name in ("e4m3fn", "e5m2", "fp16")]
    for context in contexts:
        context.__enter__()
    with pytest.raises(NormstabError, match=OUT_OF_ORDER):
        contexts[1].__exit__(None, None, None)
    assert torch.equal(THIRD + THIRD, torch.full((4,), 2.0 / 3.0).half().float())
    contexts[2].__exit__(None, None, None)
    assert torch.equal(THIRD + THIRD, torch.full((4,), 0.6875))
    contexts[0].__exit__(None, None, None)
    assert is_plain()


def test_generators_that_interleave_raise_and_leave_nothing() -> None:
    def steps() -> Iterator[None]:
        with coarse():
            yield

    first, second = steps(), steps()
    next(first)
    next(second)
    with pytest.raises(NormstabError, match=OUT_OF_ORDER):
        next(first)
    second.close()
    assert is_plain()


def test_tasks_that_interleave_raise_and_leave_nothing() -> None:
    async def work(turns: int) -> None:
        with coarse():
            for _ in range(turns):
                await asyncio.sleep(0)

    async def both() -> list[BaseException | None]:
        return await asyncio.gather(work(1), work(3), return_exceptions=True)

    found = asyncio.run(both())
    assert [type(problem) for problem in found] == [NormstabError, type(None)]
    assert is_plain()


def test_a_context_closed_in_another_thread_raises_and_passes_everything_here() -> None:
    context = coarse()
    context.__enter__()
    problems: list[BaseException] = []

    def close() -> None:
        try:
            context.__exit__(None, None, None)
        except NormstabError as problem:
            problems.append(problem)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert [OUT_OF_ORDER in str(problem) for problem in problems] == [True]
    assert torch.equal(THIRD + THIRD, torch.full((4,), 2.0 / 3.0))
    with coarse():
        pass
    assert is_plain(), "the next simulation in this thread takes the old mode off the stack"


def test_norm_layers_are_as_before_after_contexts_closed_out_of_order() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    replace_norms_(model, "l2")
    before = model[1].arithmetic
    first, second = simulate(model, "uniform:e4m3fn"), simulate(model, "uniform:fp16")
    first.__enter__()
    second.__enter__()
    inner = model[1].arithmetic
    with pytest.raises(NormstabError, match=OUT_OF_ORDER):
        first.__exit__(None, None, None)
    assert model[1].arithmetic is inner
    second.__exit__(None, None, None)
    assert model[1].arithmetic is before
    assert is_plain()


def test_an_exception_of_the_block_is_not_replaced() -> None:
    first, second = coarse(), coarse()
    first.__enter__()
    second.__enter__()
    error = KeyError("the user's")
    assert not first.__exit__(KeyError, error, None)
    second.__exit__(None, None, None)
    assert is_plain()
