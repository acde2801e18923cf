"""Membership: how simulated nodes come, go, freeze and leave, and when their neighbours learn of it."""

from collections.abc import Callable
from typing import Any

from nmoe.node.events import CardArrived, Event, FetchCard, PeerDown, PeerRejected, PeerUp, Probe, Probed, ProbeDue, SetProbe
from nmoe.node.messages import ExpertCard
from nmoe.node.world.clock import Away, Clock, Node
from nmoe.node.world.scene import Layout

CARD_TRIES, CARD_PAUSE_S = 5, 0.5  # as in introductions.py
DRAIN_S = 5.0  # as in runner.py


class Membership:
    """Who is there, and who believes so.

    Args:
        clock: the time.
        layout: who knows whom.
        make: starts another life of a node.
        delay: seconds of a small message from one node to another.
        happen: lets an event happen to a node.
        retired: told of every life that ends.
        card: the card of a node, draining or not.
        lease_s: how long a silent node is believed to be there.
    """

    def __init__(
        self,
        clock: Clock,
        layout: Layout,
        *,
        make: Callable[[int], Node],
        delay: Callable[[Node, Node], float],
        happen: Callable[[Node, Event], None],
        retired: Callable[[Node], None],
        card: Callable[[int, bool], ExpertCard],
        lease_s: float,
    ) -> None:
        self.clock = clock
        self.layout = layout
        self.nodes = [make(index) for index in range(len(layout.names))]
        self.takers = list(self.nodes)  # whom clients send requests to
        self._place = {node.index: number for number, node in enumerate(self.takers)}
        self._make, self._delay, self._happen, self._retired, self._card = make, delay, happen, retired, card
        self._lease_s = lease_s
        self._numbers = {name: index for index, name in enumerate(layout.names)}

    def boot(self) -> None:
        """Let everybody know its neighbours, as in a mesh that has stood for a while."""
        for node in self.nodes:
            for other in self.layout.peers[node.index]:
                peer = self.nodes[other]
                node.step(PeerUp(peer.name), 0.0)
                node.step(CardArrived(peer.name, self._card(other, False), self._delay(node, peer) + self._delay(peer, node)), 0.0)

    def node(self, name: str) -> Node:
        """Return the present life of a node."""
        return self.nodes[self._numbers[name]]

    # What happens to a node

    def kill(self, index: int) -> None:
        """End a node as by kill -9: its neighbours hear of it a round trip later."""
        node = self.nodes[index]
        if node.away is Away.GONE:
            return
        self.stop_taking(index)
        self._tell(node, self._hear_down, rounds=2.0)
        node.away = Away.GONE
        self._retired(node)

    def freeze(self, index: int) -> None:
        """Stop a node without ending it; it is believed to be there until its lease ends."""
        node = self.nodes[index]
        if node.away is Away.HERE:
            node.away = Away.FROZEN
            for other in self.layout.peers[index]:
                self.clock.later(self.clock.now_s + self._lease_s, self._lease_over, self.nodes[other], node)
            self.clock.later(self.clock.now_s + self._lease_s, self._clients_hear, self.clock.outside, node)

    def thaw(self, index: int) -> None:
        """Undo ``freeze``: what was held back happens now, and the node announces itself anew."""
        node = self.nodes[index]
        if node.away is not Away.FROZEN:
            return
        node.away = Away.HERE
        held, node.held = node.held, []
        for call, item in held:
            call(node, item)
        self._take(index)
        self._tell(node, self._hear_up)

    def drain(self, index: int) -> None:
        """Let a node leave: it says so, finishes what it has, and withdraws."""
        node = self.nodes[index]
        if node.away is Away.HERE and not node.draining:
            node.draining = True
            self.stop_taking(index)
            self._tell(node, self._hear_up)
            self.clock.later(self.clock.now_s + DRAIN_S, self._withdraw, node, None)

    def start(self, index: int) -> None:
        """Start a node again where one was killed or has left, as another process."""
        if self.nodes[index].away is not Away.GONE:
            return
        node = self.nodes[index] = self._make(index)
        self._take(index)
        self._tell(node, self._hear_up)
        for other in self.layout.peers[index]:
            if self.nodes[other].away is Away.HERE:
                self.clock.later(self.clock.now_s + 2 * self._delay(node, self.nodes[other]), self._hear_up, node, self.nodes[other])

    def stop_taking(self, index: int) -> None:
        """Let clients send a node nothing more."""
        place = self._place.pop(index, None)
        if place is not None:
            last = self.takers.pop()
            if last.index != index:
                self.takers[place] = last
                self._place[last.index] = place

    # What the origins want done

    def fetch_card(self, node: Node, effect: FetchCard) -> None:
        """Ask a peer for its card."""
        self._fetch(node, effect.peer, CARD_TRIES)

    def probe(self, node: Node, effect: Probe) -> None:
        """Ask a peer for a sign of life."""
        peer = self.node(effect.peer)
        seconds = self._delay(node, peer) + self._delay(peer, node)
        timeout_s = node.origin.links[effect.peer].probe_timeout_s
        alive = peer.away is Away.HERE and seconds < timeout_s
        wait_s = seconds if alive or peer.away is Away.GONE else timeout_s
        self.clock.later(self.clock.now_s + wait_s, self._happens, node, Probed(peer.name, alive))

    def set_probe(self, node: Node, effect: SetProbe) -> None:
        """Let a probe be due."""
        self.clock.later(effect.at_s, self._happens, node, ProbeDue(effect.peer))

    # Below

    def _fetch(self, node: Node, name: str, tries: int) -> None:
        peer = self.node(name)
        seconds = self._delay(node, peer) + self._delay(peer, node)
        self.clock.later(self.clock.now_s + seconds, self._card_comes, node, (name, tries, seconds))

    def _card_comes(self, node: Node, item: tuple[str, int, float]) -> None:
        name, tries, seconds = item
        peer, link = self.node(name), node.origin.links.get(name)
        if link is None or not link.up:
            return
        if peer.away is Away.HERE:
            self._happen(node, CardArrived(name, self._card(peer.index, peer.draining), seconds))
        elif tries > 1:
            self.clock.later(self.clock.now_s + CARD_PAUSE_S, self._again, node, (name, tries - 1))
        else:
            self._happen(node, PeerRejected(name, "does not say what it serves"))

    def _again(self, node: Node, item: tuple[str, int]) -> None:
        self._fetch(node, *item)

    def _happens(self, node: Node, event: Event) -> None:
        self._happen(node, event)

    def _tell(self, node: Node, call: Callable[[Node, Node], None], *, rounds: float = 1.0) -> None:
        for other in self.layout.peers[node.index]:
            peer = self.nodes[other]
            self.clock.later(self.clock.now_s + rounds * self._delay(node, peer), call, peer, node)

    def _hear_down(self, node: Node, peer: Node) -> None:
        if self.nodes[peer.index] is peer:  # not yet started again
            self._happen(node, PeerDown(peer.name))

    def _hear_up(self, node: Node, peer: Node) -> None:
        if peer.away is not Away.GONE:
            self._happen(node, PeerUp(peer.name))

    def _lease_over(self, node: Node, peer: Node) -> None:
        if peer.away is Away.FROZEN:
            self._happen(node, PeerDown(peer.name))

    def _clients_hear(self, _: Node, peer: Node) -> None:
        if peer.away is Away.FROZEN:
            self.stop_taking(peer.index)

    def _withdraw(self, node: Node, _: Any) -> None:
        self.kill(node.index)

    def _take(self, index: int) -> None:
        if index in self._place:
            self.takers[self._place[index]] = self.nodes[index]
        else:
            self._place[index] = len(self.takers)
            self.takers.append(self.nodes[index])
