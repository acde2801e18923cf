"""Reports of a recruitment: tables of who trains how much for what pay, what workers are paid, and how the loop settled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nmoe.market.incentive import Loop, Settlement

MOST_ROWS = 40  # of a table on a screen; plan.json has all
TURNS_SHOWN = 12


def recruitment_tables(settlement: Settlement, loop: Loop, *, layer: str) -> RenderableType:
    """Return the tables of a recruitment.

    Args:
        settlement: the end.
        loop: how it came about.
        layer: name of the lower layer.
    """
    if settlement.total <= 0:
        return Text(f"No task is published: {settlement.why_empty}.")
    parts: list[RenderableType] = [Text(headline(settlement)), _owner_table(settlement)]
    if len(settlement.recruitment.workers):
        parts.append(_worker_table(settlement))
    return Group(*parts, _loop_table(loop), Text(verdict(loop, layer)))


def headline(settlement: Settlement) -> str:
    """Say in one sentence what comes of a game."""
    count = int(settlement.trains.sum())
    return (
        f"Reward {settlement.reward:.4g}: {count} of {len(settlement.recruitment.owners)} owners train on "
        f"{settlement.samples.sum():.4g} samples ({settlement.total:.4g} effective), {settlement.bought.sum():.4g} of them bought; "
        f"the publisher is left {settlement.publisher_utility:.4g}, owners {settlement.owner_utilities.sum():.4g}, "
        f"workers {settlement.worker_utilities.sum():.4g}."
    )


def verdict(loop: Loop, layer: str) -> str:
    """Say in one sentence how the loop ended."""
    turns = f"{len(loop.steps)} turn{'' if len(loop.steps) == 1 else 's'}"
    if loop.fell_back:
        stocks = bool((loop.settlement.recruitment.owners.stock > 0).any())
        foresees = ", whose publisher foresees how their prices rise and so pays less" if stocks else ""
        return (
            f"ASOSA did not settle within {turns} over {layer} workers: this is the joint equilibrium of exact workers instead{foresees}."
        )
    if not loop.converged:
        return f"ASOSA did not settle within {turns} over {layer} workers: this is its last turn."
    return f"ASOSA settled in {turns} over {layer} workers."


def _owner_table(settlement: Settlement) -> Table:
    owners = settlement.recruitment.owners
    table = Table("owner", "samples", "bought", "price", "cost k", "share", "payment", "utility", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    finite = np.where(np.isfinite(settlement.prices), settlement.prices, 0.0)
    costs = (owners.unit_cost + np.where(settlement.bought > 0, finite, 0.0)) / owners.quality
    for row in range(min(len(owners), MOST_ROWS)):
        trains, buys = settlement.samples[row] > 0, settlement.bought[row] > 0
        cells = [f"{settlement.samples[row]:.2f}", f"{settlement.bought[row]:.2f}", f"{settlement.prices[row]:.3f}" if buys else "-"]
        cells += [f"{costs[row]:.3f}", f"{100 * settlement.shares[row]:.1f} %", f"{settlement.payments[row]:.2f}"]
        cells.append(f"{settlement.owner_utilities[row]:.2f}")
        table.add_row(Text(owners.ids[row]), *(cells if trains else ["-"] * 7))
    if len(owners) > MOST_ROWS:
        table.add_row(f"and {len(owners) - MOST_ROWS} more")
    return table


def _worker_table(settlement: Settlement) -> Table:
    workers = settlement.recruitment.workers
    table = Table("worker", "gathers for", "samples", "wage", "utility", box=box.SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in range(min(len(workers), MOST_ROWS)):
        owner = Text(settlement.recruitment.owners.ids[workers.owner[row]] if workers.owner[row] >= 0 else "pool")
        cells = [f"{settlement.efforts[row]:.2f}", f"{settlement.wages[row]:.2f}", f"{settlement.worker_utilities[row]:.3f}"]
        table.add_row(Text(workers.ids[row]), owner, *(cells if settlement.efforts[row] > 0 else ["-"] * 3))
    if len(workers) > MOST_ROWS:
        table.add_row(f"and {len(workers) - MOST_ROWS} more")
    return table


def _loop_table(loop: Loop) -> Table:
    table = Table("turn", "reward", "samples", "mean price", "residual", "damping", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.justify = "right"
    for number in _shown(len(loop.steps)):
        step = loop.steps[number]
        prices = step.prices[np.isfinite(step.prices)]
        mean = f"{prices.mean():.4f}" if len(prices) else "-"
        residual = f"{step.residual:.1e}"
        table.add_row(str(number + 1), f"{step.reward:.5g}", f"{step.samples.sum():.5g}", mean, residual, f"{step.damping:.3f}")
    return table


def _shown(turns: int) -> list[int]:
    """Return the first turns, some between, and the last."""
    return sorted({round(place) for place in np.linspace(0, turns - 1, min(turns, TURNS_SHOWN))})


def loop_record(loop: Loop) -> dict[str, Any]:
    """Return how the loop settled, as JSON can hold it."""
    return {
        "converged": loop.converged,
        "fell_back": loop.fell_back,
        "turns": len(loop.steps),
        "steps": [
            {
                "reward": step.reward,
                "samples": step.samples.tolist(),
                "prices": [float(price) if np.isfinite(price) else None for price in step.prices],
                "costs": [float(cost) if np.isfinite(cost) else None for cost in step.costs],
                "residual": step.residual,
                "damping": step.damping,
            }
            for step in loop.steps
        ],
    }


METHOD_WORDS = {
    "asosa": "ASOSA",
    "learned": "ASOSA, learned workers",
    "oracle": "joint equilibrium",
    "anticipating": "publisher foresees prices",
    "contract": "contracts (HUMA-like)",
    "single-agent": "single-agent PPO",
    "equal-split": "equal split",
    "greedy": "greedy",
    "fixed-price": "fixed price",
    "random-price": "random price",
    "undamped": "undamped loop",
    "no-worker": "no workers",
}
SWEEP_WORDS = {
    "factor": "lambda",
    "owners": "owners N",
    "workers": "workers per owner |M|",
    "cost": "mean unit cost of training",
}
METRIC_WORDS = {
    "publisher": "publisher's utility",
    "owner": "mean utility of an owner",
    "worker": "mean utility of a worker",
    "reward": "reward",
    "total": "effective samples",
    "welfare": "welfare, all utilities summed",
}


def incentive_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the reproduction's Markdown page.

    Args:
        results: what results.json holds.
    """
    settings, quick = results["settings"], " (quick)" if results["quick"] else ""
    yield "# ASOSA: who trains how much for what pay"
    yield ""
    yield (
        f"Mean ± standard deviation over {results['seeds']} games, scale {results['scale']}{quick}. Where it is not varied: "
        f"lambda {settings['factor']:g}, {settings['owners']} owners with {settings['workers_per_owner']} workers each, "
        + ", ".join(f"{name} {_span(settings[name])}" for name in ("unit_cost", "quality", "stock", "alpha", "beta"))
        + "."
    )
    yield ""
    yield (
        "The paper's utilities, settings and numbers are not known to this project: game, loop, baselines and every number are its own. "
        "Where nobody has a stock ASOSA ends at the joint equilibrium. A publisher who foresees workers' prices pays less and has a little "
        "more. Greedy, and an undamped loop that is stopped in its cycle, bring the publisher more than an equilibrium does, at the cost "
        "of owners who planned with prices that nobody sells at; they would not do it twice."
    )
    yield from _convergence(results["convergence"])
    yield from ("", "## Where nothing is varied", "")
    if results["learned"]:
        yield from (f"Methods that learn settled the first {results['learned']} of the games.", "")
    yield from _base(results["base"])
    yield from ("", "## Where owners have stocks, drawn from 0 to 5 samples", "")
    yield (
        "The joint equilibrium is that of a publisher who foresees prices; ASOSA falls back on it where its reward jumps between two "
        "peaks and the loop has no end."
    )
    yield ""
    yield from _base(results["stocked"])
    for sweep, words in SWEEP_WORDS.items():
        for metric in ("publisher", "owner", "worker"):
            yield from ("", f"## {METRIC_WORDS[metric].capitalize()} against {words}", "")
            yield from _curves(results["curves"][sweep][metric], results["spreads"][sweep][metric], words)
    hardware = results["hardware"]
    yield ""
    yield f"`{results['command']}`: {results['seconds']:.1f} seconds on {hardware['cpu']}, {hardware['cores']} cores."


def ordered(methods: Mapping[str, Any]) -> list[str]:
    """Return the methods that are there, in the order of tables and figures."""
    return [method for method in METHOD_WORDS if method in methods]


def _convergence(found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Convergence", "")
    yield (
        f"{found['games']} games of {found['owners'][0]} to {found['owners'][1]} owners, exact workers, no stock. Turns are those to a "
        f"residual of {found['residual']:g}; distances are those at {found['exact_residual']:g}, where the loop ends by itself."
    )
    yield ""
    yield "| damping | settled | median turns | 95 % within | largest distance from the joint equilibrium |"
    yield "|---|---|---|---|---|"
    for row in found["rows"]:
        turns = [f"{row['median']:.0f}", f"{row['p95']:.0f}"] if row["settled"] else ["-", "-"]
        distance = f"{row['distance']:.1e}" if row["settled"] else "-"
        yield f"| {row['damping']} | {row['settled']} | {turns[0]} | {turns[1]} | {distance} |"
    deviation = found["deviation"]
    yield ""
    yield (
        f"No owner gains by another number of samples: over {deviation['games']} games, {deviation['owners']} owners and "
        f"{deviation['points']} points each the best deviation brings {deviation['best']:.1e} of the reward."
    )


def _base(base: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    yield "| method | " + " | ".join(METRIC_WORDS.values()) + " |"
    yield "|---|" + "---|" * len(METRIC_WORDS)
    for method in ordered(base):
        yield f"| {METHOD_WORDS[method]} | " + " | ".join(_spread(base[method][metric]) for metric in METRIC_WORDS) + " |"


def _curves(curves: Mapping[str, Mapping[str, float]], spreads: Mapping[str, Mapping[str, float]], words: str) -> Iterator[str]:
    values: Sequence[str] = sorted({value for curve in curves.values() for value in curve}, key=float)
    yield f"| {words} | " + " | ".join(values) + " |"
    yield "|---|" + "---|" * len(values)
    for method in ordered(curves):
        cells = [_spread((curves[method][value], spreads[method][value])) if value in curves[method] else "-" for value in values]
        yield f"| {METHOD_WORDS[method]} | " + " | ".join(cells) + " |"


def _spread(numbers: Sequence[float]) -> str:
    """Write a mean and its standard deviation, with as many digits as the mean wants."""
    mean, std = numbers
    digits = 1 if abs(mean) >= 10 else 2 if abs(mean) >= 1 else 3
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def _span(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:g}" if bounds[0] == bounds[1] else f"{bounds[0]:g} to {bounds[1]:g}"
