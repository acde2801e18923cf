"""The other paths: health, metadata, feedback, the mesh, loading, what is not there, and Triton's own client."""

import msgspec
import numpy as np
import pytest

from nmoe.node.view import NodeView

PIXELS = [0] * 16


def test_server_and_model_metadata(ask):
    assert ask("GET", "/v2").json["name"] == "nmoe"
    model = ask("GET", "/v2/models/nmoe").json
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 1]}]
    assert [output["name"] for output in model["outputs"]] == ["probabilities", "label", "experts", "weights"]
    assert model["versions"] == ["abc123"]
    assert ask("GET", "/v2/models/nmoe/versions/abc123").json == model
    assert ask("GET", "/v2/models/nmoe/config").json["max_batch_size"] > 0


def test_health(ask, service):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/nmoe/ready", "/v2/models/nmoe/versions/abc123/ready"):
        assert ask("GET", path).status == 200
    service.up = False
    assert ask("GET", "/v2/health/live").status == 200
    assert ask("GET", "/v2/health/ready").status == 503
    assert ask("GET", "/v2/models/nmoe/ready").status == 503
    service.alive = False
    assert ask("GET", "/v2/health/live").status == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/nmoe/versions/7", 404),
        ("GET", "/v2/models/nmoe/versions/7/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/nmoe/versions/7/infer", 404),
        ("POST", "/v2/repository/models/other/load", 404),
        ("GET", "/nothing/<script>", 404),
        ("GET", "/v2/models/nmoe/infer", 405),
        ("DELETE", "/v2", 405),
        ("PUT", "/v2/models/nmoe/feedback", 405),
    ],
)
def test_what_is_not_there_is_told_in_json(ask, method, path, status):
    answer = ask(method, path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["error"]
    assert ("allow" in answer.headers) == (status == 405)


def test_versions_follow_the_bundle(ask, service, fakes, infer_request):
    service.views = (fakes.view(bundle="def456"),)
    assert ask("POST", "/v2/repository/models/nmoe/load", {}).json == {"name": "nmoe", "version": "def456"}
    assert service.reloads == 1
    assert ask("GET", "/v2/models/nmoe").json["versions"] == ["def456"]
    assert ask("POST", "/v2/models/nmoe/versions/def456/infer", infer_request(PIXELS)).status == 200
    assert ask("POST", "/v2/models/nmoe/versions/abc123/infer", infer_request(PIXELS)).status == 404


def test_loading_may_fail_and_is_not_for_pages_of_other_sites(ask, service):
    service.reload_reason = "the extractor's fingerprint is not the card's"
    answer = ask("POST", "/v2/repository/models/nmoe/load")
    assert (answer.status, answer.json) == (409, {"error": service.reload_reason})
    foreign = [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "http://192.0.2.7"}, {"origin": "null"}]
    for path, body in (("/v2/repository/models/nmoe/load", None), ("/v2/models/nmoe/feedback", {"id": "one", "labels": [4]})):
        for headers in foreign:
            told = ask("POST", path, body, headers=headers)
            assert (told.status, told.json) == (403, {"error": "requests from pages of other sites are not wanted"})
    assert service.reloads == 1
    own = f"{ask.connection.host}:{ask.connection.port}"
    for headers in ({"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": f"http://{own}"}):
        assert ask("POST", "/v2/repository/models/nmoe/load", headers=headers).status == 409
    assert service.reloads == 4


def test_feedback(ask, service, infer_request):
    path = "/v2/models/nmoe/feedback"
    assert ask("POST", "/v2/models/nmoe/infer", infer_request(PIXELS, id="one")).status == 200
    assert ask("POST", path, {"id": "one", "labels": [4]}).json == {"id": "one", "learned": 1}
    assert ask("POST", path, {"id": "one", "labels": [4, 5]}).status == 400
    assert ask("POST", path, {"id": "two", "labels": [4]}).status == 404
    for body in ({}, {"id": "one"}, {"id": "one", "labels": []}, {"id": "one", "labels": [10]}, {"id": "one", "labels": [-1]}):
        assert ask("POST", path, body).status == 400
    for raw in (b"", b"{", b"[" * 100_000, b'{"id": "one", "labels": [1e99]}', b'{"id": "one", "labels": "4"}'):
        assert ask("POST", path, raw, {"content-type": "application/json"}).status == 400
    assert ask("POST", path, b"{}", {"content-type": "application/octet-stream"}).status == 415


def test_mesh_has_this_node_first(ask):
    views = msgspec.json.decode(ask("GET", "/v2/mesh").body, type=list[NodeView])
    assert [view.node for view in views] == ["node-0", "node-1"]


def test_pages_load_nothing_from_elsewhere(ask):
    for path in ("/", "/docs"):
        answer = ask("GET", path)
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert b"://" not in answer.body
        assert b"/*ST" not in answer.body
        assert b"/*SC" not in answer.body


@pytest.fixture
def triton(serve, service):
    tritonclient = pytest.importorskip("tritonclient.http")
    service.views = service.views
    client = tritonclient.InferenceServerClient(serve(service).address)
    yield tritonclient, client
    client.close()


def test_triton_client_sees_server_and_model(triton):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("nmoe")
    assert client.is_model_ready("nmoe", "abc123")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "nmoe"
    assert client.get_model_metadata("nmoe")["inputs"][0]["shape"] == [-1, 4, 4, 1]
    assert client.get_model_config("nmoe")["name"] == "nmoe"
    assert client.get_model_repository_index()[0]["state"] == "READY"
    client.load_model("nmoe")


@pytest.mark.parametrize("in_binary", [True, False])
@pytest.mark.parametrize("outputs", ["all", "binary", "json"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_triton_client_infers(triton, service, in_binary, outputs, compression):
    http, client = triton
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    given = http.InferInput("image", [2, 4, 4, 1], "UINT8")
    given.set_data_from_numpy(images, binary_data=in_binary)
    names = ["label", "experts", "probabilities", "weights"]
    wanted = None if outputs == "all" else [http.InferRequestedOutput(name, binary_data=outputs == "binary") for name in names]
    result = client.infer(
        "nmoe", [given], outputs=wanted, request_id="r1", parameters={"deadline_ms": 500, "k": 2}, request_compression_algorithm=compression
    )
    assert result.get_response()["id"] == "r1"
    assert result.as_numpy("label").tolist() == [3, 3]
    experts = [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("experts").ravel()]
    assert experts == ["node-1", "", "node-1", ""]
    assert result.as_numpy("probabilities").shape == (2, 10)
    np.testing.assert_allclose(result.as_numpy("weights"), [[1, 0], [1, 0]])
    np.testing.assert_array_equal(service.asked[0]["images"].numpy(), images)
    assert service.asked[0]["deadline_s"] == 0.5


def test_triton_client_is_told_what_is_wrong(triton):
    http, client = triton
    given = http.InferInput("picture", [1, 4, 4, 1], "UINT8")
    given.set_data_from_numpy(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(Exception, match="'image' wanted"):
        client.infer("nmoe", [given])
