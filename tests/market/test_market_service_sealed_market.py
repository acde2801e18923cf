"""The market against a model of it: a dictionary per epoch, through bids, replays, ends of epochs, crashes and restarts in any order."""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.http import Rejected
from nmoe.market.auction.workloads import builtin_workloads
from nmoe.market.service.ledger import Ledger
from nmoe.market.service.sealed_bid import SentBid
from nmoe.market.service.sealed_market import SealedMarket
from nmoe.market.service.terms import MarketSettings
from nmoe.market.service.verification import differences, read_record

WORKLOADS = builtin_workloads()
SETTINGS = MarketSettings(epoch_s=10, operator_token="t", workloads=WORKLOADS, mechanism="aeria-ef", capacity=5.0)
bids = st.tuples(st.just("bid"), st.sampled_from("abc"), st.sampled_from([1.0, 2.0]), st.sampled_from([None, 1, 2, 3]))
steps = st.one_of(bids, bids, bids, st.tuples(st.sampled_from(["restart", "crash", "close", "wait"])))


class Told:
    """What the model knows: bids and first answers by epoch."""

    def __init__(self):
        self.epoch, self.left_s = 1, 10
        self.bids, self.answers = {1: {}}, {}

    def roll(self):
        self.epoch, self.left_s = self.epoch + 1, 10
        self.bids[self.epoch] = {}

    def wanted(self, user, amount, named):
        """Return the status that a bid has to get."""
        number = named or self.epoch
        if number > self.epoch:
            return 404
        if user in self.bids[number]:
            return 200 if self.bids[number][user] == amount else 409
        return 200 if number == self.epoch else 409


async def started(path, clock):
    ledger = Ledger(path, secret=bytes(32), linger_s=0)
    market = SealedMarket(ledger, SETTINGS, now=lambda: clock[0])
    await market.start(lambda: None)
    return market


async def bid(market, told, user, amount, named):
    wanted, number = told.wanted(user, amount, named), named or told.epoch
    sent = SentBid(id=user, bid=amount, demand=1.0, epoch=named)
    if wanted != 200:
        with pytest.raises(Rejected) as refused:
            await market.accept(sent, None)
        assert refused.value.status == wanted
        return
    answer = await market.accept(sent, None)
    assert told.answers.setdefault((number, user), answer) == answer
    told.bids[number][user] = amount


async def play(folder, moves):
    path, clock, told = folder / "m", [1e9], Told()
    market = await started(path, clock)
    for count, (move, *more) in enumerate(moves):
        if move == "bid":
            await bid(market, told, *more)
        elif move == "close":
            await market.close(told.epoch)
            told.roll()
        elif move == "wait":
            clock[0] += 4
            market.tick()
            told.left_s -= 4
            if told.left_s <= 0:
                told.roll()
        else:
            if move == "crash":  # what is on the disk at this moment is all that is left
                later = folder / f"m{count}"
                for end in ("", "-wal"):
                    shutil.copy(f"{path}{end}", f"{later}{end}")
                await market.stop()
                market.ledger.close()
                path = later
            else:
                await market.stop()
                market.ledger.close()
            market = await started(path, clock)
            assert market._epoch.number == told.epoch
    await market.close(told.epoch)
    for number, of_epoch in told.bids.items():
        (folder / "EPOCH.json").write_bytes(await market.shown(number))
        record, data = read_record(folder / "EPOCH.json")
        assert differences(record, data, WORKLOADS) == []
        assert {one["id"]: one["bid"] for one in json.loads(data)["bids"]} == of_epoch
    market.ledger.close()


@given(st.lists(steps, max_size=14))
@settings(max_examples=25)
def test_against_the_model(moves):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), moves))
