"""Networks: every row of the catalogue builds, runs and steps; first weights depend on seed and name alone."""

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from normstab.errors import NormstabError
from normstab.experiment.network.models import MODELS, build_model
from normstab.experiment.network.networks import Task
from normstab.experiment.network.weighted_layers import (
    channel_norms,
    hidden_layers,
    last_layer,
    norm_layers,
    weight_layers,
)
from normstab.experiment.scenario.spec import ModelSpec
from tests.thinned import thinned

SMALL = Task(channels=1, side=16, classes=10)
WIDTH = {"mlp": 32, "residual-mlp": 16, "lenet": 4, "resnet50": 4, "vgg11": 8}


FOR_BATCH_NORM = ("mean-only",)  # which layer norms cannot be


def small(name: str, **chosen: object) -> ModelSpec:
    return ModelSpec(name, width=WIDTH.get(name, 8), **chosen)  # type: ignore[arg-type]


def batch(task: Task, n: int = 4) -> torch.Tensor:
    return torch.randn(n, task.channels, task.side, task.side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "norm"), thinned(MODELS, ["l2", "l1", "top10", "none", "mean-only"], every=2))
def test_every_model_gives_logits_and_a_gradient_to_every_parameter(name: str, norm: str) -> None:
    task = SMALL if norm == "l2" else Task(3, 28, 5)
    if name == "residual-mlp" and norm in FOR_BATCH_NORM:
        with pytest.raises(NormstabError, match="stands in for batch norm only"):
            build_model(small(name, norm=norm), task, seed=0)
        return
    model = build_model(small(name, norm=norm), task, seed=0)
    logits = model(batch(task, 12))
    assert logits.shape == (12, task.classes)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_equal_seeds_give_equal_weights_and_other_seeds_others(name: str) -> None:
    first, again, other = (build_model(small(name), SMALL, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_do_not_depend_on_the_norm(name: str) -> None:
    other_norm = "linf" if name == "residual-mlp" else "none"
    built = [weight_layers(build_model(small(name, norm=norm), SMALL, seed=3)) for norm in ("l2", "l1", other_norm)]
    for other in built[1:]:
        assert all(torch.equal(built[0][key].weight, other[key].weight) for key in built[0])


@pytest.mark.parametrize("name", MODELS)
def test_building_leaves_torchs_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    build_model(small(name), SMALL, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_are_uniform_as_those_of_torch(name: str) -> None:
    model = build_model(ModelSpec(name, width=2 * WIDTH.get(name, 8)), SMALL, seed=0)
    for layer in hidden_layers(model).values():
        fan_in = layer.weight[0].numel()
        assert layer.weight.abs().max().item() <= fan_in**-0.5
        # The mean square of n uniform values has a relative deviation of sqrt(4 / 5 n); six of them.
        assert layer.weight.square().mean().item() * fan_in * 3 == pytest.approx(
            1, abs=6 * (0.8 / layer.weight.numel()) ** 0.5
        )


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_full_resnets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = MODELS[name].build(Task(3, 224, 1000), 64, "imagenet")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722 + 2_752), ("resnet56", 853_018 + 2_752)])
def test_cifar_resnets_have_the_published_number_of_parameters_and_their_projections(
    name: str, parameters: int
) -> None:
    # He et al.'s 0.27 and 0.85 million, option A, are the first number; option B adds
    # 16*32 + 2*32 + 32*64 + 2*64 = 2752.
    model = MODELS[name].build(Task(3, 32, 10), 16, "small")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_the_imagenet_stem_divides_the_side_by_four(stem: str) -> None:
    model = build_model(small("resnet18", stem=stem), Task(3, 64, 10), seed=0)
    sides: list[int] = []
    model.get_submodule("layer1").register_forward_hook(lambda m, i, o: sides.append(o.shape[-1]))
    model(batch(Task(3, 64, 10)))
    assert sides == [64 if stem == "small" else 16]


def test_rules_choose_the_norm_of_each_layer() -> None:
    rules = {"bn1": "linf", "re:layer1.*": "none", "_default": "l1"}
    model = build_model(small("resnet18", norm=rules), SMALL, seed=0)
    norms = {name: layer.norm for name, layer in norm_layers(model).items()}
    assert norms["bn1"] == "linf"
    assert norms["layer2.0.bn1"] == "l1"
    assert not any(name.startswith("layer1") for name in norms)


def test_eps_and_constant_reach_every_layer() -> None:
    model = build_model(small("resnet20", norm="l1", eps=0.0, norm_constant=4.0), SMALL, seed=0)
    assert {(layer.eps, layer.norm_constant) for layer in norm_layers(model).values()} == {(0.0, 4.0)}


def test_the_weight_scale_spares_the_last_layer() -> None:
    plain, scaled = (build_model(small("vgg11"), SMALL, seed=0, weight_scale=a) for a in (1.0, 8.0))
    for name, layer in hidden_layers(plain).items():
        assert torch.equal(scaled.get_submodule(name).weight, 8 * layer.weight)
    assert torch.equal(last_layer(scaled).weight, last_layer(plain).weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("resnt18"), "did you mean 'resnet18'"),
        (ModelSpec("torchvison:resnet18"), "no module named 'torchvison'"),
        (ModelSpec("torch.nn:Nothing"), "no callable 'Nothing'"),
        (ModelSpec("mlp", args={"depth": 3}), "args are those of timm:, torchvision: or your own function"),
        (ModelSpec("users:thin", args={"side": 3}), "args: side follows from the data set"),
        (ModelSpec("timm:resnet18", width=8), "width, stem and init"),
        (ModelSpec("mlp", stem="imagenet"), "one form of stem"),
        (ModelSpec("mlp", width=8, norm="l3"), "unknown norm 'l3'"),
        (ModelSpec("mlp", width=8, norm_constant=4.0), "norm_constant multiplies"),
    ],
)
def test_what_cannot_be_built_is_said(spec: ModelSpec, message: str) -> None:
    with pytest.raises(NormstabError, match=message):
        build_model(spec, SMALL, seed=0)


@pytest.mark.models
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_librarys_model_is_built_with_our_norm(library: str) -> None:
    try:
        importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # torchvision from PyPI does not import beside a CPU torch
        pytest.skip(f"{library} does not import: {error}")
    model = build_model(ModelSpec(f"{library}:resnet18", norm="l1"), Task(3, 32, 10), seed=0)
    assert model(batch(Task(3, 32, 10))).shape == (4, 10)
    assert {layer.norm for layer in norm_layers(model).values()} == {"l1"}


@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_channel_norms_are_the_definitions(p: float) -> None:
    weight = nn.Conv2d(3, 5, 3).weight
    rows = weight.detach().double().reshape(5, -1).abs()
    expected = {1: rows.sum(1), 2: rows.square().sum(1).sqrt(), float("inf"): rows.amax(1)}[p]
    assert torch.allclose(channel_norms(weight, p), expected, rtol=1e-14)


def test_the_catalogue_reads_without_torch() -> None:
    code = "import sys; from normstab.experiment.network.models import MODELS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def thin(channels: int, side: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * (side - 2) ** 2, classes)
    )


def test_a_users_factory_is_called_with_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_models")
    module.thin = thin  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_models", module)
    model = build_model(ModelSpec("users_models:thin", norm="linf"), SMALL, seed=0)
    assert model(batch(SMALL)).shape == (4, 10)
    assert [layer.norm for layer in norm_layers(model).values()] == ["linf"]


def test_the_arguments_of_a_scenario_reach_the_users_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_models")
    module.deep = lambda *, depth, **task: nn.Sequential(*(nn.Identity() for _ in range(depth)), thin(**task))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_models", module)
    model = build_model(ModelSpec("users_models:deep", args={"depth": 3}), SMALL)
    assert isinstance(model, nn.Sequential) and len(model) == 4


def test_a_users_function_that_fails_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_models.py").write_text("def build(channels, side, classes):\n    return channels / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NormstabError, match=r"ZeroDivisionError.*\n.*failing_models\.py:2 in build: return channels / 0"
    ):
        build_model(ModelSpec("failing_models:build"), SMALL)


def test_he_initialisation_gives_bounded_weight_norm_its_gain() -> None:
    # ||w_i||^2 is 2 / (9 c_out) times a chi-square of 9 c_in: of mean 2 c_in / c_out and relative deviation
    # sqrt(2 / (9 c_in)).
    model = build_model(small("resnet20", init="he-fan-out"), SMALL, seed=0)
    inner = model.get_submodule("layer1.0.conv1").weight
    squares = channel_norms(inner).square()  # type: ignore[arg-type]
    deviation = 2 * (2 / (9 * 8)) ** 0.5 / len(squares) ** 0.5
    assert abs(squares.mean().item() - 2.0) < 4 * deviation
    assert torch.equal(
        last_layer(model).weight,  # type: ignore[arg-type]
        last_layer(build_model(small("resnet20"), SMALL, seed=0)).weight,  # type: ignore[arg-type]
    )
