"""The dashboard's process: a listener on loopback, a token, the looking and the actions; it ends with Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Final

import uvicorn

from turnout.config.settings import Address
from turnout.control.keeper_client import bind_error
from turnout.dashboard.actions import Actions
from turnout.dashboard.app import application
from turnout.dashboard.deadlines import MAX_STRANGERS, RESERVED, DeadlineProtocol
from turnout.dashboard.feed import Feed
from turnout.dashboard.gate import Gate
from turnout.dashboard.observer import Observer, View
from turnout.errors import AddressInUseError, TurnoutError
from turnout.state.home import Home
from turnout.state.service import remembered
from turnout.system.verb_process import verb_argv

HOST: Final = "127.0.0.1"
TOKEN_BYTES: Final = 32
MAX_CONNECTIONS: Final = MAX_STRANGERS + RESERVED
SLACK_S: Final = 60.0
VERB: Final = tuple(verb_argv(sys.executable))


def serve(
    home: Home,
    view: View,
    *,
    port: int,
    announce: Callable[[str], None],
    command: Sequence[str] = VERB,
    common: Sequence[str] = (),
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; then everything that was begun has ended.

    Args:
        home: the state directory.
        view: the command line's functions.
        port: the TCP port on 127.0.0.1; 0: any that is free.
        announce: gets the page's address, token included, once it may be opened.
        command: what stands before every verb that the page has run.
        common: further arguments of those.

    Raises:
        AddressInUseError: the port is taken.
    """
    with _listen(port) as listener:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        own_port = int(listener.getsockname()[1])
        url = f"http://{HOST}:{own_port}/#{token}"

        async def announced() -> None:
            announce(url)  # in the loop: an interrupt that comes because of it finds a task that has begun
            await _serve(home, view, listener, Gate(own_port, token), command, common)

        asyncio.run(announced())


async def _serve(
    home: Home, view: View, listener: socket.socket, gate: Gate, command: Sequence[str], common: Sequence[str]
) -> None:
    feed = Feed(Observer(home, view).look)

    def publish(newest: bytes) -> None:
        feed.publish("actions", newest)
        feed.hurry()

    actions = Actions(command, common=common, deadline_s=lambda name: longest_s(home, name), publish=publish)
    app = application(home, view.look, gate=gate, feed=feed, actions=actions)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=protocol(gate),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # there is no proxy: a client that names one makes it up
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    async with asyncio.TaskGroup() as group, actions.running():
        group.create_task(feed.run())
        try:
            await _Server(config, feed).serve(sockets=[listener])
        finally:
            feed.close()


def protocol(gate: Gate) -> type[DeadlineProtocol]:
    """The protocol of a server whose token this gate knows."""

    class Guest(DeadlineProtocol):
        """A connection that counts as trusted by the token of this server."""

        def has_token(self, authorization: Sequence[bytes]) -> bool:
            return gate.knows(authorization)

    return Guest


class _Server(uvicorn.Server):
    """Ends its streams before it waits for them, and takes the signals without raising them once more at its end."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # a signal that comes twice must not interrupt the end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)


def longest_s(home: Home, name: str) -> float:
    """How many seconds a verb may take for this service: a start that fails, and that of the previous build."""
    try:
        settings = remembered(home.service(name))
    except TurnoutError:
        settings = None
    return SLACK_S + (2 * settings.start_timeout_s + settings.stop_grace_s + settings.retire_s if settings else 0.0)


@contextlib.contextmanager
def _listen(port: int) -> Generator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            number = error.errno or errno.EIO
            problem = bind_error(Address(HOST, port), number)
            kind = AddressInUseError if number == errno.EADDRINUSE else TurnoutError
            raise kind(problem.message, hint="name another with --port, or 0 for any that is free") from error
        yield listener
