"""Models that nobody here wrote, with random weights: understood to the last operation, or said not to be."""

import copy

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.testing.check import check

pytestmark = pytest.mark.models

IDS = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS, "labels": IDS}


def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.BertForMaskedLM(config).eval(), {"input_ids": IDS, "labels": IDS}


def gpt2(transformers):
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval(), {"input_ids": IDS, "labels": IDS}


def vit(transformers):
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return transformers.ViTForImageClassification(config).eval(), {
        "pixel_values": pixels,
        "labels": torch.tensor([0, 1]),
    }


@pytest.mark.parametrize("build", [llama, bert, gpt2, vit], ids=lambda build: build.__name__)
def test_a_transformer_is_understood_and_survives_bf16(build):
    torch.manual_seed(0)
    model, batch = build(pytest.importorskip("transformers"))
    answer = check((model, batch, None), precision="bf16")
    assert answer.unrecognised == {}
    assert answer.passed, answer.reason  # INCONCLUSIVE: so many roundings to eight bits may by themselves make a tenth
    assert answer.headroom or build is llama  # Llama's RMSNorm is made of plain operations


def a_llama_of_large_embeddings():
    torch.manual_seed(0)
    model, batch = llama(pytest.importorskip("transformers"))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e5)
    return model, batch


def test_an_rms_norm_that_derives_from_module_is_blamed_by_its_name():
    answer = check((*a_llama_of_large_embeddings(), None), precision="fp16;casts=ignore")
    assert answer.blame.site == "model.embed_tokens.weight[forward]" or "layernorm" in answer.blame.site
    assert not answer.passed


def test_an_rms_norm_that_casts_to_float32_survives_as_it_does_in_torch_s_own_half():
    model, batch = a_llama_of_large_embeddings()
    assert check((model, batch, None), precision="fp16").passed
    real = copy.deepcopy(model).half()(**batch)
    assert real.logits.isfinite().all()


def test_tied_weights_stay_tied_and_are_cast_alike():
    torch.manual_seed(0)
    model, batch = gpt2(pytest.importorskip("transformers"))
    assert model.lm_head.weight is model.transformer.wte.weight
    with ns.simulate(model, "fp16") as run:
        model(**batch).loss.backward()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.grad.isfinite().all() and not run.unrecognised


def test_hugging_face_s_trainer_runs_inside_a_simulation(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model, _ = llama(transformers)
    rows = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)]
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
