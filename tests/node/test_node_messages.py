"""Messages survive the wire unchanged, and nothing else gets through."""

import struct

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.errors import MessageError
from nmoe.node.messages import (
    MAX_MESSAGE_BYTES,
    ExpertReply,
    ExpertRequest,
    InferReply,
    InferRequest,
    Message,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
    decode,
    decode_as,
    encode,
    refusal,
)

MESSAGES: list[Message] = [
    ExpertRequest(request=7, origin="node-0", features=torch.randn(3, 5), deadline_s=0.25),
    ExpertReply(request=7, logits=torch.randn(3, 10), compute_s=0.001),
    refusal(RefusalCode.BUSY, "two\nlines", request=7),
    InferRequest(images=torch.randint(0, 256, (2, 8, 8, 1), dtype=torch.uint8), deadline_s=1.0, k=None),
    InferRequest(images=torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8), deadline_s=1.0, k=4),
    InferReply(
        probabilities=torch.rand(2, 10),
        labels=torch.tensor([3, 9]),
        experts=torch.tensor([[0, 2], [1, -1]]),
        weights=torch.tensor([[0.5, 0.5], [1.0, 0.0]]),
        bytes_sent=1,
        bytes_received=2,
        seconds=0.5,
    ),
    StatusRequest(),
    StatusReply(node="node-0", peers=("node-1", "node-2"), answered=1, degraded=2, refused=3, experts_served=4),
]


def same(one: Message, other: Message) -> bool:
    names = type(one).__dataclass_fields__
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return type(one) is type(other) and all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    assert same(decode(encode(message)), message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_truncation_and_extension_is_refused(message: Message) -> None:
    data = encode(message)
    for length in range(len(data)):
        with pytest.raises(MessageError):
            decode(data[:length])
    with pytest.raises(MessageError, match="too long"):
        decode(data + b"\0")


def only_message_error(data: bytes) -> None:
    try:
        decode(data)
    except MessageError as error:
        assert "\n" not in str(error)  # noqa: PT017  # it may as well be a message


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    only_message_error(data)


@given(kind=st.integers(0, 255), header=st.binary(max_size=60), body=st.binary(max_size=60))
def test_arbitrary_headers_raise_nothing_else(kind: int, header: bytes, body: bytes) -> None:
    only_message_error(struct.pack("<4sBBI", b"NMOE", 1, kind, len(header)) + header + body)


number = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(), st.none(), st.text(max_size=5))
fields = st.recursive(number, lambda inner: st.lists(inner, max_size=5), max_leaves=12)


@given(kind=st.integers(1, 7), header=st.lists(fields, max_size=7), body=st.binary(max_size=60))
def test_arbitrary_fields_raise_nothing_else(kind: int, header: list[object], body: bytes) -> None:
    packed = msgspec.msgpack.encode(header)
    only_message_error(struct.pack("<4sBBI", b"NMOE", 1, kind, len(packed)) + packed + body)


@given(st.sampled_from(MESSAGES), st.data())
def test_flipped_bytes_raise_nothing_else(message: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    only_message_error(bytes(raw))


def test_other_version_is_named() -> None:
    data = bytearray(encode(StatusRequest()))
    data[4] = 9
    with pytest.raises(MessageError, match="version 9, this nmoe reads version 1"):
        decode(bytes(data))


def test_oversized_is_refused() -> None:
    with pytest.raises(MessageError, match="at most"):
        decode(b"NMOE" + bytes(MAX_MESSAGE_BYTES))


def test_a_huge_shape_is_refused_before_memory_is_taken() -> None:
    packed = msgspec.msgpack.encode([1, "node-0", 2**62, 2**62, 1.0])
    with pytest.raises(MessageError, match="shape"):
        decode(struct.pack("<4sBBI", b"NMOE", 1, 1, len(packed)) + packed)


def test_wanted_kind_or_refusal() -> None:
    assert isinstance(decode_as(encode(refusal(RefusalCode.LATE, "late")), ExpertReply), Refusal)
    with pytest.raises(MessageError, match="ExpertReply wanted, StatusRequest came"):
        decode_as(encode(StatusRequest()), ExpertReply)
