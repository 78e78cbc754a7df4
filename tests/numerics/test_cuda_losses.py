"""What additions lose is counted by the CUDA kernels as the reference counts it, and no bit changes by that.

As in test_cuda_kernels they run on a GPU, or else in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the oracle's own module imports

import triton.language as tl

import normstab as ns
from normstab.numerics.kernels.cuda.losses import cuda_losses
from normstab.numerics.kernels.cuda.sums import ordered_kernel, products_kernel, sum_launches
from normstab.numerics.kernels.cuda.sums.ordered_cells import MOST_STEPS
from normstab.numerics.kernels.cuda.sums.ordered_steps import How
from normstab.numerics.sums import kernels_of_sums
from tests.numerics.test_accumulate_kernels import wild
from tests.numerics.test_cuda_kernels import DEVICE, IS_INTERPRETED, needs_device
from tests.numerics.test_cuda_sums import IN_32, check_compiled, check_sum, kernels, run_interpreted  # noqa: F401
from tests.numerics.test_losses import COUNTED_ALIKE, SPECIAL

KINDS = ("sums", "matmul", "welford", "losses")
# By day: in 32 and in 64 bits, corrections, fused, Welford's.
CHOSEN = (0, 3, 6, 8, 12, 15)


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["not every", pytest.param("every", marks=pytest.mark.nightly)])
def test_losses_equal_the_reference_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


def counted(precision, device):
    """The bits of sums, means, products, additions and differences, and all that is counted of them."""
    torch.manual_seed(1)
    x = torch.randn(3, 2, 9) * 2.0 ** torch.randint(-20, 20, (3, 2, 9)).float()
    x[2].flatten()[: len(SPECIAL)] = torch.tensor(SPECIAL)
    x[0, 0, 1], w = -x[0, 0, 0], torch.randn(9, 2)
    x, w = x.to(device), w.to(device)
    ledger = ns.Ledger(losses=True, inexact=True)
    ar = ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=3))
    results = [ar.sum(x, (0, 2)), ar.mean(x, 1), ar.matmul(x, w), ar.add(x, x.flip(0)), ar.sub(x.mT, x[:1].mT)]
    results += [ar.add(x.double(), 1e-3), ar.sub(-0.5, x[:, :1]), ar.add(x[..., ::2], x[..., ::2].half())]
    results += [ar.sub(x, x, operation="itself"), ar.add(x, -x, out=torch.empty(3, 9, 2, device=device).mT)]
    bits = [r.double().cpu().view(torch.int64).tolist() for r in results]
    firsts = [ledger.first(name) for name in ("absorbed", "cancelled")]
    return bits, {site: pickle.loads(pickle.dumps(tally)) for site, tally in ledger.items()}, firsts


def assert_counted_alike(precision, monkeypatch):
    if IS_INTERPRETED:
        for what in KINDS:
            monkeypatch.setitem(kernels_of_sums.KERNELS, ("cpu", what), kernels_of_sums.KERNELS["cuda", what])
    served, own = [], cuda_losses.count_losses
    monkeypatch.setattr(cuda_losses, "count_losses", lambda *given: served.append(own(*given)) or served[-1])
    with np.errstate(all="ignore"):
        found = counted(precision, DEVICE)
    assert len(served) > 5 and all(served)
    monkeypatch.setattr(kernels_of_sums, "COUNTING_LOSSES", [])
    monkeypatch.delitem(kernels_of_sums.KERNELS, ("cpu", "losses"))
    assert found == counted(precision, "cpu")
    assert sum(tally.absorbed for tally in found[1].values()) and sum(t.cancelled for t in found[1].values())


@needs_device
@pytest.mark.parametrize("i", CHOSEN)
def test_what_additions_lose_is_counted_as_by_the_reference(i, monkeypatch):
    assert_counted_alike(COUNTED_ALIKE[i], monkeypatch)


@needs_device
@pytest.mark.parametrize("i", sorted(set(range(len(COUNTED_ALIKE))) - set(CHOSEN)))
def test_every_precision_counts_losses_as_the_reference_does(i, monkeypatch):
    assert_counted_alike(COUNTED_ALIKE[i], monkeypatch)


@needs_device
@pytest.mark.parametrize(
    "accumulation", ["nearest/bf16", "nearest/fp16", "toward-zero/tf32", "nearest/e8m14", "up/q7.8"]
)
def test_cancellation_at_the_ends_of_float32_is_told(accumulation):
    a, n = wild(2, 600, share=0.5), 600
    near = (a.view(torch.int32) + torch.randint(-3, 4, (2, n)).int()).view(torch.float32)
    tiny = torch.randint(-40, 40, (2, n)).int().view(torch.float32)
    x = torch.stack([torch.cat([a, tiny], 1), torch.cat([-near, tiny.flip(1)], 1)])
    check_sum(x, 0, f"{accumulation}:lanes2", losses=True, inexact=True)


@needs_device
def test_partial_sums_of_tiles_and_passes_lose_what_one_does(monkeypatch):
    for name in ("CHAINS", "FEW_CHAINS", "JOINED"):
        monkeypatch.setattr(sum_launches, name, 8)
    for accumulation in ("nearest/fp16:blocked3", "nearest/fp16:lanes4", "stochastic/fp16:pairwise"):
        check_sum(wild(2, 11) * 10, 1, accumulation, losses=True)


@needs_device
def test_every_long_sum_of_kahans_settles_its_cells_in_time():
    x = torch.ones(2, 400)
    x[0, 3] = torch.nan  # from where on every correction has a NaN: three events for each addend
    check_sum(x, 1, "nearest/fp16:sequential+kahan", losses=True)


def test_cells_have_room_for_three_corrections_of_each_addend():
    kahan, plain = (ordered_kernel.most_steps.fn(tl.constexpr(how)).value for how in (How.KAHAN, 0))
    assert 0 < 3 * kahan <= MOST_STEPS == plain < 2**10


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize(
    ("kernel", "how", "width"),
    [
        (ordered_kernel.ordered_kernel, IN_32 | How.LOADS | How.LOSES, 1),
        pytest.param(ordered_kernel.ordered_kernel, IN_32 | How.WHOLE | How.LOSES, 64, marks=pytest.mark.nightly),
        pytest.param(
            products_kernel.products_kernel,
            IN_32 | How.LOADS | How.FUSED | How.LOSES,
            1,
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_sums_that_count_losses_compile_without_fused_operations_or_spills(kernel, how, width, tmp_path, monkeypatch):
    check_compiled(kernel, how, width, 90, tmp_path, monkeypatch)
