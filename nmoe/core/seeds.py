"""Seeds: every draw in nmoe takes an explicit generator made here.

A generator belongs to a path of labels below one run seed, for example ``torch_generator(0, "fedsc", "train", round, node)``. Equal paths
give equal streams on one machine, whatever the engine, the order of the nodes or a resume in between, so no generator state is ever
stored.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """Derive a 63-bit seed from a run seed and a path of labels.

    Args:
        seed: run seed, at least 0.
        path: labels, from general to particular.

    Returns:
        A seed in [0, 2**63).

    Raises:
        ValueError: when ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    text = "/".join([str(seed), *(str(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for this path on a device; see ``derive_seed``. Other devices give other streams."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a numpy generator for this path; see ``derive_seed``."""
    return np.random.default_rng(derive_seed(seed, *path))
