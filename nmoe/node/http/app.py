"""Application: the routes, their description in OpenAPI, and what happens to requests that fit none of them."""

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import nmoe
from nmoe.node.http import schemas
from nmoe.node.http.api import Api
from nmoe.node.http.intake import Intake
from nmoe.node.http.metrics import Metrics
from nmoe.node.http.rejected import Rejected, error_response, shown
from nmoe.node.http.schemas import body, described
from nmoe.node.service import NodeService

_MODEL = "/v2/models/nmoe"
_VERSION = f"{_MODEL}/versions/{{version}}"
_NAMED = {
    "parameters": [
        {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}, "description": "As metadata lists it."}
    ]
}


def create_app(service: NodeService, *, max_body_bytes: int, max_held_bytes: int, body_timeout_s: float) -> ASGIApp:
    """Return the application in front of a node.

    Args:
        service: the node.
        max_body_bytes: larger requests are told 413.
        max_held_bytes: of all bodies in progress; what comes beyond is told 503.
        body_timeout_s: how long a body may take to arrive.
    """
    metrics = Metrics(service)
    api = Api(
        service, intake=Intake(max_body_bytes=max_body_bytes, timeout_s=body_timeout_s, max_held_bytes=max_held_bytes), metrics=metrics
    )
    app = FastAPI(title="nmoe", version=nmoe.__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_protocol(app, api)
    _add_more(app, api)
    app.add_exception_handler(Rejected, _tell_rejected)
    app.add_exception_handler(HTTPException, _tell_unknown)
    app.add_exception_handler(Exception, _tell_failed)
    return _Counted(app, metrics)


def _add_protocol(app: FastAPI, api: Api) -> None:
    """Add the Open Inference Protocol."""
    tags: list[Any] = ["Open Inference Protocol"]

    def add(path: str, endpoint: Any, answers: dict[int | str, dict[str, Any]], *, method: str = "GET", **extra: Any) -> None:
        versioned = "{version}" in path
        name = f"{endpoint.__name__}{'_of_version' if versioned else ''}{'_model' if path.startswith(_MODEL) else ''}"
        described_as = {**extra, **(_NAMED if versioned else {})} or None
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            responses=answers,
            openapi_extra=described_as,
            response_model=None,
            response_class=Response,
            summary=endpoint.__doc__.rstrip("."),
            operation_id=name,
            tags=tags,
        )

    add("/v2", api.server, described(schemas.SERVER, "What serves."))
    add("/v2/health/live", api.live, described(schemas.NOTHING, "It is.", 503))
    add("/v2/health/ready", api.ready, described(schemas.NOTHING, "It does.", 503))
    for root in (_MODEL, _VERSION):
        add(root, api.model, described(schemas.MODEL, "The model.", 404))
        add(f"{root}/ready", api.ready, described(schemas.NOTHING, "It does.", 404, 503))
        add(f"{root}/config", api.config, described(schemas.CONFIG, "The configuration.", 404))
        errors = (400, 403, 404, 408, 413, 415, 500, 503, 504)
        answers = described(schemas.ANSWER, "The classified batch.", *errors, binary=True)
        add(f"{root}/infer", api.infer, answers, method="POST", **body(schemas.INFER, binary=True))
    answers = described(schemas.LEARNED, "Learned.", 400, 403, 404, 408, 413, 415, 503)
    add(f"{_MODEL}/feedback", api.feedback, answers, method="POST", **body(schemas.FEEDBACK))
    add("/v2/repository/index", api.index, described(schemas.INDEX, "What is served.", 403), method="POST")
    loaded = described(schemas.LOADED, "It is served, beside the old version until that one's requests are over.", 403, 409)
    add("/v2/repository/models/nmoe/load", api.load, loaded, method="POST")


def _add_more(app: FastAPI, api: Api) -> None:
    """Add the mesh, its metrics and the pages."""
    text: dict[int | str, dict[str, Any]] = {
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": schemas.STRING}}}
    }
    for path, endpoint, answers in (("/v2/mesh", api.mesh, described(schemas.MESH, "The mesh.")), ("/metrics", api.metrics, text)):
        app.add_api_route(
            path,
            endpoint,
            responses=answers,
            response_model=None,
            response_class=Response,
            summary=(endpoint.__doc__ or "").rstrip("."),
            operation_id=endpoint.__name__,
            tags=["Mesh"],
        )
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas.COMPONENTS)
    written = msgspec.json.encode(document)

    async def openapi(_: Request) -> Response:
        return Response(written, media_type="application/json")

    pages: list[tuple[str, Any]] = [("/openapi.json", openapi), ("/docs", api.document), ("/", api.dashboard)]
    for path, endpoint in pages:
        app.router.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


async def _tell_rejected(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected), "that is what this is called for"
    return error_response(error.status, error.reason, retry_after_s=error.retry_after_s)


async def _tell_unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "that is what this is called for"
    path, method = request.url.path, request.method
    if error.status_code == HTTPStatus.NOT_FOUND:
        kind = "the model served is nmoe; " if path.startswith(("/v2/models/", "/v2/repository/models/")) else ""
        return error_response(404, f"{kind}there is nothing at {shown(path)}; /docs lists what there is")
    answer = error_response(error.status_code, f"another method than {method} wanted at {shown(path)}: {error.detail}")
    answer.headers.update(error.headers or {})
    return answer


async def _tell_failed(_: Request, error: Exception) -> Response:
    answer = error_response(500, f"the node failed: {type(error).__name__}")
    answer.headers["connection"] = "close"  # uvicorn logs the rest and closes, so the client had better know
    return answer


class _Counted:
    """The application, each of its requests counted by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
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
