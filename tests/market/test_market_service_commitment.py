"""The commitment against an independent reading of its card, and what it must not let anybody do."""

import hashlib
import hmac

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nmoe.market.service.commitment import LINKS, NonceChain, commitment_of, draw_of, hashed_on, receipt_of, same_secret

nonces = st.binary(min_size=32, max_size=32)


@given(nonces, st.binary(max_size=300))
def test_against_the_card(nonce, terms):
    commitment = hashlib.sha256()
    for part in (b"nmoe market commitment\n", nonce, terms):
        commitment.update(part)
    assert commitment_of(nonce, terms) == commitment.hexdigest()


@given(nonces)
def test_a_draw_against_the_card(nonce):
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(b"nmoe market draw\n" + nonce).digest())
    assert draw_of(nonce) == int(bits[:53], 2) / 2**53
    assert 0 <= draw_of(nonce) < 1


@given(nonces, st.integers(1, 2**40), st.binary(max_size=300))
def test_a_receipt_against_the_card(nonce, epoch, bid):
    key = hashlib.sha256(b"nmoe market receipt\n" + nonce).digest()
    assert receipt_of(nonce, epoch, bid) == hmac.digest(key, f"{epoch}\n".encode() + bid, "sha256").hex()


@given(nonces, st.binary(min_size=1, max_size=100), st.data())
def test_any_other_byte_is_another_commitment(nonce, terms, data):
    place, bit = data.draw(st.integers(0, len(nonce) + len(terms) - 1)), data.draw(st.integers(0, 7))
    whole = bytearray(nonce + terms)
    whole[place] ^= 1 << bit
    assert commitment_of(bytes(whole[:32]), bytes(whole[32:])) != commitment_of(nonce, terms)


def test_draws_are_uniform():
    """Chi-squared over 50 cells of 20,000 nonces that are counted up: below the 0.99999 quantile of 49 degrees of freedom."""
    draws = [draw_of(number.to_bytes(32, "big")) for number in range(20_000)]
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    assert ((counts - 400) ** 2 / 400).sum() < 106.0


def test_a_chain_against_the_card():
    """All 65,536 links naively, then some of them as they are asked for, in any order, and the next chain."""
    secret = bytes(range(32))
    nonce = hashlib.sha256(b"nmoe market nonce\n" + secret + b"0").digest()
    nonces = [nonce]
    for _ in range(LINKS):
        nonces.append(hashlib.sha256(b"nmoe market nonce\n" + nonces[-1]).digest())
    nonces.reverse()
    chain = NonceChain(secret)
    for epoch in (1, 2, 255, 256, 257, 30_000, LINKS - 1, LINKS, 1):
        assert chain.link(epoch) == (nonces[0].hex(), epoch, nonces[epoch])
        assert hashed_on(nonces[epoch], epoch) == nonces[0]
    after = chain.link(LINKS + 1)
    assert after.link == 1
    assert after.chain != nonces[0].hex()
    assert hashed_on(after.nonce, 1).hex() == after.chain


def test_secrets_are_compared():
    assert same_secret("é1", "é1")
    assert not same_secret("é1", "é2")
