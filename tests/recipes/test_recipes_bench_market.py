"""The benchmark of the auctions: what it prints, and that the fast way and the naive one agree. No time is asserted."""

import json

import pytest

from nmoe.recipes.bench_market import bench_market


def test_json_has_name_machine_and_rows_and_the_ways_agree():
    lines = []
    bench_market(users=2000, naive_users=300, turns=1, as_json=True, say=lines.append)
    found = json.loads(lines[0])
    assert set(found) == {"name", "machine", "rows"}
    assert all(set(row) == {"system", "case", "metric", "value", "unit"} and row["value"] >= 0 for row in found["rows"])
    assert {row["system"] for row in found["rows"]} == {"aeria-ef", "aeria-ic", "naive, bidder by bidder", "nmoe"}
    differences = [row["value"] for row in found["rows"] if "difference" in row["metric"]]
    assert len(differences) == 2
    assert max(differences) < 1e-9


def test_the_table_has_a_line_per_row():
    lines = []
    bench_market(users=10, naive_users=10, turns=1, as_json=False, say=lines.append)
    assert len(lines) == 13


@pytest.mark.parametrize(("users", "naive", "turns"), [(9, 10, 1), (10, 9, 1), (10, 10, 0)])
def test_too_little_is_refused(users, naive, turns):
    with pytest.raises(ValueError, match=f"got {users}, {naive} and {turns}"):
        bench_market(users=users, naive_users=naive, turns=turns, as_json=True, say=print)
