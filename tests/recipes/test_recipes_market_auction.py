"""Reading a market: demands as given or from needs, providers by name, and nothing written when something is wrong."""

from pathlib import Path

import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.market.auction.base import BadBids
from nmoe.recipes.market_auction import bids_csv, market_auction, read_market

NEEDS = "id,bid,workload,accuracy,latency_s,tasks,device_flops,uplink_bps\na,1,alexnet,0.4,0.2,2,1e10,2e7\n"


def auction(path: Path, **changes) -> dict:
    given = {
        "mechanism": "aeria-ic",
        "capacity": float("inf"),
        "unit_cost": 0.0,
        "base": None,
        "price": None,
        "draw": 0.5,
        "workloads": None,
        "as_json": True,
        "out": None,
        "say": lambda line: None,
        "show": lambda what: None,
    }
    return market_auction(path, **given | changes)


def test_columns_in_any_order_and_providers_by_name(tmp_path: Path):
    (tmp_path / "bids.csv").write_text(
        "\ufeffProvider, Demand ,note,ID,bid\nnorth,2,x,a,3\nsouth,1,,b,4\n\nnorth,1,,c,5\n", encoding="utf-8"
    )
    market = read_market(tmp_path / "bids.csv", None)
    assert market.bids.ids == ("a", "b", "c")
    assert market.bids.demand.tolist() == [2, 1, 1]
    assert market.bids.provider.tolist() == [0, 1, 0]
    assert market.providers == ("north", "south")
    assert bids_csv(market) == "id,bid,demand,provider\na,3.0,2.0,north\nb,4.0,1.0,south\nc,5.0,1.0,north\n"


def test_no_rows_are_an_empty_market_for_the_library_and_no_bids_for_the_command(tmp_path: Path):
    for header in ("id,bid,demand\n", NEEDS.splitlines()[0] + "\n"):
        (tmp_path / "bids.csv").write_text(header)
        assert len(read_market(tmp_path / "bids.csv", None).bids) == 0
        with pytest.raises(BadBids, match="no bids"):
            auction(tmp_path / "bids.csv")


def test_needs_become_demands(tmp_path: Path):
    (tmp_path / "bids.csv").write_text(NEEDS)
    market = read_market(tmp_path / "bids.csv", None)
    assert market.edge is not None
    assert market.bids.demand is market.edge.demand
    assert np.isfinite(market.bids.demand).all()


@pytest.mark.parametrize("changes", [{"draw": 1.0}, {"mechanism": "none"}, {"capacity": -1.0}, {"base": 0.5}])
def test_nothing_is_written_when_something_is_wrong(tmp_path: Path, changes: dict):
    (tmp_path / "bids.csv").write_text("id,bid,demand\na,1,1\n")
    with pytest.raises(ValueError, match="must be"):
        auction(tmp_path / "bids.csv", out=tmp_path / "out", **changes)
    (tmp_path / "bids.csv").write_text("id,bid\na,1\n")
    with pytest.raises(BadFile, match="should have columns"):
        auction(tmp_path / "bids.csv", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
