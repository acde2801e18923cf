"""Payloads: exact size, exact round trip, and no bytes that do anything but raise MessageError."""

import contextlib
import struct
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nmoe.core.errors import MessageError
from nmoe.federate import Payload
from nmoe.federate.payload import DTYPES, prefixed, select

facts = st.dictionaries(
    st.text(max_size=6),
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(max_size=6),
        st.booleans(),
        st.lists(st.integers(-9, 9), max_size=3),
        st.lists(st.text(max_size=3), max_size=3),
    ),
    max_size=4,
)


@st.composite
def tensor_sets(draw):
    tensors = {}
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        seed = draw(st.integers(0, 99))
        values = torch.randint(-5, 5, shape, generator=torch.Generator().manual_seed(seed)) * 0.37
        tensor = values.to(DTYPES[dtype])
        if draw(st.booleans()) and tensor.ndim == 2:
            tensor = tensor.T
        tensors[name] = tensor
    return tensors


def same(one: Payload, other: Payload) -> bool:
    return (
        one.facts == other.facts
        and list(one.tensors) == list(other.tensors)
        and all(
            tensor.dtype == other.tensors[name].dtype
            and tensor.shape == other.tensors[name].shape
            and torch.equal(tensor, other.tensors[name])
            for name, tensor in one.tensors.items()
        )
    )


def raw(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) for tensor in tensors.values())


def encoded(facts: Any, rows: Any, data: bytes = b"") -> bytes:
    """Encode by hand, from the layout in the file's docstring."""
    head = msgspec.msgpack.encode([facts, rows])
    return struct.pack("<I", len(head)) + head + data


@given(tensor_sets(), facts)
def test_round_trip_and_size(tensors, given_facts):
    sent = Payload(tensors)
    sent.facts = given_facts
    data = sent.encode()
    assert sent.num_bytes == len(data)
    received = Payload.decode(data)
    assert same(received, sent)
    assert received.encode() == data
    assert data == encoded(given_facts, [(n, str(t.dtype)[6:], list(t.shape)) for n, t in tensors.items()], raw(tensors))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_empty_and_scalar(dtype):
    kind = DTYPES[dtype]
    sent = Payload({"scalar": torch.tensor(1).to(kind), "empty": torch.zeros(0, 3, dtype=kind), "some": torch.ones(2, 3, dtype=kind)}, n=1)
    received = Payload.decode(sent.encode())
    assert same(received, sent)
    assert sent.num_bytes == len(sent.encode())
    assert {tensor.dtype for tensor in received.tensors.values()} == {kind}


def test_special_values_keep_their_bits():
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    received = Payload.decode(Payload({"x": values}).encode()).tensors["x"]
    assert torch.equal(received.view(torch.int32), values.view(torch.int32))


def test_received_tensors_are_writable_copies():
    data = Payload({"x": torch.zeros(3), "y": torch.ones(3)}).encode()
    received = Payload.decode(data).tensors
    received["x"].add_(1)
    assert received["y"].tolist() == [1, 1, 1]
    assert Payload.decode(data).tensors["x"].tolist() == [0, 0, 0]


def test_a_tensor_that_needs_gradient_can_be_sent():
    sent = Payload({"x": torch.ones(2, requires_grad=True)})
    received = Payload.decode(sent.encode()).tensors["x"]
    assert received.tolist() == [1, 1]
    assert not received.requires_grad


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_a_message_error_or_a_payload(data):
    with contextlib.suppress(MessageError):
        read = Payload.decode(data)
        assert read.num_bytes == len(read.encode()) == len(data)


sizes = st.one_of(st.integers(-2, 3), st.sampled_from([2**31, 2**62, 2**63 - 1, 2**64 - 1]))
loose = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3), st.lists(sizes, max_size=3))


@settings(max_examples=300)
@given(
    st.one_of(
        loose, st.dictionaries(st.text(max_size=3), st.one_of(loose, st.dictionaries(st.text(max_size=2), loose, max_size=2)), max_size=2)
    ),
    st.one_of(loose, st.lists(st.tuples(loose, st.one_of(loose, st.sampled_from(sorted(DTYPES))), loose), max_size=3)),
    st.binary(max_size=12),
)
@example({"tensors": 1}, [], b"")
@example({"self": 1}, [], b"")
@example({}, [("x", "float32", [0, 2**63])], b"")
@example({}, [("x", "float32", [2**63, 0])], b"")
@example({}, [("x", "float32", [0, 2**40, 2**40])], b"")
@example({}, [("x", "float32", [1] * 100)], b"\0" * 4)
@example({}, [("x", "float32", []), ("x", "float32", [])], b"\0" * 8)
@example({"x": {"deep": None}}, [], b"")
@example({"x": b"raw"}, [], b"")
def test_well_formed_nonsense_is_a_message_error_or_a_payload(given_facts, rows, data):
    message = encoded(given_facts, rows, data)
    with contextlib.suppress(MessageError):
        read = Payload.decode(message)
        assert read.num_bytes == len(read.encode()) == len(message)


@pytest.mark.parametrize(
    "head",
    [
        b"\x91" * 100_000,
        b"\x81\xa1\xff\x01",
        b"\x92\x80\x91\x93\xa1\xff\xa7float32\x90",
        b"\x92\x81\xa1a\xd6\xff\xff\xff\xff\xff\x90",
        b"\x92\x81\xa1a\xc7",
    ],
    ids=["deep", "not-utf8", "name-not-utf8", "timestamp", "cut-extension"],
)
def test_hostile_heads_are_a_message_error(head):
    with pytest.raises(MessageError, match="not a payload"):
        Payload.decode(struct.pack("<I", len(head)) + head)


def test_deep_facts_are_a_message_error():
    head = b"\x92\x81\xa1a" + b"\x91" * 100_000 + b"\x90" + b"\x90"
    with pytest.raises(MessageError, match="not a payload"):
        Payload.decode(struct.pack("<I", len(head)) + head)


@given(st.data())
def test_every_truncation_and_extension_is_refused(data):
    whole = Payload({"x": torch.arange(3), "y": torch.ones(2, 2)}, samples=3, loss=0.5).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MessageError):
        Payload.decode(whole[:cut])
    with pytest.raises(MessageError):
        Payload.decode(whole + b"\0")


def test_prefixes_come_off_as_they_went_on():
    tensors = {"a.b": torch.zeros(1), "c": torch.ones(1)}
    there = prefixed("gate", tensors)
    assert sorted(there) == ["gate.a.b", "gate.c"]
    assert select("gate", there | {"gates.c": torch.zeros(1), "other": torch.zeros(1)}).keys() == tensors.keys()
