"""Application: routes and their description in OpenAPI, what happens to requests that fit none of them, and the count of all."""

import html
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nmoe
from nmoe.http.rejected import Rejected, quoted
from nmoe.http.schemas import Answers, Schema


def new_app(title: str) -> FastAPI:
    """Return an application without any path, not even those that FastAPI makes by itself."""
    return FastAPI(title=title, version=nmoe.__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)


def add_route(
    app: FastAPI, path: str, endpoint: Any, method: str, answers: Answers, *, name: str = "", tags: list[Any] | None = None, **extra: Any
) -> None:
    """Add a route.

    Args:
        app: to add it to.
        path: may hold ``{parameters}``.
        endpoint: takes a request and returns a response; the first line of its docstring is the summary.
        method: of HTTP.
        answers: as OpenAPI describes them.
        name: of the operation; that of the endpoint if not given.
        tags: that group operations.
        extra: what else OpenAPI says of it, such as ``parameters`` and ``requestBody``.
    """
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        responses=answers,
        openapi_extra=extra or None,
        response_model=None,
        response_class=Response,
        summary=endpoint.__doc__.rstrip("."),
        operation_id=name or endpoint.__name__,
        tags=tags,
    )


def add_document(app: FastAPI, components: dict[str, Schema] | None = None, pages: dict[str, Any] | None = None) -> None:
    """Add ``/openapi.json`` and pages; the document has the routes that were added before.

    Args:
        app: to add them to.
        components: schemas that others refer to.
        pages: endpoint by path; if not given, ``/docs`` and ``/`` show the document as a table.
    """
    document = app.openapi()
    if components is not None:
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    written, table = msgspec.json.encode(document), _table(document)

    async def openapi(_: Request) -> Response:
        return Response(written, media_type="application/json")

    async def page(_: Request) -> Response:
        return Response(table, media_type="text/html", headers={"content-security-policy": "default-src 'none'"})

    for path, endpoint in {"/openapi.json": openapi, **(pages or {"/docs": page, "/": page})}.items():
        app.router.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


def _table(document: Schema) -> str:
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


def add_refusals(app: FastAPI, *, who: str = "the server") -> None:
    """Let every error be told as ``{"error": line}``.

    Args:
        app: whose errors.
        who: fails, when it is nobody's fault but ours.
    """

    async def tell_failed(_: Request, error: Exception) -> Response:  # uvicorn logs the rest and closes, so the client had better know
        return Rejected(500, f"{who} failed: {type(error).__name__}", {"connection": "close"}).response()

    app.add_exception_handler(Rejected, _tell_rejected)
    app.add_exception_handler(HTTPException, tell_unknown)
    app.add_exception_handler(Exception, tell_failed)


async def _tell_rejected(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected), "that is what this is called for"
    return error.response()


async def tell_unknown(request: Request, error: Exception) -> Response:
    """Answer a request that fits no route."""
    assert isinstance(error, HTTPException), "that is what this is called for"
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        return Rejected(404, f"there is nothing at {quoted(path)}; /docs lists what there is").response()
    headers = {} if error.headers is None else dict(error.headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names the methods of one route, and a path has several
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return Rejected(error.status_code, f"another method than {request.method} wanted at {quoted(path)}", headers).response()


def _methods(request: Request) -> set[str]:
    """Return what may be asked of a request's path."""
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in route.methods or ()}


class Counted:
    """An application, each of its requests counted.

    Args:
        app: answers.
        count: is given the route, which is one of the paths served or ``other`` and never what a client wrote, and the status.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self._app, self._count = app, count

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
            self._count(route.path if isinstance(route, Route) else "other", status)
