"""What holds for every test: one thread, no figures on a screen, no messages home, shapes checked at run time."""

import os

# Before torch, Flower and Ray are imported, here or in a process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Public signatures carry shapes (STYLE.md 17); the hook has to be in place before the first import of these packages.
install_import_hook(["nmoe.moe", "nmoe.learn", "nmoe.channel"], "beartype.beartype")
torch.set_num_threads(1)

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders of long tests first, so that two processes end at about the same time."""
    items.sort(key=lambda item: item.path.parent.name not in ("recipes", "federate"))
