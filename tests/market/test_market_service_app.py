"""The market's paths against httpx, without sockets and in virtual time: bids, replays, late ones, epochs, quotes, errors, restarts."""

import asyncio
import json
import sqlite3
import threading

import httpx
import numpy as np
import pytest

from nmoe.core.errors import BadFile
from nmoe.market.auction import Bids, Supply, mechanism_named
from nmoe.market.auction.needs import Needs, edge_demand
from nmoe.market.auction.workloads import builtin_workloads
from nmoe.market.service import api as api_module
from nmoe.market.service import sealed_market as sealed_market_module
from nmoe.market.service.api import MAX_BODY_BYTES, MarketApi
from nmoe.market.service.app import create_market_app
from nmoe.market.service.commitment import commitment_of, draw_of
from nmoe.market.service.ledger import Ledger
from nmoe.market.service.market_metrics import market_metrics
from nmoe.market.service.sealed_market import SealedMarket
from nmoe.market.service.terms import MarketSettings, Terms

TOKEN = {"authorization": "Bearer secret"}
TASK = {"workload": "resnet50", "accuracy": 0.7, "latency_s": 0.2, "tasks": 1, "device_flops": 1e10, "uplink_bps": 2e7}
WORKLOADS = builtin_workloads()


class Site:
    """A market, an application in front of it, and a client of that, in an event loop of its own."""

    def __init__(self, path, now_s=1e9, linger_s=0.0, **settings):
        self.now_s = now_s
        self.runner = asyncio.Runner()
        self.ledger = Ledger(path, secret=bytes(32), linger_s=linger_s)
        given = {"epoch_s": 0, "operator_token": "secret", "mechanism": "aeria-ef", "workloads": WORKLOADS, **settings}
        self.market = SealedMarket(self.ledger, MarketSettings(**given), now=lambda: self.now_s)
        metrics = market_metrics(self.market)
        self.api = MarketApi(self.market, metrics)
        self.app = create_market_app(self.api, metrics, sorted(WORKLOADS))
        self.failed = []
        try:
            self.runner.run(self.market.start(lambda: self.failed.append(True)))
        except BaseException:
            self.close()
            raise

    def __call__(self, method, path, **request):
        return self.all([(method, path, request)])[0]

    def all(self, requests):
        """Ask several things at once."""

        async def ask():
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await asyncio.gather(*(client.request(method, path, **more) for method, path, more in requests))

        return self.runner.run(ask())

    def bid(self, user, bid, demand=1, **more):
        return self("POST", "/bids", json={"id": user, "bid": bid, "demand": demand, **more})

    def end(self, number):
        answer = self("POST", f"/epochs/{number}/close", headers=TOKEN)
        assert answer.status_code == 200, answer.text
        return self("GET", f"/epochs/{number}").json()

    def close(self):
        self.ledger.close()
        self.runner.close()


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "m")
    yield site
    site.close()


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """A market for those whose requests leave nothing behind."""
    site = Site(tmp_path_factory.mktemp("market") / "m")
    yield site
    assert site("GET", "/epochs/current").json()["num_bids"] == 0
    site.close()


def said(answer, status):
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert "\n" not in line
    return line


def test_an_epoch_from_end_to_end(site):
    shown = site("GET", "/epochs/current").json()
    assert (shown["epoch"], shown["state"], shown["num_bids"]) == (1, "open", 0)
    amounts = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 0.5}
    receipts = {user: site.bid(user, bid).json() for user, bid in amounts.items()}
    record = site.end(1)
    terms = {name: shown["terms"][name] for name in Terms.__struct_fields__}
    written, nonce = json.dumps(terms, separators=(",", ":")).encode(), bytes.fromhex(record["nonce"])
    assert record["commitment"] == shown["commitment"] == commitment_of(nonce, written)
    assert record["draw"] == draw_of(nonce)
    book = Bids(ids=tuple(amounts), amount=np.array(list(amounts.values())), demand=np.ones(4))
    wanted = mechanism_named("aeria-ef").clear(book, Supply(), draw=record["draw"])
    users = record["outcome"]["users"]
    assert [user["id"] for user in users] == list(amounts)
    assert [user["served"] for user in users] == wanted.served.tolist()
    assert [user["payment"] for user in users] == wanted.payment.tolist()
    assert record["outcome"]["revenue"] == wanted.revenue > 0
    own = site("GET", "/bids/1/a", headers={"x-nmoe-receipt": receipts["a"]["receipt"]}).json()
    assert own == {
        "epoch": 1,
        "id": "a",
        "state": "closed",
        "closes_in_s": 0.0,
        "sent": {"demand": 1.0, "id": "a", "bid": 5.0},
        "result": users[0],
    }
    short, old = site("GET", "/epochs").json()
    assert (old["epoch"], old["state"], old["num_bids"], old["digest"]) == (1, "closed", 4, record["digest"])
    assert (short["epoch"], short["state"]) == (2, "open")
    assert site("GET", "/epochs?before=2").json() == [old]


def test_stage_one_is_computed_from_the_task(site):
    site("POST", "/bids", json={"id": "a", "bid": 1.0, **TASK})
    site("POST", "/bids", json={"id": "never", "bid": 1.0, **TASK, "accuracy": 0.99})
    site("POST", "/bids", json={"id": "alone", "bid": 1.0, **TASK, "device_flops": 1e15})
    site.bid("units", 2.0, demand=7)
    columns = {name: np.array([TASK[name]], dtype=float) for name in TASK if name != "workload"}
    found = edge_demand(Needs(workloads=("resnet50",), **columns), WORKLOADS)
    users = {user["id"]: user for user in site.end(1)["outcome"]["users"]}
    assert users["a"]["demand"] == found.demand[0]
    assert (users["a"]["partition"], users["a"]["exit"]) == (found.partition[0], found.exit[0])
    assert (users["never"]["demand"], users["never"]["reason"], users["never"]["served"]) == (None, "unservable", False)
    assert (users["alone"]["demand"], users["alone"]["reason"], users["alone"]["payment"]) == (0, "local", 0)
    assert (users["units"]["demand"], users["units"]["partition"], users["units"]["exit"]) == (7, None, None)


def test_nothing_of_a_bid_is_shown_before_the_end(site):
    receipt = site.bid("somebody", 1234.5).json()["receipt"]
    paths = ["/epochs", "/epochs/1", "/epochs/current", "/metrics", "/openapi.json", "/docs", "/workloads"]
    shown = "".join(site("GET", path).text for path in paths) + site("POST", "/quotes", json={"demand": 1}).text
    assert "1234" not in shown
    assert "somebody" not in shown
    assert "nonce" not in site("GET", "/epochs/1").text
    for number, user, token in ((1, "somebody", "0" * 64), (1, "nobody", receipt), (2, "somebody", receipt)):
        said(site("GET", f"/bids/{number}/{user}", headers={"x-nmoe-receipt": token}), 404)
    said(site("GET", "/bids/1/somebody"), 400)
    assert "result" in site("GET", "/bids/1/somebody", headers={"x-nmoe-receipt": receipt}).json()


def test_a_replay_gets_the_first_answer_and_counts_once(site):
    first = site.bid("a", 5.0)
    again = site("POST", "/bids", content=b'{"demand": 1.0,   "bid": 5, "id": "a"}', headers={"content-type": "application/json"})
    assert first.content == again.content
    many = site.all([("POST", "/bids", {"json": {"id": "b", "bid": 2, "demand": 1}})] * 20)
    assert len({answer.content for answer in many}) == 1
    assert "'a' has bid in epoch 1 already" in said(site.bid("a", 5.5), 409)
    record = site.end(1)
    assert [bid["id"] for bid in record["bids"]] == ["a", "b"]
    late = site.bid("a", 5.0, epoch=1)
    assert late.content == first.content
    said(site.bid("a", 5.5, epoch=1), 409)
    assert site.bid("a", 5.0).json()["epoch"] == 2


def test_an_idempotency_key_hides_what_was_bid(site):
    body = {"json": {"id": "a", "bid": 5, "demand": 1}}
    first = site("POST", "/bids", **body, headers={"idempotency-key": "k1"})
    assert site("POST", "/bids", **body, headers={"idempotency-key": "k1"}).content == first.content
    for headers in ({}, {"idempotency-key": "k2"}):  # somebody who guesses
        said(site("POST", "/bids", **body, headers=headers), 409)
    for key in ("", "x" * 129, "a b", "\xe9"):
        said(site("POST", "/bids", **body, headers={"idempotency-key": key.encode("latin-1")}), 400)


def test_late_and_early_bids(site):
    site.end(1)
    assert said(site.bid("a", 1.0, epoch=1), 409) == "epoch 1 is over; epoch 2 is open"
    assert "has not opened" in said(site.bid("a", 1.0, epoch=3), 404)
    assert site.bid("a", 1.0, epoch=2).status_code == 200


def test_epochs_end_by_time(tmp_path):
    site = Site(tmp_path / "m", epoch_s=10)
    site.bid("a", 1.0)
    site.now_s += 9.9
    assert site.bid("b", 1.0).json()["epoch"] == 1
    assert site("POST", "/quotes", json={"demand": 1}).json()["closes_in_s"] == pytest.approx(0.1)
    site.now_s += 0.2
    assert site.bid("c", 1.0).json()["epoch"] == 2
    said(site.bid("d", 1.0, epoch=1), 409)
    record = site.end(1)
    assert [bid["id"] for bid in record["bids"]] == ["a", "b"]
    site.close()


def test_a_restart_goes_on_where_it_was(tmp_path):
    site = Site(tmp_path / "m", epoch_s=10)
    first, shown = site.bid("a", 4.0), site("GET", "/epochs/1").json()
    site.close()
    site = Site(tmp_path / "m", now_s=1e9 + 5, epoch_s=10, capacity=3.0, mechanism="vickrey")
    assert site("GET", "/epochs/1").json() == {**shown, "num_bids": 1}, "an open epoch keeps its terms"
    assert site.bid("a", 4.0).content == first.content
    site.bid("b", 3.0)
    site.close()
    site = Site(tmp_path / "m", now_s=1e9 + 11, epoch_s=10)
    record = site.end(1)
    assert [bid["id"] for bid in record["bids"]] == ["a", "b"]
    assert record["commitment"] == shown["commitment"]
    assert site("GET", "/epochs/current").json()["epoch"] == 2
    site.close()
    site = Site(tmp_path / "m", now_s=1e9 + 12, epoch_s=10)
    assert site("GET", "/epochs/1").json() == record
    assert site("POST", "/quotes", json={"demand": 1}).json()["last_price"]["epoch"] == 1
    site.close()


def test_an_epoch_that_ended_but_was_not_cleared_is_cleared_at_the_start(tmp_path):
    site = Site(tmp_path / "m")
    site.bid("a", 4.0)

    async def half():
        await site.ledger.close_epoch(1, site.now_s)

    site.runner.run(half())  # as if killed right after
    site.close()
    site = Site(tmp_path / "m")
    assert site("GET", "/epochs/current").json()["epoch"] == 2
    assert [bid["id"] for bid in site.end(1)["bids"]] == ["a"]
    site.close()


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE bid SET body = CAST('{"demand":1.0,"id":"a","bid":9.0}' AS BLOB)""",
        "UPDATE epoch SET nonce = zeroblob(32)",
        "UPDATE market SET secret = randomblob(32)",
        "UPDATE epoch SET terms = CAST(replace(terms, 'aeria-ef', 'vickrey') AS BLOB)",
        "UPDATE epoch SET terms = CAST('no' AS BLOB)",
    ],
)
def test_damage_to_an_open_epoch_is_found_at_the_start(tmp_path, statement):
    site = Site(tmp_path / "m")
    site.bid("a", 4.0)
    site.close()
    with sqlite3.connect(tmp_path / "m") as database:
        database.execute(statement)
    database.close()
    with pytest.raises(BadFile, match="epoch 1 of the database is damaged"):
        Site(tmp_path / "m")


def test_an_epoch_that_nobody_could_end_is_one_line(tmp_path):
    Site(tmp_path / "m").close()
    with pytest.raises(ValueError, match="epoch 1 does not end by time"):
        Site(tmp_path / "m", epoch_s=60, operator_token="")


def test_an_epoch_that_cannot_be_cleared_ends_the_market_and_is_cleared_later(tmp_path, monkeypatch):
    site = Site(tmp_path / "m")
    receipt = site.bid("a", 1.0).json()
    with monkeypatch.context() as broken:
        broken.setattr(sealed_market_module, "clear_epoch", lambda *_, **__: 1 / 0)
        said(site("POST", "/epochs/1/close", headers=TOKEN), 503)
    assert site.failed
    assert "ZeroDivisionError" in site.market.failure
    said(site("GET", "/health/ready"), 503)
    site.close()
    site = Site(tmp_path / "m")
    assert [bid["id"] for bid in site.end(1)["bids"]] == ["a"]
    assert site("GET", "/bids/1/a", headers={"x-nmoe-receipt": receipt["receipt"]}).json()["state"] == "closed"
    site.close()


def test_a_lock_of_another_program_is_waited_for(site, tmp_path):
    with sqlite3.connect(tmp_path / "m", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        let_go = threading.Timer(0.3, lambda: site.runner.get_loop().call_soon_threadsafe(other.rollback))
        let_go.start()
        assert site.bid("a", 1.0).status_code == 200
        let_go.join()
    other.close()


def test_other_workloads_wait_for_the_end_of_the_epoch(tmp_path):
    Site(tmp_path / "m").close()
    with pytest.raises(ValueError, match="opened with other workloads"):
        Site(tmp_path / "m", workloads={"alexnet": WORKLOADS["alexnet"]})


@pytest.mark.parametrize("settings", [{}, {"capacity": 0.0}, {"mechanism": "aeria-ic"}, {"mechanism": "fixed-price", "price": 1.0}])
def test_an_empty_epoch_and_one_bidder_have_an_outcome(tmp_path, settings):
    site = Site(tmp_path / "m", **settings)
    empty = site.end(1)["outcome"]
    assert (empty["revenue"], empty["users"]) == (0, [])
    site.bid("a", 2.0)
    (alone,) = site.end(2)["outcome"]["users"]
    assert 0 <= alone["payment"] <= 2
    assert not (settings.get("capacity") == 0 and alone["served"])
    site.close()


def test_a_quote(site):
    quote = site("POST", "/quotes", json=TASK).json()
    columns = {name: np.array([TASK[name]], dtype=float) for name in TASK if name != "workload"}
    found = edge_demand(Needs(workloads=("resnet50",), **columns), WORKLOADS)
    assert (quote["place"], quote["demand"], quote["partition"]) == ("edge", found.demand[0], found.partition[0])
    assert (quote["last_price"], quote["last_payment"], quote["epoch"]) == (None, None, 1)
    assert site("POST", "/quotes", json={**TASK, "accuracy": 0.99}).json()["place"] == "nowhere"
    assert site("POST", "/quotes", json={**TASK, "device_flops": 1e15}).json()["place"] == "device"
    for user in "abc":
        site.bid(user, 5.0)
    (paid,) = {user["unit_price"] for user in site.end(1)["outcome"]["users"]}
    quote = site("POST", "/quotes", json={"demand": 3}).json()
    assert quote["last_price"] == {"epoch": 1, "lowest_unit_price": paid, "highest_unit_price": paid}
    assert quote["last_payment"] == pytest.approx(3 * paid)
    site.end(2)
    assert site("POST", "/quotes", json={"demand": 3}).json()["last_price"]["epoch"] == 1, "nobody bought since"


BAD = [
    ({"id": "", "bid": 1, "demand": 1}, "id: 1 to 64"),
    ({"id": "x" * 65, "bid": 1, "demand": 1}, "65 characters"),
    ({"id": "a/b", "bid": 1, "demand": 1}, "'a/b'"),
    ({"id": 7, "bid": 1, "demand": 1}, "Expected `str`, got `int`"),
    ({"id": "a", "bid": -1, "demand": 1}, "bid: a number from 0 to 1e+15 wanted, got -1.0"),
    ({"id": "a", "bid": 1e16, "demand": 1}, "got 1e+16"),
    ({"id": "a", "bid": "1", "demand": 1}, "Expected `float`, got `str`"),
    ({"id": "a", "bid": None, "demand": 1}, "Expected `float`, got `null`"),
    ({"id": "a", "bid": True, "demand": 1}, "got `bool`"),
    ({"id": "a", "demand": 1}, "missing required field `bid`"),
    ({"id": "a", "bid": 1}, "demand, or all of workload"),
    ({"id": "a", "bid": 1, "demand": -0.5}, "demand: a number"),
    ({"id": "a", "bid": 1, "demand": 1e-12}, "demand: 0 or at least"),
    ({"id": "a", "bid": 1, "demand": 1, "colour": "red"}, "unknown field `colour`"),
    ({"id": "a", "bid": 1, "demand": 1, **TASK}, "demand alone"),
    ({"id": "a", "bid": 1, **TASK, "workload": "skynet"}, "workload: one of alexnet, mobilenet_v2, resnet50, vgg16 wanted, got 'skynet'"),
    ({"id": "a", "bid": 1, **TASK, "accuracy": 1.5}, "accuracy: a number from 0 to 1 wanted, got 1.5"),
    ({"id": "a", "bid": 1, **TASK, "latency_s": 0}, "latency_s: a number"),
    ({"id": "a", "bid": 1, "demand": 1, "epoch": 0}, "epoch: a whole number from 1 wanted, got 0"),
    ({"id": "a", "bid": 1, "demand": 1, "epoch": 1.5}, "Expected `int"),
    ([1], "Expected `object`, got `array`"),
]


@pytest.mark.parametrize(("body", "part"), BAD)
def test_a_bad_bid_is_told_what_was_wanted(unharmed, body, part):
    assert part in said(unharmed("POST", "/bids", json=body), 400)


RAW = [b"", b"{", b"\xff\xfe", b'{"id": "\xff"}', b'{"id": "a", "bid": NaN, "demand": 1}', b'{"id": "a", "bid": Infinity, "demand": 1}']
RAW += [b'{"id": "a", "bid": 1e999, "demand": 1}', b'{"id": "a", "bid": ' + b"9" * 400 + b', "demand": 1}', b"[" * 3000, b"null"]


@pytest.mark.parametrize("content", RAW)
@pytest.mark.parametrize("path", ["/bids", "/quotes"])
def test_what_is_no_body_is_told(unharmed, path, content):
    said(unharmed("POST", path, content=content, headers={"content-type": "application/json"}), 400)


def test_other_refusals(site, monkeypatch):
    assert "content type" in said(site("POST", "/bids", content=b"id=a", headers={"content-type": "text/plain"}), 415)
    said(site("POST", "/bids", content=b" " * (MAX_BODY_BYTES + 1), headers={"content-type": "application/json"}), 413)
    assert "has not opened" in said(site("GET", "/epochs/99"), 404)
    for number in ("0", "-1", "x", "1" * 16, "%C2%B2"):
        said(site("GET", f"/epochs/{number}"), 400)
        said(site("GET", f"/bids/{number}/a", headers={"x-nmoe-receipt": "0" * 64}), 400)
    said(site("GET", "/epochs?before=x"), 400)
    said(site("GET", "/nothing"), 404)
    assert site("PUT", "/bids").headers["allow"] == "POST"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
        said(site("POST", "/epochs/1/close", headers=headers), 401)
    said(site("POST", "/epochs/9/close", headers=TOKEN), 404)

    async def never():
        yield b"{"
        await asyncio.sleep(9)

    monkeypatch.setattr(api_module, "BODY_S", 0.05)
    said(site("POST", "/bids", content=never(), headers={"content-type": "application/json"}), 408)


def test_without_a_token_nobody_ends_an_epoch(tmp_path):
    site = Site(tmp_path / "m", epoch_s=60, operator_token="")
    said(site("POST", "/epochs/1/close", headers={"authorization": "Bearer "}), 403)
    site.close()


def test_a_full_epoch_and_a_busy_disk_turn_away_at_once(tmp_path):
    site = Site(tmp_path / "m", linger_s=0.5, epoch_s=60, max_bids=3, max_waiting=2)
    answers = site.all([("POST", "/bids", {"json": {"id": f"u{number}", "bid": 1, "demand": 1}}) for number in range(3)])
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 1
    assert "busy" in said(refused[0], 503)
    assert refused[0].headers["retry-after"] == "1"
    for number in range(3):
        assert site.bid(f"u{number}", 1).status_code == 200
    full = site.bid("one-more", 1)
    assert "full" in said(full, 503)
    assert 1 <= int(full.headers["retry-after"]) <= 60
    assert site.bid("u1", 1).status_code == 200, "a replay takes no room"
    site.close()


def test_ended_twice_at_once_is_ended_once(site):
    answers = site.all([("POST", "/epochs/1/close", {"headers": TOKEN})] * 5)
    assert {answer.status_code for answer in answers} == {200}
    assert site("GET", "/epochs/current").json()["epoch"] == 2


def test_a_mechanism_without_an_outcome_is_told(site, monkeypatch):
    from nmoe.market.service import record as record_module

    def none(*_):
        raise ValueError("no outcome today")

    monkeypatch.setattr(record_module, "_outcome", none)
    site.bid("a", 1.0)
    record = site.end(1)
    assert (record["outcome"], record["error"]) == (None, "ValueError: no outcome today")
    assert site.bid("a", 1.0).json()["epoch"] == 2, "the market goes on"


def test_a_failed_disk_acknowledges_nothing_and_ends_the_market(site):
    site.ledger._writer.execute("PRAGMA query_only = ON")
    assert "not stored" in said(site.bid("a", 1.0), 503)
    assert site.failed
    said(site("GET", "/health/ready"), 503)
    assert site("GET", "/health/live").status_code == 200


def test_health_metrics_and_pages(site):
    site.bid("a", 1.0)
    site.bid("a", 1.0)
    for user in "bcd":
        site.bid(user, 1.0)
    site.end(1)
    assert site("GET", "/health/live").json() == {"live": True}
    assert site("GET", "/health/ready").json() == {"ready": True}
    text = site("GET", "/metrics").text
    assert "nmoe_market_bids_total 4.0" in text
    assert "nmoe_market_epochs_cleared_total 1.0" in text
    assert 'nmoe_market_requests_total{route="/bids",status="200"} 5.0' in text
    assert 'nmoe_market_unit_price{which="highest"}' in text
    assert "/quotes" in site("GET", "/").text
    document = site("GET", "/openapi.json").json()
    assert set(document["paths"]["/bids"]["post"]["responses"]) == {"200", "400", "404", "405", "408", "409", "413", "415", "503"}
    site.api.leaving = True
    assert "leaving" in said(site("GET", "/health/ready"), 503)
