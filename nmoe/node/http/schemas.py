"""Schemas: what the OpenAPI document says of bodies and answers. Nothing here runs; ``inference`` and ``answer`` do what it says."""

import msgspec

from nmoe.http.schemas import BOOL, NUMBER, STRING, WHOLE, Answers, Schema, answers, body, listed, record
from nmoe.node.http.inference import OUTPUTS
from nmoe.node.messages import MAX_DEADLINE_S, MAX_EXPERTS
from nmoe.node.view import NodeView

SERVER = record(("name", "version", "extensions"), name=STRING, version=STRING, extensions=listed(STRING))
TENSOR = record(("name", "datatype", "shape"), name=STRING, datatype=STRING, shape=listed({"type": "integer"}))
MODEL = record(
    ("name", "versions", "platform", "inputs", "outputs"),
    name=STRING,
    versions=listed(STRING),
    platform=STRING,
    inputs=listed(TENSOR),
    outputs=listed(TENSOR),
)
CONFIG: Schema = {"type": "object", "required": ["name", "platform", "max_batch_size", "input", "output"]}
_PIXELS: Schema = {"description": "Pixels in row-major order, flat or nested as the shape says.", "type": "array"}
_INPUT = record(
    ("name", "shape", "datatype"),
    name={"type": "string", "enum": ["image"]},
    shape=listed({"type": "integer", "minimum": 1}, minItems=3, maxItems=4),
    datatype={"type": "string", "enum": ["UINT8", "FP32"]},
    parameters=record((), binary_data_size=WHOLE),
    data=_PIXELS,
)
_OUTPUT = record(("name",), name={"type": "string", "enum": list(OUTPUTS)}, parameters=record((), binary_data=BOOL))
INFER = record(
    ("inputs",),
    id={"type": "string", "maxLength": 64},
    inputs=listed(_INPUT, minItems=1, maxItems=1),
    outputs=listed(_OUTPUT, maxItems=len(OUTPUTS)),
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
    shape=listed(WHOLE),
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
    outputs=listed(_ANSWERED),
)
FEEDBACK = record(("id", "labels"), id={"type": "string", "minLength": 1, "maxLength": 64}, labels=listed(WHOLE, minItems=1))
LEARNED = record(("id", "learned"), id=STRING, learned=WHOLE)
INDEX = listed(record(("name", "version", "state", "reason"), name=STRING, version=STRING, state=STRING, reason=STRING))
LOADED = record(("name", "version"), name=STRING, version=STRING)
NOTHING = record(())
_BUILT = msgspec.json.schema_components([NodeView], ref_template="#/components/schemas/{name}")
MESH = listed(_BUILT[0][0])
COMPONENTS = _BUILT[1]

WHY = {
    403: "Not from a page of another site, or not allowed by the mesh.",
    404: "No such version of the model.",
    415: "Another content type or encoding is wanted.",
    500: "The node failed.",
    503: "Busy, starting or leaving; try again after `Retry-After` seconds.",
    504: "No answer within the deadline.",
}


def described(schema: Schema, text: str, *errors: int, binary: bool = False) -> Answers:
    """Return what a route answers: its schema with 200, and errors."""
    told = answers(schema, text, errors, WHY)
    if binary:
        raw = "The JSON, then raw tensors; the header `Inference-Header-Content-Length` says where the JSON ends."
        told[200]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary", "description": raw}}
    return told


def infer_body() -> Schema:
    """Return what is to be classified."""
    raw = "The same JSON, then the raw pixels; the header `Inference-Header-Content-Length` says where the JSON ends."
    told = body(INFER)
    told["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary", "description": raw}}
    return told
