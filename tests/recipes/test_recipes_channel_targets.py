"""The committed results of the reproduction of channel-aware gating keep what was promised of it."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "channel-gating.json"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(RESULTS.read_text("utf-8"))


def test_the_experiment_is_the_one_that_was_promised(results):
    assert results["scale"] == "cpu"
    assert results["settings"]["data"] == "fashion-mnist"
    assert results["settings"]["experts"] == 5
    assert results["seeds"] >= 3
    assert all(row["n"] == results["seeds"] for row in results["rows"])


@pytest.mark.parametrize("method", ["aware", "aware_joint"])
def test_seeing_links_is_worth_three_points_where_they_are_bad_and_something_everywhere(results, method):
    aware, naive = results["curves"][method]["analog"], results["curves"]["naive"]["analog"]
    assert aware.keys() == naive.keys()
    assert {"-10", "0", "30"} <= aware.keys()
    for snr_db, accuracy in aware.items():
        assert accuracy > naive[snr_db], snr_db
        if float(snr_db) <= 0:
            assert accuracy - naive[snr_db] >= 0.03, snr_db


@pytest.mark.parametrize("control", ["snr_only", "random"])
def test_seeing_features_too_is_worth_something_everywhere(results, control):
    for snr_db, accuracy in results["curves"]["aware"]["analog"].items():
        assert accuracy > results["curves"][control]["analog"][snr_db], snr_db


@pytest.mark.parametrize("method", ["aware", "aware_joint"])
def test_seeing_links_costs_nothing_where_they_are_good(results, method):
    aware, naive = results["curves"][method]["analog"]["30"], results["curves"]["naive"]["analog"]["30"]
    assert aware >= naive - results["spreads"]["naive"]["analog"]["30"]


def test_codes_move_the_cliff_of_digital_transmission(results):
    uncoded = results["curves"]["aware"]["digital"]
    clean = uncoded["30"]
    for code in ("digital_repetition", "digital_convolutional"):
        coded = results["curves"]["aware"][code]
        fallen = [snr_db for snr_db in coded if clean - uncoded[snr_db] > 0.05]
        assert fallen, "without a code there is a cliff"
        assert all(coded[snr_db] > uncoded[snr_db] for snr_db in fallen), code
