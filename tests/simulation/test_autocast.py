"""Autocast by CUDA's lists: against the header that they are from, and against the CPU's own half where lists agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normstab as ns
from normstab.simulation.aten import autocast_lists as lists

RECIPES = {"amp-fp16": torch.float16, "amp-bf16": torch.bfloat16}
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
x, v = torch.linspace(0.125, 0.5, 16).reshape(4, 4), torch.linspace(0.5, 2.0, 4)
image, volume = x.reshape(1, 1, 4, 4), torch.ones(1, 1, 2, 2, 2)
labels = torch.tensor([0, 1, 2, 3])

# Calls of operations on CUDA's lists, by list; each is given tensors of the 16-bit type and, where it says so, float32.
LOWER = {
    "conv1d": lambda h: torch.conv1d(x[None], x[None]),
    "conv2d": lambda h: torch.conv2d(image, image),
    "conv3d": lambda h: torch.conv3d(volume, volume),
    "conv_tbc": lambda h: torch.conv_tbc(x[None], x[None], v),
    "conv_transpose1d": lambda h: torch.conv_transpose1d(x[None], x[:, :, None]),
    "conv_transpose2d": lambda h: torch.conv_transpose2d(image, image),
    "conv_transpose3d": lambda h: torch.conv_transpose3d(volume, volume),
    "convolution": lambda h: torch.convolution(image, image, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    "prelu": lambda h: torch.prelu(x, v[:1]),
    "addmm": lambda h: torch.addmm(x, x, x),
    "addmv": lambda h: torch.addmv(v, x, v),
    "addr": lambda h: torch.addr(x, v, v),
    "matmul": lambda h: x @ h,
    "einsum": lambda h: torch.einsum("ij,jk->ik", x, x),
    "mm": lambda h: torch.mm(h, x),
    "mv": lambda h: torch.mv(x, v),
    "linalg_vecdot": lambda h: torch.linalg.vecdot(x, x),
    "linear": lambda h: F.linear(x, x, v),
    "addbmm": lambda h: torch.addbmm(x, x[None], x[None]),
    "baddbmm": lambda h: torch.baddbmm(x[None], x[None], x[None]),
    "bmm": lambda h: torch.bmm(x[None], x[None]),
    "chain_matmul": lambda h: torch.chain_matmul(x, x, x),
    "linalg_multi_dot": lambda h: torch.linalg.multi_dot([x, x, x]),
    "gru_cell": lambda h: torch.gru_cell(x, x, torch.ones(12, 4), torch.ones(12, 4)),
    "lstm_cell": lambda h: torch.lstm_cell(x, [x, x], torch.ones(16, 4), torch.ones(16, 4))[0],
    "rnn_tanh_cell": lambda h: torch.rnn_tanh_cell(x, x, x, x),
    "rnn_relu_cell": lambda h: torch.rnn_relu_cell(x, x, x, x),
    "scaled_dot_product_attention": lambda h: F.scaled_dot_product_attention(image, image, image),
}
FLOAT32 = {
    **{
        name: lambda h, name=name: getattr(torch, name)(h)
        for name in [
            "acos",
            "asin",
            "cosh",
            "erfinv",
            "exp",
            "expm1",
            "log",
            "log10",
            "log2",
            "log1p",
            "reciprocal",
            "rsqrt",
            "sinh",
            "tan",
        ]
    },
    "pow.Tensor_Scalar": lambda h: h**3,
    "pow.Tensor_Tensor": lambda h: h**h,
    "pow.Scalar": lambda h: 2**h,
    "softplus": F.softplus,
    "layer_norm": lambda h: F.layer_norm(h, (4,)),
    "native_layer_norm": lambda h: torch.native_layer_norm(h, (4,), None, None, 1e-5)[0],
    "rms_norm": lambda h: F.rms_norm(h, (4,)),
    "group_norm": lambda h: F.group_norm(h, 2),
    "frobenius_norm.dim": lambda h: torch.ops.aten.frobenius_norm.dim(h, [0, 1]),
    "nuclear_norm": lambda h: torch.ops.aten.nuclear_norm(h),
    "cosine_similarity": lambda h: torch.cosine_similarity(h, h),
    "poisson_nll_loss": lambda h: F.poisson_nll_loss(h, h),
    "cosine_embedding_loss": lambda h: F.cosine_embedding_loss(h, h, torch.ones(4)),
    "nll_loss": lambda h: F.nll_loss(h, labels),
    "hinge_embedding_loss": lambda h: F.hinge_embedding_loss(h, torch.ones_like(h)),
    "kl_div": lambda h: F.kl_div(h, h, reduction="sum"),
    "l1_loss": lambda h: F.l1_loss(h, x),
    "smooth_l1_loss": lambda h: F.smooth_l1_loss(h, x),
    "huber_loss": lambda h: F.huber_loss(h, x),
    "mse_loss": lambda h: F.mse_loss(h, x),
    "margin_ranking_loss": lambda h: F.margin_ranking_loss(h, h, x),
    "multilabel_margin_loss": lambda h: F.multilabel_margin_loss(h, labels.repeat(4, 1)),
    "soft_margin_loss": lambda h: F.soft_margin_loss(h, x),
    "triplet_margin_loss": lambda h: F.triplet_margin_loss(h, h, h),
    "multi_margin_loss": lambda h: F.multi_margin_loss(h, labels),
    "binary_cross_entropy_with_logits": lambda h: F.binary_cross_entropy_with_logits(h, h),
    "dist": lambda h: torch.dist(h, h),
    "pdist": F.pdist,
    "cdist": lambda h: torch.cdist(h, h),
    "renorm": lambda h: torch.renorm(h, 2, 0, 1.0),
    "logsumexp": lambda h: torch.logsumexp(h, 0),
    "upsample_nearest2d": lambda h: F.interpolate(h.reshape(1, 1, 4, 4), scale_factor=2),
    "upsample_bilinear2d": lambda h: F.interpolate(h.reshape(1, 1, 4, 4), scale_factor=2, mode="bilinear"),
    "upsample_bicubic2d": lambda h: F.interpolate(h.reshape(1, 1, 4, 4), scale_factor=2, mode="bicubic"),
    "prod": torch.prod,
    "prod.dim_int": lambda h: h.prod(0),
    "softmax.int": lambda h: h.softmax(-1),
    "log_softmax.int": lambda h: h.log_softmax(-1),
    "cumprod": lambda h: h.cumprod(0),
    "cumsum": lambda h: h.cumsum(0),
    "linalg_vector_norm": torch.linalg.vector_norm,
    "linalg_matrix_norm": torch.linalg.matrix_norm,
    "sum": torch.sum,
    "sum.dim_IntList": lambda h: h.sum(0),
    "norm.Scalar": lambda h: torch.ops.aten.norm.Scalar(h, 2),
    "norm.ScalarOpt_dim": lambda h: torch.ops.aten.norm.ScalarOpt_dim(h, 2, [0]),
}
PROMOTE = {
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b),
    "addcmul": lambda a, b: torch.addcmul(a, b, b),
    "atan2": torch.atan2,
    "bilinear": lambda a, b: torch.bilinear(a, b, torch.ones(2, 4, 4, dtype=b.dtype), None),
    "cross": lambda a, b: torch.cross(a[:3], b[:3], dim=0),
    "dot": lambda a, b: torch.dot(a[0], b[0]),
    "vdot": lambda a, b: torch.vdot(a[0], b[0]),
    "index_put": lambda a, b: a.index_put((labels,), b),
    "tensordot": lambda a, b: torch.tensordot(a, b, 1),
    "scatter_add": lambda a, b: a.scatter_add(0, labels.repeat(4, 1), b),
    "grid_sampler": lambda a, b: F.grid_sample(a.reshape(1, 1, 4, 4), b.reshape(1, 2, 4, 2), align_corners=False),
}
OTHER = {"add": lambda h: h + h, "tanh": torch.tanh, "relu": torch.relu, "mean": torch.mean}


def run(recipe: str, call) -> Tensor:  # type: ignore[no-untyped-def]
    with ns.simulate(nn.Identity(), recipe) as run:
        result = call(x.to(RECIPES[recipe]))
    assert not run.unrecognised
    return result


@pytest.mark.skipif(not HEADER.exists(), reason="this torch has no headers")
@pytest.mark.parametrize(
    ("macro", "ours"),
    [
        ("LOWER_PRECISION_FP", lists.LOWER),
        ("FP32", lists.FLOAT32),
        ("FP32_SET_OPT_DTYPE", lists.FLOAT32_BY_DTYPE),
        ("PROMOTE", lists.PROMOTE),
    ],
)
def test_the_lists_are_those_of_torch_s_header(macro: str, ours: tuple[str, ...]) -> None:
    text = HEADER.read_text()
    body = text.split(f"#define AT_FORALL_{macro}(_)")[1].split("\n\n")[0]
    found = [
        f"{name}.{overload}" if overload else name for name, overload in re.findall(r"_\((\w+)(?:, (\w+))?\)", body)
    ]
    assert set(ours) == set(found)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", LOWER)
def test_operations_on_the_list_of_the_lower_precision_give_the_16_bit_type(name: str, recipe: str) -> None:
    assert run(recipe, LOWER[name]).dtype == RECIPES[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", FLOAT32)
def test_operations_on_the_list_of_float32_give_float32_values(name: str, recipe: str) -> None:
    found = run(recipe, FLOAT32[name])
    assert found.dtype == torch.float32
    if name != "nuclear_norm":  # LAPACK's sums depend on where the matrix lies
        assert torch.equal(found, FLOAT32[name](x.to(RECIPES[recipe]).float()))


@pytest.mark.parametrize("name", PROMOTE)
def test_operations_on_the_list_of_the_widest_type_give_the_widest(name: str) -> None:
    h = x.half()
    for a, b, dtype in ((h, h, torch.float16), (h, x, torch.float32), (x, h, torch.float32), (x, x, torch.float32)):
        assert run("amp-fp16", lambda _, a=a, b=b: PROMOTE[name](a, b)).dtype == dtype


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", OTHER)
def test_operations_on_no_list_follow_their_operands(name: str, recipe: str) -> None:
    assert run(recipe, OTHER[name]).dtype == RECIPES[recipe]
    assert run(recipe, lambda h: OTHER[name](x)).dtype == torch.float32


@pytest.mark.parametrize("name", ["addmm", "bmm", "linear", "matmul", "mm", "conv2d"])
def test_values_are_those_of_the_cpu_s_own_autocast_where_the_lists_agree(name: str) -> None:
    whole = {"x": torch.arange(16.0).reshape(4, 4) % 5, "v": torch.arange(4.0)}
    calls = {
        "addmm": lambda x, v: torch.addmm(x, x, x),
        "bmm": lambda x, v: torch.bmm(x[None], x[None]),
        "linear": lambda x, v: F.linear(x, x, v),
        "matmul": lambda x, v: x @ x,
        "mm": lambda x, v: torch.mm(x, x),
        "conv2d": lambda x, v: torch.conv2d(x[None, None], x[None, None]),
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = calls[name](**whole)
    found = run("amp-bf16", lambda _: calls[name](**whole))
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_parameters_are_float32_and_gradients_come_back_to_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    seen = {}
    for i, layer in enumerate(model):
        layer.register_forward_hook(lambda m, a, y, i=i: seen.update({i: (a[0].dtype, m.weight.dtype, y.dtype)}))
    with ns.simulate(model, "amp-fp16") as run:
        loss = F.mse_loss(model(torch.randn(5, 4)), torch.zeros(5, 4))
        loss.backward()
    half, wide = torch.float16, torch.float32
    assert seen == {0: (wide, wide, half), 1: (half, wide, wide), 2: (wide, wide, half)}
    assert loss.dtype == wide and all(p.grad.dtype == wide for p in model.parameters())
    assert torch.equal(model[0].weight.grad, model[0].weight.grad.half().float())
    assert run.ledger["0.to"].count == 5 * 4 + 8 * 4 + 8  # input, weight and bias, each cast once


def test_a_weight_is_cast_once_in_a_forward_and_again_after_it_changed() -> None:
    model = nn.Linear(4, 4, bias=False)
    twice = nn.Sequential(model, model)
    with ns.simulate(twice, "amp-bf16") as run:
        twice(torch.ones(1, 4))
        once = run.ledger["0.to"].count
        with torch.no_grad():
            model.weight.mul_(2.0)
        twice(torch.ones(1, 4))
    assert once == 16 + 4 and run.ledger["0.to"].count == 2 * once


def test_code_may_turn_autocast_off_for_itself() -> None:
    class Careful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(device_type=x.device.type, enabled=False):
                return x.float() @ x.float()

    model = Careful()
    with ns.simulate(model, "amp-fp16"):
        assert model(x).dtype == torch.float32


def test_a_module_kept_wide_by_a_rule_is_not_cast() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with ns.simulate(model, "amp-fp16", rules={"1": "fp32"}):
        seen = []
        model[1].register_forward_hook(lambda m, a, y: seen.append(y.dtype))
        model(x)
    assert seen == [torch.float32]


def test_what_cuda_refuses_is_refused() -> None:
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        run("amp-fp16", lambda h: F.binary_cross_entropy(x / 4, x / 4))


def test_torch_s_own_lists_of_the_cpu_are_back_afterwards() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = F.softmax(x.bfloat16(), -1).dtype, torch.conv2d(image, image).dtype
    run("amp-bf16", torch.exp)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (F.softmax(x.bfloat16(), -1).dtype, torch.conv2d(image, image).dtype) == before


def test_autocast_of_a_single_module_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    refused = pytest.raises(ns.NormstabError, match="'0': amp-bf16: autocast is the whole network's")
    with refused, ns.simulate(model, "fp16", rules={"0": "amp-bf16"}):
        model(x)


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_optimizer_s_products_are_not_autocast(recipe: str, is_given: bool) -> None:
    """Loops have autocast around the forward pass; Adafactor multiplies matrices in its step."""
    found = []
    for is_simulated in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(8, 8, bias=False)
        optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
        model.weight.grad = torch.randn(8, 8)
        if is_simulated:
            with ns.simulate(model, recipe, optimizer=optimizer if is_given else None):
                optimizer.step()
        else:
            optimizer.step()
        found.append(model.weight.detach().clone())
    assert torch.allclose(*found, rtol=2.0**-20)  # float32, in another order of sums at most


def test_an_optimizer_that_casts_to_bfloat16_itself_runs_under_autocast() -> None:
    model = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
    with ns.simulate(model, "amp-bf16", optimizer=optimizer):
        model(torch.ones(2, 8)).float().sum().backward()
        optimizer.step()
    assert model.weight.isfinite().all()
