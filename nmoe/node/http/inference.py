"""Inference request: from the body of ``POST /v2/models/nmoe/infer`` to images, or to one line that says what is wrong with it.

Open Inference Protocol version 2 (KServe), with the binary tensor data extension: JSON first, raw little-endian bytes after it.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from nmoe.http import Rejected, decode_json, quoted
from nmoe.node.messages import MAX_DEADLINE_S, MAX_EXPERTS, MAX_ROWS

DEFAULT_DEADLINE_S = 1.0
OUTPUTS = ("probabilities", "label", "experts", "weights")
MAX_IDENTITY = 64  # characters

Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class InferCall:
    """What one request asks for.

    Attributes:
        images: uint8, or float32 between 0 and 1.
        deadline_s: from now.
        k: experts per sample, or None.
        identity: the request's id, or empty.
        outputs: which outputs to return, and whether each as raw bytes.
    """

    images: Shaped[Tensor, "batch height width channel"]
    deadline_s: float
    k: int | None
    identity: str
    outputs: tuple[tuple[str, bool], ...]


_ABSENT = msgspec.Raw()


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Value] = {}
    data: msgspec.Raw = _ABSENT


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Value] = {}


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] = []
    parameters: dict[str, Value] = {}


_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_KINDS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
_NUMBERS: dict[tuple[str, int], "msgspec.json.Decoder[Any]"] = {  # by datatype and depth of nesting: flat, without and with channels
    ("UINT8", 1): msgspec.json.Decoder(list[_Byte]),
    ("UINT8", 3): msgspec.json.Decoder(list[list[list[_Byte]]]),
    ("UINT8", 4): msgspec.json.Decoder(list[list[list[list[_Byte]]]]),
    ("FP32", 1): msgspec.json.Decoder(list[_Share]),
    ("FP32", 3): msgspec.json.Decoder(list[list[list[_Share]]]),
    ("FP32", 4): msgspec.json.Decoder(list[list[list[list[_Share]]]]),
}
_OPENING = re.compile(rb"(?:\s*\[)*")
_request_decoder = msgspec.json.Decoder(_Request)


def read_call(body: bytearray, header_length: str | None, image_shape: tuple[int, int, int]) -> InferCall:
    """Return what a request asks for.

    Args:
        body: JSON, and what follows it. The images may share its memory.
        header_length: the header ``Inference-Header-Content-Length``: how many bytes are JSON; None when all are.
        image_shape: height, width and channels of the model's images.

    Raises:
        Rejected: when anything about the request is wrong.
    """
    end = _json_length(body, header_length)
    request = decode_json(_request_decoder, memoryview(body)[:end])
    if len(request.inputs) != 1 or request.inputs[0].name != "image":
        raise Rejected(400, f"one input 'image' wanted, got {quoted([one.name for one in request.inputs])}")
    identity = request.id or ""
    if len(identity) > MAX_IDENTITY or not identity.isprintable():
        raise Rejected(400, f"an id of at most {MAX_IDENTITY} printable characters wanted, got {quoted(identity)}")
    deadline_s, k, binary = _parameters(request.parameters)
    return InferCall(
        images=_images(request.inputs[0], body, end, image_shape),
        deadline_s=deadline_s,
        k=k,
        identity=identity,
        outputs=_outputs(request.outputs, binary=binary),
    )


def _json_length(body: bytearray, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20 and 0 < int(header_length) <= len(body)):
        raise Rejected(400, f"Inference-Header-Content-Length from 1 to the body's {len(body)} bytes wanted, got {quoted(header_length)}")
    return int(header_length)


def _images(given: _Input, body: bytearray, end: int, image_shape: tuple[int, int, int]) -> Tensor:
    shape = tuple(given.shape)
    flat = image_shape[2] == 1 and len(shape) == 3  # one channel may be left out
    if shape[1:] != (image_shape[:2] if flat else image_shape):
        raise Rejected(400, f"shape [batch, {', '.join(map(str, image_shape))}] wanted for 'image', got {quoted(given.shape)}")
    if not 1 <= shape[0] <= MAX_ROWS:
        raise Rejected(400, f"a batch of 1 to {MAX_ROWS} images wanted, got {quoted(shape[0])}")
    if given.datatype not in _KINDS:
        raise Rejected(400, f"datatype UINT8 or FP32 wanted for 'image', got {quoted(given.datatype)}")
    size = given.parameters.pop("binary_data_size", None)
    if given.parameters:
        raise Rejected(400, f"no parameter but binary_data_size wanted for 'image', got {quoted(sorted(given.parameters))}")
    if (size is None) == (given.data == _ABSENT):
        raise Rejected(400, "either data or binary_data_size wanted for 'image', got both or neither")
    if given.data == _ABSENT:
        array = _raw_pixels(given.datatype, shape, size, body, end)
    elif end != len(body):
        raise Rejected(400, f"nothing wanted after the JSON, got {len(body) - end} bytes")
    else:
        array = _listed_pixels(given.datatype, shape, given.data)
    return torch.from_numpy(array.reshape((shape[0], *image_shape)))


def _raw_pixels(datatype: str, shape: tuple[int, ...], size: Value | None, body: bytearray, end: int) -> np.ndarray:
    kind, count = _KINDS[datatype], math.prod(shape)
    wanted = count * kind.itemsize
    if type(size) is not int or size != wanted:
        raise Rejected(400, f"binary_data_size {wanted} wanted for {datatype} {list(shape)}, got {quoted(size)}")
    if len(body) - end != wanted:
        raise Rejected(400, f"{wanted} bytes wanted after the JSON, got {len(body) - end}")
    array: np.ndarray = np.frombuffer(body, kind, count, end)
    if not array.flags.aligned:
        array = array.copy()
    if datatype == "FP32":
        low, high = float(array.min()), float(array.max())  # NaN when there is one
        if not (low >= 0 and high <= 1):
            raise Rejected(400, f"FP32 pixels between 0 and 1 wanted, got {low:g} to {high:g}")
    return array


def _listed_pixels(datatype: str, shape: tuple[int, ...], data: msgspec.Raw) -> np.ndarray:
    text = bytes(data)
    wanted = math.prod(shape)
    came = text.count(b",") + 1  # nested or flat; counted first, so that what lies in memory is bounded by the shape
    if came != wanted:
        raise Rejected(400, f"{wanted} numbers wanted for shape {list(shape)}, got {came}")
    opening = _OPENING.match(text)
    depth = opening[0].count(b"[") if opening else 0
    if depth not in {1, len(shape)}:
        raise Rejected(400, f"data as a flat list, or lists nested as shape {list(shape)} says, wanted; got {depth} levels")
    numbers = decode_json(_NUMBERS[datatype, depth], text)
    try:
        array = np.array(numbers, _KINDS[datatype])
    except ValueError as error:
        raise Rejected(400, f"data nested as shape {list(shape)} says wanted, got lists of unequal length") from error
    if array.shape != (shape if depth > 1 else (wanted,)):
        raise Rejected(400, f"data of shape {list(shape)} wanted, got {list(array.shape)}")
    return array


def _parameters(given: dict[str, Value]) -> tuple[float, int | None, bool]:
    """Return the deadline, k, and whether outputs are raw bytes unless they say otherwise."""
    unknown = set(given) - {"deadline_ms", "k", "binary_data_output", "timeout"}
    if unknown:
        raise Rejected(400, f"parameters deadline_ms, k, binary_data_output or timeout wanted, got {quoted(sorted(unknown))}")
    deadline_s = DEFAULT_DEADLINE_S
    for name, unit_s in (("timeout", 1e-6), ("deadline_ms", 1e-3)):  # timeout is Triton's; deadline_ms goes before it
        if name in given:
            value = given[name]
            if isinstance(value, bool | str) or not 0 < value * unit_s <= MAX_DEADLINE_S:
                raise Rejected(400, f"{name} a number above 0 and at most {MAX_DEADLINE_S / unit_s:.0f} wanted, got {quoted(value)}")
            deadline_s = value * unit_s
    k = given.get("k")
    if k is not None and (type(k) is not int or not 1 <= k <= MAX_EXPERTS):
        raise Rejected(400, f"k a whole number from 1 to {MAX_EXPERTS} wanted, got {quoted(k)}")
    binary = given.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise Rejected(400, f"binary_data_output true or false wanted, got {quoted(binary)}")
    return deadline_s, k, binary


def _outputs(given: list[_Output], *, binary: bool) -> tuple[tuple[str, bool], ...]:
    if not given:
        return tuple((name, binary) for name in OUTPUTS)
    names = [one.name for one in given]
    if len(set(names)) != len(names) or not set(names) <= set(OUTPUTS):
        raise Rejected(400, f"outputs among {', '.join(OUTPUTS)}, each once, wanted, got {quoted(names)}")
    wanted = []
    for one in given:
        raw = one.parameters.pop("binary_data", binary)
        if one.parameters or not isinstance(raw, bool):
            raise Rejected(400, f"no parameter but binary_data, true or false, wanted for output {one.name!r}")
        wanted.append((one.name, raw))
    return tuple(wanted)
