"""Mapped files: tensors that are a file's own pages, so that a weight is never in memory twice.

The mapping is private: what a program writes into a weight stays in the program. A page that is written to is a copy from then on, and
would not see bytes that arrive on it later; but tensors of a page or more have their pages for themselves, and smaller ones are copied.
The views are all made at once: made during a call, these small objects would lie between activations, which then cannot be given back
(6 % of a ViT-B's weights).
"""

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from nmoe.deliver.layout import PAGE_BYTES, Arrangement, Layout, TensorPlace


class MappedFile:
    """A file's tensors, as the cache keeps them. The bytes of a tensor must be there when it is taken; those of others may still arrive.

    Args:
        path: the file, of its full length; it may be renamed or deleted afterwards.
        layout: of the safetensors file that is kept there.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._arrangement = Arrangement(layout)
        handle = os.open(path, os.O_RDONLY)
        try:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            self._pages = mmap.mmap(handle, self._arrangement.bytes, flags=mmap.MAP_PRIVATE, prot=protection)
        finally:
            os.close(handle)
        with torch.inference_mode(False):
            self._large = {place.name: self._view(place) for place in layout.tensors if place.end - place.start >= PAGE_BYTES}

    def tensor(self, place: TensorPlace) -> Tensor:
        """Return a tensor of this file, on the CPU and writable. It is fit for autograd, whatever mode the caller is in."""
        if place.name in self._large:
            return self._large[place.name]
        with torch.inference_mode(False):
            return torch.empty(place.shape, dtype=place.dtype, device="cpu") if place.start == place.end else self._view(place).clone()

    def _view(self, place: TensorPlace) -> Tensor:
        """Return a tensor whose memory is the file's pages."""
        ((position, num_bytes),) = self._arrangement.spans(place.start, place.end)
        count = num_bytes // place.dtype.itemsize
        return torch.frombuffer(self._pages, dtype=place.dtype, count=count, offset=position).view(place.shape)
