"""What the processes of `test_torchrun` do with single cells, and what one process does in their place."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

import normstab as ns
from normstab.errors import NormstabError
from normstab.experiment.data.datasets import load_dataset
from normstab.experiment.data.sampling import batches, epoch_order
from normstab.experiment.network.models import build_model
from normstab.experiment.records.cell_record import record_document
from normstab.experiment.records.machine import settled
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import DatasetSpec, ModelSpec, NumericsSpec, OptimizerSpec, SweepSpec, TrainSpec
from normstab.experiment.training.batch_loss import batch_loss, outputs
from normstab.experiment.training.evaluation import weights_sha256
from normstab.experiment.training.steps.training_session import Session
from normstab.experiment.training.train_cell import run_cell
from normstab.numerics.precision import Precision
from normstab.simulation.ranks.one_process import all_reduce_in_one_process
from tests.experiment.cells import small_cell

PRECISIONS = {
    "ring": "uniform:fp16;collective=fp16:ring",
    "wide": "fp16",
    "stochastic": "uniform:fp16/stochastic:11;collective=e5m6:tree",
}
SEED, LR, BATCH, IMAGES = 3, 0.25, 30, 75  # the last batch has 15: parts are uneven for 2 and for 4
MLP = DatasetSpec("fashion-mnist-sample", size=8, train=IMAGES, test=40), ModelSpec("mlp", width=8, norm="none")
# Networks for tokens: words of uneven length, so that a part has more of them than another, and another library's.
TOKENS = {
    "words": (
        DatasetSpec("cmudict-sample", train=IMAGES, test=8),
        ModelSpec("transformer", width=8, layers=1, heads=2),
    ),
    "llama": (
        DatasetSpec("kjv-sample", size=16, train=IMAGES, test=8),
        ModelSpec("tests.experiment.foreign_nets:llama"),
    ),
}


def cell_of(precision, size, what=MLP, **train):
    """Return a small cell that `size` processes train."""
    return replace(
        small_cell(),
        dataset=what[0],
        model=what[1],
        train=TrainSpec(
            epochs=2,
            batch=BATCH,
            optimizer=OptimizerSpec(lr=LR, momentum=0.5),
            seed=SEED,
            ranks=size,
            probe_every=0,
            **train,
        ),
        numerics=NumericsSpec(precision),
        reference_id=None,
        depends_on=(),
    )


def named_cell(name, size):
    """Return the cell of a precision or of a network for tokens."""
    return cell_of(PRECISIONS["ring"], size, TOKENS[name]) if name in TOKENS else cell_of(PRECISIONS[name], size)


def shared_folder(rank):
    """Return one folder for all processes."""
    told = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(told, src=0)
    return Path(told[0])


def ran(name, rank, size):
    """Run a cell in all processes and return its record, as plain data, and what lies in its folder."""
    cell = named_cell(name, size)
    folder = shared_folder(rank) / cell.id
    record = run_cell(cell, folder)
    dist.barrier()
    return record_document(record), sorted(path.name for path in folder.iterdir()), losses_in(folder)


def losses_in(folder):
    """Return the losses of a cell's log."""
    return [step.loss for step in read_steps(folder)]


def case_of(name):
    def case(rank, size):
        return ran(name, rank, size)

    return case


globals().update({f"cell_{name}": case_of(name) for name in (*PRECISIONS, *TOKENS)})


def resumed(rank, size):
    """A run that every process leaves in step 4 goes on from its checkpoint, to the record of one that went through."""
    cell = cell_of(PRECISIONS["stochastic"], size)
    whole = run_cell(cell, shared_folder(rank) / cell.id)
    folder, step = shared_folder(rank) / cell.id, Session.step

    def leave(self, *args):
        if self.history.step == 4:
            raise RuntimeError("left in step 4")
        return step(self, *args)

    try:
        with mock.patch.object(Session, "step", leave):
            run_cell(cell, folder, checkpoint_s=0.0)
    except RuntimeError:
        dist.barrier()
    notes = []
    again = run_cell(cell, folder, report=lambda progress: notes.append(progress.note))
    return record_document(whole) == record_document(again), [note for note in notes if note]


def swept(rank, size):
    """Sweep in all processes, of which the first does it; return the record and what lies in the folder."""
    cell = small_cell(model__name="lenet", model__width=4, cell__sweep=SweepSpec((-1, 1)))
    folder = shared_folder(rank) / cell.id
    document = record_document(run_cell(cell, folder))
    dist.barrier()
    return document, sorted(path.name for path in folder.iterdir())


def too_small(rank, size):
    """A batch that has not a sample for every process."""
    cell = cell_of("fp16", size)
    cell = replace(cell, train=replace(cell.train, batch=1))
    try:
        run_cell(cell, shared_folder(rank) / cell.id)
    except NormstabError as error:
        return str(error)
    return "nothing was raised"


def overflowing(rank, size):
    """A cell that becomes non-finite ends in all processes alike."""
    cell = cell_of("uniform:fp16", size, loss_multiplier=2.0**20)
    record = run_cell(cell, shared_folder(rank) / cell.id)
    return record_document(record)


def exponents(rank, size):
    """A wide cell that records exponents, in all processes and in one: how many were counted, by site."""
    cell = cell_of("native", size)
    cell = replace(cell, numerics=replace(cell.numerics, histogram=True))
    alone = replace(cell, train=replace(cell.train, ranks=1))
    records = [run_cell(each, shared_folder(rank) / f"{each.id}-{rank}") for each in (cell, alone)]
    return [{site: tally.count for site, tally in record.epochs[0].sites.items()} for record in records]


# ------------------------------------------------------------------------------------------- in one process


def in_one_process(name, size):
    """Return losses and the hash of the weights: replicas, a part of every batch for each, gradients joined."""
    cell = named_cell(name, size)
    precision = Precision.parse(cell.numerics.precision)
    of_replica = ";".join(part for part in cell.numerics.precision.split(";") if not part.startswith("collective"))
    with settled("cpu", 1, SEED):
        dataset = load_dataset(cell.dataset, device="cpu")
        model = build_model(cell.model, dataset.task, seed=SEED, weight_scale=1.0)
        replicas = [model, *(copy.deepcopy(model) for _ in range(size - 1))]
        optimizers = [torch.optim.SGD(r.parameters(), lr=LR, momentum=0.5) for r in replicas]
        losses, step = [], 0
        for epoch in range(2):
            order = torch.from_numpy(epoch_order(SEED, epoch, IMAGES))
            for start, end in batches(IMAGES, BATCH):
                found = []
                for rank, part in enumerate(order[start:end].tensor_split(size)):
                    x, y = dataset.train_batch(part, None)
                    predictions = dataset.predictions(part)
                    factor = torch.tensor(size * predictions / dataset.predictions(order[start:end]))
                    with ns.simulate(replicas[rank], of_replica, seed=SEED) as run:
                        run.arithmetic.clock.set(step)
                        run.arithmetic.clock.share = rank
                        loss = batch_loss(outputs(replicas[rank], x), y, 0.0)
                        loss.backward(factor)
                    found.append((loss.item(), predictions))
                losses.append(sum(loss * n for loss, n in found) / sum(n for _, n in found))
                join(precision, replicas, step)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                step += 1
    return losses, weights_sha256(replicas[0])


def join(precision, replicas, step):
    """Give every replica the joined gradients."""
    named = [dict(replica.named_parameters()) for replica in replicas]
    for name in named[0]:
        key, wire, order = ns.Key(seed=SEED, step=step), None, "ring"
        kept = ns.Arithmetic(precision if precision.casts == "ignore" else "fp32", key=key)
        kept = kept.at(name).towards("backward").in_format("gradient")
        if precision.collective is not None:
            wire = ns.Arithmetic(precision.collective.format, rounding=precision.rounding, key=key)
            wire, order = wire.at(name).towards("backward"), precision.collective.order
        mean = all_reduce_in_one_process([found[name].grad for found in named], kept, wire=wire, order=order)
        for found in named:
            found[name].grad.copy_(mean)
