"""Run folders: made, refused when they hold another run, cleared only of what a run writes."""

import shutil
from pathlib import Path

WRITTEN = ("config.json", "metrics.jsonl", "results.json", "results.md", "serving.json", "report.html", "bundles", "checkpoint", "figures")


def claim(folder: Path, *, force: bool, resumable: bool = True) -> None:
    """Make a run folder ready for a new run.

    Args:
        folder: where the run goes; made if absent.
        force: remove an earlier run's files first.
        resumable: whether a killed run of this kind can be continued.

    Raises:
        ValueError: when the folder is not empty and ``force`` is not given, or holds files that no run writes.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run folder {folder} is a file")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if present and not force:
        resume = ", or --resume to continue it" if resumable else ""
        raise ValueError(f"run folder {folder} is not empty: give --force to replace the run in it{resume}")
    foreign = [name for name in present if name not in WRITTEN and not _left_over(name)]
    if foreign:
        raise ValueError(f"run folder {folder} holds {foreign[0]}, which no run wrote: choose another --out")
    for name in present:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _left_over(name: str) -> bool:
    """Say whether a name is of a temporary file that a killed run left behind."""
    return any(name.startswith(f".{written}.") for written in WRITTEN)
