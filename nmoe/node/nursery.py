"""Nursery: the nodes of one mesh, each a process of its own, forked from one that has loaded everything a node needs.

Ten interpreters that import torch each take 15 s and 2 GB on two cores; forked from one, 2.7 s and half a GB: what it loaded is shared.
A fork copies the calling thread alone, and the locks of the others as they stand, so the forker has one thread until the last fork; every
node opens its own zenoh session, after the fork.
"""

import gc
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nmoe.core.bundle import BundleCard, read_card
from nmoe.core.errors import BundleError, MeshError
from nmoe.node.forker import Forker
from nmoe.node.process import NodeSettings, http_address, run_node

NUM_SEEDS = 3
NO_FORK = ("win32", "emscripten", "wasi")
TASKS = Path("/proc/self/task")  # Linux: one entry per thread, those of libraries included


def run_nodes(bundles: Sequence[Path], settings: NodeSettings, *, listen: Sequence[str], lifeline: int | None = None) -> None:
    """Serve bundles until SIGINT or SIGTERM: one in this process, several each in a forked one; blocks.

    Every node prints the lines of ``run_node``, such as ``ready <name> <endpoint> <pid>`` once it serves. Where several are served, one
    that ends by itself leaves the others running; ``ended <name> <status>`` is printed, with a negative status for a signal, and said in
    words on standard error.

    Args:
        bundles: what to serve.
        settings: where and how; of several nodes each has its own endpoint and, from the given one on, its own HTTP port.
        listen: the nodes' own endpoints, one per bundle, in order.
        lifeline: file descriptor to read from; when it ends, so do the nodes.

    Raises:
        ValueError: when a name or endpoint is malformed or not allowed, or this process has other threads where it must fork.
        BundleError: when a bundle does not hold together, or two do not belong together.
        MeshError: when a node cannot start, which ends the others too; when none is left.
    """
    if len(listen) != len(bundles):
        raise ValueError(f"one endpoint to listen on per bundle wanted, got {len(listen)} for {len(bundles)} bundles")
    if len(bundles) == 1:
        run_node(bundles[0], replace(settings, listen=listen[0]), lifeline=lifeline)
        return
    if settings.options.node is not None:
        raise ValueError(f"one name is for one bundle, got {len(bundles)} bundles to serve as {settings.options.node}")
    cards = check_together(bundles)
    if sys.platform in NO_FORK:
        raise MeshError(f"{sys.platform} cannot fork: start each node by its own command, nmoe node BUNDLE")
    torch.set_num_threads(1)
    check_one_thread()
    gc.collect()
    gc.freeze()  # a collection in a node would write to, and so copy, what it shares
    with Forker(lifeline) as forker:
        for number, (card, bundle) in enumerate(zip(cards, bundles, strict=True)):
            own = replace(
                settings,
                listen=listen[number],
                seeds=(*settings.seeds, *listen[:NUM_SEEDS]),
                http=None if settings.http is None else _next_address(settings.http, number),
            )

            def serve(link: int, tell: Callable[[str], None], bundle: Path = bundle, own: NodeSettings = own) -> None:
                run_node(bundle, own, lifeline=link, tell=tell)

            forker.fork(card.node, serve)
        forker.wait()


def _next_address(address: str, number: int) -> str:
    """Return the address of the node of this number: the same host, ports counted up; port 0 stays any port."""
    host, port = http_address(address)
    bare = f"[{host}]" if ":" in host else host
    return f"{bare}:{port + number if port else 0}"


def check_one_thread() -> None:
    """Check that this process has one thread, those of libraries included where the system tells.

    Raises:
        ValueError: when it has more.
    """
    names = ", ".join(thread.name for thread in threading.enumerate())
    count = max(threading.active_count(), len(list(TASKS.iterdir())) if TASKS.is_dir() else 1)
    if count != 1:
        raise ValueError(
            f"nodes can be forked only from a process with one thread, this one has {count} (Python's: {names}); set OMP_NUM_THREADS and "
            "OPENBLAS_NUM_THREADS to 1 before torch and numpy are imported and open no session, or start them by nmoe node"
        )


def check_together(bundles: Sequence[Path]) -> tuple[BundleCard, ...]:
    """Return the cards of bundles that can form one mesh.

    Raises:
        ValueError: when there is no bundle.
        BundleError: when a card is damaged, two nodes have one name, or two differ in extractor or order of experts.
    """
    if not bundles:
        raise ValueError("a mesh needs at least one bundle, got none")
    cards = [read_card(folder) for folder in bundles]
    first = cards[0]
    names: set[str] = set()
    for card in cards:
        if card.node in names:
            raise BundleError(f"two bundles are of the same node {card.node}")
        names.add(card.node)
        if card.extractor_fingerprint != first.extractor_fingerprint:
            raise BundleError(f"{first.node} and {card.node} have different extractors: their features cannot be exchanged")
        if card.experts != first.experts:
            raise BundleError(f"{first.node} and {card.node} list the experts differently: their gates do not mean the same nodes")
    return tuple(cards)
