r"""Commitment: draws that nobody can choose, neither before the first bid nor after the last, and that anyone can check afterwards.

Source: the commitment by a hash, M. Blum, "Coin flipping by telephone", CRYPTO 1981; the chain of hashes, L. Lamport, "Password
    authentication with insecure communication", Communications of the ACM 24 (1981); the keyed hash of receipts, RFC 2104. That the draw is
    public after the bids: ../specs/aeria.md, 2.3. Everything else here is ours [D].

| paper | here | unit |
|-------|------|------|
| | secret | 32 random bytes, drawn when a market is made |
| | nonce of link k = SHA-256("nmoe market nonce\n" nonce of link k+1); the last of 65,536 from the secret | 32 bytes |
| | chain = nonce of link 0: stands for all of them | 64 hexadecimal digits, in the terms of every epoch |
| | terms | what is sold and how, the epoch's number, times, chain and link, in canonical JSON |
| | commitment = SHA-256("nmoe market commitment\n" nonce terms) | 64 hexadecimal digits, told when the epoch opens |
| u | draw = first 53 bits of SHA-256("nmoe market draw\n" nonce), over 2^53 | 1, in [0, 1) |
| | receipt = HMAC-SHA-256(SHA-256("nmoe market receipt\n" nonce), epoch "\n" bid) | 64 hexadecimal digits |

An epoch uses up one link, whose nonce is told when it is over. The draw depends on nothing else: not on the bids, or the operator, who
knows the nonce and sees the bids, could send bids of its own at the end until it likes the draw; not on the terms, or it could try terms.
Nor can it pick a nonce that suits the bids it expects, or drop an epoch whose draw it does not like: the nonces of a chain are fixed before
the first of its epochs opens. The commitment holds capacity, cost and mechanism fast as well. Bidders know neither nonce nor draw before
the end, so there is nothing that the last of them could try out; the nonces told before say nothing of the next one.

What no hash prevents: the operator knows the draw, sees bids as they come, and might tell somebody or bid itself. Where a mechanism is
truthful for every draw, no bidder gains by knowing it; that a seller may bid against its buyers is so in every sealed auction.

A receipt cannot be made by anyone but the market before the nonce is told, nor matched to a bid without it; afterwards anyone can check it.

Departures: the specification has no commitment; it says only that the draw is public after the bids.
"""

import hashlib
import hmac
from typing import NamedTuple

SECRET_BYTES = 32
LINKS = 1 << 16  # epochs of a chain; then another begins, with another anchor
_STEP = 1 << 8  # links between two that are kept: the next nonce is at most so many hashes away
_NONCE, _COMMITMENT, _DRAW, _RECEIPT = (f"nmoe market {word}\n".encode() for word in ("nonce", "commitment", "draw", "receipt"))


class Link(NamedTuple):
    """The nonce of one epoch.

    Attributes:
        chain: 64 hexadecimal digits.
        link: its place in the chain, 1 to ``LINKS``.
        nonce: 32 bytes.
    """

    chain: str
    link: int
    nonce: bytes


class NonceChain:
    """The nonces of a market.

    Args:
        secret: 32 random bytes, told to nobody.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._round = -1
        self._kept: list[bytes] = []

    def link(self, epoch: int) -> Link:
        """Return the nonce of an epoch.

        Args:
            epoch: number, from 1.
        """
        which, before = divmod(epoch - 1, LINKS)
        if which != self._round:
            self._forge(which)
        behind = LINKS - (before + 1)  # links after this one
        nonce = hashed_on(self._kept[behind // _STEP], behind % _STEP)
        return Link(self._kept[-1].hex(), before + 1, nonce)

    def _forge(self, which: int) -> None:
        """Compute a chain from its last link to its anchor, 65,536 hashes, and keep some on the way."""
        kept = [hashlib.sha256(_NONCE + self._secret + b"%d" % which).digest()]
        while len(kept) <= LINKS // _STEP:
            kept.append(hashed_on(kept[-1], _STEP))
        self._kept, self._round = kept, which


def hashed_on(nonce: bytes, times: int) -> bytes:
    """Return the nonce that lies some links before another, towards the anchor."""
    for _ in range(times):
        nonce = hashlib.sha256(_NONCE + nonce).digest()
    return nonce


def commitment_of(nonce: bytes, terms: bytes) -> str:
    """Return what is told when an epoch opens.

    Args:
        nonce: 32 bytes.
        terms: canonical JSON.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(_COMMITMENT + nonce + terms).hexdigest()


def draw_of(nonce: bytes) -> float:
    """Return the draw that a nonce stands for, uniform in [0, 1)."""
    first = int.from_bytes(hashlib.sha256(_DRAW + nonce).digest()[:8], "big")
    return (first >> 11) / 2**53


def receipt_of(nonce: bytes, epoch: int, bid: bytes) -> str:
    """Return what shows that a bid was accepted in an epoch.

    Args:
        nonce: of the epoch, 32 bytes.
        epoch: its number.
        bid: as accepted, in canonical JSON.

    Returns:
        64 hexadecimal digits.
    """
    key = hashlib.sha256(_RECEIPT + nonce).digest()
    return hmac.new(key, b"%d\n" % epoch + bid, "sha256").hexdigest()


def same_secret(one: str, other: str) -> bool:
    """Compare two secrets in a time that says nothing about where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())
