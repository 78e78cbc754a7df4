"""Transformers for tokens, plainly, with torch's norms wherever a norm stands; `models` puts the wanted one there.

Pre-norm: x + f(norm(x)), one norm more at the end of each stack. No dropout: two runs differ in their arithmetic alone.
Letters: N sequences, S source and T target tokens, D features, H heads. Sources: Vaswani et al. 2017, section 3;
Xiong et al. 2020, figure 1b (pre-norm).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normstab.experiment.data.token_sources import PAD
from normstab.experiment.network.networks import TokenTask

__all__ = ["CausalLanguageModel", "Form", "Transformer"]


@dataclass(frozen=True)
class Form:
    """The size of a transformer: `width` features, `layers` in each stack, `heads`; `norm` is `layer` or `rms`."""

    width: int
    layers: int
    heads: int
    norm: str = "layer"

    def new_norm(self) -> nn.Module:
        """Return a norm over the features."""
        return nn.RMSNorm(self.width) if self.norm == "rms" else nn.LayerNorm(self.width)


class Attention(nn.Module):
    """Scaled dot-product attention of H heads, operation by operation, each a site of its own."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.heads, width = form.heads, form.width
        self.scale = (width // form.heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x_NTD: Tensor, seen_NSD: Tensor, hidden: Tensor) -> Tensor:
        """Return what each of T positions gathers from the S positions `seen`.

        `hidden` broadcasts over N H T S and is True where a position must not look; each sees one at least.
        """
        # The scale goes to the queries: scores of half the range would overflow before a division.
        query = self._split(self.query(x_NTD)) * self.scale
        scores = query @ self._split(self.key(seen_NSD)).transpose(-1, -2)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        gathered = weights @ self._split(self.value(seen_NSD))
        return self.out(gathered.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x_NTD: Tensor) -> Tensor:
        """Return the features of each head, N H T D/H."""
        return x_NTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-any-return, no-untyped-call]


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(form.width, 4 * form.width), nn.Linear(4 * form.width, form.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return fc2(relu(fc1(x)))."""
        return self.fc2(self.fc1(x).relu())  # type: ignore[no-any-return]


class SelfLayer(nn.Module):
    """Self-attention and a feed-forward network, each beside the identity and after a norm."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.norm1, self.attention = form.new_norm(), Attention(form)
        self.norm2, self.feed = form.new_norm(), FeedForward(form)

    def forward(self, x_NTD: Tensor, hidden: Tensor) -> Tensor:
        """Return the features of each position."""
        normed = self.norm1(x_NTD)
        x_NTD = x_NTD + self.attention(normed, normed, hidden)
        return x_NTD + self.feed(self.norm2(x_NTD))  # type: ignore[no-any-return]


class CrossLayer(nn.Module):
    """A decoder's layer: self-attention, attention over the encoder's output, a feed-forward network."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.norm1, self.attention = form.new_norm(), Attention(form)
        self.norm2, self.cross = form.new_norm(), Attention(form)
        self.norm3, self.feed = form.new_norm(), FeedForward(form)

    def forward(self, x_NTD: Tensor, hidden: Tensor, memory_NSD: Tensor, memory_hidden: Tensor) -> Tensor:
        """Return the features of each target position."""
        normed = self.norm1(x_NTD)
        x_NTD = x_NTD + self.attention(normed, normed, hidden)
        x_NTD = x_NTD + self.cross(self.norm2(x_NTD), memory_NSD, memory_hidden)
        return x_NTD + self.feed(self.norm3(x_NTD))  # type: ignore[no-any-return]


class Embedding(nn.Module):
    """A learned vector for each token plus one for its position."""

    def __init__(self, tokens: int, length: int, width: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(tokens, width), nn.Embedding(length, width)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Return the sum of both, N T D."""
        places = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
        return self.token(tokens_NT) + self.position(places)  # type: ignore[no-any-return]


def stack_of(layer: Callable[[Form], nn.Module], form: Form) -> tuple[nn.ModuleList, nn.Module]:
    """Return the layers of one stack and the norm after them."""
    return nn.ModuleList(layer(form) for _ in range(form.layers)), form.new_norm()


class Transformer(nn.Module):
    """An encoder over source tokens and a decoder that predicts each target from those before it."""

    def __init__(self, task: TokenTask, form: Form) -> None:
        super().__init__()
        self.source = Embedding(task.sources, task.source_length, form.width)
        self.encoder, self.encoder_norm = stack_of(SelfLayer, form)
        self.target = Embedding(task.targets, task.target_length, form.width)
        self.decoder, self.decoder_norm = stack_of(CrossLayer, form)
        self.head = nn.Linear(form.width, task.targets)

    def forward(self, source_NS: Tensor, before_NT: Tensor) -> Tensor:
        """Return the logits N T V of the target at each position, given the source and the targets before it."""
        padding_N11S = (source_NS == PAD)[:, None, None, :]
        memory = self.source(source_NS)
        for layer in self.encoder:
            memory = layer(memory, padding_N11S)
        memory = self.encoder_norm(memory)
        x, later = self.target(before_NT), later_positions(before_NT)
        for layer in self.decoder:
            x = layer(x, later, memory, padding_N11S)
        return self.head(self.decoder_norm(x))  # type: ignore[no-any-return]


class CausalLanguageModel(nn.Module):
    """A decoder alone: each position predicts the token that follows it."""

    def __init__(self, task: TokenTask, form: Form) -> None:
        super().__init__()
        self.source = Embedding(task.sources, task.source_length, form.width)
        self.decoder, self.decoder_norm = stack_of(SelfLayer, form)
        self.head = nn.Linear(form.width, task.targets)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Return the logits N T V."""
        x, later = self.source(tokens_NT), later_positions(tokens_NT)
        for layer in self.decoder:
            x = layer(x, later)
        return self.head(self.decoder_norm(x))  # type: ignore[no-any-return]


def later_positions(tokens_NT: Tensor) -> Tensor:
    """Return the mask T T that hides what comes after each position.

    Padding is at the end of a sequence, so this hides it from every token too.
    """
    length = tokens_NT.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=tokens_NT.device).triu(1)
