"""The cache: continued after a crash, trusted by hash only, never two versions mixed, never two writers."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from nmoe.core.errors import BadFile
from nmoe.deliver.cache import CacheFailure, FileVersion, find_whole, open_complete, open_entry
from nmoe.deliver.layout import Layout, TensorPlace, data_start, parse_layout
from nmoe.deliver.mapped import MappedFile

FILE = save({"a": torch.arange(40, dtype=torch.uint8), "b": torch.ones(5000, dtype=torch.uint8)})
START = data_start(FILE, len(FILE), name="f")
HEAD, LAYOUT = FILE[:START], parse_layout(FILE[:START], len(FILE), name="f")
SHA256 = hashlib.sha256(FILE).hexdigest()
A, B = [(place.start, place.end) for place in sorted(LAYOUT.tensors, key=lambda place: place.name)]


def version(**changes):
    facts = {"url": "http://h/f", "bytes": len(FILE), "validator": "one", "head_sha256": hashlib.sha256(HEAD).hexdigest()}
    return FileVersion(**{**facts, **changes})


def fill(entry):
    entry.begin(HEAD, LAYOUT)
    for start, end in (A, B):
        entry.write(start, FILE[start:end])
        entry.record(start, end, hashlib.sha256(FILE[start:end]).hexdigest())
    entry.finish()


def test_a_file_is_whole_after_it_has_been_finished(tmp_path):
    assert find_whole(tmp_path, version()) is None
    entry = open_entry(tmp_path, version(), patience_s=1)
    fill(entry)
    pages = MappedFile(entry.path, LAYOUT)
    for place in LAYOUT.tensors:
        tensor = pages.tensor(place)
        assert tensor.numpy().tobytes() == FILE[place.start : place.end]
        assert tensor.data_ptr() % 64 == 0
    again = open_entry(tmp_path, version(), patience_s=1)
    assert again.complete
    assert again.path == entry.path == find_whole(tmp_path, version()).path == open_complete(tmp_path, "http://h/f", "").path


def test_what_was_begun_is_taken_up_and_a_torn_line_is_passed_over(tmp_path):
    entry = open_entry(tmp_path, version(), patience_s=1)
    assert entry.begin(HEAD, LAYOUT) == {}
    entry.write(A[0], FILE[slice(*A)])
    entry.record(*A, "a")
    entry.record(*B, "b")
    entry.record(*B, None)
    entry.close()
    with (entry.folder / "journal").open("ab") as journal:
        journal.write(b'\n[1]\n"x"\n[60, 70, "c')
    entry = open_entry(tmp_path, version(), patience_s=1)
    assert entry.begin(HEAD, LAYOUT) == {A: "a"}
    assert entry.digest(*A) == hashlib.sha256(FILE[slice(*A)]).hexdigest()
    assert entry.digest(0, A[0] if A < B else B[0]) == hashlib.sha256(HEAD).hexdigest()
    entry.close()


@pytest.mark.parametrize("change", [{"validator": "two"}, {"bytes": len(FILE) + 1}, {"head_sha256": "0"}, {"validator": ""}])
def test_another_version_begins_anew(tmp_path, change):
    fill(open_entry(tmp_path, version(), patience_s=1))
    entry = open_entry(tmp_path, version(**change), patience_s=1)
    assert not entry.complete
    assert entry.begin(HEAD, LAYOUT) == {}
    entry.close()


def test_equal_hashes_count_more_than_what_the_server_says(tmp_path):
    fill(open_entry(tmp_path, version(sha256=SHA256), patience_s=1))
    assert find_whole(tmp_path, version(sha256=SHA256, validator="two"))
    assert not find_whole(tmp_path, version(sha256="0" * 64))


def test_a_hash_that_nobody_knew_is_checked_when_it_is_asked_for(tmp_path):
    fill(open_entry(tmp_path, version(), patience_s=1))
    assert find_whole(tmp_path, version(sha256=SHA256))
    assert open_complete(tmp_path, "http://h/f", SHA256)
    with pytest.raises(BadFile, match="SHA-256"):
        open_complete(tmp_path, "http://h/f", "0" * 64)


def test_a_whole_file_that_was_touched_is_checked_piece_by_piece(tmp_path):
    entry = open_entry(tmp_path, version(), patience_s=1)
    fill(entry)
    os.utime(entry.path, ns=(1, 1))
    again = open_entry(tmp_path, version(), patience_s=1)
    assert not again.complete
    assert again.begin(HEAD, LAYOUT) == {span: hashlib.sha256(FILE[slice(*span)]).hexdigest() for span in (A, B)}
    again.close()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "url": 3}', '{"format": 9}'])
def test_an_entry_of_another_make_is_as_none(tmp_path, text):
    entry = open_entry(tmp_path, version(), patience_s=1)
    fill(entry)
    (entry.folder / "entry.json").write_text(text)
    assert find_whole(tmp_path, version()) is None
    with pytest.raises(BadFile, match="not whole"):
        open_complete(tmp_path, "http://h/f", "")


def test_only_one_process_downloads_a_file(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom nmoe.deliver.cache import FileVersion, open_entry\n"
        "version = FileVersion(url='http://h/f', bytes=100, validator='one', head_sha256='x')\n"
        f"entry = open_entry(Path({str(tmp_path)!r}), version, patience_s=1)\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CacheFailure, match=f"process {other.pid} "):
            open_entry(tmp_path, version(), patience_s=0.1)
        other.kill()
    open_entry(tmp_path, version(), patience_s=1).close()


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path):
    entry = open_entry(tmp_path, version(), patience_s=1)
    huge = TensorPlace(name="a", dtype=torch.uint8, shape=(1 << 60,), start=START, end=START + (1 << 60))
    with pytest.raises(CacheFailure, match="no room"):
        entry.begin(HEAD, Layout(file_bytes=huge.end, data_start=START, tensors=(huge,)))
    entry.close()


def test_what_proved_wrong_is_thrown_away(tmp_path):
    entry = open_entry(tmp_path, version(), patience_s=1)
    entry.begin(HEAD, LAYOUT)
    entry.record(*A, "a")
    entry.discard()
    entry = open_entry(tmp_path, version(), patience_s=1)
    assert entry.begin(HEAD, LAYOUT) == {}
    entry.close()
