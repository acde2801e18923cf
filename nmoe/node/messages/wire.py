"""Wire: messages as bytes.

Layout: ``NMOE``, version (1 byte), kind (1 byte), length of the header (4 bytes), header (MessagePack array, its fields in the order of the
record's header struct), then the tensors' raw bytes, each from the next multiple of 8 on. Little-endian throughout. Nothing is ever
unpickled. ``decode`` either returns a record whose shapes and numbers hold together or raises ``MessageError`` with one line.

Departure from a schema language: fields are positional, so a change of any header needs a new ``VERSION``; that is what the byte is for. A
node's view alone is a map, for people's eyes: unknown fields in it are skipped.
"""

import struct
from typing import TypeVar

import msgspec

from nmoe.core.errors import MessageError
from nmoe.node.messages import expert_wire, node_wire
from nmoe.node.messages.body import MAX_MESSAGE_BYTES, Body, join
from nmoe.node.messages.records import MAX_REASON, Message, Refusal, one_line

MAGIC = b"NMOE"
VERSION = 3  # 3: int4, which a card may list

_PREFIX = struct.Struct("<4sBBI")
_PREFIX_BYTES = _PREFIX.size
_Wanted = TypeVar("_Wanted", bound=Message)


def encode(message: Message) -> bytes:
    """Return a record's bytes.

    Raises:
        ValueError: when it is larger than ``MAX_MESSAGE_BYTES``, its header than its kind allows, or its numbers do not fit its format.
    """
    kind = _KINDS[type(message)]
    header, tensors = kind.write(message)
    packed = _encoder.encode(header)
    if len(packed) > kind.max_header_bytes:
        raise ValueError(f"the header of {type(message).__name__} has at most {kind.max_header_bytes} bytes, this one has {len(packed)}")
    return join((_PREFIX.pack(MAGIC, VERSION, kind.number, len(packed)), packed), tensors)


def decode(data: bytes) -> Message:
    """Return the record in these bytes; float32 features and outputs are read-only views of them.

    Raises:
        MessageError: when they are not one whole message of this version; its ``fault`` says in what way.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, {len(data)} came", fault="too long")
    if len(data) < _PREFIX_BYTES:
        raise MessageError(f"message is cut off: {_PREFIX_BYTES} bytes wanted, {len(data)} came", fault="cut off")
    magic, version, number, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise MessageError("not a message of nmoe", fault="not ours")
    if version != VERSION:
        raise MessageError(f"message version {version}, this nmoe reads version {VERSION}", fault="version")
    kind = _NUMBERS.get(number)
    if kind is None:
        raise MessageError(f"unknown message kind {number}", fault="kind")
    if length > kind.max_header_bytes:
        raise MessageError(f"a header of this kind has at most {kind.max_header_bytes} bytes, {length} announced", fault="too long")
    start = _PREFIX_BYTES + length
    if start > len(data):
        raise MessageError(f"message is cut off: a header of {length} bytes wanted, {len(data) - _PREFIX_BYTES} came", fault="cut off")
    try:
        header = kind.decoder.decode(data[_PREFIX_BYTES:start])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"message header is damaged: {one_line(str(error), MAX_REASON)}", fault="header") from error
    body = Body(data, start)
    message = kind.read(header, body)
    body.end()
    return message


def decode_as(data: bytes, wanted: type[_Wanted]) -> _Wanted | Refusal:
    """Return the record in these bytes, which must be of one kind or a refusal.

    Raises:
        MessageError: when they are anything else.
    """
    message = decode(data)
    if isinstance(message, wanted | Refusal):
        return message
    raise MessageError(f"{wanted.__name__} wanted, {type(message).__name__} came", fault="kind")


_encoder = msgspec.msgpack.Encoder()
_KINDS = {kind.message: kind for kind in (*expert_wire.KINDS, *node_wire.KINDS)}
_NUMBERS = {kind.number: kind for kind in _KINDS.values()}
