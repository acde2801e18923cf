"""Schemas: what the OpenAPI document says of bodies and answers, and the bounds of a user's numbers, which ``api`` checks."""

from collections.abc import Mapping
from typing import Any

from nmoe.deliver.server.turned_down import TurnedDown, quoted

Schema = dict[str, Any]

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

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
BOOL: Schema = {"type": "boolean"}


def record(required: tuple[str, ...], **properties: Schema) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


ERROR = record(("error",), error=STRING)
RECEIVER = record(
    _REQUIRED,
    **{name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in _BOUNDS.items()},
    batch={"type": "integer", "minimum": 1, "maximum": MAX_BATCH},
    models=_list({"type": "string", "pattern": MODEL_NAME}, minItems=1, maxItems=MAX_MODELS, uniqueItems=True),
    fixed_power=BOOL,
)
_GIVEN: dict[str, Schema] = {
    "id": STRING,
    "served": BOOL,
    "model": _or_null(STRING),
    "file": _or_null({**STRING, "description": "Path of the model's file."}),
    "bandwidth_share": NUMBER,
    "rate_bps": {**NUMBER, "description": "Pace of its transfers now."},
    "clocks": _list(NUMBER),
    "finish_s": _or_null({**NUMBER, "description": "Seconds from the registration."}),
    "energy_j": _or_null(NUMBER),
    "slack_s": _or_null(NUMBER),
    "reason": STRING,
    "spectral_efficiency": {**NUMBER, "description": "As planned with: registered, or lower as measured."},
    "sent_bytes": {**WHOLE, "description": "Of the model's layers."},
}
ALLOCATION = record(tuple(_GIVEN), **_GIVEN)
PLAN = record(
    ("bandwidth_hz", "served", "spare_share", "users"), bandwidth_hz=NUMBER, served=WHOLE, spare_share=NUMBER, users=_list(ALLOCATION)
)
GONE = record(("id",), id=STRING)
FILES = _list(record(("name", "file", "bytes", "reason"), name=STRING, file=STRING, bytes=WHOLE, reason=STRING))
RAW: Schema = {"type": "string", "format": "binary"}

WHY = {
    400: "Something about the request is wrong; `error` says what.",
    404: "No such user or file.",
    405: "Another method is wanted.",
    408: "The body did not arrive in time.",
    409: "Not possible now; `error` says why.",
    413: "The body is too large.",
    415: "Another content type is wanted.",
    416: "The range holds no byte of the file.",
    429: "Too many transfers of one user.",
    500: "The server failed.",
    503: "Full, or the plan leaves nothing over; try again after `Retry-After` seconds.",
}


def described(schema: Schema, text: str, *errors: int, kind: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """Return what a route answers: its schema with 200, and errors."""
    failures: dict[int | str, dict[str, Any]] = {
        code: {"description": WHY[code], "content": {"application/json": {"schema": ERROR}}} for code in (*errors, 405)
    }
    return {200: {"description": text, "content": {kind: {"schema": schema}}}, **failures}


def parameter(name: str, place: str, text: str, pattern: str, *, required: bool = True) -> Schema:
    """Return the description of a parameter in a path or header."""
    return {"name": name, "in": place, "required": required, "description": text, "schema": {"type": "string", "pattern": pattern}}


def check_bounds(told: Mapping[str, Any]) -> None:
    """Check that a user's numbers lie within the bounds. Whether they are numbers at all, and there, is checked by ``parse_receiver``.

    Raises:
        TurnedDown: 400.
    """
    for name, (low, high) in (*_BOUNDS.items(), ("batch", (1, MAX_BATCH))):
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise TurnedDown(400, f"{name} from {low:g} to {high:g} wanted, got {quoted(value)}")
    models = told.get("models")
    if isinstance(models, list) and len(models) > MAX_MODELS:
        raise TurnedDown(400, f"at most {MAX_MODELS} models wanted, got {len(models)}")
