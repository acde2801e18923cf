"""Coefficient storage: images kept as quantised 8x8 block cosine transforms, a third of their lossless size.

Source: the Vision section of the README beside the data; ``read_images`` in its ``check.py`` is the reference reader, which this one equals
bit for bit. Quality against the exact pixels: 36.8 dB over a set, never under 33.9 dB for an image.
"""

import numpy as np
from jaxtyping import Float32, Int8, UInt8

_BLOCK = 8
_CHUNK = 4096  # images decoded at a time: 50 MB of float32 at 32x32x3


def _basis() -> Float32[np.ndarray, "pixel frequency"]:
    """Return the orthonormal inverse cosine transform of one block side."""
    frequency, pixel = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)
    scale = np.where(frequency == 0, np.sqrt(1 / _BLOCK), np.sqrt(2 / _BLOCK))
    return (np.cos(np.pi * (2 * pixel + 1) * frequency / (2 * _BLOCK)) * scale).T.astype(np.float32)


def _to_rgb(yuv: Float32[np.ndarray, "sample height width channel"]) -> UInt8[np.ndarray, "sample height width channel"]:
    """Turn Y, Cb, Cr into R, G, B, 0 to 255."""
    y = yuv[..., 0] + 128
    red, blue = y + yuv[..., 2] / 0.713, y + yuv[..., 1] / 0.564
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return np.clip(np.rint(np.stack([red, green, blue], -1)), 0, 255).astype(np.uint8)


def decode(
    coefficients: Int8[np.ndarray, "channel vertical horizontal sample row column"], step: float
) -> UInt8[np.ndarray, "sample height width channel"]:
    """Decode images from their quantised cosine coefficients.

    Args:
        coefficients: int8 [3, 8, 8, N, rows, columns]: channel Y, Cb or Cr; vertical, horizontal frequency; image; block row, column.
        step: quantisation step in grey levels, above 0.

    Returns:
        Pixels, uint8 [N, 8 rows, 8 columns, 3].

    Raises:
        ValueError: when dtype, shape or step is wrong.
    """
    shape = coefficients.shape
    if coefficients.dtype != np.int8 or len(shape) != 6 or shape[:3] != (3, _BLOCK, _BLOCK):
        raise ValueError(f"dct must be int8 [3, 8, 8, N, rows, columns], got {coefficients.dtype} {list(shape)}")
    if not 0 < step < np.inf:
        raise ValueError(f"step must be above 0, got {step}")
    num_images, height, width = shape[3], _BLOCK * shape[4], _BLOCK * shape[5]
    basis, images = _basis(), np.empty((num_images, height, width, 3), np.uint8)
    for start in range(0, num_images, _CHUNK):
        part = coefficients[:, :, :, start : start + _CHUNK].astype(np.float32) * np.float32(step)
        part = np.tensordot(basis, part, (1, 1))  # [y, channel, horizontal, sample, row, column]
        part = np.tensordot(basis, part, (1, 2))  # [x, y, channel, sample, row, column]
        part = part.transpose(3, 4, 1, 5, 0, 2).reshape(-1, height, width, 3)  # [sample, height, width, channel]
        images[start : start + _CHUNK] = _to_rgb(part)
    return images
