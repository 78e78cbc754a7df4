"""Code that users write: torch's own transformer and LSTM, autograd Functions, checkpointing, compiled submodules."""

import torch
from torch import nn

import normstab as ns
from normstab.testing.check import check


def test_a_transformer_encoder_is_understood_in_training_and_in_eval():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(2, 5, 16)
    for mode in (True, False):
        model.train(mode)
        with ns.simulate(model, "fp16") as run, torch.no_grad():
            model(x)
        # torch fuses a whole layer in eval: that is listed by name, never passed silently.
        assert set(run.unrecognised) <= (set() if mode else {"_native_multi_head_attention"})
        assert run.ledger["layers.0.norm1"].count > 0


def test_an_lstm_is_expanded_or_listed():
    model = nn.LSTM(8, 16, batch_first=True)
    with ns.simulate(model, "fp16") as run:
        model(torch.randn(2, 5, 8))[0].sum().backward()
    assert run.unrecognised or len({site.operation for site in run.ledger}) > 3


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_custom_autograd_functions_are_seen_on_both_sides():
    class Model(nn.Module):
        def forward(self, x):
            return Doubled.apply(x)

    x = torch.full((3,), 40000.0, requires_grad=True)
    model = Model()
    with ns.simulate(model, "fp16") as run:
        y = model(x)
        y.backward(torch.full((3,), 40000.0))
    assert run.ledger[ns.Site("", "mul", "forward")].overflow == 3
    assert sum(t.overflow for s, t in run.ledger.items() if s.direction == "backward") == 3


def test_checkpointing_recomputes_under_the_same_names():
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False).sum()

    model = Model()
    with ns.simulate(model, "fp16") as run:
        model(torch.randn(3, 4)).backward()
    assert run.ledger["block.0.addmm[forward]"].count == run.ledger.recomputed["block.0.addmm[forward]"].count == 12
    assert not run.unrecognised


def test_a_compiled_submodule_is_said_plainly():
    model = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Linear(4, 2), backend="eager"))
    answer = check((model, torch.randn(3, 4), None), precision="fp16")
    assert any("compile" in note for note in answer.notes)


def test_a_plain_loop_without_hooks_or_wrappers_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    losses = []
    with ns.simulate(model, "bf16", optimizer=optimizer) as run:
        for _ in range(5):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] and run.step == 5 and not run.unrecognised
