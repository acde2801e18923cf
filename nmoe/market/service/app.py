"""Application: the routes, their description in OpenAPI, and what happens to requests that fit none of them."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nmoe.http import Counted, Rejected, RequestMetrics, add_document, add_refusals, add_route, new_app
from nmoe.http.schemas import STRING, body, parameter
from nmoe.market.service import schemas
from nmoe.market.service.api import MarketApi, tell_unwritten
from nmoe.market.service.ledger import LedgerError
from nmoe.market.service.schemas import described
from nmoe.market.service.sealed_bid import USER_ID

_BODY_ERRORS = (400, 408, 413, 415, 503)


def create_market_app(api: MarketApi, metrics: RequestMetrics, workloads: list[str]) -> ASGIApp:
    """Return the application in front of a market with workloads of these names."""
    app = new_app("nmoe market")
    _add_bids(app, api, workloads)
    _add_epochs(app, api)
    add_route(app, "/workloads", api.get_workloads, "GET", described(schemas.WORKLOADS, "The workloads."))
    add_route(app, "/health/live", api.get_live, "GET", described(schemas.LIVE, "It runs."))
    add_route(app, "/health/ready", api.get_ready, "GET", described(schemas.READY, "It takes bids.", 503))
    add_route(app, "/metrics", api.get_metrics, "GET", described(STRING, "Prometheus' text format.", kind="text/plain"))
    add_document(app)
    add_refusals(app)
    app.add_exception_handler(LedgerError, tell_unwritten)
    return Counted(_BidsFirst(app, api), metrics.count)


def _add_bids(app: FastAPI, api: MarketApi, workloads: list[str]) -> None:
    """Add what bidders do."""
    key = parameter("Idempotency-Key", "header", "A bid sent again needs it again.", schemas.IDEMPOTENCY_KEY, required=False)
    accepted = described(schemas.ACCEPTED, "The bid is on the disk.", *_BODY_ERRORS, 404, 409)
    add_route(app, "/bids", api.post_bid, "POST", accepted, requestBody=body(schemas.bid_schema(workloads)), parameters=[key])
    own = [
        parameter("epoch", "path", "Number.", schemas.EPOCH),
        parameter("user", "path", "The id in the bid.", USER_ID),
        parameter("X-Nmoe-Receipt", "header", "As answered to the bid.", schemas.RECEIPT),
    ]
    add_route(app, "/bids/{epoch}/{user}", api.get_bid, "GET", described(schemas.OWN_BID, "The bid.", 400, 404, 503), parameters=own)
    add_route(
        app,
        "/quotes",
        api.post_quote,
        "POST",
        described(schemas.QUOTE, "The quote.", *_BODY_ERRORS),
        requestBody=body(schemas.need_schema(workloads)),
    )


def _add_epochs(app: FastAPI, api: MarketApi) -> None:
    """Add what anybody can know, and what the operator does."""
    before = parameter("before", "query", "A number: only earlier epochs.", schemas.EPOCH, required=False)
    epoch = [parameter("epoch", "path", "Number.", schemas.EPOCH)]
    add_route(app, "/epochs", api.get_epochs, "GET", described(schemas.EPOCHS, "The epochs in short.", 400, 503), parameters=[before])
    add_route(app, "/epochs/current", api.get_current, "GET", described(schemas.EPOCH_OPEN, "The open epoch.", 503))
    shown = described(schemas.EPOCH_SHOWN, "The epoch.", 400, 404, 503)
    add_route(app, "/epochs/{epoch}", api.get_epoch, "GET", shown, parameters=epoch)
    token = {"name": "Authorization", "in": "header", "required": True, "description": "Bearer TOKEN.", "schema": {"type": "string"}}
    closed = described(schemas.CLOSED_NOW, "It is cleared.", 400, 401, 403, 404, 503)
    add_route(app, "/epochs/{epoch}/close", api.close_epoch, "POST", closed, parameters=[*epoch, token])


class _BidsFirst:
    """The application, bids going straight to where they are taken: the way through FastAPI's layers takes half of a bid's time."""

    def __init__(self, app: FastAPI, api: MarketApi) -> None:
        self._app, self._api = app, api
        self._route = next(route for route in app.routes if isinstance(route, Route) and route.path == "/bids")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/bids" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            answer = await self._api.post_bid(request)
        except Rejected as error:
            answer = error.response()
        except LedgerError as error:
            answer = await tell_unwritten(request, error)
        await answer(scope, receive, send)
