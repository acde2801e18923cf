"""Words and numbers as people read them: names of methods, stages and metrics; bytes, seconds and shares with their units."""

METHODS = {
    "own_expert": "own expert only",
    "random_uniform": "random experts, equal weights",
    "all_uniform": "all experts averaged",
    "naive_gate": "naive gate, SNR hidden",
    "nmoe": "NMoE",
    "perfect_links": "NMoE over perfect links",
    "oracle_gate": "oracle gate",
    "fedavg": "FedAvg classifier",
    "central_moe": "central mixture",
}
STAGES = {"features": "Features", "experts": "Experts", "gates": "Gates", "naive_gates": "Naive gates", "fedavg": "FedAvg"}
CONTROLS = ("naive_gates", "fedavg")  # stages that a run trains for comparison alone
METRICS = {
    "knn": "kNN on features",
    "own_local": "own expert, local",
    "nmoe_global": "NMoE, global",
    "nmoe_local": "NMoE, local",
    "naive_global": "naive gate, global",
    "naive_local": "naive gate, local",
    "fedavg_global": "FedAvg, global",
}
NONE = "-"


def method(key: str, k: int) -> str:
    """Name a method of ``results.json``; one without a name keeps its key."""
    return f"{METHODS[key]}, k={k}" if key == "nmoe" else METHODS.get(key, key)


def stage(key: str) -> str:
    """Name a stage; one without a name shows its key, readably."""
    return STAGES.get(key, key[:1].upper() + key[1:].replace("_", " "))


def percent(share: float | None) -> str:
    """Write a share in [0, 1] as a percentage with one decimal."""
    return NONE if share is None else f"{100 * share:.1f} %"


def expectation(share: float, error: float) -> str:
    """Write an expected share and its standard error as percentages."""
    return f"{100 * share:.1f} ± {100 * error:.1f} %"


def size(num_bytes: float | None) -> str:
    """Write a number of bytes in SI units: B, kB, MB, GB, TB."""
    if num_bytes is None:
        return NONE
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < (1000 if unit == "B" else 999.95):
            return f"{value:.0f} {unit}" if unit == "B" and value == int(value) else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def duration(seconds: float) -> str:
    """Write a duration in seconds, then minutes, then hours."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float | None) -> str:
    """Write milliseconds with three digits or so."""
    if value is None:
        return NONE
    return f"{value:.2f} ms" if value < 9.995 else f"{value:.1f} ms" if value < 99.95 else f"{value:,.0f} ms"


def option(value: object) -> str:
    """Write the value of an option of ``config.json``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(option(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={option(item)}" for key, item in value.items())
    return str(value)
