"""What the tables say, as plain rows: the terminal and the HTML page render the same ones."""

from dataclasses import dataclass

from nmoe.report import words
from nmoe.report.run import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of text; ``shares`` in [0, 1], one per cell after the first, lets a page draw bars."""

    cells: tuple[str, ...]
    shares: tuple[float | None, ...] = ()
    highlight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A small table: first column text, the others numbers unless ``prose``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    prose: bool = False


def sections(results: Results) -> tuple[Section, ...]:
    """Return the tables of a run in reading order; what the run did not measure is left out."""
    tables = (
        accuracy_section(results),
        privacy_section(results),
        traffic_section(results),
        serving_section(results),
        time_section(results),
    )
    return tuple(table for table in tables if table is not None)


def accuracy_section(results: Results) -> Section:
    """Return accuracy by method, in the order of ``words.METHODS``, then methods without a name."""
    known = [key for key in words.METHODS if key in results.accuracy]
    other = [key for key in results.accuracy if key not in words.METHODS]
    rows = tuple(
        Row(
            cells=(words.method(key, results.k), words.percent(pair.local), words.percent(pair.overall)),
            shares=(pair.local, pair.overall),
            highlight=key == "nmoe",
        )
        for key, pair in ((key, results.accuracy[key]) for key in known + other)
    )
    return Section(title="Accuracy", columns=("method", "local", "global"), rows=rows)


def privacy_section(results: Results) -> Section:
    """Return the privacy guarantee, or why there is none."""
    privacy = results.privacy
    epsilon = "none" if privacy.epsilon is None else f"{privacy.epsilon:g}"
    delta = words.NONE if privacy.delta is None else f"{privacy.delta:g}"
    row = Row(cells=(epsilon, delta, privacy.mechanism))
    return Section(title="Privacy of training data", columns=("epsilon", "delta", "mechanism"), rows=(row,), prose=True)


def traffic_section(results: Results) -> Section:
    """Return bytes on the wire by stage and per sample."""
    traffic = results.communication
    rows = [Row(cells=(words.stage(key), words.size(count))) for key, count in traffic.train_bytes.items()]
    if traffic.infer_bytes_per_sample is not None:
        rows.append(Row(cells=("per sample answered", words.size(traffic.infer_bytes_per_sample))))
    return Section(title="Communication, all nodes, up and down", columns=("stage", "bytes"), rows=tuple(rows))


def serving_section(results: Results) -> Section | None:
    """Return the serving line, or nothing after training alone."""
    serving = results.serving
    if serving is None:
        return None
    pairs = {
        "requests": f"{serving.requests:,}",
        "answered": f"{serving.answered:,}",
        "p50": words.milliseconds(serving.p50_ms),
        "p99": words.milliseconds(serving.p99_ms),
    }
    if serving.simulated is None:
        pairs["agreement"] = words.percent(serving.agreement)
    else:
        pairs["right"] = words.percent(serving.accuracy)
        pairs["simulation"] = words.expectation(serving.simulated, serving.simulated_error or 0.0)
        pairs["own agree"] = words.percent(serving.agreement)
    return Section(title="Serving", columns=tuple(pairs), rows=(Row(cells=tuple(pairs.values())),))


def time_section(results: Results) -> Section | None:
    """Return seconds by stage, or nothing if none were taken."""
    if not results.seconds:
        return None
    rows = tuple(Row(cells=(words.stage(key), words.duration(seconds))) for key, seconds in results.seconds.items())
    return Section(title="Time", columns=("stage", "time"), rows=rows)
