"""Mapped files: tensors that are a file's own pages, so that a weight is never in memory twice.

Mappings are private: what a program writes into a weight stays in the program. A page written to is a copy from then on, and would not see
bytes that arrive on it later; hence neighbouring tensors are taken from two mappings in turn, and those under a page are copied.
"""

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from nmoe.deliver.layout import Layout, TensorPlace

PAGE_BYTES = mmap.PAGESIZE


class MappedFile:
    """A file's tensors. The bytes of a tensor must be there when it is taken; those of the others may still arrive.

    Args:
        path: the file, of its full length; it may be renamed or deleted afterwards.
        layout: what lies where.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            self._maps = [mmap.mmap(handle, layout.file_bytes, flags=mmap.MAP_PRIVATE, prot=protection) for _ in range(2)]
        finally:
            os.close(handle)
        large = [place.name for place in layout.tensors if place.end - place.start >= PAGE_BYTES]
        self._turns = {name: turn % 2 for turn, name in enumerate(large)}

    def tensor(self, place: TensorPlace) -> Tensor:
        """Return a tensor of this file, on the CPU and writable. It is fit for autograd, whatever mode the caller is in."""
        count = (place.end - place.start) // place.dtype.itemsize
        with torch.inference_mode(False):
            if not count:
                return torch.empty(place.shape, dtype=place.dtype, device="cpu")
            if place.name in self._turns and place.start % place.dtype.itemsize == 0:
                pages = self._maps[self._turns[place.name]]
                return torch.frombuffer(pages, dtype=place.dtype, count=count, offset=place.start).view(place.shape)
            data = bytearray(self._maps[0][place.start : place.end])
            return torch.frombuffer(data, dtype=place.dtype, count=count).view(place.shape)
