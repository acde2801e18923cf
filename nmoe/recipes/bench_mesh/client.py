"""The benchmark's end of a client process (worker.py): start it, ask for rounds, end it."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nmoe
from nmoe.recipes.bench_mesh.base import System, Unavailable
from nmoe.recipes.bench_mesh.processes import descendants, kill
from nmoe.recipes.bench_mesh.rounds import Case, Footprint, Round

START_S, ROUND_S, STOP_S = 120.0, 120.0, 30.0  # how long the slowest peer may take


class Client:
    """A client process of one system; ends its whole tree of processes when left.

    Args:
        system: what to run there.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self._folder = tempfile.TemporaryDirectory(prefix="nmoe-bench-")
        self._errors = Path(self._folder.name) / "errors"
        kind = type(system)
        self._command = [str(system.interpreter), "-m", "nmoe.recipes.bench_mesh.worker", kind.__module__, kind.__qualname__]
        self._command.append(str(system.hidden))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the client and everything below it, by force if it takes too long."""
        try:
            if self._process:
                _end(self._process)
        finally:
            self._folder.cleanup()

    def start(self) -> Footprint:
        """Start the process and the system in it.

        Raises:
            Unavailable: when it does not start here, or its outputs are not those of the local mixture.
        """
        if reason := self.system.missing():
            raise Unavailable(reason)
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches the benchmark alone, which ends the others in order
            )
        return Footprint(**self._answer(START_S))

    def round(self, case: Case, seconds: float) -> Round:
        """Measure one round of about ``seconds``.

        Raises:
            Unavailable: when the process ends, or does not answer in time.
        """
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({**asdict(case), "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable(self._last_words()) from None
        return Round(**self._answer(ROUND_S + seconds))

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            raise Unavailable(f"no answer in {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        """Return the error that ended the process: the last line at the margin that names one, else the last line."""
        assert self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        lines = [line.strip() for line in self._errors.read_text(errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if line.split(":")[0].endswith(("Unavailable", "Error", "Exception"))]
        said = (named or lines or [f"it ended with status {self._process.returncode}"])[-1]
        return said.removeprefix(f"{Unavailable.__module__}.{Unavailable.__name__}: ")

    def _environment(self) -> Mapping[str, str]:
        """Return the process's environment; another interpreter finds nmoe, and nothing else of ours, through a link."""
        words = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        if self.system.interpreter != Path(sys.executable):
            folder = Path(self._folder.name) / "path"
            folder.mkdir()
            (folder / "nmoe").symlink_to(Path(nmoe.__file__).resolve().parent)
            words["PYTHONPATH"] = str(folder)
        return words


def _end(process: subprocess.Popen[str]) -> None:
    """Close a client's input, so that it stops its system, and wait; kill what is left of its tree then, or at a second Ctrl-C."""
    assert process.stdin
    assert process.stdout
    tree = descendants(process.pid)
    try:
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            process.stdin.close()
            process.wait(STOP_S)
    finally:
        tree += [pid for pid in descendants(process.pid) if pid not in tree]
        if process.poll() is None:
            process.kill()
            process.wait()
        kill(tree[1:])
        process.stdout.close()
