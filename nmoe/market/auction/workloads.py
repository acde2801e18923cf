"""Workloads: networks with early exits that a device and the edge run together, as operations and bytes layer by layer.

Source: S. Li, J. Hu, G. Min, H. Huang, J. Huang, arXiv 2503.04521 (AERIA): multi-exit networks between device and edge. Layers are counted
by ``nmoe.core.image_models``; early exits as in S. Teerapittayanon, B. McDanel, H. T. Kung, BranchyNet, ICPR 2016.

| paper | here | unit |
|---|---|---|
| W_l | layer_flops[l - 1] | FLOP per task, 2 x MACs |
| O_l | output_bytes[l], O_0 the input | bytes per task |
| l_e | after_layer | layers, from 1 |
| W_e^x | head_flops | FLOP per task |
| acc_e | accuracy | share in [0, 1] |

Departures: the paper names four workloads that this project has not seen; these four are ours: AlexNet, VGG-16, ResNet-50 and MobileNetV2.
The last exit is the network's own classifier, with its published top-1 accuracy on ImageNet, rounded. Where the other exits are, that their
heads are a mean over the feature map and one full layer, and how accurate they are, is our choice, not measured. Images are sent as 8-bit
pixels and features in 8 bits per number. A cut lies between blocks: inside a residual block two tensors would have to be sent.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from nmoe.core.errors import BadFile
from nmoe.core.image_models import CLASSES, INPUT_NUMBERS, LayerWork, image_model_blocks
from nmoe.core.table import Table, read_table

MOST = 1e30  # of FLOPs and bytes: sums stay finite
LAYER_COLUMNS = ("model", "macs", "out_elems", "accuracy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """A place where an answer can be had.

    Attributes:
        after_layer: how many layers run before its head, at least 1.
        head_flops: of its classifier, FLOP per task, at least 0.
        accuracy: in [0, 1].
    """

    after_layer: int
    head_flops: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A network, layer by layer.

    Attributes:
        name: not empty.
        layer_flops: FLOP per task of each layer, at least 0.
        output_bytes: what has to be sent when the first 0, 1, ... layers ran on the device: one more than layers, the input first.
        exits: at least one; later ones after no fewer layers.
    """

    name: str
    layer_flops: tuple[float, ...]
    output_bytes: tuple[float, ...]
    exits: tuple[Exit, ...]

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when there is no layer or exit, lengths do not match, or a number is out of its range.
        """
        owner = f"workload {self.name!r}"
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"{owner}: name must be text that is not empty")
        if not self.layer_flops or not self.exits:
            raise ValueError(f"{owner}: at least one layer and one exit wanted, got {len(self.layer_flops)} and {len(self.exits)}")
        if len(self.output_bytes) != len(self.layer_flops) + 1:
            raise ValueError(
                f"{owner}: output_bytes must have one number more than layer_flops, the input's first; got {len(self.output_bytes)} and "
                f"{len(self.layer_flops)}"
            )
        for field, values in (("layer_flops", self.layer_flops), ("output_bytes", self.output_bytes)):
            for position, value in enumerate(values):
                _check_number(owner, f"{field}[{position}]", value, most=MOST)
        for number, one in enumerate(self.exits):
            self._check_exit(f"{owner}, exit {number}", one)
        places = [one.after_layer for one in self.exits]
        if places != sorted(places):
            raise ValueError(f"{owner}: exits must be in the order of their layers, got {places}")

    def _check_exit(self, owner: str, one: Exit) -> None:
        if isinstance(one.after_layer, bool) or not isinstance(one.after_layer, int) or not 1 <= one.after_layer <= len(self.layer_flops):
            raise ValueError(f"{owner}: after_layer must be a whole number in 1..{len(self.layer_flops)}, got {one.after_layer!r}")
        _check_number(owner, "head_flops", one.head_flops, most=MOST)
        _check_number(owner, "accuracy", one.accuracy, most=1.0)


class Branch(NamedTuple):
    """An early exit of a built-in workload: behind which block, how wide the feature map is there, and how accurate (ours)."""

    after_block: int
    channels: int
    accuracy: float


BRANCHES: Mapping[str, tuple[tuple[Branch, ...], float]] = {  # early exits, and the accuracy of the last
    "alexnet": ((Branch(2, 192, 0.33), Branch(5, 256, 0.48)), 0.565),
    "vgg16": ((Branch(4, 128, 0.36), Branch(7, 256, 0.52), Branch(10, 512, 0.65)), 0.716),
    "resnet50": ((Branch(4, 256, 0.38), Branch(8, 512, 0.56), Branch(14, 1024, 0.70)), 0.761),
    "mobilenet_v2": ((Branch(4, 24, 0.28), Branch(7, 32, 0.42), Branch(11, 64, 0.56), Branch(14, 96, 0.65)), 0.719),
}


def builtin_workloads() -> dict[str, Workload]:
    """Return AlexNet, VGG-16, ResNet-50 and MobileNetV2 with three to five exits each, for images of 224 x 224."""
    blocks = image_model_blocks(stride_in_3x3=True)
    return {name: with_branches(name, blocks[name], early, accuracy=last) for name, (early, last) in BRANCHES.items()}


def with_branches(name: str, blocks: Sequence[LayerWork], early: Sequence[Branch], *, accuracy: float) -> Workload:
    """Return the workload of a network whose last block is its classifier, with early exits of one full layer each."""
    *body, head = blocks
    exits = [Exit(after_layer=one.after_block, head_flops=2.0 * one.channels * CLASSES, accuracy=one.accuracy) for one in early]
    return Workload(
        name=name,
        layer_flops=tuple(2.0 * block.macs for block in body),
        output_bytes=(float(INPUT_NUMBERS), *(float(block.outputs) for block in body)),
        exits=(*exits, Exit(after_layer=len(body), head_flops=2.0 * head.macs, accuracy=accuracy)),
    )


def read_workloads(path: Path) -> dict[str, Workload]:
    """Read workloads from a file of the user's own.

    ``.toml`` and ``.json``: a list ``workloads``, each with the fields of ``Workload``, exits as tables with those of ``Exit``. ``.csv``: a
    row per layer in the order in which they run, with columns model, macs, out_elems and accuracy, and head_macs if wanted; accuracy is
    empty where there is no exit. A row whose ``layer`` is ``input`` says how large the input is; without one it is a 224 x 224 image. A
    number takes one byte.

    Returns:
        Workloads by name.

    Raises:
        BadFile: when the file cannot be read, or is not what its ending promises.
        ValueError: when a field is missing, unknown or out of its range, or two workloads have one name.
    """
    if path.suffix == ".csv":
        return _from_layers(read_table(path, empty=True))
    try:
        text = path.read_text("utf-8-sig")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    return parse_workloads(tables)


def parse_workloads(tables: Any) -> dict[str, Workload]:
    """Return the workloads that a file's tables describe; see ``read_workloads``.

    Raises:
        ValueError: as ``read_workloads``.
    """
    listed = tables.get("workloads") if isinstance(tables, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(table, dict) for table in listed):
        raise ValueError("workloads: a list of tables ([[workloads]]) wanted, with at least one")
    return _by_name([_parse_workload(table) for table in listed])


def _parse_workload(table: Mapping[str, Any]) -> Workload:
    owner = f"workload {table.get('name')!r}"
    _check_fields(owner, table, Workload)
    lists = {field: table[field] for field in ("layer_flops", "output_bytes", "exits")}
    for field, value in lists.items():
        if not isinstance(value, list):
            raise ValueError(f"{owner}: {field} must be a list, got {value!r}")
    exits = []
    for number, one in enumerate(lists["exits"]):
        if not isinstance(one, dict):
            raise ValueError(f"{owner}: exit {number} must be a table, got {one!r}")
        _check_fields(f"{owner}, exit {number}", one, Exit)
        exits.append(Exit(**one))
    return Workload(
        name=table["name"], layer_flops=tuple(lists["layer_flops"]), output_bytes=tuple(lists["output_bytes"]), exits=tuple(exits)
    )


def _from_layers(table: Table) -> dict[str, Workload]:
    """Return the workloads of a table with a row per layer."""
    table.require(LAYER_COLUMNS)
    macs, numbers = table.floats("macs"), table.floats("out_elems")
    heads = table.floats("head_macs") if "head_macs" in table.columns else [0.0] * len(macs)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table.columns["model"]):
        rows.setdefault(name, []).append(row)
    if not rows:
        raise BadFile(f"{table.path} has no layers")
    found = []
    for name, of_model in rows.items():
        is_input = "layer" in table.columns and table.columns["layer"][of_model[0]].lower() == "input"
        layers = of_model[1:] if is_input else of_model
        found.append(
            Workload(
                name=name,
                layer_flops=tuple(2 * macs[row] for row in layers),
                output_bytes=(numbers[of_model[0]] if is_input else float(INPUT_NUMBERS), *(numbers[row] for row in layers)),
                exits=tuple(
                    Exit(after_layer=place, head_flops=2 * heads[row], accuracy=_accuracy(table, row))
                    for place, row in enumerate(layers, 1)
                    if table.columns["accuracy"][row]
                ),
            )
        )
    return _by_name(found)


def _accuracy(table: Table, row: int) -> float:
    word = table.columns["accuracy"][row]
    try:
        return float(word)
    except ValueError as error:
        raise BadFile(f"{table.where(row)}: accuracy should be a number or empty, it is {word!r}") from error


def _by_name(workloads: Sequence[Workload]) -> dict[str, Workload]:
    found = {one.name: one for one in workloads}
    if len(found) < len(workloads):
        names = [one.name for one in workloads]
        raise ValueError(f"workload {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _check_fields(owner: str, table: Mapping[str, Any], kind: type[Workload | Exit]) -> None:
    """Raise ValueError for a field that is missing or unknown."""
    known = [field.name for field in fields(kind)]
    for field in fields(kind):
        if field.default is MISSING and field.name not in table:
            raise ValueError(f"{owner}: {field.name} is missing")
    for name in table:
        if name not in known:
            raise ValueError(f"{owner}: {name} is no field, known are {', '.join(known)}")


def _check_number(owner: str, field: str, value: Any, *, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{owner}: {field} must be a number in 0..{most:g}, got {value!r}")
