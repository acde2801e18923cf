"""A network that is cut in two: both halves keep answering, and heal when it is whole again. Network namespaces, a bridge in each half."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

TAG = f"nm{os.getpid() % 10000}"
PORT = 7447
ASKER = """
import json, sys, time, torch
from nmoe.core.errors import MeshError
from nmoe.node import connect
place, seed, node = sys.argv[1:]
images = torch.randint(0, 256, (4, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
with connect("cut", [seed], listen=place, insecure=True) as client:
    client.wait_for([node], timeout_s=20)
    while True:
        began_s = time.monotonic()
        try:
            reply = client.infer(node, images, deadline_s=0.5)
            said = {"experts": sorted({reply.names[one] for one in reply.experts.flatten().tolist() if one >= 0})}
            view = client.status(node).view
            said |= {"up": [link.peer for link in view.links if link.state == "up"]}
        except MeshError as error:
            said = {"error": str(error)}
        print(json.dumps(said | {"seconds": time.monotonic() - began_s}), flush=True)
        time.sleep(0.02)
"""


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


def address(number: int) -> str:
    return f"10.77.{os.getpid() % 200}.{number + 1}"


@pytest.fixture
def halves() -> Iterator[Callable[[bool], None]]:
    """Four namespaces, two at a bridge each, the bridges joined by a trunk that the returned function cuts or mends."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    with ExitStack() as stack:

        def make(words: list[str], undo: list[str]) -> None:
            run(*words)
            stack.callback(subprocess.run, undo, check=False, capture_output=True)

        try:
            make(["ip", "netns", "add", f"{TAG}x"], ["ip", "netns", "del", f"{TAG}x"])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system makes no network namespaces: {error.stderr.decode().strip()}")
        inside = ["ip", "-n", f"{TAG}x"]  # the bridges live in a namespace too: nothing of this machine's is touched
        for half in "ab":
            run(*inside, "link", "add", f"br{half}", "type", "bridge")
            run(*inside, "link", "set", f"br{half}", "up")
        run(*inside, "link", "add", "trunk0", "type", "veth", "peer", "name", "trunk1")
        run(*inside, "link", "set", "trunk0", "master", "bra", "up")
        run(*inside, "link", "set", "trunk1", "master", "brb", "up")
        for number in range(4):
            name = f"{TAG}n{number}"
            make(["ip", "netns", "add", name], ["ip", "netns", "del", name])
            run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", f"{TAG}x")
            run("ip", "-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run(*inside, "link", "set", f"port{number}", "master", "bra" if number < 2 else "brb", "up")
        yield lambda whole: run(*inside, "link", "set", "trunk0", "up" if whole else "down")


class Asker:
    """A client in a namespace that asks its node again and again."""

    def __init__(self, number: int, stack: ExitStack) -> None:
        node, place = f"node-{number}", address(number)
        words = [f"tcp/{place}:{PORT + 1}", f"tcp/{place}:{PORT}", node]
        self.process = stack.enter_context(
            subprocess.Popen(
                ["ip", "netns", "exec", f"{TAG}n{number}", sys.executable, "-c", ASKER, *words], stdout=subprocess.PIPE, text=True
            )
        )
        self.said: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        stack.callback(self._thread.join)
        stack.callback(self.process.kill)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def sees(self, up: list[str]) -> bool:
        """Say whether its node can ask just these now."""
        return any(one.get("up") == up for one in self.said[-1:])


def test_both_halves_of_a_cut_mesh_answer_and_heal(mesh: Any, halves: Callable[[bool], None], eventually: Any, tmp_path: Path) -> None:
    names = [f"node-{number}" for number in range(4)]
    with ExitStack() as stack:
        for number, folder in enumerate(mesh.folders):
            words = [sys.executable, "-m", "nmoe", "node", str(folder), "--mesh", "cut", "--listen", f"tcp/{address(number)}:{PORT}"]
            words += ["--connect", f"tcp/{address(0)}:{PORT}", "--connect", f"tcp/{address(2)}:{PORT}", "--insecure", "--exit-with-parent"]
            process = stack.enter_context(
                subprocess.Popen(
                    ["ip", "netns", "exec", f"{TAG}n{number}", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.send_signal, signal.SIGINT)
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"ready node-{number} ")
        askers = [Asker(0, stack), Asker(2, stack)]

        def see(wanted: list[list[str]], *, within_s: float = 15.0) -> float:
            began_s = time.monotonic()
            for asker, up in zip(askers, wanted, strict=True):
                eventually(lambda asker=asker, up=up: asker.sees(up), within_s=within_s)
            return time.monotonic() - began_s

        whole = [[name for name in names if name != own] for own in ("node-0", "node-2")]
        see(whole)
        halves(False)
        cut_s = see([["node-1"], ["node-3"]])
        seen = [len(asker.said) for asker in askers]
        time.sleep(2)
        for asker, first, near in zip(askers, seen, ({"node-0", "node-1"}, {"node-2", "node-3"}), strict=True):
            apart = asker.said[first:]
            assert len(apart) > 20
            assert all(set(one["experts"]) <= near and one["seconds"] < 0.5 for one in apart)
        halves(True)
        healed_s = see(whole, within_s=30)
        print(f"cut noticed within {cut_s:.1f} s, healed within {healed_s:.1f} s")
        for asker in askers:
            assert [one for one in asker.said if "error" in one] == [], "both halves answered all the time"
        assert cut_s <= 2.0
        assert healed_s <= 5.0
