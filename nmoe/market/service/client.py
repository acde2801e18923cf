"""Client: asks a market for a price, bids, and waits for the outcome; what gets lost on the way is sent again, and counts once."""

import math
import secrets
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from nmoe.core.errors import NmoeError
from nmoe.market.service.receipt import Receipt

AGAIN = frozenset({502, 503, 504})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
LOOK_S = 0.2  # between two looks for an outcome, once the epoch should be over


class MarketRefusal(NmoeError):
    """A market that does not answer, or not what it was asked for.

    Attributes:
        status: HTTP status; None where no answer came.
    """

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class MarketClient:
    """A connection to one market. Close it, or use it in a ``with`` statement.

    Args:
        url: such as ``http://127.0.0.1:8090``.
        timeout_s: for each try, above 0.
        attempts: tries of a request, at least 1; between two it waits 0.1, 0.2, 0.4 ... s, or as long as the market says, at most 5 s.
        sleep: waits some seconds.
        transport: httpx's, for tests.

    Raises:
        ValueError: when a number is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        attempts: int = 5,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not (0 < timeout_s < math.inf) or attempts < 1:
            raise ValueError(f"a timeout above 0 s and at least 1 attempt wanted, got {timeout_s:g} and {attempts}")
        self._attempts, self._sleep, self._url = attempts, sleep, url
        self._client = httpx.Client(base_url=url, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def quote(self, **need: float | str) -> dict[str, Any]:
        """Ask what a need would take of the edge, and what that cost the last time.

        Args:
            need: ``demand``, or ``workload, accuracy, latency_s, tasks, device_flops, uplink_bps``.

        Raises:
            MarketRefusal: as all methods, when no answer comes or the market refuses.
        """
        return self._asked("POST", "/quotes", need)

    def bid(self, user: str, bid: float, *, epoch: int | None = None, key: str | None = None, **need: float | str) -> Receipt:
        """Bid, and return the receipt once the bid is on the market's disk.

        Args:
            user: who bids.
            bid: offered in all.
            epoch: where it is to count; the one that is open now if not given. Named in every try, so that none counts in the next one.
            key: what a later call must repeat to be the same bid; random if not given.
            need: as of ``quote``.
        """
        number = self.current()["epoch"] if epoch is None else epoch
        headers = {"idempotency-key": secrets.token_urlsafe(16) if key is None else key}
        told = self._asked("POST", "/bids", {"id": user, "bid": bid, "epoch": number, **need}, headers)
        try:
            return msgspec.convert(told, Receipt)
        except msgspec.ValidationError as error:
            raise MarketRefusal(f"{self._url} is no market: its receipt is none, {error}") from error

    def current(self) -> dict[str, Any]:
        """Return the open epoch: note its commitment to verify the outcome by."""
        return self._asked("GET", "/epochs/current")

    def epoch(self, number: int) -> dict[str, Any]:
        """Return an epoch; its whole record once it is cleared."""
        return self._asked("GET", f"/epochs/{number}")

    def close_epoch(self, number: int, token: str) -> None:
        """End an epoch, as the operator, and return when it is cleared; one that is over stays so."""
        self._asked("POST", f"/epochs/{number}/close", headers={"authorization": f"Bearer {token}"})

    def own_bid(self, receipt: Receipt) -> dict[str, Any]:
        """Return a bid of one's own and, once its epoch is cleared, what became of it."""
        return self._asked("GET", f"/bids/{receipt.epoch}/{receipt.id}", headers={"x-nmoe-receipt": receipt.receipt})

    def outcome(self, receipt: Receipt, *, within_s: float) -> dict[str, Any]:
        """Wait until a bid's epoch is cleared, and return what became of it.

        Args:
            receipt: of the bid.
            within_s: how long to wait, at least 0.

        Raises:
            MarketRefusal: when it is not cleared by then.
        """
        until_s = time.monotonic() + within_s
        while (told := self.own_bid(receipt))["state"] != "closed":
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise MarketRefusal(f"epoch {receipt.epoch} of {self._url} was not cleared within {within_s:g} s")
            self._sleep(min(max(LOOK_S, told["closes_in_s"] or 0.0), left_s))
        result: dict[str, Any] | None = told["result"]
        if result is None:
            raise MarketRefusal(f"epoch {receipt.epoch} of {self._url} has no outcome: GET /epochs/{receipt.epoch} says why")
        return result

    def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Ask, again and again where that may help."""
        wait_s = FIRST_WAIT_S
        for attempt in range(1, self._attempts + 1):
            last = attempt == self._attempts
            told_s = 0.0
            try:
                answer = self._client.request(method, path, json=body, headers=headers)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                if last or not isinstance(error, httpx.TransportError) or isinstance(error, httpx.UnsupportedProtocol):
                    raise MarketRefusal(f"no answer from {self._url} in {attempt} tries: {error or type(error).__name__}") from error
            else:
                if answer.status_code not in AGAIN or last:
                    return self._read(answer)
                told_s = _seconds(answer.headers.get("retry-after", ""))
            self._sleep(min(max(wait_s, told_s), LONGEST_WAIT_S))
            wait_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            told = msgspec.json.decode(answer.content, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MarketRefusal(f"{self._url} is no market: status {answer.status_code}", status=answer.status_code) from error
        if answer.status_code != httpx.codes.OK:
            raise MarketRefusal(f"{told.get('error', 'no reason')} (status {answer.status_code})", status=answer.status_code)
        return told


def _seconds(told: str) -> float:
    """Return what a Retry-After says; 0 for a date, which markets do not send."""
    return float(told) if told.isascii() and told.isdecimal() and len(told) < 10 else 0.0
