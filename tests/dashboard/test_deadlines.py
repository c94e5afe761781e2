"""Who asks the dashboard by halves, or does not take the answer, keeps nobody else out."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from dashboard_support import Served
from support import eventually
from turnout.dashboard.deadlines import MAX_STRANGERS, MAX_WAITING, DeadlineProtocol
from turnout.dashboard.server import MAX_CONNECTIONS

LONG_S = 60.0
CHUNK = b"x" * 65536


class Hasty(DeadlineProtocol):
    request_s = 0.2
    unread_s = 0.2


class Patient(DeadlineProtocol):
    request_s = 4 * LONG_S
    unread_s = 4 * LONG_S


class WithToken(Patient):
    """Its token is "t"."""

    def has_token(self, authorization: Sequence[bytes]) -> bool:
        return list(authorization) == [b"t"]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """``/``: at once, its body unread; ``/slow``: after more than any deadline; ``/endless``: until nobody takes it."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        for _ in range(8):
            await asyncio.sleep(Hasty.request_s / 2)
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
    elif scope["path"] == "/endless":
        await receive()  # the request, which has no body; what comes next is its end
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            await asyncio.wait([gone], timeout=0)
    await send({"type": "http.response.body", "body": b"done"})


def served(
    scenario: Callable[[Callable[[bytes], Awaitable[tuple[StreamReader, StreamWriter]]], ServerState], Awaitable[None]],
    kind: type[DeadlineProtocol] = Hasty,
) -> None:
    """Run what speaks to a server with these deadlines: ``scenario(ask, state)``, where ``ask`` connects and sends."""

    async def bounded() -> None:
        state = ServerState()
        config = uvicorn.Config(answer, lifespan="off", log_config=None, interface="asgi3", timeout_keep_alive=600)
        config.load()
        loop = asyncio.get_running_loop()
        writers: list[StreamWriter] = []
        server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)

        async def ask(sent: bytes) -> tuple[StreamReader, StreamWriter]:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writers.append(writer)
            writer.write(sent)
            await writer.drain()
            return reader, writer

        try:
            async with asyncio.timeout(LONG_S):
                await scenario(ask, state)
        finally:
            for writer in writers:
                writer.close()
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.gather(*state.tasks, return_exceptions=True)

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # uvicorn sets no event
        await asyncio.sleep(0.01)


async def everything(reader: StreamReader) -> bytes:
    """What comes up to the end, which may be a reset."""
    found = bytearray()
    with suppress(ConnectionResetError):
        while data := await reader.read(65536):
            found += data
    return bytes(found)


HALVES = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "half a body": b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "a second one by halves": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("half", HALVES)
def test_a_request_that_does_not_come_to_its_end_is_dropped(half: str) -> None:
    async def scenario(ask: Any, state: ServerState) -> None:
        reader, writer = await ask(HALVES[half])
        if half == "a second one by halves":
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
            writer.write(b"GET")
        await everything(reader)
        await until(lambda: not state.connections)

    served(scenario)


def test_one_that_goes_on_for_ever_byte_by_byte_is_dropped_too(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(ask: Any, _state: ServerState) -> None:
        reader, writer = await ask(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        end = asyncio.ensure_future(everything(reader))
        with suppress(ConnectionError):
            while not end.done():
                writer.write(b"x")
                await writer.drain()
                await asyncio.wait([end], timeout=Hasty.request_s / 10)
        assert await end == b""

    served(scenario)
    assert "dropped a connection: no whole request within 0.2 s" in caplog.messages


def test_one_that_connected_and_said_nothing_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(ask: Any, _state: ServerState) -> None:
        reader, _ = await ask(b"")
        assert await everything(reader) == b""

    served(scenario)
    assert caplog.messages == []


def test_an_answer_takes_as_long_as_it_takes() -> None:
    async def scenario(ask: Any, _state: ServerState) -> None:
        reader, _ = await ask(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = await everything(reader)
        assert got.count(b"more") == 8
        assert b"done" in got

    served(scenario)


def test_who_waits_between_two_requests_is_not_dropped() -> None:
    async def scenario(ask: Any, state: ServerState) -> None:
        reader, writer = await ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(2):
            await reader.readuntil(b"done")
            (connection,) = state.connections
            other, _ = await ask(b"")  # is dropped, and that took as long as the deadline
            await everything(other)
            assert state.connections == {connection}
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"done")

    served(scenario)


def test_who_does_not_take_the_answer_is_dropped() -> None:
    async def scenario(ask: Any, state: ServerState) -> None:
        reader, writer = await ask(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.transport.pause_reading()
        await until(lambda: state.tasks)
        await until(lambda: not state.connections)
        writer.transport.resume_reading()
        await everything(reader)

    served(scenario)


def test_of_too_many_that_have_not_asked_the_oldest_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(ask: Any, state: ServerState) -> None:
        asked, _ = await ask(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert await asked.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
        waiting = [await ask(b"GET") for _ in range(MAX_WAITING)]
        await until(lambda: len(state.connections) == MAX_WAITING + 1)
        here = [one for one in state.connections if isinstance(one, DeadlineProtocol)]
        await until(lambda: sum(one.conn.trailing_data[0] == b"GET" for one in here) == MAX_WAITING)
        newest, _ = await ask(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await everything(newest)).endswith(b"done\r\n0\r\n\r\n")
        assert await everything(waiting[0][0]) == b""
        assert len(state.connections) == MAX_WAITING, "all others are there: the rest that waits, and who is answered"
        assert b"done" in await everything(asked)

    served(scenario, Patient)
    assert caplog.messages == ["dropped a connection: too many connections whose request is not whole"]


def test_a_request_is_served_while_others_hold_as_many_connections_as_there_may_be(lied_to: Served) -> None:
    with ExitStack() as stack:
        for _ in range(2 * MAX_CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", lied_to.port), timeout=LONG_S))
            sock.sendall(b"GET /status.json HTTP/1.1\r\n")
        assert lied_to.ask("GET", "/status.json").status == 200


def test_an_order_of_which_half_came_changes_nothing_and_is_no_fault_of_the_server(lied_to: Served) -> None:
    head = f"POST /services/default/deploy HTTP/1.1\r\nHost: 127.0.0.1:{lied_to.port}\r\n"
    head += f"Authorization: Bearer {lied_to.token}\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", lied_to.port), timeout=LONG_S) as sock:
        sock.sendall(head.encode() + b'{"generation": 3')
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    eventually(lambda: "an order ended in the middle" in lied_to.log(), timeout_s=LONG_S, why=lied_to.log())
    assert "Traceback" not in lied_to.log()


# -- connections without the token -------------------------------------------------------------------------------------

WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OWNERS = b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: t\r\n\r\n"


def users(monkeypatch: pytest.MonkeyPatch, *uids: int) -> None:
    """The users of the connections to come, the last one of all others."""
    left = list(uids)

    def uid_of(_here: tuple[str, int], _peer: tuple[str, int]) -> int:
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr("turnout.dashboard.deadlines.uid_of", uid_of)


def test_of_too_many_connections_without_the_token_the_oldest_is_dropped_and_none_that_had_it() -> None:
    async def scenario(ask: Any, state: ServerState) -> None:
        owner, writer = await ask(OWNERS)
        await owner.readuntil(b"done")
        strangers = [await ask(WHOLE) for _ in range(MAX_STRANGERS)]
        for reader, _ in strangers:
            await reader.readuntil(b"done")
        assert len(state.connections) == MAX_STRANGERS + 1
        newest, _ = await ask(WHOLE)
        await newest.readuntil(b"done")
        assert b"done" not in await everything(strangers[0][0]), "it has ended"
        assert len(state.connections) == MAX_STRANGERS + 1
        writer.write(OWNERS)
        await owner.readuntil(b"done")

    served(scenario, WithToken)


def test_a_connection_whose_last_request_lacks_the_token_counts_as_one_without() -> None:
    async def scenario(ask: Any, state: ServerState) -> None:
        reader, writer = await ask(OWNERS)
        await reader.readuntil(b"done")
        (connection,) = state.connections
        assert isinstance(connection, DeadlineProtocol)
        assert connection.trusted
        writer.write(WHOLE)
        await reader.readuntil(b"done")
        assert not connection.trusted

    served(scenario, WithToken)


@pytest.mark.parametrize("sent", [b"GET", WHOLE], ids=["that wait to ask", "that were answered"])
def test_a_user_with_many_connections_pushes_out_none_of_another_user(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """The owner's new connection has not shown its token yet; whoever else connects comes after it."""
    users(monkeypatch, 1000, 4711)

    async def scenario(ask: Any, state: ServerState) -> None:
        owner, writer = await ask(b"")
        await until(lambda: state.connections)
        others = [await ask(sent) for _ in range(2 * MAX_STRANGERS)]
        await everything(others[0][0])
        writer.write(OWNERS)
        assert (await owner.readuntil(b"done")).startswith(b"HTTP/1.1 200")

    served(scenario, WithToken)


def test_of_two_users_with_as_many_connections_it_is_not_our_own_who_loses_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = MAX_WAITING // 2
    users(monkeypatch, *[os.geteuid()] * half, *[4711] * (half + 1), os.geteuid())

    async def scenario(ask: Any, state: ServerState) -> None:
        own = [await ask(b"GET") for _ in range(half)]
        await until(lambda: len(state.connections) == half)
        others = [await ask(b"GET") for _ in range(half + 1)]
        assert await everything(others[0][0]) == b""
        await ask(b"GET")
        assert await everything(own[0][0]) == b"", "now our own has more"

    served(scenario, Patient)


def test_who_is_polite_and_has_no_token_keeps_no_connection_and_nobody_out(lied_to: Served) -> None:
    head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{lied_to.port}\r\n\r\n".encode()
    with ExitStack() as stack:
        held: list[socket.socket] = []
        for _ in range(2 * MAX_CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", lied_to.port), timeout=LONG_S))
            sock.sendall(head)
            held.append(sock)
        for _ in range(5):
            assert lied_to.ask("GET", "/status.json").status == 200
        answer = bytearray()
        while data := held[-1].recv(65536):  # to the end: it is not kept
            answer += data
        assert b"200 OK" in answer
        assert b"connection: close" in bytes(answer).lower()


def test_with_the_token_a_connection_is_kept(lied_to: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", lied_to.port, timeout=LONG_S)
    try:
        for _ in range(2):
            connection.request("GET", "/status.json", headers={"Authorization": f"Bearer {lied_to.token}"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            assert not response.will_close
    finally:
        connection.close()
