"""Tiny networks of other people's architectures, with random weights: a module and its inputs by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Built = tuple[nn.Module, dict[str, Any]]
IDS = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def text(config: str, model: str, **changes: Any) -> Callable[[], Built]:
    """Return what builds a model of transformers that reads tokens."""

    def build() -> Built:
        transformers = pytest.importorskip("transformers")
        made = getattr(transformers, config)(**{**SIZES, **changes})
        return getattr(transformers, model)(made), {"input_ids": IDS}

    return build


def image(config: str, model: str, **changes: Any) -> Callable[[], Built]:
    """Return what builds a model of transformers that sees images of 32 x 32 pixels."""

    def build() -> Built:
        transformers = pytest.importorskip("transformers")
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return getattr(transformers, model)(getattr(transformers, config)(**changes)), {"pixel_values": pixels}

    return build


def t5() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5Model(config), {"input_ids": IDS, "decoder_input_ids": IDS[:, :6]}


def whisper() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=16,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    sound = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    return transformers.WhisperModel(config), {"input_features": sound, "decoder_input_ids": IDS[:, :6]}


class Recurrent(nn.Module):
    """A recurrent layer of torch, whose sequence of outputs is the output."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(8, 16, 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class UNet(nn.Module):
    """Down, up and across, with group norms."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU())

        self.enter, self.down, self.middle = block(3, 8), block(8, 16), block(16, 16)
        self.up, self.leave = nn.ConvTranspose2d(16, 8, 2, stride=2), block(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        high = self.enter(x)
        low = self.middle(self.down(torch.nn.functional.max_pool2d(high, 2)))
        return self.leave(torch.cat([high, self.up(low)], 1))


def plain(make: Callable[[], nn.Module], *shape: int, name: str = "x") -> Callable[[], Built]:
    """Return what builds a module of torch that takes one tensor."""

    def build() -> Built:
        return make(), {name: torch.randn(shape, generator=torch.Generator().manual_seed(0))}

    return build


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], Built]] = {
    "llama": text("LlamaConfig", "LlamaModel"),
    "mistral": text("MistralConfig", "MistralModel", num_key_value_heads=2),
    "qwen2": text("Qwen2Config", "Qwen2Model", num_key_value_heads=2),
    "gemma": text("GemmaConfig", "GemmaModel", head_dim=8, num_key_value_heads=2),
    "gemma2": text("Gemma2Config", "Gemma2Model", head_dim=8, num_key_value_heads=2),
    "gemma3": text("Gemma3TextConfig", "Gemma3TextModel", head_dim=8, num_key_value_heads=2),
    "phi": text("PhiConfig", "PhiModel"),
    "phi3": text("Phi3Config", "Phi3Model", pad_token_id=0, num_key_value_heads=4),
    "gpt-neox": text("GPTNeoXConfig", "GPTNeoXModel"),
    "gpt2": text("GPT2Config", "GPT2Model", n_embd=32, n_layer=2, n_head=4),
    "opt": text("OPTConfig", "OPTModel", ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32),
    "bloom": text("BloomConfig", "BloomModel", n_head=4, n_layer=2),
    "bert": text("BertConfig", "BertModel"),
    "roberta": text("RobertaConfig", "RobertaModel"),
    "distilbert": text("DistilBertConfig", "DistilBertModel", dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    "electra": text("ElectraConfig", "ElectraModel", embedding_size=32),
    "deberta": text("DebertaV2Config", "DebertaV2Model"),
    "mamba": text("MambaConfig", "MambaModel", state_size=4),
    "t5": t5,
    "whisper": whisper,
    "vit": image("ViTConfig", "ViTModel", image_size=32, patch_size=8, hidden_size=32, intermediate_size=64,
                 num_hidden_layers=2, num_attention_heads=4),
    "swin": image("SwinConfig", "SwinModel", image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2],
                  window_size=4),
    "convnext": image("ConvNextConfig", "ConvNextModel", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "resnet": image("ResNetConfig", "ResNetModel", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                    layer_type="basic"),
    "unet": plain(UNet, 2, 3, 16, 16),
    "convolutional": plain(convolutional, 4, 3, 16, 16, name="input"),
    "lstm": plain(lambda: Recurrent(nn.LSTM), 6, 2, 8),
    "gru": plain(lambda: Recurrent(nn.GRU), 6, 2, 8),
    "encoder": plain(lambda: nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2, 12, 32, name="src"),
}  # fmt: skip
"""Name -> what builds it."""
