"""Gates: trained over the network while extractor and experts stay frozen; stage 3 of NMoE.

Source: NMoE (arXiv 2511.01743), stage 3: the gate is trained by RanGate, RollGate or FedGate, and answers as y' = sum_i G(h)_i H_i(h).

Departures: the objective is a reconstruction (ours; the paper's is not known to us). Minimise over the gate psi

    sum_i (n_i/n) E_{(x,y) in D_i} CE( sum_{j in TopK over N_i and i} G_psi(h)_j H_j(h), y ) + balance * importance CV^2

Only logits of frozen experts travel, no gradient passes through a remote expert. Extractor and experts never change in this stage, so
they travel once: in round 0 every node sends the features of its samples, its neighbours answer with logits, and each node keeps what
its neighbours said. After that a round is gate weights down and up. The balance term is off by default, its presence in the paper is
unknown. The schemes have their own card in ``nmoe.federate.gate_schemes``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from nmoe.core.bundle import ModelSpec
from nmoe.core.seeds import torch_generator
from nmoe.federate.base import Call, Exchange, Node, Report, Stage, State, accept, mean_facts, merge, node_name, numeric, refusal, silent
from nmoe.federate.experts import local_features
from nmoe.federate.fedavg import detached
from nmoe.federate.gate_schemes import GateScheme
from nmoe.federate.payload import Payload
from nmoe.learn import LocalTraining, accuracy, predict
from nmoe.learn.gating import gate_loss
from nmoe.moe import Mix, TopKGate, build, combine, pick, restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates(Stage):
    """Federated training of the gate.

    Attributes:
        name: the stage's name.
        rounds: rounds of training.
        seed: the run's seed.
        extractor, expert, gate: how to build each part.
        scheme: who trains, whom batches ask, what is synchronised.
        neighbours: for every node the nodes it can ask, itself left out.
        k: experts asked per sample.
        mix: whether probabilities or logits are averaged.
        balance: weight of the balance term.
        training: a node's work in one round.
    """

    name: str
    rounds: int
    seed: int
    extractor: ModelSpec
    expert: ModelSpec
    gate: ModelSpec
    scheme: GateScheme
    neighbours: tuple[tuple[int, ...], ...]
    k: int
    mix: Mix
    balance: float
    training: LocalTraining

    def __post_init__(self) -> None:
        reach = min(len(row) for row in self.neighbours) + 1
        if not 1 <= self.k <= reach:
            raise ValueError(f"k must be between 1 and {reach}, the experts a node can reach, got {self.k}")

    @property
    def num_nodes(self) -> int:
        """Number of nodes, and of experts."""
        return len(self.neighbours)

    def start(self, previous: Mapping[str, State]) -> State:
        return dict(self.fresh_gate().state_dict())

    def fresh_gate(self) -> TopKGate:
        """Build the gate with the run's initial weights."""
        gate = build(self.gate, generator=torch_generator(self.seed, self.name, "weights"))
        if not isinstance(gate, TopKGate):
            raise ValueError(f"a gate is wanted, got kind {self.gate.kind!r}")
        sync = self.scheme.synchronisation()
        if not any(sync.travels(name, self.rounds - 1, self.rounds) for name in gate.state_dict()):
            raise ValueError(f"{type(sync).__name__} leaves nothing to synchronise: the gate has no hidden layer (trunk_dim is 0)")
        return gate

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        refused = self._gather_logits(call, exchange) if number == 0 else []
        trainers = self.scheme.trainers(exchange.nodes, number, self.seed)
        down = state if number == 0 else self._travelling(state, number - 1)
        up = self._travelling(state, number)
        answers = exchange.ask(call("train"), dict.fromkeys(trainers, Payload(down)))
        updates, refused_updates = accept(answers, up, "samples", "loss", "nmoe_train")
        weights = {node: numeric(update, "samples") for node, update in updates.items()}
        merged = merge([(weights[node], update.tensors) for node, update in updates.items()], up)
        if self.scheme.synchronisation().per_expert() and updates:
            merged |= self._merge_rows(up, updates, weights)
        return state | merged, Report(mean_facts(updates, "loss", "nmoe_train"), refused + refused_updates)

    def _travelling(self, state: State, round: int) -> State:
        sync = self.scheme.synchronisation()
        return {name: tensor for name, tensor in state.items() if sync.travels(name, round, self.rounds)}

    def _merge_rows(self, old: State, updates: Mapping[int, Payload], weights: Mapping[int, float]) -> State:
        """Average each expert's row of the output layers over the nodes that reach it."""
        reach = torch.stack([self.mask(node) for node in updates]).float() * torch.tensor(list(weights.values())).unsqueeze(1)
        total = reach.sum(dim=0)  # [expert]
        rows = {}
        for name in (name for name in old if not name.startswith("trunk.")):
            stacked = torch.stack([update.tensors[name] for update in updates.values()])  # [node, expert, ...]
            shares = (reach / total.clamp_min(1e-30)).reshape(*reach.shape, *[1] * (stacked.ndim - 2))
            reached = (total > 0).reshape(-1, *[1] * (stacked.ndim - 2))
            rows[name] = torch.where(reached, (stacked * shares).sum(dim=0), old[name])
        return rows

    def mask(self, node: int) -> Bool[Tensor, " expert"]:
        """Return which experts a node can reach, its own included."""
        mask = torch.zeros(self.num_nodes, dtype=torch.bool)
        mask[[node, *self.neighbours[node]]] = True
        return mask

    def _gather_logits(self, call: Callable[[str], Call], exchange: Exchange) -> list[str]:
        """Let every node learn its neighbours' logits on its own samples; return who was refused."""
        features, refused = self._gather_features(call, exchange)
        classes = int(self.expert.arguments["num_classes"])
        asked = {node: [origin for origin in features if node in self.neighbours[origin]] for node in exchange.nodes}
        requests = {node: Payload({str(origin): features[origin] for origin in origins}) for node, origins in asked.items()}
        answers = exchange.ask(call("logits"), requests)
        refused += silent(answers)
        replies: dict[int, State] = {origin: {} for origin in features}
        for node, reply in answers.replies.items():
            wanted = {str(origin): torch.empty(len(features[origin]), classes) for origin in asked[node]}
            if reason := refusal(reply.tensors, wanted):
                refused.append(f"{node_name(node)}: {reason}")
                continue
            for origin in asked[node]:
                replies[origin][str(node)] = reply.tensors[str(origin)]
        kept = exchange.ask(call("keep"), {origin: Payload(logits) for origin, logits in replies.items()})
        return refused + silent(kept)

    def _gather_features(self, call: Callable[[str], Call], exchange: Exchange) -> tuple[dict[int, Tensor], list[str]]:
        """Return the features [sample, dim] of every node's samples by node, and who was refused."""
        answers = exchange.ask(call("features"), dict.fromkeys(exchange.nodes, Payload()))
        features, refused = {}, silent(answers)
        for node, reply in answers.replies.items():
            tensor = reply.tensors.get("features", torch.empty(0))
            wanted = torch.empty(tensor.shape[0] if tensor.ndim else 0, int(self.gate.arguments["feature_dim"]))
            if reason := refusal(reply.tensors, {"features": wanted}):
                refused.append(f"{node_name(node)}: {reason}")
            else:
                features[node] = tensor
        return features, refused

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        if call.action == "train":
            return self._train(call, request, node)
        features = local_features(self.extractor, node, call)
        if call.action == "features":
            return Payload({"features": features})
        expert = restore(self.expert, node.recall("expert", call))
        if call.action == "logits":
            return Payload({origin: predict(expert, others) for origin, others in request.tensors.items()})
        logits = {name: tensor for name, tensor in request.tensors.items() if tensor.shape[:1] == features.shape[:1]}
        node.remember("logits", logits | {str(node.number): predict(expert, features)}, call)
        return Payload()

    def _train(self, call: Call, request: Payload, node: Node) -> Payload:
        features, labels = local_features(self.extractor, node, call), node.labels()
        logits, mask = self._remembered_logits(node, call)
        gate = self.fresh_gate()
        own = node.memory.read("gate", before=call.clock) or {}
        gate.load_state_dict(dict(gate.state_dict()) | own | request.tensors)
        with torch.inference_mode():
            routing = gate(features, k=min(self.k, int(mask.sum())), mask=mask)
            before = accuracy(combine(pick(logits, routing), routing.weights, mix=self.mix), labels)
        generator = torch_generator(self.seed, self.name, "train", call.round, node.number)
        steps = iter(range(call.round * 10_000, (call.round + 1) * 10_000))

        def loss(batch: Tensor) -> Tensor:
            asked = self.scheme.asked(mask, min(self.k, int(mask.sum())), next(steps), generator)
            routing = gate(features[batch], k=min(self.k, int(asked.sum())), mask=asked, generator=generator)
            return gate_loss(routing, logits[batch], labels[batch], mix=self.mix, balance=self.balance)

        mean_loss = self.training.run(gate, len(labels), loss, generator=generator)
        state = detached(gate.state_dict())
        sync = self.scheme.synchronisation()
        if not all(sync.travels(name, call.round, self.rounds) for name in state):
            node.remember("gate", state, call)
        sent = {name: tensor for name, tensor in state.items() if sync.travels(name, call.round, self.rounds)}
        return Payload(sent, samples=len(labels), loss=mean_loss, nmoe_train=before)

    def _remembered_logits(self, node: Node, call: Call) -> tuple[Tensor, Tensor]:
        """Return logits [sample, expert, class], zero where none came, and the mask of experts that answered."""
        kept = node.recall("logits", call)
        own = kept[str(node.number)]
        logits = torch.zeros(own.shape[0], self.num_nodes, own.shape[1])
        mask = torch.zeros(self.num_nodes, dtype=torch.bool)
        for name, tensor in kept.items():
            if tensor.shape == own.shape and torch.isfinite(tensor).all():
                logits[:, int(name)] = tensor
                mask[int(name)] = True
        return logits, mask

    def personal_gate(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
        """Return a node's gate: of the shared tensors those that travel, of the others what the node kept at home."""
        travelling = self._travelling(dict(shared), self.rounds - 1)
        return dict(shared) | dict(own) | travelling
