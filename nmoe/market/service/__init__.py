"""Service: a market over HTTP, one sealed auction per epoch."""

from nmoe.market.service.client import MarketClient, MarketRefusal
from nmoe.market.service.ledger import LedgerError
from nmoe.market.service.server import MarketServer
from nmoe.market.service.terms import MarketSettings

__all__ = [
    "LedgerError",
    "MarketClient",
    "MarketRefusal",
    "MarketServer",
    "MarketSettings",
]
