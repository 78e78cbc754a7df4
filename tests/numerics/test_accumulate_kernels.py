"""The compiled sums, means and products against the torch reference: the same bits and the same counters."""

from __future__ import annotations

import pytest
import torch

import normstab as ns
from normstab.numerics import accumulate
from normstab.numerics.sums import matmul
from tests.thinned import thinned

pytest.importorskip("numba")
cpu_matmul = pytest.importorskip("normstab.numerics.kernels.cpu.sums.cpu_matmul")
cpu_sums = pytest.importorskip("normstab.numerics.kernels.cpu.sums.cpu_sums")

ORDERS = ("sequential", "pairwise", "blocked4", "blocked64", "lanes4", "lanes64")
KAHAN = ("sequential+kahan", "blocked4+kahan")
FUSED = ("sequential+fused", "blocked4+fused")
FORMATS = (
    "fp16",
    "bf16",
    "tf32",
    "fp32",
    "fp64",
    "e4m3fn",
    "e5m2",
    "e4m3fnuz",
    "e2m1",
    "e6m9",
    "e5m15",
    "q7.8",
    "q3.4:wrap",
)
MODES = (
    "nearest",
    "nearest-away",
    "toward-zero",
    "up",
    "down",
    "to-odd",
    "stochastic",
    "stochastic:5",
    "stochastic:24",
)


def wild(*shape: int, seed: int = 0, share: float = 0.02) -> torch.Tensor:
    """Numbers over many binades, and among them a share of any float32 bit patterns at all."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32).view(torch.float32)
    spread = torch.randint(-12, 9, shape, generator=generator).float()
    usual = torch.randn(shape, generator=generator) * torch.exp2(spread)
    return torch.where(torch.rand(shape, generator=generator) < share, bits, usual)


def run(compute, precision: str, *, inexact: bool, histogram: bool = False):
    """The bits of the result and all tallies."""
    ledger = ns.Ledger(inexact=inexact, histogram=histogram)
    result = compute(ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=3)))
    integer = torch.int32 if result.dtype == torch.float32 else torch.int64
    return result.view(integer).tolist(), dict(ledger), {name: ledger.first(name) for name in ("overflow", "subnormal")}


def assert_kernel_equals_reference(compute, precision: str, monkeypatch, **options) -> None:
    found = run(compute, precision, **options)
    for module in (accumulate, matmul):
        monkeypatch.setattr(module, "kernels_for", lambda *_: None)
    assert found == run(compute, precision, **options), precision
    monkeypatch.undo()


@pytest.mark.parametrize(("format", "mode"), thinned(FORMATS, MODES, every=3))
def test_sums_equal_the_reference_in_every_order(format, mode, monkeypatch):
    for i, order in enumerate(ORDERS + (KAHAN if mode == "nearest" else ())):
        share = (0.0, 0.02)[i % 2]
        x = wild(2, 5, 37, seed=i, share=share)
        for inexact in (True, False):
            assert_kernel_equals_reference(
                lambda ar, x=x: ar.sum(x, (0, 2)), f"fp32/{mode}/{format}:{order}", monkeypatch, inexact=inexact
            )


@pytest.mark.parametrize("mode", ["nearest", "down", "stochastic"])
@pytest.mark.parametrize("format", ["fp16", "fp32", "fp64", "q7.8"])
@pytest.mark.parametrize("order", ORDERS[:1] + ORDERS[1:2] + ORDERS[2:3] + ORDERS[4:5] + KAHAN + FUSED)
def test_products_equal_the_reference(order, format, mode, monkeypatch):
    if "kahan" in order and mode != "nearest":
        pytest.skip("Kahan's sum is defined for nearest only")
    a, b = wild(2, 3, 9), wild(9, 4, seed=1)
    precision = f"fp16/{mode};matmul={format}:{order}"
    assert_kernel_equals_reference(lambda ar: ar.matmul(a, b), precision, monkeypatch, inexact=True)


@pytest.mark.parametrize("mode", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize("format", ["fp16", "fp32", "fp64", "q7.8"])
@pytest.mark.parametrize("mean", ["sum", "blockwise4", "welford"])
def test_means_equal_the_reference(mean, format, mode, monkeypatch):
    x = wild(3, 4, 7)
    precision = f"fp32/{mode}/{format};mean={mean}"
    assert_kernel_equals_reference(lambda ar: ar.mean(x, (0, 2)), precision, monkeypatch, inexact=False)


def test_histograms_equal_the_reference(monkeypatch):
    x = wild(3, 40)
    precision = "fp32/nearest/fp16:pairwise"
    assert_kernel_equals_reference(lambda ar: ar.sum(x, 1), precision, monkeypatch, inexact=True, histogram=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("order", ORDERS)
def test_other_dtypes_equal_the_reference(order, dtype, monkeypatch):
    x = wild(5, 70, share=0.0).to(dtype)
    assert_kernel_equals_reference(lambda ar: ar.sum(x, 1), f"fp16/nearest/fp16:{order}", monkeypatch, inexact=True)


def gathered(kind: str, shape: tuple[int, ...], format: str, seed: int) -> torch.Tensor:
    """Addends that fit, that do not, that are subnormal in float32, positive, mostly zero, or now and then wild."""
    x = wild(*shape, seed=seed, share=0.001 if kind == "wild" else 0.0)
    generator = torch.Generator().manual_seed(seed)
    match kind:
        case "fits":
            return ns.cast(x, format)
        case "subnormal":
            return x * 2.0**-135
        case "positive":
            return x.abs() + 1
        case "sparse":
            return x * (torch.rand(shape, generator=generator) < 0.2)
    return x


TILED = [
    ((130, 70), (1,)),
    ((70, 130), (0,)),
    ((3, 65, 5, 7), (0, 2, 3)),
    ((3, 64, 64), (0, 2)),
    ((7, 256), (1,)),
    ((2, 3, 512), (1, 2)),
    ((1, 4096), (1,)),
    ((6, 128), None),
]


# How much a ledger asks for: nothing, the usual, all that it can count.
ASKED = ({"inexact": False}, {"inexact": True}, {"inexact": True, "histogram": True})
# Formats and modes that the float32 carrier serves: by one rounding of a float32 sum, or of one rounded to odd.
CARRIED = (
    *((format, "nearest") for format in ("fp32", "fp16", "bf16", "tf32", "e4m3fn", "e2m1")),
    *((format, "nearest") for format in ("e4m3fnuz", "e5m15", "e6m12", "e8m21", "q7.8", "q3.4:wrap", "q15.5", "q-2.9")),
    *((format, mode) for format in ("fp16", "bf16", "e6m12", "q7.8") for mode in ("toward-zero", "up", "down")),
    *(("e5m2fnuz", mode) for mode in ("toward-zero", "down")),
    *(("fp16", mode) for mode in ("stochastic", "stochastic:5", "stochastic:13")),
    *(("e3m2", mode) for mode in ("nearest", "up")),
    *((format, "nearest") for format in ("fp16:saturate", "q2.3:saturate-symmetric", "e4m3fn:saturate")),
    *(("q3.2", mode) for mode in ("down", "stochastic")),
    ("e2m3", "stochastic:4"),
    ("e2m1", "toward-zero"),
    *((format, "stochastic:16") for format in ("bf16", "e4m3fn", "e6m12", "q7.8", "e4m3fnuz")),
)


@pytest.mark.parametrize("kind", ["fits", "raw", "subnormal", "positive", "sparse", "wild"])
@pytest.mark.parametrize(("format", "mode"), CARRIED)
def test_tiles_of_rows_equal_the_general_kernel(format, mode, kind, monkeypatch):
    """The fast kernel against the general one, which the tests above hold to the reference."""
    chains = ("sequential+kahan", "blocked64+kahan") if mode == "nearest" else ()
    orders = ("sequential", "pairwise", "blocked7", "blocked64", "lanes4", "lanes64", "lanes100", *chains)
    for i, order in enumerate(orders):
        shape, dims = TILED[(i + len(format) + len(kind)) % len(TILED)]
        x = gathered(kind, shape, format, seed=i)
        precision, asked = f"fp32/{mode}/{format}:{order}", ASKED[(i + len(mode)) % len(ASKED)]
        found = run(lambda ar, x=x, dims=dims: ar.sum(x, dims), precision, **asked)
        bare = ns.Arithmetic(precision, key=ns.Key(seed=3)).sum(x, dims)
        monkeypatch.setattr(cpu_sums, "_fast_way", lambda *_: None)
        assert found == run(lambda ar, x=x, dims=dims: ar.sum(x, dims), precision, **asked), (order, shape)
        assert torch.equal(bare.view(torch.int32), torch.tensor(found[0], dtype=torch.int32).view(bare.shape))
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("format", "scale"),
    [("q100.-90", 2.0**98), ("q-80.90", 2.0**-82), ("bf16:saturate", 2.0**108), ("e8m12:saturate", 2.0**126)],
)
def test_sums_that_saturate_near_the_ends_of_float32_equal_the_general_kernel(format, scale, monkeypatch):
    for i, mode in enumerate(("nearest", "up", "stochastic:5")):
        x = wild(70, 64, seed=i, share=0.0) * scale
        x = ns.cast(x, format) if "stochastic" in mode else x
        precision = f"fp32/{mode}/{format}:{('sequential', 'lanes64')[i % 2]}"
        found = run(lambda ar, x=x: ar.sum(x, 1), precision, **ASKED[i])
        monkeypatch.setattr(cpu_sums, "_fast_way", lambda *_: None)
        assert found == run(lambda ar, x=x: ar.sum(x, 1), precision, **ASKED[i])
        monkeypatch.undo()


@pytest.mark.parametrize(("format", "mode", "half"), thinned(CARRIED, [0, 1], every=2))
def test_sums_of_the_carrier_equal_the_reference(format, mode, half, monkeypatch):
    chains = ("sequential+kahan", "blocked16+kahan") if mode == "nearest" else ()
    for i, order in enumerate(("sequential", "pairwise", "blocked16", "lanes64", *chains)):
        if i % 2 != half:
            continue
        x = gathered(("raw", "fits")[i % 2], (3, 256), format, seed=i)
        assert_kernel_equals_reference(
            lambda ar, x=x: ar.sum(x, 1), f"fp32/{mode}/{format}:{order}", monkeypatch, **ASKED[2]
        )
    for x in (torch.zeros(0, 3), torch.tensor([[-0.0], [3.0]]), torch.tensor([[-0.0, 1.0], [-0.0, -1.0]])):
        for dims in (0, 1):
            assert_kernel_equals_reference(
                lambda ar, x=x, dims=dims: ar.sum(x, dims), f"fp32/{mode}/{format}", monkeypatch, **ASKED[2]
            )


@pytest.mark.parametrize(
    ("format", "mode", "kind"),
    thinned(CARRIED, ["raw", "special", "near ties", "negated", "halves", "transposed"], every=3),
)
def test_products_of_the_carrier_equal_the_reference(format, mode, kind, monkeypatch):
    chains = ("blocked7+kahan",) if mode == "nearest" else ()
    for i, order in enumerate(("sequential", "pairwise", "blocked7", "lanes3", "blocked5+fused", *chains)):
        a, b = operands("raw" if kind in ("negated", "halves", "transposed") else kind, (4, 17), (17, 9))
        if kind == "negated":
            a, b = torch.complex(a, -a).conj().imag, b
        elif kind == "halves":
            a, b = a.to(torch.float16), b.to(torch.bfloat16)
        elif kind == "transposed":
            a, b = a.mT.contiguous().mT, b.mT.contiguous().mT
        precision = f"fp32/{mode};matmul={format}:{order}"
        assert_kernel_equals_reference(lambda ar, a=a, b=b: ar.matmul(a, b), precision, monkeypatch, **ASKED[i % 3])


def test_flushed_subnormals_change_no_sum():
    x = wild(70, 40, share=0.0) * 2.0**-140
    results = []
    for flushes in (False, True):
        ledger = ns.Ledger()
        assert torch.set_flush_denormal(flushes)
        try:
            total = ns.Arithmetic("fp32/nearest/fp32:sequential", ledger=ledger).sum(x, 1)
        finally:
            torch.set_flush_denormal(False)
        results.append((total.view(torch.int32).tolist(), dict(ledger)))
    assert results[0] == results[1]


def assert_product_equals_the_general_kernel(a, b, precision: str, monkeypatch, **asked) -> None:
    found = run(lambda ar: ar.matmul(a, b), precision, **asked)
    bare = ns.Arithmetic(precision, key=ns.Key(seed=3)).matmul(a, b)
    monkeypatch.setattr(cpu_matmul, "_fast_way", lambda *_: None)
    assert found == run(lambda ar: ar.matmul(a, b), precision, **asked), (precision, a.shape, b.shape)
    assert bare.view(torch.int32).tolist() == found[0]
    monkeypatch.undo()


PRODUCTS = [
    ((7, 33), (33, 70)),
    ((2, 5, 64), (64, 130)),
    ((2, 1, 4, 9), (3, 9, 8)),
    ((70,), (70, 65)),
    ((5, 128), (128,)),
]


@pytest.mark.parametrize("scale", [1.0, 2.0**8, 2.0**-12])
@pytest.mark.parametrize(("format", "mode"), CARRIED)
def test_products_by_columns_equal_the_general_kernel(format, mode, scale, monkeypatch):
    """The fast kernel of products against the general one; large and small scales overflow and underflow."""
    chains = ("sequential+kahan", "blocked7+kahan") if mode == "nearest" else ()
    orders = ("sequential", "pairwise", "blocked7", "blocked100", "lanes3", "lanes64", *FUSED, *chains)
    for i, order in enumerate(orders):
        shape_a, shape_b = PRODUCTS[(i + len(format)) % len(PRODUCTS)]
        a, b = ns.cast(wild(*shape_a, seed=i, share=0.0), "fp16") * scale, ns.cast(wild(*shape_b, share=0.0), "fp16")
        b = b.mT.contiguous().mT if i % 2 and b.dim() > 1 else b
        precision, asked = f"fp32/{mode};matmul={format}:{order}", ASKED[(i + len(mode)) % len(ASKED)]
        assert_product_equals_the_general_kernel(a, b, precision, monkeypatch, **asked)


def operands(kind: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands of 24 bits: whose products lie beside ties of 11 bits, are infinite or NaN, tiny, or all zero."""
    a, b = wild(*shape_a, share=0.0), wild(*shape_b, seed=1, share=0.0)
    if kind == "near ties":  # a tie of fp16 or bf16 times 1 +- an ulp of float32, or 1
        ties = torch.randint(256, 2048, shape_a, generator=torch.Generator().manual_seed(2)) * 2 + 1
        sides = torch.randint(-1, 2, shape_b, generator=torch.Generator().manual_seed(3))
        a, b = ties.float() / 2048, 1 + sides.float() * torch.where(sides < 0, 2.0**-24, 2.0**-23)
    elif kind == "special":
        for x, number in ((a, 0), (b, 3)):
            places = torch.rand(x.shape, generator=torch.Generator().manual_seed(number)) < 0.01
            x[places] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38])[torch.arange(int(places.sum())) % 4]
    elif kind == "tiny":
        a[..., 0] = 1e-30
    elif kind == "zero":
        a = torch.zeros_like(a)
    return a, b


@pytest.mark.parametrize("kind", ["raw", "near ties", "special", "tiny", "zero"])
@pytest.mark.parametrize("format", ["fp32", "fp16", "bf16", "e5m2", "e4m3fn"])
def test_products_of_wide_operands_equal_the_general_kernel(format, kind, monkeypatch):
    for i, order in enumerate(("sequential", "pairwise", "blocked7", "blocked64", "lanes3", "lanes64")):
        a, b = operands(kind, *PRODUCTS[i % len(PRODUCTS)])
        precision = f"fp32;matmul={format}:{order}"
        assert_product_equals_the_general_kernel(a, b, precision, monkeypatch, inexact=False)


def broken(x: torch.Tensor, share: float) -> torch.Tensor:
    """The numbers, some of which are infinite, NaN or zeros of either sign."""
    generator = torch.Generator().manual_seed(5)
    found = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])[
        torch.randint(0, 5, x.shape, generator=generator)
    ]
    return torch.where(torch.rand(x.shape, generator=generator) < share, found, x)


@pytest.mark.parametrize(("format", "mode", "share"), thinned(CARRIED, [0.0, 0.03], every=2))
def test_products_that_leave_the_range_equal_the_general_kernel(format, mode, share, monkeypatch):
    """Overflows alone, and infinities and NaN among the operands: by careful ways, in lanes that are sums or idle."""
    chains = ("sequential+kahan", "blocked7+kahan") if mode == "nearest" else ()
    orders = ("sequential", "pairwise", "blocked7", "lanes3", *FUSED[1:], *chains)
    for i, order in enumerate(orders):
        shape_a, shape_b = PRODUCTS[(i + len(format)) % len(PRODUCTS)]
        a, b = (ns.cast(wild(*shape, seed=i, share=0.0), "fp16") for shape in (shape_a, shape_b))
        a, b = broken(a * 2.0 ** (8 * (i % 2)), share), broken(b, share if i % 3 == 0 else 0.0)
        precision, asked = f"fp32/{mode};matmul={format}:{order}", ASKED[(i + len(mode)) % len(ASKED)]
        assert_product_equals_the_general_kernel(a, b, precision, monkeypatch, **asked)


@pytest.mark.parametrize(
    ("format", "mode"),
    [("fp16", "nearest"), ("bf16", "down"), ("e4m3fn", "stochastic:5"), ("q7.8", "up"), ("fp32", "nearest")],
)
def test_products_that_leave_the_range_equal_the_reference(format, mode, monkeypatch):
    for i, order in enumerate(("sequential", "pairwise", "lanes3")):
        a, b = (ns.cast(wild(*shape, seed=i, share=0.0), "fp16") for shape in ((4, 17), (17, 9)))
        a, b = broken(a * 2.0**8, 0.05 * (i != 1)), broken(b, 0.05 * (i == 2))
        precision = f"fp32/{mode};matmul={format}:{order}"
        assert_kernel_equals_reference(lambda ar, a=a, b=b: ar.matmul(a, b), precision, monkeypatch, inexact=i != 2)


@pytest.mark.parametrize("format", ["fp16", "bf16"])
def test_histograms_alone_equal_the_general_kernel(format, monkeypatch):
    """Of binades that lie together, of more than are counted at once, and of zeros; some groups overflow."""
    a, b = ns.cast(wild(9, 150, share=0.0), "fp16"), ns.cast(wild(150, 70, seed=1, share=0.0), "fp16")
    for i, order in enumerate(("sequential", "pairwise", "blocked64", "lanes3")):
        scales = torch.tensor([1.0, 2.0**-40, 0.0, 2.0**14])[torch.arange(9) % (4 if format == "fp16" else 3), None]
        x = a * scales if i % 2 else a
        for compute in (
            lambda ar, x=x: ar.matmul(x, b),
            lambda ar, x=x: ar.sum(x, 1),
            lambda ar, x=x: ar.sum(x, 0),
        ):
            precision = f"fp32/nearest/{format}:{order};matmul={format}:{order}"
            found = run(compute, precision, inexact=False, histogram=True)
            monkeypatch.setattr(cpu_matmul, "_fast_way", lambda *_: None)
            monkeypatch.setattr(cpu_sums, "_fast_way", lambda *_: None)
            assert found == run(compute, precision, inexact=False, histogram=True), order
            monkeypatch.undo()


@pytest.mark.parametrize("kind", ["narrow", "raw", "near ties", "special", "tiny", "zero"])
def test_products_take_the_fast_kernel(kind, monkeypatch):
    taken = []
    fast = cpu_matmul._fast
    monkeypatch.setattr(cpu_matmul, "_fast", lambda *given, **named: taken.append(named) or fast(*given, **named))
    a, b = operands(kind, (5, 70), (70, 70))
    if kind in ("narrow", "zero"):
        a, b = ns.cast(a, "fp16"), ns.cast(b, "fp16")
    ns.Arithmetic("fp16;matmul=fp16:sequential").matmul(a, b)
    assert taken == [{"are_exact": kind in ("narrow", "zero")}]
