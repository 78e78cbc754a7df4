"""What the processes of `test_norms_over_ranks` do; `norm_of_batches` does the same in one process."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import normstab as ns
import normstab.numerics.kernels.cpu.cpu_operations
import normstab.numerics.kernels.cpu.cpu_tensors
import normstab.simulation
from tests.simulation.data_parallel_cases import refusal

C, EPS, MOMENTUM, STEPS = 3, 1e-3, 0.25, 2
MACHINES = {
    "wide_join": "uniform:fp16",
    "ring": "uniform:fp16;collective=fp16:ring",
    "tree": "uniform:bf16/nearest/bf16:sequential;collective=e5m6:tree",
    "overflowing": "uniform:fp16/nearest/fp16:pairwise;collective=fp16:ring",
    "roles": "uniform:fp16/nearest/fp32:blocked4;sum=fp32;square=fp32;variance=fp32;collective=bf16",
    "exact": "uniform:fp16/toward-zero/exact",
    "native_sums": "uniform:fp16/nearest/native",
    "blockwise": "uniform:fp16/nearest/fp16;mean=blockwise4;collective=fp16:tree",
    "welford": "uniform:fp16;mean=welford",
    "stochastic": "uniform:fp16/stochastic:11/fp16:pairwise;collective=fp16:ring",
    "reciprocal": "uniform:fp16;divide=reciprocal",
}
SCALES = {"overflowing": 150.0}
FULL = {2: [5, 3], 4: [4, 2, 0, 7]}  # how many samples each process has: uneven, and none at all


def batch(machine, step, rank, samples):
    """Return the input (N, C, L) of one process in one step, and the gradient of its output."""
    torch.manual_seed(10 * step + rank)
    x = torch.randn(samples, C, 4) * SCALES.get(machine, 2.0) + torch.arange(C).view(1, C, 1)
    return x, torch.randn(samples, C, 4) * 0.25


def layer(dtype=torch.float32):
    """Return a batch norm over processes, its parameters away from 1 and 0."""
    made = nn.SyncBatchNorm(C, eps=EPS, momentum=MOMENTUM).to(dtype)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([1.25, 0.5, 3.0]))
        made.bias.copy_(torch.tensor([0.5, -1.0, 0.25]))
    return made


def in_ddp(*modules):
    """Return modules under a DDP, which takes a SyncBatchNorm of the CPU only when it is put in afterwards."""
    plain = [nn.BatchNorm1d(C).to(m.weight) if isinstance(m, nn.SyncBatchNorm) else m for m in modules]
    network = nn.Sequential(*plain)
    model = DistributedDataParallel(network)
    for i, module in enumerate(modules):
        if isinstance(module, nn.SyncBatchNorm):
            for name, parameter in network[i].named_parameters():
                with torch.no_grad():
                    parameter.copy_(getattr(module, name))
                setattr(module, name, parameter)
            network[i] = module
    return model


def normalized(machine, rank, samples):
    """Run a SyncBatchNorm forward and backward in every process."""
    model, steps = in_ddp(layer()), []
    norm, batches = model.module[0], [batch(machine, step, rank, samples[rank]) for step in range(STEPS)]
    with ns.simulate(model, MACHINES[machine]) as run:
        for step, (x, grad) in enumerate(batches):
            model.zero_grad()
            run.arithmetic.clock.set(step)
            output = model(x.requires_grad_())
            output.backward(grad)
            steps.append([output.detach(), x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
    ledger = {str(site): tally for site, tally in run.ledger.items() if tally.count}
    return {"steps": steps, "running": [norm.running_mean, norm.running_var], "ledger": ledger, "notes": run.notes,
            "unrecognised": dict(run.unrecognised), "is_given_back": "forward" not in vars(norm)}  # fmt: skip


def of_machine(machine):
    def case(rank, size):
        return normalized(machine, rank, FULL[size])

    return case


globals().update({machine: of_machine(machine) for machine in MACHINES})


# --------------------------------------------------------------------------- norms that are wide inside; networks

WIDE = {"half": "half", "bf16": "bfloat16", "wide_ring": "half;collective=fp16:ring", "amp": "amp-fp16"}


def wide(recipe, rank, samples):
    """Run a SyncBatchNorm once, forward and backward, on a machine whose norms are float32 inside."""
    model = in_ddp(layer())
    norm, (x, grad) = model.module[0], batch(recipe, 0, rank, samples)
    dtype = torch.bfloat16 if recipe == "bf16" else torch.float16
    with ns.simulate(model, WIDE[recipe]) as run:
        if recipe == "amp":
            x = x.to(dtype)
            with torch.autocast("cpu", torch.float16):
                output = model(x.requires_grad_())
        else:
            output = model(x.requires_grad_())
        output.backward(grad.to(output.dtype))
    running = [norm.running_mean, norm.running_var]
    return {"found": [output.detach(), x.grad], "running": running, "notes": run.notes, "ledger": run.ledger,
            "dtype": output.dtype, "unrecognised": dict(run.unrecognised)}  # fmt: skip


def of_recipe(recipe):
    def case(rank, size):
        return wide(recipe, rank, FULL[size][rank])

    return case


globals().update({f"on_{recipe}": of_recipe(recipe) for recipe in WIDE})


LAWS = {"fp64": {"precision": "fp64"}, "native_layer": {"precision": "fp64", "rules": {"1": "native"}},
        "native": {"precision": "native"}}  # fmt: skip


def network(norm):
    """Return the modules of a network around a norm."""
    torch.manual_seed(5)
    return [nn.Conv1d(2, C, 3).double(), norm, nn.ReLU(), nn.Conv1d(C, 2, 1).double()]


def samples_of(rank, count):
    """Return the batch of one process."""
    torch.manual_seed(rank)
    return torch.randn(count, 2, 6, dtype=torch.float64) + rank


def loss_of(output):
    """Return a loss whose gradients add up over samples."""
    return output.pow(3).sum()


def trained(law, rank, samples):
    """Return gradients and running statistics of one step, and outputs in evaluation, in float64."""
    model = in_ddp(*network(layer(torch.float64)))
    x = samples_of(rank, samples)
    with ns.simulate(model, **LAWS[law]) as run:
        loss_of(model(x)).backward()
    model.eval()
    with ns.simulate(model, **LAWS[law]):
        evaluated = model.module(samples_of(0, 2)).detach()
    norm = model.module[1]
    gradients = [parameter.grad for parameter in model.parameters()]
    return [*gradients, norm.running_mean, norm.running_var, evaluated], run.rank


def of_law(law):
    def case(rank, size):
        return trained(law, rank, FULL[size][rank])

    return case


globals().update({f"law_{law}": of_law(law) for law in LAWS})


def by_torch(size):
    """Return the same of torch's batch norm, of the whole batch in one process."""
    norm = nn.BatchNorm1d(C, eps=EPS, momentum=MOMENTUM).double()
    norm.load_state_dict(layer(torch.float64).state_dict())
    model = nn.Sequential(*network(norm))
    loss_of(model(torch.cat([samples_of(rank, count) for rank, count in enumerate(FULL[size])]))).backward()
    found = [parameter.grad / size for parameter in model.parameters()]  # DDP has the mean over ranks
    model.eval()
    return [*found, norm.running_mean, norm.running_var, model(samples_of(0, 2)).detach()]


# ------------------------------------------------------------------------------------------------ other cases


def empty_on_one(rank, size):
    """One process has no samples at all."""
    return trained("fp64", rank, [6, 0][rank])


def empty_on_all(rank, size):
    """No process has a sample."""
    model = in_ddp(layer())
    with ns.simulate(model, "fp16"):
        output = model(torch.zeros(0, C, 4, requires_grad=True))
        output.sum().backward()
    norm = model.module[0]
    return output.shape, norm.weight.grad, norm.running_mean, norm.running_var


def kinds(rank, size):
    """Without affine parameters, without running statistics, and with their plain mean (momentum None)."""
    found = []
    for options in ({"affine": False}, {"track_running_stats": False}, {"momentum": None}):
        model = in_ddp(nn.Linear(2, C))
        norm = nn.SyncBatchNorm(C, **options)
        model.module.append(norm)
        with ns.simulate(model, "fp64") as run:
            for step in range(3):
                torch.manual_seed(100 * step + rank)
                output = model(torch.randn(4 - rank, 2))
                output.sum().backward()
        found.append((output.detach(), norm.running_mean, norm.running_var, run.ledger["1"].count))
    return found


def copied(rank, size):
    """A copy of the network made inside a simulation is a network of its own."""
    model = in_ddp(layer())
    with ns.simulate(model, "fp16"):
        other = copy.deepcopy(model.module)
        other[0].weight.data.fill_(2.0)
        bound = other[0].forward.__self__ is other[0]
    other.eval()
    return bound, other(torch.ones(1, C, 1)).flatten().tolist()


class WithActivation(nn.SyncBatchNorm):
    """What timm's layers are: a norm that does more."""

    def forward(self, x):
        return super().forward(x).relu()


def subclass(rank, size):
    """A SyncBatchNorm with a forward pass of its own."""
    model = in_ddp(nn.Linear(2, C))
    model.module.append(WithActivation(C))
    return refusal(model)


class Checkpointed(nn.Sequential):
    """A network that may run its norm in a checkpoint."""

    is_checkpointed = False

    def forward(self, x):
        """Run it."""
        return checkpoint(self[0], x, use_reentrant=False) if self.is_checkpointed else self[0](x)


def checkpointed(rank, size):
    """Activation checkpointing runs the norm once more: it draws the same bits, and counts apart."""
    gradients = []
    for is_checkpointed in (False, True):
        model = in_ddp(layer())
        network = Checkpointed(*model.module)
        network.is_checkpointed = is_checkpointed
        norm, (x, grad) = network[0], batch("stochastic", 0, rank, 4 - rank)
        with ns.simulate(network, "uniform:fp16/stochastic:11") as run:
            run.arithmetic.clock.share = rank
            output = network(x.requires_grad_())
            output.backward(grad)
        gradients.append((output.detach(), x.grad, norm.weight.grad))
    return [torch.equal(a, b) for a, b in zip(*gradients, strict=True)], run.ledger.recomputed["0"].count
