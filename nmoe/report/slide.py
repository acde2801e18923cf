"""The table of the SLIDE reproduction: users served and latency for every method, and what overlapping download and computing saves."""

from collections.abc import Iterator, Mapping
from typing import Any

METHOD_WORDS = {
    "slide": "SLIDE",
    "slide-weighted": "SLIDE, largest sum of weights",
    "slide-uniform-clock": "SLIDE, one clock per user",
    "slide-full-clock": "SLIDE, full clock",
    "slide-equal": "SLIDE, equal bandwidth",
    "dai": "download, then infer",
    "dai-overlapped": "users of download-then-infer, overlapped",
    "dai-equal": "download, then infer, equal bandwidth",
    "slide-random-model": "SLIDE, random models",
    "slide-smallest": "SLIDE, smallest models",
    "slide-largest": "SLIDE, largest models",
    "slide-random-order": "SLIDE, random order of users",
}
SWEEP_WORDS = {
    "bandwidth_mhz": "bandwidth, MHz",
    "deadline_s": "deadline, s",
    "users": "users in the cell",
    "energy_j": "mean energy budget, J",
    "batch": "mean batch, samples",
}


def slide_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the reproduction's Markdown page.

    Args:
        results: what results.json holds.
    """
    settings, quick = results["settings"], " (quick)" if results["quick"] else ""
    tasks = settings["tasks"]
    yield "# SLIDE: inference while the model still downloads"
    yield ""
    yield (
        f"Mean ± standard deviation over {results['seeds']} seeds, scale {results['scale']}{quick}. Models: "
        f"{', '.join(settings['models'])} ({settings['precision']}). Where it is not varied: "
        f"{settings['bandwidth_mhz']:g} MHz, {settings['users']} users, deadline {tasks['deadline_s']:g} s, {_range(tasks['energy_j'])} J, "
        f"batches of {_range(tasks['batch'])}, "
        f"{_range([flops / 1e12 for flops in tasks['device_flops']])} TFLOP/s and {_range(tasks['power_w'])} W at full clock, "
        f"{1e3 * tasks['layer_overhead_s']:g} ms per layer; every user accepts {tasks['choices']} of the models, drawn at random."
    )
    yield ""
    yield (
        "The paper's values and settings are not known to this project: every number is its own. Plans use as little bandwidth and energy "
        "as deadlines allow. Latency is the mean of those served when the bandwidth that is left over is shared among them and their "
        "devices run as fast as their energy lets them. What overlapping saves is spent on more users first and on ending sooner only "
        "with what is left over, so where bandwidth is short SLIDE ends about as late as download, then infer."
    )
    yield from _short(results)
    for setting, curves in results["curves"].items():
        yield from ("", f"## {settings['words'][setting]}")
        for sweep, words in SWEEP_WORDS.items():
            for metric, title in (("served", "Users served"), ("latency_s", "Mean latency, s")):
                yield from ("", f"### {title} against {words}", "")
                yield from _curves(curves[sweep][metric], results["spreads"][setting][sweep][metric], words, metric)
            yield from _cuts(curves[sweep], results["spreads"][setting][sweep])
    yield from _check(results)
    yield from _overlap(results)
    hardware = results["hardware"]
    yield ""
    yield f"`{results['command']}`: {_duration(results['seconds'])} on {hardware['cpu']}, {hardware['cores']} cores."


def _short(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of what comes of each setting where nothing is varied."""
    base = f"{results['settings']['tasks']['deadline_s']:g}"
    yield from ("", "| users served | SLIDE | download, then infer | more served | latency that its users would save by overlapping |")
    yield "|---|---|---|---|---|"
    for setting, sweeps in results["curves"].items():
        curves, spreads = sweeps["deadline_s"], results["spreads"][setting]["deadline_s"]["served"]
        slide, dai = (curves["served"][method][base] for method in ("slide", "dai"))
        cut = curves.get("cut", {}).get("dai-overlapped", {}).get(base)
        cells = [f"{slide:.1f} ± {spreads['slide'][base]:.1f}", f"{dai:.1f} ± {spreads['dai'][base]:.1f}"]
        cells += [f"{100 * (slide / dai - 1):+.0f} %" if dai else "-", "-" if cut is None else f"{100 * cut:.1f} %"]
        yield f"| {results['settings']['words'][setting]} | " + " | ".join(cells) + " |"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"


def _range(bounds: list[float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"


def _curves(
    curves: Mapping[str, Mapping[str, float]], spreads: Mapping[str, Mapping[str, float]], words: str, metric: str
) -> Iterator[str]:
    values = sorted({value for curve in curves.values() for value in curve}, key=float)
    if not values:
        yield "Nobody is served."
        return
    yield f"| {words} | " + " | ".join(values) + " |"
    yield "|---|" + "---|" * len(values)
    for method, name in METHOD_WORDS.items():
        if method in curves:
            cells = [_with_spread(curves[method].get(value), spreads[method].get(value), metric) for value in values]
            yield f"| {name} | " + " | ".join(cells) + " |"


def _with_spread(mean: float | None, spread: float | None, metric: str) -> str:
    """Write a mean; latencies that do not spread are those of one seed, the others served nobody."""
    if mean is None or spread is None:
        return "-"
    digits = 1 if metric == "served" else 2
    return f"{mean:.{digits}f}" if metric == "latency_s" and spread == 0 else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _cuts(curves: Mapping[str, Any], spreads: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line on what the users of download, then infer, would save; in the order of what is varied."""
    cuts, ratios = curves.get("cut", {}).get("dai-overlapped", {}), curves.get("ratio", {}).get("dai-overlapped", {})
    if cuts:
        said = ", ".join(
            f"{100 * cuts[key]:.1f} ± {100 * spreads['cut']['dai-overlapped'][key]:.1f} % ({ratios[key]:.2f})"
            for key in sorted(cuts, key=float)
        )
        yield from (
            "",
            f"Those whom download, then infer, serves would save by overlapping (median time to compute over download): {said}.",
        )


def _check(results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Beside the specification's own check", "")
    yield (
        "One random model per user, drawn cells, two independent programs; theirs is 20 other seeds. Neither is the paper's. Users served:"
    )
    yield ""
    yield "| bandwidth | deadline | SLIDE | download, then infer | more served | the specification's |"
    yield "|---|---|---|---|---|---|"
    for row in results["check"]:
        slide, dai = (f"{row[method]['mean']:.1f} ± {row[method]['std']:.1f}" for method in ("slide", "dai"))
        more = f"{100 * (row['slide']['mean'] / row['dai']['mean'] - 1):+.0f} %" if row["dai"]["mean"] else "-"
        said = f"{row['specification'][0]:g}, {row['specification'][1]:g}"
        yield f"| {row['bandwidth_mhz']:g} MHz | {row['deadline_s']:g} s | {slide} | {dai} | {more} | {said} |"


def _overlap(results: Mapping[str, Any]) -> Iterator[str]:
    rows = results["overlap"]
    ratios = sorted({row["ratio"] for row in rows})
    yield from ("", "## What computing during the download saves", "")
    yield (
        "Latency saved against download, then infer, at the same bandwidth and full clocks, by the ratio of the time to compute to "
        "that to download. L equal layers save (1 - 1/L) min(1, ratio) / (1 + ratio); no model saves more than min(1, ratio) / (1 + ratio)."
    )
    yield ""
    yield "| model | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |"
    yield "|---|" + "---|" * len(ratios)
    for name in dict.fromkeys(row["model"] for row in rows):
        cuts = {row["ratio"]: row["cut"] for row in rows if row["model"] == name}
        yield f"| {name} | " + " | ".join(f"{100 * cuts[ratio]:.1f} %" for ratio in ratios) + " |"
    means = [sum(row["cut"] for row in rows if row["ratio"] == ratio) / sum(row["ratio"] == ratio for row in rows) for ratio in ratios]
    yield "| mean | " + " | ".join(f"{100 * mean:.1f} %" for mean in means) + " |"
