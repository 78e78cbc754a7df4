"""Inside simulate and record torch's float32 products are float32, and afterwards the switches are as they were."""

import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest
import torch
from torch import nn

from normstab import record, simulate
from normstab.simulation.full_float32 import SWITCHES, _read, _write
from normstab.torch_private import switches_free

OPENED = {"simulate": lambda model: simulate(model, "fp16"), "native": lambda model: simulate(model, "native")}
OPENED["record"] = record


def states():
    return [_read(place, name) for place, name, _ in SWITCHES]


@pytest.fixture(params=["as torch has it", "by the older switches", "by the newer", "medium"])
def switched(request):
    """The process as its user left it, in each of torch's ways to say so."""
    before = states()
    with switches_free():  # another test may have read torch's database of operations, which freezes them
        torch.backends.cudnn.allow_tf32 = True
        if request.param == "by the older switches":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        elif request.param == "by the newer" and hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        elif request.param == "medium":
            torch.set_float32_matmul_precision("medium")
    yield states()
    _write(before, before)
    assert states() == before


def is_full():
    """Whether no switch allows less than float32; what torch cannot say is said by another switch."""
    return all(found in (None, wanted) for found, (*_, wanted) in zip(states(), SWITCHES, strict=True))


@pytest.mark.parametrize("opened", OPENED)
def test_tf32_is_off_inside_and_as_it_was_afterwards(opened, switched):
    model = nn.Linear(2, 2)
    with OPENED[opened](model):
        model(torch.ones(1, 2)).sum().backward()
        assert is_full() and not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert states() == switched and not is_full()


@pytest.mark.parametrize("opened", OPENED)
def test_the_switches_are_turned_back_after_an_exception(opened, switched):
    with suppress(ZeroDivisionError), OPENED[opened](nn.Linear(2, 2)):
        raise ZeroDivisionError
    assert states() == switched


def test_a_refused_simulation_leaves_the_switches(switched):
    with suppress(Exception), simulate(nn.Linear(2, 2), "fp16", rules={"nowhere": "fp32"}):
        pass
    assert states() == switched


def test_the_last_to_close_turns_them_back_in_whatever_order(switched):
    first, second = ExitStack(), ExitStack()
    first.enter_context(record(nn.Linear(2, 2)))
    second.enter_context(record(nn.Linear(2, 2)))
    with suppress(Exception):  # which says that the order is wrong
        first.close()
    assert is_full()
    second.close()
    assert states() == switched


def test_switches_that_were_frozen_are_turned_all_the_same():
    code = """
import torch
import normstab as ns
from normstab.experiment.records.machine import settled
before = torch.backends.cudnn.allow_tf32
torch.backends.disable_global_flags()
with ns.simulate(torch.nn.Identity(), "fp16"):
    assert not torch.backends.cudnn.allow_tf32
with settled("cpu", 1, seed=0):
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32
assert not torch.backends.cudnn.deterministic
assert torch.backends.cudnn.allow_tf32 == before and torch.backends.flags_frozen()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
