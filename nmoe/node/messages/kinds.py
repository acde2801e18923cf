"""Kinds: how one kind of message is written and read; ``expert_wire`` and ``node_wire`` list theirs, ``wire`` uses them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from nmoe.node.messages.body import Body
from nmoe.node.messages.records import Message


class Header(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A header: an array of exactly these fields."""


Written = tuple[msgspec.Struct, Sequence[np.ndarray]]  # a header, and the tensors behind it


class Kind(NamedTuple):
    """One kind of message.

    Attributes:
        number: its byte.
        message: its record.
        max_header_bytes: the most its header may take.
        decoder: of its header.
        write: makes a header and tensors of a record; raises ValueError.
        read: makes a record of a header and what lies behind it; raises MessageError.
    """

    number: int
    message: type[Message]
    max_header_bytes: int
    decoder: "msgspec.msgpack.Decoder[Any]"
    write: Callable[[Any], Written]
    read: Callable[[Any, Body], Message]


def kind(
    number: int,
    message: type[Message],
    header: type[msgspec.Struct],
    write: Callable[[Any], Written],
    read: Callable[[Any, Body], Message],
    *,
    max_header_bytes: int = 32 << 10,
) -> Kind:
    """Return a kind with the decoder of its header."""
    return Kind(number, message, max_header_bytes, msgspec.msgpack.Decoder(header), write, read)
