"""Reading a run folder: whole ones, and one line for each way to be damaged."""

import json
from pathlib import Path

import pytest

from nmoe.core.errors import BadFile
from nmoe.report import read_run

FILES = ("config.json", "metrics.jsonl", "results.json")


def test_whole_folder(write_run):
    run = read_run(write_run())
    assert run.name == "demo"
    assert len(run.rounds) == 12 + 1 + 5 + 24
    assert run.results.accuracy["nmoe"].overall == 0.958
    assert run.serving is not None
    assert len(run.serving.asked) == 10


def test_training_only(write_run):
    run = read_run(write_run(served=False))
    assert run.serving is None
    assert run.results.serving is None
    assert run.results.communication.infer_bytes_per_sample is None


def test_no_folder(tmp_path):
    with pytest.raises(BadFile, match="no such folder"):
        read_run(tmp_path / "absent")


def refuse(folder: Path, name: str) -> str:
    with pytest.raises(BadFile) as caught:
        read_run(folder)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FILES)
def test_missing_file(write_run, name):
    folder = write_run()
    (folder / name).unlink()
    assert "No such file" in refuse(folder, name)


@pytest.mark.parametrize("name", [*FILES, "serving.json"])
@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe\x00", b'{"a": "\xff"}', b"\x00" * 20, b"[" * 5000])
def test_damaged_file(write_run, name, data):
    folder = write_run()
    (folder / name).write_bytes(data)
    if name == "config.json" and data.startswith(b'{"a"'):
        data = b""
    refuse(folder, name)


def test_torn_last_line_is_named(write_run):
    folder = write_run()
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert "line 42" in refuse(folder, "metrics.jsonl")


def test_no_rounds(write_run):
    folder = write_run()
    (folder / "metrics.jsonl").write_text("\n")
    assert "holds no rounds" in refuse(folder, "metrics.jsonl")


def test_round_written_again_replaces_the_first(write_run):
    folder = write_run()
    path = folder / "metrics.jsonl"
    again = {"stage": "gates", "round": 5, "rounds": 5, "seconds": 1.0, "bytes": 1, "refused": [], "metrics": {"nmoe_global": 0.5}}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    found = [one for one in read_run(folder).rounds if (one.stage, one.round) == ("gates", 5)]
    assert [one.metrics for one in found] == [{"nmoe_global": 0.5}]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("results.json", {"accuracy": {"nmoe": {"local": 1.2, "global": 0.5}}}),
        ("results.json", {"communication": {"train_bytes": {"gates": -1}}}),
        ("results.json", {"k": "two"}),
        ("serving.json", {"experts": []}),
        ("serving.json", {"asked": [[1.0]]}),
        ("serving.json", {"classes_seen": [[99]] * 10}),
        ("serving.json", {"latency_ms": [-1.0]}),
    ],
)
def test_impossible_value(write_run, name, change):
    folder = write_run()
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "damaged" in refuse(folder, name)
