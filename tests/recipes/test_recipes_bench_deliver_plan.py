"""The benchmark of the delivery planner: what it prints. No time is asserted."""

import json

import pytest

from nmoe.recipes.bench_deliver_plan import bench_deliver_plan


def test_json_has_name_machine_and_rows_and_the_solvers_agree():
    lines = []
    bench_deliver_plan(users=10, pairs=3, turns=1, as_json=True, say=lines.append)
    found = json.loads(lines[0])
    assert set(found) == {"name", "machine", "rows"}
    assert all(set(row) == {"system", "case", "metric", "value", "unit"} and row["value"] > 0 for row in found["rows"])
    (difference,) = [row["value"] for row in found["rows"] if "difference" in row["metric"]]
    assert difference < 1e-6


def test_the_table_has_a_line_per_row():
    lines = []
    bench_deliver_plan(users=10, pairs=1, turns=1, as_json=False, say=lines.append)
    assert len(lines) == 7


@pytest.mark.parametrize(("users", "pairs", "turns"), [(9, 1, 1), (10, 0, 1), (10, 1, 0)])
def test_too_little_is_refused(users, pairs, turns):
    with pytest.raises(ValueError, match=f"got {users}, {pairs} and {turns}"):
        bench_deliver_plan(users=users, pairs=pairs, turns=turns, as_json=True, say=print)
