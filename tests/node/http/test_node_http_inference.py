"""Inference requests and answers over HTTP: what is read, what is refused and in which words, and what comes back."""

import gzip
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.http import Rejected
from nmoe.node.http.inference import read_call
from nmoe.node.messages import Refusal, RefusalCode

INFER = "/v2/models/nmoe/infer"
PIXELS = list(range(16))
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def binary(pixels: bytes, datatype: str = "UINT8", shape=(1, 4, 4, 1), size: int | None = None, **more):
    size = len(pixels) if size is None else size
    head = {"inputs": [{"name": "image", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}], **more}
    text = json.dumps(head).encode()
    return text + pixels, {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}


def test_flat_json(ask, service, infer_request):
    answer = ask("POST", INFER, infer_request(PIXELS, id="one", parameters={"deadline_ms": 250, "k": 2}), {"traceparent": TRACEPARENT})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    outputs = {output["name"]: output for output in answer.json["outputs"]}
    assert list(outputs) == ["probabilities", "label", "experts", "weights"]
    assert (outputs["label"]["datatype"], outputs["label"]["shape"], outputs["label"]["data"]) == ("INT64", [1], [3])
    assert (outputs["experts"]["datatype"], outputs["experts"]["shape"], outputs["experts"]["data"]) == ("BYTES", [1, 2], ["node-1", ""])
    assert outputs["probabilities"]["shape"] == [1, 10]
    assert outputs["weights"]["data"] == [1.0, 0.0]
    assert (answer.json["id"], answer.json["model_name"], answer.json["model_version"]) == ("one", "nmoe", "abc123")
    assert answer.json["parameters"] == {"degraded": True, "bytes_sent": 100, "bytes_received": 50, "seconds": 0.001}
    asked = service.asked[0]
    assert asked["images"].dtype == torch.uint8
    assert asked["images"].flatten().tolist() == PIXELS
    assert (asked["deadline_s"], asked["k"], asked["identity"], asked["trace"]) == (0.25, 2, "one", TRACEPARENT)


def test_defaults(ask, service, infer_request):
    assert ask("POST", INFER, infer_request(PIXELS)).status == 200
    assert (service.asked[0]["deadline_s"], service.asked[0]["k"], service.asked[0]["identity"]) == (1.0, None, "")


def test_nested_json_with_and_without_channel(ask, service, infer_request):
    square = np.array(PIXELS).reshape(1, 4, 4)
    assert ask("POST", INFER, infer_request(square.tolist(), shape=[1, 4, 4])).status == 200
    assert ask("POST", INFER, infer_request(square[..., None].tolist())).status == 200
    assert [asked["images"].flatten().tolist() for asked in service.asked] == [PIXELS, PIXELS]
    assert {tuple(asked["images"].shape) for asked in service.asked} == {(1, 4, 4, 1)}


@pytest.mark.parametrize("pad", [0, 1, 2, 3])
def test_binary_float_at_any_alignment(ask, service, pad):
    pixels = np.linspace(0, 1, 32, dtype="<f4")
    body, headers = binary(pixels.tobytes(), "FP32", (2, 4, 4, 1), id="a" * (pad + 1))
    assert ask("POST", INFER, body, headers).status == 200
    assert service.asked[0]["images"].dtype == torch.float32
    np.testing.assert_array_equal(service.asked[0]["images"].numpy().ravel(), pixels)


def test_only_the_outputs_asked_for_each_in_its_form(ask):
    outputs = [{"name": "experts", "parameters": {"binary_data": True}}, {"name": "label"}]
    body, headers = binary(bytes(16), outputs=outputs)
    answer = ask("POST", INFER, body, headers)
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.body[:length])
    assert [output["name"] for output in head["outputs"]] == ["experts", "label"]
    assert head["outputs"][1]["data"] == [3]
    assert answer.body[length:] == struct.pack("<I", 6) + b"node-1" + struct.pack("<I", 0)
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 14}
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests(ask, infer_request, encoding, squeeze):
    body = squeeze(json.dumps(infer_request(PIXELS)).encode())
    headers = {"content-type": "application/json", "content-encoding": encoding}
    assert ask("POST", INFER, body, headers).status == 200
    assert ask("POST", INFER, body[:-3], headers).status == 400
    assert ask("POST", INFER, b"not compressed", headers).status == 400
    assert ask("POST", INFER, squeeze(bytes(50 << 20)), headers).status == 413, "a bomb"
    assert ask("POST", INFER, body, headers | {"content-encoding": "br"}).status == 415


IMAGE = {"name": "image", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": PIXELS}
BAD = {
    "no JSON": b"pixels",
    "empty": b"",
    "not UTF-8": b'{"id": "\xff"}',
    "no inputs": {},
    "two inputs": {"inputs": [IMAGE, IMAGE]},
    "unknown input": {"inputs": [IMAGE | {"name": "picture"}]},
    "unknown field": {"inputs": [IMAGE], "extra": 1},
    "datatype": {"inputs": [IMAGE | {"datatype": "INT8"}]},
    "too few": {"inputs": [IMAGE | {"data": PIXELS[:-1]}]},
    "too many": {"inputs": [IMAGE | {"data": [*PIXELS, 1]}]},
    "pixel 256": {"inputs": [IMAGE | {"data": [*PIXELS[:-1], 256]}]},
    "pixel -1": {"inputs": [IMAGE | {"data": [*PIXELS[:-1], -1]}]},
    "pixel is a fraction": {"inputs": [IMAGE | {"data": [*PIXELS[:-1], 0.5]}]},
    "pixel is text": {"inputs": [IMAGE | {"data": [*PIXELS[:-1], "1"]}]},
    "float above 1": {"inputs": [IMAGE | {"datatype": "FP32", "data": [*[0.5] * 15, 1.01]}]},
    "NaN": b'{"inputs": [{"name": "image", "shape": [1,4,4,1], "datatype": "FP32", "data": [' + b"0.5," * 15 + b"NaN]}]}",
    "data null": {"inputs": [IMAGE | {"data": None}]},
    "data is a number": {"inputs": [IMAGE | {"data": 5}]},
    "no data": {"inputs": [{name: value for name, value in IMAGE.items() if name != "data"}]},
    "both": {"inputs": [IMAGE | {"parameters": {"binary_data_size": 16}}]},
    "nested ragged": {"inputs": [IMAGE | {"shape": [1, 4, 4], "data": [[[1, 2, 3], [4, 5, 6, 7, 8], [1, 2, 3, 4], [1, 2, 3, 4]]]}]},
    "nested otherwise": {"inputs": [IMAGE | {"shape": [1, 4, 4], "data": [[PIXELS[:8], PIXELS[8:]]]}]},
    "shape": {"inputs": [IMAGE | {"shape": [1, 4, 5, 1]}]},
    "shape flat": {"inputs": [IMAGE | {"shape": [16]}]},
    "shape empty": {"inputs": [IMAGE | {"shape": []}]},
    "batch 0": {"inputs": [IMAGE | {"shape": [0, 4, 4, 1], "data": []}]},
    "batch -1": {"inputs": [IMAGE | {"shape": [-1, 4, 4, 1]}]},
    "batch too large": {"inputs": [IMAGE | {"shape": [10**30, 4, 4, 1]}]},
    "shared memory": {"inputs": [IMAGE | {"parameters": {"shared_memory_region": "a"}}]},
    "unknown output": {"inputs": [IMAGE], "outputs": [{"name": "logits"}]},
    "output twice": {"inputs": [IMAGE], "outputs": [{"name": "label"}, {"name": "label"}]},
    "classification": {"inputs": [IMAGE], "outputs": [{"name": "label", "parameters": {"classification": 3}}]},
    "deadline 0": {"inputs": [IMAGE], "parameters": {"deadline_ms": 0}},
    "deadline text": {"inputs": [IMAGE], "parameters": {"deadline_ms": "soon"}},
    "deadline true": {"inputs": [IMAGE], "parameters": {"deadline_ms": True}},
    "deadline huge": {"inputs": [IMAGE], "parameters": {"deadline_ms": 1e300}},
    "k 0": {"inputs": [IMAGE], "parameters": {"k": 0}},
    "k fraction": {"inputs": [IMAGE], "parameters": {"k": 1.5}},
    "k true": {"inputs": [IMAGE], "parameters": {"k": True}},
    "binary output": {"inputs": [IMAGE], "parameters": {"binary_data_output": 1}},
    "unknown parameter": {"inputs": [IMAGE], "parameters": {"deadline": 1}},
    "parameter is a list": {"inputs": [IMAGE], "parameters": {"k": [1]}},
    "id too long": {"inputs": [IMAGE], "id": "x" * 65},
    "id not printable": {"inputs": [IMAGE], "id": "a\nb"},
    "id a number": {"inputs": [IMAGE], "id": 5},
    "deep": b"[" * 100_000,
    "deep data": b'{"inputs": [{"name": "image", "shape": [1,4,4,1], "datatype": "UINT8", "data": '
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}]}",
    "deep parameter": b'{"inputs": [], "parameters": {"k": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}}",
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in BAD.items()])
def test_malformed_requests_are_told_why_in_one_line(ask, service, body):
    answer = ask("POST", INFER, body, {"content-type": "application/json"})
    assert answer.status == 400
    reason = answer.json["error"]
    assert reason
    assert "\n" not in reason
    assert len(reason) <= 400
    assert service.asked == []


@pytest.mark.parametrize("length", ["0", "-1", "9999", "x", "", "1e3", "٣", "9" * 400])
def test_wrong_header_length(ask, length):
    body, headers = binary(bytes(16))
    with_length = headers | {"Inference-Header-Content-Length": length.encode()}
    assert ask("POST", INFER, body, with_length).status == 400


def test_wrong_binary_sizes(ask):
    for pixels, size in ((bytes(16), 15), (bytes(15), 16), (bytes(17), 16), (bytes(17), 17), (bytes(16), -16)):
        body, headers = binary(pixels, size=size)
        assert ask("POST", INFER, body, headers).status == 400
    body, headers = binary(np.array([0.5] * 15 + [np.nan], "<f4").tobytes(), "FP32")
    assert "nan" in ask("POST", INFER, body, headers).json["error"]
    body, headers = binary(np.array([0.5] * 15 + [np.inf], "<f4").tobytes(), "FP32")
    assert ask("POST", INFER, body, headers).status == 400


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (RefusalCode.BUSY, 503),
        (RefusalCode.LEAVING, 503),
        (RefusalCode.LATE, 504),
        (RefusalCode.BAD_SHAPE, 400),
        (RefusalCode.FORBIDDEN, 403),
        (RefusalCode.FAILED, 500),
    ],
)
def test_refusals_have_their_status(ask, service, infer_request, code, status):
    service.refusal = Refusal(request=1, code=code, reason="because\nof <that>")
    answer = ask("POST", INFER, infer_request(PIXELS))
    assert (answer.status, answer.json) == (status, {"error": f"{code}: because of <that>"})
    assert ("retry-after" in answer.headers) == (status == 503)


def test_every_refusal_has_a_status(ask, service, infer_request):
    for code in RefusalCode:
        service.refusal = Refusal(request=1, code=code, reason="")
        assert ask("POST", INFER, infer_request(PIXELS)).status in {400, 403, 500, 503, 504}


def test_a_node_that_never_answers_is_given_up(ask, service, infer_request):
    service.wait_s = 60
    assert ask("POST", INFER, infer_request(PIXELS, parameters={"deadline_ms": 50})).status == 504
    assert service.at_once == 0, "and its work cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_node_is_500_and_the_server_goes_on(ask, service, infer_request):
    service.failure = RuntimeError("secret detail")
    answer = ask("POST", INFER, infer_request(PIXELS))
    assert (answer.status, answer.json) == (500, {"error": "the node failed: RuntimeError"})
    service.failure = None
    assert ask("POST", INFER, infer_request(PIXELS)).status == 200


def test_a_node_that_is_not_ready_takes_nothing(ask, service, infer_request):
    service.up = False
    answer = ask("POST", INFER, infer_request(PIXELS))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_content_types(ask, infer_request):
    body = json.dumps(infer_request(PIXELS)).encode()
    assert ask("POST", INFER, body).status == 200, "none given"
    assert ask("POST", INFER, body, {"content-type": "Application/JSON; charset=utf-8"}).status == 200
    assert ask("POST", INFER, body, {"content-type": "text/plain"}).status == 415
    assert ask("POST", INFER, body, {"content-type": "application/x-www-form-urlencoded"}).status == 200, "curl -d"


def call(body: bytes, length: str | None = None):
    return read_call(bytearray(body), length, (4, 4, 1))


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=4), st.integers(0, 300).map(str)))
def test_any_bytes_are_read_or_rejected(body, length):
    with pytest.raises(Rejected) as caught:
        call(body, length)
    assert caught.value.status == 400


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*IMAGE, "inputs", "parameters", "k", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(IMAGE)), _json, st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "inputs"]), _json))
def test_any_json_is_read_or_rejected(field, value, more):
    found, status = None, 400
    try:
        found = call(json.dumps({"inputs": [IMAGE | {field: value}], **more}).encode())
    except Rejected as error:
        status = error.status
    assert status == 400
    assert found is None or found.images.shape[1:] == (4, 4, 1)
