"""What float32 does too is the network's own; precision lost has a site; rules and recipes in tests."""

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.errors import NormstabError
from normstab.testing.assertions import assert_stable, check_stable
from normstab.testing.check import check
from normstab.testing.check_input import parse_inputs
from normstab.testing.check_text import answer_text


class LogOfZero(nn.Module):
    """An attention bias of log(0): minus infinity in every format, and meant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.log(torch.tril(torch.ones(8, 8)).to(x.dtype))
        return torch.softmax(self.linear(x) @ torch.eye(8).to(x.dtype) + bias, -1)


class Cancels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1000) - 1000


def test_a_pole_that_float32_has_too_takes_no_blame() -> None:
    answer = check(LogOfZero(), inputs=parse_inputs(["8x8"]), precision="half")
    assert answer.verdict == "STABLE" and answer.blame is None
    assert answer.own == ("divide_by_zero",)
    assert "divided by zero, in float32 too" in answer_text(answer)


def test_an_overflow_of_the_format_s_is_not_shared() -> None:
    class Squares(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 1000) ** 2

    answer = check(Squares(), inputs=parse_inputs(["4x4"]), precision="fp16")
    assert answer.own == () and answer.blame is not None and answer.blame.counter == "overflow"


def test_check_says_where_digits_were_lost() -> None:
    answer = check(Cancels(), inputs=parse_inputs(["64"]), precision="fp16")
    site, count, of = answer.lost["cancelled"]
    assert site == "sub[forward]" and count > 32 and of == 64
    assert "digits cancelled" in answer_text(answer, verbose=True)


def test_rules_and_recipes_in_assertions() -> None:
    x = torch.randn(64)
    with pytest.raises(AssertionError, match="DEGRADED"):
        assert_stable(Cancels(), x, precision="fp16")
    assert_stable(Cancels(), x, precision="fp16", rules={"_default": "fp32"})
    assert_stable(nn.Linear(8, 8), torch.randn(4, 8), recipe="amp-bf16")
    assert str(check_stable(nn.Linear(8, 8), torch.randn(4, 8), recipe="half").precision) == "half"
    with pytest.raises(NormstabError, match="recipe"):
        check_stable(nn.Linear(8, 8), torch.randn(4, 8), recipe="fp16")


@pytest.mark.parametrize(
    "machine", ["amp-bf16", "amp-fp16", "bfloat16", "fp8-rowwise", "mxfp8", "mxfp4", "nvfp4", "int8", "mxint8"]
)
def test_what_a_machine_s_own_roundings_leave_is_no_flaw(machine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    answer = check(model, inputs=parse_inputs(["16x32"]), precision=machine)
    # Of four bits an operand one pass cannot say; where it can, the machine is as good as its operands.
    coarse = ("fp8", "mxfp8", "mxfp4", "nvfp4")
    wanted = ("INCONCLUSIVE", "DEGRADED") if machine.startswith(coarse) else ("STABLE", "INCONCLUSIVE")
    assert answer.verdict in wanted, answer.reason
    assert answer.error <= max(answer.allowed, 0.1) or machine in ("mxfp4", "nvfp4"), answer.reason


def test_assertions_count_losses_by_default() -> None:
    assert check_stable(Cancels(), torch.randn(64), precision="fp16").ledger.counts_losses
    products = check_stable(nn.Linear(8, 8), torch.randn(4, 8), precision="fp16;matmul=fp16")
    assert not products.ledger.counts_losses  # minutes for what a kernel does in milliseconds
    assert ns.Tally().absorbed == 0
