"""What is no message is refused by name and cheaply: hostile headers, every truncation and mutation, hypothesis and atheris."""

import importlib.util
import os
import runpy
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.core.errors import MessageError
from nmoe.node.messages import MAX_MESSAGE_BYTES, VERSION, TensorFormat, decode, encode

HARNESS = Path(__file__).parent / "fuzz_messages.py"
FUZZ = SimpleNamespace(**runpy.run_path(str(HARNESS)))
SAMPLES = FUZZ.samples()
each_sample = pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)


def framed(kind: int, header: bytes, body: bytes) -> bytes:
    return struct.pack("<4sBBI", b"NMOE", VERSION, kind, len(header)) + header + body


def packed(kind: int, header: object, body: bytes = b"", *, version: int = VERSION) -> bytes:
    raw = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    data = struct.pack("<4sBBI", b"NMOE", version, kind, len(raw)) + raw
    return data + bytes(-len(data) & 7) + body if body else data


ROWS = np.ones((3, 4), dtype=np.float32).tobytes()


def expert(
    *, request=1, origin="o", deadline_s=1.0, form="float32", rows=3, dim=4, trace="", parts=(("e", "", None),), body=ROWS
):  # fmt: skip
    return packed(1, [request, origin, deadline_s, form, rows, dim, trace, parts], body)


def indexed(*rows: int, count: int | None = None) -> bytes:
    parts = [["e", "", len(rows) if count is None else count]]
    return expert(parts=parts, body=ROWS + np.array(rows, dtype=np.int32).tobytes())


def reply(scale: float, code: int = 1) -> bytes:
    body = np.float32(scale).tobytes() + bytes(4) + np.int8(code).tobytes()
    return packed(2, [1, "int8", 1, 1, 0.0, 0.0, 0, False], body)


def lean(scale: float, packed_codes: int = 0x77, *, width: int = 2) -> bytes:
    body = np.float32(scale).tobytes() + bytes(4) + bytes([packed_codes])
    return packed(1, [1, "o", 1.0, "int4", 1, width, "", [["e", "", None]]], body)


def infer(experts, weights, *, labels=0, probability=1.0, names=("a", "b")) -> bytes:
    tensors = [np.float32([probability]), np.int64([labels]), np.int64([experts]), np.float32([weights])]
    body = b"".join(tensor.tobytes() + bytes(-tensor.nbytes & 7) for tensor in tensors)[: -4 if len(tensors[-1]) else None]
    return packed(5, [1, 1, 1, names, False, 0, 0, 0.5], body)


def carded(**changes: object) -> bytes:
    return packed(9, [msgspec.to_builtins(FUZZ.card(classes=(), **changes)), 0, 4])


NAN = float("nan")
HOSTILE = {
    "empty": ("cut off", b""),
    "not ours": ("not ours", b"GET / HTTP/1.1\r\n"),
    "other version": ("version", packed(6, [], version=1)),
    "unknown kind": ("kind", packed(99, [])),
    "long header": ("too long", b"NMOE" + struct.pack("<BBI", VERSION, 1, 2**32 - 1)),
    "header cut off": ("cut off", b"NMOE" + struct.pack("<BBI", VERSION, 1, 1000)),
    "too long": ("too long", packed(6, []) + b"\0"),
    "64 MiB and more": ("too long", b"NMOE" + bytes(MAX_MESSAGE_BYTES)),
    "more fields": ("header", packed(11, [1, 2])),
    "fewer fields": ("header", packed(11, [])),
    "other type": ("header", packed(11, ["many"])),
    "deep": ("header", packed(11, b"\x91" * 30000)),
    "long array": ("header", packed(1, b"\xdd\xff\xff\xff\xff")),
    "long text": ("header", packed(3, b"\x94\x01\xdb\xff\xff\xff\xff")),
    "long list of experts": ("header", packed(1, b"\x98\x01\xa1o\x01\xa7float32\x01\x01\xa0\xdd\xff\xff\xff\xff")),
    "unknown format": ("header", expert(form="float4")),
    "huge shape": ("shape", expert(rows=2**62, dim=2**62)),
    "64 MiB claimed": ("cut off", expert(rows=2**12, dim=2**12)),
    "64 MiB claimed in int8": ("shape", expert(rows=2**16, dim=2**10 + 1, form="int8")),
    "no rows": ("shape", expert(rows=0)),
    "negative rows": ("shape", expert(rows=-3)),
    "fewer numbers": ("cut off", expert(rows=4)),
    "more numbers": ("too long", expert(rows=2)),
    "negative request": ("number", expert(request=-1)),
    "large request": ("number", expert(request=2**64 - 1)),
    "negative deadline": ("number", expert(deadline_s=-0.1)),
    "NaN deadline": ("number", expert(deadline_s=NAN)),
    "infinite deadline": ("number", expert(deadline_s=float("inf"))),
    "origin of two words": ("name", expert(origin="a b")),
    "origin with a line end": ("name", expert(origin="a\n")),
    "long trace": ("name", expert(trace="x" * 65)),
    "two-line trace": ("name", expert(trace="a\nb")),
    "no experts": ("shape", expert(parts=[])),
    "many experts": ("shape", expert(parts=[[f"e{n}", "", None] for n in range(65)])),
    "expert twice": ("name", expert(parts=[["e", "", None], ["e", "", None]])),
    "expert's name": ("name", expert(parts=[["../e", "", None]])),
    "version with an escape": ("name", expert(parts=[["e", "\x1b[2J", None]])),
    "no rows for an expert": ("shape", indexed(0, count=0)),
    "more rows than there are": ("shape", indexed(0, 1, 2, 2)),
    "row twice": ("number", indexed(1, 1)),
    "rows falling": ("number", indexed(2, 0)),
    "row out of range": ("number", indexed(0, 3)),
    "negative row": ("number", indexed(-1, 2)),
    "many pairs": (
        "shape",
        expert(rows=2**15, dim=1, parts=[["a", "", None], ["b", "", None], ["c", "", None]], body=np.ones(2**15, dtype="<f4").tobytes()),
    ),
    "infinite scale": ("number", reply(float("inf"))),
    "negative scale": ("number", reply(-1.0)),
    "large scale": ("number", reply(3e36)),
    "code -128": ("number", reply(1.0, -128)),
    "64 MiB claimed in int4": ("shape", expert(rows=2**16, dim=2**10 + 1, form="int4")),
    "wide int4": ("shape", lean(1.0, width=2**17)),
    "width 0 in int4": ("shape", lean(1.0, width=0)),
    "half a byte too many": ("number", lean(1.0, 0x17, width=1)),
    "low code -8": ("number", lean(1.0, 0x78)),
    "high code -8": ("number", lean(1.0, 0x87)),
    "large scale of int4": ("number", lean(5e37)),
    "NaN scale of features": ("number", lean(NAN)),
    "expert unknown": ("number", infer([2], [1.0])),
    "expert below -1": ("number", infer([-2], [0.0])),
    "weight of nobody": ("number", infer([-1], [1.0])),
    "weight above 1": ("number", infer([0], [2.0])),
    "NaN weight": ("number", infer([0], [NAN])),
    "probability below 0": ("number", infer([0], [1.0], probability=-0.1)),
    "label out of range": ("number", infer([0], [1.0], labels=1)),
    "names twice": ("name", infer([0], [1.0], names=("a", "a"))),
    "bright image": ("number", packed(4, ["float32", [1, 1, 1, 1], 1.0, None, "", ""], np.float32(1.5).tobytes())),
    "NaN image": ("number", packed(4, ["float32", [1, 1, 1, 1], 1.0, None, "", ""], np.float32(NAN).tobytes())),
    "image of doubles": ("header", packed(4, ["float64", [1, 1, 1, 1], 1.0, None, "", ""], bytes(8))),
    "k of 0": ("number", packed(4, ["uint8", [1, 1, 1, 1], 1.0, 0, "", ""], b"\1")),
    "long identity": ("name", packed(4, ["uint8", [1, 1, 1, 1], 1.0, None, "i" * 65, ""], b"\1")),
    "long reason": ("name", packed(3, [0, "busy", "x" * 201, 0])),
    "two-line reason": ("name", packed(3, [0, "busy", "a\nb", 0])),
    "negative queue": ("number", packed(11, [-1])),
    "card without experts": ("number", carded(experts=())),
    "card without formats": ("number", carded(formats=())),
    "card with a format twice": ("number", carded(formats=(TensorFormat.INT8, TensorFormat.INT8))),
    "card of NaN rows per second": ("number", carded(rows_per_s=NAN)),
    "card of a huge width": ("number", carded(in_dim=2**40)),
    "class out of range": ("number", packed(9, [msgspec.to_builtins(FUZZ.card(classes=(10,))), 0, 4])),
    "class twice": ("number", packed(9, [msgspec.to_builtins(FUZZ.card(classes=(1, 1))), 0, 4])),
    "fewer prototypes": ("shape", packed(9, [msgspec.to_builtins(FUZZ.card()), 1, 4], bytes(16))),
    "NaN in a view": ("number", packed(7, msgspec.to_builtins(msgspec.structs.replace(FUZZ.view(), uptime_s=NAN)))),
    "view of nobody": ("name", packed(7, msgspec.to_builtins(msgspec.structs.replace(FUZZ.view(), node="")))),
}


@pytest.mark.parametrize(("fault", "data"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_messages_are_refused_by_name_and_cheaply(fault, data):
    tracemalloc.start()
    began_s = time.perf_counter()
    with pytest.raises(MessageError) as caught:
        decode(data)
    took_s = time.perf_counter() - began_s
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.fault == fault
    assert str(caught.value).isprintable()
    assert peak < (1 << 20)
    assert took_s < 0.25  # microseconds; the rest is for a loaded machine


def test_what_the_hostile_messages_vary_is_itself_accepted():
    for data in (
        expert(),
        indexed(0, 2),
        reply(1.0),
        reply(NAN),
        lean(1.0),
        lean(1.0, 0x07, width=1),
        lean(4e37),
        infer([1], [1.0]),
        infer([-1], [0.0]),
        carded(),
    ):
        assert FUZZ.check(data) is not None


@each_sample
def test_every_truncation_and_extension_is_refused(message):
    data = encode(message)
    for length in range(len(data)):
        with pytest.raises(MessageError) as caught:
            decode(data[:length])
        assert caught.value.fault == "cut off"
    with pytest.raises(MessageError, match="too long"):
        decode(data + b"\0")


@each_sample
def test_every_bit_of_every_byte_may_flip(message):
    data = encode(message)
    for place in range(len(data)):
        for bit in range(8):
            mutant = bytearray(data)
            mutant[place] ^= 1 << bit
            FUZZ.check(bytes(mutant))


@given(st.sampled_from(SAMPLES), st.data())
def test_changed_cut_and_repeated_bytes(message, data):
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not raw:
            break
    FUZZ.check(bytes(raw))


@given(st.binary(max_size=400))
def test_arbitrary_bytes(data):
    FUZZ.check(data)


@given(kind=st.integers(0, 255), header=st.binary(max_size=60), body=st.binary(max_size=60))
def test_arbitrary_headers(kind, header, body):
    FUZZ.check(framed(kind, header, body))


number = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(), st.none(), st.booleans(), st.text(max_size=5), st.sampled_from(["int8"]))
fields = st.recursive(number, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner), max_leaves=12)


@given(kind=st.integers(1, 13), header=st.lists(fields, max_size=9), body=st.binary(max_size=60))
def test_arbitrary_fields(kind, header, body):
    FUZZ.check(framed(kind, msgspec.msgpack.encode(header), body))


@given(st.sampled_from(SAMPLES), st.data())
def test_one_field_of_a_message_is_anything(message, data):
    raw = encode(message)
    length = struct.unpack_from("<I", raw, 6)[0]
    header, body = msgspec.msgpack.decode(raw[10 : 10 + length]), raw[10 + length :].lstrip(b"\0")
    if isinstance(header, list) and header:
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(fields)
    elif isinstance(header, dict):
        header[data.draw(st.sampled_from(sorted(header)))] = data.draw(fields)
    packed = msgspec.msgpack.encode(header)
    FUZZ.check(framed(raw[5], packed, bytes(-(10 + len(packed)) & 7) + body if body else b""))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: it has no wheel for this Python")
def test_atheris_finds_nothing(tmp_path):
    found = subprocess.run(
        [sys.executable, str(HARNESS), "--runs", "5000"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert "stat::number_of_executed_units: 5" in found.stderr
    assert list(tmp_path.iterdir()) == []  # no crash was written down
