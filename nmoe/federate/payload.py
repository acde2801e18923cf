"""Payload: what one federated message holds, and its exact size on the wire.

Layout of the encoded form: 4 bytes little-endian length of the head, the head (msgpack: facts, and name, dtype and shape of each tensor),
then the raw tensor bytes in the head's order. The in-process engine passes payloads by reference and counts ``num_bytes``; the Flower
engine sends ``encode()``. Both are the same number, and a test holds them together.
"""

import math
import struct
from collections.abc import Mapping
from functools import cached_property

import msgspec
import torch
from torch import Tensor

from nmoe.core.errors import MessageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int64": torch.int64, "bool": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_NUMEL = 2**40  # far above what fits a message, far below where torch's arithmetic overflows; sizes of 0 count as 1
Fact = int | float | str | bool | list[int | float | str]


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Facts, and (name, dtype, shape) of each tensor."""

    facts: dict[str, Fact]
    tensors: list[tuple[str, str, list[int]]]


class Payload:
    """Named tensors and a few plain facts; treat it as immutable, since the in-process engine shares it.

    Args:
        tensors: tensors by name.
        facts: numbers, words and lists of them by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, **facts: Fact) -> None:
        self.tensors = {} if tensors is None else dict(tensors)
        self.facts = facts

    @cached_property
    def _head(self) -> bytes:
        rows = [(name, NAMES[tensor.dtype], list(tensor.shape)) for name, tensor in self.tensors.items()]
        return msgspec.msgpack.encode(Head(facts=self.facts, tensors=rows))

    @cached_property
    def num_bytes(self) -> int:
        """Length of the encoded form in bytes."""
        return 4 + len(self._head) + sum(tensor.nbytes for tensor in self.tensors.values())

    def encode(self) -> bytes:
        """Return the encoded form."""
        raw = [tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in self.tensors.values()]
        return b"".join((struct.pack("<I", len(self._head)), self._head, *raw))

    @staticmethod
    def decode(data: bytes) -> "Payload":
        """Read an encoded payload.

        Raises:
            MessageError: when the bytes are not one whole payload.
        """
        try:
            (length,) = struct.unpack_from("<I", data)
            head = msgspec.msgpack.decode(memoryview(data)[4 : 4 + length], type=Head)
            shapes = [(name, DTYPES[dtype], shape) for name, dtype, shape in head.tensors]
        except (struct.error, msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise MessageError(f"not a payload: {error}") from error
        if any(min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) > MAX_NUMEL for _, _, shape in shapes):
            raise MessageError("not a payload: a shape with a negative or too large size")
        if len({name for name, _, _ in shapes}) != len(shapes):
            raise MessageError("not a payload: two tensors of one name")
        wanted = 4 + length + sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in shapes)
        if wanted != len(data):
            raise MessageError(f"not a payload: {wanted} bytes wanted, {len(data)} found")
        tensors, offset = {}, 4 + length
        for name, dtype, shape in shapes:
            end = offset + dtype.itemsize * math.prod(shape)
            raw = bytearray(data[offset:end])  # a copy of its own, so that the tensor may be written to and saved
            tensors[name] = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
            offset = end
        payload = Payload(tensors)
        payload.facts = dict(head.facts)  # by hand: a stranger may name a fact like an argument
        return payload


def select(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors below ``prefix.`` with the prefix taken off."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix.`` put before every name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
