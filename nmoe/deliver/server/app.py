"""Application: the routes, their description in OpenAPI, and what happens to requests that fit none of them."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from nmoe.deliver.server import schemas
from nmoe.deliver.server.api import DeliveryApi
from nmoe.deliver.server.metrics import DeliveryMetrics
from nmoe.deliver.server.schemas import described
from nmoe.http import Counted, add_document, add_refusals, add_route, new_app
from nmoe.http.schemas import STRING, body, parameter


def create_app(api: DeliveryApi, metrics: DeliveryMetrics) -> ASGIApp:
    """Return the application in front of a folder of models."""
    app = new_app("nmoe deliver")
    user = [parameter("id", "path", "Chosen by the user.", schemas.USER_ID)]
    put_errors = (400, 404, 408, 409, 413, 415, 503)
    add_route(
        app,
        "/users/{id}",
        api.put_user,
        "PUT",
        described(schemas.ALLOCATION, "Its allocation.", *put_errors),
        parameters=user,
        requestBody=body(schemas.RECEIVER),
    )
    add_route(app, "/users/{id}", api.get_user, "GET", described(schemas.ALLOCATION, "Its allocation.", 400, 404), parameters=user)
    add_route(app, "/users/{id}", api.delete_user, "DELETE", described(schemas.GONE, "It is forgotten.", 400, 404), parameters=user)
    add_route(app, "/plan", api.get_plan, "GET", described(schemas.PLAN, "The plan."))
    add_route(app, "/files", api.get_files, "GET", described(schemas.FILES, "The models; `reason` says why one cannot be planned for."))
    _add_files(app, api)
    add_route(app, "/metrics", api.get_metrics, "GET", described(STRING, "Prometheus' text format.", kind="text/plain"))
    add_document(app)
    add_refusals(app)
    return Counted(app, metrics.requests.count)


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
    add_route(app, "/files/{name}", api.get_file, "GET", answers, parameters=parameters)
    heads = {code: {"description": answer["description"]} for code, answer in answers.items()}
    add_route(app, "/files/{name}", api.get_file, "HEAD", heads, name="head_file", parameters=parameters)
