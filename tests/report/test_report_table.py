"""The terminal tables: every number, within 80 columns, without colour."""

import io

import pytest
from rich.console import Console

from nmoe.report import read_run, results_table


def printed(given: object) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(results_table(given))
    return console.file.getvalue()


def test_every_number(make_results):
    given = make_results(serving=True)
    text = printed(given)
    for pair in given["accuracy"].values():
        assert f"{100 * pair['local']:.1f} %" in text
        assert f"{100 * pair['global']:.1f} %" in text
    for part in ("14.9 MB", "0 B", "880.5 kB", "1.7 kB", "1,000", "999", "4.18 ms", "17.3 ms", "98.5 %", "19.2 s", "1.83 s", "8.04 s"):
        assert part in text, part
    assert "none: no --dp-epsilon was given" in text


def test_width_words_and_mark(make_results):
    lines = printed(make_results(serving=True)).splitlines()
    assert max(map(len, lines)) <= 80
    for words in ("own expert only", "random experts, equal weights", "all experts averaged", "oracle gate", "FedAvg classifier"):
        assert any(words in line for line in lines)
    assert [line.strip().split("  ")[0] for line in lines if ">" in line] == ["> NMoE, k=2"]


def test_training_only_leaves_serving_out(make_results):
    text = printed(make_results(serving=False))
    assert "Serving" not in text
    assert "per sample" not in text
    assert "NMoE, k=2" in text


def test_privacy_and_missing_methods(make_results):
    given = make_results(serving=False)
    given["privacy"] = {"epsilon": 7.5, "delta": 1e-5, "mechanism": "Gaussian [clip 1.0]"}
    given["accuracy"] = {"nmoe": {"global": 0.5}, "new_method": {"local": 0.25, "global": None}}
    text = printed(given)
    assert "7.5" in text
    assert "1e-05" in text
    assert "Gaussian [clip 1.0]" in text
    assert "50.0 %" in text
    assert "25.0 %" in text
    assert "new_method" in text


def test_record_and_mapping_agree(write_run, make_results):
    assert printed(read_run(write_run()).results) == printed(make_results(serving=True))


def test_damaged_results(make_results):
    given = make_results(serving=True)
    del given["privacy"]
    with pytest.raises(ValueError, match="privacy"):
        results_table(given)
