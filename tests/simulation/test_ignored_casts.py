"""A machine without a wide type: what the code casts changes nothing, and is counted where it stands."""

import pytest
import torch
from torch import nn

import normstab as ns


class Careful(nn.Module):
    """A norm that computes in float32 by intent, as those of language models do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return torch.softmax(h.type_as(x), -1, dtype=torch.float32).to(x.dtype)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Careful())


def test_every_cast_to_a_wider_type_is_counted_at_its_site() -> None:
    model = net()
    with ns.simulate(model, "uniform:fp16") as run:
        for _ in range(2):
            model(torch.randn(3, 4))
            torch.ones(2).double()
    # Casts back, `.to(x.dtype)` and `.type_as(x)`, ask for float32 too: that is the dtype which numbers have here.
    expected = {"1.to[forward]": 4, "1.type_as[forward]": 2, "1.softmax[forward]": 2, "(outside).double[forward]": 2}
    assert run.ignored_upcasts == expected
    sentence = next(note for note in run.notes if note.startswith("casts=ignore"))
    assert "10 casts" in sentence and "1.softmax[forward] (2)" in sentence
    assert sentence in run.report()


def test_what_is_a_cast_and_what_makes_a_tensor() -> None:
    with ns.simulate(net(), "uniform:fp16") as run:
        x = torch.ones(2)
        torch.zeros_like(x, dtype=torch.float64), x.new_ones(1, dtype=torch.float32)
        assert run.ignored_upcasts == {}
        torch.softmax(x, 0, torch.float32), x.to(tensor=torch.ones(1)), x.type("torch.DoubleTensor")
    assert run.ignored_upcasts == {f"(outside).{name}[forward]": 1 for name in ("softmax", "to", "type")}


@pytest.mark.parametrize("machine", ["fp16", "half", "amp-bf16", "native"])
def test_where_casts_mean_something_none_is_counted(machine: str) -> None:
    model = net()
    with ns.simulate(model, machine) as run:
        model(torch.randn(3, 4))
    assert run.ignored_upcasts == {} and not any("casts=ignore" in note for note in run.notes)


def test_counting_changes_no_result_and_ends_with_the_simulation() -> None:
    torch.manual_seed(0)
    model, x = net(), torch.randn(3, 4)
    with ns.simulate(model, "uniform:fp16") as run:
        y = model(x)
    with ns.simulate(model, "fp16;casts=ignore") as again:
        assert torch.equal(model(x), y)
    counted = dict(run.ignored_upcasts)
    torch.ones(2).float()
    model(x)
    assert run.ignored_upcasts == counted == again.ignored_upcasts


def test_simulations_that_end_out_of_order_leave_nothing_behind() -> None:
    outer, inner = ns.simulate(net(), "uniform:fp16"), ns.simulate(net(), "uniform:bf16")
    first = outer.__enter__()
    second = inner.__enter__()
    with pytest.raises(ns.NormstabError):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    torch.ones(2).float()
    assert first.ignored_upcasts == second.ignored_upcasts == {}
    assert torch.overrides._get_current_function_mode() is None
