"""Files: whole or not at all."""

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from nmoe.core.errors import BadFile
from nmoe.core.files import read_json, sha256, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("culprit", ["replace", "chmod"])
def test_failing_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, culprit):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, culprit, full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_interrupted_write_leaves_no_file_at_all(tmp_path, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file.bin", b"new")
    assert names(tmp_path) == []


def test_reader_during_a_write_sees_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    seen = []
    replace = Path.replace

    def look_first(self: Path, target: Path) -> Path:
        seen.append((path.read_bytes(), self.read_bytes(), self.parent))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look_first)
    write_bytes(path, b"new")
    assert seen == [(b"old", b"new", tmp_path)]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [-math.inf]}, {1, 2}])
def test_what_json_cannot_say_is_refused_and_nothing_is_written(tmp_path, value):
    write_json(tmp_path / "file.json", {"kept": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == {"kept": 1}
    assert names(tmp_path) == ["file.json"]


def test_json_round_trip_is_plain_json(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value == json.loads((tmp_path / "file.json").read_text())


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"1 2"])
def test_damaged_json_is_a_bad_file(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"file\.json is not valid JSON") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_json_is_a_bad_file(tmp_path):
    with pytest.raises(BadFile, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")


def test_sha256_is_the_standard_one(tmp_path):
    data = os.urandom(100_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B
