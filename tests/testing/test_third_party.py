"""Models that nobody here wrote, with random weights: understood to the last operation, or said not to be."""

import copy
import importlib
import json

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.__main__ import main
from normstab.testing.check import check

pytestmark = pytest.mark.models

# Factory, machine -> verdict, exit code, first overflow, by the defaults of `check`.
NONE, STEM = "none", "resnet.embedder.embedder.normalization"
TEN = [
    ("llama", "half", "STABLE", 0, NONE),
    ("qwen2", "half", "STABLE", 0, NONE),
    ("gemma3", "half", "STABLE", 0, NONE),
    ("t5", "half", "STABLE", 0, NONE),
    ("bert", "half", "STABLE", 0, NONE),
    ("gpt2", "half", "STABLE", 0, NONE),
    ("vit", "half", "STABLE", 0, NONE),
    ("swin", "half", "STABLE", 0, NONE),
    ("convnext", "half", "STABLE", 0, NONE),
    ("resnet", "half", "STABLE", 0, NONE),
    # A machine without float32 inside norms: 1 / s^3 of a small s, and squares of large images.
    ("llama", "uniform:fp16", "NONFINITE", 1, "model.norm.pow[backward]"),
    ("resnet_of_large_images", "uniform:fp16", "NONFINITE", 1, f"{STEM}.square[forward]"),
    # Half precision holds the images and their norms, but not their variance, which evaluation reads.
    ("resnet_of_large_images", "half", "NONFINITE", 1, f"{STEM}.running_var[forward]"),
    # Eight bits an operand cannot answer by one pass.
    ("qwen2", "mxfp8", "INCONCLUSIVE", 0, "model.layers.0.self_attn.q_proj.operand.input[forward]"),
]


@pytest.fixture(scope="module")
def third_party():
    """The factories; they need transformers."""
    pytest.importorskip("transformers")
    return importlib.import_module("tests.testing.third_party")


@pytest.mark.parametrize(("name", "machine", "verdict", "code", "first"), TEN, ids=lambda x: str(x)[:40])
def test_ten_models_and_their_faults(third_party, capsys, name, machine, verdict, code, first):
    arguments = ["check", f"tests.testing.third_party:{name}", "--precision", machine, "--format", "json"]
    assert main(arguments) == code
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == verdict and found["unrecognised"] == {}
    assert found["first"].get("overflow", {"site": NONE})["site"] == first


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "vit"])
def test_a_transformer_is_understood_and_survives_bf16(third_party, name):
    answer = check(getattr(third_party, name)(), precision="bf16")
    assert answer.unrecognised == {}
    assert answer.passed, answer.reason  # INCONCLUSIVE: so many roundings to eight bits may by themselves make a tenth
    assert answer.headroom or name == "llama"  # Llama's RMSNorm is made of plain operations


def test_an_rms_norm_that_derives_from_module_is_blamed_by_its_name(third_party):
    answer = check(third_party.llama_of_large_embeddings(), precision="fp16;casts=ignore")
    assert answer.blame.site == "model.embed_tokens.weight[forward]" or "layernorm" in answer.blame.site
    assert not answer.passed


def test_an_rms_norm_that_casts_to_float32_survives_as_it_does_in_torch_s_own_half(third_party):
    model, batch, _ = third_party.llama_of_large_embeddings()
    assert check((model, batch, None), precision="fp16").passed
    real = copy.deepcopy(model).half()(**batch)
    assert real.logits.isfinite().all()


def test_tied_weights_stay_tied_and_are_cast_alike(third_party):
    model, batch, _ = third_party.gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    with ns.simulate(model, "fp16") as run:
        model(**batch).loss.backward()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.grad.isfinite().all() and not run.unrecognised


def test_hugging_face_s_trainer_runs_inside_a_simulation(third_party, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, batch, _ = third_party.llama()
    rows = [{name: tokens[i % 2] for name, tokens in batch.items()} for i in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    with ns.simulate(model, "bf16") as run:
        trainer.train()
    assert run.step >= 3 and run.ledger["model"].count > 0 and not run.unrecognised


def test_lightning_s_trainer_runs_inside_a_simulation(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 1))

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 8)), batch_size=4)
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    model = Module()
    with ns.simulate(model, "fp16") as run:
        trainer.fit(model, loader)
    assert run.ledger["net"].count > 0 and not run.unrecognised


def test_timm_s_batch_norm_act_keeps_its_activation():
    pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    layer = timm.layers.BatchNormAct2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    x = torch.randn(2, 3, 8, 8)
    assert ns.replace_norms_(model, to="l1").replaced == {"1": "l1"}
    assert model(x).min() >= 0
    with ns.simulate(model, "fp16") as run:
        assert model(x).min() >= 0
    assert not run.unrecognised


def test_a_torchvision_network_is_understood():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.mobilenet_v3_small(num_classes=4)
    answer = check((model, torch.randn(2, 3, 64, 64), None), precision="bf16")
    assert answer.unrecognised == {}
