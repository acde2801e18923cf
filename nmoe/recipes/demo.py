"""The demo: the whole life once. Train, write bundles, serve every test image over real processes, report."""

import time
from pathlib import Path
from typing import Any

from nmoe.core.files import write_json
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.serve import serve_test_set
from nmoe.recipes.train import Trained, reported, resume_training, start_training
from nmoe.recipes.watch import Progress


def demo(options: TrainOptions, out: Path, progress: Progress, *, force: bool, command: str) -> dict[str, Any]:
    """Run the whole life of a mixture and return what results.json holds; arguments and errors as in ``start_training``."""
    return _finish(start_training(options, out, progress, force=force, command=command), out, progress)


def resume_demo(out: Path, progress: Progress) -> dict[str, Any]:
    """Continue a killed demo from its last whole round; errors as in ``resume_training``."""
    return _finish(resume_training(out, progress), out, progress)


def _finish(trained: Trained, out: Path, progress: Progress) -> dict[str, Any]:
    began = time.perf_counter()
    served = serve_test_set(out, trained.program.data().test, trained.program.options, progress)
    write_json(out / "serving.json", served.details)
    results = trained.results
    results["communication"]["infer_bytes_per_sample"] = served.bytes_per_sample
    results["serving"] = served.serving
    results["seconds"]["serving"] = time.perf_counter() - began
    write_json(out / "results.json", results)
    return reported(results, out, progress)
