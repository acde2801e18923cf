"""The top of the report: what ran, what came of it, and the key numbers."""

from dataclasses import dataclass

from nmoe.report import words
from nmoe.report.run import AccuracyPair, Channel, Results, Run, ServingResults


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One key number with its name and what to compare it with."""

    label: str
    value: str
    note: str = ""


def finding(results: Results) -> str:
    """Say in one line what the run found."""
    overall = _accuracy(results, "nmoe").overall
    if overall is None:
        return f"A mixture of {results.nodes} experts on {results.data}"
    over = "" if results.channel is None else " over noisy links"
    return f"{results.nodes} nodes together reach {words.percent(overall)} on {results.data}{over}"


def subject(run: Run) -> str:
    """Say what ran, and how it compares with a node alone and with FedAvg."""
    results = run.results
    said = f"Data {results.data}, split {results.split} over {results.nodes} nodes, {results.k} experts per sample, seed {results.seed}."
    alone, fedavg = _accuracy(results, "own_expert").overall, _accuracy(results, "fedavg").overall
    if alone is not None:
        said += f" On test samples of all classes a node's own expert alone reaches {words.percent(alone)}"
        said += "." if fedavg is None else f", one classifier trained by FedAvg {words.percent(fedavg)}."
    return said if results.channel is None else f"{said} {_links(results, results.channel)}"


def _links(results: Results, channel: Channel) -> str:
    """Say over which links features travelled, and what it is worth that the gate sees them."""
    low, high = channel.snr_db
    said = f"Links: {channel.fading}, mean SNR {low:g} to {high:g} dB, {channel.transmission}."
    naive = _accuracy(results, "naive_gate").overall
    if naive is not None:
        said += f" A gate trained under the same noise that is not told of SNRs reaches {words.percent(naive)}."
    return said


def tiles(run: Run) -> tuple[Tile, ...]:
    """Return the key numbers, most important first; what was not measured has no tile."""
    results = run.results
    traffic, privacy, seconds = results.communication, results.privacy, results.seconds
    found = [*_accuracy_tiles(results)]
    train = sum(count for stage, count in traffic.train_bytes.items() if stage not in words.CONTROLS)
    fedavg = traffic.train_bytes.get("fedavg", sum(one.bytes for one in run.rounds if one.stage == "fedavg"))
    found.append(Tile(label="training traffic", value=words.size(train), note=f"FedAvg {words.size(fedavg)}" if fedavg else "all nodes"))
    if traffic.infer_bytes_per_sample is not None:
        found.append(Tile(label="traffic per sample", value=words.size(traffic.infer_bytes_per_sample), note="to ask and to answer"))
    if results.serving is not None:
        found += _serving_tiles(results.serving)
    if privacy.epsilon is None:
        found.append(Tile(label="differential privacy", value="none", note="see below"))
    else:
        delta = "" if privacy.delta is None else f"delta {privacy.delta:g}"
        found.append(Tile(label="differential privacy", value=f"ε = {privacy.epsilon:g}", note=delta))
    if seconds:
        found.append(Tile(label="time", value=words.duration(sum(seconds.values())), note="all stages"))
    return tuple(found)


def _accuracy(results: Results, method: str) -> AccuracyPair:
    return results.accuracy.get(method, AccuracyPair())


def _accuracy_tiles(results: Results) -> list[Tile]:
    nmoe, alone, central = (_accuracy(results, method) for method in ("nmoe", "own_expert", "central_moe"))
    found = []
    if nmoe.overall is not None:
        note = "" if central.overall is None else f"central mixture {words.percent(central.overall)}"
        found.append(Tile(label="NMoE, all classes", value=words.percent(nmoe.overall), note=note))
    if nmoe.local is not None:
        note = "" if alone.local is None else f"own expert {words.percent(alone.local)}"
        found.append(Tile(label="NMoE, own classes", value=words.percent(nmoe.local), note=note))
    return found


def _serving_tiles(serving: ServingResults) -> list[Tile]:
    agreed = serving.simulated is None and serving.agreement is not None
    agreement = f", agreement {words.percent(serving.agreement)}" if agreed else ""
    found = [Tile(label="requests answered", value=f"{serving.answered:,}", note=f"of {serving.requests:,}{agreement}")]
    if serving.simulated is not None:
        found.append(
            Tile(
                label="served, right",
                value=words.percent(serving.accuracy),
                note=f"simulation {words.expectation(serving.simulated, serving.simulated_error or 0.0)}",
            )
        )
    if serving.p50_ms is not None:
        found.append(
            Tile(label="median answer", value=words.milliseconds(serving.p50_ms), note=f"p99 {words.milliseconds(serving.p99_ms)}")
        )
    return found
