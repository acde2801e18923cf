"""The public names of ``nmoe.deliver``: all there, and planning loads no torch."""

import subprocess
import sys

import pytest

import nmoe.deliver
from nmoe.deliver.stream import stream_model


def test_every_public_name_is_there() -> None:
    assert set(nmoe.deliver.__all__) <= {name for name in nmoe.deliver.__all__ if getattr(nmoe.deliver, name) is not None}
    assert nmoe.deliver.stream_model is stream_model
    with pytest.raises(AttributeError, match=r"module nmoe\.deliver has no nonsense"):
        _ = nmoe.deliver.nonsense


def test_planning_loads_no_torch() -> None:
    code = "import sys, nmoe.deliver; nmoe.deliver.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
