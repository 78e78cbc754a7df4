"""What the plots show of many sites."""

from normstab.report.plots import MOST_SITES, _worst_sites


def test_a_rare_overflow_is_shown_among_much_underflow():
    sites = [f"layer{i}" for i in range(100)]
    overflow = {site: [1e-6 if site == "layer50" else 0.0] for site in sites}
    underflow = {site: [0.0 if site == "layer50" else 0.1 + i / 1000] for i, site in enumerate(sites)}
    shown = _worst_sites(overflow, underflow)
    assert "layer50" in shown and len(shown) == MOST_SITES
    assert shown == sorted(shown, key=sites.index)


def test_overflow_does_not_crowd_out_underflow_nor_leave_rows_empty():
    sites = [f"layer{i}" for i in range(100)]
    everywhere = {site: [0.5] for site in sites}
    nowhere = {site: [0.0] for site in sites}
    only_last = nowhere | {"layer99": [1e-5]}
    assert "layer99" in _worst_sites(everywhere, only_last)
    assert len(_worst_sites(everywhere, nowhere)) == MOST_SITES
    assert _worst_sites(nowhere, nowhere) == []
