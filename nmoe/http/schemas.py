"""Schemas: the words in which an OpenAPI document says what bodies and answers look like."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]
Answers = dict[int | str, dict[str, Any]]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
BOOL: Schema = {"type": "boolean"}


def record(required: tuple[str, ...], **properties: Schema) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listed(items: Schema, **more: Any) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items, **more}


def or_null(schema: Schema) -> Schema:
    """Return the schema of what may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


ERROR = record(("error",), error=STRING)
WHY = {
    400: "Something about the request is wrong; `error` says what.",
    405: "Another method is wanted.",
    408: "The body did not arrive in time.",
    409: "Not possible now; `error` says why.",
    413: "The body is too large.",
    415: "Another content type is wanted.",
}


def answers(schema: Schema, text: str, errors: tuple[int, ...], why: Mapping[int, str], *, kind: str = "application/json") -> Answers:
    """Return what a route answers: its schema with 200, errors, and 405, which every path has.

    Args:
        schema: of the answer.
        text: that describes it.
        errors: statuses.
        why: what each status means here, where ``WHY`` does not say it.
        kind: media type of the answer.
    """
    meant = {**WHY, **why}
    failures: Answers = {code: {"description": meant[code], "content": {"application/json": {"schema": ERROR}}} for code in (*errors, 405)}
    return {200: {"description": text, "content": {kind: {"schema": schema}}}, **failures}


def body(schema: Schema) -> Schema:
    """Return the description of a JSON body that has to come."""
    return {"content": {"application/json": {"schema": schema}}, "required": True}


def parameter(name: str, place: str, text: str, pattern: str, *, required: bool = True) -> Schema:
    """Return the description of a parameter in a path, query or header."""
    return {"name": name, "in": place, "required": required, "description": text, "schema": {"type": "string", "pattern": pattern}}
