"""Transport: what a node needs of a network, and nothing of how it is done.

Callbacks run on the transport's threads (or inside the very call that asked): they must neither block nor raise; putting into a queue is
all they should do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, StrEnum
from types import TracebackType
from typing import Self


class Service(StrEnum):
    """What a node serves: its experts and their derivatives to peers, inference to clients; card, status and a sign of life to anybody."""

    EXPERT = "expert"
    GRADIENT = "gradient"
    INFER = "infer"
    CARD = "card"
    STATUS = "status"
    PING = "ping"


class Silence(Enum):
    """Why no reply came."""

    GONE = "gone"  # nobody serves that, or it went away without an answer
    TIMEOUT = "timeout"  # nothing in time
    FULL = "full"  # as much as allowed is on its way to that node: not sent


Respond = Callable[[bytes], None]
OnQuery = Callable[[bytes, Respond], None]
OnReply = Callable[[bytes | Silence], None]
OnPeer = Callable[[str, bool], None]
OnRefusal = Callable[[str, str], None]


class Transport(ABC):
    """One member's door to one mesh: a node announces and serves, a client only watches and asks."""

    endpoint: str

    @abstractmethod
    def announce(self) -> None:
        """Tell the mesh that this node is alive, until ``withdraw``, ``close`` or death. Again: that its card has changed."""

    @abstractmethod
    def withdraw(self) -> None:
        """Take the announcement back, and go on serving whoever asks."""

    @abstractmethod
    def watch(self, on_peer: OnPeer) -> None:
        """Call ``on_peer(name, alive)`` for every node alive now (this one too) and at every later change.

        ``on_peer(name, True)`` for a node already alive says that its card has changed.
        """

    @abstractmethod
    def watch_refusals(self, on_refusal: OnRefusal) -> None:
        """Call ``on_refusal(who, reason)`` for everybody whom the transport itself does not let in, as far as it can tell."""

    @abstractmethod
    def serve(self, service: Service, on_query: OnQuery) -> None:
        """Call ``on_query(payload, respond)`` for each query; ``respond`` may be called once, from any thread, and later.

        An ``on_query`` that raises is answered by a refusal.
        """

    @abstractmethod
    def ask(self, node: str, service: Service, payload: bytes, *, timeout_s: float, on_reply: OnReply) -> None:
        """Send a query; ``on_reply`` is called exactly once, with the reply or with why there is none. Never blocks."""

    @abstractmethod
    def rejoin(self) -> None:
        """Leave the mesh and join it anew under the same name, in the background.

        For a process that did not run for longer than the others wait.
        """

    @property
    @abstractmethod
    def joined(self) -> bool:
        """Whether it is in the mesh: false while ``rejoin`` is at work."""

    @abstractmethod
    def close(self) -> None:
        """Leave the mesh; outstanding queries end as ``Silence.GONE``. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
