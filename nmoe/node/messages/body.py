"""Body: the tensors of a message, each at a multiple of 8 bytes from its beginning; and the limits of what a message may hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nmoe.core.errors import MessageError
from nmoe.node.messages.formats import (
    LARGEST_CODE,
    MAX_SCALE,
    TensorFormat,
    dequantise,
    from_half,
    pack,
    quantise,
    to_half,
    unpack,
)

MAX_MESSAGE_BYTES = 64 << 20
MAX_ROWS = 1 << 16
MAX_WIDTH = 1 << 16

FLOAT32, FLOAT16, INT8 = np.dtype("<f4"), np.dtype("<f2"), np.dtype("i1")
UINT8, INT32, INT64 = np.dtype("u1"), np.dtype("<i4"), np.dtype("<i8")
_PADS = tuple(bytes(count) for count in range(8))
_LIMITS = (MAX_ROWS, MAX_WIDTH, MAX_WIDTH, MAX_WIDTH)


def join(head: Sequence[bytes], parts: Sequence[np.ndarray]) -> bytes:
    """Return the head and the contiguous arrays behind it, copied once.

    Raises:
        ValueError: when that is more than ``MAX_MESSAGE_BYTES``.
    """
    pieces: list[bytes | memoryview] = list(head)
    end = sum(map(len, head))
    for part in parts:
        if part.size:
            pad = -end & 7
            if pad:
                pieces.append(_PADS[pad])
            pieces.append(part.data)
            end += pad + part.nbytes
    if end > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, this one would have {end}")
    return b"".join(pieces)


def lay(form: TensorFormat, rows: np.ndarray, *, strict: bool) -> tuple[np.ndarray, ...]:
    """Return the arrays in which rows [rows, dim] travel in a format, to be read by ``Body.rows``.

    Raises:
        ValueError: when they are not two-dimensional and not empty; or when a number is not finite, ``strict``, and the format not float32.
    """
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"rows of numbers wanted, got shape {rows.shape}")
    if rows.nbytes > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes of numbers, this one would have {rows.nbytes}")
    plain = np.ascontiguousarray(rows, FLOAT32)
    if form is TensorFormat.FLOAT32:
        return (plain,)
    if form is TensorFormat.FLOAT16:
        return (to_half(plain, strict=strict),)
    codes, scales = quantise(plain, form, strict=strict)
    return (scales, codes if form is TensorFormat.INT8 else pack(codes))


class Body:
    """Takes tensors off the end of a message, front to back; they are views of its bytes.

    Args:
        data: the message.
        offset: where its header ends.
    """

    __slots__ = ("data", "offset")

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def take(self, kind: "np.dtype[Any]", *shape: int) -> np.ndarray:
        """Return the next tensor as it lies there.

        Raises:
            MessageError: when the shape is out of bounds or the message ends before it.
        """
        for size, limit in zip(shape, _LIMITS, strict=False):
            if not 1 <= size <= limit:
                raise MessageError(f"a tensor of shape {shape} is not one a message may carry", fault="shape")
        count = math.prod(shape)
        start = (self.offset + 7) & -8
        end = start + count * kind.itemsize
        if end > len(self.data):
            raise MessageError(f"message is cut off: {end} bytes wanted, {len(self.data)} came", fault="cut off")
        self.offset = end
        return np.frombuffer(self.data, kind, count, start).reshape(shape)

    def rows(self, form: TensorFormat, what: str, *shape: int, strict: bool) -> np.ndarray:
        """Return the next rows as float32 [rows, dim]; a view if that is their format.

        Args:
            form: their format.
            what: a word for complaints.
            shape: rows and dim.
            strict: whether every number must be finite.

        Raises:
            MessageError: when shape, length or numbers are not those of a message.
        """
        if form is TensorFormat.FLOAT32:
            rows = self.take(FLOAT32, *shape)
        else:
            if math.prod(shape) * FLOAT32.itemsize > MAX_MESSAGE_BYTES:
                raise MessageError(f"a tensor of shape {shape} is not one a message may carry", fault="shape")
            if form in LARGEST_CODE:
                return self._dequantised(form, what, *shape, strict=strict)
            rows = from_half(self.take(FLOAT16, *shape))
        if strict and not np.isfinite(rows).all():
            raise MessageError(f"{what} must be finite", fault="number")
        return rows

    def _dequantised(self, form: TensorFormat, what: str, rows: int, dim: int, *, strict: bool) -> np.ndarray:
        scales = self.take(FLOAT32, rows)
        bounded = (scales >= 0) & (scales <= MAX_SCALE[form])
        if not bounded.all() and (strict or not (bounded | np.isnan(scales)).all()):
            raise MessageError(f"{what} must have finite scales of at least 0", fault="number")
        codes = self.take(INT8, rows, dim) if form is TensorFormat.INT8 else self._unpacked(what, rows, dim)
        largest = LARGEST_CODE[form]
        if codes.min() < -largest:  # nobody writes -128 or -8: with the largest scale it would be too large to be sent on
            raise MessageError(f"{what} must have codes between -{largest} and {largest}", fault="number")
        return dequantise(codes, scales)

    def _unpacked(self, what: str, rows: int, dim: int) -> np.ndarray:
        if not 1 <= dim <= MAX_WIDTH:
            raise MessageError(f"a tensor of shape {(rows, dim)} is not one a message may carry", fault="shape")
        packed = self.take(UINT8, rows, (dim + 1) // 2)
        if dim % 2 and (packed[:, -1] >> 4).any():
            raise MessageError(f"{what} of odd width must be filled up with 0", fault="number")
        return unpack(packed, dim)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            MessageError: when something is.
        """
        if self.offset != len(self.data):
            raise MessageError(f"message is too long: {self.offset} bytes wanted, {len(self.data)} came", fault="too long")
