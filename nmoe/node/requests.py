"""Requests: a caller's arguments, checked before they leave."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from nmoe.node.messages import MAX_DEADLINE_S, InferRequest


def infer_request(
    images: Shaped[Tensor, "batch height width channel"], *, deadline_s: float, k: int | None, identity: str = "", trace: str = ""
) -> InferRequest:
    """Return the message for a caller's arguments.

    Args:
        images: uint8, or float32 between 0 and 1.
        deadline_s: above 0.
        k: experts per sample, at least 1; None for the node's own number.
        identity: a name that feedback may refer to.
        trace: W3C ``traceparent``.

    Raises:
        ValueError: when an argument is out of range.
    """
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32) or not len(images):
        raise ValueError(f"images must be uint8 or float32 [batch, height, width, channel], got {images.dtype} {list(images.shape)}")
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise ValueError(f"deadline_s must be above 0 and at most {MAX_DEADLINE_S:g}, got {deadline_s}")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return InferRequest(images=images, deadline_s=deadline_s, k=k, identity=identity, trace=trace)
