"""Pages: the dashboard and the description of the interface, each put together from its files into one that loads nothing from elsewhere.

Their policy lets in the very scripts and styles put in here and no others, so not even a mistake in them could run a stranger's.
"""

import base64
import hashlib
from importlib.resources import files
from typing import NamedTuple


class Page(NamedTuple):
    """A page, and the Content-Security-Policy it is sent with."""

    html: bytes
    policy: str


def _file(name: str) -> str:
    return files("nmoe.node.http").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page(name: str) -> Page:
    style, script = _file("look.css") + _file(f"{name}.css"), _file(f"{name}.js")
    html = _file(f"{name}.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; img-src data:"
    return Page(html.encode(), f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


DASHBOARD = _page("dashboard")
DOCUMENT = _page("document")
