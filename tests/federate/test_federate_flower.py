"""Flower's Ray simulation against the in-process engine: one algorithm, two engines, the same bits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nmoe.federate import LocalExchange, run
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.program import program_of

SMALL = TrainOptions(nodes=4, split="shards:3", rounds=2, gate_rounds=3)


def test_ray_and_local_give_bit_identical_weights_and_byte_counts(tmp_path: Path) -> None:
    flower = pytest.importorskip("nmoe.federate.flower", reason="the extra 'flower' is not installed")
    torch.set_num_threads(1)
    ends, lines = [], []
    for engine in ("local", "ray"):
        folder = tmp_path / engine
        program = program_of(SMALL, folder)
        if engine == "ray":
            ends.append(flower.run_ray(program, range(4), folder=folder))
        else:
            exchange = LocalExchange(program, range(4), threads=2)
            ends.append(run(program.stages(), exchange, folder=folder))
            exchange.close()
        lines.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert ends[0].keys() == ends[1].keys() and {"features", "experts", "gates", "fedavg"} <= ends[0].keys()
    for stage, state in ends[0].items():
        assert state.keys() == ends[1][stage].keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, ends[1][stage][name]), (stage, name)
    assert [line["bytes"] for line in lines[0]] == [line["bytes"] for line in lines[1]]
    assert all(not line["refused"] for line in lines[0] + lines[1])
    for part in ("extractor", "expert", "gate"):
        for node in range(4):
            file = Path("bundles") / f"node-{node}" / f"{part}.safetensors"
            local, ray = load_file(tmp_path / "local" / file), load_file(tmp_path / "ray" / file)
            assert all(torch.equal(local[name], ray[name]) for name in local), (part, node)
