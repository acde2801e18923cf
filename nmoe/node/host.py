"""Host: serves any torch modules as experts, without a gate or an extractor of its own; ``remote.RemoteExperts`` asks them."""

import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from torch import nn

from nmoe.core.errors import MessageError
from nmoe.node.bank import ExpertBank
from nmoe.node.batcher import Batch, Batcher
from nmoe.node.expert_server import ExpertServer
from nmoe.node.messages import MAX_ROWS, CardReply, CardRequest, ExpertCard, RefusalCode, TensorFormat, decode_as, encode, refusal
from nmoe.node.options import NodeOptions
from nmoe.node.transport.base import Respond, Service, Transport
from nmoe.node.workers import Workers

NO_CLASSES = "none"  # what stands where a node with classes names its list of them


class ExpertHost:
    """A node that only serves experts. Use as a context manager; it owns its transport.

    Args:
        name: of the node.
        experts: modules from [rows, in_dim] to [rows, out_dim], by name.
        in_dim, out_dim: numbers per row.
        transport: the door to the mesh, not yet announced.
        version: of the weights.
        options: how to compute; requests and logs are for nodes that answer.
    """

    def __init__(
        self,
        name: str,
        experts: Mapping[str, nn.Module],
        *,
        in_dim: int,
        out_dim: int,
        transport: Transport,
        version: str = "1",
        options: NodeOptions | None = None,
    ) -> None:
        self.name = name
        self.options = options = NodeOptions() if options is None else options
        self.transport = transport
        self.malformed: Counter[str] = Counter()
        self.bank = ExpertBank(experts, in_dim=in_dim, out_dim=out_dim, version=version)
        batcher: Batcher[Any] = Batcher(workers=options.workers, max_rows=options.max_rows, max_linger_s=options.max_linger_s)
        self._workers = Workers(batcher, self._compute, name=f"nmoe-worker-{name}", cpus=options.cpus)
        self.server = ExpertServer(
            name=name,
            bank=self.bank,
            transport=transport,
            submit=self._workers.submit,
            queue_rows=self._workers.queue_rows,
            workers=options.workers,
            gradients=options.gradients,
            malformed=self._count_malformed,
        )

    @property
    def running(self) -> bool:
        """Whether its threads are alive."""
        return all(thread.is_alive() for thread in self._workers.threads)

    def start(self) -> None:
        """Start serving."""
        self._workers.start()
        self.server.serve()
        self.transport.serve(Service.CARD, self._asked_card)
        self.transport.announce()

    def stop(self) -> None:
        """Leave the mesh and end the threads."""
        self.transport.withdraw()
        until_s = time.monotonic() + 1.0
        while self.server.in_progress and time.monotonic() < until_s:
            time.sleep(0.005)
        self._workers.close()
        self.transport.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _compute(self, batch: Batch[Any]) -> None:
        self.server.compute(batch)

    def _count_malformed(self, fault: str) -> None:
        self.malformed[fault] += 1

    def _asked_card(self, data: bytes, respond: Respond) -> None:
        try:
            decode_as(data, CardRequest)
        except MessageError as error:
            self._count_malformed(error.fault)
            respond(encode(refusal(RefusalCode.BAD_SHAPE, str(error))))
            return
        card = ExpertCard(
            node=self.name,
            version=self.bank.version,
            experts=tuple(self.bank.experts),
            classes=(),
            class_list=NO_CLASSES,
            num_classes=self.bank.out_dim,
            in_dim=self.bank.in_dim,
            out_dim=self.bank.out_dim,
            formats=tuple(TensorFormat),
            max_rows=MAX_ROWS,
            rows_per_s=self._workers.rows_per_s(),
            gradients=self.options.gradients,
            draining=False,
        )
        respond(encode(CardReply(card=card, prototypes=self.bank.no_prototypes())))
