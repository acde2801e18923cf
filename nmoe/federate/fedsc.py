"""FedSC: the shared extractor without labels, by spectral contrastive learning across nodes; stage 1 of NMoE.

Source: Jing, Yu, Zhang, Zhang, "FedSC: Provable Federated Self-supervised Learning with Spectral Contrastive Objective over Non-i.i.d.
Data", ICML 2024 (arXiv 2405.03949), and its public code.

| paper | here | meaning |
|---|---|---|
| theta | extractor.*, head.* | weights of extractor and projection head |
| R~_j | matrix.j | noisy correlation matrix of node j, symmetric part, upper triangle |
| S_t | cohort | nodes that take part in round t |
| E | training.epochs | local epochs |
| alpha_t | annealed_alpha | weight of the own negatives, 1 down to ``last_alpha`` |

A round has two exchanges: "correlation" (weights down, matrix up) and "train" (external matrix down, weights up; the node kept the
weights it received). Nodes outside the cohort keep their stale matrix on the server; in round 0 all take part. Weights are averaged
uniformly, as in the code.

Departures: the server subtracts a node's own matrix instead of the node (same bytes). Only the upper triangle travels: the loss sees
nothing else. ``last_alpha`` should be 1/J for an unbiased end point (derived; the code keeps 0.2).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nmoe.core.bundle import ModelSpec
from nmoe.core.seeds import torch_generator
from nmoe.data import Views
from nmoe.federate.base import Call, Exchange, Node, Report, Stage, State, accept, mean_facts, merge
from nmoe.federate.fedavg import detached, trained
from nmoe.federate.payload import Payload, prefixed, select
from nmoe.learn import (
    Classifier,
    GaussianMechanism,
    LocalTraining,
    ProjectionHead,
    annealed_alpha,
    clip,
    correlation_sensitivity,
    cosine_scale,
    spectral_contrastive_loss,
)
from nmoe.moe import fresh_extractor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedSC(Stage):
    """Federated spectral contrastive learning.

    Attributes:
        name: the stage's name.
        rounds: T.
        seed: the run's seed.
        extractor: how to build the extractor.
        embedding_dim: d, numbers per embedding.
        pixel_mean, pixel_std: the extractor's pixel constants, one per channel.
        views: draws augmented views.
        training: a node's work in one round; the learning rate follows a cosine over rounds.
        mu: bound on the squared norm of an embedding; 4 in the code's CIFAR-10 settings, 2 in its SVHN script.
        last_alpha: end of the schedule of alpha, 0.2 in the code.
        passes: passes over the local data for a matrix, 5 in the code.
        participation: share of nodes in a cohort, at least two of them; 1 for all, 0.2 in the code's partial mode.
        noise_multiplier: noise of a released matrix over its sensitivity; 0 for no noise.
    """

    name: str
    rounds: int
    seed: int
    extractor: ModelSpec
    embedding_dim: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    views: Views
    training: LocalTraining
    mu: float
    last_alpha: float
    passes: int
    participation: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not 0 < self.participation <= 1:
            raise ValueError(f"participation must be above 0 and at most 1, got {self.participation}")
        if self.noise_multiplier < 0 or not math.isfinite(self.noise_multiplier):
            raise ValueError(f"noise_multiplier must be at least 0 and finite, got {self.noise_multiplier}")

    def start(self, previous: Mapping[str, State]) -> State:
        return dict(self.model().state_dict())

    def model(self) -> Classifier:
        """Build extractor and projection head with the run's initial weights."""
        generator = torch_generator(self.seed, self.name, "weights")
        extractor = fresh_extractor(self.extractor, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std, generator=generator)
        head = ProjectionHead(feature_dim=extractor.feature_dim, embedding_dim=self.embedding_dim, generator=generator)
        return Classifier(extractor=extractor, head=head)

    def cohort(self, nodes: tuple[int, ...], round: int) -> tuple[int, ...]:
        """Return the nodes that take part in a round: all in round 0, then max(floor(participation J), 2) random ones."""
        if self.participation == 1 or round == 0:
            return nodes
        size = min(max(int(self.participation * len(nodes)), 2), len(nodes))
        order = torch.randperm(len(nodes), generator=torch_generator(self.seed, self.name, "cohort", round))
        return tuple(sorted(nodes[position] for position in order[:size].tolist()))

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        weights = {name: tensor for name, tensor in state.items() if not name.startswith("matrix.")}
        matrices = select("matrix", state)
        cohort = self.cohort(exchange.nodes, number)
        size = self.embedding_dim * (self.embedding_dim + 1) // 2

        answers = exchange.ask(call("correlation"), dict.fromkeys(cohort, Payload(weights)))
        shared, refused = accept(answers, {"matrix": torch.zeros(size)})
        matrices |= {str(node): reply.tensors["matrix"] for node, reply in shared.items()}

        requests = {node: Payload(external(matrices, node, len(exchange.nodes))) for node in shared}
        answers = exchange.ask(call("train"), requests)
        updates, refused_updates = accept(answers, trained(weights), "loss")
        weights = merge([(1.0, update.tensors) for update in updates.values()], weights)
        return weights | prefixed("matrix", matrices), Report(mean_facts(updates, "loss"), refused + refused_updates)

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        model = node.cached(f"{self.name} model", self.model)
        generator = torch_generator(self.seed, self.name, call.action, call.round, node.number)
        if call.action == "correlation":
            node.remember("received", request.tensors, call)
            model.load_state_dict(request.tensors)
            return Payload({"matrix": pack(self._release(model, node, generator))})
        model.load_state_dict(node.recall("received", call))
        packed = request.tensors.get("external")
        return self._train(model, None if packed is None else unpack(packed, self.embedding_dim), call, node, generator)

    @torch.no_grad()
    def _release(self, model: nn.Module, node: Node, generator: torch.Generator) -> Float[Tensor, "embedding embedding"]:
        model.eval()
        images = node.images()
        matrix = torch.zeros(self.embedding_dim, self.embedding_dim)
        for _ in range(self.passes):
            for batch in images.split(self.training.batch_size):
                for _ in range(2):
                    embeddings = clip(model(self.views.draw(batch, generator)), mu=self.mu)
                    matrix += embeddings.T @ embeddings / (self.passes * len(images) * 2)
        if self.noise_multiplier == 0:
            return matrix
        sigma = self.noise_multiplier * correlation_sensitivity(len(images), mu=self.mu)
        return GaussianMechanism(sigma=sigma).release(matrix, generator=generator)

    def _train(self, model: nn.Module, outside: Tensor | None, call: Call, node: Node, generator: torch.Generator) -> Payload:
        model.train()
        images = node.images()
        alpha = annealed_alpha(call.round, self.rounds, last=self.last_alpha)

        def loss(batch: Tensor) -> Tensor:
            first, second = (clip(model(self.views.draw(images[batch], generator)), mu=self.mu) for _ in range(2))
            return spectral_contrastive_loss(first, second, external=outside, alpha=alpha)

        scale = cosine_scale(call.round, self.rounds)
        mean_loss = self.training.run(model, len(images), loss, generator=generator, scale=scale)
        return Payload(detached(trained(model.state_dict())), loss=mean_loss)


def external(matrices: Mapping[str, Tensor], node: int, num_nodes: int) -> State:
    """Return R~_{-j} = (sum_k R~_k - R~_j) / (J - 1) under the name ``external``; nothing for a lone node.

    Matrices are by node number; a node that never sent one counts as zero, as in the source.
    """
    if num_nodes == 1:
        return {}
    others = [matrices[name] for name in sorted(matrices, key=int) if int(name) != node]
    return {"external": torch.stack(others).sum(dim=0) / (num_nodes - 1)} if others else {}


def pack(matrix: Float[Tensor, "embedding embedding"]) -> Float[Tensor, " packed"]:
    """Return the upper triangle, diagonal included, of a matrix's symmetric part; d (d + 1) / 2 numbers."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return ((matrix + matrix.T) / 2)[rows, columns]


def unpack(packed: Float[Tensor, " packed"], embedding_dim: int) -> Float[Tensor, "embedding embedding"]:
    """Return the symmetric matrix of a packed upper triangle."""
    rows, columns = torch.triu_indices(embedding_dim, embedding_dim)
    matrix = torch.zeros(embedding_dim, embedding_dim, dtype=packed.dtype)
    matrix[rows, columns] = packed
    matrix[columns, rows] = packed
    return matrix
