"""Connections that were refused: why, and how a node learns of it.

Zenoh tells of them in two places (1.10.2, found by trying each):
- A certificate of the authority that is not on the list of members passes TLS, so a link comes up and the access rules then let nothing
  through. Its common name is in the link event: ``link_refusal``.
- A handshake that fails (expired, another authority, no certificate, not TLS at all) is only a line in zenoh's log, one per attempt, with
  the reason and without the other's address. The log goes to standard output and nowhere else: ``LogTap`` reads it there.
"""

import os
import threading
from collections.abc import Callable
from enum import StrEnum

LOG_FILTER = "off,zenoh_link_tls=warn,zenoh_link_commons::quic=warn"  # what zenoh shall log for a LogTap; RUST_LOG, if set, takes its place
_PLACES = ("zenoh_link_tls::unicast", "zenoh_link_commons::quic::unicast")  # tls/, quic/
_END = b"\0end of log\n"


class Refused(StrEnum):
    """Why a connection was refused; few and fixed, so that they can be counted by reason."""

    NOT_LISTED = "not on the list"
    EXPIRED = "certificate expired"
    NOT_YET_VALID = "certificate not yet valid"
    UNKNOWN_AUTHORITY = "unknown authority"
    NO_CERTIFICATE = "no certificate"
    REFUSED_US = "refused our certificate"
    NOT_TLS = "not tls"
    OTHER = "failed handshake"


# What rustls says, in order: the first that occurs in the line counts.
_REASONS = {
    "certificate expired": Refused.EXPIRED,
    "certificate not valid yet": Refused.NOT_YET_VALID,
    "UnknownIssuer": Refused.UNKNOWN_AUTHORITY,
    "BadSignature": Refused.UNKNOWN_AUTHORITY,  # it claims our authority's name
    "peer sent no certificates": Refused.NO_CERTIFICATE,
    "received fatal alert": Refused.REFUSED_US,
    "received corrupt message": Refused.NOT_TLS,
}


def link_refusal(common_name: str | None, members: frozenset[str] | None) -> Refused | None:
    """Return why the access rules refuse a link that has come up, or None when they do not.

    Args:
        common_name: of the other's certificate; None when it showed none.
        members: who is let in; None for everybody.
    """
    if members is None or common_name in members:
        return None
    return Refused.NO_CERTIFICATE if common_name is None else Refused.NOT_LISTED


def handshake_refusal(line: str) -> Refused | None:
    """Return why a handshake failed, from a line of zenoh's log; None for any other line."""
    if " WARN" not in line or not any(place in line for place in _PLACES):
        return None
    return next((reason for words, reason in _REASONS.items() if words in line), Refused.OTHER)


class LogTap:
    """Standard output, read for zenoh's lines on failed handshakes; every other line goes on to where it went.

    Make it once per process, then ``zenoh.init_log_from_env_or(LOG_FILTER)``. Zenoh writes to file descriptor 1, so that one becomes a
    pipe, which a thread keeps empty. Own lines take the way through that thread: ``close`` before an ``os._exit``.

    Args:
        on_refused: called from the thread, once per failed handshake.
    """

    def __init__(self, on_refused: Callable[[Refused], None]) -> None:
        self._on_refused = on_refused
        self._output = os.dup(1)
        self._reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        self._thread = threading.Thread(target=self._run, name="nmoe-log-tap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Pass on what was written, and give standard output back."""
        os.write(1, _END)  # not the end of the file: a child may have inherited the pipe
        self._thread.join()
        os.dup2(self._output, 1)
        os.close(self._output)

    def _run(self) -> None:
        listening = True
        with os.fdopen(self._reader, "rb") as lines:
            for line in lines:
                if line.endswith(_END):
                    _write(self._output, line.removesuffix(_END))
                    return
                reason = handshake_refusal(line.decode(errors="replace"))
                if reason is not None:
                    self._on_refused(reason)
                elif listening:
                    listening = _write(self._output, line)


def _write(handle: int, data: bytes) -> bool:
    """Write everything; False when nobody reads any more, which must not stop zenoh's lines from being taken off the pipe."""
    try:
        while data:
            data = data[os.write(handle, data) :]
    except OSError:
        return False
    return True
