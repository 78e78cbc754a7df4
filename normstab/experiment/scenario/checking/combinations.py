"""Fields of a cell that are right one by one and do not go together."""

from __future__ import annotations

from collections.abc import Iterator

from normstab.errors import NormstabError
from normstab.experiment.data.token_sets import TOKEN_SETS, require_token_set
from normstab.experiment.network.language_models import LANGUAGE_MODELS
from normstab.experiment.network.models import require_model
from normstab.experiment.scenario.spec import DatasetSpec, ModelSpec, NumericsSpec, TrainSpec

__all__ = ["combination_faults"]


def combination_faults(
    dataset: DatasetSpec, model: ModelSpec, train: TrainSpec, numerics: NumericsSpec
) -> Iterator[str]:
    """Yield what does not go together in the specs of a cell."""
    optimizer = train.optimizer
    wrong = {
        "train.optimizer.kahan goes with sgd and adamw": optimizer.kahan and optimizer.name == "adam",
        "train.optimizer.nesterov needs sgd with a momentum": optimizer.nesterov
        and not (optimizer.name == "sgd" and optimizer.momentum),
        "train.schedule.name step needs milestones": train.schedule.name == "step" and not train.schedule.milestones,
        "train.weight_decay_correction needs train.norm_record: {from: {...}}": train.norm_record is None
        and train.weight_decay_correction not in (None, "exponential"),
        **_exponential_faults(train),
        "model.weight_norm_p other than 2 needs model.weight_norm": model.weight_norm_p != 2
        and model.weight_norm == "none",
        f"model.norm_noise disturbs norm layers that round nothing, and all round {numerics.precision}; leave one of "
        f"them out, or give the norm layers a rule 'native'": model.norm_noise is not None
        and numerics.precision != "native"
        and not numerics.rules,
        "model.norm_noise disturbs norm layers, and model.norm 'none' leaves none": model.norm_noise is not None
        and model.norm == "none",
    }
    yield from (message for message, holds in wrong.items() if holds)
    try:
        if model.norm_noise is not None:
            model.norm_noise.noise()
        require_model(model)
        require_token_set(dataset)
        require_match(dataset, model)
    except NormstabError as error:
        yield str(error)


def _exponential_faults(train: TrainSpec) -> dict[str, bool]:
    """Return what a rate that grows in the place of decay does not go with, each with whether it is so."""
    optimizer, is_meant = train.optimizer, train.weight_decay_correction == "exponential"
    what = "train.weight_decay_correction exponential"
    is_plain = optimizer.name == "sgd" and not optimizer.momentum
    shrinks = 0 < optimizer.lr * train.lr_multiplier * optimizer.weight_decay < 1
    return {
        f"{what} follows no record; leave train.norm_record out": is_meant and train.norm_record is not None,
        f"{what} stands for the decay of sgd without momentum": is_meant and not is_plain,
        f"{what} grows in every step, and train.loss_scale dynamic skips some": is_meant
        and train.loss_scale == "dynamic",
        f"{what} needs 0 < lr * weight_decay < 1, the share that decay would take in a step": is_meant and not shrinks,
        f"{what} needs train.optimizer.decay_only_last: true, for it replaces the decay of the others": is_meant
        and not optimizer.decay_only_last,
    }


def require_match(dataset: DatasetSpec, model: ModelSpec) -> None:
    """Raise NormstabError where a network of the catalogue does not take what the data set has."""
    has = TOKEN_SETS[dataset.name].kind if dataset.name in TOKEN_SETS else "images"
    takes = LANGUAGE_MODELS[model.name].takes if model.name in LANGUAGE_MODELS else "images"
    if has != takes and (":" not in model.name or model.name.startswith(("timm:", "torchvision:"))):
        raise NormstabError(f"model {model.name!r} takes {takes}, data set {dataset.name!r} has {has}")
