"""The server's paths against httpx, without sockets and in virtual time: ranges, users, errors."""

import asyncio
import json

import httpx
import pytest

from nmoe.deliver.server.api import MAX_BODY_BYTES, MAX_TRANSFERS, DeliveryApi
from nmoe.deliver.server.app import create_app
from nmoe.deliver.server.folder import ModelFolder
from nmoe.deliver.server.metrics import DeliveryMetrics
from nmoe.deliver.server.replanner import DeliverySettings, Replanner
from nmoe.deliver.server.transfer import Timing

USER = {
    "spectral_efficiency": 4.0,
    "deadline_s": 10.0,
    "energy_j": 1e6,
    "batch": 1,
    "device_flops": 1e9,
    "power_w": 10.0,
    "layer_overhead_s": 0.0,
    "models": ["small"],
}


class Virtual:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now_s = 0.0
        self.timing = Timing(now=lambda: self.now_s, sleep=self.sleep)

    async def sleep(self, seconds):
        self.now_s += seconds
        await asyncio.sleep(0)


class Site:
    """An application, and a client of it."""

    def __init__(self, folder, **settings):
        self.time = Virtual()
        self.replanner = Replanner(settings=DeliverySettings(**{"bandwidth_hz": 1e6, "margin": 0.0, **settings}))
        metrics = DeliveryMetrics(self.replanner)
        self.api = DeliveryApi(ModelFolder(folder), self.replanner, timing=self.time.timing, metrics=metrics)
        self.app = create_app(self.api, metrics)

    def __call__(self, method, path, **request):
        async def ask():
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(ask())

    def tick(self, seconds):
        self.time.now_s += seconds
        asyncio.run(self.api.tick())


@pytest.fixture
def site(models):
    return Site(models)


@pytest.fixture
def data(models):
    return (models / "small.safetensors").read_bytes()


FILE = "/files/small.safetensors"


def test_a_whole_file(site, data):
    answer = site("GET", FILE)
    assert answer.status_code == 200
    assert answer.content == data
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == len(data)
    assert answer.headers["etag"].startswith('"')
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "start", "stop"), [("bytes=0-0", 0, 1), ("bytes=10-99", 10, 100), ("bytes=-7", -7, None), ("bytes=500-", 500, None)]
)
def test_a_range(site, data, asked, start, stop):
    answer = site("GET", FILE, headers={"range": asked})
    wanted = data[start:stop]
    first = len(data) - len(wanted) if stop is None else start
    assert answer.status_code == 206
    assert answer.content == wanted
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(wanted) - 1}/{len(data)}"
    assert int(answer.headers["content-length"]) == len(wanted)


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "bytes=9-3", "pages=1-2", "bytes=x"])
def test_what_is_no_single_range_gets_the_whole_file(site, data, asked):
    answer = site("GET", FILE, headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, data)


def test_two_range_headers_are_both_ignored(site, data):
    answer = site("GET", FILE, headers=[("range", "bytes=0-1"), ("range", "bytes=4-5")])
    assert (answer.status_code, answer.content) == (200, data)


def test_a_range_beyond_the_end_is_416(site, data):
    answer = site("GET", FILE, headers={"range": f"bytes={len(data)}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(data)}"
    assert "range" in answer.json()["error"]


def test_if_range_gives_the_range_only_of_the_same_file(site, data, models):
    etag = site("HEAD", FILE).headers["etag"]
    assert site("GET", FILE, headers={"range": "bytes=0-1", "if-range": etag}).status_code == 206
    (models / "small.safetensors").write_bytes(data + b"!")
    answer = site("GET", FILE, headers={"range": "bytes=0-1", "if-range": etag})
    assert answer.status_code == 200
    assert answer.content == data + b"!"
    assert answer.headers["etag"] != etag


@pytest.mark.parametrize("asked", [{}, {"range": "bytes=2-5"}])
def test_head_is_get_without_the_bytes(site, asked):
    head, get = site("HEAD", FILE, headers=asked), site("GET", FILE, headers=asked)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert {name: head.headers[name] for name in ("content-length", "etag", "accept-ranges")} == {
        name: get.headers[name] for name in ("content-length", "etag", "accept-ranges")
    }


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.safetensors",
        "/files/..%2Fsecret.safetensors",
        "/files/%2e%2e%2fsecret.safetensors",
        "/files//etc/passwd",
        "/files/sub/inner.safetensors",
        "/files/sub%2Finner.safetensors",
        "/files/link.safetensors",
        "/files/inside.safetensors",
        "/files/folder.safetensors",
        "/files/pipe.safetensors",
        "/files/notes.txt",
        "/files/.hidden.safetensors",
        "/files/small.safetensors%00.safetensors",
        "/files/absent.safetensors",
        f"/files/{'x' * 400}.safetensors",
    ],
)
def test_nothing_but_plain_files_of_the_folder_is_there(models, path):
    import os

    (models.parent / "secret.safetensors").write_bytes(b"secret")
    (models / "sub").mkdir()
    (models / "sub" / "inner.safetensors").write_bytes(b"inner")
    (models / "link.safetensors").symlink_to(models.parent / "secret.safetensors")
    (models / "inside.safetensors").symlink_to(models / "small.safetensors")
    (models / "folder.safetensors").mkdir()
    (models / "notes.txt").write_text("notes")
    (models / ".hidden.safetensors").write_bytes(b"hidden")
    os.mkfifo(models / "pipe.safetensors")
    answer = Site(models)("GET", path)
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_an_empty_file_is_sent(models):
    (models / "empty.safetensors").write_bytes(b"")
    answer = Site(models)("GET", "/files/empty.safetensors")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


def test_the_list_says_what_can_be_planned_for(models):
    (models / "plain.safetensors").write_bytes(b"12345678")
    listed = {one["name"]: one for one in Site(models)("GET", "/files").json()}
    assert listed["small"]["reason"] == ""
    assert listed["small"]["file"] == FILE
    assert "nmoe deliver pack" in listed["plain"]["reason"]


def test_registering_returns_an_allocation(site):
    answer = site("PUT", "/users/a", json=USER)
    assert answer.status_code == 200
    given = answer.json()
    assert given["served"]
    assert (given["model"], given["file"]) == ("small", FILE)
    assert 0 < given["bandwidth_share"] <= 1
    assert given["rate_bps"] == pytest.approx(given["bandwidth_share"] * 1e6 * 4.0)
    assert all(0 < clock <= 1 for clock in given["clocks"])
    assert given["finish_s"] <= 10.0
    plan = site("GET", "/plan").json()
    assert plan["served"] == 1
    assert plan["users"] == [given]
    assert plan["spare_share"] == pytest.approx(1 - given["bandwidth_share"])
    assert site("GET", "/users/a").json() == given
    assert site("DELETE", "/users/a").json() == {"id": "a"}
    assert site("GET", "/plan").json()["users"] == []
    assert site("GET", "/users/a").status_code == 404


def test_shares_of_two_add_up_to_at_most_one_and_pace_their_transfers(models, data):
    tight = 8 * len(data) / (4.0 * 10.0) * 1.5  # room for one and a half such users
    site = Site(models, bandwidth_hz=tight)
    first, second = (site("PUT", f"/users/{name}", json={**USER, "device_flops": 1e12}).json() for name in "ab")
    assert (first["served"], second["served"]) == (True, False)
    assert second["reason"]
    before_s = site.time.now_s
    site("GET", FILE, headers={"x-nmoe-user": "a"})
    assert site.time.now_s - before_s == pytest.approx(8 * len(data) / first["rate_bps"], rel=0.02)
    third = site("PUT", "/users/c", json={**USER, "device_flops": 1e12}).json()
    assert third["served"], "the first has all it needs"
    assert sum(user["bandwidth_share"] for user in site("GET", "/plan").json()["users"]) <= 1 + 1e-9


def test_what_is_left_over_is_for_requests_without_a_user(models, data):
    site = Site(models, spare_efficiency=2.0)
    share = site("PUT", "/users/a", json=USER).json()["bandwidth_share"]
    before_s = site.time.now_s
    site("GET", FILE)
    assert site.time.now_s - before_s == pytest.approx(8 * len(data) / ((1 - share) * 1e6 * 2.0), rel=0.02)


def test_where_nothing_is_left_over_it_is_said(models, data):
    site = Site(models)
    site("PUT", "/users/a", json=USER)
    site.replanner.users["a"].share = 1.0
    answer = site("GET", FILE)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert site.replanner.anonymous_transfers == 0


def test_an_unknown_user_gets_no_file(site):
    assert site("GET", FILE, headers={"x-nmoe-user": "nobody"}).status_code == 404
    assert site("GET", FILE, headers={"x-nmoe-user": "no body!"}).status_code == 400


def test_transfers_of_a_user_are_bounded(site):
    site("PUT", "/users/a", json=USER)
    site.replanner.users["a"].transfers = MAX_TRANSFERS
    assert site("GET", FILE, headers={"x-nmoe-user": "a"}).status_code == 429


def test_a_model_without_a_card_is_refused_for_planning_and_can_be_fetched(models):
    (models / "plain.safetensors").write_bytes(b"12345678")
    site = Site(models)
    answer = site("PUT", "/users/a", json={**USER, "models": ["plain"]})
    assert answer.status_code == 409
    assert "no card" in answer.json()["error"]
    assert "nmoe deliver pack" in answer.json()["error"]
    assert site("GET", "/files/plain.safetensors").content == b"12345678"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": "soon"}, "deadline_s"),
        ({"deadline_s": 1e300}, "deadline_s"),
        ({"deadline_s": None}, "deadline_s"),
        ({"batch": 0}, "batch"),
        ({"batch": 1.5}, "batch"),
        ({"batch": 10**30}, "batch"),
        ({"models": []}, "models"),
        ({"models": ["absent"]}, "absent"),
        ({"models": ["../secret"]}, "secret"),
        ({"models": "small"}, "models"),
        ({"models": ["small", "small"]}, "models"),
        ({"models": [f"m{n}" for n in range(99)]}, "models"),
        ({"colour": "red"}, "colour"),
        ({"id": "somebody"}, "id"),
        ({"min_clock": 2}, "min_clock"),
        ({"fixed_power": 1}, "fixed_power"),
    ],
)
def test_a_bad_user_is_told_which_field(site, change, word):
    answer = site("PUT", "/users/a", json={**USER, **change})
    assert answer.status_code == 400
    assert word in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert site("GET", "/plan").json()["users"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"deadline_s": NaN}', 400),
        (b"[" * 10_000, 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
def test_a_bad_body_is_one_line(site, body, status):
    answer = site("PUT", "/users/a", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]


def test_another_content_type_or_method_or_path(site):
    assert site("PUT", "/users/a", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert site("POST", FILE).status_code == 405
    assert site("POST", FILE).headers["allow"] == "GET, HEAD"
    assert site("POST", "/users/a").headers["allow"] == "DELETE, GET, PUT"
    assert "allow" not in site("GET", "/nothing").headers
    assert site("GET", "/nothing").status_code == 404
    assert site("PUT", "/users/a b", json=USER).status_code == 400


def test_full_is_503(models):
    site = Site(models, max_users=1)
    site("PUT", "/users/a", json=USER)
    assert site("PUT", "/users/b", json=USER).status_code == 503


def test_silent_users_expire(models):
    site = Site(models, idle_s=5.0)
    site("PUT", "/users/a", json=USER)
    site.tick(3.0)
    site("GET", "/users/a")
    site.tick(3.0)
    assert len(site("GET", "/plan").json()["users"]) == 1
    site.tick(3.0)
    assert site("GET", "/plan").json()["users"] == []


def test_metrics_and_pages(site):
    site("PUT", "/users/a", json=USER)
    site("GET", FILE)
    text = site("GET", "/metrics").text
    assert "nmoe_deliver_users 1.0" in text
    assert 'nmoe_deliver_user_share{user="a"}' in text
    assert 'nmoe_deliver_requests_total{route="/files/{name}",status="200"} 1.0' in text
    page = site("GET", "/docs").text
    document = site("GET", "/openapi.json").json()
    assert all(path in page for path in document["paths"])
    operations = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(set(operations)) == len(operations)
    json.dumps(document)
