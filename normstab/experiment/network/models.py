"""The catalogue of networks, and building one as a ModelSpec says: norms and their noise, weight norm, first weights.

The catalogue reads without torch. Initial weights depend on the seed and a parameter's name alone, so cells that
differ in a norm or in the arithmetic start from the same weights.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from normstab.errors import NormstabError, lookup
from normstab.experiment.network.language_models import (
    LANGUAGE_MODELS,
    LanguageRow,
    build_language_model,
    require_language_model,
)
from normstab.experiment.network.users_code import load_function, users_code
from normstab.experiment.scenario.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from normstab.experiment.network.networks import Task, TokenTask

__all__ = ["EVERY_MODEL", "MODELS", "build_model", "require_model"]

Build = Callable[["Task", int, str], "nn.Module"]


@dataclass(frozen=True)
class ModelRow:
    """A network of the catalogue: `width` is its own width, `has_stem` whether `stem: imagenet` means something."""

    summary: str
    width: int
    has_stem: bool
    build: Build


def _resnet18(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import resnet_imagenet

    return resnet_imagenet(task, width=width, stem=stem)


def _resnet50(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import resnet_bottleneck

    return resnet_bottleneck(task, width=width, stem=stem)


def _resnet20(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import resnet_cifar

    return resnet_cifar(task, width=width, stem=stem, depth=20)


def _resnet56(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import resnet_cifar

    return resnet_cifar(task, width=width, stem=stem, depth=56)


def _vgg11(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import vgg11

    return vgg11(task, width=width)


def _mlp(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import mlp

    return mlp(task, width=width)


def _residual_mlp(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import residual_mlp

    return residual_mlp(task, width=width)


def _lenet(task: Task, width: int, stem: str) -> nn.Module:
    from normstab.experiment.network.networks import lenet

    return lenet(task, width=width)


# Sources: He et al. 2016 (resnet), Simonyan and Zisserman 2015 (vgg11), Gupta et al. 2015, section 3.1 (mlp, lenet),
# Xiong et al. 2020 (residual-mlp).
MODELS: dict[str, ModelRow] = {
    "resnet18": ModelRow("ResNet-18, four stages of two basic blocks", 64, True, _resnet18),
    "resnet50": ModelRow("ResNet-50, four stages of 3, 4, 6 and 3 bottlenecks", 64, True, _resnet50),
    "resnet20": ModelRow("ResNet of depth 20 for small images, three stages", 16, True, _resnet20),
    "resnet56": ModelRow("ResNet of depth 56 for small images, three stages", 16, True, _resnet56),
    "vgg11": ModelRow("VGG-11, a norm after each of eight convolutions", 64, False, _vgg11),
    "mlp": ModelRow("two hidden layers, a norm in each", 1000, False, _mlp),
    "residual-mlp": ModelRow("four residual layers with layer norms before them", 128, False, _residual_mlp),
    "lenet": ModelRow("two 5x5 convolutions and a hidden layer, a norm in each", 8, False, _lenet),
}
OUTLIER = 300.0
"""Its square, 90,000, is above fp16's largest number, 65,504; it itself is a number of fp16."""
EVERY_MODEL: dict[str, ModelRow | LanguageRow] = {**MODELS, **LANGUAGE_MODELS}
"""Networks for images and for tokens by name."""


def require_model(spec: ModelSpec) -> None:
    """Raise NormstabError when `spec` names no model, or a width or stem that the model does not have."""
    if spec.name in LANGUAGE_MODELS:
        require_language_model(spec)
        return
    if spec.layers is not None or spec.heads is not None or spec.norm_layer != "layer":
        known = ", ".join(LANGUAGE_MODELS)
        raise NormstabError(f"model {spec.name!r}: layers, heads and norm_layer are those of {known}; leave them out")
    library, colon, _ = spec.name.partition(":")
    if not colon and spec.args:
        raise NormstabError(
            f"model {spec.name!r}: args are those of timm:, torchvision: or your own function; leave it out"
        )
    if colon:
        if spec.width is not None or spec.stem != "small" or spec.init != "torch":
            raise NormstabError(f"model {spec.name!r}: width, stem and init are those of {library}; leave them out")
        return
    row = lookup(EVERY_MODEL, spec.name, what="model")
    assert isinstance(row, ModelRow), "networks for tokens are checked above"
    if spec.init == "outlier-channel":
        raise NormstabError(f"model {spec.name!r} has no embeddings; model.init outlier-channel is for transformers")
    if spec.stem != "small" and not row.has_stem:
        raise NormstabError(f"model {spec.name!r} has one form of stem; leave model.stem out")


def build_model(spec: ModelSpec, task: Task | TokenTask, *, seed: int = 0, weight_scale: float = 1.0) -> nn.Module:
    """Return the network that `spec` describes for `task`, initialised from `seed`, on the CPU.

    `weight_scale` multiplies the initial weights of every layer under a norm, that is all but the last.
    torch's own generators are left as they were.
    """
    import torch

    from normstab.experiment.network.weighted_layers import (
        apply_noise_,
        apply_norms_,
        apply_weight_norm_,
        scale_weights_,
    )

    require_model(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _foreign(spec, task) if ":" in spec.name else _own(spec, task, seed)
    scale_weights_(model, weight_scale)
    apply_norms_(model, spec)
    apply_weight_norm_(model, spec)
    apply_noise_(model, spec, seed)
    return model


def _own(spec: ModelSpec, task: Task | TokenTask, seed: int) -> nn.Module:
    """Return a network of the catalogue with its first weights."""
    from normstab.experiment.network.networks import Task, TokenTask

    if isinstance(task, TokenTask) and spec.name in LANGUAGE_MODELS:
        model = build_language_model(spec, task)
    elif isinstance(task, Task) and spec.name in MODELS:
        row = MODELS[spec.name]
        model = row.build(task, row.width if spec.width is None else spec.width, spec.stem)
    else:
        raise NormstabError(f"model {spec.name!r} does not take what the data set has")
    initialise_(model, seed, init=spec.init)
    return model


def _foreign(spec: ModelSpec, task: Task | TokenTask) -> nn.Module:
    """Return a network of torchvision, timm or the user, initialised as its function does.

    Any other `module:function` is called with the task's `channels`, `side` and `classes`, or the fields of TokenTask;
    that such a name may be imported was allowed where the scenario was read. `spec.args` are further keyword arguments.
    """
    library, _, model_name = spec.name.partition(":")
    options = _options(library, spec, task)
    if twice := sorted(options.keys() & (spec.args or {})):
        raise NormstabError(f"model {spec.name!r}: args: {', '.join(twice)} follows from the data set; leave it out")
    with users_code(f"model {spec.name!r} cannot be built"):
        model: nn.Module = _factory(spec.name, library, model_name)(**options, **(spec.args or {}))
    return model


def _options(library: str, spec: ModelSpec, task: Task | TokenTask) -> dict[str, Any]:
    """Return the keyword arguments that say what the data set asks of a network, as its function names them."""
    from normstab.experiment.network.networks import TokenTask

    if isinstance(task, TokenTask):
        if library in ("timm", "torchvision"):
            raise NormstabError(f"model {spec.name!r} takes images, the data set is of {task.kind}")
        return asdict(task)
    if library == "timm":
        return {"in_chans": task.channels, "num_classes": task.classes}
    if library == "torchvision":
        if task.channels != 3:
            raise NormstabError(f"model {spec.name!r} takes images of 3 channels, the data set has {task.channels}")
        return {"num_classes": task.classes}
    return {"channels": task.channels, "side": task.side, "classes": task.classes}


def _factory(path: str, library: str, name: str) -> Callable[..., nn.Module]:
    """Return the function that makes the model called `name`."""
    if library not in ("torchvision", "timm"):
        return load_function(path)
    try:
        module = importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except (ImportError, RuntimeError) as error:
        raise NormstabError(f"model {path!r} needs {library}, which does not import: {error}") from error
    return functools.partial(module.get_model if library == "torchvision" else module.create_model, name)


def initialise_(model: nn.Module, seed: int, *, init: str = "torch") -> None:
    """Set the first weights and biases; each parameter has a generator of its own, keyed by `seed` and its name.

    `torch`: uniform in +-1 / sqrt(fan-in), as torch.nn.Conv2d and Linear do by default. `he-fan-out`: weights of
    convolutions from N(0, 2 / (k^2 c_out)), the rest as before. The norm of a channel, and so rho of a bounded weight
    norm, is then about sqrt(2 c_in / c_out) instead of sqrt(1 / 3). `outlier-channel`: the first channel of every
    embedding of positions is OUTLIER, as the residual streams of large language models have a few channels.
    Sources: He et al. 2015, section 2.2, fan-out; the released networks of Hoffer et al. 2018; Sun et al. 2024,
    "Massive activations in large language models".
    """
    import torch
    from torch import nn

    from normstab.experiment.network.weighted_layers import weight_layers

    with torch.no_grad():
        for name, layer in weight_layers(model).items():
            bound = layer.weight[0].numel() ** -0.5
            for part, parameter in layer.named_parameters(recurse=False):
                generator = torch.Generator().manual_seed(_seed_of(seed, f"{name}.{part}"))
                if init == "he-fan-out" and part == "weight" and isinstance(layer, nn.modules.conv._ConvNd):
                    fan_out = layer.weight[:, 0].numel()  # c_out times the kernel's size
                    parameter.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
                else:
                    parameter.uniform_(-bound, bound, generator=generator)
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):  # N(0, 1), as torch.nn.Embedding has it
                module.weight.normal_(generator=torch.Generator().manual_seed(_seed_of(seed, f"{name}.weight")))
                if init == "outlier-channel" and name.endswith(".position"):
                    module.weight[:, 0] = OUTLIER


def _seed_of(seed: int, name: str) -> int:
    """Return the generator's seed for the parameter called `name`."""
    digest = hashlib.blake2b(name.encode(), key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
