"""Node service: what a serving node offers to whatever stands in front of it, such as HTTP."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, auto

from jaxtyping import Shaped
from torch import Tensor

from nmoe.core.bundle import BundleCard
from nmoe.node.messages import InferReply, Refusal
from nmoe.node.view import NodeView


class Learned(Enum):
    """What came of feedback."""

    YES = auto()
    UNKNOWN = auto()  # no such request, too long ago, or learnt from already
    UNFIT = auto()  # the labels do not fit the request


class NodeService(ABC):
    """One running node. Methods may be called from any thread; the coroutines from any event loop."""

    @property
    @abstractmethod
    def card(self) -> BundleCard:
        """The card of the bundle it serves now."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether it takes requests: started, and not leaving."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether its threads are alive."""

    @abstractmethod
    async def infer(
        self,
        images: Shaped[Tensor, "batch height width channel"],
        *,
        deadline_s: float,
        k: int | None = None,
        identity: str = "",
        trace: str = "",
    ) -> InferReply | Refusal:
        """Classify images together with the peers.

        Args:
            images: uint8, or float32 between 0 and 1.
            deadline_s: from now.
            k: experts per sample; None for the node's own number.
            identity: a name for this request that feedback may refer to; empty for none.
            trace: W3C ``traceparent`` to pass along; empty for none.
        """

    @abstractmethod
    def feedback(self, identity: str, labels: Sequence[int]) -> tuple[Learned, str]:
        """Learn from the true labels of an earlier request.

        Returns:
            What came of it, and in one line why it taught nothing; empty where it did.
        """

    @abstractmethod
    def view(self) -> NodeView:
        """Return what this node knows of itself and its neighbours."""

    @abstractmethod
    async def mesh_view(self, *, timeout_s: float = 0.5) -> tuple[NodeView, ...]:
        """Return this node's view, and those of the neighbours that answer in time."""

    @abstractmethod
    def reload(self) -> str | None:
        """Serve what now lies in the bundle folder, beside the old version until its requests are over; return None, or why not."""
