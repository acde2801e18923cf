"""Cast: makes the nodes of a world, life by life, each with its own origin, batcher and generator."""

import itertools
import random
from collections.abc import Callable

from nmoe.core.seeds import derive_seed, numpy_generator
from nmoe.node.batcher import Batcher
from nmoe.node.messages import ExpertCard
from nmoe.node.protocol import Origin, Rules
from nmoe.node.world.clock import Node
from nmoe.node.world.network import Network
from nmoe.node.world.recording import Step
from nmoe.node.world.scene import Layout, WorldOptions


class Cast:
    """Makes nodes.

    Args:
        options: what holds for every node.
        layout: who knows whom.
        network: where they stand.
        seed: of every draw.
        wrap: stands between a node and its origin's ``step``; given the node's number and life.
    """

    def __init__(
        self, options: WorldOptions, layout: Layout, network: Network, *, seed: int, wrap: Callable[[int, int, Step], Step] | None
    ) -> None:
        self.options, self.layout, self.network, self.seed = options, layout, network, seed
        self._wrap = wrap
        self._lives = itertools.count()
        self._paces: list[float] = numpy_generator(seed, "paces").lognormal(0, options.speed_spread, len(layout.names)).tolist()
        self._cards = [self._card(index, draining=False) for index in range(len(layout.names))]

    def rules(self, index: int) -> Rules:
        """Return what a node decides by."""
        options, experts = self.options, self.layout.experts[index]
        return Rules(
            name=self.layout.names[index],
            experts=experts,
            own=experts.index(self.layout.serves[index]),
            k=min(options.k, len(experts)),
            in_dim=options.in_dim,
            out_dim=options.out_dim,
            max_requests=options.max_requests,
            max_rows=2 * options.max_rows,
            routing=options.routing,
            formats=options.formats,
            hedge=options.hedge,
        )

    def draw(self, index: int, life: int) -> random.Random:
        """Return a generator as a node's origin gets it at the start of a life; lives count over all nodes."""
        return random.Random(derive_seed(self.seed, "origin", index, life))

    def node(self, index: int) -> Node:
        """Start a life of a node."""
        options, network = self.options, self.network
        life = next(self._lives)
        origin = Origin(self.rules(index), self.draw(index, life))
        return Node(
            index=index,
            name=self.layout.names[index],
            origin=origin,
            step=origin.step if self._wrap is None else self._wrap(index, life, origin.step),
            batcher=Batcher(workers=options.workers, max_rows=options.max_rows, max_linger_s=options.max_linger_s),
            row=network.place[index] * network.places,
            place=network.place[index],
            pace=self._paces[index],
            byte_s=network.byte_s[index],
            loss=0.0,
        )

    def card(self, index: int, draining: bool) -> ExpertCard:
        """Return what a node says it serves."""
        return self._card(index, draining=True) if draining else self._cards[index]

    def _card(self, index: int, *, draining: bool) -> ExpertCard:
        return ExpertCard(
            node=self.layout.names[index],
            version="1",
            experts=(self.layout.serves[index],),
            classes=(),
            class_list="",
            num_classes=self.options.out_dim,
            in_dim=self.options.in_dim,
            out_dim=self.options.out_dim,
            formats=self.options.formats,
            max_rows=self.options.max_rows,
            rows_per_s=0.0,
            gradients=False,
            draining=draining,
        )
