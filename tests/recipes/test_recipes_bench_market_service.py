"""The market's benchmark: its rows, with a real server that is really killed."""

import json

import pytest

from nmoe.recipes.bench_market_service import bench_market_service


def test_rows_and_nothing_lost(tmp_path):
    lines = []
    bench_market_service(seconds=0.5, connections=[4], folder=tmp_path, as_json=True, say=lines.append)
    (line,) = lines
    told = json.loads(line)
    assert told["name"] == "market-service"
    values = {(row["system"], row["metric"]): row["value"] for row in told["rows"]}
    assert values["nmoe", "acknowledged bids that are lost"] == 0
    assert values["nmoe", "bids acknowledged, on the disk"] > 0
    assert values["nmoe", "bids refused"] == 0
    assert values["sqlite3, no server", "bids on the disk"] > 0
    assert list(tmp_path.iterdir()) == [], "it clears up"


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"connections": []}, {"connections": [0]}])
def test_numbers_are_checked(wrong):
    given = {"seconds": 1.0, "connections": [1], "folder": None, "as_json": True, "say": print, **wrong}
    with pytest.raises(ValueError, match="wanted"):
        bench_market_service(**given)


@pytest.mark.slow
def test_a_thousand_bids_a_second_are_a_table(capsys):
    """Printed, not asserted: how fast a machine is, is not for a test to say."""
    bench_market_service(seconds=3.0, connections=[64, 256], folder=None, as_json=False, say=print)
    assert "acknowledged bids that are lost" in capsys.readouterr().out
