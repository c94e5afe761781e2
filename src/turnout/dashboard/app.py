"""What is served where. Everything passes the gate first; only POST changes anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnout.core.json_text import json_text
from turnout.dashboard.actions import Actions
from turnout.dashboard.feed import Feed
from turnout.dashboard.gate import HEADERS, Gate
from turnout.errors import ConflictError, NoSuchServiceError, TurnoutError, UsageError
from turnout.state.home import Home
from turnout.status.schema import Status

STATIC: Final = Path(__file__).parent / "static"
# not what the system's tables say: with nosniff, a script of another kind is none (RFC 9239 names it)
KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_BODY_BYTES: Final = 1024
JSON: Final = "application/json"
STATUSES: Final[tuple[tuple[type[TurnoutError], int], ...]] = (
    (NoSuchServiceError, 404),
    (ConflictError, 409),
    (UsageError, 400),
)
UNABLE: Final = 503
log = logging.getLogger("turnout.dashboard")


class VerbOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a POST: where the deployment stood when the page was looked at, and whether it only asks."""

    generation: int
    dry_run: bool = False


class Guarded:
    """An application behind the gate. Every answer has the headers; a refused request is in the log.

    A connection is kept for further requests only where this one had the token: an idle connection costs its client
    nothing, and every user of the machine may make them.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        added = dict(HEADERS)
        if not self._gate.knows([value.encode("latin-1") for value in headers.getlist("authorization")]):
            added["connection"] = "close"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(added)
            await send(message)

        values = {name: headers.getlist(name) for name in headers}
        method, path = str(scope["method"]), str(scope["path"])
        refused = self._gate.refusal(method, path, values)
        if refused is None:
            await self._app(scope, receive, send_guarded)
            return
        log.warning("refused %s %r: %s", method[:20], path[:200], refused.why)
        await PlainTextResponse(f"{refused.why}\n", refused.status)(scope, receive, send_guarded)


class Pages:
    """The event stream as an ASGI application: it ends when the page goes, whatever it is doing."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._feed.is_full:
            log.warning("refused another page: %d are open", self._feed.pages)
            busy = PlainTextResponse("too many pages are open\n", 503, {"retry-after": "5"})
            await busy(scope, receive, send)
            return
        await self._feed.stream(receive, send)


def application(
    home: Home, look: Callable[[], Status], *, gate: Gate, feed: Feed, actions: Actions, static: Path = STATIC
) -> ASGIApp:
    """All of it.

    Args:
        home: the state directory, which says what services there are.
        look: what ``status --json`` tells.
        gate: decides which requests are served.
        feed: the pages' events.
        actions: what the pages may do.
        static: the directory of the page's files, which are read once.
    """

    async def status(_request: Request) -> Response:
        return Response(json_text(await asyncio.to_thread(look)) + "\n", media_type=JSON)

    async def act(request: Request) -> Response:
        order = await _order(request)
        name, verb = request.path_params["name"], request.path_params["verb"]
        if name not in home.service_names():
            raise NoSuchServiceError(f"no service {name!r}")
        if order.dry_run:
            return Response(json_text(await actions.preview(name, verb, order.generation)), media_type=JSON)
        return Response(json_text(actions.begin(name, verb, order.generation)), 202, media_type=JSON)

    # by name, and read now: no other file can be asked for
    files = {path.name: Response(path.read_bytes(), media_type=KINDS[path.suffix]) for path in static.iterdir()}

    async def page(_request: Request) -> Response:
        return files["index.html"]

    async def file(request: Request) -> Response:
        return files.get(request.path_params["name"]) or PlainTextResponse("no such file\n", 404)

    routes = [
        Route("/", page, methods=["GET"]),
        Route("/static/{name}", file, methods=["GET"]),
        Route("/status.json", status, methods=["GET"]),
        Route("/events", Pages(feed), methods=["GET"]),
        Route("/services/{name}/{verb}", act, methods=["POST"]),
    ]
    return Guarded(Starlette(routes=routes, exception_handlers={TurnoutError: _fault}), gate)


async def _order(request: Request) -> VerbOrder:
    """Raises UsageError: the body is no order."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise UsageError(f"a change is asked for in {JSON}")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise UsageError(f"a change is asked for in {MAX_BODY_BYTES} bytes at most")
    except ClientDisconnect:
        log.warning("an order ended in the middle, with its connection")
        raise UsageError("the body ended in the middle") from None
    try:
        order = msgspec.json.decode(body, type=VerbOrder)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"the body is no order: {error}") from None
    if order.generation < 0:
        raise UsageError("a generation is 0 or more")
    return order


async def _fault(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TurnoutError)
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), UNABLE)
    report: dict[str, Any] = {
        "type": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "detail": error.detail or None,
        "exit_code": error.exit_code,
    }
    return Response(json_text({"error": report}), status, media_type=JSON)
