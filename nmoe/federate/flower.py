"""Flower: the same stages over Flower's Message API. The only file that imports flwr.

Two runtimes: Flower's Ray simulation on one machine (``run_ray``), and SuperLink with SuperNodes over a network (``make_client_app`` and
``make_server_app`` inside a Flower app, see deploy/). A message carries the encoded payload as one array, so both count the same bytes as
the in-process engine, and every number arrives as it left.

Node numbers are the ``partition-id`` of a SuperNode's configuration; Flower's own node ids are random in every run, so the exchange asks
for numbers first ("hello") and sorts by them. Telemetry, update checks and per-run environments are switched off.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; without it Ray warns at every start

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from nmoe.core.errors import EngineError, MessageError, NmoeError
from nmoe.federate.base import Answers, Call, Exchange, Node, Program, Stage, State, serve
from nmoe.federate.payload import Payload
from nmoe.federate.rounds import Watcher, run

__all__ = ["Context", "FlowerExchange", "Grid", "make_client_app", "make_server_app", "run_ray"]

HELLO = "hello"
POLL_S = 0.05


class FlowerExchange(Exchange):
    """Nodes behind a Flower grid.

    Args:
        grid: Flower's door to the nodes.
        num_nodes: how many must be there before the run begins.
        timeout_s: how long a node may take to answer a message.
        join_timeout_s: how long to wait for the nodes.
        run_name: tells the nodes one run from another; a resumed run has the name it had.

    Raises:
        EngineError: when fewer nodes join in time, one of them cannot take part, or two have one number.
    """

    def __init__(self, grid: Grid, *, num_nodes: int, timeout_s: float, join_timeout_s: float, run_name: str = "") -> None:
        self._grid = grid
        self._run_name = run_name
        self._timeout_s = timeout_s
        self._ids = self._meet(num_nodes, time.monotonic() + join_timeout_s)
        super().__init__(sorted(self._ids))

    def carry(self, call: Call, requests: Mapping[int, Payload]) -> Answers:
        encoded: dict[int, bytes] = {}  # a broadcast is one payload for all nodes: encode it once
        messages = []
        for number, request in requests.items():
            if id(request) not in encoded:
                encoded[id(request)] = request.encode()
            data = encoded[id(request)]
            messages.append(Message(content=_content(self._run_name, call, data), dst_node_id=self._ids[number], message_type="query"))
        numbers = {node_id: number for number, node_id in self._ids.items()}
        replies: dict[int, Payload] = {}
        failures = dict.fromkeys(requests, f"no answer within {self._timeout_s:g} s")
        for message in self._grid.send_and_receive(messages, timeout=self._timeout_s):
            number = numbers[message.metadata.src_node_id]
            if message.has_error():
                failures[number] = f"error {message.error.code}: {_last_line(message.error.reason)}"
                continue
            try:
                payload = _payload(message)
            except NmoeError as error:
                failures[number] = str(error)
                continue
            if "failure" in payload.facts:
                failures[number] = str(payload.facts["failure"])
            else:
                replies[number] = payload
                del failures[number]
        return Answers(replies, failures)

    def _meet(self, num_nodes: int, until: float) -> dict[int, int]:
        """Wait for the nodes and return Flower's id of each number."""
        while len(ids := list(self._grid.get_node_ids())) < num_nodes:
            if time.monotonic() > until:
                raise EngineError(f"{num_nodes} nodes wanted, {len(ids)} joined in time")
            time.sleep(POLL_S)
        call = Call(stage=HELLO, action=HELLO, round=0, clock=0, safe=0)
        hello = [
            Message(content=_content(self._run_name, call, Payload().encode()), dst_node_id=node_id, message_type="query")
            for node_id in ids
        ]
        found: dict[int, int] = {}
        for message in self._grid.send_and_receive(hello, timeout=max(until - time.monotonic(), POLL_S)):
            if message.has_error():
                raise EngineError(f"a node could not say its number: {message.error.reason}")
            facts = _payload(message).facts
            if "failure" in facts:
                raise EngineError(f"a node cannot take part: {facts['failure']}")
            number = facts.get("number")
            if not isinstance(number, int) or not 0 <= number < num_nodes:
                raise EngineError(f"a node's number must be between 0 and {num_nodes - 1}, got {number!r}")
            if number in found:
                raise EngineError(f"two nodes have number {number}: give each SuperNode its own partition-id")
            found[number] = message.metadata.src_node_id
        if len(found) < num_nodes:
            raise EngineError(f"{num_nodes} nodes wanted, {len(found)} said their number in time")
        return found


def make_client_app(program_of: Callable[[Context, str], Program]) -> ClientApp:
    """Return the Flower client of any node.

    Args:
        program_of: makes the run's program from the node's own context and the name of the run.
    """
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        call = _call(message)
        try:
            stages, node = _member(program_of(context, _run_name(message)), _number(context))
            if call.stage == HELLO:  # only a node that has its data says its number
                return _reply(message, Payload(number=node.number))
            return _reply(message, serve(stages, call, _payload(message), node))
        except (NmoeError, ValueError, RuntimeError, OSError) as error:  # a node's failure is its own: the round goes on without it
            return _reply(message, Payload(failure=f"{type(error).__name__}: {error}"))

    return app


def make_server_app(main: Callable[[Grid, Context], None]) -> ServerApp:
    """Return a Flower server that runs ``main`` once."""
    app = ServerApp()
    app.main()(main)
    return app


def run_ray(program: Program, nodes: Sequence[int], *, folder: Path | None = None, watcher: Watcher | None = None) -> dict[str, State]:
    """Run a program's stages over Flower's Ray simulation, one worker a core; arguments and errors as ``nmoe.federate.run``.

    Args:
        program: stages and nodes; is sent to Ray's workers.
        nodes: numbers of the nodes, 0 .. n-1.
        folder: run folder; node memories must lie below it, since any worker may act as any node.
        watcher: told of every round, in this process.

    Raises:
        EngineError: when the simulation ended without a result.
    """
    from flwr.simulation import run_simulation  # loads Ray, which a SuperNode neither needs nor has time for at every message

    finished: list[dict[str, State]] = []

    def main(grid: Grid, _context: Context) -> None:
        exchange = FlowerExchange(grid, num_nodes=len(nodes), timeout_s=3600, join_timeout_s=60)
        finished.append(run(program.stages(), exchange, folder=folder, watcher=watcher))

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        make_server_app(main),
        make_client_app(lambda _context, _run_name: program),
        num_supernodes=len(nodes),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    if not finished:
        raise EngineError("Flower's simulation ended without a result")
    return finished[0]


@cache  # all nodes a process acts for; a process serves one run
def _member(program: Program, number: int) -> tuple[Mapping[str, Stage], Node]:
    """Return the stages and one node, made once per process; programs are compared by value."""
    return {stage.name: stage for stage in program.stages()}, program.node(number)


def _content(run_name: str, call: Call, data: bytes) -> RecordDict:
    words = ConfigRecord({"run": run_name, "stage": call.stage, "action": call.action, "numbers": list(call[2:])})
    return RecordDict({"call": words, "payload": _array(data)})


def _number(context: Context) -> int:
    number = context.node_config.get("partition-id")
    if not isinstance(number, int):
        raise ValueError(f"a SuperNode's node config must give partition-id, a whole number, got {number!r}")
    return number


def _run_name(message: Message) -> str:
    return str(message.content.config_records["call"]["run"])


def _call(message: Message) -> Call:
    words = message.content.config_records["call"]
    numbers = words["numbers"]
    assert isinstance(numbers, list)
    return Call(str(words["stage"]), str(words["action"]), *(int(number) for number in numbers))


def _reply(message: Message, payload: Payload) -> Message:
    return Message(content=RecordDict({"payload": _array(payload.encode())}), reply_to=message)


def _array(data: bytes) -> ArrayRecord:
    return ArrayRecord({"payload": Array(dtype="uint8", shape=(len(data),), stype="nmoe.payload", data=data)})


def _payload(message: Message) -> Payload:
    arrays = message.content.array_records.get("payload")
    if arrays is None or "payload" not in arrays:
        raise MessageError("not a payload: the message has no payload array")
    return Payload.decode(arrays["payload"].data)


def _last_line(reason: str | None) -> str:
    return (str(reason).splitlines() or [""])[-1]
