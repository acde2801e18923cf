"""The shared parts of an application: refusals, methods, the document, counts, and bodies in bounded space and time."""

import asyncio

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from nmoe.http import (
    Counted,
    Rejected,
    RequestMetrics,
    add_document,
    add_refusals,
    add_route,
    decode_json,
    new_app,
    quoted,
    read_body,
    read_json,
)
from nmoe.http.schemas import STRING, answers

_words = msgspec.json.Decoder(list[str])


async def get(request: Request):
    """Say <hello>."""
    return Response("hello")


async def put(request: Request):
    """Take words."""
    words = decode_json(_words, await read_json(request, max_bytes=100, within_s=0.1))
    raise Rejected(409, f"not now:\n{quoted(words)} \ud800", {"retry-after": "1"})


async def fail(request: Request):
    """Fail."""
    raise ZeroDivisionError


@pytest.fixture
def counted():
    return []


@pytest.fixture
def ask(counted):
    app = new_app("nmoe test")
    said = answers(STRING, "Said.", (409,), {})
    add_route(app, "/words", get, "GET", said)
    add_route(app, "/words", put, "PUT", said)
    add_route(app, "/fail", fail, "GET", said, name="breaks")
    add_document(app)
    add_refusals(app, who="the test")
    whole = Counted(app, lambda route, status: counted.append((route, status)))

    def ask(method, path, **more):
        async def go():
            transport = httpx.ASGITransport(app=whole, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(go())

    return ask


def test_refusals_are_one_line_of_json_and_counted(ask, counted):
    told = ask("PUT", "/words", json=["é" * 40])
    assert (told.status_code, told.headers["retry-after"]) == (409, "1")
    assert told.json() == {"error": f"not now: {quoted(['é' * 40])} ?"}
    assert ask("GET", "/<b>").json() == {"error": "there is nothing at '/<b>'; /docs lists what there is"}
    other = ask("DELETE", "/words")
    assert (other.status_code, other.headers["allow"]) == (405, "GET, PUT")
    failed = ask("GET", "/fail")
    assert (failed.status_code, failed.json(), failed.headers["connection"]) == (
        500,
        {"error": "the test failed: ZeroDivisionError"},
        "close",
    )
    assert counted == [("/words", 409), ("other", 404), ("/words", 405), ("/fail", 500)]


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (400, {"content": b""}),
        (400, {"content": b"[" * 100}),
        (400, {"content": b'["\xff"]'}),
        (400, {"content": b"[1]"}),
        (413, {"content": b'["' + b"a" * 100 + b'"]'}),
        (415, {"content": b"[]", "headers": {"content-type": "text/plain"}}),
        (409, {"content": b"[]", "headers": {"content-type": "Application/JSON; charset=utf-8"}}),
    ],
)
def test_bodies_are_checked(ask, status, more):
    assert ask("PUT", "/words", **more).status_code == status


def test_a_body_that_does_not_come_is_given_up(ask):
    async def slow():
        yield b"["
        await asyncio.sleep(60)

    assert ask("PUT", "/words", content=slow()).status_code == 408


def test_deep_nesting_is_refused():
    with pytest.raises(Rejected, match="deep nesting"):
        decode_json(msgspec.json.Decoder(), b"[" * 100_000)


def test_what_is_held_is_told_first(ask):
    class Chunks:
        async def stream(self):
            yield b"abc"
            yield b"de"

    held = []
    body = asyncio.run(read_body(Chunks(), max_bytes=5, within_s=1.0, hold=held.append))
    assert (bytes(body), held) == (b"abcde", [3, 2])


def test_the_document_and_its_page(ask):
    document = ask("GET", "/openapi.json").json()
    assert document["paths"]["/words"]["get"]["summary"] == "Say <hello>"
    assert document["paths"]["/fail"]["get"]["operationId"] == "breaks"
    assert set(document["paths"]["/words"]["put"]["responses"]) == {"200", "405", "409"}
    page = ask("GET", "/docs")
    assert page.headers["content-security-policy"] == "default-src 'none'"
    assert "Say &lt;hello&gt;" in page.text
    assert ask("GET", "/").text == page.text


def test_metrics_count_by_route_and_status():
    metrics = RequestMetrics("nmoe_test_requests", lambda: iter(()))
    for _ in range(3):
        metrics.count("/words", 409)
    text = bytes(metrics.response().body).decode()
    assert 'nmoe_test_requests_total{route="/words",status="409"} 3.0' in text
