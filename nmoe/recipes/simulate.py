"""Simulation of a large mesh in virtual time: the protocol of the wire under measured arrivals and round trips, churn and slow nodes."""

import csv
import dataclasses
import gzip
import json
import math
import platform
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmoe.core.files import write_bytes, write_json
from nmoe.core.seeds import derive_seed, numpy_generator
from nmoe.node.world import (
    Churn,
    GateTable,
    LogNormal,
    Network,
    Offered,
    Pareto,
    Steady,
    Tail,
    Tally,
    World,
    WorldOptions,
    measured_network,
    ring,
    uniform_network,
)
from nmoe.report.figures import png_bytes
from nmoe.report.figures.simulation import simulation_figure

COLUMNS = ("t_s", "time_s", "arrival_s", "arrival_time", "timestamp")  # in any case
NEIGHBOURS = 16  # where there are as many
RATE_HZ = 2.0  # requests per node and second unless told otherwise
KNOWN = {"seattle": "seattle_ms", "planetlab": "planetlab_ms"}  # of the file rtt.npz
ROUND_TRIP_S = 0.02  # of all nodes when no measurement is given


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What is simulated.

    Attributes:
        nodes: how many, at least 1.
        requests: offered in all, of one sample each, at least 1.
        trace: ``.csv`` or ``.csv.gz`` with a column of arrival times, stretched to the rate; None for Poisson arrivals.
        rtt: an ``.npz`` file with round trips [place, place] in ms, or ``seattle`` or ``planetlab`` for those in rtt.npz in ``rtt_dir``;
            None for 20 ms everywhere.
        rtt_dir: folder of rtt.npz.
        rate: requests per second of the whole mesh; None for two per node.
        neighbours: experts besides its own that a node can ask; None for 16, or for all where there are fewer.
        replicas: nodes per expert.
        k: experts per sample.
        workers: threads that compute, per node.
        deadline_ms: what clients allow.
        churn: departures per node and second: killed, frozen or drained by equal chance.
        away_s: mean time until a node returns.
        loss: probability that a message is lost.
        tail: scatter of computing times, ``lognormal:SIGMA``, ``pareto:SHAPE`` or ``none``.
        seed: of every draw.
    """

    nodes: int
    requests: int
    trace: Path | None = None
    rtt: str | None = None
    rtt_dir: Path | None = None
    rate: float | None = None
    neighbours: int | None = None
    replicas: int = 1
    k: int = 2
    workers: int = 1
    deadline_ms: float = 1000.0
    churn: float = 0.0
    away_s: float = 5.0
    loss: float = 0.0
    tail: str = "lognormal:0.5"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"requests must be at least 1, got {self.requests}")
        if self.nodes < 1:
            raise ValueError(f"nodes must be at least 1, got {self.nodes}")
        if not (self.rate_hz > 0 and math.isfinite(self.rate_hz)):
            raise ValueError(f"rate must be above 0 requests per second, got {self.rate}")

    @property
    def num_neighbours(self) -> int:
        """Experts besides its own that a node can ask."""
        fewer = self.nodes // max(self.replicas, 1) - 1
        return max(0, min(NEIGHBOURS, fewer)) if self.neighbours is None else self.neighbours

    @property
    def rate_hz(self) -> float:
        """Requests per second of the whole mesh."""
        return RATE_HZ * self.nodes if self.rate is None else self.rate


def simulate(
    options: SimulateOptions, *, as_json: bool = False, out: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Simulate a mesh, print its figures as a table or JSON, and return them.

    Args:
        options: what is simulated.
        as_json: JSON instead of a table.
        out: folder for results.json and simulation.png; None for none.
        say: prints a line.

    Raises:
        ValueError: when an option or a file does not fit.
    """
    seed, gates = options.seed, options.num_neighbours + 1
    leaving = Churn(rate_hz=options.churn, away_s=options.away_s)
    every = WorldOptions(
        k=options.k, workers=options.workers, deadline_s=options.deadline_ms / 1000, loss=options.loss, tail=parse_tail(options.tail)
    )
    layout = ring(options.nodes, neighbours=options.num_neighbours, replicas=options.replicas)
    offered = arrivals(options.requests, options.rate_hz, options.trace, seed)
    began = time.perf_counter(), time.process_time()
    network = _network(options.rtt, options.rtt_dir, options.nodes, numpy_generator(seed, "places"))
    world = World(every, layout, network, GateTable(gates, numpy_generator(seed, "gates")), seed=seed)
    left = leaving.schedule(world.clock, world.members, random.Random(derive_seed(seed, "churn")), offered.times_s[-1])
    tally = world.run(offered)
    speed = _speed(tally, time.perf_counter() - began[0], time.process_time() - began[1])
    results = dataclasses.asdict(options) | {"trace": options.trace and options.trace.name, "rate": options.rate_hz}
    results["neighbours"] = options.num_neighbours
    del results["rtt_dir"]
    results |= {"virtual_s": offered.times_s[-1], "nodes_left": dict(sorted(Counter(way for _, way, _ in left).items()))}
    results |= {**tally.figures(), "simulator": speed}
    if out is not None:
        write_json(out / "results.json", results)
        write_bytes(out / "simulation.png", _picture(tally, offered))
    for line in [json.dumps(results)] if as_json else as_table(results):
        say(line)
    return results


def _speed(tally: Tally, wall_s: float, cpu_s: float) -> dict[str, Any]:
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "cpu_us_per_request": 1e6 * cpu_s / tally.offered,
        "events_per_cpu_s": tally.events / cpu_s,
        "python": platform.python_version(),
    }


def parse_tail(text: str) -> Tail:
    """Read ``lognormal:SIGMA``, ``pareto:SHAPE`` or ``none``.

    Raises:
        ValueError: when it is none of these.
    """
    name, _, number = text.partition(":")
    kinds: dict[str, type[LogNormal] | type[Pareto]] = {"lognormal": LogNormal, "pareto": Pareto}
    if text == "none":
        return Steady()
    if name not in kinds:
        raise ValueError(f"tail must be lognormal:SIGMA, pareto:SHAPE or none, got {text!r}")
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"tail {name} wants a number after the colon, got {text!r}") from None
    return kinds[name](value)


def arrivals(requests: int, rate: float, trace: Path | None, seed: int) -> Offered:
    """Return arrival times at a mean rate.

    Without a trace a Poisson process. With one, the trace's own ups and downs over the whole run: up to its length its first arrivals;
    beyond, each of its arrivals stands for several, spread evenly at random up to the next.

    Args:
        requests: how many.
        rate: per second, on average.
        trace: see ``SimulateOptions``.
        seed: of the draws.

    Raises:
        ValueError: when the trace cannot be read.
    """
    generator = numpy_generator(seed, "arrivals")
    if trace is None:
        times_s = np.cumsum(generator.exponential(1 / rate, requests))
    else:
        said = read_arrivals(trace)
        if requests <= len(said):
            times_s = said[:requests] - said[0]
        else:
            times_s = np.interp(np.sort(generator.random(requests)) * (len(said) - 1), np.arange(len(said)), said - said[0])
        span_s = float(times_s[-1])
        times_s = times_s * (requests / rate / span_s) if span_s > 0 else np.arange(requests) / rate
    return Offered(times_s.tolist(), generator.random(requests).tolist())


def read_arrivals(path: Path) -> np.ndarray:
    """Return the arrival times of a trace in seconds, in rising order.

    Raises:
        ValueError: when the file holds no column of at least two arrival times.
    """
    wanted = f"a column of arrival times ({', '.join(COLUMNS)}, or the only one)"
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            known = [name.strip().lower() for name in header]
            places = [known.index(name) for name in COLUMNS if name in known] or ([0] if len(header) == 1 else [])
            if not places:
                raise ValueError(f"trace {path} should have {wanted}, its columns are: {', '.join(header) or 'none'}")
            words = [row[places[0]] for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error, IndexError, EOFError) as error:
        raise ValueError(
            f"trace {path} cannot be read as CSV: {(error.strerror if isinstance(error, OSError) else None) or error}"
        ) from error
    try:
        times_s = np.array([float(word) for word in words])
    except ValueError:
        try:
            moments = np.array([np.datetime64(word.strip(), "ns") for word in words])
        except ValueError:
            raise ValueError(f"trace {path}: the arrival times are neither numbers (seconds) nor dates") from None
        times_s = (moments - moments[0]).astype(np.float64) / 1e9 if len(moments) else np.empty(0)
    if len(times_s) < 2 or not np.isfinite(times_s).all():
        raise ValueError(f"trace {path} should have {wanted} with at least two finite values, got {len(times_s)}")
    return np.sort(times_s)


def as_table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of one simulation."""

    def milliseconds(name: str) -> str:
        return "-" if results[name] is None else f"{results[name]:.1f} ms"

    refused = ", ".join(f"{count:,} {code}" for code, count in results["refused"].items()) or "none"
    load, speed = results["expert_load_cv"], results["simulator"]
    left = ", ".join(f"{count:,} {why}" for why, count in results["nodes_left"].items()) or "none"
    lines = {
        "nodes": f"{results['nodes']:,}, {results['neighbours']} neighbours, {results['replicas']} per expert",
        "requests": f"{results['offered']:,} in {results['virtual_s']:,.1f} s",
        "answered in time": f"{100 * results['availability']:.3f} %",
        "degraded": f"{100 * results['degraded_share']:.2f} % of the answers",
        "refused": refused,
        "unanswered, nowhere": f"{results['unanswered']:,}, {results['nowhere']:,}",
        "latency p50, p95, p99": ", ".join(milliseconds(name) for name in ("p50_ms", "p95_ms", "p99_ms")),
        "messages a request": f"{results['messages_per_request']:.2f}, hedges {results['hedges_per_request']:.4f}",
        "bytes a request": f"{results['bytes_per_request']:,.0f}",
        "expert load, CV": "-" if load is None else f"{load:.3f}",
        "utilisation": "-" if results["utilisation"] is None else f"{100 * results['utilisation']:.1f} %",
        "nodes that left": left,
        "simulator": f"{speed['wall_s']:.1f} s ({speed['cpu_s']:.1f} s CPU), {speed['cpu_us_per_request']:.0f} us a request, "
        f"{speed['events_per_cpu_s']:,.0f} events/s",
    }
    for name, value in lines.items():
        yield f"{name:<24}{value}"


def _network(rtt: str | None, folder: Path | None, nodes: int, generator: np.random.Generator) -> Network:
    if rtt is None:
        return uniform_network(nodes, round_trip_s=ROUND_TRIP_S)
    if rtt in KNOWN and folder is None:
        raise ValueError(f"rtt {rtt} is in the file rtt.npz: say with --rtt-dir in which folder that is")
    path = Path(rtt) if rtt not in KNOWN or folder is None else folder / "rtt.npz"
    if not path.is_file():
        raise ValueError(f"there is no file {path} with round trips (--rtt)")
    return measured_network(path, KNOWN.get(rtt), nodes, generator)


def _picture(tally: Tally, offered: Offered) -> bytes:
    figure = simulation_figure(
        np.asarray(offered.times_s), np.frombuffer(tally.latency_s), np.frombuffer(tally.outcome, dtype=np.uint8), tally.deadline_s
    )
    return png_bytes(figure)
