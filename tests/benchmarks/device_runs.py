"""Rows of a whole training step, eager and captured, of a scenario's run, and of the first use of a kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import normstab as ns
from normstab.experiment.network.models import MODELS
from normstab.experiment.network.networks import Task
from normstab.torch_private import modes_off
from tests.benchmarks.device_rows import Made, Row, Sizes, UnavailableError, counted
from tests.benchmarks.timing import Work

ROOT = Path(__file__).parents[2]
PLAIN, SIMULATED = "plain step", "simulate fp16"


class Step:
    """A training step of a ResNet-18, the same for every device."""

    def __init__(self, network: tuple[int, int, int], device: str) -> None:
        width, side, batch = network
        torch.manual_seed(0)
        self.model = MODELS["resnet18"].build(Task(1, side, 10), width, "small").to(device)
        self.x, self.y = torch.randn(batch, 1, side, side).to(device), torch.randint(0, 10, (batch,)).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(self.x).float(), self.y)
        loss.backward()
        self.optimizer.step()
        return loss


class Simulated:
    """A step inside a simulation that stays open, as in the middle of a training."""

    def __init__(self, step: Step, precision: str = "fp16") -> None:
        self.step, self.context = step, ns.simulate(step.model, precision)
        self.run = self.context.__enter__()

    def __call__(self) -> Tensor:
        return self.step()

    def close(self) -> None:
        """End the simulation."""
        self.context.__exit__(None, None, None)


def captured(step: Work) -> Work:
    """The replay of a captured step; whatever capturing raises passes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def batch_norms_alone(device: str, network: tuple[int, int, int]) -> list[Tensor]:
    """What the first batch norm of a simulated step gives: products and so all that follows may differ by device."""
    step = Step(network, "cpu")
    layer = next(module for module in step.model.modules() if isinstance(module, nn.BatchNorm2d)).to(device)
    x = torch.randn(2, layer.num_features, 4, 4).to(device).requires_grad_()
    with ns.simulate(layer, "fp16") as run:
        layer(x).float().square().sum().backward()
    assert x.grad is not None
    return [x.grad.cpu(), *counted(run.ledger)]


def batch_norms_replayed(device: str, network: tuple[int, int, int]) -> list[Tensor]:
    """What six steps of a batch norm in random bits give, captured where there is a GPU, and count."""
    layer = nn.BatchNorm2d(network[0]).to(device)
    torch.manual_seed(0)
    batches = [torch.randn(2, network[0], 4, 4).to(device) for _ in range(6)]

    def step(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x).float().square().sum(), x)[0]

    with ns.simulate(layer, "bf16/stochastic/bf16", seed=1) as run:
        taken = step if device == "cpu" else run.capture(step)
        found = [taken(x).detach().clone().cpu() for x in batches]
    return [*found, *counted(run.ledger)]


def steps(sizes: Sizes) -> Iterator[Row]:
    """The simulated step beside the plain one; captured, each beside the plain one captured."""

    def make(device: str) -> Made:
        plain, inner = Step(sizes.network, device), Simulated(Step(sizes.network, device))

        def simulated() -> None:
            inner()

        def outside() -> None:
            with modes_off():  # else the open simulation would round what the plain network does, too
                plain()

        made: dict[str, Work] = {PLAIN: outside, SIMULATED: simulated}
        return Made(made, {SIMULATED: lambda device: batch_norms_alone(device, sizes.checked_network)}, inner.close)

    def make_captured(device: str) -> Made:
        if device == "cpu":
            raise UnavailableError("a CPU captures nothing")
        plain = captured(Step(sizes.network, device))
        inner = Simulated(Step(sizes.network, device))
        try:
            replay = inner.run.capture(inner.step)
            for _ in range(4):  # the fourth call captures
                replay()
        except Exception as reason:
            inner.close()
            raise UnavailableError(f"capturing raised {type(reason).__name__}: {reason!s:.120}") from reason
        works: dict[str, Work] = {f"{PLAIN}, captured": plain, f"{SIMULATED}, captured": replay}
        check = {f"{SIMULATED}, captured": lambda device: batch_norms_replayed(device, sizes.checked_network)}
        return Made(works, check, inner.close)

    size = "w{} {}x{} batch {}".format(sizes.network[0], sizes.network[1], *sizes.network[1:])
    yield Row("ResNet-18 step, eager", size, make, {SIMULATED: ("6", "3")})
    yield Row("ResNet-18 step, captured", size, make_captured, {f"{SIMULATED}, captured": ("3", "1.5")})


@dataclass(frozen=True)
class Once:
    """What is measured once, in seconds: its own time, and that of what has to be there for any."""

    name: str
    floor: str
    aim: str
    seconds: Callable[[str, float], float]


FIRST_USE = """
import sys, time, torch, normstab as ns
device, what = sys.argv[1:]
x = torch.randn({side}, {side}, device=device)
layer = ns.BatchNorm2d(4, norm='l1').to(device)
layer.arithmetic = ns.Arithmetic('fp16', ledger=ns.Ledger()).at('bn')
images = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
works = {{
    'cast': lambda: ns.cast(x, 'fp16', ledger=ns.Ledger(), site='a'),
    'add': lambda: ns.Arithmetic('fp16').add(x, x),
    'sum': lambda: ns.Arithmetic('fp16/nearest/fp16:lanes64').sum(x, 1),
    'batch norm': lambda: layer(images).sum().backward(),
}}
def seconds():
    start = time.perf_counter()
    works[what]()
    if device != 'cpu':
        torch.cuda.synchronize()
    return time.perf_counter() - start
seconds_of_first, seconds_of_second = seconds(), seconds()
print(seconds_of_first - seconds_of_second)
"""


def first_use(what: str) -> Callable[[str, float], float]:
    """The seconds that a first call takes beyond the second one, in a process with empty caches of kernels."""

    def seconds(device: str, limit_s: float) -> float:
        with tempfile.TemporaryDirectory() as empty:
            caches = dict.fromkeys(("TRITON_CACHE_DIR", "NUMBA_CACHE_DIR"), empty)
            command = [sys.executable, "-c", FIRST_USE.format(side=64), device, what]
            done = _done(command, limit_s, **caches)
        return float(done.stdout.splitlines()[-1])

    return seconds


def scenario_run(scenario: Path) -> Callable[[str, float], float]:
    """The seconds of `normstab run`, a process like any user's, its kernels compiled before."""

    def seconds(device: str, limit_s: float) -> float:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "normstab", "run", str(scenario), "--device", device, "--out", out]
            start = time.perf_counter()
            _done(command, limit_s)
            elapsed_s = time.perf_counter() - start
            for note, cells in remarks(Path(out)).items():
                print(f"{scenario.stem}: {note}: {cells} cells", file=sys.stderr)
            return elapsed_s

    return seconds


def remarks(out: Path) -> Counter[str]:
    """Return what the records below a folder say of CUDA graphs, and how many of them."""
    records = [json.loads(path.read_text()) for path in sorted(out.rglob("record.json"))]
    return Counter(note for record in records for note in record["notes"] if "CUDA graphs" in note)


def _done(command: list[str], limit_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a process to its end; raise UnavailableError where it takes too long or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired as reason:
        raise UnavailableError(f"not done in the {limit_s:.0f} s that were left") from reason
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UnavailableError(f"exit code {done.returncode}: {''.join(last)!s:.120}")
    return done


def once(scenario: Path) -> list[Once]:
    """What is measured once, the quick ones first."""
    rows = [Once(f"first use: {what}", "5 s", "2 s", first_use(what)) for what in ("cast", "add", "sum", "batch norm")]
    return [*rows, Once(f"normstab run {scenario.stem}", "60 s", "20 s", scenario_run(scenario))]
