"""Application: the routes, their description in OpenAPI, and what happens to requests that fit none of them."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from nmoe.http import Counted, Rejected, add_document, add_refusals, add_route, new_app, quoted, tell_unknown
from nmoe.http.schemas import STRING, Answers, body
from nmoe.node.http import schemas
from nmoe.node.http.api import Api
from nmoe.node.http.intake import Intake
from nmoe.node.http.metrics import Metrics
from nmoe.node.http.schemas import described
from nmoe.node.service import NodeService

_MODEL = "/v2/models/nmoe"
_OTHERS = ("/v2/models/", "/v2/repository/models/")
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
    app = new_app("nmoe")
    _add_protocol(app, api)
    _add_more(app, api)
    add_refusals(app, who="the node")
    app.add_exception_handler(HTTPException, _tell_unknown)
    return Counted(app, metrics.requests.count)


def _add_protocol(app: FastAPI, api: Api) -> None:
    """Add the Open Inference Protocol."""
    tags: list[Any] = ["Open Inference Protocol"]

    def add(path: str, endpoint: Any, answers: Answers, *, method: str = "GET", **extra: Any) -> None:
        versioned = "{version}" in path
        name = f"{endpoint.__name__}{'_of_version' if versioned else ''}{'_model' if path.startswith(_MODEL) else ''}"
        add_route(app, path, endpoint, method, answers, name=name, tags=tags, **extra, **(_NAMED if versioned else {}))

    add("/v2", api.server, described(schemas.SERVER, "What serves."))
    add("/v2/health/live", api.live, described(schemas.NOTHING, "It is.", 503))
    add("/v2/health/ready", api.ready, described(schemas.NOTHING, "It does.", 503))
    for root in (_MODEL, _VERSION):
        add(root, api.model, described(schemas.MODEL, "The model.", 404))
        add(f"{root}/ready", api.ready, described(schemas.NOTHING, "It does.", 404, 503))
        add(f"{root}/config", api.config, described(schemas.CONFIG, "The configuration.", 404))
        errors = (400, 403, 404, 408, 413, 415, 500, 503, 504)
        answers = described(schemas.ANSWER, "The classified batch.", *errors, binary=True)
        add(f"{root}/infer", api.infer, answers, method="POST", requestBody=schemas.infer_body())
    answers = described(schemas.LEARNED, "Learned.", 400, 403, 404, 408, 413, 415, 503)
    add(f"{_MODEL}/feedback", api.feedback, answers, method="POST", requestBody=body(schemas.FEEDBACK))
    add("/v2/repository/index", api.index, described(schemas.INDEX, "What is served.", 403), method="POST")
    loaded = described(schemas.LOADED, "It is served, beside the old version until that one's requests are over.", 403, 409)
    add("/v2/repository/models/nmoe/load", api.load, loaded, method="POST")


def _add_more(app: FastAPI, api: Api) -> None:
    """Add the mesh, its metrics and the pages."""
    text: Answers = {200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": STRING}}}}
    for path, endpoint, answers in (("/v2/mesh", api.mesh, described(schemas.MESH, "The mesh.")), ("/metrics", api.metrics, text)):
        add_route(app, path, endpoint, "GET", answers, tags=["Mesh"])
    add_document(app, schemas.COMPONENTS, {"/docs": api.document, "/": api.dashboard})


async def _tell_unknown(request: Request, error: Exception) -> Response:
    path = request.url.path
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND and path.startswith(_OTHERS):
        return Rejected(404, f"the model served is nmoe; there is nothing at {quoted(path)}; /docs lists what there is").response()
    return await tell_unknown(request, error)
