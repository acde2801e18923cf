"""Interface: what each path of the market's server does."""

import re

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nmoe.http import Rejected, RequestMetrics, quoted, read_json
from nmoe.market.service.commitment import same_secret
from nmoe.market.service.ledger import LedgerError
from nmoe.market.service.quote import quote_of
from nmoe.market.service.schemas import IDEMPOTENCY_KEY, RECEIPT
from nmoe.market.service.sealed_bid import MAX_EPOCH, Need, SentBid, check_user_id
from nmoe.market.service.sealed_market import SealedMarket

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

    def __init__(self, market: SealedMarket, metrics: RequestMetrics) -> None:
        self._market, self._metrics = market, metrics
        self._workloads = msgspec.json.encode({"workloads": [market.settings.workloads[name] for name in sorted(market.names)]})
        self.leaving = False

    async def post_bid(self, request: Request) -> Response:
        """Bid in the open epoch; the answer comes when the bid is on the disk, and is the same each time the bid is sent."""
        key = request.headers.get("idempotency-key")
        if key is not None and not _key.fullmatch(key):
            raise Rejected(400, f"Idempotency-Key: 1 to 128 visible ASCII characters wanted, got {quoted(key)}")
        sent = SentBid.read(await read_json(request, max_bytes=MAX_BODY_BYTES, within_s=BODY_S), self._market.names)
        return _json(await self._market.accept(sent, key))

    async def get_bid(self, request: Request) -> Response:
        """One's own bid, and what became of it once its epoch is cleared; for who has its receipt."""
        number, user = _number(request), request.path_params["user"]
        check_user_id(user)
        receipt = request.headers.get("x-nmoe-receipt", "")
        if not _receipt.fullmatch(receipt):
            raise Rejected(400, f"X-Nmoe-Receipt: the receipt of the bid wanted, 64 hexadecimal digits, got {quoted(receipt)}")
        return _json(await self._market.own_bid(number, user, receipt))

    async def post_quote(self, request: Request) -> Response:
        """What a need would take of the edge, and what that cost the last time."""
        need = Need.read(await read_json(request, max_bytes=MAX_BODY_BYTES, within_s=BODY_S), self._market.names)
        epoch = await self._market.current()
        quote = quote_of(need, self._market.settings.workloads, unit_cost=epoch.terms.unit_cost, last=self._market.last_price)
        return _json(msgspec.json.encode({"epoch": epoch.number, "closes_in_s": self._market.remaining_s(), **quote}))

    async def get_epochs(self, request: Request) -> Response:
        """The latest epochs in short, the latest first; `before` a number to go further back."""
        told = request.query_params.get("before", "")
        if told and not (told.isascii() and told.isdecimal() and 1 <= len(told) <= 15):
            raise Rejected(400, f"before: the number of an epoch wanted, got {quoted(told)}")
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
            raise Rejected(403, "epochs of this market end by time alone: it was started without an operator's token")
        if scheme.lower() != "bearer" or not same_secret(told.strip(), token):
            raise Rejected(401, "Authorization: Bearer and the operator's token wanted", {"www-authenticate": "Bearer"})
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
            raise Rejected(503, "the server is leaving" if failed is None else "the market failed, and ends", {"retry-after": "1"})
        return _json(b'{"ready":true}')

    async def get_metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return self._metrics.response()


def _json(body: bytes) -> Response:
    return Response(body, headers={"cache-control": "no-store"}, media_type=_JSON)


def _number(request: Request) -> int:
    """Return the epoch in a request's path."""
    told: str = request.path_params["epoch"]
    if not (told.isascii() and told.isdecimal() and len(told) <= 15 and int(told) >= 1):
        raise Rejected(400, f"the number of an epoch wanted, a whole number from 1, got {quoted(told)}")
    return int(told)


async def tell_unwritten(_: Request, error: Exception) -> Response:
    """Answer for a market that failed: nothing is acknowledged."""
    assert isinstance(error, LedgerError), "that is what this is called for"
    return Rejected(503, "not stored: the market failed, and ends", {"retry-after": "1"}).response()
