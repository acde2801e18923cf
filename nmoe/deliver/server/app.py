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
from nmoe.deliver.server import schemas
from nmoe.deliver.server.api import DeliveryApi
from nmoe.deliver.server.metrics import DeliveryMetrics
from nmoe.deliver.server.schemas import Schema, described, parameter
from nmoe.deliver.server.turned_down import TurnedDown, quoted


def create_app(api: DeliveryApi, metrics: DeliveryMetrics) -> ASGIApp:
    """Return the application in front of a folder of models."""
    app = FastAPI(title="nmoe deliver", version=nmoe.__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    user = [parameter("id", "path", "Chosen by the user.", schemas.USER_ID)]
    told: Schema = {"content": {"application/json": {"schema": schemas.RECEIVER}}, "required": True}
    put_errors = (400, 404, 408, 409, 413, 415, 503)
    _add(
        app,
        "/users/{id}",
        api.put_user,
        "PUT",
        described(schemas.ALLOCATION, "Its allocation.", *put_errors),
        parameters=user,
        requestBody=told,
    )
    _add(app, "/users/{id}", api.get_user, "GET", described(schemas.ALLOCATION, "Its allocation.", 400, 404), parameters=user)
    _add(app, "/users/{id}", api.delete_user, "DELETE", described(schemas.GONE, "It is forgotten.", 400, 404), parameters=user)
    _add(app, "/plan", api.get_plan, "GET", described(schemas.PLAN, "The plan."))
    _add(app, "/files", api.get_files, "GET", described(schemas.FILES, "The models; `reason` says why one cannot be planned for."))
    _add_files(app, api)
    _add(app, "/metrics", api.get_metrics, "GET", described(schemas.STRING, "Prometheus' text format.", kind="text/plain"))
    document = app.openapi()
    written, page = msgspec.json.encode(document), _page(document)

    async def openapi(_: Request) -> Response:
        return Response(written, media_type="application/json")

    async def document_page(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": "default-src 'none'"})

    for path, endpoint in (("/openapi.json", openapi), ("/docs", document_page), ("/", document_page)):
        app.router.add_route(path, endpoint, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(TurnedDown, _tell_turned_down)
    app.add_exception_handler(HTTPException, _tell_unknown)
    app.add_exception_handler(Exception, _tell_failed)
    return _Counting(app, metrics)


def _add(
    app: FastAPI, path: str, endpoint: Any, method: str, answers: dict[int | str, dict[str, Any]], name: str = "", **extra: Any
) -> None:
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
    )


def _add_files(app: FastAPI, api: DeliveryApi) -> None:
    """Add the files; HEAD says what GET would, without the bytes."""
    parameters = [
        parameter("name", "path", "A model's file with its suffix, or its card or index.", schemas.MODEL_NAME),
        parameter("Range", "header", "One range of bytes.", "^bytes=[0-9]{0,18}-[0-9]{0,18}$", required=False),
        parameter(
            "If-Range", "header", "The ETag of an earlier answer: the range only if the file is the same.", "^[!-~]*$", required=False
        ),
        parameter("X-Nmoe-User", "header", "Whose share paces it; without it what the plan leaves over.", schemas.USER_ID, required=False),
    ]
    answers = described(schemas.RAW, "The file.", 400, 404, 416, 429, 503, kind="application/octet-stream")
    answers[200]["content"]["application/json"] = {"schema": {}}
    answers[206] = {**answers[200], "description": "The range of the file."}
    _add(app, "/files/{name}", api.get_file, "GET", answers, parameters=parameters)
    heads = {code: {"description": answer["description"]} for code, answer in answers.items()}
    _add(app, "/files/{name}", api.get_file, "HEAD", heads, "head_file", parameters=parameters)


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


async def _tell_turned_down(_: Request, error: Exception) -> Response:
    assert isinstance(error, TurnedDown), "that is what this is called for"
    return error.response()


async def _tell_unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "that is what this is called for"
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        return TurnedDown(404, f"there is nothing at {quoted(path)}; /docs lists what there is").response()
    headers = {} if error.headers is None else dict(error.headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names the methods of one route, and a path has several
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return TurnedDown(error.status_code, f"another method than {request.method} wanted at {quoted(path)}", headers).response()


def _methods(request: Request) -> set[str]:
    """Return what may be asked of a request's path."""
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in route.methods or ()}


async def _tell_failed(_: Request, error: Exception) -> Response:
    return TurnedDown(500, f"the server failed: {type(error).__name__}", {"connection": "close"}).response()


class _Counting:
    """The application, each of its requests counted by route and status."""

    def __init__(self, app: ASGIApp, metrics: DeliveryMetrics) -> None:
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
