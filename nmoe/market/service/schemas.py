"""Schemas: what the OpenAPI document says of bodies and answers."""

from nmoe.http.schemas import BOOL, NUMBER, STRING, WHOLE, Answers, Schema, answers, listed, or_null, record
from nmoe.market.auction import Reason
from nmoe.market.service.sealed_bid import BOUNDS, LEAST_DEMAND, MAX_EPOCH, NEED, USER_ID

IDEMPOTENCY_KEY = r"^[!-~]{1,128}$"
RECEIPT = r"^[0-9a-f]{64}$"
EPOCH = r"^[1-9][0-9]{0,14}$"

HEX: Schema = {"type": "string", "pattern": RECEIPT}


def _all(**properties: Schema) -> Schema:
    return record(tuple(properties), **properties)


def _bounded(name: str) -> Schema:
    low, high = BOUNDS[name]
    return {"type": "number", "minimum": low, "maximum": high}


def need_schema(names: list[str], *required: str, **more: Schema) -> Schema:
    """Return the schema of a need among these workloads: units, or a task; ``more`` are further properties."""
    task = {name: {"type": "string", "enum": names} if name == "workload" else _bounded(name) for name in NEED}
    units = {"anyOf": [{"type": "number", "enum": [0]}, {**_bounded("demand"), "minimum": LEAST_DEMAND}]}
    return {"oneOf": [record((*required, "demand"), **more, demand=units), record((*required, *NEED), **more, **task)]}


def bid_schema(names: list[str]) -> Schema:
    """Return the schema of a bid for these workloads."""
    epoch = {"type": "integer", "minimum": 1, "maximum": MAX_EPOCH, "description": "Where it is to count; the open one if not given."}
    user = {"type": "string", "pattern": USER_ID}
    return need_schema(names, "id", "bid", id=user, bid={**_bounded("bid"), "description": "Offered in all."}, epoch=epoch)


ACCEPTED = _all(epoch=WHOLE, id=STRING, receipt={**HEX, "description": "Keep it: it shows the bid, and that it was accepted."})
_TERMS = _all(
    epoch=WHOLE,
    chain={**HEX, "description": "Stands for the nonces of 65,536 epochs."},
    link={**WHOLE, "description": "The nonce's place in the chain."},
    mechanism=STRING,
    base=or_null(NUMBER),
    price=or_null(NUMBER),
    capacity=or_null({**NUMBER, "description": "Units for sale; null for no limit."}),
    unit_cost=NUMBER,
    workloads={**HEX, "description": "SHA-256 of what demands are computed from."},
    opened_s=NUMBER,
    closes_s=or_null(NUMBER),
)
_OPEN = record(
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
    unit_price=or_null(NUMBER),
    payment=NUMBER,
    demand=or_null(NUMBER),
    reason={"enum": [reason.name.lower() for reason in Reason]},
    partition=or_null(WHOLE),
    exit=or_null(WHOLE),
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
    bids=listed({"type": "object"}),
    bids_digest=HEX,
    outcome=or_null(_all(mechanism=STRING, draw=NUMBER, revenue=NUMBER, users=listed(_USER))),
    error=or_null(STRING),
    digest=HEX,
)
EPOCH_SHOWN: Schema = {"oneOf": [_OPEN, _CLOSED]}
EPOCH_OPEN = _OPEN
EPOCHS = listed(
    _all(
        epoch=WHOLE,
        state={"enum": ["open", "closing", "closed"]},
        opened_s=NUMBER,
        closed_s=or_null(NUMBER),
        commitment=HEX,
        num_bids=WHOLE,
        num_served=or_null(WHOLE),
        revenue=or_null(NUMBER),
        lowest_unit_price=or_null(NUMBER),
        highest_unit_price=or_null(NUMBER),
        digest=or_null(HEX),
    )
)
OWN_BID = _all(
    epoch=WHOLE,
    id=STRING,
    state={"enum": ["open", "closing", "closed"]},
    closes_in_s=or_null(NUMBER),
    sent={"type": "object"},
    result=or_null(_USER),
)
QUOTE = _all(
    epoch=WHOLE,
    closes_in_s=or_null(NUMBER),
    place={"enum": ["edge", "device", "nowhere"]},
    demand=or_null(NUMBER),
    partition=or_null(WHOLE),
    exit=or_null(WHOLE),
    unit_cost=NUMBER,
    least_payment=or_null(NUMBER),
    last_price=or_null(_all(epoch=WHOLE, lowest_unit_price=NUMBER, highest_unit_price=NUMBER)),
    last_payment=or_null(NUMBER),
)
CLOSED_NOW = _all(epoch=WHOLE, state={"enum": ["closed"]})
WORKLOADS = _all(workloads=listed({"type": "object"}))
LIVE, READY = _all(live=BOOL), _all(ready=BOOL)

WHY = {
    401: "The operator's token is wanted.",
    403: "Nobody may.",
    404: "No such epoch or bid.",
    409: "Too late, or the user has bid something else; `error` says which.",
    503: "Busy, full or leaving; try again after `Retry-After` seconds.",
}


def described(schema: Schema, text: str, *errors: int, kind: str = "application/json") -> Answers:
    """Return what a route answers: its schema with 200, and errors."""
    return answers(schema, text, errors, WHY, kind=kind)
