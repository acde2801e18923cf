"""Schemas: what the OpenAPI document says of bodies and answers. Nothing here runs; ``inference`` and ``answer`` do what it says."""

from typing import Any

import msgspec

from nmoe.node.http.inference import OUTPUTS
from nmoe.node.messages import MAX_DEADLINE_S, MAX_EXPERTS
from nmoe.node.view import NodeView

Schema = dict[str, Any]


def record(required: tuple[str, ...], **properties: Schema) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


STRING: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
BOOL: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
ERROR = record(("error",), error=STRING)
SERVER = record(("name", "version", "extensions"), name=STRING, version=STRING, extensions=_list(STRING))
TENSOR = record(("name", "datatype", "shape"), name=STRING, datatype=STRING, shape=_list({"type": "integer"}))
MODEL = record(
    ("name", "versions", "platform", "inputs", "outputs"),
    name=STRING,
    versions=_list(STRING),
    platform=STRING,
    inputs=_list(TENSOR),
    outputs=_list(TENSOR),
)
CONFIG: Schema = {"type": "object", "required": ["name", "platform", "max_batch_size", "input", "output"]}
_PIXELS: Schema = {"description": "Pixels in row-major order, flat or nested as the shape says.", "type": "array"}
_INPUT = record(
    ("name", "shape", "datatype"),
    name={"type": "string", "enum": ["image"]},
    shape=_list({"type": "integer", "minimum": 1}, minItems=3, maxItems=4),
    datatype={"type": "string", "enum": ["UINT8", "FP32"]},
    parameters=record((), binary_data_size=WHOLE),
    data=_PIXELS,
)
_OUTPUT = record(("name",), name={"type": "string", "enum": list(OUTPUTS)}, parameters=record((), binary_data=BOOL))
INFER = record(
    ("inputs",),
    id={"type": "string", "maxLength": 64},
    inputs=_list(_INPUT, minItems=1, maxItems=1),
    outputs=_list(_OUTPUT, maxItems=len(OUTPUTS)),
    parameters=record(
        (),
        deadline_ms={"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_S * 1000, "default": 1000},
        k={"type": "integer", "minimum": 1, "maximum": MAX_EXPERTS},
        binary_data_output={"type": "boolean", "default": False},
        timeout={"type": "integer", "minimum": 1, "description": "Microseconds; Triton's name for the deadline."},
    ),
)
_ANSWERED = record(
    ("name", "datatype", "shape"),
    name=STRING,
    datatype=STRING,
    shape=_list(WHOLE),
    data={"type": "array"},
    parameters=record(("binary_data_size",), binary_data_size=WHOLE),
)
ANSWER = record(
    ("model_name", "model_version", "parameters", "outputs"),
    model_name=STRING,
    model_version=STRING,
    id=STRING,
    parameters=record(
        ("degraded", "bytes_sent", "bytes_received", "seconds"), degraded=BOOL, bytes_sent=WHOLE, bytes_received=WHOLE, seconds=NUMBER
    ),
    outputs=_list(_ANSWERED),
)
FEEDBACK = record(("id", "labels"), id={"type": "string", "minLength": 1, "maxLength": 64}, labels=_list(WHOLE, minItems=1))
LEARNED = record(("id", "learned"), id=STRING, learned=WHOLE)
INDEX = _list(record(("name", "version", "state", "reason"), name=STRING, version=STRING, state=STRING, reason=STRING))
LOADED = record(("name", "version"), name=STRING, version=STRING)
NOTHING = record(())
_BUILT = msgspec.json.schema_components([NodeView], ref_template="#/components/schemas/{name}")
MESH = _list(_BUILT[0][0])
COMPONENTS = _BUILT[1]

WHY = {
    400: "Something about the request is wrong; `error` says what.",
    403: "Not from a page of another site, or not allowed by the mesh.",
    404: "No such version of the model.",
    405: "Another method is wanted.",
    408: "The body did not arrive in time.",
    409: "Not possible now; `error` says why.",
    413: "The body is too large.",
    415: "Another content type or encoding is wanted.",
    500: "The node failed.",
    503: "Busy, starting or leaving; try again after `Retry-After` seconds.",
    504: "No answer within the deadline.",
}


def described(schema: Schema, text: str, *errors: int, binary: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return what a route answers: its schema with 200, and errors."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if binary:
        raw = "The JSON, then raw tensors; the header `Inference-Header-Content-Length` says where the JSON ends."
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary", "description": raw}}
    failures: dict[int | str, dict[str, Any]] = {
        code: {"description": WHY[code], "content": {"application/json": {"schema": ERROR}}} for code in (*errors, 405)
    }
    return {200: {"description": text, "content": content}, **failures}


def body(schema: Schema, *, binary: bool = False, required: bool = True) -> dict[str, Any]:
    """Return what a route takes."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if binary:
        raw = "The same JSON, then the raw pixels; the header `Inference-Header-Content-Length` says where the JSON ends."
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary", "description": raw}}
    return {"requestBody": {"required": required, "content": content}}
