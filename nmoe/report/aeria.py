"""The table of the AERIA reproduction: what each mechanism earns of the benchmark, whom it serves, and what is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MECHANISM_WORDS = {
    "aeria-ic": "AERIA-IC",
    "aeria-ef": "AERIA-EF",
    "aeria-mixture": "AERIA mixture",
    "vickrey": "Vickrey",
    "vcg": "VCG (k+1 uniform price)",
    "rsop": "RSOP",
    "sampling-extraction": "random-sampling extraction",
    "fixed-price": "fixed price (yesterday's best)",
    "optimal-price": "deterministic optimal price",
    "omniscient": "omniscient single price",
}
FAMILY_WORDS = {
    "affine": "follow needs",
    "uniform": "uniform",
    "lognormal": "lognormal",
    "pareto": "heavy tail",
    "equal-revenue": "equal revenue",
    "one-giant": "one giant",
    "two-giants": "two giants",
    "all-equal": "all equal",
}
SWEEP_WORDS = {
    "users": "users who come",
    "capacity_tflops": "capacity, TFLOP/s",
    "cost_share": "cost of a unit over its median value",
    "base": "base c",
    "workload": "workload",
}
FLAW_WORDS = {
    "profitable_deviation": "profitable deviation",
    "envy": "envy",
    "negative_utility": "loss of a winner",
    "over_capacity": "over capacity",
    "deficit": "deficit",
    "malformed": "malformed",
    "changing": "not repeatable",
}


def aeria_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the reproduction's Markdown page.

    Args:
        results: what results.json holds.
    """
    settings, quick = results["settings"], " (quick)" if results["quick"] else ""
    needs, at = settings["needs"], settings["operation"]
    yield "# AERIA: edge inference by auction"
    yield ""
    yield (
        f"Mean ± standard deviation over {results['seeds']} seeds, scale {results['scale']}{quick}; profit is integrated over the draw by "
        f"{settings['points']} midpoints (mechanisms that draw a sample are sampled as often). Profit is what winners pay less the cost of "
        "what is sold, with truthful bids. F is the best that one price could earn of those who fit into the capacity, F2 the best with "
        "two winners or more. Where it is not varied: "
        f"{at['users']} users come, {at['capacity_flops'] / 1e12:g} TFLOP/s are for sale, a unit costs {at['cost_share']:g} of its median "
        f"value, c = {at['base']:g}; each wants one of AlexNet, VGG-16, ResNet-50 and MobileNetV2 with the accuracy of one of its exits, "
        f"{_range(needs['latency_s'], 1e-3)} ms, {_range(needs['tasks'])} tasks, devices of {_range(needs['device_flops'], 1e9)} GFLOP/s, "
        f"uplinks of {_range(needs['uplink_bps'], 1e6)} Mbit/s."
    )
    yield ""
    yield (
        "The paper's workloads, valuations, baselines and numbers are not known to this project: every number is its own. How accurate "
        "early exits are is our choice, too."
    )
    yield from ("", "## Profit over F2, one unit each, no limit, no cost", "", "What guarantees are proved for.", "")
    yield from _sweep_table(results, "unit", "family", "over_f2", FAMILY_WORDS)
    yield from _shares(results, "unit")
    yield from ("", "### Profit over F", "")
    yield from _sweep_table(results, "unit", "family", "over_f", FAMILY_WORDS)
    yield from ("", "### Profit over F2 against base c, uniform values", "")
    yield from _sweep_table(results, "unit", "base", "over_f2", {}, digits=3)
    yield from _guarantees(results["guarantees"], points=settings["points"])
    yield from ("", "## Profit over F2, needs of the four workloads", "")
    yield from _sweep_table(results, "needs", "family", "over_f2", FAMILY_WORDS)
    yield from _shares(results, "needs")
    yield from ("", "### Profit over F", "")
    yield from _sweep_table(results, "needs", "family", "over_f", FAMILY_WORDS)
    for setting, sweeps in results["curves"].items():
        if setting != "unit":
            yield from _setting(results, setting, sweeps)
    yield from _flaws(results["flaws"])
    yield from _manipulation(results["manipulation"])
    hardware, seconds = results["hardware"], results["seconds"]
    took = f"{seconds:.1f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    yield from ("", f"`{results['command']}`: {took} on {hardware['cpu']}, {hardware['cores']} cores.")


def _range(bounds: Sequence[float], unit: float = 1.0) -> str:
    return f"{bounds[0] / unit:g} to {bounds[1] / unit:g}"


def _setting(results: Mapping[str, Any], setting: str, sweeps: Mapping[str, Any]) -> Iterator[str]:
    """Yield all that is known of one setting: what is varied, the ablations, and the first stage."""
    yield from ("", f"## {results['settings']['words'][setting]}")
    for sweep, words in SWEEP_WORDS.items():
        if sweep in sweeps:
            yield from ("", f"### Profit over F2 against {words}", "")
            yield from _sweep_table(results, setting, sweep, "over_f2", {})
    if "capacity_tflops" in sweeps:
        yield from ("", f"### Users served by the edge against {SWEEP_WORDS['capacity_tflops']}", "")
        yield from _sweep_table(results, setting, "capacity_tflops", "served", {}, digits=1)
    yield from _ablations(results, setting)
    yield from _stage_one(results["stage_one"][setting])


def _sweep_table(
    results: Mapping[str, Any], setting: str, sweep: str, metric: str, words: Mapping[str, str], *, digits: int = 2
) -> Iterator[str]:
    """Yield one metric, a row per mechanism and a column per value."""
    curves, spreads = (results[tree][setting][sweep].get(metric, {}) for tree in ("curves", "spreads"))
    values = list(dict.fromkeys(value for curve in curves.values() for value in curve))
    yield f"| {SWEEP_WORDS.get(sweep, 'values')} | " + " | ".join(words.get(value, value) for value in values) + " |"
    yield "|---|" + "---|" * len(values)
    for name, title in MECHANISM_WORDS.items():
        if name in curves:
            cells = [
                f"{_rounded(curves[name][value], digits)} ± {spreads[name][value]:.{digits}f}" if value in curves[name] else "-"
                for value in values
            ]
            yield f"| {title} | " + " | ".join(cells) + " |"


def _rounded(number: float, digits: int) -> str:
    """Write a number so that what rounding errors left below 0 is 0."""
    return f"{round(number, digits) + 0.0:.{digits}f}"


def _shares(results: Mapping[str, Any], setting: str) -> Iterator[str]:
    """Yield the row of the largest winners, below the mechanisms of the same families."""
    shares, spreads = (results[tree][setting]["family"]["share"]["market"] for tree in ("curves", "spreads"))
    yield (
        "| *largest winner's share of what F2 sells* | " + " | ".join(f"{shares[name]:.2f} ± {spreads[name]:.2f}" for name in shares) + " |"
    )


def _guarantees(rows: Sequence[Mapping[str, Any]], *, points: int) -> Iterator[str]:
    yield from ("", "### Beside what is proved", "")
    yield (
        "The worst market of each family; AERIA-IC's bound depends on the market's largest winner, and there is none with fewer than "
        f"three. Where profit jumps, midpoints are right to 1/{points} of a jump. Last, how often AERIA-IC asks more than one price."
    )
    yield ""
    yield (
        "| values | mixture over F2 | proved | AERIA-EF over F | proved | AERIA-IC over F2 | AERIA-IC over its bound | several prices "
        "| proved at most |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        over = "no bound" if row["ic_over_bound"] is None else f"{row['ic_over_bound']:.2f}"
        several = ["-" if row[name] is None else f"{100 * row[name]:.1f} %" for name in ("several", "several_bound")]
        yield (
            f"| {FAMILY_WORDS[row['family']]} | {row['mixture']:.3f} | {row['mixture_bound']:.3f} | {row['ef']:.3f} "
            f"| {row['ef_bound']:.3f} | {row['ic']:.3f} | {over} | {' | '.join(several)} |"
        )


def _ablations(results: Mapping[str, Any], setting: str) -> Iterator[str]:
    curves, spreads = (results[tree][setting]["ablation"] for tree in ("curves", "spreads"))
    yield from ("", "### Less freedom in the first stage, sold by AERIA-IC", "")
    yield "Value is what sessions are worth to those served, alone or not; value and profit are over those of the full first stage."
    yield ""
    yield "| capacity | first stage | users served | of them alone | value | profit | median demand, GFLOP/s |"
    yield "|---|---|---|---|---|---|---|"
    for capacity in curves["served"]["full"]:
        for name in results["settings"]["ablations"]:
            served = f"{curves['served'][name][capacity]:.1f} ± {spreads['served'][name][capacity]:.1f}"
            over = [_over(curves[metric], name, capacity) for metric in ("worth", "profit")]
            demand = curves["demand"].get(name, {}).get(capacity)
            yield (
                f"| {capacity} TFLOP/s | {name} | {served} | {curves['alone'][name][capacity]:.1f} | {' | '.join(over)} "
                f"| {'-' if demand is None else f'{demand / 1e9:.0f}'} |"
            )


def _over(curve: Mapping[str, Mapping[str, float]], name: str, capacity: str) -> str:
    whole = curve["full"][capacity]
    return f"{curve[name][capacity] / whole:.2f}" if whole > 0 else "-"


def _stage_one(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("", "### What needs come to", "")
    yield "| workload | users | device alone | cannot be served | all on the edge | split | median demand, GFLOP/s |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        shares = [f"{100 * row[name] / row['users']:.1f} %" for name in ("alone", "unservable", "all_on_edge", "split")]
        demand = "-" if row["median_gflops"] is None else f"{row['median_gflops']:.0f}"
        yield f"| {row['workload']} | {row['users']} | {' | '.join(shares)} | {demand} |"


def _flaws(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("", "## What a search for flaws finds", "")
    yield (
        "Small markets of every family with weights, capacities, costs and two providers, and as many of round numbers with a draw where "
        "an estimate jumps; the draw is the same for the truth and for the "
        "other bid. Markets with a flaw of those tried:"
    )
    kinds = [flaw for flaw in FLAW_WORDS if any(row["found"].get(flaw) for row in rows) or flaw in ("profitable_deviation", "envy")]
    yield from ("", "| mechanism | claims | markets | deviations tried | " + " | ".join(FLAW_WORDS[flaw] for flaw in kinds) + " |")
    yield "|---|---|---|---|" + "---|" * len(kinds)
    for row in rows:
        claims = [word for word, kept in (("truthful", row["truthful"]), ("free of envy", row["envy_free"])) if kept]
        cells = [f"{row['found'][flaw]:,} ({100 * row['found'][flaw] / row['markets']:.1f} %)" for flaw in kinds]
        yield (
            f"| {MECHANISM_WORDS[row['method']]} | {', '.join(claims) or 'nothing'} | {row['markets']:,} | {row['deviations']:,} | "
            + " | ".join(cells)
            + " |"
        )


def _manipulation(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    first = rows[0]
    yield from ("", "## How often AERIA-EF can be manipulated", "")
    yield (
        f"Share of draws with which some user of {first['users']} with uniform values would gain by another bid; {first['markets']} "
        f"market{'' if first['markets'] == 1 else 's'}, {first['points']} evenly spaced draws each, right to 1/{first['points']}."
    )
    yield from ("", "| base c | measured | proved at most |", "|---|---|---|")
    for row in rows:
        yield f"| {row['base']:g} | {100 * row['mean']:.1f} ± {100 * row['std']:.1f} % | {100 * row['bound']:.1f} % |"
