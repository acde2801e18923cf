"""Messages: the records nodes and clients exchange, and their bytes.

Layout: ``NMOE``, version (1 byte), kind (1 byte), length of the header (4 bytes, little-endian), header (MessagePack array, its fields in
the order of the record's ``_Header`` struct), then the tensors' raw little-endian bytes, one after the other. Nothing is ever unpickled.
``decode`` either returns a record whose shapes and numbers hold together or raises ``MessageError`` with one line.

Departure from a schema language: fields are positional, so a change of any header needs a new ``VERSION``; that is what the byte is for.
"""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nmoe.core.errors import MessageError

MAGIC = b"NMOE"
VERSION = 1
MAX_MESSAGE_BYTES = 64 << 20
MAX_ROWS = 1 << 16
MAX_WIDTH = 1 << 16
MAX_DEADLINE_S = 3600.0
MAX_REASON = 200  # characters
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_PREFIX = struct.Struct("<4sBBI")
_FLOAT32, _UINT8, _INT64 = np.dtype("<f4"), np.dtype("u1"), np.dtype("<i8")


class RefusalCode(StrEnum):
    """Why a node did not do what it was asked."""

    BUSY = "busy"
    BAD_SHAPE = "bad shape"
    LATE = "late"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRequest:
    """Features for a peer's expert; ``deadline_s`` is what is left of the origin's time when this is sent."""

    request: int
    origin: str
    features: Float[Tensor, "rows dim"]
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReply:
    """An expert's logits for the rows it was sent, and how long it computed."""

    request: int
    logits: Float[Tensor, "rows classes"]
    compute_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The answer to anything that was not done; ``request`` is 0 when the request was not read."""

    request: int
    code: RefusalCode
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """Images for a node to classify together with its peers; ``k`` None takes the node's own."""

    images: UInt8[Tensor, "batch height width channel"]
    deadline_s: float
    k: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferReply:
    """A classified batch.

    Attributes:
        probabilities: class probabilities.
        labels: the most probable class of each sample.
        experts: the experts behind each sample, as indices into the card's ``experts``; -1 where fewer than k answered.
        weights: their weights, adding up to 1 in each row; 0 where absent.
        bytes_sent, bytes_received: whole messages from this node to its peers and back, for this request.
        seconds: from the request's arrival at the node to its answer.
    """

    probabilities: Float[Tensor, "batch classes"]
    labels: Int[Tensor, " batch"]
    experts: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]
    bytes_sent: int
    bytes_received: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """Ask a node whom it sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReply:
    """A node's view: the neighbours it can reach now, and its counts since it started.

    Attributes:
        node: its name.
        peers: reachable neighbours, sorted.
        answered: infer requests answered.
        degraded: those of them answered without at least one chosen expert, or with fewer than k.
        refused: infer requests refused.
        experts_served: rows computed for peers.
    """

    node: str
    peers: tuple[str, ...]
    answered: int
    degraded: int
    refused: int
    experts_served: int


Message = ExpertRequest | ExpertReply | Refusal | InferRequest | InferReply | StatusRequest | StatusReply


class _ExpertRequestHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    request: int
    origin: str
    rows: int
    dim: int
    deadline_s: float


class _ExpertReplyHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    request: int
    rows: int
    classes: int
    compute_s: float


class _RefusalHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    request: int
    code: RefusalCode
    reason: str


class _InferRequestHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    shape: tuple[int, int, int, int]
    deadline_s: float
    k: int | None


class _InferReplyHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    rows: int
    classes: int
    k: int
    bytes_sent: int
    bytes_received: int
    seconds: float


class _StatusRequestHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    pass


class _StatusReplyHeader(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    node: str
    peers: tuple[str, ...]
    answered: int
    degraded: int
    refused: int
    experts_served: int


class _Body:
    """Takes tensors off the end of a message, front to back."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def take(self, kind: "np.dtype[Any]", *shape: int) -> Tensor:
        if not all(1 <= size <= limit for size, limit in zip(shape, (MAX_ROWS, MAX_WIDTH, MAX_WIDTH, MAX_WIDTH), strict=False)):
            raise MessageError(f"a tensor of shape {shape} is not one a message may carry")
        count = math.prod(shape)
        end = self.offset + count * kind.itemsize
        if end > len(self.data):
            raise MessageError(f"message is cut off: {end} bytes wanted, {len(self.data)} came")
        array = np.frombuffer(self.data, kind, count, self.offset).reshape(shape).copy()  # the copy is ours to write to, and aligned
        self.offset = end
        return torch.from_numpy(array)

    def end(self) -> None:
        if self.offset != len(self.data):
            raise MessageError(f"message is too long: {self.offset} bytes wanted, {len(self.data)} came")


def check_name(name: str, what: str) -> str:
    """Return a node's or mesh's name, which must be one word of letters, digits, ``_`` and ``-``.

    Raises:
        ValueError: when it is not.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{what} must be 1 to 64 letters, digits, '_' or '-', got {name!r}")
    return name


def encode(message: Message) -> bytes:
    """Return a record's bytes.

    Raises:
        ValueError: when it is larger than ``MAX_MESSAGE_BYTES``.
    """
    kind, header, tensors = _parts(message)
    packed = _encoder.encode(header)
    data = b"".join([_PREFIX.pack(MAGIC, VERSION, kind, len(packed)), packed, *(_raw(tensor) for tensor in tensors)])
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, this one would have {len(data)}")
    return data


def decode(data: bytes) -> Message:
    """Return the record in these bytes.

    Raises:
        MessageError: when they are not one whole message of this version.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, {len(data)} came")
    if len(data) < _PREFIX.size:
        raise MessageError(f"message is cut off: {_PREFIX.size} bytes wanted, {len(data)} came")
    magic, version, kind, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise MessageError("not a message of nmoe")
    if version != VERSION:
        raise MessageError(f"message version {version}, this nmoe reads version {VERSION}")
    if kind not in _READERS:
        raise MessageError(f"unknown message kind {kind}")
    start = _PREFIX.size + length
    if start > len(data):
        raise MessageError(f"message is cut off: a header of {length} bytes wanted, {len(data) - _PREFIX.size} came")
    decoder, read = _READERS[kind]
    try:
        header = decoder.decode(data[_PREFIX.size : start])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"message header is damaged: {' '.join(str(error).split())}") from error
    body = _Body(data, start)
    message = read(header, body)
    body.end()
    return message


_Wanted = TypeVar("_Wanted", bound=Message)


def decode_as(data: bytes, wanted: type[_Wanted]) -> _Wanted | Refusal:
    """Return the record in these bytes, which must be of one kind or a refusal.

    Raises:
        MessageError: when they are anything else.
    """
    message = decode(data)
    if isinstance(message, wanted | Refusal):
        return message
    raise MessageError(f"{wanted.__name__} wanted, {type(message).__name__} came")


def refusal(code: RefusalCode, reason: str, *, request: int = 0) -> Refusal:
    """Return a refusal whose reason is one line of bounded length."""
    return Refusal(request=request, code=code, reason=" ".join(reason.split())[:MAX_REASON])


def _parts(message: Message) -> tuple[int, msgspec.Struct, tuple[Tensor, ...]]:
    match message:
        case ExpertRequest():
            rows, dim = message.features.shape
            header: msgspec.Struct = _ExpertRequestHeader(message.request, message.origin, rows, dim, message.deadline_s)
            return 1, header, (message.features.to(torch.float32),)
        case ExpertReply():
            rows, classes = message.logits.shape
            return 2, _ExpertReplyHeader(message.request, rows, classes, message.compute_s), (message.logits.to(torch.float32),)
        case Refusal():
            return 3, _RefusalHeader(message.request, message.code, message.reason), ()
        case InferRequest():
            batch, height, width, channels = message.images.shape
            return 4, _InferRequestHeader((batch, height, width, channels), message.deadline_s, message.k), (message.images,)
        case InferReply():
            (rows, classes), k = message.probabilities.shape, message.experts.shape[1]
            header = _InferReplyHeader(rows, classes, k, message.bytes_sent, message.bytes_received, message.seconds)
            return 5, header, (message.probabilities, message.labels, message.experts, message.weights)
        case StatusRequest():
            return 6, _StatusRequestHeader(), ()
        case StatusReply():
            counts = (message.answered, message.degraded, message.refused, message.experts_served)
            return 7, _StatusReplyHeader(message.node, message.peers, *counts), ()


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def _number(value: float, what: str, low: float, high: float) -> float:
    if not low <= value <= high:  # false for NaN as well
        raise MessageError(f"{what} must be between {low} and {high}, got {value}")
    return value


def _count(value: int, what: str) -> int:
    return int(_number(value, what, 0, 2**63 - 1))


def _word(name: str, what: str) -> str:
    if NAME.fullmatch(name) is None:
        raise MessageError(f"{what} must be 1 to 64 letters, digits, '_' or '-'")
    return name


def _read_expert_request(header: _ExpertRequestHeader, body: _Body) -> ExpertRequest:
    return ExpertRequest(
        request=_count(header.request, "request"),
        origin=_word(header.origin, "origin"),
        features=body.take(_FLOAT32, header.rows, header.dim),
        deadline_s=_number(header.deadline_s, "deadline_s", 0, MAX_DEADLINE_S),
    )


def _read_expert_reply(header: _ExpertReplyHeader, body: _Body) -> ExpertReply:
    return ExpertReply(
        request=_count(header.request, "request"),
        logits=body.take(_FLOAT32, header.rows, header.classes),
        compute_s=_number(header.compute_s, "compute_s", 0, MAX_DEADLINE_S),
    )


def _read_refusal(header: _RefusalHeader, _: _Body) -> Refusal:
    if len(header.reason) > MAX_REASON or header.reason != " ".join(header.reason.split()):
        raise MessageError(f"a refusal's reason is one line of at most {MAX_REASON} characters")
    return Refusal(request=_count(header.request, "request"), code=header.code, reason=header.reason)


def _read_infer_request(header: _InferRequestHeader, body: _Body) -> InferRequest:
    if header.k is not None:
        _number(header.k, "k", 1, MAX_WIDTH)
    _number(header.deadline_s, "deadline_s", 0, MAX_DEADLINE_S)
    return InferRequest(images=body.take(_UINT8, *header.shape), deadline_s=header.deadline_s, k=header.k)


def _read_infer_reply(header: _InferReplyHeader, body: _Body) -> InferReply:
    return InferReply(
        probabilities=body.take(_FLOAT32, header.rows, header.classes),
        labels=body.take(_INT64, header.rows),
        experts=body.take(_INT64, header.rows, header.k),
        weights=body.take(_FLOAT32, header.rows, header.k),
        bytes_sent=_count(header.bytes_sent, "bytes_sent"),
        bytes_received=_count(header.bytes_received, "bytes_received"),
        seconds=_number(header.seconds, "seconds", 0, MAX_DEADLINE_S),
    )


def _read_status_request(_header: _StatusRequestHeader, _: _Body) -> StatusRequest:
    return StatusRequest()


def _read_status_reply(header: _StatusReplyHeader, _: _Body) -> StatusReply:
    return StatusReply(
        node=_word(header.node, "node"),
        peers=tuple(_word(peer, "peer") for peer in header.peers),
        answered=_count(header.answered, "answered"),
        degraded=_count(header.degraded, "degraded"),
        refused=_count(header.refused, "refused"),
        experts_served=_count(header.experts_served, "experts_served"),
    )


_encoder = msgspec.msgpack.Encoder()
_READERS: dict[int, tuple[msgspec.msgpack.Decoder[Any], Callable[[Any, _Body], Message]]] = {
    1: (msgspec.msgpack.Decoder(_ExpertRequestHeader), _read_expert_request),
    2: (msgspec.msgpack.Decoder(_ExpertReplyHeader), _read_expert_reply),
    3: (msgspec.msgpack.Decoder(_RefusalHeader), _read_refusal),
    4: (msgspec.msgpack.Decoder(_InferRequestHeader), _read_infer_request),
    5: (msgspec.msgpack.Decoder(_InferReplyHeader), _read_infer_reply),
    6: (msgspec.msgpack.Decoder(_StatusRequestHeader), _read_status_request),
    7: (msgspec.msgpack.Decoder(_StatusReplyHeader), _read_status_reply),
}
