"""The delivery demo for real: processes, links where they are allowed, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmoe.core.errors import NmoeError
from nmoe.recipes.deliver_crew import Crew, CrewProcess
from nmoe.recipes.deliver_demo import USERS
from nmoe.report.deliver_demo import demo_table


def processes_of(mark: str) -> list[int]:
    """Return the processes whose command line or environment holds a mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            if mark.encode() in told and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--loopback"]])
def test_who_is_planned_for_is_served_and_who_is_not_is_told_why(tmp_path, extra):
    words = [sys.executable, "-m", "nmoe", "deliver", "demo", "--quick", "--out", str(tmp_path / "run"), *extra]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [user["id"] for user in results["users"]] == [user[0] for user in USERS]
    assert results["served"]["planned"] == len(USERS) - 1, "the neediest does not fit"
    assert results["users"][-1]["reason"]
    for user in results["users"][:-1]:
        assert user["finish_s"]["measured"] > 0.5 * user["finish_s"]["planned"], "it was paced"
        assert len(user["layers"]["measured"]) == len(user["layers"]["planned"]) == len(user["clocks"])
    assert sum(user["bandwidth_share"] for user in results["users"]) <= 1 + 1e-9
    assert (tmp_path / "run" / "figures" / "measured.png").stat().st_size > 1000
    assert "loopback" in results["links"] or not extra


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_it_is_ended_early(tmp_path, number):
    mark = f"nmoe-test-{os.getpid()}-{number}"
    words = [sys.executable, "-m", "nmoe", "deliver", "demo", "--quick", "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "NMOE_TEST_MARK": mark}) as demo:
        assert demo.stdout is not None
        while not demo.stdout.readline().startswith("devices"):
            assert demo.poll() is None
        assert len(processes_of(mark)) > len(USERS)
        demo.send_signal(number)
        demo.wait(30)
    until_s = time.monotonic() + 20
    while (left := processes_of(mark)) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert left == []


def test_a_process_that_ends_is_named(tmp_path):
    process = CrewProcess(["nmoe.not_there"], name="ghost", isolated=False)
    with pytest.raises(NmoeError, match="ghost ended"):
        process.line()
    process.end()


def test_a_crew_without_links_says_why(tmp_path):
    with Crew(tmp_path, loopback=True) as crew:
        assert "loopback" in crew.about
        assert not crew.isolated


def test_the_table_says_who_was_late():
    user = {
        "id": "a",
        "served": {"planned": True, "measured": False},
        "model": "vit",
        "bandwidth_share": 0.25,
        "deadline_s": 4.0,
        "reason": "",
    }
    results = {
        "served": {"planned": 1, "measured": 0},
        "users": [{**user, "finish_s": {"planned": 3.5, "measured": 4.5}}],
        "other_methods_serve": {"dai": 0},
    }
    from rich.console import Console

    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(demo_table(results))
    text = console.export_text()
    console.file.close()
    assert "late" in text
    assert "25.0 %" in text
