"""The table of the channel-aware gating reproduction: accuracy against mean SNR, method by method, and whom gates choose."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

METHOD_WORDS = {
    "aware": "channel-aware, additive",
    "aware_joint": "channel-aware, joint",
    "aware_blurred": "channel-aware, told with errors",
    "aware_reported": "channel-aware, told CQI reports",
    "naive": "naive (features only)",
    "snr_only": "SNR only",
    "random": "random",
}
TRANSMISSION_WORDS = {
    "analog": "Analog, unequal links",
    "analog_equal": "Analog, equal links",
    "digital": "Digital, no code",
    "digital_repetition": "Digital, every bit three times",
    "digital_convolutional": "Digital, convolutional code of rate 1/2",
    "digital_ldpc": "Digital, 5G LDPC code of rate 1/2",
}


def means_db(results: Mapping[str, Any]) -> list[float]:
    """Return the mean SNRs that were tested, in dB, rising."""
    return sorted({float(mean) for by_transmission in results["curves"].values() for curve in by_transmission.values() for mean in curve})


def channel_gating_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the reproduction's Markdown page.

    Args:
        results: what results.json holds.
    """
    settings, means = results["settings"], means_db(results)
    low_db, high_db = settings["train_snr_db"]
    extractor, quick = settings["extractor"], " (quick)" if results["quick"] else ""
    symbols = ", ".join(f"{name} {count:g}" for name, count in settings["symbols_per_number"].items())
    yield f"# Channel-aware gating: {settings['data']}, {settings['experts']} experts, top {settings['k']}"
    yield ""
    yield (
        f"Accuracy in percent, mean ± standard deviation over {results['seeds']} seeds, scale {results['scale']}{quick}. "
        f"Extractor {extractor['kind']}, cut at {extractor.get('cut', 'its end')}; experts {_expert(settings['expert'])}. "
        f"{settings['clean']['epochs']} epochs over perfect channels, then {settings['links']['epochs']} over {settings['fading']} links "
        f"of mean SNR {low_db:g} to {high_db:g} dB, the same ones for every gate. {settings['train']:,} training and {settings['test']:,} "
        "test images."
    )
    yield ""
    yield (
        f"Unequal links lie up to {settings['spread_db']:g} dB from the mean. Told with errors: SNRs reach the gate with a normal error of "
        f"3 dB; told CQI reports: as one of 15 steps. SNRs are per symbol; complex symbols per number: {symbols}. Numbers are this "
        "project's; the paper's are not known to it."
    )
    for transmission, words in TRANSMISSION_WORDS.items():
        methods = [method for method in METHOD_WORDS if transmission in results["curves"].get(method, {})]
        if methods:
            yield from ("", f"## {words}", "")
            if transmission.startswith("digital"):
                count = settings["digital_test" if transmission in ("digital", "digital_repetition") else "coded_test"]
                yield from (f"On {count:,} of the test images.", "")
            yield from _curves(results, transmission, methods, means)
    yield from ("", f"## Share of choices by the rank of the link (unequal, {settings['ranks_at_db']:g} dB)", "")
    yield from _selection(results)
    words = ", ".join(f"{METHOD_WORDS[method]} {share:.2f}" for method, share in results["gate_entropy"].items())
    yield from ("", f"Entropy of the mean gate there, 1 for all experts alike and 0 for a collapsed gate: {words}.", "")
    hardware = results["hardware"]
    machine = hardware.get("gpu", hardware["cpu"])
    yield f"`{results['command']}`: {results['seconds'] / 60:.1f} minutes on {machine}, {hardware['cores']} cores."


def _expert(expert: Mapping[str, Any]) -> str:
    return f"{expert['kind']} ({expert['hidden_dim']} hidden units)" if "hidden_dim" in expert else str(expert["kind"])


def _curves(results: Mapping[str, Any], transmission: str, methods: Sequence[str], means: Sequence[float]) -> Iterator[str]:
    yield "| mean SNR | " + " | ".join(f"{mean:g} dB" for mean in means) + " |"
    yield "|---|" + "---|" * len(means)
    for method in methods:
        curve, spread = results["curves"][method][transmission], results["spreads"][method][transmission]
        words = [f"{100 * curve[f'{mean:g}']:.1f} ± {100 * spread[f'{mean:g}']:.1f}" for mean in means]
        yield f"| {METHOD_WORDS[method]} | " + " | ".join(words) + " |"


def _selection(results: Mapping[str, Any]) -> Iterator[str]:
    ranks = range(1, results["settings"]["experts"] + 1)
    yield "| rank of the link's SNR | " + " | ".join("best" if rank == 1 else str(rank) for rank in ranks) + " |"
    yield "|---|" + "---|" * len(ranks)
    for method, shares in results["selection"].items():
        yield f"| {METHOD_WORDS[method]} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |"
