"""Headers of safetensors files: read as the format's own library does, and refused when they do not hold together."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from nmoe.core.errors import BadFile
from nmoe.deliver.layout import DTYPES, check_index, data_start, parse_index, parse_layout

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "mask": torch.tensor([True, False]),
}


def made(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def layout_of(file):
    start = data_start(file[:8], len(file), name="f")
    return parse_layout(file[:start], len(file), name="f")


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_lie_where_the_library_finds_them():
    file = save(TENSORS, metadata={"format": "pt"})
    places = {place.name: place for place in layout_of(file).tensors}
    assert set(places) == set(TENSORS)
    for name, tensor in load(file).items():
        place = places[name]
        assert (place.dtype, place.shape) == (tensor.dtype, tuple(tensor.shape))
        assert file[place.start : place.end] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_one_of_the_library(name):
    tensor = torch.zeros(3, dtype=torch.uint8).to(DTYPES[name]) if name != "C64" else torch.zeros(3, dtype=torch.complex64)
    place = layout_of(save({"x": tensor})).tensors[0]
    assert (place.dtype, place.shape) == (tensor.dtype, (3,))


HOSTILE = {
    "no bytes": b"",
    "no header": b"\0" * 8,
    "header over 100 MB": made({}, length=100_000_001) + b" " * 100,
    "negative length": made({}, length=(1 << 64) - 1),
    "header longer than file": made({}, length=1000),
    "not JSON": made(b"{x}"),
    "not UTF-8": made(b'{"\xff": 1}'),
    "deep": made(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not an object": made([1]),
    "a name twice": made(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "metadata of numbers": made({"__metadata__": {"a": 1}}),
    "entry is no object": made({"a": 3}),
    "entry lacks the shape": made({"a": {"dtype": "F32", "data_offsets": [0, 0]}}),
    "entry has more": made({"a": {**entry([0], 0, 0), "code": "x"}}),
    "unknown dtype": made({"a": entry([1], 0, 4, "F31")}, b"1234"),
    "dtype is a list": made({"a": entry([1], 0, 4, ["F32"])}, b"1234"),
    "negative length of an axis": made({"a": entry([-1], 0, 4)}, b"1234"),
    "huge axis": made({"a": entry([1 << 63, 0], 0, 0)}),
    "true for a length": made({"a": entry([True], 0, 4)}, b"1234"),
    "fraction for a length": made({"a": entry([1.0], 0, 4)}, b"1234"),
    "too many axes": made({"a": entry([1] * 100, 0, 4)}, b"1234"),
    "three offsets": made({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"1234"),
    "negative offsets": made({"a": entry([1], -4, 0)}, b"1234"),
    "size and shape differ": made({"a": entry([2], 0, 4)}, b"1234"),
    "backwards": made({"a": entry([0], 4, 0)}, b"1234"),
    "overlap": made({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"123456"),
    "same place": made({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"),
    "hole": made({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12),
    "hole at the start": made({"a": entry([1], 4, 8)}, b"0" * 8),
    "truncated": made({"a": entry([2], 0, 8)}, b"1234"),
    "longer": made({"a": entry([1], 0, 4)}, b"12345678"),
}


@pytest.mark.parametrize("file", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused(file):
    with pytest.raises(BadFile, match="f"):
        layout_of(file)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(file):
    try:
        layout_of(file)
    except BadFile:
        return


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*DTYPES, "X"]),
                "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
                "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
            }
        ),
        max_size=3,
    ),
    st.integers(0, 40),
)
def test_whatever_is_accepted_fills_the_file_exactly(header, num_bytes):
    file = made(header, b"\0" * num_bytes)
    try:
        layout = layout_of(file)
    except BadFile:
        return
    assert sum(place.end - place.start for place in layout.tensors) == num_bytes
    load(file)  # the format's own library takes it, too


INDEX = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


def test_an_index_gives_each_tensors_file():
    assert parse_index(json.dumps(INDEX).encode(), name="i") == INDEX["weight_map"]


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "http://h/x.safetensors",
        ".x.safetensors",
        "x.bin",
        "",
        3,
        "a?b.safetensors",
    ],
)
def test_a_shard_is_a_plain_file_beside_its_index(shard):
    with pytest.raises(BadFile, match="plain name"):
        parse_index(json.dumps({"weight_map": {"a": shard}}).encode(), name="i")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, []])
def test_an_index_without_shards_is_refused(index):
    with pytest.raises(BadFile):
        parse_index(json.dumps(index).encode(), name="i")


def test_shards_hold_what_their_index_says():
    layout = layout_of(save({"a": torch.zeros(1)}))
    check_index({"a": "s"}, {"s": layout}, name="i")
    with pytest.raises(BadFile, match="lacks tensor b"):
        check_index({"a": "s", "b": "s"}, {"s": layout}, name="i")
    with pytest.raises(BadFile, match="tensor a, which"):
        check_index({"a": "t"}, {"s": layout}, name="i")
