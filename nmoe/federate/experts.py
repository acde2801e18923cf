"""Local experts: every node trains its own on its own data, behind the frozen extractor; stage 2 of NMoE.

Source: NMoE (arXiv 2511.01743), stage 2: each client trains its expert on local data.

Departures: the loss is a reconstruction (ours; the paper's is not known to us), phi_i <- argmin E_{D_i} CE(H_i(F(x)), y). No expert
leaves its node. Features are standardised (ours): nodes report mean and mean square of their features once, and the pooled ones become
constants of the extractor; LOG.md has the comparison with per-sample normalisation. Features are computed once, the extractor is frozen.

Privacy: the mean feature of each of a node's classes goes into its bundle (``nmoe.federate.bundles``) and leaves the node when it announces
itself to a mesh. Of a class with one sample the mean is that sample's feature. No noise is added, also where stage 1 had some.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nmoe.core.bundle import ModelSpec
from nmoe.core.seeds import torch_generator
from nmoe.federate.base import Answers, Call, Exchange, Node, Report, Stage, State, accept, mean_facts, numeric
from nmoe.federate.payload import Payload, select
from nmoe.learn import LocalTraining, accuracy, predict, train_supervised
from nmoe.moe import build, restore


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExperts(Stage):
    """Personal experts behind a frozen, standardised extractor.

    Attributes:
        name: the stage's name.
        rounds: reports during training; each is one call of ``training``, the expert staying on its node in between.
        seed: the run's seed.
        features_from: name of the stage whose ``extractor.*`` is frozen.
        extractor: how to build it.
        expert: how to build an expert.
        training: a node's work in one round.
    """

    name: str
    rounds: int
    seed: int
    features_from: str
    extractor: ModelSpec
    expert: ModelSpec
    training: LocalTraining

    def start(self, previous: Mapping[str, State]) -> State:
        return select("extractor", previous[self.features_from])

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        refused: list[str] = []
        constants: State = {}
        if number == 0:
            answers = exchange.ask(call("statistics"), dict.fromkeys(exchange.nodes, Payload(state)))
            constants, refused = pooled_statistics(answers, dim=state["feature_mean"].shape[0])
            state = state | constants
        answers = exchange.ask(call("train"), dict.fromkeys(exchange.nodes, Payload(constants)))
        reports, unheard = accept(answers, {}, "loss", "own_train")
        return state, Report(mean_facts(reports, "loss", "own_train"), refused + unheard)

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        if call.action == "statistics":
            node.remember("extractor", request.tensors, call)
            features = predict(restore(self.extractor, request.tensors), node.images())
            moments = {"mean": features.mean(dim=0), "square": features.square().mean(dim=0)}
            return Payload(moments, samples=len(features))
        if request.tensors:
            node.remember("extractor", node.recall("extractor", call) | request.tensors, call)
            node.cache.pop("features", None)
            call = call._replace(clock=call.clock + 1)  # what was remembered just now is read by this very call
        features = local_features(self.extractor, node, call)
        return self._train(features, call, node)

    def _train(self, features: Tensor, call: Call, node: Node) -> Payload:
        generator = torch_generator(self.seed, self.name, call.round, node.number)
        expert = build(self.expert, generator=generator)
        if call.round > 0:
            expert.load_state_dict(node.recall("expert", call))
        loss = train_supervised(expert, features, node.labels(), self.training, generator=generator)
        node.remember("expert", expert.state_dict(), call)
        return Payload(loss=loss, own_train=accuracy(predict(expert, features), node.labels()))


def local_features(extractor: ModelSpec, node: Node, call: Call) -> Tensor:
    """Return the node's training features by the frozen extractor it remembers, computed once; [sample, dim]."""
    return node.cached("features", lambda: predict(restore(extractor, node.recall("extractor", call)), node.images()).clone())


def pooled_statistics(answers: Answers, *, dim: int) -> tuple[State, list[str]]:
    """Pool the nodes' feature moments into ``feature_mean`` and ``feature_std`` over all samples; also say who was refused.

    Args:
        answers: replies with ``mean`` and ``square`` [dim] and the fact ``samples``.
        dim: numbers per feature vector.
    """
    updates, refused = accept(answers, {"mean": torch.zeros(dim), "square": torch.zeros(dim)}, "samples")
    if not updates:
        return {"feature_mean": torch.zeros(dim), "feature_std": torch.ones(dim)}, refused
    counts = torch.tensor([numeric(update, "samples") for update in updates.values()], dtype=torch.float64)
    weights = (counts / counts.sum()).unsqueeze(1)
    mean = (torch.stack([update.tensors["mean"] for update in updates.values()]).double() * weights).sum(dim=0)
    square = (torch.stack([update.tensors["square"] for update in updates.values()]).double() * weights).sum(dim=0)
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    deviation = deviation.where(deviation > 1e-4 * deviation.max(), 1.0)  # a feature that is always the same stays as it is
    return {"feature_mean": mean.float(), "feature_std": deviation.float()}, refused
