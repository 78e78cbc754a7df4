"""Small networks of transformers with random weights: factories for `normstab check`, of (model, batch, None)."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES = {"image_size": 32, "num_labels": 10}
Built = tuple[nn.Module, dict[str, torch.Tensor], None]


def _text(model: type[Any], config: Any) -> Built:
    torch.manual_seed(0)
    tokens = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    return model(config).eval(), {"input_ids": tokens, "labels": tokens}, None


def _image(model: type[Any], config: Any, *, side: int = 32, scale: float = 1.0) -> Built:
    torch.manual_seed(0)
    pixels = scale * torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return model(config).eval(), {"pixel_values": pixels, "labels": torch.tensor([0, 1])}, None


def llama() -> Built:
    return _text(hf.LlamaForCausalLM, hf.LlamaConfig(**SMALL))


def llama_of_large_embeddings() -> Built:
    built = llama()
    with torch.no_grad():
        built[0].model.embed_tokens.weight.mul_(1e5)
    return built


def qwen2() -> Built:
    """Two heads of queries share one of keys and values."""
    return _text(hf.Qwen2ForCausalLM, hf.Qwen2Config(**SMALL, num_key_value_heads=2))


def gemma3() -> Built:
    return _text(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8))


def t5() -> Built:
    config = hf.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return _text(hf.T5ForConditionalGeneration, config)


def bert() -> Built:
    return _text(hf.BertForMaskedLM, hf.BertConfig(**SMALL))


def gpt2() -> Built:
    config = hf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return _text(hf.GPT2LMHeadModel, config)


def vit() -> Built:
    config = hf.ViTConfig(**IMAGES, patch_size=8, **{k: v for k, v in SMALL.items() if k != "vocab_size"})
    return _image(hf.ViTForImageClassification, config)


def swin() -> Built:
    config = hf.SwinConfig(**IMAGES, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    return _image(hf.SwinForImageClassification, config)


def convnext() -> Built:
    config = hf.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], num_labels=10)
    return _image(hf.ConvNextForImageClassification, config, side=64)


def resnet(scale: float = 1.0) -> Built:
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic", num_labels=10
    )
    model, batch, _ = _image(hf.ResNetForImageClassification, config, scale=scale)
    return model.train(), batch, None


def resnet_of_large_images() -> Built:
    return resnet(3000.0)
