"""The benchmark of the channel: what it prints, and that every system draws what it says. No time is asserted."""

import json

import pytest

from nmoe.recipes.bench_channel import _systems, as_rows, bench_channel


def test_json_has_name_machine_and_a_row_per_system():
    lines = []
    bench_channel(turns=1, as_json=True, say=lines.append, samples=1000)
    (line,) = lines
    found = json.loads(line)
    assert set(found) == {"name", "machine", "rows"}
    assert found["name"] == "channel"
    assert set(found["machine"]) == {"cpu", "cores", "python"}
    assert [(row["system"], row["case"]) for row in found["rows"]] == list(_systems(1000))
    for row in found["rows"]:
        assert set(row) == {"system", "case", "metric", "value", "unit"}
        assert row["unit"] == "1/s"
        assert row["value"] > 0


def test_the_table_has_a_line_per_system():
    lines = []
    bench_channel(turns=1, as_json=False, say=lines.append, samples=1000)
    assert len(lines) == 1 + len(_systems(1000))


def test_every_system_draws_finite_snrs_and_new_ones_each_time():
    for (system, case), draw in _systems(2000).items():
        first, second = draw(), draw()
        assert first.numel() == (200 if "correlated" in case else 2000), system
        assert bool(first.isfinite().all())
        assert bool((first >= 0).all())
        assert "AWGN" in system or not bool((first == second).all())


def test_what_training_draws_is_measured_means_included():
    systems = _systems(1000)
    for law in ("AWGN", "Rayleigh", "Rician, K = 4"):
        assert (f"Radio.fade, {law}", "200 samples, 5 links") in systems
        draw = systems[f"Radio.draw_means + fade, {law}", "200 samples, 5 links"]
        assert not bool((draw() == draw()).all()), "means are drawn anew, also where nothing fades"


def test_rows_are_medians():
    assert as_rows({("a", "b"): [3.0, 1.0, 2.0]})[0]["value"] == 2.0


@pytest.mark.parametrize(("turns", "samples"), [(0, 1000), (1, 999)])
def test_too_little_is_refused(turns, samples):
    with pytest.raises(ValueError, match=f"got {turns} and {samples}"):
        bench_channel(turns=turns, as_json=True, say=print, samples=samples)
