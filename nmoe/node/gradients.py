"""Gradients: the derivative of experts' outputs with respect to their features, asked of the nodes that serve them.

A request carries the features again: nodes keep nothing of a forward pass. The experts' weights get no gradient and never change.
"""

import threading
import time

import numpy as np

from nmoe.core.errors import MeshError, MessageError
from nmoe.node.dispatcher import Dispatcher
from nmoe.node.messages import ExpertRequest, ExpertRows, GradientReply, GradientRequest, Refusal, TensorFormat, decode_as, encode
from nmoe.node.transport.base import Service, Silence


def ask_gradients(
    dispatcher: Dispatcher, features: np.ndarray, experts: np.ndarray, gradients: np.ndarray, deadline_s: float
) -> np.ndarray:
    """Return the derivative [batch, dim] with respect to features of the sum of all outputs times their gradients.

    Args:
        dispatcher: knows who serves what.
        features: [batch, dim].
        experts: [batch, k], -1 for none.
        gradients: of the outputs, [batch, k, out].
        deadline_s: how long it may take.

    Raises:
        MeshError: when a node does not answer, or gives no gradients.
    """
    asked = {int(expert): np.nonzero(experts == expert) for expert in np.unique(experts) if expert >= 0}
    replies: dict[int, bytes | Silence] = {}
    arrived = threading.Semaphore(0)
    for expert, (rows, slots) in asked.items():

        def replied(reply: bytes | Silence, expert: int = expert) -> None:
            replies[expert] = reply
            arrived.release()

        name, peer = _server(dispatcher, expert)
        forward = ExpertRequest(
            request=expert,
            origin=dispatcher.origin.rules.name,
            deadline_s=deadline_s,
            format=TensorFormat.FLOAT32,
            experts=(ExpertRows(expert=name, version=dispatcher.introductions.version(peer), rows=None),),
            features=features[rows],
            trace="",
        )
        data = encode(GradientRequest(forward=forward, gradients=np.ascontiguousarray(gradients[rows, slots])))
        dispatcher.ask(peer, Service.GRADIENT, data, timeout_s=deadline_s, on_reply=replied)
    until_s = time.monotonic() + deadline_s + 1.0
    for _ in asked:
        arrived.acquire(timeout=max(0.0, until_s - time.monotonic()))
    total = np.zeros_like(features)
    for expert, (rows, _) in asked.items():
        np.add.at(
            total, rows, _read(dispatcher.origin.experts[expert], replies.get(expert, Silence.TIMEOUT), (len(rows), features.shape[1]))
        )
    return total


def _server(dispatcher: Dispatcher, expert: int) -> tuple[str, str]:
    name = dispatcher.origin.experts[expert]
    with dispatcher.lock:
        usable = [peer for peer in dispatcher.origin.servers.get(expert, ()) if dispatcher.origin.links[peer].usable]
    if not usable:
        raise MeshError(f"nobody serves {name} any more: its gradient is lost")
    return name, usable[0]


def _read(name: str, reply: bytes | Silence, shape: tuple[int, int]) -> np.ndarray:
    if isinstance(reply, Silence):
        raise MeshError(f"no gradient from {name}: {reply.value}")
    try:
        message = decode_as(reply, GradientReply)
    except MessageError as error:
        raise MeshError(f"no gradient from {name}: {error}") from error
    if isinstance(message, Refusal):
        raise MeshError(f"no gradient from {name}: {message.reason}")
    if message.gradients.shape != shape or not np.isfinite(message.gradients).all():
        raise MeshError(f"no gradient from {name}: {shape} finite numbers wanted, {message.gradients.shape} came")
    return message.gradients
