"""Application: the routes, their description in OpenAPI, and what happens to requests that fit none of them."""

import html
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nmoe
from nmoe.market.service import schemas
from nmoe.market.service.api import MarketApi, tell_unwritten
from nmoe.market.service.ledger import LedgerError
from nmoe.market.service.market_metrics import MarketMetrics
from nmoe.market.service.schemas import Schema, described, parameter
from nmoe.market.service.sealed_bid import USER_ID
from nmoe.market.service.turned_away import TurnedAway, quoted

_BODY_ERRORS = (400, 408, 413, 415, 503)


def create_market_app(api: MarketApi, metrics: MarketMetrics, workloads: list[str]) -> ASGIApp:
    """Return the application in front of a market with workloads of these names."""
    app = FastAPI(title="nmoe market", version=nmoe.__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_bids(app, api, workloads)
    _add_epochs(app, api)
    _add(app, "/workloads", api.get_workloads, "GET", described(schemas.WORKLOADS, "The workloads."))
    _add(app, "/health/live", api.get_live, "GET", described(schemas.LIVE, "It runs."))
    _add(app, "/health/ready", api.get_ready, "GET", described(schemas.READY, "It takes bids.", 503))
    _add(app, "/metrics", api.get_metrics, "GET", described(schemas.STRING, "Prometheus' text format.", kind="text/plain"))
    document = app.openapi()
    written, page = msgspec.json.encode(document), _page(document)

    async def openapi(_: Request) -> Response:
        return Response(written, media_type="application/json")

    async def document_page(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": "default-src 'none'"})

    for path, endpoint in (("/openapi.json", openapi), ("/docs", document_page), ("/", document_page)):
        app.router.add_route(path, endpoint, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(TurnedAway, _tell_turned_away)
    app.add_exception_handler(LedgerError, tell_unwritten)
    app.add_exception_handler(HTTPException, _tell_unknown)
    app.add_exception_handler(Exception, _tell_failed)
    return _CountingMarket(_BidsFirst(app, api), metrics)


def _add_bids(app: FastAPI, api: MarketApi, workloads: list[str]) -> None:
    """Add what bidders do."""
    key = parameter("Idempotency-Key", "header", "A bid sent again needs it again.", schemas.IDEMPOTENCY_KEY, required=False)
    sent: Schema = {"content": {"application/json": {"schema": schemas.bid_schema(workloads)}}, "required": True}
    accepted = described(schemas.ACCEPTED, "The bid is on the disk.", *_BODY_ERRORS, 404, 409)
    _add(app, "/bids", api.post_bid, "POST", accepted, requestBody=sent, parameters=[key])
    own = [
        parameter("epoch", "path", "Number.", schemas.EPOCH),
        parameter("user", "path", "The id in the bid.", USER_ID),
        parameter("X-Nmoe-Receipt", "header", "As answered to the bid.", schemas.RECEIPT),
    ]
    _add(app, "/bids/{epoch}/{user}", api.get_bid, "GET", described(schemas.OWN_BID, "The bid.", 400, 404, 503), parameters=own)
    need: Schema = {"content": {"application/json": {"schema": schemas.need_schema(workloads)}}, "required": True}
    _add(app, "/quotes", api.post_quote, "POST", described(schemas.QUOTE, "The quote.", *_BODY_ERRORS), requestBody=need)


def _add_epochs(app: FastAPI, api: MarketApi) -> None:
    """Add what anybody can know, and what the operator does."""
    before = parameter("before", "query", "A number: only earlier epochs.", schemas.EPOCH, required=False)
    epoch = [parameter("epoch", "path", "Number.", schemas.EPOCH)]
    _add(app, "/epochs", api.get_epochs, "GET", described(schemas.EPOCHS, "The epochs in short.", 400, 503), parameters=[before])
    _add(app, "/epochs/current", api.get_current, "GET", described(schemas.EPOCH_OPEN, "The open epoch.", 503))
    shown = described(schemas.EPOCH_SHOWN, "The epoch.", 400, 404, 503)
    _add(app, "/epochs/{epoch}", api.get_epoch, "GET", shown, parameters=epoch)
    token = {"name": "Authorization", "in": "header", "required": True, "description": "Bearer TOKEN.", "schema": {"type": "string"}}
    closed = described(schemas.CLOSED_NOW, "It is cleared.", 400, 401, 403, 404, 503)
    _add(app, "/epochs/{epoch}/close", api.close_epoch, "POST", closed, parameters=[*epoch, token])


def _add(app: FastAPI, path: str, endpoint: Any, method: str, answers: dict[int | str, dict[str, Any]], **extra: Any) -> None:
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        responses=answers,
        openapi_extra=extra or None,
        response_model=None,
        response_class=Response,
        summary=endpoint.__doc__.rstrip("."),
        operation_id=endpoint.__name__,
    )


def _page(document: Schema) -> str:
    """Return the OpenAPI document as a page for people, which loads nothing."""
    rows = [
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td><td>{html.escape(said['summary'])}</td></tr>"
        for path, methods in document["paths"].items()
        for method, said in methods.items()
    ]
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    table = "".join(rows)
    more = '<p>Bodies and answers: <a href="/openapi.json">/openapi.json</a></p>'
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1><table>{table}</table>{more}</html>'


async def _tell_turned_away(_: Request, error: Exception) -> Response:
    assert isinstance(error, TurnedAway), "that is what this is called for"
    return error.response()


async def _tell_unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "that is what this is called for"
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        return TurnedAway(404, f"there is nothing at {quoted(path)}; /docs lists what there is").response()
    headers = {} if error.headers is None else dict(error.headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names the methods of one route, and a path has several
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return TurnedAway(error.status_code, f"another method than {request.method} wanted at {quoted(path)}", headers).response()


def _methods(request: Request) -> set[str]:
    """Return what may be asked of a request's path."""
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in route.methods or ()}


async def _tell_failed(_: Request, error: Exception) -> Response:
    return TurnedAway(500, f"the server failed: {type(error).__name__}", {"connection": "close"}).response()


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
        except TurnedAway as error:
            answer = error.response()
        except LedgerError as error:
            answer = await tell_unwritten(request, error)
        await answer(scope, receive, send)


class _CountingMarket:
    """The application, each of its requests counted by route and status."""

    def __init__(self, app: ASGIApp, metrics: MarketMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = scope.get("route")
            self._metrics.count(route.path if isinstance(route, Route) else "other", status)
