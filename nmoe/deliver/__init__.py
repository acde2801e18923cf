"""Deliver: models brought to devices that start to infer while the model still downloads.

One half plans: which model for whom, which share of the bandwidth, which clocks (``scenario``, ``clocks``, ``allocate``, ``baselines``,
``power``), checked by ``forward``. The other half does it: any PyTorch model run layer by layer as its bytes arrive (``stream_model``).
"""

import importlib
from typing import TYPE_CHECKING, Any

from nmoe.deliver.allocate import METHODS, Allocation, Plan, least_shares, plan
from nmoe.deliver.forward import Timeline, check_plan, simulate
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario, read_scenario

if TYPE_CHECKING:
    from nmoe.deliver.delivery import Delivery, delivery_of
    from nmoe.deliver.stream import stream_model

_NEED_TORCH = {"Delivery": "delivery", "delivery_of": "delivery", "stream_model": "stream"}  # planning does without

__all__ = [
    "METHODS",
    "Allocation",
    "Delivery",
    "ModelProfile",
    "Plan",
    "Receiver",
    "Scenario",
    "Timeline",
    "check_plan",
    "delivery_of",
    "least_shares",
    "plan",
    "read_scenario",
    "simulate",
    "stream_model",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__} has no {name}")
    return getattr(importlib.import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
