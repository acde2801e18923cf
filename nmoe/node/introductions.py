"""Introductions: how a peer is let in. Its card is fetched and has to fit, then it is examined; who is turned away is counted, with why.

A peer that was turned away is looked at again after a while: it may only have been slow, or be another one by then.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable

from nmoe.core.errors import MessageError
from nmoe.node.events import CardArrived, Event, PeerRejected
from nmoe.node.messages import CardReply, CardRequest, Refusal, decode_as, encode
from nmoe.node.protocol import Origin
from nmoe.node.timers import Timers
from nmoe.node.transport.base import Service, Silence, Transport

CARD_TIMEOUT_S, CARD_TRIES, CARD_PAUSE_S = 1.0, 5, 0.5
AGAIN_S = 5.0
MAX_REFUSALS = 256  # different ones that are counted apart: names come from the network; as many again without them
OTHERS = "others"

Examine = Callable[[str, CardReply, Callable[[str | None], None]], None]


class Introductions:
    """Lets peers in, or not; safe to use from any thread.

    Args:
        origin: is told of them, by ``happen``.
        lock: the origin's.
        transport: asks them.
        timers: calls when it is time to ask again.
        happen: lets an event happen to the origin.
        examine: looks at a card and calls back with None or a reason to reject the peer, from any thread.

    Attributes:
        cards: of those let in.
        refusals: how often who was turned away for what; once these are too many, by the first words alone, of ``OTHERS``.
        refused_at_s: when last.
    """

    def __init__(
        self,
        origin: Origin,
        lock: threading.Lock,
        transport: Transport,
        timers: Timers,
        *,
        happen: Callable[[Event], None],
        examine: Examine,
    ) -> None:
        self.cards: dict[str, CardReply] = {}
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.refused_at_s: dict[tuple[str, str], float] = {}
        self._origin = origin
        self._lock = lock
        self._transport = transport
        self._timers = timers
        self._happen = happen
        self._examine = examine
        self._again: set[str] = set()  # turned away, and to be looked at again

    def version(self, peer: str) -> str:
        """Return which version of its experts a peer announced last."""
        card = self.cards.get(peer)
        return "" if card is None else card.card.version

    def meet(self, peer: str, *, tries: int = CARD_TRIES) -> None:
        """Fetch a peer's card and let it in, or not."""
        asked_s = time.monotonic()

        def replied(reply: bytes | Silence) -> None:
            if isinstance(reply, Silence):
                if tries > 1:
                    self._timers.at(time.monotonic() + CARD_PAUSE_S, lambda: self.meet(peer, tries=tries - 1))
                else:
                    self.reject(peer, "does not say what it serves")
                return
            try:
                message = decode_as(reply, CardReply)
            except MessageError as error:
                self.reject(peer, f"its card cannot be read: {error.fault}")
                return
            if isinstance(message, Refusal):
                self.reject(peer, f"it refuses to say what it serves: {message.code.value}")
                return
            self._show(peer, message, time.monotonic() - asked_s)

        with self._lock:
            link = self._origin.links.get(peer)
            if link is None or not link.up:
                return
        self._transport.ask(peer, Service.CARD, encode(CardRequest()), timeout_s=CARD_TIMEOUT_S, on_reply=replied)

    def _show(self, peer: str, message: CardReply, round_trip_s: float) -> None:
        rules, card = self._origin.rules, message.card

        def examined(reason: str | None) -> None:
            if reason is not None:
                self.reject(peer, reason)
                return
            self.cards[peer] = message
            self._happen(CardArrived(peer, card, round_trip_s))

        if card.node != peer:
            self.reject(peer, f"its card is another node's: {card.node}")
        elif (card.in_dim, card.out_dim) != (rules.in_dim, rules.out_dim):
            widths = f"{card.in_dim} to {card.out_dim} numbers, {rules.in_dim} to {rules.out_dim} wanted"
            self.reject(peer, f"its experts have other widths: {widths}")
        else:
            self._examine(peer, message, examined)

    def reject(self, peer: str, reason: str) -> None:
        """Do not ask a peer any more, show why, and look at it again later."""
        self.note(peer, reason)
        self._happen(PeerRejected(peer, reason))
        if peer not in self._again:
            self._again.add(peer)
            self._timers.at(time.monotonic() + AGAIN_S, lambda: self._look_again(peer))

    def _look_again(self, peer: str) -> None:
        self._again.discard(peer)
        with self._lock:
            link = self._origin.links.get(peer)
            rejected = link is not None and link.rejected is not None
        if rejected:
            self.meet(peer)

    def note(self, who: str, reason: str) -> None:
        """Count something that was not admitted; ``reason``: a few words of ours, then maybe a colon and what they are about."""
        key = (who, reason)
        if key not in self.refusals and len(self.refusals) >= MAX_REFUSALS:
            key = (OTHERS, reason.partition(":")[0])
            if key not in self.refusals and len(self.refusals) >= 2 * MAX_REFUSALS:
                key = (OTHERS, "various")
        self.refused_at_s[key] = time.monotonic()  # first: whoever finds a count looks for its time
        self.refusals[key] += 1
