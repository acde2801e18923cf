"""Experts' messages: requests for outputs and for derivatives, and their replies, as headers and tensors."""

import numpy as np

from nmoe.core.errors import MessageError
from nmoe.node.messages.body import INT32, MAX_ROWS, Body, lay
from nmoe.node.messages.checks import MAX_DEADLINE_S, MAX_EXPERTS, MAX_WORD, count, number, one_of_each, text, word
from nmoe.node.messages.formats import TensorFormat
from nmoe.node.messages.kinds import Header, Written, kind
from nmoe.node.messages.records import ExpertReply, ExpertRequest, ExpertRows, GradientReply, GradientRequest


class _Part(Header, frozen=True):
    expert: str
    version: str
    rows: int | None  # None: all, and no indices travel


class _ExpertRequestHeader(Header, frozen=True):
    request: int
    origin: str
    deadline_s: float
    format: TensorFormat
    rows: int
    dim: int
    trace: str
    experts: tuple[_Part, ...]


class _ExpertReplyHeader(Header, frozen=True):
    request: int
    format: TensorFormat
    pairs: int
    width: int
    wait_s: float
    compute_s: float
    queue_rows: int
    draining: bool


class _GradientRequestHeader(Header, frozen=True):
    forward: _ExpertRequestHeader
    width: int


class _GradientReplyHeader(Header, frozen=True):
    request: int
    rows: int
    dim: int


def _write_expert_request(message: ExpertRequest) -> Written:
    features, form = message.features, message.format
    parts = tuple(_Part(part.expert, part.version, None if part.rows is None else len(part.rows)) for part in message.experts)
    rows, dim = features.shape
    header = _ExpertRequestHeader(message.request, message.origin, message.deadline_s, form, rows, dim, message.trace, parts)
    indices = [np.ascontiguousarray(part.rows, INT32) for part in message.experts if part.rows is not None]
    body = lay(form, features, strict=True)
    if not indices:
        return header, body
    return header, (*body, indices[0] if len(indices) == 1 else np.concatenate(indices))


def _read_expert_request(header: _ExpertRequestHeader, body: Body) -> ExpertRequest:
    features = body.rows(header.format, "features", header.rows, header.dim, strict=True)
    return ExpertRequest(
        request=count(header.request, "request"),
        origin=word(header.origin, "origin"),
        deadline_s=number(header.deadline_s, "deadline_s", 0.0, MAX_DEADLINE_S),
        format=header.format,
        experts=_read_parts(header.experts, header.rows, body),
        features=features,
        trace=text(header.trace, "trace", MAX_WORD),
    )


def _read_parts(parts: tuple[_Part, ...], rows: int, body: Body) -> tuple[ExpertRows, ...]:
    if not 1 <= len(parts) <= MAX_EXPERTS:
        raise MessageError(f"a request is for 1 to {MAX_EXPERTS} experts, not {len(parts)}", fault="shape")
    if len(parts) > 1:
        one_of_each([part.expert for part in parts], "experts")
    pairs = indexed = 0
    for part in parts:
        if part.rows is None:
            pairs += rows
        elif not 1 <= part.rows <= rows:
            raise MessageError(f"an expert gets 1 to {rows} of the rows, not {part.rows}", fault="shape")
        else:
            pairs += part.rows
            indexed += part.rows
    if pairs > MAX_ROWS:
        raise MessageError(f"a request is for at most {MAX_ROWS} outputs, not {pairs}", fault="shape")
    indices = body.take(INT32, indexed) if indexed else None  # [indexed]
    result, start = [], 0
    for part in parts:
        mine = None
        if part.rows is not None and indices is not None:
            mine = indices[start : start + part.rows]
            start += part.rows
            if mine[0] < 0 or mine[-1] >= rows or not (mine[1:] > mine[:-1]).all():
                raise MessageError(f"an expert's rows must rise from 0 to at most {rows - 1}, each once", fault="number")
        result.append(ExpertRows(expert=word(part.expert, "expert"), version=text(part.version, "version", MAX_WORD), rows=mine))
    return tuple(result)


def _write_expert_reply(message: ExpertReply) -> Written:
    pairs, width = message.outputs.shape
    load = (message.wait_s, message.compute_s, message.queue_rows, message.draining)
    header = _ExpertReplyHeader(message.request, message.format, pairs, width, *load)
    return header, lay(message.format, message.outputs, strict=False)


def _read_expert_reply(header: _ExpertReplyHeader, body: Body) -> ExpertReply:
    return ExpertReply(
        request=count(header.request, "request"),
        format=header.format,
        outputs=body.rows(header.format, "outputs", header.pairs, header.width, strict=False),
        wait_s=number(header.wait_s, "wait_s", 0.0, MAX_DEADLINE_S),
        compute_s=number(header.compute_s, "compute_s", 0.0, MAX_DEADLINE_S),
        queue_rows=count(header.queue_rows, "queue_rows"),
        draining=header.draining,
    )


def _write_gradient_request(message: GradientRequest) -> Written:
    forward, tensors = _write_expert_request(message.forward)
    assert isinstance(forward, _ExpertRequestHeader)
    if len(message.gradients) != message.forward.num_pairs:
        raise ValueError(f"{message.forward.num_pairs} rows of gradients wanted, got {len(message.gradients)}")
    header = _GradientRequestHeader(forward, message.gradients.shape[1])
    return header, (*tensors, *lay(TensorFormat.FLOAT32, message.gradients, strict=True))


def _read_gradient_request(header: _GradientRequestHeader, body: Body) -> GradientRequest:
    forward = _read_expert_request(header.forward, body)
    gradients = body.rows(TensorFormat.FLOAT32, "gradients", forward.num_pairs, header.width, strict=True)
    return GradientRequest(forward=forward, gradients=gradients)


def _write_gradient_reply(message: GradientReply) -> Written:
    header = _GradientReplyHeader(message.request, *message.gradients.shape)
    return header, lay(TensorFormat.FLOAT32, message.gradients, strict=False)


def _read_gradient_reply(header: _GradientReplyHeader, body: Body) -> GradientReply:
    gradients = body.rows(TensorFormat.FLOAT32, "gradients", header.rows, header.dim, strict=False)
    return GradientReply(request=count(header.request, "request"), gradients=gradients)


KINDS = (
    kind(1, ExpertRequest, _ExpertRequestHeader, _write_expert_request, _read_expert_request),
    kind(2, ExpertReply, _ExpertReplyHeader, _write_expert_reply, _read_expert_reply),
    kind(12, GradientRequest, _GradientRequestHeader, _write_gradient_request, _read_gradient_request),
    kind(13, GradientReply, _GradientReplyHeader, _write_gradient_reply, _read_gradient_reply),
)
