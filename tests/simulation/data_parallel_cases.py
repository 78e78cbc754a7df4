"""What the processes of `test_data_parallel` do, and what one process does in their place."""

import copy
import os
import time
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import normstab as ns
import normstab.numerics.kernels.cpu.cpu_operations
import normstab.numerics.kernels.cpu.cpu_tensors
import normstab.simulation
from normstab.numerics.precision import Precision
from normstab.simulation.ranks.one_process import all_reduce_in_one_process

STEPS, BATCH = 2, 6
MACHINES = {
    "sgd_wide": ("fp16", "sgd"),
    "sgd_ring": ("fp16;collective=fp16", "sgd"),
    "adamw_tree": ("bf16;collective=bf16:tree", "adamw"),
    "sgd_stochastic": ("fp16/stochastic:11;collective=fp16:ring", "sgd"),
    "sgd_uniform": ("uniform:fp16;collective=e5m6:tree", "sgd"),
    "sgd_no_masters": ("half;collective=bf16", "sgd"),
}


def network():
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2)]
    return nn.Sequential(*layers)


def optimizer(name, model):
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    return torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)


def batch(step, rank):
    torch.manual_seed(100 * step + rank)
    return torch.randn(BATCH, 1, 4, 4) * (1 + rank), torch.randn(BATCH, 2)


def loss_of(model, step, rank):
    x, y = batch(step, rank)
    return (model(x) - y).square().mean()


def parameters_of(model):
    return [x.detach().clone() for x in model.parameters()]


def firsts_of(ledger):
    return {counter: ledger.first(counter) for counter in ("overflow", "underflow", "subnormal", "nan_produced")}


def trained(machine, rank):
    """Train a DDP network in a simulation and return parameters, tallies and firsts."""
    precision, kind = MACHINES[machine]
    model = DistributedDataParallel(network())
    steps = optimizer(kind, model)
    with ns.simulate(model, precision, optimizer=steps) as run:
        for step in range(STEPS):
            steps.zero_grad()
            loss_of(model, step, rank).backward()
            steps.step()
    return {
        "parameters": parameters_of(model),
        "ledger": {str(site): tally for site, tally in run.ledger.items()},
        "firsts": firsts_of(run.ledger),
        "report": run.report(),
        "unrecognised": dict(run.unrecognised),
        "notes": run.notes,
    }


def sgd_wide(rank, size):
    return trained("sgd_wide", rank)


def sgd_ring(rank, size):
    return trained("sgd_ring", rank)


def adamw_tree(rank, size):
    return trained("adamw_tree", rank)


def sgd_stochastic(rank, size):
    return trained("sgd_stochastic", rank)


def sgd_uniform(rank, size):
    return trained("sgd_uniform", rank)


def sgd_no_masters(rank, size):
    return trained("sgd_no_masters", rank)


@contextmanager
def one_thread():
    """As the processes have: products in several threads add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def in_one_process(machine, size, *, is_split=False):
    """Do what `trained` does in each process, rank by rank: replicas, each with a ledger, and joined gradients."""
    text, kind = (SHARDED if is_split else MACHINES)[machine]
    precision, of_replica = Precision.parse(text), without_collective(text)
    first = network_to_split() if is_split else network()
    replicas = [copy.deepcopy(first) for _ in range(size)]
    optimizers = [optimizer(kind, replica) for replica in replicas]
    ledgers = [ns.Ledger() for _ in range(size)]
    joined = ns.Ledger()
    for step in range(STEPS):
        for replica in replicas[size if is_split else 1 :]:  # as DDP does at the begin of a forward
            for buffer, of_first in zip(replica.buffers(), replicas[0].buffers(), strict=True):
                buffer.copy_(of_first)
        for rank, replica in enumerate(replicas):
            optimizers[rank].zero_grad()
            with ns.simulate(replica, of_replica, optimizer=optimizers[rank], ledger=ledgers[rank]) as run:
                run.arithmetic.clock.set(step)
                run.arithmetic.clock.share = rank
                loss_of(replica, step, rank).backward()
        join(precision, replicas, joined, step)
        for rank, replica in enumerate(replicas):
            # Of split parameters each process updates its part: together they count what one process does.
            ledger = ns.Ledger() if is_split and rank > 0 else ledgers[rank]
            with ns.simulate(replica, of_replica, optimizer=optimizers[rank], ledger=ledger) as run:
                run.arithmetic.clock.set(step)
                optimizers[rank].step()
    whole = ns.Ledger()
    whole.become_joined([*ledgers, joined])
    return parameters_of(replicas[0]), {str(site): tally for site, tally in whole.items()}


def join(precision, replicas, ledger, step):
    """Give every replica the joined gradients."""
    named = [dict(replica.named_parameters()) for replica in replicas]
    is_wide = precision.casts == "honour" and precision.master == "on"
    for name in named[0]:
        key = ns.Key(seed=0, step=step)
        kept = ns.Arithmetic("fp32" if is_wide else precision, ledger=ledger, key=key).at(name).towards("backward")
        kept = kept.in_format("gradient")
        wire = None
        order = "ring"
        if precision.collective is not None:
            narrow = ns.Arithmetic(precision.collective.format, rounding=precision.rounding, ledger=ledger, key=key)
            wire, order = narrow.at(name).towards("backward"), precision.collective.order
        mean = all_reduce_in_one_process([found[name].grad for found in named], kept, wire=wire, order=order)
        for found in named:
            found[name].grad.copy_(mean)


def without_collective(text):
    return ";".join(part for part in text.split(";") if not part.startswith("collective"))


# ------------------------------------------------------------------------------------------------ fully_shard

SHARDED = {
    "split_sgd": ("fp16", "sgd"),
    "split_adamw": ("bf16;collective=bf16:tree", "adamw"),
    "split_ring": ("fp16;collective=fp16", "sgd"),
    "split_uniform": ("uniform:fp16;collective=e5m6:tree", "sgd"),
    "split_no_masters": ("half", "sgd"),
}


def network_to_split():
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 4)]
    return nn.Sequential(*layers, nn.Linear(4, 2, bias=False))


def split(machine, rank):
    """Train a sharded network in a simulation and return whole parameters and tallies."""
    precision, kind = SHARDED[machine]
    model = network_to_split()
    fully_shard(model[4])
    fully_shard(model)
    steps = optimizer(kind, model)
    with ns.simulate(model, precision, optimizer=steps) as run:
        for step in range(STEPS):
            steps.zero_grad()
            loss_of(model, step, rank).backward()
            steps.step()
    return {
        "parameters": [x.full_tensor().detach().clone() for x in model.parameters()],
        "ledger": {str(site): tally for site, tally in run.ledger.items()},
        "unrecognised": dict(run.unrecognised),
        "notes": run.notes,
    }


def split_sgd(rank, size):
    return split("split_sgd", rank)


def split_adamw(rank, size):
    return split("split_adamw", rank)


def split_ring(rank, size):
    return split("split_ring", rank)


def split_uniform(rank, size):
    return split("split_uniform", rank)


def split_no_masters(rank, size):
    return split("split_no_masters", rank)


def split_afterwards(rank, size):
    """After a simulation fully_shard reduces as it does without one."""
    gradients = []
    for is_simulated in (True, False):
        torch.manual_seed(1)
        model = nn.Linear(5, 4)
        fully_shard(model)
        if is_simulated:
            with ns.simulate(model, "fp16"):
                model(torch.ones(2, 5)).sum().backward()
            model.zero_grad()
        torch.manual_seed(rank)
        model(torch.randn(2, 5)).square().sum().backward()
        gradients.append(model.weight.grad.full_tensor())
    return torch.equal(*gradients)


def split_scaled(rank, size):
    """In step 0 the gradient of rank 1's part overflows under a dynamic loss scale."""
    torch.manual_seed(1)
    model = nn.Linear(4, 2, bias=False)
    fully_shard(model)
    steps, scales = torch.optim.SGD(model.parameters(), lr=0.1), []
    with ns.simulate(model, "fp16", optimizer=steps, loss_scale="dynamic") as run:
        for step in range(2):
            weight = torch.tensor([1e-3, 1e3 if step == 0 else 1e-3])
            run.scaler.scale((model(torch.ones(2, 4)) * weight).sum()).backward()
            run.scaler.step(steps)
            run.scaler.update()
            steps.zero_grad()
            scales.append((run.scaler.get_scale(), run.scaler.skipped_steps))
    return scales, run.step


def refusal(model):
    """Return what `simulate` says of a model that it refuses."""
    try:
        with ns.simulate(model, "fp16"):
            pass
    except ns.NormstabError as error:
        return str(error)
    return "nothing was raised"


def split_policy(rank, size):
    """A policy that converts the parameters itself."""
    model = nn.Linear(5, 4)
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    return refusal(model)


# ------------------------------------------------------------------------------------------------ other cases


def overflow_alone(rank, size):
    """Rank 1 alone overflows, in step 0."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    with ns.simulate(model, "fp16") as run:
        for step in range(2):
            x = torch.full((2, 3), 60000.0 if rank == 1 and step == 0 else 0.5)
            (model(x) * (100.0 if rank == 1 else 1.0)).sum().backward()
        during = run.report()
    return {"report": run.report(), "during": during, "first": run.first("overflow"), "rank": run.rank}


def continued(rank, size):
    """Two simulations count into one ledger."""
    model, ledger, counts = DistributedDataParallel(nn.Linear(3, 2)), ns.Ledger(), []
    for _ in range(2):
        with ns.simulate(model, "fp16", ledger=ledger):
            model(torch.ones(2, 3)).sum().backward()
        counts.append(ledger.total().count)
    return counts


def afterwards(rank, size):
    """After a simulation DDP reduces as it does without one."""
    gradients = []
    for is_simulated in (True, False):
        torch.manual_seed(1)
        model = DistributedDataParallel(nn.Linear(5, 3))
        if is_simulated:
            with ns.simulate(model, "fp16"):
                model(torch.ones(2, 5)).sum().backward()
            model.zero_grad()
        torch.manual_seed(rank)
        model(torch.randn(2, 5)).square().sum().backward()
        gradients.append(model.module.weight.grad.clone())
    return torch.equal(*gradients)


def added_up(wrapped, synchronizes):
    """Add up the gradients 2048 and 1 and 1 of a layer without master weights, whose ranks meet in the third."""
    layer = nn.Linear(1, 2, bias=False)
    model = wrapped(layer)
    with ns.simulate(model, "half", losses=True) as run:
        for i, value in enumerate((2048.0, 1.0, 1.0)):
            with synchronizes(model, i == 2):
                model(torch.full((1, 1), value)).sum().backward()
    gradient = layer.weight.grad
    whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.flatten().tolist(), sum(tally.absorbed for tally in run.ledger.values())


def sums(rank, size):
    """Gradients add up in each rank's `.grad`, and meet at the end."""
    return added_up(DistributedDataParallel, lambda model, is_last: nullcontext() if is_last else model.no_sync())


def split_sums(rank, size):
    """Gradients add up in whole and in parts."""

    def whole(model, is_last):
        model.set_requires_gradient_sync(is_last)
        return nullcontext()

    return added_up(fully_shard, whole), added_up(fully_shard, lambda model, is_last: nullcontext())


def bits(rank, size):
    """Every rank casts the same numbers with stochastic rounding."""
    model = DistributedDataParallel(nn.Linear(64, 1, bias=False))
    with ns.simulate(model, "uniform:fp16/stochastic:11") as run, torch.no_grad():
        x = run.arithmetic.cast(torch.full((4096,), 1 + 2.0**-11))
        weight = run.arithmetic.in_format("parameter").cast(torch.full((4096,), 1 + 2.0**-11), "weight")
    return x, weight


def own_hook(rank, size):
    """A module with a communication hook of the user's."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    model.register_comm_hook(None, lambda state, bucket: None)
    return refusal(model)


def left_early(rank, size):
    """Rank 1 leaves its simulation by an exception of its own; the others come to their end."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    began = time.monotonic()
    try:
        with ns.simulate(model, "fp16"):
            model(torch.ones(2, 3)).sum().backward()
            if rank == 1:
                raise ZeroDivisionError("of rank 1")
    except (ns.NormstabError, ZeroDivisionError) as error:
        return str(error), time.monotonic() - began
    return "nothing was raised", 0.0


def died(rank, size):
    """Rank 1 dies in step 1, in the middle of a simulation."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    began = time.monotonic()
    try:
        with ns.simulate(model, "fp16"):
            for step in range(3):
                if rank == 1 and step == 1:
                    os._exit(9)
                model(torch.ones(2, 3)).sum().backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - began
    return "nothing was raised", 0.0
