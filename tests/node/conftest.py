"""A small mesh's bundles, with random weights, and the reference every transport is tested against."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nmoe.core.bundle import Bundle, ModelSpec, Provenance, read_bundle, write_bundle
from nmoe.core.seeds import torch_generator
from nmoe.moe import ChannelAwareGate, Mixture, MixtureOutput, TopKGate, build, node_model
from nmoe.moe.layer import combine
from nmoe.node import MemoryHub, MeshClient, NodeOptions, NodeRunner, NodeView, TensorFormat, Transport
from nmoe.node.bank import NodeCompute
from nmoe.node.messages import CardReply, encode
from nmoe.node.newcomers import Newcomers
from nmoe.node.transport.base import OnQuery, Service

PLAIN = NodeOptions(formats=(TensorFormat.FLOAT32,))  # under time pressure a node sends less exact ones
IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 10


def write_mesh(
    folder: Path,
    num_nodes: int,
    *,
    seed: int = 0,
    mix: str = "probabilities",
    k: int = 2,
    experts: tuple[str, ...] | None = None,
    worth: float | None = None,
    favourite: int | None = None,
) -> list[Path]:
    """Write the bundles of one mesh: one extractor, and an expert and a gate each.

    ``worth``: what 10 dB of a link add to its expert's score, for gates that see links; ``favourite``: the expert that all gates prefer.
    """
    names = experts or tuple(f"node-{index}" for index in range(num_nodes))
    specs = {
        "extractor": ModelSpec(kind="conv", arguments={"in_channels": 1, "feature_dim": 128}),
        "expert": ModelSpec(kind="mlp", arguments={"feature_dim": 128, "hidden_dim": 64, "num_classes": NUM_CLASSES}),
        "gate": ModelSpec(kind="top_k", arguments={"feature_dim": 128, "num_experts": len(names), "trunk_dim": 0, "noisy": False}),
    }
    if worth is not None:
        arguments = {"feature_dim": 128, "num_experts": len(names), "trunk_dim": 0, "hidden_dim": 1, "joint": False}
        specs["gate"] = ModelSpec(kind="channel_aware", arguments=arguments)
    extractor = build(specs["extractor"], generator=torch_generator(seed, "extractor"))
    for index in range(num_nodes):
        expert = build(specs["expert"], generator=torch_generator(seed, "expert", index))
        gate = build(specs["gate"], generator=torch_generator(seed, "gate", index))
        generator = torch_generator(seed, "scores", index)
        assert isinstance(gate, TopKGate | ChannelAwareGate)
        with torch.no_grad():
            gate.output.weight.normal_(generator=generator)
            if favourite is not None:
                gate.output.bias[favourite] = 50.0
            if isinstance(gate, ChannelAwareGate):  # worth * (level + 2), which is linear over the range of levels
                gate.branch.levels.weight.fill_(1.0)
                gate.branch.levels.bias.fill_(2.0)
                gate.branch.output.weight.fill_(worth or 0.0)
        write_bundle(
            folder / names[index],
            {"extractor": extractor.state_dict(), "expert": expert.state_dict(), "gate": gate.state_dict()},
            node=names[index],
            experts=names,
            neighbours=tuple(name for name in names if name != names[index]),
            classes_seen=(index % NUM_CLASSES,),
            num_classes=NUM_CLASSES,
            k=min(k, len(names)),
            mix=mix,
            image_shape=IMAGE_SHAPE,
            provenance=Provenance(recipe="test", seed=seed, data="none", git_revision="none"),
            **specs,
        )
    return [folder / names[index] for index in range(num_nodes)]


@pytest.fixture(scope="session", name="write_mesh")
def write_mesh_fixture() -> Callable[..., list[Path]]:
    """Write the bundles of one mesh."""
    return write_mesh


class Mesh(NamedTuple):
    """Bundles of one mesh and what its nodes should answer."""

    folders: list[Path]
    bundles: list[Bundle]

    def reference(self, node: int, images: Tensor, *, k: int, up: set[int] | None = None) -> MixtureOutput:
        """What the mixture in one process answers with this node's gate and these nodes up."""
        models = [node_model(bundle) for bundle in self.bundles]
        own = models[node]
        mixture = Mixture(extractor=own.extractor, experts=[model.expert for model in models], gate=own.gate, mix=own.mix)
        mask = torch.tensor([up is None or index in up for index in range(len(models))])
        with torch.no_grad():
            return mixture.forward(images.permute(0, 3, 1, 2) / 255, k=min(k, int(mask.sum())), mask=mask)

    def mixed(self, node: int, images: Tensor, experts: Tensor) -> Tensor:
        """The probabilities [batch, classes] that this node's gate gives with these experts [batch, k] behind each sample, -1 for none."""
        models = [node_model(bundle) for bundle in self.bundles]
        with torch.no_grad():
            features = models[node].extractor(images.permute(0, 3, 1, 2) / 255)
            scores = models[node].gate.scores(features).gather(1, experts.clamp(min=0)).masked_fill(experts < 0, -torch.inf)
            logits = torch.stack([model.expert(features) for model in models], dim=1)  # [batch, nodes, classes]
            outputs = logits.gather(1, experts.clamp(min=0).unsqueeze(2).expand(-1, -1, logits.shape[2]))
            return combine(outputs, scores.softmax(dim=1), mix=models[node].mix)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """Four nodes."""
    folders = write_mesh(tmp_path_factory.mktemp("mesh"), 4)
    return Mesh(folders, [read_bundle(folder) for folder in folders])


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Forty random images."""
    return torch.randint(0, 256, (40, *IMAGE_SHAPE), dtype=torch.uint8, generator=torch_generator(0, "images"))


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Whatever a test starts, it ends. Threads of zenoh's own (dummies to Python) are not ours."""
    before = set(threading.enumerate())
    yield
    until_s = time.monotonic() + 2
    left: list[threading.Thread] = []
    while time.monotonic() < until_s:
        left = [one for one in threading.enumerate() if one not in before and not one.name.startswith("Dummy")]
        if not left:
            return
        time.sleep(0.01)
    pytest.fail(f"threads left: {left}")


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait until something holds."""

    def wait(holds: Callable[[], bool], *, within_s: float = 10.0) -> None:
        until_s = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < until_s, "it never came true"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def peers() -> Callable[[NodeView], tuple[str, ...]]:
    """Whom a node can ask now, by its own view."""
    return lambda view: tuple(link.peer for link in view.links if link.state == "up" and link.experts)


@pytest.fixture
def serve(eventually: Callable[..., None], peers: Callable[[NodeView], tuple[str, ...]]) -> Callable[..., object]:
    """Serve a mesh in this process, over memory: a context manager of hub, client and nodes that all see each other."""

    @contextmanager
    def serving(
        mesh: Mesh, *, options: NodeOptions = PLAIN, **hub_arguments: float | None
    ) -> Iterator[tuple[MemoryHub, MeshClient, list[NodeRunner]]]:
        with MemoryHub(**hub_arguments) as hub, ExitStack() as stack:
            runners = []
            for folder, bundle in zip(mesh.folders, mesh.bundles, strict=True):
                runners.append(NodeRunner(bundle, hub.transport(bundle.card.node), folder=folder, options=options))
                stack.callback(runners[-1].stop)
                runners[-1].start()
            client = stack.enter_context(MeshClient(hub.transport("client")))
            eventually(lambda: all(len(peers(runner.view())) == len(runners) - 1 for runner in runners))
            yield hub, client, runners

    return serving


@pytest.fixture(scope="session")
def pose() -> Callable[..., None]:
    """Pose as a node: announce a transport with the card of a bundle, changed at will, and answer expert requests by a handler, or not."""

    def posing(transport: Transport, bundle: Bundle, on_query: OnQuery | None = None, **changes: object) -> None:
        newcomers = Newcomers(bundle, NodeCompute(bundle), name=bundle.card.node, ask=transport.ask, later=lambda seconds, call: None)
        told = newcomers.own_card(tuple(TensorFormat), draining=False, gradients=False, rows_per_s=0)
        means = changes.pop("prototypes", told.prototypes)
        assert isinstance(means, np.ndarray)
        data = encode(CardReply(card=msgspec.structs.replace(told.card, **changes), prototypes=means))
        transport.serve(Service.CARD, lambda _, respond: respond(data))
        transport.serve(Service.EXPERT, (lambda data, respond: None) if on_query is None else on_query)
        transport.announce()

    return posing


@pytest.fixture(scope="session")
def new_mesh() -> Callable[..., list[Path]]:
    """``write_mesh``, for tests that need other bundles."""
    return write_mesh


class Taught(NamedTuple):
    """Bundles of nodes that have each learnt their classes, with prototypes, and images of every class."""

    folders: list[Path]
    bundles: list[Bundle]
    images: Callable[[int, int], Tensor]  # of a class, so many


@pytest.fixture(scope="session")
def teach() -> Callable[..., Taught]:
    """Write bundles of nodes that have each learnt their ``classes``; the gates know the ``experts``, and each node itself."""

    def teaching(
        folder: Path, classes: dict[str, tuple[int, ...]], *, experts: tuple[str, ...], class_names: tuple[str, ...] = ()
    ) -> Taught:
        specs = {
            "extractor": ModelSpec(kind="conv", arguments={"in_channels": 1, "feature_dim": 128}),
            "expert": ModelSpec(kind="mlp", arguments={"feature_dim": 128, "hidden_dim": 64, "num_classes": NUM_CLASSES}),
        }
        extractor = build(specs["extractor"], generator=torch_generator(0, "extractor"))
        patterns = torch.rand(NUM_CLASSES, *IMAGE_SHAPE, generator=torch_generator(0, "patterns"))

        def images(label: int, count: int) -> Tensor:
            noise = 0.1 * torch.randn(count, *IMAGE_SHAPE, generator=torch_generator(0, "noise", label))
            return (255 * (patterns[label] + noise).clamp(0, 1)).to(torch.uint8)

        def learnt(module: nn.Module, score: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor) -> nn.Module:
            module.train(False)
            optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
            for _ in range(60):
                optimiser.zero_grad()
                nn.functional.cross_entropy(score(features), labels).backward()
                optimiser.step()
            return module

        with torch.no_grad():
            seen = {label: extractor(images(label, 20).permute(0, 3, 1, 2) / 255) for label in range(NUM_CLASSES)}
        for index, (name, mine) in enumerate(classes.items()):
            known = experts if name in experts else (*experts, name)
            owner = {label: known.index(other) for other in known for label in classes[other]}
            arguments = {"feature_dim": 128, "num_experts": len(known), "trunk_dim": 0, "noisy": False}
            specs["gate"] = ModelSpec(kind="top_k", arguments=arguments)
            expert = build(specs["expert"], generator=torch_generator(0, "expert", index))
            gate = build(specs["gate"], generator=torch_generator(0, "gate", index))
            assert isinstance(gate, TopKGate)
            learnt(expert, expert, torch.cat([seen[label] for label in mine]), torch.tensor(mine).repeat_interleave(20))
            learnt(gate, gate.scores, torch.cat([seen[label] for label in owner]), torch.tensor(list(owner.values())).repeat_interleave(20))
            means = torch.stack([seen[label].mean(dim=0) for label in mine])
            write_bundle(
                folder / name,
                {
                    "extractor": extractor.state_dict(),
                    "expert": expert.state_dict(),
                    "gate": gate.state_dict(),
                    "prototypes": {"classes": torch.tensor(mine), "means": means, "counts": torch.full((len(mine),), 20)},
                },
                node=name,
                experts=known,
                neighbours=tuple(other for other in known if other != name),
                classes_seen=mine,
                num_classes=NUM_CLASSES,
                k=min(2, len(known)),
                mix="probabilities",
                image_shape=IMAGE_SHAPE,
                provenance=Provenance(recipe="test", seed=0, data="none", git_revision="none"),
                class_names=class_names,
                **specs,
            )
        folders = [folder / name for name in classes]
        return Taught(folders, [read_bundle(path) for path in folders], images)

    return teaching


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch with one thread, as in a node."""
    torch.set_num_threads(1)
