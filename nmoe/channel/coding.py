"""Coding: channel codes, from rows of bits to longer rows that survive some errors, and back.

Source: repetition, textbook; the convolutional code of rate 1/2 with generators (133, 171) octal at constraint length 7 and (23, 33) at 5
(the latter of GSM 05.03), terminated, Viterbi decoding; LDPC of 5G, 3GPP TS 38.212, 5.3.2, belief propagation. The last two by Sionna.

| field's word | here | meaning |
|---|---|---|
| LLR | llrs | log p(bit is 0) / p(bit is 1); a hard decision is one whose size says nothing more than how sure the link is |
| R | rate | bits in over bits out, but for padding and tails |
| K | constraint_length | memory and 1 |

Error rates: repetition by n with hard decisions, all alike: sum over i > n/2 of C(n, i) p^i (1 - p)^(n - i); for n = 3: 3 p^2 - 2 p^3.

Departures: the paper tests coding without saying which (spec). LDPC blocks hold 12 to 8448 bits: shorter rows are padded with zeros, longer
ones cut into equal blocks, the last one padded. A convolutional row is one block, however long.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nmoe.channel.sionna import decode_convolutional, decode_ldpc, encode_convolutional, encode_ldpc, require_sionna

MIN_LDPC_BITS = 12
MAX_LDPC_BITS = 8448


class Code(ABC):
    """A channel code over rows of bits."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """Bits in over bits out, in (0, 1], padding and tails left out."""

    @abstractmethod
    def coded_length(self, num_bits: int) -> int:
        """Return the bits that a row of ``num_bits`` is sent as."""

    @abstractmethod
    def encode(self, bits: Bool[Tensor, "row bit"]) -> Bool[Tensor, "row coded"]:
        """Return what is sent.

        Args:
            bits: rows of at least one bit.
        """

    @abstractmethod
    def decode(self, llrs: Float[Tensor, "row coded"], *, num_bits: int) -> Bool[Tensor, "row bit"]:
        """Return the bits that were probably sent.

        Args:
            llrs: log p(0) / p(1) of every coded bit, finite.
            num_bits: of a row before coding.

        Raises:
            ValueError: when rows are not as long as ``encode`` makes them.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Uncoded(Code):
    """The bits as they are."""

    @property
    def rate(self) -> float:
        return 1.0

    def coded_length(self, num_bits: int) -> int:
        return num_bits

    def encode(self, bits: Bool[Tensor, "row bit"]) -> Bool[Tensor, "row coded"]:
        return bits

    def decode(self, llrs: Float[Tensor, "row coded"], *, num_bits: int) -> Bool[Tensor, "row bit"]:
        _check_length(llrs, self.coded_length(num_bits))
        return llrs < 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition(Code):
    """The whole row several times; reliabilities add up, which for hard decisions is a vote.

    Attributes:
        times: an odd number, so that every vote has a winner.
    """

    times: int = 3

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ValueError: when it is even or below 1.
        """
        if self.times < 1 or self.times % 2 == 0:
            raise ValueError(f"repetition an odd number of times wanted, got {self.times}")

    @property
    def rate(self) -> float:
        return 1 / self.times

    def coded_length(self, num_bits: int) -> int:
        return num_bits * self.times

    def encode(self, bits: Bool[Tensor, "row bit"]) -> Bool[Tensor, "row coded"]:
        return bits.repeat(1, self.times)

    def decode(self, llrs: Float[Tensor, "row coded"], *, num_bits: int) -> Bool[Tensor, "row bit"]:
        _check_length(llrs, self.coded_length(num_bits))
        return llrs.reshape(llrs.shape[0], self.times, num_bits).sum(dim=1) < 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Convolutional(Code):
    """Rate 1/2, terminated, Viterbi decoding. One core decodes about 250 kbit/s at constraint length 7, 700 at 5.

    Attributes:
        constraint_length: 3 to 8.
    """

    constraint_length: int = 7

    def __post_init__(self) -> None:
        """Check the constraint length, and that there is somebody to decode.

        Raises:
            ValueError: when it is outside 3 to 8.
            EngineError: when Sionna is not installed.
        """
        if not 3 <= self.constraint_length <= 8:
            raise ValueError(f"a constraint length of 3 to 8 wanted, got {self.constraint_length}")
        require_sionna()

    @property
    def rate(self) -> float:
        return 1 / 2

    def coded_length(self, num_bits: int) -> int:
        return 2 * (num_bits + self.constraint_length - 1)

    def encode(self, bits: Bool[Tensor, "row bit"]) -> Bool[Tensor, "row coded"]:
        return encode_convolutional(bits, constraint_length=self.constraint_length)

    def decode(self, llrs: Float[Tensor, "row coded"], *, num_bits: int) -> Bool[Tensor, "row bit"]:
        _check_length(llrs, self.coded_length(num_bits))
        return decode_convolutional(llrs, constraint_length=self.constraint_length)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ldpc(Code):
    """LDPC of 5G. One core decodes about 100 kbit/s at 20 iterations.

    Attributes:
        rate: 1/3 to 0.8.
        iterations: of belief propagation, flooding; 20 is Sionna's default.
    """

    rate: float = 0.5
    iterations: int = 20

    def __post_init__(self) -> None:
        """Check the fields, and that there is somebody to decode.

        Raises:
            ValueError: when the rate is outside 1/3 to 0.8, or there is no iteration.
            EngineError: when Sionna is not installed.
        """
        if not 1 / 3 <= self.rate <= 0.8 or self.iterations < 1:
            raise ValueError(f"a rate of 1/3 to 0.8 and an iteration or more wanted, got {self.rate:g} and {self.iterations}")
        require_sionna()

    def coded_length(self, num_bits: int) -> int:
        blocks, size = _blocks(num_bits)
        return blocks * self._coded_size(size)

    def encode(self, bits: Bool[Tensor, "row bit"]) -> Bool[Tensor, "row coded"]:
        rows, num_bits = bits.shape
        blocks, size = _blocks(num_bits)
        padded = functional.pad(bits, (0, blocks * size - num_bits)).reshape(rows * blocks, size)
        return encode_ldpc(padded, coded_length=self._coded_size(size)).reshape(rows, self.coded_length(num_bits))

    def decode(self, llrs: Float[Tensor, "row coded"], *, num_bits: int) -> Bool[Tensor, "row bit"]:
        _check_length(llrs, self.coded_length(num_bits))
        rows = llrs.shape[0]
        blocks, size = _blocks(num_bits)
        decoded = decode_ldpc(llrs.reshape(rows * blocks, self._coded_size(size)), num_bits=size, iterations=self.iterations)
        return decoded.reshape(rows, blocks * size)[:, :num_bits]

    def _coded_size(self, size: int) -> int:
        return math.floor(size / self.rate)  # down: below rate 1/3 Sionna has no long blocks


def _blocks(num_bits: int) -> tuple[int, int]:
    """Return how many LDPC blocks a row takes, and the bits of each."""
    blocks = max(1, math.ceil(num_bits / MAX_LDPC_BITS))
    return blocks, max(MIN_LDPC_BITS, math.ceil(num_bits / blocks))


def _check_length(llrs: Tensor, wanted: int) -> None:
    if llrs.ndim != 2 or llrs.shape[1] != wanted:
        raise ValueError(f"rows of {wanted} coded bits wanted, got {list(llrs.shape)}")
