"""Reach: which peers can be asked for which experts now, and for whom else when one of them is slow or fails. Pure."""

import math
import random
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Protocol

import numpy as np

from nmoe.node.events import ExpertGroup, Send
from nmoe.node.flight import Dispatch, Flight, Role
from nmoe.node.links import MIN_SAMPLES, Link
from nmoe.node.messages import TensorFormat
from nmoe.node.plan import (
    Routing,
    average_s,
    choose,
    choose_format,
    choose_row,
    group_by_expert,
    log_arrival,
    message_bytes,
    pick_peer,
)

MIN_HEDGE_S = 0.002
SMALL_ROWS = 64  # sizes of messages up to here are computed once
_FIRST = (0,)
SURE_SCALES = 6.0  # a logistic this many scales above its middle is over 0.997


class _Rules(Protocol):
    @property
    def own(self) -> int | None: ...
    @property
    def in_dim(self) -> int: ...
    @property
    def out_dim(self) -> int: ...
    @property
    def routing(self) -> Routing: ...
    @property
    def hedge(self) -> bool: ...
    @property
    def formats(self) -> tuple[TensorFormat, ...]: ...


class Reach:
    """Plans over live tables.

    Args:
        rules: formats, routing and sizes.
        links: by peer.
        servers: by expert: admitted peers that serve it.
        draw: for the choice between replicas.
    """

    def __init__(self, rules: _Rules, links: dict[str, Link], servers: dict[int, list[str]], draw: random.Random) -> None:
        self.rules = rules
        self.links = links
        self.servers = servers
        self.draw = draw
        self._sizes: dict[tuple[int, TensorFormat], int] = {}

    def choose(self, flight: Flight, now_s: float) -> dict[str | None, list[ExpertGroup]]:
        """Fill in the experts of every sample of a flight; return the groups by peer, None for this node."""
        rows = len(flight.scores)
        share = max(1, rows * flight.k // max(1, len(self.servers)))
        peers: dict[int, str] = {}
        by_peer: dict[str | None, list[ExpertGroup]]

        def term(expert: int) -> float:
            return self._term(flight, expert, share, flight.asked, peers, now_s)

        if rows == 1:
            by_peer = self._choose_row(flight, term, peers)
            flight.needs_own = None in by_peer
            return by_peer
        flight.choose(choose(flight.scores, term, k=flight.k, routing=self.rules.routing))
        by_peer = {}
        pairs = 0
        for group in group_by_expert(flight.chosen):
            pairs += len(group.rows)
            by_peer.setdefault(None if group.expert == self.rules.own else peers[group.expert], []).append(group)
        flight.full = pairs == rows * flight.k
        flight.needs_own = None in by_peer
        return by_peer

    def _choose_row(self, flight: Flight, term: Callable[[int], float], peers: dict[int, str]) -> dict[str | None, list[ExpertGroup]]:
        scores = flight.scores[0].tolist()
        row = choose_row(scores, term, k=flight.k, routing=self.rules.routing)
        flight.choose_row(row, scores)
        by_peer: dict[str | None, list[ExpertGroup]] = {}
        for slot, expert in enumerate(row):
            if expert >= 0:
                group = ExpertGroup(expert, _FIRST, (slot,))
                by_peer.setdefault(None if expert == self.rules.own else peers[expert], []).append(group)
        return by_peer

    def send(self, flight: Flight, dispatch: Dispatch, now_s: float) -> Send:
        """Return the message for a dispatch, in the format its link bears, and note when it is to be hedged."""
        link, rules = self.links[dispatch.peer], self.rules
        left_s = flight.deadline_s - now_s
        form = choose_format(
            link, rules.formats, rows=dispatch.rows, in_dim=rules.in_dim, out_dim=rules.out_dim, left_s=left_s, now_s=now_s
        )
        if rules.hedge and link.p95.count >= MIN_SAMPLES and dispatch.role is Role.CHOSEN:
            dispatch.hedge_at_s = now_s + max(MIN_HEDGE_S, link.p95.value)
        return Send(flight.number, dispatch.index, dispatch.peer, dispatch.groups, form, flight.deadline_s)

    def instead(
        self, flight: Flight, dispatch: Dispatch, barred: Set[str], now_s: float
    ) -> Iterator[tuple[str | None, tuple[ExpertGroup, ...], bool]]:
        """Find whom to ask instead of a dispatch's peer, of those who are not barred and can still answer in time.

        Returns:
            One other peer with the same experts (then the third item is true), or else per peer (None for this node) the groups of the next
            best experts.
        """
        twin = self._same_experts(flight, dispatch, barred, now_s)
        if twin is not None:
            yield twin, dispatch.groups, True
            return
        by_peer: dict[str | None, list[ExpertGroup]] = {}
        peers: dict[int, str] = {}
        for group in dispatch.groups:
            for found in self._next_best(flight, group, barred, peers, now_s):
                by_peer.setdefault(None if found.expert == self.rules.own else peers[found.expert], []).append(found)
        for peer, groups in by_peer.items():
            yield peer, tuple(groups), False

    def size(self, rows: int, form: TensorFormat) -> int:
        """Return about how many bytes a request of so many rows and its reply take."""
        size = self._sizes.get((rows, form))
        if size is None:
            size = message_bytes(rows, in_dim=self.rules.in_dim, out_dim=self.rules.out_dim, form=form)
            if rows <= SMALL_ROWS:
                self._sizes[rows, form] = size
        return size

    def _term(self, flight: Flight, expert: int, rows: int, barred: Set[str], peers: dict[int, str], now_s: float) -> float:
        """Return what an expert's links add to its score, at most 0, and note which peer would be asked."""
        rules = self.rules
        if expert == rules.own:
            return 0.0
        links = self.links
        usable = [peer for peer in self.servers.get(expert, ()) if links[peer].usable and peer not in barred]
        if not usable:
            return -math.inf
        size = self.size(rows, rules.formats[-1])
        peer = usable[0] if len(usable) == 1 else pick_peer(usable, links, size=size, rows=rows, now_s=now_s, draw=self.draw)
        peers[expert] = peer
        if rules.routing is Routing.GATE:
            return 0.0
        link = self.links[peer]
        predicted_s = link.predict_s(rows, size, now_s)
        if predicted_s is None:
            predicted_s = average_s(list(self.links.values()), rows=rows, size=size, now_s=now_s)
        if rules.routing is Routing.LINK:
            return -predicted_s / (1 - min(link.loss, 0.999))
        left_s = flight.deadline_s - now_s
        if link.loss < 0.005 and left_s - predicted_s > SURE_SCALES * link.spread_s(predicted_s):
            return 0.0
        return log_arrival(link.arrival(left_s, predicted_s))

    def _same_experts(self, flight: Flight, dispatch: Dispatch, barred: Set[str], now_s: float) -> str | None:
        """Return another peer that serves every expert of a dispatch."""
        common: set[str] = set()
        for number, group in enumerate(dispatch.groups):
            servers = set(self.servers.get(group.expert, ()))
            common = servers if number == 0 else common & servers
        able = sorted(peer for peer in common - barred if self._in_time(flight, peer, dispatch.rows, now_s))
        if not able:
            return None
        size = self.size(dispatch.rows, self.rules.formats[-1])
        return pick_peer(able, self.links, size=size, rows=dispatch.rows, now_s=now_s, draw=self.draw)

    def _in_time(self, flight: Flight, peer: str, rows: int, now_s: float) -> bool:
        link = self.links[peer]
        if not link.usable:
            return False
        predicted_s = link.predict_s(rows, self.size(rows, self.rules.formats[-1]), now_s)
        return predicted_s is None or now_s + predicted_s < flight.deadline_s

    def _next_best(
        self, flight: Flight, group: ExpertGroup, barred: Set[str], peers: dict[int, str], now_s: float
    ) -> Sequence[ExpertGroup]:
        """Return the next best experts for a group's samples; those samples that have none are left out."""
        taken = flight.take()
        rows, slots = np.asarray(group.rows), np.asarray(group.slots)
        terms = np.array([self._term(flight, expert, len(rows), barred, peers, now_s) for expert in range(flight.scores.shape[1])])
        joined = np.where(taken[rows], -np.inf, flight.scores[rows] + terms)  # [rows of the group, experts]
        best = joined.argmax(axis=1)
        found = joined[np.arange(len(rows)), best] > -np.inf
        taken[rows[found], best[found]] = True
        groups = []
        for expert in np.unique(best[found]).tolist():
            picked = found & (best == expert)
            groups.append(ExpertGroup(expert, rows[picked], slots[picked]))
        return groups
