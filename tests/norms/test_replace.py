"""Swapping norms in networks: what is kept, what is swapped, what is left and why."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.norms import modules as norms
from normstab.norms.replace import replace_norms_
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with an activation inside, as timm's BatchNormAct2d writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(x)


class ChannelsFirst(nn.LayerNorm):
    """A layer norm over channels that permutes, as timm's LayerNorm2d writes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ByHand(nn.LayerNorm):
    """A layer norm written out, in which nothing can be swapped."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)


class LlamaStyleRMSNorm(nn.Module):
    """An RMS norm derived from nn.Module, as Hugging Face writes it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class GemmaStyleRMSNorm(LlamaStyleRMSNorm):
    """An RMS norm with another meaning of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x * 0 + self.weight * 0 + torch.ones(())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn1 = nn.BatchNorm2d(6)
        self.bn2 = BatchNormAct(6)
        self.ln = ChannelsFirst(6)
        self.gn = nn.GroupNorm(2, 6)
        self.rms = LlamaStyleRMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gn(self.ln(self.bn2(self.bn1(self.conv(x)))))
        return self.rms(x.permute(0, 2, 3, 1))


def test_a_swap_keeps_parameters_buffers_keys_isinstance_mode_hooks_and_the_optimizer() -> None:
    net = Net().train()
    net.bn2.eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parameters, kinds = list(net.parameters()), {name: type(layer) for name, layer in net.named_modules()}
    calls = []
    net.bn1.register_forward_hook(lambda *_: calls.append(1))
    result = replace_norms_(net, "l1")
    assert set(result.replaced) == {"bn1", "bn2", "ln", "gn", "rms"}
    assert not result.left
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
    assert all(isinstance(layer, kinds[name]) for name, layer in net.named_modules())
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert net.bn1.training
    assert not net.bn2.training
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert calls == [1]
    assert all(
        not torch.equal(net.state_dict()[name], before[name]) for name in ("bn1.weight", "ln.weight", "conv.bias")
    )


def test_a_swap_to_l2_changes_no_result() -> None:
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(net)(x)
    replace_norms_(net, "l2")
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_an_activation_inside_a_batch_norm_survives_the_swap() -> None:
    layer = BatchNormAct(4)
    net = nn.Sequential(layer)
    replace_norms_(net, "linf")
    x = torch.randn(8, 4, 3, 3)
    plain = norms.BatchNorm2d(4, norm="linf")
    assert torch.equal(net(x), plain(x).relu())
    assert torch.equal(layer.running_var, plain.running_var)


def test_a_swapped_foreign_layer_copies_and_pickles_and_counts() -> None:
    net = nn.Sequential(BatchNormAct(4), ChannelsFirst(4))
    replace_norms_(net, "l1")
    x = torch.randn(8, 4, 3, 3)
    net.eval()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
        assert type(other[0]) is type(net[0])
    ledger = Ledger()
    net[1].arithmetic = Arithmetic("fp16", ledger=ledger).at("ln")
    net(x)
    assert ledger["ln.centre"].count == x.numel()


def test_what_cannot_be_swapped_is_left_with_the_reason() -> None:
    net = nn.ModuleDict(
        {
            "by_hand": ByHand(4),
            "gemma": GemmaStyleRMSNorm(4),
            "lazy": nn.LazyBatchNorm2d(),
            "sync": nn.SyncBatchNorm(4),
            "good": nn.LayerNorm(4),
        }
    )
    result = replace_norms_(net, "l1")
    assert list(result.replaced) == ["good"]
    assert "does not call" in result.left["by_hand"]
    assert "not a layer norm" in result.left["gemma"]
    assert "lazy" in result.left["lazy"]
    assert "between processes" in result.left["sync"]
    assert "gemma: left" in str(result)


def test_exact_names_win_over_patterns_and_patterns_over_the_default() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    result = replace_norms_(net, {"_default": "l1", "re:[01]": "linf", "0": "range", "3": None})
    assert result.replaced == {"0": "range", "1": "linf", "2": "l1"}
    assert result.left == {"3": "rule '3' says so"}
    assert type(net[3]) is nn.BatchNorm1d
    again = replace_norms_(net, {"1": "top3"})
    assert again.replaced == {"1": "top3"}
    assert net[1].norm == "top3"


def test_rules_that_meet_nothing_and_unknown_norms_raise() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(NormstabError, match="unknown norm 'l7'"):
        replace_norms_(net, "l7")
    with pytest.raises(NormstabError, match="no normalization layer is called '0'"):
        replace_norms_(net, {"0": "l1"})
    with pytest.raises(NormstabError, match="no match \\(1\\)"):
        replace_norms_(net, {"re:layer.*": "l1"})
    with pytest.raises(NormstabError, match="is no regular expression"):
        replace_norms_(net, {"re:(": "l1"})
    assert type(net[1]) is nn.BatchNorm1d


def test_the_rms_norms_of_a_hugging_face_llama_are_swapped() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(8).view(1, 8)
    with torch.no_grad():
        expected = model(tokens).logits
        result = replace_norms_(model, "l2")
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)
        replace_norms_(model, "l1")
        assert not torch.allclose(model(tokens).logits, expected, rtol=1e-3, atol=1e-4)
    assert len(result.replaced) == 3
    assert not result.left
