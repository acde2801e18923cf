"""Formats: how rows of numbers travel. float32 as they are, float16, or int8 with one float32 scale per row.

Per row x the scale is s = max|x| / 127 and x travels as round(x / s), half to even; so |x - s round(x / s)| <= s / 2. A row of zeros has
scale 0. Departures: a row whose s would be subnormal takes the smallest normal number, so that the law holds there too; float16 saturates
at its largest number, 65504, instead of becoming infinite.
"""

from collections.abc import Callable
from enum import StrEnum

import numpy as np
from jaxtyping import Float16, Float32, Int8

from nmoe.core.errors import MessageError


class TensorFormat(StrEnum):
    """How a tensor of features or outputs travels."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
