"""Layout: what a safetensors file says of itself, read from bytes that a stranger sent.

A file is 8 bytes (length of the header, little-endian), the header (JSON: name -> dtype, shape, data_offsets), and the data without holes.
A sharded checkpoint has an index (``*.safetensors.index.json``) whose ``weight_map`` gives the file of every tensor.

Source: the format's specification, https://github.com/huggingface/safetensors (its limit of the header, 100 MB, and no holes, too).
"""

import json
import math
import mmap
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nmoe.core.errors import BadFile

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
PAGE_BYTES, ALIGNED_BYTES = mmap.PAGESIZE, 64
MAX_DIMENSIONS, MAX_DIMENSION = 64, 1 << 62

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,250}\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies.

    Attributes:
        name: of the tensor.
        dtype, shape: of its values.
        start, end: its bytes, counted from the beginning of the file; end is exclusive.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A file's layout.

    Attributes:
        file_bytes: length of the file.
        data_start: where the data begins, which is also the length of everything before it.
        tensors: in the order in which they lie.
    """

    file_bytes: int
    data_start: int
    tensors: tuple[TensorPlace, ...]


class Arrangement:
    """How a file's bytes are kept: the head, then each tensor where memory can be mapped and computed on as it is.

    Tensors of a page or more begin on a page, smaller ones at a multiple of 64 bytes: matrix products differ in their last bits with the
    alignment of weights, and a model that is loaded as usual has them aligned.

    Args:
        layout: of the file.
    """

    def __init__(self, layout: Layout) -> None:
        self.bytes = layout.data_start
        self._starts, self._positions = [0], [0]  # of parts: in the file, rising; and where they are kept
        self._file_bytes = layout.file_bytes
        for place in layout.tensors:
            num_bytes = place.end - place.start
            if num_bytes:
                step = PAGE_BYTES if num_bytes >= PAGE_BYTES else ALIGNED_BYTES
                self.bytes = -(-self.bytes // step) * step
                self._starts.append(place.start)
                self._positions.append(self.bytes)
                self.bytes += num_bytes

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield position and length, where they are kept, of the file's bytes from start to end."""
        part = bisect_right(self._starts, start) - 1
        while start < end:
            until = min(end, self._starts[part + 1] if part + 1 < len(self._starts) else self._file_bytes)
            yield self._positions[part] + start - self._starts[part], until - start
            start, part = until, part + 1


def data_start(prefix: bytes, file_bytes: int, *, name: str) -> int:
    """Return where a file's data begins, which is how many bytes ``parse_layout`` wants.

    Args:
        prefix: the first bytes of the file, at least 8.
        file_bytes: length of the file.
        name: of the file, for errors.

    Raises:
        BadFile: when this cannot be a safetensors file.
    """
    if len(prefix) < LENGTH_BYTES or file_bytes < LENGTH_BYTES + 2:
        raise BadFile(f"{name} is not a safetensors file: it has {file_bytes} bytes")
    header_bytes = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise BadFile(f"{name} is not a safetensors file: a header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} wanted")
    if header_bytes < 2 or LENGTH_BYTES + header_bytes > file_bytes:
        raise BadFile(f"{name} is truncated or not a safetensors file: a header of {header_bytes} bytes in a file of {file_bytes}")
    return LENGTH_BYTES + header_bytes


def parse_layout(head: bytes, file_bytes: int, *, name: str) -> Layout:
    """Read and check a header.

    Args:
        head: the file's first ``data_start`` bytes.
        file_bytes: length of the file.
        name: of the file, for errors.

    Returns:
        The layout; its tensors fill the file without holes or overlaps.

    Raises:
        BadFile: when anything does not hold together; the message names the tensor where there is one.
    """
    start = data_start(head, file_bytes, name=name)
    if len(head) != start:
        raise BadFile(f"{name}: {start} bytes of header wanted, got {len(head)}")
    header = _json_object(head[LENGTH_BYTES:], name)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise BadFile(f"{name}: __metadata__ must be strings by name")
    places = sorted((_place(tensor, entry, start, name) for tensor, entry in header.items()), key=lambda place: (place.start, place.end))
    at = start
    for place in places:
        if place.start != at:
            raise BadFile(f"{name}: tensor {place.name} begins at byte {place.start}, but the one before it ends at {at}")
        at = place.end
    if at != file_bytes:
        word = "truncated" if at > file_bytes else "longer than its header says"
        raise BadFile(f"{name} is {word}: {at} bytes wanted, it has {file_bytes}")
    return Layout(file_bytes=file_bytes, data_start=start, tensors=tuple(places))


def read_layout(path: Path, file_bytes: int | None = None) -> Layout:
    """Return the layout of a file on this machine.

    Args:
        path: the file, or one that begins as it does.
        file_bytes: length of the file, if this is not the file itself.

    Raises:
        BadFile: when it is missing or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            whole_bytes, prefix = file_bytes or path.stat().st_size, file.read(LENGTH_BYTES)
            head = prefix + file.read(data_start(prefix, whole_bytes, name=path.name) - LENGTH_BYTES)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    return parse_layout(head, whole_bytes, name=path.name)


def parse_index(data: bytes, *, name: str) -> dict[str, str]:
    """Read the index of a sharded checkpoint.

    Returns:
        The file of every tensor: plain names of files that lie beside the index.

    Raises:
        BadFile: when it is not such an index, or a shard's name is more than a plain ``*.safetensors``.
    """
    shards = _json_object(data, name).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BadFile(f"{name} is not an index of shards: it has no weight_map")
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise BadFile(f"{name}: the shard of {tensor} must be a plain name ending in .safetensors, got {shard!r}")
    return shards


def check_index(shards: dict[str, str], layouts: dict[str, Layout], *, name: str) -> None:
    """Check that the shards hold what their index says, each tensor once.

    Raises:
        BadFile: when one lacks a tensor, or has one more.
    """
    for shard, layout in layouts.items():
        held, wanted = {place.name for place in layout.tensors}, {tensor for tensor, file in shards.items() if file == shard}
        if wanted - held:
            raise BadFile(f"{name}: {shard} lacks tensor {min(wanted - held)}")
        if held - wanted:
            raise BadFile(f"{name}: {shard} has tensor {min(held - wanted)}, which the index does not place there")


def _json_object(data: bytes, name: str) -> dict[str, Any]:
    """Read a JSON object in which no name occurs twice."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise BadFile(f"{name}: its header is not valid JSON: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(value, dict):
        raise BadFile(f"{name}: its header must be a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _natural(value: Any, below: int) -> bool:
    return type(value) is int and 0 <= value <= below


def _place(tensor: str, entry: Any, start: int, name: str) -> TensorPlace:
    """Check one tensor's entry."""
    if not tensor or not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(f"{name}: tensor {tensor!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadFile(f"{name}: tensor {tensor} has dtype {dtype!r}, one of {', '.join(DTYPES)} wanted")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_natural(length, MAX_DIMENSION) for length in shape):
        raise BadFile(f"{name}: tensor {tensor} has shape {str(shape)[:100]}, lengths of at least 0 wanted")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(offset, MAX_DIMENSION) for offset in offsets):
        raise BadFile(f"{name}: tensor {tensor} has data_offsets {str(offsets)[:100]}, first and last byte wanted")
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != wanted:
        raise BadFile(f"{name}: tensor {tensor} of {dtype} {shape} needs {wanted} bytes, its data_offsets are {offsets}")
    return TensorPlace(name=tensor, dtype=DTYPES[dtype], shape=tuple(shape), start=start + offsets[0], end=start + offsets[1])
