"""What the processes of `test_norms_over_ranks` do, and batch norm over several batches in one process instead."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import normstab as ns
import normstab.numerics.kernels.cpu.cpu_operations
import normstab.numerics.kernels.cpu.cpu_tensors
import normstab.simulation
from normstab.numerics.precision import Precision
from normstab.simulation.ranks.one_process import all_reduce_in_one_process

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


# ------------------------------------------------------------------------------------------- in one process


class OneProcess:
    """Batch norm of several batches, formed batch by batch and joined: its mathematics, and its sites."""

    def __init__(self, machine, samples):
        self.precision = Precision.parse(MACHINES[machine])
        self.ledger, self.ranks = ns.Ledger(), range(len(samples))
        values = sum(samples) * 4
        self.n, self.here = values, [count * 4 for count in samples]
        self.running = [torch.zeros(C), torch.ones(C)]

    def begin(self, step):
        """Begin a step: new arithmetics, on one clock."""
        key = ns.Key(step=step)
        self.ar = ns.Arithmetic(self.precision, ledger=self.ledger, key=key).at("0")
        collective = self.precision.collective
        self.wire = self.order = None
        if collective is not None:
            self.wire = ns.Arithmetic(collective.format, rounding=self.precision.rounding, ledger=self.ledger, key=key)
            self.wire, self.order = self.wire.at("0"), collective.order

    def each(self, function, *lists):
        """Return what every rank computes of its own: with bits of its own."""
        found, clock = [], self.ar.clock
        before = clock.moment()
        for rank, operands in enumerate(zip(*lists, strict=True)):
            clock.turn_to(before)  # the ranks number their calls alike
            clock.share = rank
            found.append(function(*operands))
        clock.share = 0
        return found

    def alike(self, function, *operands):
        """Return what every rank computes alike, as often as there are ranks."""
        found, before = None, self.ar.clock.moment()
        for _ in self.ranks:
            self.ar.clock.turn_to(before)
            found = function(*operands)
        return found

    def mean(self, x, ar, name):
        """Return the mean over all ranks, as each has it."""
        precision, wire = self.precision, self.wire
        if ar.direction == "backward" and wire is not None:
            wire = wire.towards("backward")
        kept = precision.accumulation.format or precision.sum or "fp64"
        if precision.mean != "sum":
            kept = ar.format
            means = self.each(lambda v: torch.zeros(C) if v.numel() == 0 else ar.mean(v, (0, 2), operation=name), x)
            parts = self.each(
                lambda v, n: ar.apply(lambda v: v * n / self.n, v, operation=f"{name}.part"), means, self.here
            )
        elif precision.accumulation.kind == "exact":
            sums = ns.Arithmetic("fp64/nearest/exact", ledger=self.ledger).at("0").towards(ar.direction)
            parts = [sums.sum(v, (0, 2), operation=f"{name}.sum") for v in x]
        elif precision.accumulation.kind == "native":
            parts = [v.double().sum((0, 2)) for v in x]
        else:
            parts = self.each(lambda v: ar.sum(v, (0, 2), operation=f"{name}.sum"), x)
        keeping = ns.Arithmetic(kept, rounding=precision.rounding, ledger=self.ledger, key=ns.Key(step=ar.clock.step))
        keeping = keeping.at("0").towards(ar.direction)
        joined = all_reduce_in_one_process(
            parts, keeping, wire=wire, order=self.order, operation=f"{name}.all_reduce", divisor=1
        )
        if precision.mean != "sum":
            return joined.view(1, C, 1)
        if precision.sum is not None and precision.accumulation.kind != "exact":
            joined = self.alike(lambda: ar.in_format("sum").cast(joined, f"{name}.sum.cast"))
        return self.alike(lambda: ar.div(joined, float(self.n), operation=f"{name}.div")).float().view(1, C, 1)

    def forward(self, x, gamma, beta):
        """Return every rank's output, and what backward needs."""
        ar = self.ar
        x = self.each(lambda v: ar.cast(v, "input"), x)
        gamma = self.each(lambda _: ar.cast(gamma, "gamma").view(1, C, 1), x)
        beta = self.each(lambda _: ar.cast(beta, "beta").view(1, C, 1), x)
        mean = self.mean(x, ar, "mean")
        d = self.each(lambda v: ar.sub(v, mean, operation="centre"), x)
        squares = self.each(lambda d: ar.in_format("square").mul(d, d, operation="square"), d)
        wide = ar.in_format("variance")
        variance = self.mean(squares, wide, "dispersion")
        with_eps = self.alike(lambda: wide.add(variance, ar.constant(EPS, "eps"), operation="eps"))
        scale = self.alike(lambda: ar.sqrt(with_eps, operation="sqrt"))
        unbiased = self.alike(
            lambda: wide.apply(lambda v: v * self.n / (self.n - 1), variance, operation="running_var")
        )
        if self.precision.divide == "reciprocal":
            r = self.each(lambda _: ar.in_format("reciprocal").div(1.0, scale, operation="reciprocal"), x)
            y = self.each(lambda d, r: ar.mul(d, r, operation="divide"), d, r)
        else:
            y = self.each(lambda d: ar.div(d, scale, operation="divide"), d)
        scaled = self.each(lambda y, g: ar.mul(y, g, operation="scale"), y, gamma)
        z = self.each(lambda y, b: ar.add(y, b, operation="shift"), scaled, beta)
        self.move(mean, unbiased)
        return z, (y, scale, gamma)

    def move(self, mean, unbiased):
        """Move the running statistics, in float32 as their buffers are."""
        m, rest = MOMENTUM, 1 - MOMENTUM
        of_buffer = ns.Arithmetic("fp32", ledger=self.ledger).at("0")
        for i, (new, name) in enumerate(((mean, "running_mean"), (unbiased, "running_var"))):
            old, new = self.running[i], new.reshape(-1)
            for _ in self.ranks:
                parts = of_buffer.mul(rest, old, operation=name), of_buffer.mul(m, new, operation=name)
                self.running[i] = of_buffer.add(*parts, operation=name)

    def backward(self, grads, saved):
        """Return every rank's gradients of input, gamma and beta."""
        y, scale, gamma = saved
        ar = self.ar.towards("backward").in_format("gradient")
        dz = self.each(lambda g: ar.cast(g, "grad"), grads)
        d_beta = self.each(lambda g: ar.cast(ar.sum(g, (0, 2), operation="dbeta.sum"), "dbeta"), dz)
        products = self.each(lambda g, y: ar.mul(g, y, operation="dgamma.product"), dz, y)
        d_gamma = self.each(lambda p: ar.cast(ar.sum(p, (0, 2), operation="dgamma.sum"), "dgamma"), products)
        g = self.each(lambda g, a: ar.mul(a, g, operation="scale"), dz, gamma)
        mean_g = self.mean(g, ar, "mean")
        h = self.each(lambda g: ar.sub(g, mean_g, operation="centre"), g)
        product = self.each(lambda g, y: ar.mul(g, y, operation="product"), g, y)
        mean_gy = self.mean(product, ar, "product")
        flow = self.each(lambda y: ar.mul(y, mean_gy, operation="project"), y)
        h = self.each(lambda h, f: ar.sub(h, f, operation="subtract"), h, flow)
        return self.each(lambda h: ar.div(h, scale, operation="divide"), h), d_gamma, d_beta


def at_the_root(precision, step, rank, x):
    """Return an input as the network gets it, cast where it enters."""
    ar = ns.Arithmetic(precision, key=ns.Key(step=step))
    ar.clock.share = rank
    return ar.cast(x, "input")


def over_ranks(one, step, name, gradients):
    """Return the mean of a parameter's gradients as DDP forms it."""
    key, wire = ns.Key(step=step), None
    kept = ns.Arithmetic(one.precision, ledger=one.ledger, key=key).at("0").at(name).towards("backward")
    if one.wire is not None:
        wire = one.wire.at(name).towards("backward")
    return all_reduce_in_one_process(gradients, kept.in_format("gradient"), wire=wire, order=one.order)


def in_one_process(machine, size):
    """Do what `normalized` does in each process."""
    samples, steps, norm = FULL[size], [], layer()
    one = OneProcess(machine, samples)
    for step in range(STEPS):
        one.begin(step)
        batches = [batch(machine, step, rank, samples[rank]) for rank in range(size)]
        given = [at_the_root(one.precision, step, rank, x) for rank, (x, _) in enumerate(batches)]
        outputs, saved = one.forward(given, norm.weight.detach(), norm.bias.detach())
        d_x, d_gamma, d_beta = one.backward([grad for _, grad in batches], saved)
        parameters = [over_ranks(one, step, name, found) for name, found in (("weight", d_gamma), ("bias", d_beta))]
        steps.append([outputs, d_x, *parameters])
    return steps, one.running, {str(site): tally for site, tally in one.ledger.items() if tally.count}


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


def wide_in_one_process(recipe, samples):
    """Do what `wide` does: float32 inside, the partial sums joined, one rounding of what leaves the norm."""
    dtype = torch.bfloat16 if recipe == "bf16" else torch.float16
    n, norm = 4 * sum(samples), layer()
    collective = Precision.parse(WIDE[recipe]).collective
    wire = None if collective is None else ns.Arithmetic(collective.format)

    def joined(values):
        parts, kept = [v.sum((0, 2)) for v in values], ns.Arithmetic("fp32")
        return all_reduce_in_one_process(parts, kept, wire=wire, divisor=1).view(1, C, 1) / n

    batches = [batch(recipe, 0, rank, count) for rank, count in enumerate(samples)]
    x = [x.to(dtype).float() for x, _ in batches]
    gamma, beta = norm.weight.detach().view(1, C, 1), norm.bias.detach().view(1, C, 1)
    mean = joined(x)
    d = [v - mean for v in x]
    variance = joined([v * v for v in d])
    scale = (variance + EPS).sqrt()
    y = [v / scale for v in d]
    z = [(v * gamma + beta).to(dtype) for v in y]
    g = [grad.to(dtype).float() * gamma for _, grad in batches]
    mean_g, mean_gy = joined(g), joined([a * b for a, b in zip(g, y, strict=True)])
    d_x = [((((a - mean_g) - b * mean_gy) / scale).to(dtype)) for a, b in zip(g, y, strict=True)]
    unbiased = variance * n / (n - 1)
    running = [m.reshape(-1) for m in ((1 - MOMENTUM) * 0 + mean * MOMENTUM, (1 - MOMENTUM) + unbiased * MOMENTUM)]
    return z, d_x, running


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
    try:
        with ns.simulate(model, "fp16"):
            pass
    except ns.NormstabError as error:
        return str(error)
    return "nothing was raised"


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
