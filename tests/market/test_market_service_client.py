"""The client: tries again where that may help and nowhere else, and its bids count once."""

import httpx
import pytest

from nmoe.market.service import MarketClient, MarketRefusal, MarketServer, MarketSettings
from nmoe.market.service.receipt import Receipt

RECEIPT = {"epoch": 1, "id": "a", "receipt": "0" * 64}


class Script:
    """A server that answers by a list: a status, an answer, or an exception."""

    def __init__(self, *answers):
        self.answers, self.asked, self.waited = list(answers), [], []

    def client(self, **more):
        return MarketClient("http://market", sleep=self.waited.append, transport=httpx.MockTransport(self.answer), **more)

    def answer(self, request):
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def busy(after=None):
    return httpx.Response(503, json={"error": "busy"}, headers={} if after is None else {"retry-after": after})


def test_a_bid_is_sent_again_with_the_same_key_and_epoch():
    script = Script(httpx.ConnectError("no"), busy("2"), httpx.ReadTimeout("slow"), httpx.Response(200, json=RECEIPT))
    with script.client() as client:
        assert client.bid("a", 2.0, epoch=1, demand=3) == Receipt(**RECEIPT)
    assert len({request.headers["idempotency-key"] for request in script.asked}) == 1
    assert {request.content for request in script.asked} == {b'{"id":"a","bid":2.0,"epoch":1,"demand":3}'}
    assert script.waited == [0.1, 2.0, 0.4]


def test_two_bids_have_two_keys_and_name_the_open_epoch():
    epoch = httpx.Response(200, json={"epoch": 7})
    script = Script(epoch, httpx.Response(200, json=RECEIPT), epoch, httpx.Response(200, json=RECEIPT))
    client = script.client()
    client.bid("a", 2.0, demand=3)
    client.bid("b", 2.0, demand=3)
    assert script.asked[1].headers["idempotency-key"] != script.asked[3].headers["idempotency-key"]
    assert b'"epoch":7' in script.asked[1].content


def test_tries_are_bounded():
    script = Script(*[busy("999999")] * 9)
    with pytest.raises(MarketRefusal, match=r"busy \(status 503\)") as caught:
        script.client(attempts=3).current()
    assert caught.value.status == 503
    assert script.waited == [5.0, 5.0]
    script = Script(*[httpx.ConnectError("refused")] * 9)
    with pytest.raises(MarketRefusal, match="no answer from http://market in 2 tries: refused") as caught:
        script.client(attempts=2).current()
    assert caught.value.status is None


@pytest.mark.parametrize("status", [400, 404, 409, 500])
def test_a_refusal_is_not_tried_again(status):
    script = Script(httpx.Response(status, json={"error": "epoch 1 is over"}))
    with pytest.raises(MarketRefusal, match=f"epoch 1 is over .status {status}") as caught:
        script.client().current()
    assert (caught.value.status, len(script.asked)) == (status, 1)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[1]", b"\xff"])
def test_what_is_no_market_is_one_line(content):
    with pytest.raises(MarketRefusal, match="is no market: status 200"):
        Script(httpx.Response(200, content=content)).client().current()


def test_an_answer_that_is_no_receipt_is_one_line():
    with pytest.raises(MarketRefusal, match="is no market"):
        Script(httpx.Response(200, json={"id": "a"})).client().bid("a", 1, epoch=1, demand=1)


def test_waiting_for_an_outcome_ends():
    told = {"state": "open", "closes_in_s": None, "result": None}
    client = Script(*[httpx.Response(200, json=told)] * 3).client()
    with pytest.raises(MarketRefusal, match="not cleared within 0 s"):
        client.outcome(Receipt(**RECEIPT), within_s=0)
    failed = Script(httpx.Response(200, json={"state": "closed", "result": None})).client()
    with pytest.raises(MarketRefusal, match="has no outcome"):
        failed.outcome(Receipt(**RECEIPT), within_s=0)


@pytest.mark.parametrize("wrong", [{"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"attempts": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="wanted"):
        MarketClient("http://market", **wrong)


def test_an_address_that_is_none_is_one_line():
    with pytest.raises(MarketRefusal, match="no answer"):
        MarketClient("gopher://market", sleep=lambda _: None).current()


def test_against_a_real_server(tmp_path):
    server = MarketServer(tmp_path / "m", "127.0.0.1", 0, settings=MarketSettings(epoch_s=0.5, mechanism="vickrey", capacity=1.0))
    try:
        with MarketClient(f"http://{server.start()}") as client:
            assert client.quote(demand=1)["demand"] == 1
            while client.quote(demand=1)["closes_in_s"] < 0.3:
                pass
            high, low = client.bid("high", 3.0, demand=1), client.bid("low", 2.0, demand=1)
            assert client.own_bid(high)["sent"]["bid"] == 3.0
            won = client.outcome(high, within_s=20)
            assert (won["served"], won["payment"]) == (True, 2.0)
            assert not client.outcome(low, within_s=20)["served"]
            assert client.epoch(high.epoch)["outcome"]["revenue"] == 2.0
            assert client.quote(demand=2)["last_payment"] == 4.0
    finally:
        server.stop()
