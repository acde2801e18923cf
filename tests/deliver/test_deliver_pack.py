"""Cards: order, hashes, bytes and operations, as the file and the model have them; and cards that do not hold together."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from nmoe.core.errors import BadFile
from nmoe.deliver.arriving import build_empty
from nmoe.deliver.card import card_url, fit_card, parse_card
from nmoe.deliver.layout import data_start, parse_layout
from nmoe.deliver.pack import pack


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(4, 3), nn.Linear(2, 4), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.a(self.b(x))


@pytest.fixture(name="file")
def a_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(Backwards().state_dict(), path)
    return path


def test_a_card_has_the_order_hashes_bytes_and_operations(file):
    card = parse_card(pack(file, build_empty(Backwards), torch.zeros(5, 2)).read_bytes(), name="c")
    assert [tensor.name for tensor in card.tensors] == ["b.weight", "b.bias", "a.weight", "a.bias", "unused.weight"]
    assert card.traced
    assert [(group.name, group.bytes, group.flops) for group in card.layers] == [
        ("b", 4 * (8 + 4), 2 * 8),
        ("a", 4 * (12 + 3) + 4, 2 * 12),  # what is never touched joins the last
    ]
    data = file.read_bytes()
    assert card.files["m.safetensors"].sha256 == hashlib.sha256(data).hexdigest()
    layout = parse_layout(data[: data_start(data, len(data), name="m")], len(data), name="m")
    places = {place.name: place for place in layout.tensors}
    for tensor in card.tensors:
        assert tensor.sha256 == hashlib.sha256(data[places[tensor.name].start : places[tensor.name].end]).hexdigest()
    head = data[: layout.data_start]
    assert fit_card(card, {"m.safetensors": (layout, head)}, name="c") == card.files
    assert list(fit_card(card, {"download": (layout, head)}, name="c")) == ["download"], "a single file may have another name"
    with pytest.raises(BadFile, match="other files"):
        fit_card(card, {"m.safetensors": (layout, head), "n.safetensors": (layout, head)}, name="c")


def test_without_a_model_tensors_keep_the_files_order(file):
    card = parse_card(pack(file).read_bytes(), name="c")
    assert [tensor.name for tensor in card.tensors] == ["a.bias", "a.weight", "b.bias", "b.weight", "unused.weight"]
    assert not card.traced
    assert {group.flops for group in card.layers} == {None}
    assert sum(group.bytes for group in card.layers) == sum(tensor.bytes for tensor in card.tensors)


def test_shards_have_one_card(tmp_path):
    for name in "ab":
        save_file({name: torch.zeros(3)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    card = parse_card(pack(index).read_bytes(), name="c")
    assert set(card.files) == {"a.safetensors", "b.safetensors"}
    assert card_url("https://h/x/m.safetensors.index.json?token=1") == "https://h/x/m.safetensors.index.json.card.json?token=1"


def test_what_cannot_be_packed_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match="together"):
        pack(file, build_empty(Backwards))
    with pytest.raises(ValueError, match="shape"):
        pack(
            file,
            build_empty(lambda: nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(2, 4), "unused": nn.Linear(1, 1, bias=False)})),
            [],
        )
    with pytest.raises(BadFile, match="cannot read"):
        pack(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.zeros(3)})[:-1])
    with pytest.raises(BadFile, match="truncated"):
        pack(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(format=2),
        lambda card: card.pop("tensors"),
        lambda card: card["tensors"][0].update(sha256="x"),
        lambda card: card["files"]["m.safetensors"].update(sha256="../../x"),
        lambda card: card["layers"][0].update(flops=-1.0),
        lambda card: card["layers"][0].update(bytes="many"),
    ],
)
def test_a_card_that_does_not_hold_together_is_refused(file, change):
    card = json.loads(pack(file).read_bytes())
    change(card)
    with pytest.raises(BadFile, match="c"):
        parse_card(json.dumps(card).encode(), name="c")
    for data in (b"", b"{", b"[1]", b"\xff"):
        with pytest.raises(BadFile):
            parse_card(data, name="c")


def test_a_card_that_leaves_out_a_tensor_does_not_fit(file):
    text = json.loads(pack(file).read_bytes())
    text["tensors"].pop()
    data = file.read_bytes()
    layout = parse_layout(data[: data_start(data, len(data), name="m")], len(data), name="m")
    with pytest.raises(BadFile, match="does not list"):
        fit_card(parse_card(json.dumps(text).encode(), name="c"), {"m": (layout, data[: layout.data_start])}, name="c")
