"""Answer: from a reply of the mesh to the body of the Open Inference Protocol's response."""

import struct
from typing import Any

import msgspec
import numpy as np

from nmoe.node.http.inference import InferCall
from nmoe.node.messages import InferReply

_length = struct.Struct("<I")


def write_answer(reply: InferReply, call: InferCall, version: str) -> tuple[bytes, int | None]:
    """Return a response's body, and how many bytes of it are JSON when raw bytes follow, else None.

    Args:
        reply: the classified batch.
        call: what was asked for.
        version: of the model.
    """
    outputs, tails = [], []
    for name, binary in call.outputs:
        output, tail = _raw(name, reply) if binary else (_listed(name, reply), b"")
        outputs.append(output)
        tails.append(tail)
    answer: dict[str, Any] = {"model_name": "nmoe", "model_version": version}
    if call.identity:
        answer["id"] = call.identity
    answer["parameters"] = {
        "degraded": reply.degraded,
        "bytes_sent": reply.bytes_sent,
        "bytes_received": reply.bytes_received,
        "seconds": reply.seconds,
    }
    answer["outputs"] = outputs
    head = msgspec.json.encode(answer)
    if not any(binary for _, binary in call.outputs):
        return head, None
    return b"".join((head, *tails)), len(head)


def _values(name: str, reply: InferReply) -> tuple[str, np.ndarray]:
    """Return an output's datatype and its numbers."""
    if name == "probabilities":
        return "FP32", reply.probabilities.detach().numpy().astype("<f4", copy=False)
    if name == "label":
        return "INT64", reply.labels.numpy().astype("<i8", copy=False)
    if name == "weights":
        return "FP32", reply.weights.detach().numpy().astype("<f4", copy=False)
    return "BYTES", reply.experts.numpy()


def _names(reply: InferReply) -> list[str]:
    """Return who stands behind each sample, row by row; an index of -1 takes the last, which is nobody."""
    names = (*reply.names, "")
    return [names[index] for index in reply.experts.flatten().tolist()]


def _listed(name: str, reply: InferReply) -> dict[str, Any]:
    datatype, values = _values(name, reply)
    data = _names(reply) if datatype == "BYTES" else values.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def _raw(name: str, reply: InferReply) -> tuple[dict[str, Any], bytes]:
    datatype, values = _values(name, reply)
    if datatype == "BYTES":
        words = [word.encode() for word in _names(reply)]
        tail = b"".join(part for word in words for part in (_length.pack(len(word)), word))
    else:
        tail = values.tobytes()
    parameters = {"binary_data_size": len(tail)}
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "parameters": parameters}, tail
