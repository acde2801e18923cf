"""Network: how long messages take between simulated nodes. Each node is a copy of a place whose round trips were measured."""

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOCAL_MS = 1.0  # round trip of two nodes at one place, and the least of all
GOODPUT_BYTES_S = 5e6  # median of a node's line, 40 Mbit/s; our choice
GOODPUT_SPREAD = 0.7  # standard deviation of its logarithm


@dataclass(frozen=True, slots=True)
class Network:
    """Half round trips between places, and where the nodes stand.

    Attributes:
        half_s: [place * place], row by row: seconds one way from the row's place.
        places: how many.
        place: of each node.
        byte_s: seconds per byte of each node's line; the thinner of two counts.
    """

    half_s: "array[float]"
    places: int
    place: list[int]
    byte_s: list[float]


def matrix_network(round_trip_ms: np.ndarray, nodes: int, generator: np.random.Generator) -> Network:
    """Put every node at one of the places of a round-trip matrix, by equal chance.

    Args:
        round_trip_ms: [place, place]; what is not finite or below ``LOCAL_MS`` becomes that.
        nodes: how many.
        generator: of places and lines.

    Raises:
        ValueError: when the matrix is not square or holds no round trip.
    """
    matrix = np.asarray(round_trip_ms, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"round trips [place, place] in ms wanted, got an array of shape {matrix.shape}")
    if not np.isfinite(matrix).any():
        raise ValueError("the round trips hold no finite number")
    matrix = np.maximum(np.where(np.isfinite(matrix), matrix, LOCAL_MS), LOCAL_MS)
    np.fill_diagonal(matrix, LOCAL_MS)
    place = generator.integers(0, len(matrix), nodes)
    byte_s = 1 / (GOODPUT_BYTES_S * generator.lognormal(0, GOODPUT_SPREAD, nodes))
    return Network(array("d", (matrix / 2000).ravel().tolist()), len(matrix), place.tolist(), byte_s.tolist())


def uniform_network(nodes: int, *, round_trip_s: float, goodput_bytes_s: float = GOODPUT_BYTES_S) -> Network:
    """Return a network where all round trips and all lines are alike."""
    return Network(array("d", [round_trip_s / 2]), 1, [0] * nodes, [1 / goodput_bytes_s] * nodes)


def measured_network(path: Path, key: str | None, nodes: int, generator: np.random.Generator) -> Network:
    """Read a matrix of measured round trips; several over time are joined by their median.

    Args:
        path: an ``.npz`` file.
        key: which of its arrays; None for the only one that is a matrix [place, place] or several of them.
        nodes: how many.
        generator: of places and lines.

    Raises:
        ValueError: when the file holds no such matrix.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: an array of its own has no names
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    square = [name for name, array in found.items() if array.ndim in (2, 3) and array.shape[-1] == array.shape[-2]]
    if key is None and len(square) != 1:
        raise ValueError(f"{path} should hold one array [place, place] of round trips in ms, got {sorted(found)}")
    if key is not None and key not in square:
        raise ValueError(f"{path} should hold {key}, round trips [place, place] in ms, got {sorted(found)}")
    matrix = found[square[0] if key is None else key]
    return matrix_network(np.median(matrix, axis=0) if matrix.ndim == 3 else matrix, nodes, generator)
