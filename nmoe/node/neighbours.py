"""Neighbours: the peers a node knows of, the experts they serve, and the circuits that keep it from asking them in vain. Pure.

``protocol.Origin`` tells it what it hears of peers; ``reach.Reach`` plans over its tables.
"""

from typing import Protocol

from nmoe.node.events import CardArrived, Effect, FetchCard, PeerDown, PeerRejected, PeerUp, Probe, Probed, ProbeDue, SetProbe
from nmoe.node.links import Circuit, Link
from nmoe.node.messages import ExpertCard


class _Rules(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def experts(self) -> tuple[str, ...]: ...
    @property
    def neighbours(self) -> frozenset[str] | None: ...


class Neighbours:
    """Who is there, and for what.

    Args:
        rules: own name, the gate's experts, and the only peers that may be asked if there are such.

    Attributes:
        experts: names of the gate's outputs, newcomers last.
        links: by peer.
        servers: by expert: admitted peers that serve it.
    """

    def __init__(self, rules: _Rules) -> None:
        self._rules = rules
        self.experts = list(rules.experts)
        self.links: dict[str, Link] = {}
        self.servers: dict[int, list[str]] = {}

    def expert_index(self, name: str) -> int | None:
        """Return the gate's output for an expert, None if it has none."""
        return self.experts.index(name) if name in self.experts else None

    def add_expert(self, name: str) -> int:
        """Give the gate one more output (its scores must have it from now on); return its index."""
        self.experts.append(name)
        for link in self.links.values():
            if link.up and link.rejected is None and link.card is not None and name in link.card.experts:
                self._admit(link, link.card)
        return len(self.experts) - 1

    def peer_up(self, event: PeerUp, now_s: float) -> list[Effect]:
        """Ask for its card, which may have changed, unless it is none of this node's neighbours; go on probing it where that stopped."""
        rules = self._rules
        if event.peer == rules.name or (rules.neighbours is not None and event.peer not in rules.neighbours):
            return []
        link = self.links.setdefault(event.peer, Link(event.peer))
        link.appeared()
        effects: list[Effect] = [FetchCard(event.peer)]
        if link.unprobed and link.circuit is Circuit.OPEN:
            effects.append(SetProbe(link.peer, now_s + link.pause_s))
        link.unprobed = False
        return effects

    def peer_down(self, event: PeerDown) -> bool:
        """Dismiss it; return whether it was there at all."""
        link = self.links.get(event.peer)
        if link is None or not link.up:
            return False
        link.up = False
        self._dismiss(link)
        return True

    def card_arrived(self, event: CardArrived) -> list[Effect]:
        """Admit it, if it is still there."""
        link = self.links.get(event.peer)
        if link is not None and link.up:
            link.heard(event.round_trip_s)
            link.rejected, link.draining = None, event.card.draining
            self._admit(link, event.card)
        return []

    def peer_rejected(self, event: PeerRejected) -> list[Effect]:
        """Dismiss it, and remember why."""
        link = self.links.setdefault(event.peer, Link(event.peer))
        link.rejected = event.reason
        self._dismiss(link)
        return []

    def probe_due(self, event: ProbeDue) -> list[Effect]:
        """Try a peer whose circuit is open; if it is away, wait until it comes back."""
        link = self.links[event.peer]
        if link.circuit is not Circuit.OPEN:
            return []
        if not link.up:
            link.unprobed = True
            return []
        link.circuit = Circuit.PROBING
        return [Probe(link.peer)]

    def probed(self, event: Probed, now_s: float) -> list[Effect]:
        """Close the circuit of a peer that gave a sign of life, or try again later."""
        link = self.links[event.peer]
        return [SetProbe(link.peer, now_s + link.pause_s)] if link.probed(alive=event.alive) else []

    def _admit(self, link: Link, card: ExpertCard) -> None:
        self._dismiss(link)
        link.card = card
        for name in card.experts:
            expert = self.expert_index(name)
            if expert is not None:
                self.servers.setdefault(expert, []).append(link.peer)

    def _dismiss(self, link: Link) -> None:
        for peers in self.servers.values():
            if link.peer in peers:
                peers.remove(link.peer)
