"""HTTP: what every server of ours shares: refusals, bodies, routes and their description, counts, and a thread to answer in."""

from nmoe.http.app import Counted, add_document, add_refusals, add_route, new_app, tell_unknown
from nmoe.http.body import decode_json, read_body, read_json
from nmoe.http.metrics import RequestMetrics
from nmoe.http.rejected import Rejected, quoted
from nmoe.http.serve import serve_until_told
from nmoe.http.thread import HEADER_S, HttpThread, ServerError, beside, listen

__all__ = [
    "HEADER_S",
    "Counted",
    "HttpThread",
    "Rejected",
    "RequestMetrics",
    "ServerError",
    "add_document",
    "add_refusals",
    "add_route",
    "beside",
    "decode_json",
    "listen",
    "new_app",
    "quoted",
    "read_body",
    "read_json",
    "serve_until_told",
    "tell_unknown",
]
