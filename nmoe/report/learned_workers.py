"""Report of learned recruitment: how far prices and efforts are from the closed form, what one agent could gain, and what training took."""

from collections.abc import Iterator, Mapping
from typing import Any

METHODS = {"mappo": "MAPPO", "mappo untrained": "MAPPO, untrained", "single-ppo": "one planner by PPO, exact workers"}
ERRORS = {
    "effort_error": "efforts, all deviations over all efforts",
    "worst_effort_error": "effort of the worst worker, over the mean effort",
    "price_error": "prices, mean of owners",
    "worst_price_error": "price of the worst owner",
    "collected_error": "samples collected, over those ordered",
}
GAINS = {
    "owner_gain_searched": "an owner, best of a grid of prices",
    "owner_gain_retrained": "an owner, trained anew",
    "worker_gain_searched": "a worker, exact best reply",
    "worker_gain_retrained": "a worker, trained anew",
}
EXACT = ("single-ppo", ("effort_error", "worst_effort_error"))  # its workers are the closed form


def learned_workers_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of Markdown.

    Args:
        results: with ``seeds, episodes, retrained, seconds`` and ``rows``.
    """
    found = {(row["method"], row["metric"]): row for row in results["rows"]}
    setting = results["rows"][0]["setting"]
    yield "# Learned recruitment: owners' prices and workers' efforts by MAPPO"
    yield ""
    yield f"{setting}, drawn {results['seeds']} times, {results['episodes']} episodes of training for each: mean ± standard deviation."
    yield "Nobody knows another's costs. Neither the paper's learner nor its numbers are known (arXiv 2509.10512): all of this is ours."
    yield ""
    yield "## Relative distance from the closed form"
    yield ""
    yield "| | " + " | ".join(METHODS.values()) + " |"
    yield "|---|" + "---|" * len(METHODS)
    for metric, words in ERRORS.items():
        cells = ["exact" if method == EXACT[0] and metric in EXACT[1] else _percent(found[method, metric]) for method in METHODS]
        yield f"| {words} | " + " | ".join(cells) + " |"
    yield ""
    yield "The planner is paid what all owners get of the reward, which is all of it whatever is bought: so buying little pays."
    yield ""
    yield "## What one agent gains against the others, who stay as they are"
    yield ""
    yield f"Relative to what it gets. Trained anew for {results['retrained']} episodes."
    yield ""
    yield "| | MAPPO |"
    yield "|---|---|"
    for metric, words in GAINS.items():
        yield f"| {words} | {_percent(found['mappo', metric])} |"
    yield ""
    yield "## Seconds of one training"
    yield ""
    for method in ("mappo", "single-ppo"):
        row = found[method, "seconds"]
        yield f"- {METHODS[method]}: {row['mean']:.0f} ± {row['std']:.0f}"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} %"
