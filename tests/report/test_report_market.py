"""Reports of a market: JSON without infinities, tables that fit, and figures of any market."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from nmoe.market.auction import MECHANISMS, Bids, Reason, Supply, mechanism_named
from nmoe.report.figures.market import market_figure
from nmoe.report.figures.style import png_bytes
from nmoe.report.market import MOST_EXPLAINED, MOST_ROWS, REASON_WORDS, market_record, market_tables


def record_of(amount, demand, *, name: str = "aeria-ef", supply: Supply | None = None, draw: float = 0.4) -> dict:
    supply = Supply() if supply is None else supply
    ids = tuple(f"user {row + 1}" for row in range(len(amount)))
    bids = Bids(ids=ids, amount=np.array(amount, dtype=float), demand=np.array(demand, dtype=float))
    rule = mechanism_named(name, price=2.0 if name == "fixed-price" else None)
    return market_record(rule, bids, supply, rule.clear(bids, supply, draw=draw), edge=None)


def test_every_reason_has_a_word():
    assert set(REASON_WORDS) == {reason.name.lower() for reason in Reason}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_record_is_json_and_adds_up(name: str):
    record = record_of([9, 7, 5, 3, 1, 2, 8], [1, 2, 1, 1, 1, 0, np.inf], name=name, supply=Supply(capacity=4, unit_cost=0.5))
    json.dumps(record, allow_nan=False)
    users = record["users"]
    assert record["revenue"] == pytest.approx(sum(user["payment"] for user in users))
    sold = sum(user["demand"] for user in users if user["served"])
    assert record["profit"] == pytest.approx(record["revenue"] - 0.5 * sold)
    assert users[0]["edge_share"] == 0.25
    assert users[6]["demand"] is users[6]["edge_share"] is None
    assert all(user["explanation"] for user in users)
    assert png_bytes(market_figure(record)).startswith(b"\x89PNG")


def test_what_would_have_won_wins():
    record = record_of([9, 7, 5, 3], [1, 1, 1, 1], name="vcg", supply=Supply(capacity=2))
    bid = record["users"][3]["winning_bid"]
    assert bid == pytest.approx(7)
    raised = record_of([9, 7, 5, bid * 1.001], [1, 1, 1, 1], name="vcg", supply=Supply(capacity=2))
    assert raised["users"][3]["served"]
    assert raised["users"][3]["payment"] == pytest.approx(bid)


def test_large_markets_are_told_in_short():
    draws = np.random.default_rng(0)
    record = record_of(draws.random(MOST_EXPLAINED + 1), np.ones(MOST_EXPLAINED + 1), name="aeria-ic")
    assert {user["explanation"] for user in record["users"]} == {None}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(market_tables(record, about="aeria-ic"))
    said = console.export_text()
    assert f"The first {MOST_ROWS} of {MOST_EXPLAINED + 1} users are shown" in said
    assert "user 60" in said
    assert "user 61" not in said
    png_bytes(market_figure(record))


def test_the_figure_shows_the_market():
    record = record_of([9, 8, 1], [1, 2, 1], supply=Supply(capacity=3.5, unit_cost=0.5))
    (axes,) = market_figure(record).axes
    corners = [path.vertices for path in axes.collections[0].get_paths()]
    assert [(shape[:, 0].min(), shape[:, 0].max(), shape[:, 1].max()) for shape in corners] == [(0, 1, 9), (1, 3, 4), (3, 4, 1)]
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["price asked", "floor: the first bid without room", "cost of a unit", "capacity"]
    assert record["floor"] == pytest.approx(1), "4 units are wanted, 3.5 are there"
    price = record["users"][0]["unit_price"]
    assert axes.lines[0].get_ydata() == pytest.approx([price, price])
    assert axes.get_ylim()[1] > 9


@pytest.mark.parametrize(
    ("amount", "demand"),
    [([1], [1]), ([0, 0], [1, 1]), ([5, 5], [0, np.inf]), ([1e6, 1, 1, 1, 1], [1, 1, 1, 1, 1]), ([1e-9, 2e-9], [1e12, 1e12])],
)
def test_odd_markets_are_drawn(amount, demand):
    for capacity in (0.0, 1.0, np.inf):
        png_bytes(market_figure(record_of(amount, demand, supply=Supply(capacity=capacity))))


def test_prices_of_their_own_are_steps_and_giants_make_the_axis_logarithmic():
    record = record_of([900, 7, 6, 5, 4], np.ones(5), name="rsop", draw=0.3)
    (axes,) = market_figure(record).axes
    assert axes.get_yscale() == "log"
