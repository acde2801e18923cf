"""HTTP: byte ranges of a file from an ordinary server. The one door to httpx.

A file is recognised by its ETag, else by Last-Modified, and its length; every answer is checked against them, so that two versions are
never mixed. A server that ignores Range sends the whole file, of which what is not wanted is thrown away.
"""

import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx

from nmoe.core.errors import NmoeError
from nmoe.deliver.address import shown

CONNECT_S = 10.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PLAIN = {"Accept-Encoding": "identity"}  # byte ranges of a compressed file would be something else


class DeliveryError(NmoeError):
    """A download that cannot go on."""


class BrokenTransfer(DeliveryError):
    """A transfer that broke off, or a refusal that may pass: worth another try.

    Attributes:
        retry_after_s: before which the server wants no other; 0 if it does not say.
    """

    def __init__(self, text: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class UnknownHost(BrokenTransfer):
    """A server whose name has no address, or no valid certificate: a mistake at the beginning, a lost network later."""


class FileChanged(DeliveryError):
    """A file that is no longer the one whose download began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: where it is.
        bytes: its length.
        validator: its ETag, else its Last-Modified; empty when the server gives neither.
        ranges: whether the server honours Range.
    """

    url: str
    bytes: int
    validator: str
    ranges: bool


class Pace:
    """Bounds the rate at which bytes are read, over all connections.

    Args:
        bytes_per_s: the bound; None for none.
        clock: seconds that only rise.
    """

    def __init__(self, bytes_per_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        if bytes_per_s is not None and not 0 < bytes_per_s < float("inf"):
            raise ValueError(f"a rate above 0 bytes/s wanted, got {bytes_per_s}")
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._paid_until_s = -float("inf")
        self._lock = threading.Lock()

    def book(self, num_bytes: int) -> float:
        """Count bytes that were read; return for how many seconds nobody should read on."""
        if self._bytes_per_s is None:
            return 0.0
        with self._lock:
            now_s = self._clock()
            self._paid_until_s = max(self._paid_until_s, now_s) + num_bytes / self._bytes_per_s
            return self._paid_until_s - now_s


class _TlsOnDemand(ssl.SSLContext):
    """Reads the certificates that are trusted when the first TLS connection is made; that takes 0.1 s, which plain HTTP need not wait."""

    opened: Callable[[socket.socket], None]  # told of each connection before its handshake

    def wrap_socket(self, *args: Any, **keywords: Any) -> ssl.SSLSocket:
        """Secure a connection, by httpx's own rules."""
        secured = _trusted().wrap_socket(*args, **{**keywords, "do_handshake_on_connect": False})
        try:
            self.opened(secured)
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured


@cache
def _trusted() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Source:
    """A connection to one server, or a few at once. Its methods may be called from any thread.

    Args:
        headers: sent with every request.
        stall_timeout_s: a transfer that brings no byte for so long is broken.
    """

    def __init__(self, *, headers: Mapping[str, str], stall_timeout_s: float) -> None:
        timeout = httpx.Timeout(stall_timeout_s, connect=min(CONNECT_S, stall_timeout_s), pool=None)
        tls = _TlsOnDemand(ssl.PROTOCOL_TLS_CLIENT)
        tls.opened = self._opened
        self._client = httpx.Client(headers={**headers, **_PLAIN}, timeout=timeout, follow_redirects=True, verify=tls)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False
        self._lock = threading.RLock()  # close may be called by the garbage collector, at any point

    def open(self, url: str, first_bytes: int) -> tuple[RemoteFile, bytes]:
        """Ask for a file's beginning.

        Returns:
            What the server says of the file, and up to ``first_bytes`` of it.

        Raises:
            BrokenTransfer: when another try may help.
            DeliveryError: when there is no such file, or it is empty.
        """
        with self._stream(url, {"Range": f"bytes=0-{first_bytes - 1}"}) as response:
            status = response.status_code
            if status == 416 and response.headers.get("Content-Range", "bytes */0").strip() == "bytes */0":
                raise DeliveryError(f"{shown(url)} is an empty file")
            if status not in (200, 206):
                raise self._refusal(response, url, 0)
            remote = RemoteFile(url=url, bytes=_total_bytes(response, url, 0), validator=_validator(response.headers), ranges=status == 206)
            wanted, data = min(first_bytes, remote.bytes), bytearray()
            for chunk in self._chunks(response, url, 0):
                data += chunk
                if len(data) >= wanted and not remote.ranges:
                    break  # which closes the connection; read to its end it can be used again
        if len(data) < wanted:
            raise BrokenTransfer(f"{shown(url)} broke off at byte {len(data)} of {remote.bytes}")
        return remote, bytes(data[:wanted])

    def read(self, remote: RemoteFile, start: int, end: int) -> Generator[bytes, None, None]:
        """Yield the bytes of a file from ``start`` on, as they come; to be closed by the caller.

        It may end before ``end``, where a server sends less than was asked for.

        Raises:
            BrokenTransfer: when the transfer breaks off, stalls or is refused.
            FileChanged: when the server has another file there now.
        """
        asked = {"Range": f"bytes={start}-{end - 1}"} if remote.ranges else {}
        with self._stream(remote.url, asked) as response:
            if response.status_code == 416:
                raise FileChanged(f"{shown(remote.url)} has changed: it has no byte {start} any more")
            if response.status_code not in (200, 206):
                raise self._refusal(response, remote.url, start)
            total_bytes, validator = _total_bytes(response, remote.url, start), _validator(response.headers)
            if total_bytes != remote.bytes or validator != remote.validator:
                raise FileChanged(
                    f"{shown(remote.url)} has changed since its download began: {remote.bytes} bytes {remote.validator} wanted, "
                    f"got {total_bytes} bytes {validator}"
                )
            if remote.ranges and response.status_code == 200:
                raise BrokenTransfer(f"{shown(remote.url)} sends the whole file where bytes from {start} on were wanted")
            at = start if response.status_code == 206 else 0
            for chunk in self._chunks(response, remote.url, at):
                if at > end:
                    return  # read to the very end, and no further, the connection can be used again
                wanted = chunk[max(0, start - at) : end - at]
                at += len(chunk)
                if wanted:
                    yield wanted

    def small(self, url: str, max_bytes: int) -> bytes | None:
        """Return a small file, or None when there is none.

        Raises:
            DeliveryError: when it is too large, or the server cannot be asked.
        """
        with self._stream(url, {}) as response:
            if response.status_code in (404, 410):
                return None
            if response.status_code != 200:
                raise self._refusal(response, url, 0)
            data = bytearray()
            for chunk in self._chunks(response, url, 0):
                data += chunk
                if len(data) > max_bytes:
                    raise DeliveryError(f"{shown(url)} has more than {max_bytes} bytes")
        return bytes(data)

    def close(self) -> None:
        """Break off every transfer; what reads one is told so."""
        with self._lock:
            self._closed = True
            for sock in self._sockets:
                _break_off(sock)
        self._client.close()

    def _opened(self, sock: socket.socket) -> None:
        """Note a connection, so that ``close`` can break it off."""
        with self._lock:
            self._sockets.add(sock)
            if self._closed:
                _break_off(sock)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Follow what goes on below httpx."""
        if event.endswith("connect_tcp.complete"):
            self._opened(info["return_value"].get_extra_info("socket"))

    @contextmanager
    def _stream(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Ask, and translate httpx's errors."""
        if self._closed:
            raise DeliveryError(f"the connection to {shown(url)} is closed")
        try:
            with self._client.stream("GET", url, headers=headers, extensions={"trace": self._trace}) as response:
                yield response
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ValueError(f"an http or https address wanted, got {shown(url)}: {error}") from error
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed by another thread
            if isinstance(error, RuntimeError) and not self._closed:
                raise
            failure = UnknownHost if _of_name(error) else BrokenTransfer
            raise failure(f"cannot reach {shown(url)}: {str(error) or type(error).__name__}") from error

    @staticmethod
    def _chunks(response: httpx.Response, url: str, start: int) -> Iterator[bytes]:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DeliveryError(
                f"{shown(url)} is sent compressed ({response.headers['Content-Encoding']}), though it was asked for as it is"
            )
        got = 0
        try:
            for chunk in response.iter_raw():
                got += len(chunk)
                yield chunk
        except httpx.TimeoutException as error:
            raise BrokenTransfer(f"{shown(url)} stalled at byte {start + got}") from error
        except httpx.HTTPError as error:
            raise BrokenTransfer(f"{shown(url)} broke off at byte {start + got}: {error}") from error

    @staticmethod
    def _refusal(response: httpx.Response, url: str, start: int) -> DeliveryError:
        """Return the error for a status that is no success."""
        said = f"{shown(url)} answers {response.status_code} {response.reason_phrase}".rstrip() + (f" at byte {start}" if start else "")
        passing = response.status_code >= 500 or response.status_code in (408, 429)
        return BrokenTransfer(said, retry_after_s=_retry_after_s(response.headers)) if passing or start else DeliveryError(said)


def _break_off(sock: socket.socket) -> None:
    with suppress(OSError):  # the other end may have closed it already
        sock.shutdown(socket.SHUT_RDWR)


def _of_name(error: BaseException | None) -> bool:
    """Say whether it was looking up a name, or proving it, that failed."""
    while error is not None:
        if isinstance(error, socket.gaierror | ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _retry_after_s(headers: httpx.Headers) -> float:
    """Return for how many seconds the server wants to be left alone; it gives a number or a date."""
    said = headers.get("Retry-After", "").strip()
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):  # as its documentation and its past have it
        return 0.0


def _validator(headers: httpx.Headers) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _total_bytes(response: httpx.Response, url: str, start: int) -> int:
    """Return the length of the whole file, checking that a part begins where it should."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != start:
            raise DeliveryError(f"{shown(url)} does not say which bytes it sends: Content-Range {response.headers.get('Content-Range')}")
        return int(found[3])
    length = response.headers.get("Content-Length", "")
    if not length.isdigit():
        raise DeliveryError(f"{shown(url)} does not say how long the file is: neither Range nor Content-Length")
    return int(length)
