"""How a cell's network is trained, as plain frozen data: the update rule, its rate over the run, all the rest.

The field annotations are the scenario file's schema too, as those of `spec` are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from normstab.experiment.scenario.checking.field_kinds import STRICT, Count, Fraction, NonNegative, Positive, Seed

__all__ = ["OptimizerSpec", "ScheduleSpec", "TrainSpec"]


@dataclass(frozen=True)
class OptimizerSpec:
    """The update rule. `lr` is the peak of the schedule; `kahan` compensates the parameters' updates.

    `decay_norms` False spares biases, gamma and beta; `decay_only_last` decays the last layer alone.
    """

    __pydantic_config__ = STRICT

    name: Annotated[Literal["sgd", "adam", "adamw"], Field(description="The optimizer.")] = "sgd"
    lr: Annotated[NonNegative, Field(description="Learning rate at the schedule's peak.")] = 0.1
    momentum: Annotated[Fraction, Field(description="Momentum of sgd.")] = 0.0
    nesterov: Annotated[bool, Field(description="Nesterov's form of the momentum.")] = False
    weight_decay: Annotated[NonNegative, Field(description="L2 decay; decoupled for adamw.")] = 0.0
    betas: Annotated[tuple[Fraction, Fraction], Field(description="Decay of Adam's two moments.")] = (0.9, 0.999)
    eps: Annotated[NonNegative, Field(description="eps of Adam.")] = 1e-8
    kahan: Annotated[bool, Field(description="Kahan-compensated parameter updates (sgd, adamw).")] = False
    decay_norms: Annotated[bool, Field(description="Whether biases, gamma and beta are decayed.")] = True
    decay_only_last: Annotated[bool, Field(description="Whether only the last layer is decayed.")] = False


@dataclass(frozen=True)
class ScheduleSpec:
    """The factor on `lr` over the run; `warmup` epochs rise linearly from a fraction of it first."""

    __pydantic_config__ = STRICT

    name: Annotated[Literal["constant", "step", "cosine", "one-cycle"], Field(description="The shape.")] = "constant"
    warmup: Annotated[NonNegative, Field(description="Epochs of linear warm-up.")] = 0.0
    milestones: Annotated[tuple[NonNegative, ...], Field(description="Epochs of the drops of `step`.")] = ()
    gamma: Annotated[Positive, Field(description="Factor of each drop of `step`.")] = 0.1


@dataclass(frozen=True)
class TrainSpec:
    """How the network is trained.

    `loss_scale`: null, a factor S (loss times S, gradients divided by S in fp32), or `dynamic` (GradScaler).
    `loss_multiplier`, `lr_multiplier`: plain factors, not undone (P9: 2^-k and 2^k).
    `weight_scale` multiplies the initial weights and biases of every layer under a norm (the a of the scaling law).
    `weight_decay_correction`: `lr` corrects the rate per output channel, `gradient` the gradient before it enters the
    momentum, `norm-schedule` renormalises each channel; all to the norms in `norm_record`, the id of the cell that
    recorded them. `ranks` processes form gradients, and the statistics of batch norms, of parts of a batch: a training
    of its own. `exponential` lets the rate of weights under a norm grow as their decay would have shrunk them.
    """

    __pydantic_config__ = STRICT

    epochs: Annotated[Count, Field(description="Passes over the training set.")] = 1
    batch: Annotated[Count, Field(description="Images or sequences of a step.")] = 64
    optimizer: Annotated[OptimizerSpec, Field(description="The update rule.")] = field(default_factory=OptimizerSpec)
    schedule: Annotated[ScheduleSpec, Field(description="The learning rate over the run.")] = field(
        default_factory=ScheduleSpec
    )
    label_smoothing: Annotated[Fraction, Field(description="Share of the target spread over all classes.")] = 0.0
    clip: Annotated[Positive | None, Field(description="Largest norm of the whole gradient; null: no clipping.")] = None
    loss_scale: Annotated[
        Positive | Literal["dynamic"] | None, Field(description="null, a static factor, or dynamic.")
    ] = None
    loss_scale_interval: Annotated[Count, Field(description="Good steps before a dynamic scale doubles.")] = 2000
    loss_multiplier: Annotated[Positive, Field(description="Factor on the loss, not undone.")] = 1.0
    lr_multiplier: Annotated[Positive, Field(description="Factor on the learning rate.")] = 1.0
    weight_scale: Annotated[Positive, Field(description="Factor on the initial weights under a norm.")] = 1.0
    weight_decay_correction: Annotated[
        Literal["lr", "gradient", "norm-schedule", "exponential"] | None,
        Field(description="What replaces weight decay; null: nothing."),
    ] = None
    norm_record: Annotated[
        str | None, Field(description="Id of the cell whose channel norms are followed (in a file: {from: {...}}).")
    ] = None
    seed: Annotated[Seed, Field(description="Seed of weights, order, augmentation and rounding.")] = 0
    probe_every: Annotated[
        Annotated[int, Field(ge=0)], Field(description="Steps between comparisons with the reference; 0: none.")
    ] = 20
    ranks: Annotated[
        Count, Field(description="Processes that train a cell together, each its part of a batch (torchrun says it).")
    ] = 1
