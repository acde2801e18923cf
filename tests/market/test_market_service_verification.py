"""Verification: a right record is right, and whatever byte or word of it is changed, the change is found."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from nmoe.core.errors import BadFile
from nmoe.market.auction.workloads import builtin_workloads
from nmoe.market.service.commitment import NonceChain, receipt_of
from nmoe.market.service.receipt import Receipt
from nmoe.market.service.record import clear_epoch
from nmoe.market.service.sealed_bid import SealedBid
from nmoe.market.service.terms import MarketSettings
from nmoe.market.service.verification import WrongRecord, differences, read_receipt, read_record

WORKLOADS = builtin_workloads()
LINK = NonceChain(bytes(range(32))).link(3)
NONCE = LINK.nonce
TASK = {"workload": "vgg16", "accuracy": 0.7, "latency_s": 0.3, "tasks": 1.0, "device_flops": 1e10, "uplink_bps": 3e7}
BIDS = [
    SealedBid(id="b", bid=4.0, demand=1.0),
    SealedBid(id="a", bid=5.0, demand=1.0),
    SealedBid(id="c", bid=3.0, demand=1.0),
    SealedBid(id="d", bid=9e12, **TASK),
    SealedBid(id="e", bid=0.1, demand=1.0),
]


def record_of(bids=BIDS, **chosen):
    terms = MarketSettings(workloads=WORKLOADS, **{"mechanism": "aeria-ef", **chosen}).terms(epoch=3, link=LINK, now_s=1e9)
    return clear_epoch(terms, NONCE, bids, WORKLOADS, closed_s=1e9 + 60)


RECORD = record_of()
DATA = RECORD.written()


def verdict(path, data, **more):
    """Return how a record is found to be: a list of differences, or the error."""
    path.write_bytes(data)
    try:
        return differences(*read_record(path), WORKLOADS, **more)
    except (WrongRecord, BadFile) as error:
        return [error]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("record") / "EPOCH.json"


@pytest.mark.parametrize("mechanism", ["aeria-ic", "aeria-ef", "aeria-mixture", "vickrey", "vcg", "rsop", "omniscient"])
@pytest.mark.parametrize("bids", [[], BIDS[:1], BIDS])
def test_a_right_record_is_right(path, mechanism, bids):
    assert verdict(path, record_of(bids, mechanism=mechanism, capacity=1e15, unit_cost=0.01).written()) == []


def test_the_order_in_which_bids_came_changes_nothing():
    assert record_of(BIDS[::-1]).written() == DATA


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
@settings(max_examples=150)
def test_any_changed_byte_is_found(path, place, byte):
    changed = DATA[:place] + bytes([byte]) + DATA[place + 1 :]
    assert (verdict(path, changed) == []) == (changed == DATA)


@given(st.integers(0, len(DATA)), st.sampled_from([b" ", b"\n", b"0", b",", b"\xef\xbb\xbf"]))
@settings(max_examples=40)
def test_any_added_byte_is_found(path, place, more):
    assert verdict(path, DATA[:place] + more + DATA[place:])


@given(st.integers(0, len(DATA) - 1))
@settings(max_examples=40)
def test_any_missing_byte_is_found(path, place):
    assert verdict(path, DATA[:place] + DATA[place + 1 :])


def changed(change, *, digest=True):
    """Return the record changed by somebody who makes its digest fit again."""
    document = json.loads(DATA)
    change(document)
    if digest:
        import hashlib

        document["digest"] = ""
        bare = json.dumps(document, separators=(",", ":")).encode()
        document["digest"] = hashlib.sha256(bare).hexdigest()
    return json.dumps(document, separators=(",", ":")).encode()


def test_the_operator_cannot_make_up_another_outcome(path):
    changes = {
        "terms.capacity": lambda told: told["terms"].update(capacity=1.0),
        "commitment": lambda told: told.update(commitment="0" * 64),
        "nonce": lambda told: told.update(nonce="00" * 32),
        "terms.chain": lambda told: told["terms"].update(chain="0" * 64),
        "terms.link": lambda told: told["terms"].update(link=4),
        "no link": lambda told: told["terms"].update(link=10**12),
        "draw": lambda told: told.update(draw=0.5),
        "bids[0].bid": lambda told: told["bids"][0].update(bid=5.5),
        "a bid left out": lambda told: told["bids"].pop(),
        "a bid put in": lambda told: told["bids"].append({"demand": 1.0, "id": "z", "bid": 1.0}),
        "order": lambda told: told["bids"].reverse(),
        "twice": lambda told: told["bids"].append(told["bids"][-1]),
        "outcome.users[0].payment": lambda told: told["outcome"]["users"][0].update(payment=123.0),
        "outcome.users[1].served": lambda told: told["outcome"]["users"][1].update(served=not told["outcome"]["users"][1]["served"]),
        "outcome.users[3].demand": lambda told: told["outcome"]["users"][3].update(demand=1.0),
        "outcome.users[3].partition": lambda told: told["outcome"]["users"][3].update(partition=1),
        "outcome.revenue": lambda told: told["outcome"].update(revenue=1.0),
        "outcome": lambda told: told.update(outcome=None, error="closed for lunch"),
        "epoch": lambda told: told.update(epoch=4),
        "mechanism": lambda told: told["terms"].update(mechanism="no-such"),
        "infinite": lambda told: told["bids"][0].update(bid=-1.0),
    }
    assert verdict(path, changed(lambda _: None)) == [], "the way of changing changes nothing itself"
    for place, change in changes.items():
        found = verdict(path, changed(change))
        assert found, place
        if "." in place or place in {"draw", "commitment", "epoch"}:
            assert any(str(one).startswith((place, "commitment", "draw", "outcome", "bids_digest")) for one in found), (place, found)


def test_a_whole_other_epoch_is_found_by_the_noted_commitment(path):
    other = clear_epoch(structs.replace(RECORD.terms, capacity=2.0), NONCE, BIDS, WORKLOADS, closed_s=RECORD.closed_s).written()
    assert verdict(path, other) == [], "by itself it is consistent"
    (found,) = verdict(path, other, commitment=RECORD.commitment)
    assert str(found).startswith(f"commitment: {RECORD.commitment} (as noted) by the rules")


def test_a_nonce_of_another_chain_is_found(path):
    """However consistent the rest is: the operator cannot draw again."""
    other = clear_epoch(RECORD.terms, bytes(32), BIDS, WORKLOADS, closed_s=RECORD.closed_s).written()
    (found,) = verdict(path, other)
    assert found.place == "terms.chain"


def test_a_receipt_proves_that_a_bid_is_missing_or_changed(path):
    receipts = [Receipt(epoch=3, id=bid.id, receipt=receipt_of(NONCE, 3, bid.written())) for bid in BIDS]
    assert verdict(path, DATA, receipts=receipts) == []
    without = record_of(BIDS[:-1]).written()
    assert [str(one) for one in verdict(path, without, receipts=receipts)] == [
        "receipt of e: its bid by the rules, no bid of that id in the file"
    ]
    lower = record_of([SealedBid(id="b", bid=1.0, demand=1.0), *BIDS[1:]]).written()
    assert [one.place for one in verdict(path, lower, receipts=receipts)] == ["receipt of b"]
    assert verdict(path, DATA, receipts=[Receipt(epoch=4, id="a", receipt="")])[0].wanted == "epoch 4"


def test_other_workloads_are_named(path):
    path.write_bytes(DATA)
    with pytest.raises(WrongRecord, match="other workloads"):
        differences(*read_record(path), {"vgg16": WORKLOADS["vgg16"]})


def test_written_otherwise_is_found_and_said(path):
    (found,) = verdict(path, json.dumps(json.loads(DATA), indent=1).encode())
    assert found.place == "byte 1"
    assert "save the answer as it comes" in str(found)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 5000, b"\xff", DATA.replace(b"epoch 1", b"epoch 2"), b'{"state": "open"}'])
def test_what_is_no_record_is_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"EPOCH\.json"):
        read_record(path)


def test_what_is_no_receipt_is_one_line(path, tmp_path):
    path.write_bytes(b"[]")
    for wrong in (path, tmp_path / "nowhere"):
        with pytest.raises(BadFile):
            read_receipt(wrong)
    with pytest.raises(BadFile):
        read_record(tmp_path / "nowhere")


def test_a_change_that_is_no_change_is_right(path):
    document = json.loads(DATA)
    assert verdict(path, json.dumps(copy.deepcopy(document), separators=(",", ":")).encode()) == []
