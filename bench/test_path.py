"""One exchange and one connection, direct and through the relay, side by side: what the fixed address costs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from turnout.planes.plane import Upstream
from turnout.planes.relay import Relay

SIZE = 64


class Echo:
    """A C-speed daemon is not the point here: both paths have the same one."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    @staticmethod
    def _echo(sock: socket.socket) -> None:
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := sock.recv(65536):
                sock.sendall(data)


@pytest.fixture(scope="module", params=["direct", "relay"])
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    echo = Echo()
    if request.param == "direct":
        yield echo.address
        echo.listener.close()
        return
    front = socket.create_server(("127.0.0.1", 0), backlog=512)
    loop = uvloop.new_event_loop()
    ready = threading.Event()
    done = asyncio.Event()

    async def serve() -> None:
        relay = Relay(asyncio.get_running_loop())
        relay.set_upstream(Upstream("b", *echo.address), patience_s=1.0)
        relay.add_listener(front)
        ready.set()
        await done.wait()
        relay.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield front.getsockname()
    loop.call_soon_threadsafe(done.set)
    thread.join(10)
    loop.close()
    front.close()
    echo.listener.close()


@pytest.mark.benchmark(group="64 B request and response, one connection")
def test_exchange(benchmark: BenchmarkFixture, address: tuple[str, int]) -> None:
    payload = b"x" * SIZE
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange() -> None:
            sock.sendall(payload)
            assert len(sock.recv(SIZE, socket.MSG_WAITALL)) == SIZE

        benchmark(exchange)


@pytest.mark.benchmark(group="connect, 64 B, close")
def test_connection(benchmark: BenchmarkFixture, address: tuple[str, int]) -> None:
    payload = b"x" * SIZE

    def connection() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(payload)
            assert len(sock.recv(SIZE, socket.MSG_WAITALL)) == SIZE

    benchmark(connection)


@pytest.mark.benchmark(group="8 MiB there and back")
def test_bulk(benchmark: BenchmarkFixture, address: tuple[str, int]) -> None:
    size = 8 << 20
    payload = bytes(size)
    with socket.create_connection(address) as sock:

        def there_and_back() -> None:
            sender = threading.Thread(target=sock.sendall, args=(payload,))
            sender.start()
            left = size
            while left:
                left -= len(sock.recv(1 << 18))
            sender.join()

        benchmark.pedantic(there_and_back, rounds=10, warmup_rounds=1)  # type: ignore[no-untyped-call]  # it has no stubs
