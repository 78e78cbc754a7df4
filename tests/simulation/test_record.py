"""record: plain torch, bit for bit, with the exponents of every result in a ledger."""

import pytest
import torch

import normstab as ns
from normstab.errors import NormstabError
from normstab.numerics.ledger import Site
from normstab.simulation import record, simulate
from tests.simulation.networks import images, network, sgd, tokens, train_step


def losses(model, steps, x, y):
    optimizer = sgd(model)
    return [train_step(model, optimizer, x, y) for _ in range(steps)]


@pytest.mark.parametrize("every", [1, 3])
def test_recording_changes_nothing(every):
    x, y = images()
    recorded, plain = network(), network()
    with record(recorded, every=every) as log:
        ours = losses(recorded, 5, x, y)
    assert ours == losses(plain, 5, x, y)
    assert all(
        torch.equal(a, b) for a, b in zip(recorded.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert log.step == 5


def test_only_every_kth_step_is_recorded():
    x, y = images()
    counts = {}
    for every in (1, 2, 10):
        model = network()
        with record(model, every=every) as log:
            losses(model, 4, x, y)
        counts[every] = log.ledger["stem.convolution"].count
    assert counts[1] == 2 * counts[2] == 4 * counts[10]


def test_histograms_count_every_value_by_its_binade():
    model = torch.nn.Sequential(torch.nn.Identity())
    with record(model) as log:
        model(torch.tensor([1.0, 1.5, 6.0, 0.0])) * 1.0
    histogram = log.ledger["(outside).mul"].histogram
    assert histogram.binades == {0: 2, 2: 1} and histogram.zero == 1


def test_what_simulate_names_record_names_alike():
    (x, y), (model, text) = images(), tokens()
    for net, batch in ((network(), (x, y)), (model, (text, text))):
        sites = []
        for context in (record(net), simulate(net, "fp32")):
            with context as run:
                losses(net, 1, *batch)
            sites.append({site for site in run.ledger if site.direction != "optimizer"})
        norm_parameters = {s for s in sites[0] if "norm" in s.module and s.operation in ("weight", "bias")}
        assert sites[0] - sites[1] == norm_parameters, "a norm casts its own parameters, at gamma and beta"


def test_the_squares_inside_a_norm_are_seen():
    model, (x, y) = network(), images()
    with record(model) as log:
        losses(model, 1, 1000.0 * x, y)
    squares = log.ledger[Site("blocks.0.norm", "square")]
    assert squares.largest > 65504.0


def test_nothing_is_left_behind():
    model, (x, y) = network(), images()
    with pytest.raises(ZeroDivisionError), record(model, every=2):
        losses(model, 1, x, y)
        raise ZeroDivisionError
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_is_a_whole_number():
    with pytest.raises(NormstabError, match="every"), record(network(), every=0):
        pass


def test_the_forecast_for_a_format_is_what_casting_the_results_to_it_does():
    # Powers of two: no binade is split, so that the forecast is exact.
    x = torch.logspace(-40, 20, 61, base=2)
    model = torch.nn.Sequential(torch.nn.Identity())
    with record(model) as log:
        model(x) * 1.0
    for name in ("fp16", "bf16", "e4m3fn", "e5m2", "q7.8"):
        cast, found = ns.cast(x, name), log.forecast(name)
        limit = ns.parse_format(name)
        over, under = float((x > limit.max).double().mean()), float((cast == 0).double().mean())
        # Half the least quantum is a tie that goes to zero; the forecast gives it to the format.
        tie = 1 / 61
        shares = found.sites.get("(outside).mul[forward]", (0.0, 0.0))
        assert shares[0] == pytest.approx(over) and under - tie <= shares[1] + 1e-12 <= under + 1e-12
        assert found.format == str(limit)


def test_forecasts_for_all_formats_are_those_of_each():
    x, y = images()
    model = network()
    with record(model) as log:
        losses(model, 1, x, y)
    found = log.forecast(all)
    assert list(found) == [name for name in ns.FORMATS if name not in ("fp64", "fp32")]
    assert found == log.forecast() == log.forecast("all")
    assert all(found[name] == log.forecast(name) == log.forecast(ns.FORMATS[name]) for name in found)
    assert found["e2m1"].underflow > found["fp16"].underflow
    assert found["e2m1"].worst_share == max(map(sum, found["e2m1"].sites.values()))
    assert found["e2m1"].worst_site in str(found["e2m1"])
    with pytest.raises(NormstabError, match="did you mean 'fp16'"):
        log.forecast("fp17")


def test_a_recordings_report_begins_with_what_it_is_and_ends_with_every_format():
    x, y = images()
    model = network()
    with record(model, every=2) as log:
        losses(model, 3, x, y)
    lines = log.report().splitlines()
    total = log.ledger.total().count
    assert lines[0] == f"recorded in float32, nothing rounded: {total} results, up to step 3, one step in 2"
    assert "simulated" not in log.report() and "results rounded" not in log.report()
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in ns.FORMATS] == list(
        log.forecast()
    )


def test_an_overflow_of_float32_itself_is_in_a_recordings_report():
    model = torch.nn.Sequential(torch.nn.Identity())
    with record(model) as log:
        model(torch.tensor([3e38])) * 10.0
    assert "overflow" in log.report().split("what each format")[0]
    assert "(outside).mul[forward]" in log.report()
