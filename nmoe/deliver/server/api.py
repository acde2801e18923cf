"""Interface: what each path of a delivery server does."""

import asyncio
import email.utils
import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nmoe.deliver.scenario import Receiver, parse_receiver
from nmoe.deliver.server.folder import MODEL, ModelFolder, NoSuchFile, OpenFile
from nmoe.deliver.server.metrics import DeliveryMetrics
from nmoe.deliver.server.ranges import Stretch, Unsatisfiable, wanted_stretch
from nmoe.deliver.server.replanner import Replanner, ServedUser
from nmoe.deliver.server.schemas import USER_ID, check_bounds
from nmoe.deliver.server.task import PackedModel
from nmoe.deliver.server.transfer import Timing, Transfer
from nmoe.http import Rejected, decode_json, quoted, read_json

MAX_BODY_BYTES = 16 << 10
BODY_S = 10.0  # a body has this long to arrive
MAX_TRANSFERS = 8  # of one user, or of all requests without one
_USER_ID = re.compile(USER_ID, re.ASCII)
_JSON = "application/json"
_object = msgspec.json.Decoder(dict[str, Any])


class DeliveryApi:
    """The paths of one server.

    Args:
        folder: what is handed out.
        replanner: users and rates.
        timing: the clock.
        metrics: counts.
    """

    def __init__(self, folder: ModelFolder, replanner: Replanner, *, timing: Timing, metrics: DeliveryMetrics) -> None:
        self._folder, self._replanner = folder, replanner
        self._timing, self._metrics = timing, metrics
        self._planning = asyncio.Lock()

    async def settle(self) -> None:
        """Plan anew if something has changed that the plan in force has not seen; in a thread, one plan at a time."""
        wanted = self._replanner.version
        async with self._planning:
            if self._replanner.planned >= wanted:
                return
            request = self._replanner.request(self._timing.now())
            allocations = await asyncio.to_thread(request.allocations)
            self._replanner.apply(request, allocations, self._timing.now())
            self._metrics.plans.inc()

    async def tick(self) -> None:
        """Let time pass: measure, expire, and plan anew if that changed anything."""
        self._replanner.tick(self._timing.now())
        await self.settle()

    async def put_user(self, request: Request) -> Response:
        """Register a user or start a new task of one, and plan."""
        user_id = _user_id(request.path_params["id"])
        receiver = _receiver(user_id, await read_json(request, max_bytes=MAX_BODY_BYTES, within_s=BODY_S))
        models = {name: await self._packed(name) for name in receiver.models}
        if not self._replanner.put(receiver, models, self._timing.now()):
            raise Rejected(503, f"there are {self._replanner.settings.max_users} users already", {"retry-after": "1"})
        await self.settle()
        return self._told(user_id)

    async def get_user(self, request: Request) -> Response:
        """A user's allocation now; counts as a sign of life."""
        user_id = _user_id(request.path_params["id"])
        self._replanner.see(user_id, self._timing.now())
        return self._told(user_id)

    async def delete_user(self, request: Request) -> Response:
        """Forget a user, and plan."""
        user_id = _user_id(request.path_params["id"])
        if not self._replanner.remove(user_id, self._timing.now()):
            raise _no_user(user_id)
        await self.settle()
        return _json({"id": user_id})

    async def get_plan(self, request: Request) -> Response:
        """The plan in force: all users, their shares and clocks."""
        users = [self._shown(user) for user in self._replanner.users.values()]
        spare = max(0.0, 1.0 - sum(user["bandwidth_share"] for user in users))
        served = sum(user["served"] for user in users)
        return _json(
            {"bandwidth_hz": self._replanner.settings.bandwidth_hz, "served": served, "spare_share": spare, "users": users},
        )

    async def get_files(self, request: Request) -> Response:
        """The model files, and which of them can be planned for."""
        listed = await asyncio.to_thread(lambda: list(self._folder.models()))
        return _json([{"name": one.name, "file": _path_of(one.name), "bytes": one.bytes, "reason": one.reason} for one in listed])

    async def get_file(self, request: Request) -> Response:
        """A file, or one range of it, at the pace of the user's share."""
        name = request.path_params["name"]
        try:
            file = await asyncio.to_thread(self._folder.open, name)
        except NoSuchFile as error:
            raise Rejected(404, f"there is no file {quoted(name)}; GET /files lists the models") from error
        try:
            return self._transfer(request, name, file)
        except BaseException:
            file.close()
            raise

    async def get_metrics(self, request: Request) -> Response:
        """Counts and rates for Prometheus."""
        return self._metrics.requests.response()

    def _transfer(self, request: Request, name: str, file: OpenFile) -> Transfer:
        modified = email.utils.formatdate(file.modified_s, usegmt=True)
        headers = {"etag": file.etag, "last-modified": modified, "accept-ranges": "bytes"}
        stretch = None
        if request.headers.get("if-range", file.etag) in (file.etag, modified):
            try:
                asked = request.headers.getlist("range")  # several headers are several ranges: ignored, as those of one header are
                stretch = wanted_stretch(asked[0] if len(asked) == 1 else None, file.size)
            except Unsatisfiable as error:
                refused = {**headers, "content-range": f"bytes */{file.size}"}
                raise Rejected(
                    416, f"bytes within the {file.size} of {name} wanted, got range {quoted(request.headers['range'])}", refused
                ) from error
        if stretch is not None:
            headers["content-range"] = f"bytes {stretch.start}-{stretch.stop - 1}/{file.size}"
        model = name.removesuffix(MODEL) if name.endswith(MODEL) else None
        return Transfer(
            file,
            stretch or Stretch(0, file.size),
            status=200 if stretch is None else 206,
            headers=headers,
            replanner=self._replanner,
            user=None if model is None or request.method == "HEAD" else self._begun(request),
            timing=self._timing,
            model=model,
        )

    def _begun(self, request: Request) -> ServedUser | None:
        """Let a transfer begin, for the user that the request names."""
        told = request.headers.get("x-nmoe-user")
        user = None if told is None else self._replanner.users.get(_user_id(told))
        if told is not None and user is None:
            raise _no_user(told)
        if (self._replanner.anonymous_transfers if user is None else user.transfers) >= MAX_TRANSFERS:
            status, whose = (503, "without a user") if user is None else (429, "of one user")
            raise Rejected(status, f"at most {MAX_TRANSFERS} transfers {whose} at a time wanted", {"retry-after": "1"})
        self._replanner.begin(user, self._timing.now())
        if not (self._replanner.anonymous if user is None else user.bucket).rate:
            self._replanner.end(user, self._timing.now())
            raise Rejected(503, "the plan leaves nothing over for whom it does not serve", {"retry-after": "1"})
        return user

    async def _packed(self, name: str) -> PackedModel:
        try:
            packed = await asyncio.to_thread(self._folder.packed, name)
        except NoSuchFile as error:
            raise Rejected(400, f"models: there is no {quoted(name)}; GET /files lists them") from error
        if isinstance(packed, str):
            raise Rejected(409, f"cannot plan: {packed}")
        return packed

    def _told(self, user_id: str) -> Response:
        user = self._replanner.users.get(user_id)
        if user is None:
            raise _no_user(user_id)
        return _json(self._shown(user))

    def _shown(self, user: ServedUser) -> dict[str, Any]:
        given = user.allocation
        model = None if given is None else given.model
        return {
            "id": user.task.receiver.id,
            "served": given is not None and given.served,
            "model": model,
            "file": None if model is None else _path_of(model),
            "bandwidth_share": user.share,
            "rate_bps": user.bucket.rate * 8,
            "clocks": () if given is None else given.clocks,
            "finish_s": None if given is None else given.finish_s,
            "energy_j": None if given is None else given.energy_j,
            "slack_s": None if given is None else given.slack_s,
            "reason": "its plan is being made" if given is None else given.reason,
            "spectral_efficiency": user.efficiency,
            "sent_bytes": 0 if model is None else user.task.sent_bytes(model),
        }


def _path_of(model: str) -> str:
    return f"/files/{model}{MODEL}"


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), headers={"cache-control": "no-store"}, media_type=_JSON)


def _user_id(text: str) -> str:
    if not _USER_ID.fullmatch(text):
        raise Rejected(400, f"the id of a user is 1 to 64 letters, digits, dots, dashes and underscores, got {quoted(text)}")
    return text


def _no_user(user_id: str) -> Rejected:
    return Rejected(404, f"no user {quoted(user_id)} is registered: PUT /users/ID does, and silence unregisters")


def _receiver(user_id: str, body: bytes) -> Receiver:
    """Return the user that a body describes.

    Raises:
        Rejected: 400.
    """
    told = decode_json(_object, body)
    if told.setdefault("id", user_id) != user_id:
        raise Rejected(400, f"the id in the body must be that of the path, {user_id}, got {quoted(told['id'])}")
    check_bounds(told)
    try:
        return parse_receiver(told)
    except ValueError as error:
        raise Rejected(400, str(error)) from error
