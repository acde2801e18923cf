"""Messages survive the wire unchanged, and formats keep their laws."""

import runpy
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nmoe.channel.quantise import quantise as simulated
from nmoe.core.errors import MessageError
from nmoe.node.messages import (
    BITS,
    CardReply,
    ExpertReply,
    ExpertRequest,
    ExpertRows,
    GradientReply,
    GradientRequest,
    InferReply,
    InferRequest,
    PingReply,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
    TensorFormat,
    decode,
    decode_as,
    encode,
    refusal,
    reply_format,
)
from nmoe.node.messages.formats import LARGEST_CODE, MIN_SCALE, dequantise, pack, quantise, tensor_bytes, to_half, unpack
from nmoe.node.plan import OVERHEAD_BYTES, message_bytes

FUZZ = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fuzz_messages.py")))
SAMPLES = FUZZ.samples()

word = st.text("abcXYZ019_-", min_size=1, max_size=64)
line = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=64)
number = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 3600)
form = st.sampled_from(TensorFormat)
finite32 = st.floats(-(2.0**100), 2.0**100, width=32)
any32 = st.floats(width=32)
unit32 = st.floats(0, 1, width=32)


def matrices(values, *, width=6):
    return st.tuples(st.integers(1, 6), st.integers(1, width)).flatmap(lambda shape: arrays(np.float32, shape, elements=values))


@st.composite
def expert_requests(draw, forms=form):
    features = draw(matrices(finite32))
    rows = len(features)
    parts = []
    for name in draw(st.lists(word, min_size=1, max_size=4, unique=True)):
        chosen = draw(st.none() | st.sets(st.integers(0, rows - 1), min_size=1))
        indices = None if chosen is None else np.array(sorted(chosen), dtype=np.int32)
        parts.append(ExpertRows(expert=name, version=draw(line), rows=indices))
    return ExpertRequest(
        request=draw(number), origin=draw(word), deadline_s=draw(seconds), format=draw(forms), experts=tuple(parts), features=features,
        trace=draw(line),
    )  # fmt: skip


@st.composite
def gradient_requests(draw):
    forward = draw(expert_requests(st.just(TensorFormat.FLOAT32)))
    gradients = draw(arrays(np.float32, (forward.num_pairs, draw(st.integers(1, 4))), elements=finite32))
    return GradientRequest(forward=forward, gradients=gradients)


@st.composite
def infer_requests(draw):
    shape = draw(st.tuples(*[st.integers(1, 3)] * 4))
    pixels = draw(arrays(np.uint8, shape) | arrays(np.float32, shape, elements=unit32))
    k = draw(st.none() | st.integers(1, 9))
    return InferRequest(images=torch.from_numpy(pixels), deadline_s=draw(seconds), k=k, identity=draw(line), trace=draw(line))


@st.composite
def infer_replies(draw):
    batch, classes, k = draw(st.tuples(*[st.integers(1, 4)] * 3))
    names = tuple(draw(st.lists(word, max_size=5, unique=True)))
    experts = draw(arrays(np.int64, (batch, k), elements=st.integers(-1, len(names) - 1)))
    weights = np.where(experts < 0, np.float32(0), draw(arrays(np.float32, (batch, k), elements=unit32)))
    return InferReply(
        probabilities=torch.from_numpy(draw(arrays(np.float32, (batch, classes), elements=unit32))),
        labels=torch.from_numpy(draw(arrays(np.int64, (batch,), elements=st.integers(0, classes - 1)))),
        experts=torch.from_numpy(experts), weights=torch.from_numpy(weights), names=names, degraded=draw(st.booleans()),
        bytes_sent=draw(number), bytes_received=draw(number), seconds=draw(seconds),
    )  # fmt: skip


@st.composite
def card_replies(draw):
    classes = tuple(draw(st.lists(st.integers(0, 99), max_size=4, unique=True)))
    card = FUZZ.card(
        node=draw(word), version=draw(line), experts=tuple(draw(st.lists(word, min_size=1, max_size=4, unique=True))), classes=classes,
        class_list=draw(line), num_classes=100, rows_per_s=draw(st.floats(0, 1e9)), gradients=draw(st.booleans()),
        formats=tuple(draw(st.lists(form, min_size=1, unique=True))), draining=draw(st.booleans()),
    )  # fmt: skip
    rows = draw(st.sampled_from([0, len(classes)]))
    return CardReply(card=card, prototypes=draw(arrays(np.float32, (rows, 3), elements=finite32)))


expert_replies = st.builds(
    ExpertReply, request=number, format=form, outputs=matrices(any32), wait_s=seconds, compute_s=seconds, queue_rows=number,
    draining=st.booleans(),
)  # fmt: skip
messages = st.one_of(
    st.integers(0, len(SAMPLES) - 1).map(SAMPLES.__getitem__),
    expert_requests(),
    expert_replies,
    gradient_requests(),
    st.builds(GradientReply, request=number, gradients=matrices(any32)),
    st.builds(refusal, st.sampled_from(RefusalCode), st.text(max_size=300), request=number, queue_rows=number),
    infer_requests(),
    infer_replies(),
    card_replies(),
    st.builds(PingReply, queue_rows=number),
    st.builds(lambda node, answered: StatusReply(view=msgspec.structs.replace(FUZZ.view(), node=node, answered=answered)), word, number),
)


def as_half(values: np.ndarray) -> np.ndarray:
    """Return what is to come out of float16, by numpy's own conversion."""
    with np.errstate(over="ignore"):
        return (values.clip(-65504, 65504) if np.isfinite(values).all() else values).astype(np.float16).astype(np.float32)


def close(sent: np.ndarray, came: np.ndarray, wanted: TensorFormat) -> bool:
    if sent.shape != came.shape or came.dtype != np.float32:
        return False
    if wanted is TensorFormat.FLOAT32:
        return sent.tobytes() == came.tobytes()
    if wanted is TensorFormat.FLOAT16:
        return np.array_equal(came, as_half(sent), equal_nan=True)
    largest = LARGEST_CODE[wanted]
    limit = largest / (largest + 1) * float(np.finfo(np.float32).max)
    good = (np.abs(sent) <= limit).all(axis=1)  # false for NaN as well
    if not np.isnan(came[~good]).all():
        return False
    scale = np.abs(sent[good].astype(np.float64)).max(axis=1, keepdims=True, initial=0) / largest
    return bool((np.abs(sent[good] - came[good].astype(np.float64)) <= np.maximum(scale, MIN_SCALE) * 0.5001).all())


@given(messages)
def test_round_trip(message):
    came = decode(encode(message))
    match message:
        case ExpertRequest():
            assert close(message.features, came.features, message.format)
            came = replace(came, features=message.features)
        case ExpertReply():
            assert close(message.outputs, came.outputs, message.format)
            came = replace(came, outputs=message.outputs)
    assert FUZZ.same(came, message)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_tensors_begin_at_multiples_of_8_and_float32_is_not_copied(message):
    data = encode(message)
    start = (10 + struct.unpack_from("<I", data, 6)[0] + 7) & -8
    came = decode(data)
    tensor = {ExpertRequest: "features", ExpertReply: "outputs", GradientReply: "gradients", CardReply: "prototypes"}.get(type(came))
    if tensor is None or (array := getattr(came, tensor)).size == 0 or getattr(message, "format", TensorFormat.FLOAT32) != "float32":
        return
    assert data[start : start + array.nbytes] == array.tobytes()
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert not array.flags.writeable
    assert array.flags.aligned


# Formats


@given(matrices(st.floats(width=32, allow_nan=False, allow_infinity=False), width=40))
def test_float16_errs_by_at_most_half_a_unit_in_the_last_place(values):
    came = to_half(values, strict=True).astype(np.float64)
    within = np.abs(values) <= 65504
    exact = values.astype(np.float64)
    assert (np.abs(came - exact)[within] <= np.maximum(np.abs(exact[within]) * 2.0**-11, 2.0**-25)).all()
    assert (came[~within] == 65504 * np.sign(exact[~within])).all()


@pytest.mark.parametrize("wanted", LARGEST_CODE)
@given(values=matrices(st.floats(-(2.0**127), 2.0**127, width=32), width=40))
def test_codes_err_by_at_most_half_a_scale(wanted, values):
    codes, scales = quantise(values, wanted, strict=True)
    assert (np.abs(codes) <= LARGEST_CODE[wanted]).all()
    came = dequantise(codes, scales).astype(np.float64)
    assert (np.abs(came - values) <= scales[:, None].astype(np.float64) * 0.5 * (1 + 1e-4)).all()
    zero = ~values.any(axis=1)
    assert (scales[zero] == 0).all()
    assert (scales[~zero] > 0).all()


def test_int8_rounds_half_to_even_as_the_definition_says():
    codes, scales = quantise(np.array([[127, 0.5, 1.5, 2.5, -0.5, -126.5]], dtype=np.float32), strict=True)
    assert scales.tolist() == [1.0]
    assert codes.tolist() == [[127, 0, 2, 2, 0, -126]]


def test_int8_takes_a_quarter_of_the_bytes_and_errs_little_on_outputs_of_unit_variance():
    outputs = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    sizes = {}
    for wanted in TensorFormat:
        message = ExpertReply(request=1, format=wanted, outputs=outputs, wait_s=0.0, compute_s=0.0, queue_rows=0)
        sizes[wanted] = len(data := encode(message))
        assert np.abs(decode(data).outputs - outputs).max() < (0.4 if wanted is TensorFormat.INT4 else 0.05)
    assert sizes[TensorFormat.FLOAT16] < 0.51 * sizes[TensorFormat.FLOAT32]
    assert sizes[TensorFormat.INT8] < 0.26 * sizes[TensorFormat.FLOAT32]
    assert sizes[TensorFormat.INT4] < 0.13 * sizes[TensorFormat.FLOAT32]


@given(arrays(np.int8, st.tuples(st.integers(1, 6), st.integers(1, 40)), elements=st.integers(-7, 7)))
def test_int4_codes_share_bytes_and_come_back(codes):
    rows, dim = codes.shape
    packed = pack(codes)
    assert packed.shape == (rows, (dim + 1) // 2)
    assert np.array_equal(unpack(packed, dim), codes)
    for row in range(rows):
        for column in range(2 * packed.shape[1]):
            nibble = int(packed[row, column // 2]) >> 4 * (column % 2) & 15
            assert nibble == (int(codes[row, column]) % 16 if column < dim else 0)


def test_int4_rounds_half_to_even_as_the_definition_says():
    codes, scales = quantise(np.array([[7, 0.5, 1.5, 2.5, -0.5, -6.5]], dtype=np.float32), TensorFormat.INT4, strict=True)
    assert scales.tolist() == [1.0]
    assert codes.tolist() == [[7, 0, 2, 2, 0, -6]]
    assert pack(codes).tolist() == [[0x07, 0x22, 0xA0]]


@pytest.mark.parametrize("wanted", LARGEST_CODE)
@given(values=matrices(finite32, width=9))
def test_the_wire_rounds_as_the_channels_quantiser_does(wanted, values):
    codes, scales = quantise(values, wanted, strict=True)
    other = simulated(torch.from_numpy(values), bits=BITS[wanted])
    assert np.array_equal(other.codes.numpy(), codes)
    assert np.array_equal(other.scales.numpy(), scales)


@given(form, st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_a_messages_size_is_known_but_for_its_headers(wanted, rows, in_dim, out_dim):
    asked = replace(FUZZ.request(wanted, rows=rows, dim=in_dim), experts=(ExpertRows(expert="node-1"),))
    outputs = np.ones((rows, out_dim), dtype=np.float32)
    back = ExpertReply(request=1, format=reply_format(wanted), outputs=outputs, wait_s=0.0, compute_s=0.0, queue_rows=0)
    headers = 0
    for message, form_sent, dim in ((asked, wanted, in_dim), (back, back.format, out_dim)):
        headers += len(encode(message)) - tensor_bytes(rows, dim, form_sent)
    told = message_bytes(rows, in_dim=in_dim, out_dim=out_dim, form=wanted)
    assert told == OVERHEAD_BYTES + tensor_bytes(rows, in_dim, wanted) + tensor_bytes(rows, out_dim, back.format)
    assert abs(headers - OVERHEAD_BYTES) < 60


@pytest.mark.parametrize("wanted", [TensorFormat.FLOAT16, TensorFormat.INT8, TensorFormat.INT4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_neither_sent_nor_taken(wanted, value):
    message = FUZZ.request(wanted)
    message.features[1, 2] = value
    with pytest.raises(ValueError, match="finite"):
        encode(message)
    with pytest.raises(MessageError, match="features must be finite") as caught:
        decode(encode(replace(message, format=TensorFormat.FLOAT32)))
    assert caught.value.fault == "number"


@pytest.mark.parametrize("wanted", TensorFormat)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_arrive_as_such(wanted, value):
    outputs = np.ones((3, 4), dtype=np.float32)
    outputs[1, 2] = value
    came = decode(encode(ExpertReply(request=1, format=wanted, outputs=outputs, wait_s=0.0, compute_s=0.0, queue_rows=0))).outputs
    assert not np.isfinite(came[1, 2])
    assert np.isfinite(came[[0, 2]]).all()


# Limits


def test_a_message_too_large_to_be_read_is_not_written():
    features = np.zeros((1 << 13, (1 << 11) + 1), dtype=np.float32)
    request = replace(FUZZ.request(TensorFormat.INT8), features=features)
    with pytest.raises(ValueError, match="at most"):
        encode(request)
    with pytest.raises(ValueError, match="rows of gradients wanted"):
        encode(GradientRequest(forward=FUZZ.request(TensorFormat.FLOAT32), gradients=np.zeros((1, 2), dtype=np.float32)))
    with pytest.raises(ValueError, match="uint8 or float32"):
        encode(InferRequest(images=torch.zeros(1, 1, 1, 1, dtype=torch.float64), deadline_s=1.0))


def test_refusals_are_one_printable_line():
    said = refusal(RefusalCode.FAILED, "a\nb\x1b[2J \udcff" + "x" * 10_000)
    assert said.reason.startswith("a b?[2J ?x")
    assert len(said.reason) == 200
    assert decode(encode(said)) == said


def test_wanted_kind_or_refusal():
    assert isinstance(decode_as(encode(refusal(RefusalCode.LATE, "late")), ExpertReply), Refusal)
    with pytest.raises(MessageError, match="ExpertReply wanted, StatusRequest came") as caught:
        decode_as(encode(StatusRequest()), ExpertReply)
    assert caught.value.fault == "kind"
