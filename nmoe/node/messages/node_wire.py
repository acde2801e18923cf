"""Nodes' messages: what clients ask and get, cards, status, pings and refusals, as headers and tensors."""

import math
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from nmoe.core.errors import MessageError
from nmoe.node.messages.body import FLOAT32, INT64, MAX_ROWS, MAX_WIDTH, UINT8, Body, lay
from nmoe.node.messages.checks import (
    MAX_DEADLINE_S,
    MAX_EXPERTS,
    MAX_NAMES,
    MAX_WORD,
    count,
    number,
    one_of_each,
    text,
    within,
    word,
)
from nmoe.node.messages.formats import TensorFormat
from nmoe.node.messages.kinds import Header, Kind, Written, kind
from nmoe.node.messages.records import (
    MAX_REASON,
    CardReply,
    CardRequest,
    ExpertCard,
    InferReply,
    InferRequest,
    PingReply,
    PingRequest,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
)
from nmoe.node.view import NodeView

MAX_CLASS_LIST = 128  # characters
SLACK = 1e-3  # by which a rounded probability may be above 1


class _RefusalHeader(Header, frozen=True):
    request: int
    code: RefusalCode
    reason: str
    queue_rows: int


class _InferRequestHeader(Header, frozen=True):
    dtype: Literal["uint8", "float32"]
    shape: tuple[int, int, int, int]
    deadline_s: float
    k: int | None
    identity: str
    trace: str


class _InferReplyHeader(Header, frozen=True):
    rows: int
    classes: int
    k: int
    names: tuple[str, ...]
    degraded: bool
    bytes_sent: int
    bytes_received: int
    seconds: float


class _CardReplyHeader(Header, frozen=True):
    card: ExpertCard
    rows: int
    dim: int


class _EmptyHeader(Header, frozen=True):
    """Nothing to say beyond the kind."""


class _PingReplyHeader(Header, frozen=True):
    queue_rows: int


# Writing


def _write_refusal(message: Refusal) -> Written:
    return _RefusalHeader(message.request, message.code, message.reason, message.queue_rows), ()


def _write_infer_request(message: InferRequest) -> Written:
    dtype = message.images.dtype
    if message.images.ndim != 4 or dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"images must be uint8 or float32 [batch, height, width, channel], got {dtype} {list(message.images.shape)}")
    batch, height, width, channels = message.images.shape
    named: Literal["uint8", "float32"] = "uint8" if dtype == torch.uint8 else "float32"
    header = _InferRequestHeader(named, (batch, height, width, channels), message.deadline_s, message.k, message.identity, message.trace)
    return header, (_array(message.images, UINT8 if dtype == torch.uint8 else FLOAT32),)


def _write_infer_reply(message: InferReply) -> Written:
    (rows, classes), k = message.probabilities.shape, message.experts.shape[1]
    costs = (message.bytes_sent, message.bytes_received, message.seconds)
    header = _InferReplyHeader(rows, classes, k, message.names, message.degraded, *costs)
    tensors = (_array(message.probabilities, FLOAT32), _array(message.labels, INT64))
    return header, (*tensors, _array(message.experts, INT64), _array(message.weights, FLOAT32))


def _write_card_reply(message: CardReply) -> Written:
    rows, dim = message.prototypes.shape
    tensors = lay(TensorFormat.FLOAT32, message.prototypes, strict=True) if rows else ()
    return _CardReplyHeader(message.card, rows, dim), tensors


def _write_status_reply(message: StatusReply) -> Written:
    return message.view, ()


def _write_ping_reply(message: PingReply) -> Written:
    return _PingReplyHeader(message.queue_rows), ()


def _array(tensor: Tensor, kind: "np.dtype[Any]") -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy(), kind)


# Reading


def _read_refusal(header: _RefusalHeader, _: Body) -> Refusal:
    return Refusal(
        request=count(header.request, "request"),
        code=header.code,
        reason=text(header.reason, "reason", MAX_REASON),
        queue_rows=count(header.queue_rows, "queue_rows"),
    )


def _read_infer_request(header: _InferRequestHeader, body: Body) -> InferRequest:
    if header.k is not None:
        number(header.k, "k", 1, MAX_WIDTH)
    number(header.deadline_s, "deadline_s", 0.0, MAX_DEADLINE_S)
    images = body.take(UINT8 if header.dtype == "uint8" else FLOAT32, *header.shape)
    if header.dtype == "float32":
        within(images, "images", 0.0, 1.0)
    return InferRequest(
        images=_tensor(images),
        deadline_s=header.deadline_s,
        k=header.k,
        identity=text(header.identity, "identity", MAX_WORD),
        trace=text(header.trace, "trace", MAX_WORD),
    )


def _read_infer_reply(header: _InferReplyHeader, body: Body) -> InferReply:
    if len(header.names) > MAX_NAMES:
        raise MessageError(f"an answer speaks of at most {MAX_NAMES} experts, not {len(header.names)}", fault="shape")
    names = tuple(word(name, "expert") for name in header.names)
    one_of_each(names, "experts")
    probabilities = body.take(FLOAT32, header.rows, header.classes)
    within(probabilities, "probabilities", 0.0, 1.0 + SLACK)
    labels = body.take(INT64, header.rows)
    within(labels, "labels", 0, header.classes - 1)
    experts = body.take(INT64, header.rows, header.k)
    within(experts, "experts", -1, len(names) - 1)
    weights = body.take(FLOAT32, header.rows, header.k)
    within(weights, "weights", 0.0, 1.0 + SLACK)
    if weights[experts < 0].any():
        raise MessageError("weights must be 0 where no expert stands", fault="number")
    return InferReply(
        probabilities=_tensor(probabilities),
        labels=_tensor(labels),
        experts=_tensor(experts),
        weights=_tensor(weights),
        names=names,
        degraded=header.degraded,
        bytes_sent=count(header.bytes_sent, "bytes_sent"),
        bytes_received=count(header.bytes_received, "bytes_received"),
        seconds=number(header.seconds, "seconds", 0.0, MAX_DEADLINE_S),
    )


def _read_card_reply(header: _CardReplyHeader, body: Body) -> CardReply:
    card = header.card
    word(card.node, "node")
    text(card.version, "version", MAX_WORD)
    text(card.class_list, "class_list", MAX_CLASS_LIST)
    number(len(card.experts), "number of experts", 1, MAX_EXPERTS)
    one_of_each([word(expert, "expert") for expert in card.experts], "experts")
    for what, value in (("num_classes", card.num_classes), ("in_dim", card.in_dim), ("out_dim", card.out_dim)):
        number(value, what, 1, MAX_WIDTH)
    if card.classes:
        number(min(card.classes), "classes", 0, card.num_classes - 1)
        number(max(card.classes), "classes", 0, card.num_classes - 1)
    if len(set(card.classes)) != len(card.classes):
        raise MessageError("classes must each stand once", fault="number")
    if not card.formats or len(set(card.formats)) != len(card.formats):
        raise MessageError("formats must be at least one, each once", fault="number")
    number(card.max_rows, "max_rows", 1, MAX_ROWS)
    number(card.rows_per_s, "rows_per_s", 0.0, 1e12)
    return CardReply(card=card, prototypes=_read_prototypes(header, body))


def _read_prototypes(header: _CardReplyHeader, body: Body) -> np.ndarray:
    if header.rows == 0:
        number(header.dim, "dim", 0, MAX_WIDTH)
        return np.zeros((0, header.dim), dtype=np.float32)
    if header.rows != len(header.card.classes):
        raise MessageError(f"{len(header.card.classes)} prototypes wanted, one per class, {header.rows} came", fault="shape")
    return body.rows(TensorFormat.FLOAT32, "prototypes", header.rows, header.dim, strict=True)


def _read_status_reply(header: NodeView, _: Body) -> StatusReply:
    word(header.node, "node")
    left: list[Any] = [msgspec.to_builtins(header)]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise MessageError("a view's numbers must be finite", fault="number")
    return StatusReply(view=header)


def _read_ping_reply(header: _PingReplyHeader, _: Body) -> PingReply:
    return PingReply(queue_rows=count(header.queue_rows, "queue_rows"))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())  # ours to write to, and aligned


def _empty(number: int, message: CardRequest | StatusRequest | PingRequest) -> Kind:
    header = _EmptyHeader()
    return kind(number, type(message), _EmptyHeader, lambda _: (header, ()), lambda _header, _body: message)


KINDS = (
    kind(3, Refusal, _RefusalHeader, _write_refusal, _read_refusal),
    kind(4, InferRequest, _InferRequestHeader, _write_infer_request, _read_infer_request),
    kind(5, InferReply, _InferReplyHeader, _write_infer_reply, _read_infer_reply, max_header_bytes=512 << 10),
    _empty(6, StatusRequest()),
    kind(7, StatusReply, NodeView, _write_status_reply, _read_status_reply, max_header_bytes=1 << 20),
    _empty(8, CardRequest()),
    kind(9, CardReply, _CardReplyHeader, _write_card_reply, _read_card_reply, max_header_bytes=512 << 10),
    _empty(10, PingRequest()),
    kind(11, PingReply, _PingReplyHeader, _write_ping_reply, _read_ping_reply),
)
