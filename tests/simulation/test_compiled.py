"""A network compiled with the backend `normstab` has under a simulation the bits and the counts that it has eagerly."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import normstab as ns
from normstab.experiment.network.models import MODELS
from normstab.experiment.network.networks import Task
from normstab.simulation.compiled import compiled_modules
from normstab.simulation.compiled.dynamo_backend import normstab_backend
from normstab.simulation.run import Run
from normstab.simulation.simulate import simulate
from tests.entry_points import with_entry_points
from tests.simulation import networks


class Encoder(nn.Module):
    """A layer of torch's own transformer, and logits of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)).mean(1)


class Bag(nn.Module):
    """Words looked up, averaged and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.linear(self.words(words).mean(1))


def mlp(*between: Callable[[], nn.Module]) -> nn.Module:
    layers = [nn.Linear(6, 8), *(make() for make in between), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def conv(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        norm(),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (lambda: mlp(nn.ReLU), "rows"),
    "gelu and silu": (lambda: mlp(nn.GELU, lambda: nn.Linear(8, 8), nn.SiLU), "rows"),
    "layer norm": (lambda: mlp(lambda: nn.LayerNorm(8), nn.Tanh), "rows"),
    "rms norm": (lambda: mlp(lambda: nn.RMSNorm(8, eps=1e-5), nn.ReLU), "rows"),
    "batch norm": (lambda: conv(lambda: nn.BatchNorm2d(4)), "images"),
    "group norm": (lambda: conv(lambda: nn.GroupNorm(2, 4)), "images"),
    "resnet18": (lambda: MODELS["resnet18"].build(Task(1, 8, 3), 4, "small"), "large images"),
    "in-place residual": (lambda: networks.Network(4), "images"),
    "embedding": (Bag, "words"),
    "attention": (networks.Tokens, "next words"),
    "encoder layer": (Encoder, "sentences"),
}
# What no one reads the compiler leaves out: here the weights of attention, cast once more.
LEFT_OUT = {("attention", "half"): ["to[forward]"]}


def given(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (4,), generator=generator)
    if kind == "next words":
        words = torch.randint(0, 11, (2, 5), generator=generator)
        return words, words
    if kind == "words":
        return torch.randint(0, 11, (4, 5), generator=generator), y
    shapes = {"rows": (4, 6), "images": (4, 1, 6, 6), "large images": (4, 1, 8, 8), "sentences": (4, 5, 8)}
    return torch.randn(shapes[kind], generator=generator), y


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(network: nn.Module, called: nn.Module, kind: str, precision: str, **how: Any) -> tuple[list[Tensor], Run]:
    """Return the losses, and then gradients, parameters and buffers, of two steps of `called`, which has `network`."""
    x, y = given(kind)
    optimizer = networks.sgd(network)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        with simulate(called, precision, optimizer=optimizer, **how) as run:
            losses = [networks.train_step(called, optimizer, x, y) for _ in range(2)]
    tensors = [p.grad for p in network.parameters()] + [*network.parameters(), *network.buffers()]
    return [*losses, *(x.detach().clone() for x in tensors if x is not None)], run


def pair(name: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a network, a copy of it, and the compiled copy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[name][0]()
    same = copy.deepcopy(network)
    return network, same, torch.compile(same, backend=normstab_backend)


def assert_same_run(eager: Run, compiled: Run, but: Sequence[str] = ()) -> None:
    before, after = ({str(site): tally for site, tally in run.ledger.items()} for run in (eager, compiled))
    assert {site for site in {*before, *after} if before.get(site) != after.get(site)} == set(but)
    assert compiled.unrecognised == eager.unrecognised
    assert not [note for note in compiled.notes if "uncompiled" in note]


@pytest.mark.parametrize("precision", ["uniform:fp16", "half"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_trains_to_the_bits_and_counts_of_the_eager_one(name: str, precision: str) -> None:
    network, same, compiled = pair(name)
    expected, eager = trained(network, network, NETWORKS[name][1], precision)
    found, run = trained(same, compiled, NETWORKS[name][1], precision)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run, LEFT_OUT.get((name, precision), []))


class Broken(nn.Module):
    """A forward that looks at a number, where the compiler ends its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.rest = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if float(x.detach().sum()) > 1e9:
            return x
        for layer in self.rest:
            x = layer(x)
        return x


def compiled_copy(network: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    same = copy.deepcopy(network)
    return same, torch.compile(same, backend=normstab_backend, **options)


def test_a_graph_break_is_named_with_its_line_and_what_follows_keeps_its_modules() -> None:
    network = Broken()
    same, compiled = compiled_copy(network)
    expected, eager = trained(network, network, "rows", "half")
    found, run = trained(same, compiled, "rows", "half")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run)
    assert [note for note in run.notes if "graph break at" in note and "test_compiled.py:" in note and "item" in note]
    assert run.sources.lines == eager.sources.lines


def test_our_own_norm_layers_break_the_graph_and_say_why() -> None:
    network = nn.Sequential(nn.Linear(6, 8), ns.BatchNorm1d(8, norm="l1"), nn.Linear(8, 3))
    same, compiled = compiled_copy(network)
    expected, eager = trained(network, network, "rows", "fp16/stochastic")
    found, run = trained(same, compiled, "rows", "fp16/stochastic")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run)
    assert any("normstab: an emulated operation counts and draws" in note for note in run.notes)


def test_stochastic_rounding_draws_the_same_bits_and_offences_have_the_same_line() -> None:
    network, same, compiled = pair("in-place residual")
    expected, eager = trained(network, network, "images", "e4m3fn/stochastic")
    found, run = trained(same, compiled, "images", "e4m3fn/stochastic")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run)
    assert run.sources.lines == eager.sources.lines
    assert run.first("underflow") == eager.first("underflow") is not None


def test_rules_name_modules_as_they_were_before_they_were_compiled() -> None:
    rules = {"0": "e5m6", "re:2": "fp16/toward-zero", "op:addmm": "e5m7", "1::gelu": "e5m5"}
    network = mlp(nn.GELU)
    same, compiled = compiled_copy(network)
    expected, eager = trained(network, network, "rows", "fp16", rules=rules)
    found, run = trained(same, compiled, "rows", "fp16", rules=rules)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run)


def test_a_compiled_module_inside_a_network_runs_its_graph() -> None:
    network = nn.Sequential(nn.Linear(6, 6), mlp(nn.Tanh), nn.Linear(3, 3))
    same = copy.deepcopy(network)
    same[1] = torch.compile(same[1], backend=normstab_backend)
    expected, eager = trained(network, network, "rows", "half")
    found, run = trained(same, same, "rows", "half")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run)


def test_scaled_operands_are_quantized_as_in_eager_code() -> None:
    network, same, compiled = pair("attention")
    expected, eager = trained(network, network, "next words", "mxfp8")
    found, run = trained(same, compiled, "next words", "mxfp8")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run, ["to[forward]"])


def test_graphs_are_made_once_per_dtype_however_many_simulations_there_are() -> None:
    _, compiled = compiled_copy(mlp(nn.ReLU))
    torch._dynamo.utils.counters.clear()
    for precision in ["half", "uniform:fp16", "fp16/stochastic"] * 4:
        with simulate(compiled, precision) as run:
            compiled(given("rows")[0]).float().sum().backward()
        assert not [note for note in run.notes if "uncompiled" in note]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_outside_a_simulation_a_graph_is_plain_torch() -> None:
    network, same, compiled = pair("resnet18")
    x, _ = given("large images")
    assert torch.equal(compiled(x), network(x))
    compiled(x).sum().backward()
    network(x).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(network.parameters(), same.parameters(), strict=True))


def test_a_graph_made_before_the_simulation_is_run_in_it() -> None:
    _, _, compiled = pair("mlp")
    x, _ = given("rows")
    compiled(x)
    with torch.no_grad(), simulate(compiled, "uniform:fp16") as run:
        found = compiled(x)
    assert torch.equal(found, found.half().float())
    assert {site.module for site in run.ledger} == {"", "0", "2"}
    assert not run.notes


def test_another_number_of_rows_makes_a_graph_of_any_number() -> None:
    network = mlp(nn.Sigmoid)
    _, compiled = compiled_copy(network)
    for rows in (4, 5, 7, 9):
        x = torch.randn(rows, 6)
        with simulate(network, "half") as eager:
            expected = network(x)
        with simulate(compiled, "half") as run:
            assert torch.equal(compiled(x), expected)
        assert_same_run(eager, run)


def test_casts_that_a_machine_ignores_are_counted_by_the_graph() -> None:
    class Upcast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x).float() * 3).to(x.dtype)

    network = nn.Sequential(Upcast(6, 3))
    _, compiled = compiled_copy(network)
    runs = []
    for called in (network, compiled):
        with simulate(called, "uniform:fp16") as run:
            called(given("rows")[0])
        runs.append(run)
    assert runs[1].ignored_upcasts == runs[0].ignored_upcasts == {"0.float[forward]": 1, "0.to[forward]": 1}


def test_a_checkpoint_inside_a_graph_is_computed_once_and_says_so() -> None:
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(nn.Tanh)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    network = Saved()
    same, compiled = compiled_copy(network)
    expected, eager = trained(network, network, "rows", "fp16/stochastic")
    found, run = trained(same, compiled, "rows", "fp16/stochastic")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run)
    assert any("keep what they compute" in note for note in run.notes)
    assert run.ledger.recomputed.total().count == 0 < eager.ledger.recomputed.total().count


def test_a_buffer_that_a_graph_writes_is_named() -> None:
    class Average(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("average", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.average.mul_(0.9).add_(y.detach().mean(0))
            return y - self.average

    _, compiled = compiled_copy(Average())
    for precision in ("half", "uniform:fp16"):
        with simulate(compiled, precision) as run:
            compiled(given("rows")[0])
        assert "average is written by a compiled graph, by operations of its own" in run.notes


def test_an_operation_that_runs_graphs_of_its_own_is_listed_as_not_understood() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.cond(y.sum() > 0, lambda t: t * 2, lambda t: t - 1, (y,))

    _, compiled = compiled_copy(Branching(6, 3))
    with simulate(compiled, "half") as run:
        compiled(given("rows")[0]).float().sum().backward()
    assert run.unrecognised == {"cond": 2}


UNCOMPILED: dict[str, tuple[Callable[[nn.Module], nn.Module], dict[str, Any], str]] = {
    "other backend": (lambda m: torch.compile(m, backend="aot_eager"), {}, "'aot_eager'"),
    "autocast": (lambda m: torch.compile(m, backend=normstab_backend), {"precision": "amp-fp16"}, "autocast"),
    "expand": (lambda m: torch.compile(m, backend=normstab_backend), {"expand": True}, "expand"),
    "crossing rule": (lambda m: torch.compile(m, backend=normstab_backend), {"rules": {"0": "fp32"}}, "rule of '0'"),
    "own call": (lambda m: m.compile(backend=normstab_backend) or m, {}, "its own call"),
}


@pytest.mark.parametrize("name", UNCOMPILED)
def test_what_runs_uncompiled_is_named_with_the_reason_and_simulated_all_the_same(name: str) -> None:
    make, how, reason = UNCOMPILED[name]
    how = {"precision": "half", **how}
    network = mlp(nn.ReLU)
    compiled = make(copy.deepcopy(network))
    with simulate(network, **how) as eager:
        expected = network(given("rows")[0])
    with simulate(compiled, **how) as run:
        assert torch.equal(compiled(given("rows")[0]), expected)
    assert {str(site): tally for site, tally in run.ledger.items()} == {
        str(site): tally for site, tally in eager.ledger.items()
    }
    assert [note for note in run.notes if "uncompiled" in note and reason in note]


def test_a_torch_that_compiles_nothing_under_a_mode_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_modules, "compiles_under_modes", False)
    _, compiled = compiled_copy(mlp(nn.ReLU))
    with simulate(compiled, "half") as run:
        compiled(given("rows")[0])
    assert [note for note in run.notes if "compiles nothing under a mode" in note]
    assert {site.module for site in run.ledger} == {"", "0", "2"}


def test_a_compiled_network_in_data_parallel_is_run_uncompiled(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = mlp(nn.ReLU)
        same, compiled = compiled_copy(network)
        expected, _ = trained(network, DistributedDataParallel(network), "rows", "half")
        found, run = trained(same, DistributedDataParallel(compiled), "rows", "half")
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [note for note in run.notes if "several processes" in note]


def test_a_graph_has_a_gradient_for_each_of_its_outputs() -> None:
    class Looked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            print(y.sum(), end="")  # outside of the graph, of which the sum is an output
            return y

    network = Looked(6, 3)
    same, compiled = compiled_copy(network)
    expected, eager = trained(network, network, "rows", "half")
    found, run = trained(same, compiled, "rows", "half")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same_run(eager, run, ["add[backward]"])


def test_another_mode_around_the_simulation_is_named() -> None:
    _, compiled = compiled_copy(mlp(nn.ReLU))

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Seeing(), simulate(compiled, "half") as run:
        compiled(given("rows")[0])
    assert [note for note in run.notes if "another torch mode is open" in note]
    assert any(site.module == "0" for site in run.ledger)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"options": {"decompositions": "cor"}}, "did you mean 'core'"),
        ({"options": {"speed": 1}}, r"options\['speed'\]"),
        ({"mode": "max-autotune"}, "mode='max-autotune'"),
    ],
)
def test_an_option_that_the_backend_does_not_have_is_refused(how: dict[str, Any], message: str) -> None:
    _, compiled = compiled_copy(mlp(nn.ReLU), **how)
    with pytest.raises(BackendCompilerFailed, match=message):
        compiled(given("rows")[0])


def test_core_decompositions_show_the_operations_inside_a_norm_s_gradient() -> None:
    operations = {}
    for name in ("none", "core"):
        torch._dynamo.reset()
        _, compiled = compiled_copy(mlp(nn.SiLU), options={"decompositions": name})
        with simulate(compiled, "uniform:fp16") as run:
            compiled(given("rows")[0]).sum().backward()
        operations[name] = {site.operation for site in run.ledger if site.direction == "backward"}
    assert "silu_backward" in operations["none"] - operations["core"]
    assert {"mul", "sub"} <= operations["core"] - operations["none"]


def test_the_entry_point_gives_torch_the_backend_by_name(tmp_path: Path) -> None:
    code = (
        "import torch, normstab as ns\n"
        "model = torch.compile(torch.nn.Linear(3, 3), backend='normstab')\n"
        "with ns.simulate(model, 'half') as run:\n"
        "    model(torch.ones(2, 3))\n"
        "assert not run.notes and any(site.operation == 'addmm' for site in run.ledger), run.notes\n"
    )
    environment = with_entry_points(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
