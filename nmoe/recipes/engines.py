"""Engines that are extras: found, or one line that says how to get them."""

from collections.abc import Callable
from importlib.util import find_spec

from nmoe.core.errors import EngineError
from nmoe.federate import State


def ray_runner() -> Callable[..., dict[str, State]]:
    """Return ``nmoe.federate.flower.run_ray``.

    Raises:
        EngineError: when the extra ``flower`` is not installed.
    """
    if find_spec("ray") is None:  # Flower without Ray would fail only when the simulation starts
        raise EngineError("Ray needs the extra flower: python3 dev.py setup --extra flower installs it")
    try:
        from nmoe.federate.flower import run_ray
    except ModuleNotFoundError as error:
        raise EngineError(f"Ray needs the extra flower: python3 dev.py setup --extra flower installs it ({error})") from error
    return run_ray
