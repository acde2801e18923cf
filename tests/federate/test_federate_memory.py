"""Node memory: versions by clock, and nothing a resumed run needs is ever forgotten."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.errors import BadFile
from nmoe.federate import NodeMemory


def value(number: int) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(number)}


def number(found: dict[str, torch.Tensor] | None) -> int | None:
    return None if found is None else int(found["x"])


@pytest.fixture(params=["disk", "process"])
def memory(request, tmp_path) -> NodeMemory:
    return NodeMemory(tmp_path / "memory" if request.param == "disk" else None)


def test_a_reader_sees_the_newest_version_before_its_clock(memory):
    for clock in (3, 5, 12):
        memory.write("gate", value(clock), at=clock, safe=0)
    assert [number(memory.read("gate", before=clock)) for clock in (3, 4, 5, 6, 12, 13, 99)] == [None, 3, 3, 5, 5, 12, 12]
    assert memory.versions("gate") == [3, 5, 12]
    assert memory.read("other", before=99) is None


def test_versions_sort_as_numbers_and_names_do_not_mix(memory):
    for clock in (9, 10, 100):
        memory.write("gate", value(clock), at=clock, safe=0)
    memory.write("gates", value(-1), at=50, safe=0)
    assert memory.versions("gate") == [9, 10, 100]
    assert number(memory.read("gate", before=100)) == 10
    assert number(memory.read("gates", before=100)) == -1


def test_writing_a_clock_again_replaces_it(memory):
    memory.write("gate", value(1), at=4, safe=0)
    memory.write("gate", value(2), at=4, safe=0)
    assert number(memory.read("gate", before=5)) == 2
    assert memory.versions("gate") == [4]


def test_what_is_written_is_a_copy(memory):
    tensors = {"x": torch.zeros(3)}
    memory.write("gate", tensors, at=1, safe=0)
    tensors["x"].add_(1)
    assert memory.read("gate", before=2)["x"].tolist() == [0, 0, 0]


def test_old_versions_are_forgotten(memory):
    for clock in range(1, 30):
        memory.write("gate", value(clock), at=clock, safe=clock - 1)
    assert memory.versions("gate") == [28, 29]


def test_a_new_process_finds_what_the_old_one_wrote(tmp_path):
    NodeMemory(tmp_path).write("gate", {"x": torch.arange(3), "y": torch.rand(2, 2).T}, at=1, safe=0)
    found = NodeMemory(tmp_path).read("gate", before=2)
    assert found["x"].tolist() == [0, 1, 2]
    assert NodeMemory(tmp_path / "elsewhere").read("gate", before=2) is None


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100, None], ids=["empty", "nonsense", "ones", "cut"])
def test_damaged_file_is_a_bad_file_that_names_it(tmp_path, content):
    NodeMemory(tmp_path).write("gate", value(1), at=1, safe=0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(BadFile, match=rf"{path.name} is damaged") as caught:
        NodeMemory(tmp_path).read("gate", before=2)
    assert "\n" not in str(caught.value)


@st.composite
def histories(draw):
    """Rounds of a run: per round the writes at growing clocks, and whether it was killed before its checkpoint and so repeated."""
    return draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4), st.integers(0, 4), st.booleans()), max_size=8
        )
    )


@given(histories(), st.booleans())
def test_no_resume_ever_misses_a_version(history, on_disk):
    """Model check: a run with kills reads at every message what an undisturbed run with unlimited memory reads."""
    with tempfile.TemporaryDirectory() as folder:
        memory = NodeMemory(Path(folder) if on_disk else None)
        truth: dict[tuple[str, int], int] = {}
        safe = 0
        for messages, cut, killed in history:
            attempts = [messages[:cut], messages] if killed else [messages]
            for attempt in attempts:
                if on_disk:
                    memory = NodeMemory(Path(folder))  # a new process after the kill
                for step, name in enumerate(attempt):
                    clock = safe + 1 + step
                    for reader in ("a", "b"):
                        older = [at for held, at in truth if held == reader and at < clock]
                        wanted = truth[reader, max(older)] if older else None
                        assert number(memory.read(reader, before=clock)) == wanted
                    if name:
                        truth[name, clock] = clock * 10
                        memory.write(name, value(clock * 10), at=clock, safe=safe)
            safe += len(messages) + 1
