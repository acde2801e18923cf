"""Interface: what each path of the market's server does."""

import asyncio
import re

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nmoe.market.service.commitment import same_secret
from nmoe.market.service.ledger import LedgerError
from nmoe.market.service.market_metrics import CONTENT_TYPE, MarketMetrics
from nmoe.market.service.quote import quote_of
from nmoe.market.service.schemas import IDEMPOTENCY_KEY, RECEIPT
from nmoe.market.service.sealed_bid import MAX_EPOCH, Need, SentBid, check_user_id
from nmoe.market.service.sealed_market import SealedMarket
from nmoe.market.service.turned_away import TurnedAway, quoted

MAX_BODY_BYTES = 4 << 10
BODY_S = 10.0  # a body has this long to arrive
MAX_LISTED = 100
_JSON = "application/json"
_key, _receipt = re.compile(IDEMPOTENCY_KEY, re.ASCII), re.compile(RECEIPT, re.ASCII)


class MarketApi:
    """The paths of one server.

    Args:
        market: takes the bids.
        metrics: counts.
    """

    def __init__(self, market: SealedMarket, metrics: MarketMetrics) -> None:
        self._market, self._metrics = market, metrics
        self._workloads = msgspec.json.encode({"workloads": [market.settings.workloads[name] for name in sorted(market.names)]})
        self.leaving = False

    async def post_bid(self, request: Request) -> Response:
        """Bid in the open epoch; the answer comes when the bid is on the disk, and is the same each time the bid is sent."""
        key = request.headers.get("idempotency-key")
        if key is not None and not _key.fullmatch(key):
            raise TurnedAway(400, f"Idempotency-Key: 1 to 128 visible ASCII characters wanted, got {quoted(key)}")
        sent = SentBid.read(await _body(request), self._market.names)
        return _json(await self._market.accept(sent, key))

    async def get_bid(self, request: Request) -> Response:
        """One's own bid, and what became of it once its epoch is cleared; for who has its receipt."""
        number, user = _number(request), request.path_params["user"]
        check_user_id(user)
        receipt = request.headers.get("x-nmoe-receipt", "")
        if not _receipt.fullmatch(receipt):
            raise TurnedAway(400, f"X-Nmoe-Receipt: the receipt of the bid wanted, 64 hexadecimal digits, got {quoted(receipt)}")
        return _json(await self._market.own_bid(number, user, receipt))

    async def post_quote(self, request: Request) -> Response:
        """What a need would take of the edge, and what that cost the last time."""
        need = Need.read(await _body(request), self._market.names)
        epoch = await self._market.current()
        quote = quote_of(need, self._market.settings.workloads, unit_cost=epoch.terms.unit_cost, last=self._market.last_price)
        return _json(msgspec.json.encode({"epoch": epoch.number, "closes_in_s": self._market.remaining_s(), **quote}))

    async def get_epochs(self, request: Request) -> Response:
        """The latest epochs in short, the latest first; `before` a number to go further back."""
        told = request.query_params.get("before", "")
        if told and not (told.isascii() and told.isdecimal() and 1 <= len(told) <= 15):
            raise TurnedAway(400, f"before: the number of an epoch wanted, got {quoted(told)}")
        return _json(await self._market.listed(int(told) if told else MAX_EPOCH, MAX_LISTED))

    async def get_current(self, request: Request) -> Response:
        """The open epoch: its terms, its commitment, how many have bid."""
        return _json((await self._market.current()).shown())

    async def get_epoch(self, request: Request) -> Response:
        """An epoch: terms and commitment; once it is cleared all that `nmoe market verify` needs."""
        return _json(await self._market.shown(_number(request)))

    async def close_epoch(self, request: Request) -> Response:
        """End an epoch, for the operator; the answer comes when it is cleared."""
        token = self._market.settings.operator_token
        scheme, _, told = request.headers.get("authorization", "").partition(" ")
        if not token:
            raise TurnedAway(403, "epochs of this market end by time alone: it was started without an operator's token")
        if scheme.lower() != "bearer" or not same_secret(told.strip(), token):
            raise TurnedAway(401, "Authorization: Bearer and the operator's token wanted", {"www-authenticate": "Bearer"})
        number = _number(request)
        await self._market.close(number)
        return _json(msgspec.json.encode({"epoch": number, "state": "closed"}))

    async def get_workloads(self, request: Request) -> Response:
        """The workloads that demands are computed from, as a file for `nmoe market verify --workloads`."""
        return _json(self._workloads)

    async def get_live(self, request: Request) -> Response:
        """That the server runs."""
        return _json(b'{"live":true}')

    async def get_ready(self, request: Request) -> Response:
        """That it takes bids."""
        failed = self._market.ledger.failure or self._market.failure
        if self.leaving or failed is not None:
            raise TurnedAway(503, "the server is leaving" if failed is None else "the market failed, and ends", {"retry-after": "1"})
        return _json(b'{"ready":true}')

    async def get_metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)


def _json(body: bytes) -> Response:
    return Response(body, headers={"cache-control": "no-store"}, media_type=_JSON)


def _number(request: Request) -> int:
    """Return the epoch in a request's path."""
    told: str = request.path_params["epoch"]
    if not (told.isascii() and told.isdecimal() and len(told) <= 15 and int(told) >= 1):
        raise TurnedAway(400, f"the number of an epoch wanted, a whole number from 1, got {quoted(told)}")
    return int(told)


async def _body(request: Request) -> bytes:
    """Return a request's body.

    Raises:
        TurnedAway: 400, 408, 413 or 415.
    """
    media = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if media != _JSON:
        raise TurnedAway(415, f"content type {_JSON} wanted, got {quoted(media)}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise TurnedAway(413, f"a body of at most {MAX_BODY_BYTES} bytes wanted")
    except TimeoutError as error:
        raise TurnedAway(408, f"the whole body wanted within {BODY_S:g} s, {len(body)} bytes came") from error
    except ClientDisconnect as error:
        raise TurnedAway(400, "the client went away before the body's end") from error
    return bytes(body)


async def tell_unwritten(_: Request, error: Exception) -> Response:
    """Answer for a market that failed: nothing is acknowledged."""
    assert isinstance(error, LedgerError), "that is what this is called for"
    return TurnedAway(503, "not stored: the market failed, and ends", {"retry-after": "1"}).response()
