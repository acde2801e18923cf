"""The dashboard in headless Chromium: wide and narrow, light and dark, hostile names, and a node that goes away."""

import base64
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nmoe.node.view import ExpertView, RefusedView

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """A headless Chromium with one page, driven over a pipe by its DevTools protocol (JSON, each message ended by a zero byte).

    It remembers which addresses the page asked for and what went wrong on its console.
    """

    def __init__(self, profile: Path) -> None:
        assert EXECUTABLE is not None
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
        ]
        command = [EXECUTABLE, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        move = f"exec 3<&{from_us} 4>&{to_us}; exec {shlex.join(command)}"
        self.process = subprocess.Popen(
            ["bash", "-c", move], pass_fds=(from_us, to_us), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(from_us)
        os.close(to_us)
        self._out, self._in = to_browser, from_browser
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self.requested: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == number:
                assert "error" not in heard, heard["error"]
                return heard["result"]

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser is gone"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        given = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(given["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(given["exceptionDetails"]))
            case "Log.entryAdded" if given["entry"]["level"] in {"error", "warning"}:
                self.errors.append(f"{given['entry']['text']} {given['entry'].get('url')}")
            case "Runtime.consoleAPICalled" if given["type"] in {"error", "warning", "assert"}:
                self.errors.append(str(given["args"]))
        return message

    def open(self, url: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, *, within_s: float = 20.0) -> None:
        until_s = time.monotonic() + within_s
        while not self.run(script):
            assert time.monotonic() < until_s, f"never true: {script}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._out)
        os.close(self._in)


pytestmark = [pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine"), pytest.mark.timeout(120)]
HOSTILE = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"
READY = "document.querySelectorAll('#graph g').length >= 4 && document.querySelectorAll('.tile svg polyline').length >= 3"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture
def page(browser) -> Chromium:
    browser.requested.clear()
    browser.errors.clear()
    return browser


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_shows_the_mesh(page, serve, service, tmp_path, width, dark):
    url = f"http://{serve(service).address}"
    page.open(f"{url}/", width=width, dark=dark)
    page.wait(READY)
    text = page.run("document.body.innerText")
    for words in ("node-0", "Takes requests", "another extractor", "4.10", "Images and weights never leave", "float16", "5210"):
        assert words in text
    assert page.run("document.querySelectorAll('tbody tr').length") == 3
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.run(f"[...document.querySelectorAll('main *')].every((one) => one.getBoundingClientRect().right <= {width})")
    assert page.errors == []
    assert page.requested
    assert all(address.startswith((url, "data:")) for address in page.requested)
    page.screenshot(tmp_path / "page.png")


def test_a_node_is_chosen_by_keyboard(page, serve, service):
    page.open(f"http://{serve(service).address}/", width=1280)
    page.wait(READY)
    page.run("document.querySelector('[data-node=node-2]').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r" if kind == "keyDown" else ""
        )
    page.wait("document.querySelector('#detail h2').textContent === 'node-2'")
    page.run("new Promise((done) => setTimeout(done, 1500))")
    assert page.run("document.activeElement.dataset.node") == "node-2", "and keeps the focus when the page draws anew"
    assert page.run("document.querySelector('[data-node=node-2]').getAttribute('aria-pressed')") == "true"


def test_hostile_names_stay_text(page, serve, service, fakes):
    link = fakes.link(HOSTILE, state=HOSTILE, failed={HOSTILE: 3}, format=HOSTILE, experts=(HOSTILE,))
    service.views = (
        fakes.view(
            mesh=HOSTILE,
            version=HOSTILE,
            bundle=HOSTILE,
            links=(link, fakes.link("node-1"), fakes.link("node-2")),
            experts=(ExpertView(expert=HOSTILE, nodes=(HOSTILE,), rows_chosen=5, rows_answered=3),),
            refusals=(RefusedView(who=HOSTILE, reason=HOSTILE, count=3, last_s=1.0),),
            refused={HOSTILE: 2},
            malformed={HOSTILE: 2},
            bytes_out={HOSTILE: 2},
        ),
        fakes.view(HOSTILE, links=()),
    )
    page.open(f"http://{serve(service).address}/", width=390)
    page.wait(READY)
    assert HOSTILE in page.run("document.body.textContent")
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("document.title") == "node-0 \u2013 nmoe"
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.errors == []


def test_the_page_says_when_the_node_is_gone(page, serve, service):
    server = serve(service)
    page.open(f"http://{server.address}/", width=1280)
    page.wait(READY)
    server.stop()
    page.wait("!document.getElementById('alarm').hidden")
    assert "has not answered" in page.run("document.getElementById('alarm').textContent")
    assert page.run("document.getElementById('state').textContent") == "Unreachable"


def test_fifty_nodes(page, serve, service, fakes):
    names = [f"node-{index}" for index in range(50)]
    service.views = tuple(fakes.view(name, links=tuple(fakes.link(other) for other in names if other != name)) for name in names)
    page.open(f"http://{serve(service).address}/", width=390)
    page.wait("document.querySelectorAll('#graph g').length === 50")
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.errors == []


def test_the_interface_page(page, serve, service):
    url = f"http://{serve(service).address}"
    page.open(f"{url}/docs", width=390)
    page.wait("document.querySelectorAll('details').length >= 16")
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert "deadline_ms" in page.run("document.body.innerText")
    assert page.errors == []
    assert all(address.startswith((url, "data:")) for address in page.requested)
