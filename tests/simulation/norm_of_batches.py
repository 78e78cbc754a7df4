"""Batch norm of several batches in one process, each batch's sums formed by themselves and joined: the oracle."""

import torch

import normstab as ns
from normstab.numerics.precision import Precision
from normstab.simulation.ranks.one_process import all_reduce_in_one_process
from tests.simulation.norms_over_ranks_cases import EPS, FULL, MACHINES, MOMENTUM, STEPS, WIDE, C, batch, layer


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
