"""Schemas: what the OpenAPI document says of bodies and answers, and the bounds of a user's numbers, which ``api`` checks."""

from collections.abc import Mapping
from typing import Any

from nmoe.http import Rejected, quoted
from nmoe.http.schemas import BOOL, NUMBER, STRING, WHOLE, Answers, Schema, answers, listed, or_null, record

USER_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,249}$"
MAX_MODELS = 16
_BOUNDS: dict[str, tuple[float, float]] = {  # far beyond any device, far within what floats can be reckoned with
    "spectral_efficiency": (1e-6, 100.0),
    "deadline_s": (1e-3, 1e6),
    "energy_j": (1e-9, 1e12),
    "device_flops": (1.0, 1e18),
    "power_w": (1e-6, 1e6),
    "layer_overhead_s": (0.0, 1e6),
    "min_clock": (0.0, 1.0),
    "static_power_w": (0.0, 1e6),
    "receive_power_w": (0.0, 1e6),
    "weight": (1e-6, 1e6),
}
MAX_BATCH = 10**6
_REQUIRED = ("spectral_efficiency", "deadline_s", "energy_j", "batch", "device_flops", "power_w", "layer_overhead_s", "models")

RECEIVER = record(
    _REQUIRED,
    **{name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in _BOUNDS.items()},
    batch={"type": "integer", "minimum": 1, "maximum": MAX_BATCH},
    models=listed({"type": "string", "pattern": MODEL_NAME}, minItems=1, maxItems=MAX_MODELS, uniqueItems=True),
    fixed_power=BOOL,
)
_GIVEN: dict[str, Schema] = {
    "id": STRING,
    "served": BOOL,
    "model": or_null(STRING),
    "file": or_null({**STRING, "description": "Path of the model's file."}),
    "bandwidth_share": NUMBER,
    "rate_bps": {**NUMBER, "description": "Pace of its transfers now."},
    "clocks": listed(NUMBER),
    "finish_s": or_null({**NUMBER, "description": "Seconds from the registration."}),
    "energy_j": or_null(NUMBER),
    "slack_s": or_null(NUMBER),
    "reason": STRING,
    "spectral_efficiency": {**NUMBER, "description": "As planned with: registered, or lower as measured."},
    "sent_bytes": {**WHOLE, "description": "Of the model's layers."},
}
ALLOCATION = record(tuple(_GIVEN), **_GIVEN)
PLAN = record(
    ("bandwidth_hz", "served", "spare_share", "users"), bandwidth_hz=NUMBER, served=WHOLE, spare_share=NUMBER, users=listed(ALLOCATION)
)
GONE = record(("id",), id=STRING)
FILES = listed(record(("name", "file", "bytes", "reason"), name=STRING, file=STRING, bytes=WHOLE, reason=STRING))
RAW: Schema = {"type": "string", "format": "binary"}

WHY = {
    404: "No such user or file.",
    416: "The range holds no byte of the file.",
    429: "Too many transfers of one user.",
    503: "Full, or the plan leaves nothing over; try again after `Retry-After` seconds.",
}


def described(schema: Schema, text: str, *errors: int, kind: str = "application/json") -> Answers:
    """Return what a route answers: its schema with 200, and errors."""
    return answers(schema, text, errors, WHY, kind=kind)


def check_bounds(told: Mapping[str, Any]) -> None:
    """Check that a user's numbers lie within the bounds. Whether they are numbers at all, and there, is checked by ``parse_receiver``.

    Raises:
        Rejected: 400.
    """
    for name, (low, high) in (*_BOUNDS.items(), ("batch", (1, MAX_BATCH))):
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise Rejected(400, f"{name} from {low:g} to {high:g} wanted, got {quoted(value)}")
    models = told.get("models")
    if isinstance(models, list) and len(models) > MAX_MODELS:
        raise Rejected(400, f"at most {MAX_MODELS} models wanted, got {len(models)}")
