"""What a cast keeps, counts and refuses; autograd, vmap, torch.compile."""

import pickle

import pytest
import torch

import normstab as ns
from normstab.numerics.rounding import compiled_cast
from tests.numerics.oracles import random_float32

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = {
    "0-d": lambda: torch.tensor(1.1),
    "empty": lambda: torch.empty(3, 0, 2),
    "contiguous": lambda: torch.randn(4, 5),
    "transposed": lambda: torch.randn(4, 5).t(),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(8, 6)[::2, ::3],
    "expanded": lambda: torch.randn(4, 1).expand(4, 3),
    "negative offset": lambda: torch.randn(10)[3:],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHAPES)
def test_shape_dtype_and_strides_are_kept(kind, dtype):
    x = SHAPES[kind]().to(dtype)
    y = ns.cast(x, "e4m3fn")
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert y.stride() == torch.empty_like(x).stride()
    assert torch.equal(y, ns.cast(x.contiguous(), "e4m3fn"))


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "expanded"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_out_may_be_x_itself(kind, rounding):
    x, key = SHAPES[kind](), ns.Key(1)
    expected = ns.cast(x, "bf16", rounding=rounding, key=key)
    version = x._version
    assert ns.cast(x, "bf16", rounding=rounding, key=key, out=x) is x
    assert torch.equal(x, expected)
    assert x._version > version  # autograd must see that x changed


def test_out_may_be_a_view_of_another_layout():
    x = torch.randn(6, 4)
    out = torch.zeros(4, 6).t()
    ns.cast(x, "fp16", out=out)
    assert torch.equal(out, ns.cast(x, "fp16"))


def test_out_may_overlap_x():
    memory = torch.randn(100)
    expected = ns.cast(memory[:-1].clone(), "bf16")
    ns.cast(memory[:-1], "bf16", out=memory[1:])
    assert torch.equal(memory[1:], expected)


@pytest.mark.parametrize(
    ("out", "names"),
    [
        (lambda: torch.empty(3), "shape"),
        (lambda: torch.empty(4, dtype=torch.float64), "float64"),
        (lambda: torch.empty(4, device="meta"), "meta"),
        (lambda: torch.empty(1).expand(4), "strides"),
        (lambda: [0.0] * 4, "list"),
    ],
)
def test_a_wrong_out_is_refused_and_nothing_is_written(out, names):
    x, target, ledger = torch.full((4,), 1.1), out(), ns.Ledger()
    with pytest.raises(ns.NormstabError, match=names):
        ns.cast(x, "fp16", out=target, ledger=ledger, site="x")
    assert torch.equal(x, torch.full((4,), 1.1)) and len(ledger) == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_a_tensor_that_is_not_floating_point_is_refused(dtype):
    with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")) as error:
        ns.cast(torch.zeros(3, dtype=dtype), "fp16")
    assert isinstance(error.value, ns.NormstabError) and "float32" in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float16, "bf16"), (torch.bfloat16, "fp16"), (torch.float16, "q7.8"), (torch.float16, "e6m9")],
)
def test_a_dtype_that_cannot_hold_the_format_is_refused(dtype, name):
    with pytest.raises(TypeError, match=r"cannot hold .*float32"):
        ns.cast(torch.zeros(3, dtype=dtype), name)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float16, "fp32"),
        (torch.float16, "tf32"),
        (torch.bfloat16, "fp32"),
        (torch.float32, "fp64"),
        (torch.float64, "fp64"),
        (torch.float32, "fp32"),
    ],
)
def test_a_format_that_has_every_value_of_the_dtype_copies(dtype, name):
    x = random_float32(1000).to(dtype)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    ledger = ns.Ledger(inexact=True)
    assert torch.equal(ns.cast(x, name, ledger=ledger, site="x").view(integer), x.view(integer))
    assert ledger["x"].count == 1000 and ledger["x"].inexact == 0


def test_a_list_or_an_unknown_rounding_is_refused():
    with pytest.raises(TypeError, match="list"):
        ns.cast([1.0], "fp16")
    with pytest.raises(ns.NormstabError, match="did you mean 'nearest'"):
        ns.cast(torch.ones(1), "fp16", rounding="nearst")


def test_the_gradient_passes_straight_through_even_where_the_value_saturated():
    x = torch.tensor([1.1, 1e9, -1e9, float("nan"), float("inf")], requires_grad=True)
    ns.cast(x, "fp16").backward(torch.arange(5.0) + 0.1)
    assert torch.equal(x.grad, torch.arange(5.0) + 0.1)


def test_the_gradient_is_rounded_and_counted_on_request():
    x, ledger = torch.ones(3, requires_grad=True), ns.Ledger()
    y = ns.cast(x, "fp16", gradient="e5m2", ledger=ledger, site="conv1")
    y.backward(torch.tensor([1.1, 1e6, 1e-9]))
    assert torch.equal(x.grad, ns.cast(torch.tensor([1.1, 1e6, 1e-9]), "e5m2"))
    tally = ledger[ns.Site("conv1", "cast.grad", "backward")]
    assert (tally.count, tally.overflow, tally.underflow) == (3, 1, 1)


def test_forward_mode_passes_the_tangent():
    _, tangent = torch.func.jvp(lambda x: ns.cast(x, "fp16"), (torch.ones(2),), (torch.tensor([0.1, 0.2]),))
    assert torch.equal(tangent, torch.tensor([0.1, 0.2]))


def test_out_under_autograd_is_refused():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ns.NormstabError, match="no_grad"):
        ns.cast(x, "fp16", out=torch.empty(2))


def test_the_compiled_operation_passes_opcheck():
    x = torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(compiled_cast, (x, "fp16", "nearest", "", "", 0))
    torch.library.opcheck(compiled_cast, (x.detach(), "bf16", "stochastic:8", "7", "bn1", 3))


@pytest.mark.parametrize("key", [None, ns.Key(2**63 + 1, "bn1", 5)])
def test_a_compiled_graph_rounds_like_the_eager_one(key):
    def step(x):
        return ns.cast(x * 3, "bf16", rounding="stochastic" if key else "nearest", key=key) + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    x, z = torch.randn(50, requires_grad=True), torch.empty(0)
    y = compiled(x)
    y.sum().backward()
    z = x.detach().clone().requires_grad_()
    step(z).sum().backward()
    assert torch.equal(y, step(x)) and torch.equal(x.grad, z.grad)


def test_specs_and_tallies_are_plain_data():
    ledger = ns.Ledger(histogram=True)
    ns.cast(torch.randn(100), "fp16", ledger=ledger, site="a")
    for value in (ns.Precision.parse("fp16"), ledger["a"], ns.Key(1, "a"), ns.parse_format("q7.8"), ns.Site("a", "b")):
        assert pickle.loads(pickle.dumps(value)) == value
