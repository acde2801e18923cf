"""Sionna: the one door to NVIDIA's wireless library, an extra. Its channel codes, as functions of bits and reliabilities.

Source: Sionna (Hoydis et al., arXiv 2203.11854), version 2: ``sionna.phy.fec``, on PyTorch. Imported at first use, which takes seconds.

Reliabilities (LLRs) are log p(0) / p(1) here and log p(1) / p(0) there; this door turns the sign. Large inputs go through in pieces,
because Sionna's decoders hold everything they have seen (Viterbi: about 1 KiB per bit). Importing Sionna seeds PyTorch's own generator
anew; the door puts its state back.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmoe.core.errors import EngineError

BITS_PER_CALL = 2**18


def require_sionna() -> None:
    """Make sure that Sionna is installed, without importing it.

    Raises:
        EngineError: when it is not.
    """
    if find_spec("sionna") is None:
        raise EngineError("channel codes need the extra radio: pip install nmoe[radio]")


def encode_convolutional(bits: Bool[Tensor, "row bit"], *, constraint_length: int) -> Bool[Tensor, "row coded"]:
    """Encode rows by the terminated convolutional code of rate 1/2.

    Args:
        bits: rows of at least one bit.
        constraint_length: 3 to 8; the memory is one less.

    Returns:
        [row, 2 * (bit + constraint_length - 1)].

    Raises:
        EngineError: when Sionna is not installed.
    """
    encoder, _ = _convolutional(constraint_length, str(bits.device))
    return _in_pieces(encoder, bits.float(), width=2 * (bits.shape[1] + constraint_length - 1))


def decode_convolutional(llrs: Float[Tensor, "row coded"], *, constraint_length: int) -> Bool[Tensor, "row bit"]:
    """Return the most likely bits (Viterbi), the inverse of ``encode_convolutional``.

    Raises:
        EngineError: when Sionna is not installed.
    """
    _, decoder = _convolutional(constraint_length, str(llrs.device))
    peaks = llrs.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(llrs.dtype).tiny)
    num_bits = llrs.shape[1] // 2 - constraint_length + 1
    return _in_pieces(decoder, -llrs / peaks, width=num_bits)  # scale changes no path; Sionna takes sums beyond 2^20 for impossible


def encode_ldpc(bits: Bool[Tensor, "row bit"], *, coded_length: int) -> Bool[Tensor, "row coded"]:
    """Encode rows as one block each of the LDPC code of 5G.

    Args:
        bits: rows of 12 to 8448 bits.
        coded_length: bits of a coded block; the rate has to lie between 1/3 and about 0.92.

    Raises:
        EngineError: when Sionna is not installed.
    """
    encoder, _ = _ldpc(bits.shape[1], coded_length, str(bits.device))
    return _in_pieces(encoder, bits.float(), width=coded_length)


def decode_ldpc(llrs: Float[Tensor, "row coded"], *, num_bits: int, iterations: int) -> Bool[Tensor, "row bit"]:
    """Return the bits that belief propagation finds, the inverse of ``encode_ldpc``.

    Args:
        llrs: one block per row.
        num_bits: of a block before coding.
        iterations: of belief propagation.

    Raises:
        EngineError: when Sionna is not installed.
    """
    _, decoder = _ldpc(num_bits, llrs.shape[1], str(llrs.device))
    return _in_pieces(lambda piece: decoder(piece, num_iter=iterations), -llrs, width=num_bits)


def _in_pieces(block: Callable[[Tensor], Tensor], rows: Float[Tensor, "row place"], *, width: int) -> Bool[Tensor, "row width"]:
    """Run a block of Sionna's over some rows at a time; it takes no empty batch."""
    if rows.shape[0] == 0:
        return torch.zeros((0, width), dtype=torch.bool, device=rows.device)
    return torch.cat([block(piece) > 0 for piece in rows.split(max(1, BITS_PER_CALL // rows.shape[1]))])


def _convolutional(constraint_length: int, device: str) -> tuple[Any, Any]:
    """Return encoder and decoder; they keep the last length they saw, and are built anew, in 3 ms, rather than shared."""
    _load()
    from sionna.phy.fec.conv import ConvEncoder, ViterbiDecoder

    encoder = ConvEncoder(rate=1 / 2, constraint_length=constraint_length, terminate=True, device=device)
    return encoder, ViterbiDecoder(encoder=encoder, device=device)


@lru_cache(maxsize=16)
def _ldpc(num_bits: int, coded_length: int, device: str) -> tuple[Any, Any]:
    """Return encoder and decoder of one block size; building them takes 30 to 100 ms."""
    _load()
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder

    encoder = LDPC5GEncoder(num_bits, coded_length, check_input=False, device=device)
    return encoder, LDPC5GDecoder(encoder, device=device)


def _load() -> None:
    """Import Sionna, leaving PyTorch's generators as they were.

    Raises:
        EngineError: when it is not installed.
    """
    require_sionna()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        import sionna.phy  # noqa: F401
