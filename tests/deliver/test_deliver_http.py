"""The door to HTTP: what servers say is checked, and rates are bounded."""

import threading
import time

import pytest

from nmoe.deliver.http import BrokenTransfer, DeliveryError, Pace, Source, UnknownHost
from nmoe.deliver.remote import check_url, file_name

DATA = bytes(range(256)) * 1000


@pytest.fixture(name="source")
def one_source():
    source = Source(headers={}, stall_timeout_s=5.0)
    yield source
    source.close()


@pytest.fixture(name="server")
def one_server(faulty_server):
    server = faulty_server()
    server.files["f"] = DATA
    return server


@pytest.mark.parametrize("ranges", [True, False])
def test_ranges_are_read_whether_the_server_knows_them_or_not(source, server, ranges):
    server.ranges = ranges
    remote, head = source.open(f"{server.url}/f", 1000)
    assert (remote.bytes, remote.validator, remote.ranges, head) == (len(DATA), '"one"', ranges, DATA[:1000])
    assert b"".join(source.read(remote, 300, 90_001)) == DATA[300:90_001]
    assert b"".join(source.read(remote, len(DATA) - 1, len(DATA))) == DATA[-1:]


def test_more_than_the_file_is_asked_for_at_first(source, server):
    assert source.open(f"{server.url}/f", 1 << 20)[1] == DATA


def test_small_files_are_whole_or_absent_or_too_large(source, server):
    assert source.small(f"{server.url}/f", len(DATA)) == DATA
    assert source.small(f"{server.url}/g", 10) is None
    with pytest.raises(DeliveryError, match="more than 9 bytes"):
        source.small(f"{server.url}/f", 9)


def test_a_closed_source_says_so(source, server):
    server.holds = [50_000]
    remote, _ = source.open(f"{server.url}/f", 1000)
    chunks = source.read(remote, 1000, len(DATA))
    next(chunks)
    source.close()
    with pytest.raises((BrokenTransfer, DeliveryError)):
        list(chunks)
    with pytest.raises(DeliveryError, match="closed"):
        source.open(f"{server.url}/f", 10)


def test_the_pace_lets_no_more_bytes_pass_than_its_rate():
    now_s = 0.0
    pace = Pace(1000.0, clock=lambda: now_s)
    passed = 0
    for num_bytes in (100, 3000, 1, 500, 64, 64, 900):
        passed += num_bytes
        now_s += pace.book(num_bytes)
        assert passed <= 1000 * now_s + 1e-6
    assert now_s == pytest.approx(passed / 1000)
    now_s += 100.0  # idle time is not saved up
    assert pace.book(1000) == pytest.approx(1.0)
    assert Pace(None).book(10**9) == 0


@pytest.mark.parametrize("url", ["", "f", "ftp://h/f", "http:///f", "file:///f", "http://[::1/f", "http://h:x/f"])
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match="http or https"):
        check_url(url)


def test_a_file_has_the_last_name_of_its_address():
    assert file_name("https://h/a/b%20c.safetensors?x=1") == "b c.safetensors"


def test_closing_breaks_off_a_request_that_waits_for_headers(source, server):
    remote, _ = source.open(f"{server.url}/f", 1000)
    server.silent, reasons = True, []

    def read():
        try:
            list(source.read(remote, 2000, 3000))
        except DeliveryError as error:
            reasons.append(str(error))

    reader = threading.Thread(target=read)
    began_s = time.monotonic()
    reader.start()
    assert server.silent_asked.wait(4)
    source.close()
    reader.join(4)
    assert not reader.is_alive()
    assert time.monotonic() - began_s < 4, "the stall timeout is 5 s"
    assert "cannot reach" in reasons[0]


def test_empty_files_are_called_so(source, server):
    server.files["g"] = b""
    with pytest.raises(DeliveryError, match=r"/g is an empty file"):
        source.open(f"{server.url}/g", 10)


def test_a_refusal_says_when_to_come_again(source, server):
    server.refusals, server.refuses_beginnings, server.refusal_headers = [503, 503], True, {"Retry-After": "7"}
    with pytest.raises(BrokenTransfer, match="answers 503") as refused:
        source.open(f"{server.url}/f", 10)
    assert refused.value.retry_after_s == 7
    server.refusal_headers = {"Retry-After": "soon"}
    with pytest.raises(BrokenTransfer) as refused:
        source.open(f"{server.url}/f", 10)
    assert refused.value.retry_after_s == 0


def test_a_host_without_an_address_is_told_from_a_broken_transfer(source):
    with pytest.raises(UnknownHost):
        source.open("http://no-such-host.invalid/f", 10)
