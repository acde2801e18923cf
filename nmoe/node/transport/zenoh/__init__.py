"""Zenoh: the transport between machines."""

from nmoe.node.transport.zenoh.session import open_router, tap_log
from nmoe.node.transport.zenoh.transport import ZenohTransport

__all__ = ["ZenohTransport", "open_router", "tap_log"]
