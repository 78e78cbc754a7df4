"""What is measured on a device: each row a work and its yardstick, what is to be reached, and a check of its bits.

A row is made when its turn comes, so that its tensors need not lie beside those of all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

import normstab as ns
from normstab.norms.fused import coverage
from normstab.numerics import dispatch
from tests.benchmarks.timing import Work

KEY = ns.Key(seed=1, site="benchmark", step=2)
FAST_SUM = "fp16/nearest/fp16:lanes64"


@dataclass(frozen=True)
class Sizes:
    """How large the works are: `bulk` fills a device, at `launch` the launches take the time, at `checked` bits are."""

    bulk: tuple[int, ...] = (16 * 10**6, 256 * 10**6)
    launch: tuple[int, ...] = (10**4, 10**6)
    checked: int = 2**18
    images: tuple[tuple[int, ...], ...] = ((64, 64, 32, 32), (64, 256, 56, 56))
    checked_images: tuple[int, ...] = (8, 16, 12, 12)
    rows: tuple[int, int] = (512, 4096)
    side: int = 512
    checked_rows: tuple[int, int] = (64, 1030)
    checked_side: int = 96
    network: tuple[int, int, int] = (64, 32, 128)
    checked_network: tuple[int, int, int] = (8, 8, 16)


TINY = Sizes(
    bulk=(2048,),
    launch=(64,),
    checked=256,
    images=((2, 3, 4, 4),),
    checked_images=(2, 3, 4, 4),
    rows=(4, 130),
    side=16,
    checked_rows=(2, 70),
    checked_side=8,
    network=(4, 8, 4),
    checked_network=(4, 8, 4),
)


class UnavailableError(Exception):
    """A row cannot be had here; the message says why, and stands in its place."""


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Made:
    """The works of a row, its yardstick first; `bits`: what they give on a device, to be compared with the oracle.

    `close` is called when the row has been measured. `notes` say what is missing.
    """

    works: dict[str, Work]
    bits: dict[str, Callable[[str], list[Tensor]]]
    close: Callable[[], None] = nothing
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row: the section it stands in, what is done at which size, and the ratios to reach (issue's floor, aim)."""

    section: str
    size: str
    make: Callable[[str], Made]
    to_reach: dict[str, tuple[str, str]]
    is_launch_bound: bool = False


def sample(*shape: int, scale: float = 100.0, seed: int = 0) -> Tensor:
    """Numbers of many magnitudes, some beyond fp16 and some below it, made on the host: the same for every device."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.exp(torch.randn(shape, generator=generator) * 4.0) * scale


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Compute by the readable code alone, which every kernel has to equal."""
    with (
        mock.patch.object(dispatch, "_kernels", lambda device_type: None),
        mock.patch.object(coverage, "covers", lambda *given, **named: False),
        mock.patch.object(coverage, "covers_program", lambda *given, **named: False),
    ):
        yield


def counted(ledger: ns.Ledger) -> list[Tensor]:
    """What a ledger counted, as numbers that compare."""
    numbers: list[float] = []
    for site, tally in sorted(ledger.items(), key=lambda entry: str(entry[0])):
        numbers += [float(getattr(tally, name)) for name in COMPARED]
        numbers += [float(ledger.first_step(site, "overflow") or 0)]
    return [torch.tensor(numbers, dtype=torch.float64)]


COMPARED = ("count", "overflow", "underflow", "subnormal", "nan_produced", "nan_propagated", "largest", "smallest")


def casts(sizes: Sizes) -> Iterator[Row]:
    """Casts of float32 to fp16."""
    reach = {"nearest": ("1.3", "1.1"), "stochastic:16": ("1.4", "1.1"), "nearest, ledger": ("1.7", "1.25")}

    def cast_of(name: str, x: Tensor, out: Tensor | None, ledger: ns.Ledger | None) -> Tensor:
        rounding = "stochastic" if name.startswith("stochastic") else "nearest"
        counts = ledger if name.endswith("ledger") else None
        return ns.cast(x, "fp16", rounding=rounding, key=KEY, out=out, ledger=counts, site="a")

    def bits(name: str, device: str) -> list[Tensor]:
        ledger = ns.Ledger()
        found = cast_of(name, sample(sizes.checked).to(device), None, ledger)
        return [found.cpu(), *(counted(ledger) if name.endswith("ledger") else [])]

    def make(n: int, device: str) -> Made:
        x, out, ledger = torch.randn(n, device=device), torch.empty(n, device=device), ns.Ledger()
        works: dict[str, Work] = {"copy_": lambda: out.copy_(x)}
        for name in reach:
            works[name] = lambda name=name: cast_of(name, x, out, ledger)
        works["torch x.half().float()"] = lambda: x.half().float()
        peers, notes = qtorch_works(x)
        checks = {name: lambda device, name=name: bits(name, device) for name in reach}
        return Made(works | peers, checks, notes=notes)

    for n in (*sizes.bulk, *sizes.launch):
        yield Row("cast to fp16", f"{n:,}", lambda d, n=n: make(n, d), reach, is_launch_bound=n in sizes.launch)


def qtorch_works(x: Tensor) -> tuple[dict[str, Work], tuple[str, ...]]:
    """The casts of qtorch, whose kernels are built where it is imported; where that fails, none and the reason."""
    try:
        from qtorch.quant import float_quantize

        float_quantize(x[:1], 5, 10, "nearest")
    except Exception as reason:  # its build fails in as many ways as there are compilers
        return {}, (f"qtorch: left out ({type(reason).__name__})",)
    works: dict[str, Work] = {
        "qtorch nearest": lambda: float_quantize(x, 5, 10, "nearest"),
        "qtorch stochastic": lambda: float_quantize(x, 5, 10, "stochastic"),
    }
    return works, ()


def operations(sizes: Sizes) -> Iterator[Row]:
    """Add and mul, rounded to fp16 and counted."""
    for operation in ("add", "mul"):
        name = f"{operation}, ledger"

        def bits(device: str, operation: str = operation) -> list[Tensor]:
            ar = ns.Arithmetic("fp16", ledger=ns.Ledger()).at("a")
            x, y = (sample(sizes.checked, seed=seed).to(device) for seed in (1, 2))
            found = getattr(ar, operation)(x, y)
            return [found.cpu(), *counted(ar.ledger)]

        def make(device: str, n: int, operation: str, name: str, bits: Callable[[str], list[Tensor]]) -> Made:
            x, y, out = torch.randn(n, device=device), torch.randn(n, device=device), torch.empty(n, device=device)
            ar = ns.Arithmetic("fp16", ledger=ns.Ledger()).at("a")
            own, stock = getattr(ar, operation), getattr(torch, operation)
            works: dict[str, Work] = {f"torch.{operation}": lambda: stock(x, y, out=out)}
            return Made(works | {name: lambda: own(x, y, out=out)}, {name: bits})

        for n in (*sizes.bulk, *sizes.launch):
            yield Row(
                f"{operation} in fp16",
                f"{n:,}",
                lambda d, n=n, o=operation, name=name, bits=bits: make(d, n, o, name, bits),
                {name: ("1.8", "1.3")},
                is_launch_bound=n in sizes.launch,
            )


def scaled_formats(sizes: Sizes) -> Iterator[Row]:
    """Scaled formats of rows of 256: largest magnitudes, scales, values and codes, counted."""
    reach = {f"{name}, ledger": ("4", "2") for name in ("mxfp8", "e4m3fn@row", "nvfp4", "int8@row")}

    def quantized(name: str, x: Tensor, ledger: ns.Ledger) -> tuple[Tensor, ...]:
        return ns.quantize(x, name.removesuffix(", ledger"), ledger=ledger, site="a")

    def bits(name: str, device: str) -> list[Tensor]:
        ledger = ns.Ledger()
        found = quantized(name, sample(sizes.checked).view(-1, 256).to(device), ledger)
        return [*(each.cpu() for each in found), *counted(ledger)]

    def make(n: int, device: str) -> Made:
        x, ledger = torch.randn(n // 256, 256, device=device), ns.Ledger()
        out = torch.empty_like(x)
        works: dict[str, Work] = {"copy_": lambda: out.copy_(x)}
        works |= {name: lambda name=name: quantized(name, x, ledger) for name in reach}
        return Made(works, {name: lambda device, name=name: bits(name, device) for name in reach})

    for n in sizes.bulk:
        yield Row("scaled formats", f"{n:,}", lambda d, n=n: make(n, d), reach)


def norm_layer(norm: str, precision: str, channels: int, device: str) -> nn.Module:
    """A batch norm whose every operation is counted, the same for every device."""
    layer = ns.BatchNorm2d(channels, norm=norm).to(device)
    if precision != "native":
        layer.arithmetic = ns.Arithmetic(precision, ledger=ns.Ledger(), key=KEY).at("bn")
    return layer


def passes(layer: nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """A forward and a backward pass; return the gradient of the input."""
    x.grad = None
    layer(x).backward(grad)
    assert x.grad is not None
    return x.grad


def norms(sizes: Sizes) -> Iterator[Row]:
    """Batch norms forward and backward, emulated and native."""
    kinds = {
        **{f"{n}, fp16, ledger": (n, "fp16/nearest/fp32", ("8", "4")) for n in ("l2", "l1", "linf")},
        **{f"native {n}": (n, "native", ("1.4", "1.1")) for n in ("l1", "linf")},
    }

    def bits(name: str, device: str) -> list[Tensor]:
        norm, precision, _ = kinds[name]
        shape = sizes.checked_images
        layer = norm_layer(norm, precision, shape[1], device)
        x = sample(*shape, scale=1.0, seed=3).to(device).requires_grad_()
        gradient = passes(layer, x, sample(*shape, scale=1.0, seed=4).to(device))
        found = [gradient.cpu(), *(p.grad.cpu() for p in layer.parameters() if p.grad is not None)]
        return found + (counted(layer.arithmetic.ledger) if precision != "native" else [])

    def make(shape: tuple[int, ...], device: str) -> Made:
        x, grad = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)
        layers: dict[str, nn.Module] = {"nn.BatchNorm2d": nn.BatchNorm2d(shape[1]).to(device)}
        layers |= {name: norm_layer(norm, p, shape[1], device) for name, (norm, p, _) in kinds.items()}
        works = {name: lambda layer=layer: passes(layer, x, grad) for name, layer in layers.items()}
        # Native sums are torch's own on a device, and may differ in their last bits: only emulated ones are compared.
        compared = [name for name in kinds if not name.startswith("native")]
        return Made(works, {name: lambda device, name=name: bits(name, device) for name in compared})

    for shape in sizes.images:
        reach = {name: ratios for name, (_, _, ratios) in kinds.items()}
        yield Row("batch norm, both passes", "x".join(map(str, shape)), lambda d, s=shape: make(s, d), reach)


def sums(sizes: Sizes) -> Iterator[Row]:
    """Sums of rows in an order, and exact; emulated products."""
    orders = {"lanes64": ("10", "4"), "sequential": ("30", "10"), "exact": ("", "")}

    def of(order: str) -> ns.Arithmetic:
        accumulation = order if order == "exact" else f"fp16:{order}"
        return ns.Arithmetic(f"fp16/nearest/{accumulation}", ledger=ns.Ledger()).at("a")

    def sum_bits(order: str, device: str) -> list[Tensor]:
        ar, x = of(order), ns.cast(sample(*sizes.checked_rows, scale=1.0), "fp16").to(device)
        return [ar.sum(x, 1).cpu(), *counted(ar.ledger)]

    def make_sums(device: str) -> Made:
        x = ns.cast(torch.randn(sizes.rows), "fp16").to(device)
        works: dict[str, Work] = {"torch.sum": lambda: x.sum(1)}
        arithmetics = {order: of(order) for order in orders}
        works |= {order: lambda ar=ar: ar.sum(x, 1) for order, ar in arithmetics.items()}
        return Made(works, {order: lambda device, order=order: sum_bits(order, device) for order in orders})

    products = {"matmul blocked64": ("fp16:blocked64", ("30", "10")), "matmul exact": ("exact", ("", ""))}

    def product_bits(name: str, device: str) -> list[Tensor]:
        ar, n = ns.Arithmetic(f"fp16;matmul={products[name][0]}", ledger=ns.Ledger()).at("a"), sizes.checked_side
        a, b = (ns.cast(sample(n, n, scale=0.1, seed=seed), "fp16").to(device) for seed in (5, 6))
        return [ar.matmul(a, b).cpu(), *counted(ar.ledger)]

    def make_products(device: str) -> Made:
        a, b = (ns.cast(torch.randn(sizes.side, sizes.side), "fp16").to(device) for _ in range(2))
        arithmetics = {name: ns.Arithmetic(f"fp16;matmul={kind}") for name, (kind, _) in products.items()}
        works: dict[str, Work] = {"torch.matmul": lambda: a @ b}
        works |= {name: lambda ar=ar: ar.matmul(a, b) for name, ar in arithmetics.items()}
        return Made(works, {name: lambda device, name=name: product_bits(name, device) for name in products})

    yield Row("sums of rows in fp16", "{} x {}".format(*sizes.rows), make_sums, orders)
    reach = {name: ratios for name, (_, ratios) in products.items()}
    yield Row("product in fp16", f"{sizes.side}^3", make_products, reach)
