"""FedAvg: one shared classifier, trained on every node and averaged.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, algorithm 1, full
participation, weights n_i / n. In the demo it is the control "one classifier of the same size".

Departures: constants (pixel and feature standardisation) are not averaged, so they stay exactly equal on all nodes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nmoe.core.bundle import ModelSpec
from nmoe.core.seeds import torch_generator
from nmoe.federate.base import Call, Exchange, Node, Report, Stage, State, accept, mean_facts, merge, numeric
from nmoe.federate.payload import Payload
from nmoe.learn import Classifier, LocalTraining, cosine_scale, train_supervised
from nmoe.moe import CONSTANTS, build, fresh_extractor


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(Stage):
    """Federated averaging of an extractor and a head.

    Attributes:
        name: the stage's name.
        rounds: rounds of averaging.
        seed: the run's seed.
        extractor: how to build the extractor.
        head: how to build the head.
        pixel_mean, pixel_std: the extractor's pixel constants, one per channel.
        training: a node's work in one round; the learning rate follows a cosine over rounds.
    """

    name: str
    rounds: int
    seed: int
    extractor: ModelSpec
    head: ModelSpec
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    training: LocalTraining

    def start(self, previous: Mapping[str, State]) -> State:
        return dict(self.model().state_dict())

    def model(self) -> Classifier:
        """Build the classifier with the run's initial weights."""
        generator = torch_generator(self.seed, self.name, "weights")
        extractor = fresh_extractor(self.extractor, pixel_mean=self.pixel_mean, pixel_std=self.pixel_std, generator=generator)
        return Classifier(extractor=extractor, head=build(self.head, generator=generator))

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        request = Payload(state)
        answers = exchange.ask(call("train"), dict.fromkeys(exchange.nodes, request))
        updates, refused = accept(answers, trained(state), "samples", "loss")
        weighted = [(numeric(update, "samples"), update.tensors) for update in updates.values()]
        return merge(weighted, state), Report(mean_facts(updates, "loss"), refused)

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        model = node.cached(f"{self.name} model", self.model)
        model.load_state_dict(request.tensors)
        loss = train_supervised(
            model,
            node.images(),
            node.labels(),
            self.training,
            generator=torch_generator(self.seed, self.name, "train", call.round, node.number),
            scale=cosine_scale(call.round, self.rounds),
        )
        return Payload(detached(trained(model.state_dict())), samples=len(node.data), loss=loss)


def trained(state: Mapping[str, Tensor]) -> State:
    """Return the tensors that training changes: all but the extractor's constants."""
    return {name: tensor for name, tensor in state.items() if name.rsplit(".", 1)[-1] not in CONSTANTS}


def detached(state: Mapping[str, Tensor]) -> State:
    """Return copies without gradient, safe to send while the module goes on training."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}
