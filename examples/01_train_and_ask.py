"""Train a small mixture on your machine, start its nodes as processes, and ask one of them."""

from pathlib import Path
from tempfile import mkdtemp

import torch

from nmoe.federate import LocalExchange, run
from nmoe.node import MeshProcesses
from nmoe.recipes.options import TrainOptions
from nmoe.recipes.program import program_of

folder = Path(mkdtemp())
program = program_of(TrainOptions(nodes=5, split="shards:4", rounds=6, gate_rounds=30), folder)
run(program.stages(), LocalExchange(program, range(5)), folder=folder)
test = program.data().test
with MeshProcesses(sorted((folder / "bundles").iterdir())) as mesh:
    reply = mesh.client.infer("node-3", torch.from_numpy(test.images[:8]), deadline_s=2.0)
print("said ", reply.labels.tolist(), "\ntruth", test.labels[:8].tolist(), "\nasked", reply.experts.tolist())
