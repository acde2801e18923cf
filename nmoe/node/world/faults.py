"""Faults: nodes that leave and return at a rate, each in one of the three ways in which nodes leave."""

import random
from dataclasses import dataclass

from nmoe.node.world.clock import Clock
from nmoe.node.world.membership import Membership

WAYS = ("kill", "freeze", "drain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """How often nodes leave.

    Attributes:
        rate_hz: departures per node and second.
        away_s: mean time until a node returns, exponentially distributed.
    """

    rate_hz: float
    away_s: float = 5.0

    def __post_init__(self) -> None:
        if not (0 <= self.rate_hz <= 10 and self.away_s > 0):
            raise ValueError(f"churn needs a rate between 0 and 10 per node and second and a time away, got {self.rate_hz}, {self.away_s}")

    def schedule(self, clock: Clock, members: Membership, draw: random.Random, until_s: float) -> list[tuple[float, str, int]]:
        """Draw all departures before ``until_s`` and put them and the returns on the clock; return them: time, way, node."""
        drawn: list[tuple[float, str, int]] = []
        count = len(members.nodes)
        now_s = 0.0
        while self.rate_hz > 0 and (now_s := now_s + draw.expovariate(self.rate_hz * count)) < until_s:
            way, index = draw.choice(WAYS), draw.randrange(count)
            drawn.append((now_s, way, index))
        for at_s, way, index in drawn:
            back_s = at_s + draw.expovariate(1 / self.away_s)
            put(clock, members, at_s, way, index)
            if way == "drain":
                back_s += 6.0  # it takes a while to leave
            put(clock, members, back_s, "thaw" if way == "freeze" else "start", index)
        return drawn


def put(clock: Clock, members: Membership, at_s: float, way: str, index: int) -> None:
    """Let a fault strike at a time: one of ``WAYS``, or ``thaw`` or ``start``."""
    act = {"kill": members.kill, "freeze": members.freeze, "drain": members.drain, "thaw": members.thaw, "start": members.start}[way]
    clock.later(at_s, lambda _node, _item: act(index), clock.outside, None)
