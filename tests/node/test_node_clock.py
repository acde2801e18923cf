"""Clocks: a node decides by the monotonic clock alone, so that the calendar's may jump."""

import ast
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nmoe.node

FOLDER = Path(nmoe.node.__file__).parent
CALENDAR = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime"}
MAY_READ_IT = {
    "answers.py": "the time in a line of the log, for people",
    "direct.py": "a link ends with its certificate, and the time left is taken once",
    "keys.py": "certificates are valid by the calendar",
    "process.py": "a certificate is checked before it is used",
    "tracing.py": "spans are shown by the calendar",
}


def calendar_reads(path: Path) -> list[str]:
    """Return the lines of a file that read the calendar's clock."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALENDAR or called.split(".")[-1] in {"now", "utcnow", "today"}:
                found.append(f"{path.relative_to(FOLDER)}:{node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"{path.relative_to(FOLDER)}:{node.lineno}" for alias in node.names if f"time.{alias.name}" in CALENDAR]
    return found


def test_nothing_decides_by_the_calendar() -> None:
    readers = [line for path in FOLDER.rglob("*.py") if path.name not in MAY_READ_IT for line in calendar_reads(path)]
    assert readers == []


def test_a_clock_that_jumps_under_load_changes_nothing(mesh: Any, images: Tensor, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    jumps = itertools.cycle([0.0, 1e6, -1e6, 3600.0, -86400.0 * 365])
    reference = mesh.reference(0, images, k=2).probabilities
    wrong: list[object] = []

    def ask(client: Any) -> None:
        for _ in range(25):
            reply = client.infer("node-0", images, deadline_s=2)
            if reply.degraded or not torch.allclose(reply.probabilities, reference, atol=1e-2) or not 0 < reply.seconds < 2:
                wrong.append(reply)

    with serve(mesh) as (_, client, runners):
        monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        monkeypatch.setattr(time, "time", real)
        view = runners[0].view()
        assert wrong == []
        assert (view.answered, view.degraded, view.refused, view.refusals) == (100, 0, {}, ())
        assert all(link.state == "up" and link.failed == {} for link in view.links)
        assert view.requests_per_s > 0
