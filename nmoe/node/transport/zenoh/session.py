"""Sessions: opening one as the settings say, as a node, a client or a router; and zenoh's log, which alone tells of refused handshakes."""

import json
import re
from collections.abc import Callable

import zenoh

from nmoe.core.errors import MeshError
from nmoe.node.transport.config import ZenohSettings
from nmoe.node.transport.refusals import LOG_FILTER, LogTap, Refused
from nmoe.node.transport.zenoh.lingering import hold_up_nobody

refusals: set[Callable[[Refused], None]] = set()  # who hears of failed handshakes


def tap_log() -> Callable[[], None]:
    """Read zenoh's log for refused handshakes, which it tells of nowhere else; once per process. Return what ends it.

    Standard output becomes a pipe that is read here; everything else written to it is passed on.
    """

    def refused(reason: Refused) -> None:
        for hear in tuple(refusals):
            hear(reason)

    tap = LogTap(refused)
    zenoh.init_log_from_env_or(LOG_FILTER)
    return tap.close


def open_router(settings: ZenohSettings) -> Callable[[], None]:
    """Start passing on between peers that cannot reach each other; return what ends it.

    Raises:
        MeshError: when an endpoint cannot be listened on.
    """
    session = open_session(settings)
    return session.close


def open_session(settings: ZenohSettings) -> zenoh.Session:
    """Open a session.

    Raises:
        MeshError: when an endpoint cannot be listened on.
    """
    config = zenoh.Config()
    for key, value in settings.entries().items():
        config.insert_json5(key, json.dumps(value))
    try:
        session = zenoh.open(config)
    except zenoh.ZError as error:
        raise MeshError(f"cannot join mesh {settings.mesh} on {', '.join(settings.listen) or 'no endpoint'}: {_why(str(error))}") from error
    hold_up_nobody(session, give_up_s=2 * settings.lease_s)
    return session


def _why(text: str) -> str:
    """Zenoh's reason without the places in its source code."""
    if "Address already in use" in text:
        return "the address is already in use"
    return " ".join(re.sub(r" at /\S+", "", text).split())
