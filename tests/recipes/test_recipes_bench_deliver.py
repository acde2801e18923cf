"""``nmoe bench deliver``: the recursion that it compares with, what it refuses, and its table from what was measured."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.recipes.bench_deliver import measure
from nmoe.recipes.bench_deliver.cases import CASES


def test_the_prediction_is_the_papers_recursion():
    # three weights of 10 bytes at 10 bytes/s; 1 s, 3 s and 1 s of computing: layer 2 starts at 2, layer 3 at 5
    assert measure.predict({"a": 10, "b": 10, "c": 10}, {"a": 0.0, "b": 1.0, "c": 4.0, "": 5.0}, 10.0) == pytest.approx(6.0)
    assert measure.predict({"a": 10, "b": 30}, {"a": 0.0, "b": 1.0, "": 2.0}, 10.0) == pytest.approx(5.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.0, 10.0)), min_size=1, max_size=12))
def test_the_prediction_equals_the_longest_way_through_downloads_and_computing(layers):
    names = [str(place) for place in range(len(layers))]
    num_bytes = dict(zip(names, (size for size, _ in layers), strict=True))
    began = [0.0, *itertools.accumulate(seconds for _, seconds in layers)]
    longest = max(
        sum(size for size, _ in layers[: place + 1]) / 7.0 + sum(seconds for _, seconds in layers[place:]) for place in range(len(layers))
    )
    assert measure.predict(num_bytes, dict(zip([*names, ""], began, strict=True)), 7.0) == pytest.approx(longest)


@pytest.mark.parametrize(("models", "turns", "said"), [(["LeNet"], 1, "got LeNet"), (["ResNet-50"], 0, "got 0")])
def test_what_cannot_be_measured_is_refused(models, turns, said):
    with pytest.raises(ValueError, match=said):
        measure.bench_deliver(models=models, turns=turns, as_json=False, say=print, note=print)


def found_of(total_s):
    layers = {"compute_s": 2.0, "touched_s": {"a": 0.0, "": 2.0}, "bytes": {"a": 20}}
    run = {"total_s": total_s, "opened_s": 0.5, "layers": layers}
    memory = {
        way: {"peak_bytes": peak, "model_bytes": 20} for way, peak in {"empty": 100, "plain": 130, "card": 121, "traced": 122}.items()
    }
    return {
        "layers": layers,
        "rate": 10.0,
        "ways": {"traced": [run], "card": [run], "downloaded": [{"total_s": 8.0}]},
        "memory": memory,
        "local": {"seconds": {"plain": [1.0, 2.0, 4.0], "cache": [1.1, 2.0, 4.0], "offline": [1.0, 1.0, 1.0]}},
    }


def test_the_table_and_the_json_say_what_was_measured(monkeypatch):
    monkeypatch.setattr(measure, "_measure", lambda *_: found_of(4.5))
    lines = []
    rows = measure.bench_deliver(models=list(CASES)[:1], turns=1, as_json=True, say=lines.append, note=print)
    assert json.loads(lines[0])["rows"] == rows
    values = {row["metric"]: row["value"] for row in rows}
    assert values["streamed / download first, order from the card"] == pytest.approx(4.5 / 8)
    assert values["measured / (opening + predicted) - 1"] == pytest.approx(4.5 / 4.5 - 1)
    assert values["file in the cache, server asked: time / plain loading - 1"] == pytest.approx(0.0)
    assert values["peak memory above that without weights / weights, card"] == pytest.approx(21 / 20)
    measure.bench_deliver(models=list(CASES)[:1], turns=1, as_json=False, say=lines.append, note=print)
    assert len(lines) == 1 + 1 + len(rows)
