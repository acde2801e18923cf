"""Schemas: what the OpenAPI document says of bodies and answers."""

from typing import Any

from nmoe.market.auction import Reason
from nmoe.market.service.sealed_bid import BOUNDS, LEAST_DEMAND, MAX_EPOCH, NEED, USER_ID

Schema = dict[str, Any]

IDEMPOTENCY_KEY = r"^[!-~]{1,128}$"
RECEIPT = r"^[0-9a-f]{64}$"
EPOCH = r"^[1-9][0-9]{0,14}$"

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
BOOL: Schema = {"type": "boolean"}
HEX: Schema = {"type": "string", "pattern": RECEIPT}


def _record(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _all(**properties: Schema) -> Schema:
    return _record(tuple(properties), **properties)


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _bounded(name: str) -> Schema:
    low, high = BOUNDS[name]
    return {"type": "number", "minimum": low, "maximum": high}


def need_schema(names: list[str], *required: str, **more: Schema) -> Schema:
    """Return the schema of a need among these workloads: units, or a task; ``more`` are further properties."""
    task = {name: {"type": "string", "enum": names} if name == "workload" else _bounded(name) for name in NEED}
    units = {"anyOf": [{"type": "number", "enum": [0]}, {**_bounded("demand"), "minimum": LEAST_DEMAND}]}
    return {"oneOf": [_record((*required, "demand"), **more, demand=units), _record((*required, *NEED), **more, **task)]}


def bid_schema(names: list[str]) -> Schema:
    """Return the schema of a bid for these workloads."""
    epoch = {"type": "integer", "minimum": 1, "maximum": MAX_EPOCH, "description": "Where it is to count; the open one if not given."}
    user = {"type": "string", "pattern": USER_ID}
    return need_schema(names, "id", "bid", id=user, bid={**_bounded("bid"), "description": "Offered in all."}, epoch=epoch)


ERROR = _record(("error",), error=STRING)
ACCEPTED = _all(epoch=WHOLE, id=STRING, receipt={**HEX, "description": "Keep it: it shows the bid, and that it was accepted."})
_TERMS = _all(
    epoch=WHOLE,
    chain={**HEX, "description": "Stands for the nonces of 65,536 epochs."},
    link={**WHOLE, "description": "The nonce's place in the chain."},
    mechanism=STRING,
    base=_or_null(NUMBER),
    price=_or_null(NUMBER),
    capacity=_or_null({**NUMBER, "description": "Units for sale; null for no limit."}),
    unit_cost=NUMBER,
    workloads={**HEX, "description": "SHA-256 of what demands are computed from."},
    opened_s=NUMBER,
    closes_s=_or_null(NUMBER),
)
_OPEN = _record(
    ("epoch", "state", "terms", "commitment", "num_bids"),
    epoch=WHOLE,
    state={"enum": ["open", "closing"]},
    terms=_TERMS,
    commitment=HEX,
    num_bids=WHOLE,
    closed_s=NUMBER,
)
_USER = _all(
    id=STRING,
    served=BOOL,
    unit_price=_or_null(NUMBER),
    payment=NUMBER,
    demand=_or_null(NUMBER),
    reason={"enum": [reason.name.lower() for reason in Reason]},
    partition=_or_null(WHOLE),
    exit=_or_null(WHOLE),
)
_CLOSED = _all(
    format=STRING,
    epoch=WHOLE,
    state={"enum": ["closed"]},
    terms=_TERMS,
    commitment=HEX,
    closed_s=NUMBER,
    nonce=HEX,
    draw=NUMBER,
    bids=_list({"type": "object"}),
    bids_digest=HEX,
    outcome=_or_null(_all(mechanism=STRING, draw=NUMBER, revenue=NUMBER, users=_list(_USER))),
    error=_or_null(STRING),
    digest=HEX,
)
EPOCH_SHOWN: Schema = {"oneOf": [_OPEN, _CLOSED]}
EPOCH_OPEN = _OPEN
EPOCHS = _list(
    _all(
        epoch=WHOLE,
        state={"enum": ["open", "closing", "closed"]},
        opened_s=NUMBER,
        closed_s=_or_null(NUMBER),
        commitment=HEX,
        num_bids=WHOLE,
        num_served=_or_null(WHOLE),
        revenue=_or_null(NUMBER),
        lowest_unit_price=_or_null(NUMBER),
        highest_unit_price=_or_null(NUMBER),
        digest=_or_null(HEX),
    )
)
OWN_BID = _all(
    epoch=WHOLE,
    id=STRING,
    state={"enum": ["open", "closing", "closed"]},
    closes_in_s=_or_null(NUMBER),
    sent={"type": "object"},
    result=_or_null(_USER),
)
QUOTE = _all(
    epoch=WHOLE,
    closes_in_s=_or_null(NUMBER),
    place={"enum": ["edge", "device", "nowhere"]},
    demand=_or_null(NUMBER),
    partition=_or_null(WHOLE),
    exit=_or_null(WHOLE),
    unit_cost=NUMBER,
    least_payment=_or_null(NUMBER),
    last_price=_or_null(_all(epoch=WHOLE, lowest_unit_price=NUMBER, highest_unit_price=NUMBER)),
    last_payment=_or_null(NUMBER),
)
CLOSED_NOW = _all(epoch=WHOLE, state={"enum": ["closed"]})
WORKLOADS = _all(workloads=_list({"type": "object"}))
LIVE, READY = _all(live=BOOL), _all(ready=BOOL)

WHY = {
    400: "Something about the request is wrong; `error` says what.",
    401: "The operator's token is wanted.",
    403: "Nobody may.",
    404: "No such epoch or bid.",
    405: "Another method is wanted.",
    408: "The body did not arrive in time.",
    409: "Too late, or the user has bid something else; `error` says which.",
    413: "The body is too large.",
    415: "Another content type is wanted.",
    500: "The server failed.",
    503: "Busy, full or leaving; try again after `Retry-After` seconds.",
}


def described(schema: Schema, text: str, *errors: int, kind: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """Return what a route answers: its schema with 200, and errors."""
    failures: dict[int | str, dict[str, Any]] = {
        code: {"description": WHY[code], "content": {"application/json": {"schema": ERROR}}} for code in (*errors, 405)
    }
    return {200: {"description": text, "content": {kind: {"schema": schema}}}, **failures}


def parameter(name: str, place: str, text: str, pattern: str, *, required: bool = True) -> Schema:
    """Return the description of a parameter in a path, query or header."""
    return {"name": name, "in": place, "required": required, "description": text, "schema": {"type": "string", "pattern": pattern}}
