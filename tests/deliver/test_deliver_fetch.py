"""Faults of the network and of the cache: mended where they can be, else one clear error where the weight is waited for; never a hang."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import save
from torch import nn

from nmoe.core.errors import BadFile, NmoeError
from nmoe.deliver.arriving import build_empty
from nmoe.deliver.delivery import delivery_of
from nmoe.deliver.http import DeliveryError, FileChanged
from nmoe.deliver.pack import pack
from nmoe.deliver.stream import stream_model

NAME = "model.safetensors"
LAYERS, WIDTH = 6, 300  # 360 kB a layer, so that a window is less than a layer and a half
X = torch.linspace(-1, 1, WIDTH).reshape(1, WIDTH)


def build():
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def make():
    generator = torch.Generator().manual_seed(1)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
    return model


WHOLE = make()
FILE, WANTED = save(WHOLE.state_dict()), WHOLE(X).detach()
LAYER_BYTES = 4 * WIDTH * WIDTH
MIDDLE = len(FILE) - 3 * LAYER_BYTES + 1000  # in the middle of layer 3


@pytest.fixture(name="server")
def one_server(faulty_server):
    server = faulty_server()
    server.files[NAME] = FILE
    return server


@pytest.fixture(name="stream")
def streaming(server, tmp_path):
    """Give ``stream_model`` for this server and a private cache; deliveries are closed at the end."""
    models = []

    def stream(**options):
        options = {"cache_dir": tmp_path / "cache", "stall_timeout_s": 0.3, "deadline_s": 0.6, "connections": 1, "card": False, **options}
        models.append(stream_model(build, f"{server.url}/{NAME}", **options))
        return models[-1]

    yield stream
    for model in models:
        delivery_of(model).close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("nmoe-")] == []


def starts(server):
    return [asked[0] for _, asked in server.requests if asked]


def test_a_broken_connection_is_taken_up_where_it_broke(server, stream):
    server.breaks = [MIDDLE, MIDDLE, MIDDLE + 5000]
    assert torch.equal(stream()(X), WANTED)
    assert starts(server).count(MIDDLE) == 2, "once more at the same place, then on"
    assert MIDDLE + 5000 in starts(server)
    assert server.sent_bytes <= len(FILE) + 65536


def test_a_stall_in_the_middle_of_a_layer_is_taken_up(server, stream):
    server.stalls = [MIDDLE]
    model = stream()
    assert torch.equal(model(X), WANTED)
    assert MIDDLE in starts(server)


def test_a_stall_for_ever_is_an_error_that_names_address_and_place(server, stream):
    server.stalls = [MIDDLE] * 50
    model = stream()
    began_s = time.monotonic()
    for _ in range(2):
        with pytest.raises(DeliveryError, match=rf"gave up on {server.url}/{NAME} at byte {MIDDLE}: nothing came for .* stalled"):
            model(X)
    assert time.monotonic() - began_s < 10
    assert torch.equal(model[0](X), WHOLE[0](X)), "what has arrived is there"
    with pytest.raises(DeliveryError, match="gave up"):
        delivery_of(model).wait()


def test_a_refusal_that_passes_is_waited_out_and_one_that_does_not_is_an_error(server, stream, tmp_path):
    server.breaks, server.refusals = [MIDDLE], [503, 404]
    assert torch.equal(stream()(X), WANTED)
    server.breaks, server.refusals = [MIDDLE], [404] * 100
    with pytest.raises(DeliveryError, match=r"gave up on .* answers 404"):
        stream(cache_dir=tmp_path / "other")(X)


def test_no_such_file_and_no_such_server_are_said_at_once(server, stream):
    del server.files[NAME]
    with pytest.raises(DeliveryError, match=f"{server.url}/{NAME} answers 404"):
        stream()
    server.close()
    with pytest.raises(DeliveryError, match="cannot reach"):
        stream()


@pytest.mark.parametrize("cut", [3, 9, 500, len(FILE) - 1])
def test_a_truncated_file_is_refused_before_it_is_fetched(server, stream, cut):
    server.files[NAME] = FILE[:cut]
    with pytest.raises(BadFile, match=r"truncated|not a safetensors"):
        stream()
    assert len(server.requests) == 1


def test_a_server_without_range_sends_the_file_once_in_its_order(server, stream):
    server.ranges = False
    model = stream(connections=3)
    assert torch.equal(model(X), WANTED)
    delivery_of(model).wait()
    assert "does not honour Range: one sequential download" in delivery_of(model).notices[0]
    assert len(server.requests) == 2, "the header, then everything"


def test_a_server_without_range_is_read_again_when_it_breaks(server, stream):
    server.ranges, server.breaks = False, [MIDDLE] * 2  # the first request, for the header, may take one of them
    model = stream()
    assert torch.equal(model(X), WANTED)
    assert len(server.requests) in (3, 4)
    server.breaks = [MIDDLE] * 1000
    with pytest.raises(DeliveryError, match=f"at byte {MIDDLE}"):
        stream(cache_dir=delivery_of(model).paths[0].parent / "other")(X)


def test_a_changed_file_is_an_error_and_begins_anew_the_next_time(server, stream):
    server.holds, server.breaks = [MIDDLE], [MIDDLE + 10]
    model = stream()
    model[0](X)
    server.etag = "two"
    server.released.set()
    with pytest.raises(FileChanged, match=r'has changed since its download began.*"one".*"two"'):
        model(X)
    other = {name: 2 * tensor for name, tensor in WHOLE.state_dict().items()}
    server.files[NAME], server.breaks, server.sent_bytes = save(other), [], 0
    assert torch.equal(stream()(X), WANTED * 2**LAYERS)
    assert server.sent_bytes >= len(FILE), "nothing of the old one is used"


def test_without_a_version_nothing_kept_is_used(server, stream):
    server.etag, server.stalls = "", [MIDDLE] * 50
    with pytest.raises(DeliveryError, match="gave up"):
        stream()(X)
    server.stalls, server.sent_bytes = [], 0
    assert torch.equal(stream()(X), WANTED)
    assert server.sent_bytes >= len(FILE)


def test_a_wrong_byte_is_fetched_again_where_the_card_has_hashes(server, stream, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(FILE)
    card = pack(path, build_empty(build), X)
    server.wrong_bytes = [MIDDLE, MIDDLE]
    model = stream(card=card)
    assert torch.equal(model(X), WANTED)
    assert len(delivery_of(model).notices) == 2
    assert "tensor 3.weight" in delivery_of(model).notices[0]
    server.wrong_bytes = [MIDDLE] * 100
    with pytest.raises(BadFile, match=r"tensor 3.weight .* fetched 3 times"):
        stream(card=card, cache_dir=tmp_path / "other")(X)


def test_a_wrong_file_gives_no_result_where_its_hash_is_known(server, stream, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(FILE)
    sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    server.wrong_bytes = [MIDDLE]
    with pytest.raises(BadFile, match=f"{sha256} wanted"):
        stream(sha256=sha256)(X)
    assert torch.equal(stream(sha256=sha256)(X), WANTED), "thrown away, and fetched anew"
    with pytest.raises(BadFile, match="its card says"):
        stream(sha256="0" * 64, card=pack(path), cache_dir=tmp_path / "other")


def test_a_card_of_another_file_is_refused(server, stream, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(save({name: tensor.half() for name, tensor in WHOLE.state_dict().items()}))
    with pytest.raises(BadFile, match="card of another"):
        stream(card=pack(path))


KILLED = """
import sys, torch
from pathlib import Path
from torch import nn
from nmoe.deliver.stream import stream_model
build = lambda: nn.Sequential(*(nn.Linear({width}, {width}, bias=False) for _ in range({layers})))
model = stream_model(build, sys.argv[1], cache_dir=Path(sys.argv[2]), card=False, connections=1)
model[:3](torch.zeros(1, {width}))
print("three layers", flush=True)
model[3](torch.zeros(1, {width}))
"""


def kill_in_the_middle(server, folder):
    """Stream in another process and kill it when half of the file has come."""
    server.holds = [MIDDLE]
    code = KILLED.format(width=WIDTH, layers=LAYERS)
    with subprocess.Popen([sys.executable, "-c", code, f"{server.url}/{NAME}", str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "three layers\n"
        os.kill(process.pid, signal.SIGKILL)
    server.released.set()
    server.requests.clear()
    server.sent_bytes = 0


def test_after_a_kill_nothing_that_was_there_is_fetched_again(server, stream, tmp_path):
    kill_in_the_middle(server, tmp_path / "cache")
    model = stream()
    assert torch.equal(model(X), WANTED)
    delivery_of(model).wait()
    progress = delivery_of(model).progress()
    assert min(start for start in starts(server) if start) >= len(FILE) - 3 * LAYER_BYTES
    assert server.sent_bytes <= 3 * LAYER_BYTES + 65536
    assert progress.fetched_bytes == 3 * LAYER_BYTES


def test_a_damaged_piece_in_the_cache_is_fetched_again(server, stream, tmp_path):
    kill_in_the_middle(server, tmp_path / "cache")
    part = next((tmp_path / "cache").rglob("part"))
    data = bytearray(part.read_bytes())
    data[len(FILE) - 5 * LAYER_BYTES + 7] ^= 1  # in layer 1
    part.write_bytes(data)
    model = stream()
    assert torch.equal(model(X), WANTED)
    assert "in the cache are damaged: fetched again" in delivery_of(model).notices[0]
    delivery_of(model).wait()
    assert delivery_of(model).progress().fetched_bytes == 4 * LAYER_BYTES


def test_two_sources_share_the_work(server, stream, faulty_server):
    other = faulty_server()
    other.files[NAME], other.etag = FILE, "its own"
    server.holds = [len(FILE) - layer * LAYER_BYTES for layer in range(1, LAYERS)]  # the first source gives one layer, and no more for now
    model = stream(sources=[f"{other.url}/{NAME}"], stall_timeout_s=20.0, deadline_s=20.0)
    until_s = time.monotonic() + 20
    while other.sent_bytes < 3 * LAYER_BYTES and time.monotonic() < until_s:
        time.sleep(0.01)
    server.released.set()
    assert torch.equal(model(X), WANTED)
    assert other.sent_bytes >= 3 * LAYER_BYTES
    assert server.sent_bytes >= LAYER_BYTES
    assert delivery_of(model).notices == []


@pytest.mark.parametrize("fault", ["gone", "other file", "no range", "wrong bytes"])
def test_a_source_that_fails_is_dropped_and_said(server, stream, faulty_server, tmp_path, fault):
    other, card = faulty_server(), False
    other.files[NAME] = FILE
    if fault == "gone":
        other.close()
    elif fault == "other file":
        other.files[NAME] = save({name: tensor[:-1] for name, tensor in WHOLE.state_dict().items()})
    elif fault == "no range":
        other.ranges = False
    else:
        path = tmp_path / NAME
        path.write_bytes(FILE)
        card = pack(path)
        other.wrong_bytes = [len(FILE) - layer * LAYER_BYTES + 9 for layer in range(1, LAYERS + 1)] * 3
    server.holds = [len(FILE) - layer * LAYER_BYTES + 5 for layer in range(1, LAYERS)]  # so that the other is asked; until it is dropped
    model = stream(sources=[f"{other.url}/{NAME}"], card=card, stall_timeout_s=20.0, deadline_s=20.0)
    until_s = time.monotonic() + 20
    while not any("is dropped" in notice for notice in delivery_of(model).notices) and time.monotonic() < until_s:
        time.sleep(0.01)
    server.released.set()
    assert torch.equal(model(X), WANTED)
    assert any(f"{other.url}/{NAME} is dropped" in notice for notice in delivery_of(model).notices)


def test_another_source_is_used_when_the_first_is_dead(server, stream, faulty_server):
    other = faulty_server()
    other.files[NAME] = FILE
    server.close()
    model = stream(sources=[f"{other.url}/{NAME}"])
    assert torch.equal(model(X), WANTED)
    assert "a source is dropped: cannot reach" in delivery_of(model).notices[0]


def test_a_source_that_honours_range_is_preferred(server, stream, faulty_server):
    other = faulty_server()
    other.files[NAME], server.ranges = FILE, False
    model = stream(sources=[f"{other.url}/{NAME}"])
    assert torch.equal(model(X), WANTED)
    assert len(server.requests) == 1
    assert f"{server.url}/{NAME} does not honour Range" in delivery_of(model).notices[0]


def test_the_rate_is_bounded(stream):
    began_s = time.monotonic()
    model = stream(max_bytes_per_s=4e6)
    assert torch.equal(model(X), WANTED)
    assert time.monotonic() - began_s >= (len(FILE) - LAYER_BYTES) / 4e6


def test_closing_wakes_whoever_waits(server, stream):
    server.holds = [MIDDLE]
    model = stream(stall_timeout_s=20.0, deadline_s=20.0)
    failures = []

    def call():
        try:
            model(X)
        except NmoeError as error:
            failures.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    model[0](X)
    began_s = time.monotonic()
    delivery_of(model).close()
    for caller in callers:
        caller.join(timeout=5)
    assert [text[:23] for text in failures] == ["the delivery was closed"] * 2
    assert time.monotonic() - began_s < 5


def test_two_models_of_one_file_in_one_process_share_the_download(server, stream):
    model = stream()
    other = stream(deadline_s=20.0)  # waits for the first to end
    assert torch.equal(model(X), other(X))
    assert server.sent_bytes <= len(FILE) + 2 * 65536
