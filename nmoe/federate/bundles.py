"""Bundles: the last stage; every node receives the final gate and writes what it will serve.

A bundle holds the frozen extractor, the node's own expert, its gate, and the prototypes of its classes: the mean of the features of its
training samples of each class. In a simulation the folders lie side by side in the run; on real machines each node writes to its own disk,
and its expert never leaves it. Prototypes stay there too until the node announces itself to a mesh (see ``nmoe.moe.newcomer``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nmoe.core.bundle import PROTOTYPES, Provenance, write_bundle
from nmoe.federate.base import Call, Exchange, Node, Report, Stage, State, node_name, silent
from nmoe.federate.experts import local_features
from nmoe.federate.gates import Gates
from nmoe.federate.payload import Payload
from nmoe.moe.newcomer import class_prototypes


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBundles(Stage):
    """Write one bundle per node.

    Attributes:
        name: the stage's name.
        gates: the stage that trained the gates.
        image_shape: height, width, channels of an image.
        num_classes: classes the experts tell apart.
        class_names: their names in order, where the data set has names.
        node_names: of all nodes in order; empty where names follow from numbers.
        provenance: recipe, seed, data and revision.
        rounds: always 1.
    """

    name: str
    gates: Gates
    image_shape: tuple[int, int, int]
    num_classes: int
    provenance: Provenance
    class_names: tuple[str, ...] = ()
    node_names: tuple[str, ...] = ()
    rounds: int = 1

    def start(self, previous: Mapping[str, State]) -> State:
        return previous[self.gates.name]

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        answers = exchange.ask(call("write"), dict.fromkeys(exchange.nodes, Payload(state)))
        return state, Report({}, silent(answers))

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        if node.bundle_folder is None:
            return Payload(written=False)
        gates = self.gates
        names = self.node_names or tuple(node_name(number) for number in range(gates.num_nodes))
        own_gate = node.memory.read(gates.own_gate, before=call.clock) or {}
        card = write_bundle(
            node.bundle_folder,
            {
                "extractor": node.recall("extractor", call),
                "expert": node.recall("expert", call),
                "gate": gates.personal_gate(request.tensors, own_gate),
                PROTOTYPES: class_prototypes(local_features(gates.extractor, node, call), node.labels())._asdict(),
            },
            node=node.name,
            experts=names,
            neighbours=tuple(names[number] for number in gates.neighbours[node.number]),
            classes_seen=tuple(int(label) for label in node.labels().unique()),
            num_classes=self.num_classes,
            class_names=self.class_names,
            k=gates.k,
            mix=gates.mix.value,
            image_shape=self.image_shape,
            extractor=gates.extractor,
            expert=gates.expert,
            gate=gates.gate,
            provenance=self.provenance,
        )
        return Payload(written=True, fingerprint=card.extractor_fingerprint)
