"""Interface: what each path of the HTTP server does, over a ``NodeService``."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import nmoe
from nmoe.http import Rejected, decode_json, quoted
from nmoe.node.http.answer import write_answer
from nmoe.node.http.inference import InferCall, read_call
from nmoe.node.http.intake import Intake, media_type
from nmoe.node.http.metrics import Metrics
from nmoe.node.http.pages import DASHBOARD, DOCUMENT, Page
from nmoe.node.messages import MAX_ROWS, InferReply, Refusal, RefusalCode
from nmoe.node.service import Learned, NodeService
from nmoe.node.trace import request_span

GRACE_S = 1.0  # after its deadline a request is told so even if the node does not
MESH_FRESH_S = 0.5  # the mesh is asked at most this often, however many look
_JSON, _RAW = "application/json", "application/octet-stream"
_CURL = "application/x-www-form-urlencoded"  # what curl -d says of any body
_STATUS = {
    RefusalCode.BUSY: 503,
    RefusalCode.LEAVING: 503,
    RefusalCode.BAD_SHAPE: 400,
    RefusalCode.FORBIDDEN: 403,
    RefusalCode.LATE: 504,
    RefusalCode.FAILED: 500,
}


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    labels: list[int]


_feedback = msgspec.json.Decoder(_Feedback)


class Api:
    """The paths of one node's server.

    Args:
        service: the node.
        intake: reads bodies.
        metrics: counts.
    """

    def __init__(self, service: NodeService, *, intake: Intake, metrics: Metrics) -> None:
        self._service = service
        self._intake = intake
        self._metrics = metrics
        self._card: Any = None
        self._version = ""
        self._mesh = b"[]"
        self._mesh_s = -MESH_FRESH_S
        self._mesh_lock = asyncio.Lock()

    async def dashboard(self, request: Request) -> Response:
        """The mesh as seen from this node, for people."""
        return _shown_page(DASHBOARD)

    async def document(self, request: Request) -> Response:
        """This interface, for people."""
        return _shown_page(DOCUMENT)

    async def metrics(self, request: Request) -> Response:
        """Counts and times for Prometheus."""
        return self._metrics.requests.response()

    async def server(self, request: Request) -> Response:
        """Server metadata."""
        extensions = ["binary_tensor_data", "model_configuration", "model_repository"]
        return _json({"name": "nmoe", "version": nmoe.__version__, "extensions": extensions})

    async def live(self, request: Request) -> Response:
        """Whether the node's threads are alive."""
        if not self._service.running:
            raise Rejected(503, "the node is not running")
        return _json({})

    async def ready(self, request: Request) -> Response:
        """Whether the node takes requests."""
        self._check_version(request)
        if not self._service.ready:
            raise Rejected(503, "the node is starting or leaving", {"retry-after": "1"})
        return _json({})

    async def model(self, request: Request) -> Response:
        """Model metadata."""
        version = self._check_version(request)
        inputs, outputs = self._tensors()
        return _json({"name": "nmoe", "versions": [version], "platform": "nmoe_mixture", "inputs": inputs, "outputs": outputs})

    async def config(self, request: Request) -> Response:
        """Model configuration, as Triton's clients ask for it."""
        self._check_version(request)
        inputs, outputs = (
            [{"name": one["name"], "data_type": _triton_type(one["datatype"]), "dims": one["shape"][1:]} for one in side]
            for side in self._tensors()
        )
        return _json({"name": "nmoe", "platform": "nmoe_mixture", "max_batch_size": MAX_ROWS, "input": inputs, "output": outputs})

    async def infer(self, request: Request) -> Response:
        """Classify images together with the peers."""
        began_s = time.perf_counter()
        version = self._check_version(request)
        if media_type(request) not in {_JSON, _RAW}:  # for these two a browser asks leave first, and gets none
            _refuse_other_sites(request)
        async with self._intake.read(request, _JSON, _RAW, _CURL) as body:
            call = read_call(body, request.headers.get("inference-header-content-length"), self._service.card.image_shape)
        del body
        span = request_span(request.headers.get("traceparent", ""), "infer")
        with span as traceparent:
            reply = await self._asked(call, traceparent)
            if isinstance(reply, Refusal):
                span.end(reply.code)
                text = f"{reply.code}: {reply.reason}" if reply.reason else str(reply.code)
                status = _STATUS[reply.code]
                raise Rejected(status, text, {"retry-after": "1"} if status == 503 else None)
        answer, head = write_answer(reply, call, version)
        self._metrics.observe_infer(time.perf_counter() - began_s)
        if head is None:
            return Response(answer, media_type=_JSON)
        return Response(answer, headers={"inference-header-content-length": str(head)}, media_type=_RAW)

    async def _asked(self, call: InferCall, traceparent: str) -> InferReply | Refusal:
        if not self._service.ready:
            raise Rejected(503, "the node is starting or leaving", {"retry-after": "1"})
        try:
            async with asyncio.timeout(call.deadline_s + GRACE_S):
                return await self._service.infer(
                    call.images, deadline_s=call.deadline_s, k=call.k, identity=call.identity, trace=traceparent
                )
        except TimeoutError:
            return Refusal(request=0, code=RefusalCode.LATE, reason=f"no answer within {call.deadline_s:g} s")

    async def feedback(self, request: Request) -> Response:
        """Learn from the true labels of an earlier request."""
        _refuse_other_sites(request)
        async with self._intake.read(request, _JSON) as body:
            given = decode_json(_feedback, body)
        if not given.id or not given.labels:
            raise Rejected(
                400, f"the id of an earlier request and its labels wanted, got {quoted(given.id)} and {len(given.labels)} labels"
            )
        if not all(0 <= label < self._service.card.num_classes for label in given.labels):
            raise Rejected(400, f"labels from 0 to {self._service.card.num_classes - 1} wanted, got {quoted(given.labels)}")
        learned, reason = await asyncio.to_thread(self._service.feedback, given.id, given.labels)
        if learned is not Learned.YES:
            raise Rejected(404 if learned is Learned.UNKNOWN else 400, reason)
        return _json({"id": given.id, "learned": len(given.labels)})

    async def mesh(self, request: Request) -> Response:
        """What this node and its neighbours say of themselves, this node first."""
        async with self._mesh_lock:
            if time.monotonic() - self._mesh_s >= MESH_FRESH_S:
                views = await self._service.mesh_view()
                own = self._service.card.node
                self._mesh = msgspec.json.encode(sorted(views, key=lambda view: (view.node != own, view.node)))
                self._mesh_s = time.monotonic()
        return Response(self._mesh, headers={"cache-control": "no-store"}, media_type=_JSON)

    async def index(self, request: Request) -> Response:
        """What is served, as Triton's clients ask for it."""
        _refuse_other_sites(request)
        state = "READY" if self._service.ready else "UNAVAILABLE"
        return _json([{"name": "nmoe", "version": self._current(), "state": state, "reason": ""}])

    async def load(self, request: Request) -> Response:
        """Serve what now lies in the bundle folder."""
        _refuse_other_sites(request)
        reason = await asyncio.to_thread(self._service.reload)
        if reason is not None:
            raise Rejected(409, reason)
        return _json({"name": "nmoe", "version": self._current()})

    def _current(self) -> str:
        card = self._service.card
        if card is not self._card:  # a view costs more than a request should
            self._version = self._service.view().bundle
            self._card = card
        return self._version

    def _check_version(self, request: Request) -> str:
        """Return the version served, which is the one asked for if any is."""
        current = self._current()
        asked = request.path_params.get("version", current)
        if asked != current:
            raise Rejected(404, f"version {quoted(current)} of nmoe is served, {quoted(asked)} is not")
        return current

    def _tensors(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        card = self._service.card
        outputs = (("probabilities", "FP32", card.num_classes), ("experts", "BYTES", -1), ("weights", "FP32", -1))
        listed = [{"name": name, "datatype": kind, "shape": [-1, size]} for name, kind, size in outputs]
        listed.insert(1, {"name": "label", "datatype": "INT64", "shape": [-1]})
        return [{"name": "image", "datatype": "UINT8", "shape": [-1, *card.image_shape]}], listed


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=_JSON)


def _shown_page(page: Page) -> Response:
    headers = {"content-security-policy": page.policy, "cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(page.html, headers=headers, media_type="text/html")


def _triton_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _refuse_other_sites(request: Request) -> None:
    """A page of another site, open in a browser that reaches the node, may not change it."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    same = origin is None or urlsplit(origin).netloc == host  # browsers say only this to an address that is neither local nor https
    if request.headers.get("sec-fetch-site", "none" if same else "cross-site") not in {"none", "same-origin"}:
        raise Rejected(403, "requests from pages of other sites are not wanted")
