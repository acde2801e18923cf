"""The dashboard in headless Chromium: wide and narrow, light and dark, hostile names, and a node that goes away."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmoe.node.view import ExpertView, RefusedView

sys.path.insert(0, str(Path(__file__).parent))
from chromium import EXECUTABLE, Chromium

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
    assert all(address.startswith(url) or address.startswith("data:") for address in page.requested)
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
    assert page.run("document.title") == "node-0 – nmoe"
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
    assert all(address.startswith(url) or address.startswith("data:") for address in page.requested)
