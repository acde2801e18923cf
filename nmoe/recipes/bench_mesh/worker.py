"""A client process: starts one system, measures rounds on request, stops the system when its standard input ends.

``python -m nmoe.recipes.bench_mesh.worker MODULE CLASS HIDDEN``; a request and an answer are a line of JSON each. What anybody else prints
goes to standard error. An error ends the process; the last line of its standard error says which.
"""

import asyncio
import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any, TextIO

import torch

from nmoe.recipes.bench_mesh.base import System
from nmoe.recipes.bench_mesh.rounds import Case, measure_round, start


def work(system: System, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until they end, then stop the system, whatever happened."""
    with asyncio.Runner() as runner:
        try:
            _say(answers, asdict(start(runner, system)))
            while line := runner.run(_next(requests)):
                request = json.loads(line)
                case = Case(batch=request["batch"], callers=request["callers"])
                _say(answers, asdict(measure_round(runner, system, case, request["seconds"])))
        finally:
            runner.run(system.stop())


async def _next(requests: TextIO) -> str:
    """Wait for a request; the loop runs meanwhile, for a client may have to keep its connections alive."""
    return await asyncio.to_thread(requests.readline)


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main() -> None:
    """Run one system named by module and class."""
    module, name, hidden = sys.argv[1:]
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0))
    system: System = getattr(importlib.import_module(module), name)(int(hidden))
    work(system, requests, answers)


if __name__ == "__main__":
    main()
