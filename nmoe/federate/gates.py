"""Gates: trained over the network while extractor and experts stay frozen; stage 3 of NMoE.

Source: NMoE (arXiv 2511.01743), stage 3: the gate is trained by RanGate, RollGate or FedGate, and answers as y' = sum_i G(h)_i H_i(h).

Departures: the objective is a reconstruction (ours; the paper's is not known to us). Minimise over the gate psi

    sum_i (n_i/n) E_{(x,y) in D_i} CE( sum_{j in TopK over N_i and i} G_psi(h)_j H_j(h), y ) + balance * importance CV^2

Only logits of frozen experts travel, no gradient passes through a remote expert. Extractor and experts never change in this stage, so
they travel once: in round 0 every node sends the features of its samples, its neighbours answer with logits, and each node keeps what
its neighbours said. After that a round is gate weights down and up. The balance term is off by default, its presence in the paper is
unknown. The schemes have their own card in ``nmoe.federate.gate_schemes``, training over radio links in ``nmoe.federate.gate_links``.
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
from nmoe.federate.gate_links import Blocks, GateLinks, KnownLogits, known_logits
from nmoe.federate.gate_schemes import GateScheme, is_row
from nmoe.federate.memory import ALWAYS, NodeMemory
from nmoe.federate.payload import Payload
from nmoe.learn import LocalTraining, accuracy, predict
from nmoe.learn.gating import gate_loss
from nmoe.moe import Expert, Gate, Mix, Routing, build, combine, pick, restore


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
        balance: weight of the balance term, over perfect links.
        training: a node's work in one round.
        links: the radio links; None for perfect ones.
        logits_of: an earlier stage with the same experts and links, whose logits are used again; None to gather them in round 0.
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
    links: GateLinks | None = None
    logits_of: str | None = None

    def __post_init__(self) -> None:
        reach = min(len(row) for row in self.neighbours) + 1
        if not 1 <= self.k <= reach:
            raise ValueError(f"k must be between 1 and {reach}, the experts a node can reach, got {self.k}")
        if self.links is not None and self.links.clean_rounds >= self.rounds:
            raise ValueError(f"fewer clean rounds than the {self.rounds} rounds are wanted, got {self.links.clean_rounds}")

    @property
    def own_gate(self) -> str:
        """The name under which a node remembers what of its gate does not travel."""
        return "gate" if self.logits_of is None else f"{self.name}-gate"

    @property
    def num_nodes(self) -> int:
        """Number of nodes, and of experts."""
        return len(self.neighbours)

    def start(self, previous: Mapping[str, State]) -> State:
        return dict(self.fresh_gate().state_dict())

    def fresh_gate(self) -> Gate:
        """Build the gate with the run's initial weights."""
        gate = build(self.gate, generator=torch_generator(self.seed, self.name, "weights"))
        if not isinstance(gate, Gate):
            raise ValueError(f"a gate is wanted, got kind {self.gate.kind!r}")
        sync = self.scheme.synchronisation()
        if not any(sync.travels(name, self.rounds - 1, self.rounds) for name in gate.state_dict()):
            raise ValueError(f"{type(sync).__name__} leaves nothing to synchronise: the gate has no hidden layer (trunk_dim is 0)")
        return gate

    def round(self, state: State, number: int, call: Callable[[str], Call], exchange: Exchange) -> tuple[State, Report]:
        refused = self._gather_logits(call, exchange) if number == 0 and self.logits_of is None else []
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
        for name in filter(is_row, old):
            stacked = torch.stack([update.tensors[name] for update in updates.values()])  # [node, expert, ...]
            shares = (reach / total.clamp_min(1e-30)).reshape(*reach.shape, *[1] * (stacked.ndim - 2))
            reached = (total > 0).reshape(-1, *[1] * (stacked.ndim - 2))
            rows[name] = torch.where(reached, (stacked * shares).sum(dim=0), old[name])
        return rows

    def _reach(self, node: int) -> list[int]:
        """Return the experts a node can reach, its own last."""
        return [*self.neighbours[node], node]

    def mask(self, node: int) -> Bool[Tensor, " expert"]:
        """Return which experts a node can reach, its own included."""
        mask = torch.zeros(self.num_nodes, dtype=torch.bool)
        mask[self._reach(node)] = True
        return mask

    def _gather_logits(self, call: Callable[[str], Call], exchange: Exchange) -> list[str]:
        """Let every node learn its neighbours' logits on its own samples; return who was refused."""
        features, refused = self._gather_features(call, exchange)
        classes = int(self.expert.arguments["num_classes"])
        asked = {node: [origin for origin in features if node in self.neighbours[origin]] for node in exchange.nodes}
        requests = {node: self._request(node, {origin: features[origin] for origin in origins}) for node, origins in asked.items()}
        answers = exchange.ask(call("logits"), requests)
        refused += silent(answers)
        replies: dict[int, State] = {origin: {} for origin in features}
        for node, reply in answers.replies.items():
            wanted = {str(origin): self._wanted_logits(len(features[origin]["features"]), classes) for origin in asked[node]}
            if reason := refusal(reply.tensors, wanted):
                refused.append(f"{node_name(node)}: {reason}")
                continue
            for origin in asked[node]:
                replies[origin][str(node)] = reply.tensors[str(origin)]
        kept = exchange.ask(call("keep"), {origin: Payload(logits) for origin, logits in replies.items()})
        return refused + silent(kept)

    def _gather_features(self, call: Callable[[str], Call], exchange: Exchange) -> tuple[dict[int, State], list[str]]:
        """Return every node's ``features`` [sample, dim] and ``snr`` [version, sample, link] where links are noisy, and who was refused."""
        answers = exchange.ask(call("features"), dict.fromkeys(exchange.nodes, Payload()))
        features, refused = {}, silent(answers)
        for node, reply in answers.replies.items():
            tensor = reply.tensors.get("features", torch.empty(0))
            samples = tensor.shape[0] if tensor.ndim else 0
            wanted = {"features": torch.empty(samples, int(self.gate.arguments["feature_dim"]))}
            if self.links is not None:
                wanted["snr"] = torch.empty(self.links.versions, samples, len(self.neighbours[node]))
            reason = refusal(reply.tensors, wanted)
            if reason is None and self.links is not None and bool((reply.tensors["snr"] < 0).any()):
                reason = "a negative SNR"
            if reason is None:
                features[node] = reply.tensors
            else:
                refused.append(f"{node_name(node)}: {reason}")
        return features, refused

    def _request(self, node: int, origins: Mapping[int, State]) -> Payload:
        """Return what a node is asked to answer: others' features, and the SNRs of their links to it where links are noisy."""
        tensors = {str(origin): state["features"] for origin, state in origins.items()}
        if self.links is not None:
            tensors |= {f"{origin}.snr": state["snr"][:, :, self.neighbours[origin].index(node)] for origin, state in origins.items()}
        return Payload(tensors)

    def _wanted_logits(self, samples: int, classes: int) -> Tensor:
        return torch.empty(samples, classes) if self.links is None else torch.empty(1 + self.links.versions, samples, classes)

    def answer(self, call: Call, request: Payload, node: Node) -> Payload:
        if call.action == "train":
            return self._train(call, request, node)
        features = local_features(self.extractor, node, call)
        if call.action == "features":
            snr = {} if self.links is None else {"snr": self._blocks(node, self.links).snr[:, :, :-1]}  # the own link goes nowhere
            return Payload({"features": features} | snr)
        expert = restore(self.expert, node.recall("expert", call))
        assert isinstance(expert, Expert)
        if call.action == "logits":
            origins = [name for name in request.tensors if not name.endswith(".snr")]
            return Payload({origin: self._answer_origin(expert, origin, request.tensors, node) for origin in origins})
        mine = str(node.number)
        blocks = {} if self.links is None else {f"{mine}.snr": self._blocks(node, self.links).snr[:, :, -1]}
        own = self._answer_origin(expert, mine, {mine: features} | blocks, node)
        logits = {name: tensor for name, tensor in request.tensors.items() if tensor.shape == own.shape}
        node.remember("logits", logits | {mine: own}, call)
        return Payload()

    def _answer_origin(self, expert: Expert, origin: str, tensors: State, node: Node) -> Tensor:
        """Return this node's expert's logits for the samples of ``origin``, in all versions where links are noisy."""
        features = tensors[origin]
        if self.links is None:
            return predict(expert, features)
        generator = torch_generator(self.seed, self.name, "noise", origin, node.number)
        return self.links.noisy_logits(expert, features, tensors[f"{origin}.snr"], generator=generator)

    def _blocks(self, node: Node, links: GateLinks) -> Blocks:
        """Return a node's links to the experts in its reach; the same whenever it asks."""
        generator = torch_generator(self.seed, self.logits_of or self.name, "links", node.number)
        return links.draw(len(node.labels()), len(self._reach(node.number)), generator=generator)

    def _train(self, call: Call, request: Payload, node: Node) -> Payload:
        features, labels = local_features(self.extractor, node, call), node.labels()
        known = self._known(node, call)
        gate = self.fresh_gate()
        own = node.memory.read(self.own_gate, before=call.clock) or {}
        gate.load_state_dict(dict(gate.state_dict()) | own | request.tensors)
        links = self.links if self.links is not None and self.links.noisy(call.round) else None
        balance = self.balance if links is None else links.balance
        everything = torch.arange(len(labels))
        with torch.inference_mode():
            logits, routing = self._route(
                gate, features, known, everything, torch.full_like(everything, int(links is not None)), known.mask
            )
            before = accuracy(combine(pick(logits, routing), routing.weights, mix=self.mix), labels)
        generator = torch_generator(self.seed, self.name, "train", call.round, node.number)
        steps = iter(range(call.round * 10_000, (call.round + 1) * 10_000))

        def loss(batch: Tensor) -> Tensor:
            asked = self.scheme.asked(known.mask, min(self.k, int(known.mask.sum())), next(steps), generator)
            version = torch.zeros_like(batch) if links is None else torch.randint(1, 1 + links.versions, batch.shape, generator=generator)
            logits, routing = self._route(gate, features, known, batch, version, asked, generator)
            return gate_loss(routing, logits, labels[batch], mix=self.mix, balance=balance)

        mean_loss = self.training.run(gate, len(labels), loss, generator=generator)
        state = detached(gate.state_dict())
        sync = self.scheme.synchronisation()
        if not all(sync.travels(name, call.round, self.rounds) for name in state):
            node.remember(self.own_gate, state, call)
        sent = {name: tensor for name, tensor in state.items() if sync.travels(name, call.round, self.rounds)}
        return Payload(sent, samples=len(labels), loss=mean_loss, nmoe_train=before)

    def _route(
        self,
        gate: Gate,
        features: Tensor,
        known: KnownLogits,
        batch: Tensor,
        version: Tensor,
        mask: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Routing]:
        """Return all experts' logits for one version of each sample of a batch, and the gate's choice among those in ``mask``."""
        snr_db = None if known.snr_db is None else known.snr_db[version, batch]  # [batch, expert]
        k = min(self.k, int(mask.sum()))
        return known.logits[version, batch], gate(features[batch], k=k, mask=mask, snr_db=snr_db, generator=generator)

    def _known(self, node: Node, call: Call) -> KnownLogits:
        """Return what a node remembers of the experts' logits, and the links it drew."""
        blocks = None if self.links is None else self._blocks(node, self.links)
        kept = node.recall("logits", call)
        return known_logits(kept, own=node.number, reach=self._reach(node.number), num_nodes=self.num_nodes, blocks=blocks)

    def gate_of(self, shared: Mapping[str, Tensor], memory: NodeMemory) -> Gate:
        """Return a node's gate after a round: what is shared, and what its memory holds."""
        gate = restore(self.gate, self.personal_gate(shared, memory.read(self.own_gate, before=ALWAYS) or {}))
        assert isinstance(gate, Gate)
        return gate

    def personal_gate(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
        """Return a node's gate: of the shared tensors those that travel, of the others what the node kept at home."""
        travelling = self._travelling(dict(shared), self.rounds - 1)
        return dict(shared) | dict(own) | travelling
