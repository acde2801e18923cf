"""Options: every wrong one is a ValueError that says what was wanted and what came; a written configuration reads back as itself."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.recipes.options import TrainOptions, parse_split, parse_sync, read_options
from nmoe.recipes.program import program_of
from nmoe.recipes.run_folder import claim


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"extractor": "simclr"}, "extractor must be one of fedsc, fedce, got 'simclr'"),
        ({"gate": "topk"}, "gate must be one of"),
        ({"engine": "mpi"}, "engine must be one of local, ray"),
        ({"mix": "votes"}, "mix must be one of"),
        ({"gate_reading": "C"}, "gate reading must be one of"),
        ({"gate_sync": "some"}, "gate sync must be one of"),
        ({"gate_sync": "every:0"}, "period must be at least 1, got 0"),
        ({"gate_sync": "every:x"}, "gate sync must be one of"),
        ({"split": "sorted"}, "split must be one of"),
        ({"split": "shards:two"}, "split must be one of"),
        ({"split": "dirichlet:0"}, "alpha"),
        ({"split": "dirichlet:-1"}, "alpha"),
        ({"split": "quantity:0"}, "alpha"),
        ({"split": "shards:0"}, "got 0"),
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"neighbours": 10}, "neighbours must be between 0 (all) and 9, got 10"),
        ({"participation": 0.0}, "participation must be above 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"dp_epsilon": 0.0}, "dp epsilon must be above 0"),
        ({"dp_epsilon": -1.0}, "dp epsilon must be above 0"),
        ({"dp_epsilon": float("nan")}, "dp epsilon must be above 0"),
        ({"dp_delta": 2.0}, "dp delta must be between 0 and 1, got 2.0"),
        ({"dp_epsilon": 1.0, "dp_delta": 1.5}, "dp delta must be between 0 and 1, got 1.5"),
        ({"dp_epsilon": 1.0, "extractor": "fedce"}, "protects the matrices that fedsc shares"),
    ],
)
def test_wrong_option_is_one_clear_line(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        TrainOptions(**wrong)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"data": "mnist"}, "a data set must be one of"),
        ({"k": 11}, "k must be between 1 and 10"),
        ({"k": 4, "neighbours": 2}, "k must be between 1 and 3"),
        ({"nodes": 2000, "split": "iid"}, "2000"),
        ({"nodes": 2, "split": "shards:2"}, "covers"),
        ({"data": "cifar10"}, "--data-dir"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused_before_anything_is_written(wrong: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, BadFile)) as caught:
        program_of(TrainOptions(**wrong), tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_configuration_reads_back(tmp_path: Path) -> None:
    options = TrainOptions(nodes=4, split="dirichlet:0.5", dp_epsilon=3.0, gate_sync="every:3")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(options) | {"command": "nmoe train"}))
    assert read_options(tmp_path) == options


@pytest.mark.parametrize("text", ["{", "[]", '{"nodes": 0}', '{"nodes": "four"}'])
def test_damaged_configuration_is_a_bad_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadFile, match=r"config\.json"):
        read_options(tmp_path)


def test_missing_configuration_is_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot read"):
        read_options(tmp_path)


def test_ring_neighbours_are_the_nearest_and_mutual_for_even_numbers() -> None:
    rows = TrainOptions(nodes=7, neighbours=4).neighbourhood()
    for node, row in enumerate(rows):
        assert set(row) == {(node + step) % 7 for step in (-2, -1, 1, 2)}
        assert all(node in rows[other] for other in row)
    assert all(set(row) == set(range(7)) - {node} for node, row in enumerate(TrainOptions(nodes=7).neighbourhood()))


def test_every_split_and_sync_parses() -> None:
    assert {type(parse_split(text)).__name__ for text in ("iid", "shards:2", "dirichlet:0.1", "quantity:1")} == {
        "Iid",
        "Shards",
        "Dirichlet",
        "QuantitySkew",
    }
    assert {type(parse_sync(text)).__name__ for text in ("full", "trunk", "head", "every:2", "neighbours")} == {
        "FullSync",
        "TrunkSync",
        "HeadSync",
        "PeriodicSync",
        "NeighbourSync",
    }


def test_privacy_noise_is_calibrated_once_and_reaches_the_stage() -> None:
    program = program_of(TrainOptions(dp_epsilon=4.0, rounds=3), None)
    assert program.features().noise_multiplier == program.noise_multiplier > 0
    assert program_of(TrainOptions(rounds=3), None).noise_multiplier == 0


def test_user_npz_trains_its_own_number_of_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "own.npz",
        images=generator.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8),
        labels=np.arange(60, dtype=np.int64) % 3,
    )
    program = program_of(TrainOptions(data=str(tmp_path / "own.npz"), nodes=3, split="shards:1", widen=1), None)
    assert program.expert().arguments["num_classes"] == 3
    assert program.extractor().kind == "fixup_resnet"
    assert sum(len(program.node(number).data) for number in range(3)) == len(program.data().train)


def test_run_folder_is_refused_unless_empty_or_forced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim(folder, force=False)
    claim(folder, force=False)
    (folder / "config.json").write_text("{}")
    (folder / "bundles").mkdir()
    (folder / ".metrics.jsonl.x1y2").write_text("cut short by a kill")
    with pytest.raises(ValueError, match="is not empty: give --force"):
        claim(folder, force=False)
    claim(folder, force=True)
    assert list(folder.iterdir()) == []


def test_forcing_never_deletes_what_no_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        claim(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()
    assert (tmp_path / "config.json").exists()
    with pytest.raises(ValueError, match="is a file"):
        claim(tmp_path / "config.json", force=True)
