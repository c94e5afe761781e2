"""The metrics address: opened where the home says, answers GET /metrics, and no client of it holds the router up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from metrics_support import OPENMETRICS, READING, Scrape, get, scrape
from support import eventually
from turnout.config.settings import Address, Settings, parse_address
from turnout.config.settings import Scrape as Wanted
from turnout.config.settings import ServiceRequest as Build
from turnout.errors import AddressInUseError, ConfigError, UsageError
from turnout.router import metrics_server
from turnout.router.metrics_server import CLIENTS_MOST, MetricsServer
from turnout.state.home import Home
from turnout.state.metrics_address import check_scrape, read_scrape, to_write, write_scrape
from turnout.status.metrics import Reading
from turnout.system import files
from turnout.testing import free_port


class Served:
    """A router's metrics address without the router. Owns a loop in a thread of its own."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.readings = 0
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._executor = ThreadPoolExecutor(2)
        self.metrics = MetricsServer(home, self._executor, self._executor, self._read)
        self._task = asyncio.run_coroutine_threadsafe(self.metrics.run(), self._loop)

    def _read(self) -> Reading:
        self.readings += 1
        return READING

    def at(self, address: Address | None) -> int:
        write_scrape(self.home, Wanted(listen=address))
        eventually(lambda: self.metrics.address == address, why="it did not move")
        return address.port if address else 0

    def answers(self) -> None:
        """The loop has not been blocked: it still takes its turn."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(20)

    def clients(self) -> int:
        return len(self.metrics._clients)

    def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(BaseException):
            self._task.result(20)
        asyncio.run_coroutine_threadsafe(_settled(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
        self._executor.shutdown()


async def _settled() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*left, return_exceptions=True)


def free_address() -> Address:
    return Address("127.0.0.1", free_port())


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(metrics_server, "DEADLINE_S", 60.0)  # the first text imports a library, slowly under load
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o700)
    served = Served(home)
    try:
        yield served
    finally:
        served.close()


@pytest.fixture
def port(served: Served) -> int:
    return served.at(free_address())


def talk(port: int, data: bytes) -> bytes:
    """What comes back until the end of stream; a reset counts as one."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        answer = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            while part := sock.recv(65536):
                answer += part
        return answer


def refuses(port: int) -> bool:
    """Whether nothing listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_scrape_gets_the_text_that_was_read(port: int) -> None:
    status, content_type, body = get(port)
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert Scrape(body.decode()).value("turnout_connections_accepted_total") == 5
    _, content_type, body = get(port, accept=OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert Scrape(body.decode(), strict=True).value("turnout_connections_accepted_total") == 5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?name[]=up", 200),
        ("POST", "/metrics", 405),
        ("DELETE", "/metrics", 405),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/../metrics", 404),
    ],
)
def test_only_one_path_is_there_and_only_to_be_read(port: int, method: str, path: str, status: int) -> None:
    assert get(port, method=method, path=path)[0] == status


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /metrics\r\n\r\n", b"HTTP/1.1 400 "),
        (b"\xff\xfe\x00 \x00 \x00\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /metrics SIP/2.0\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /metrics HTTP/1.1\r\nAccept\r\n: \r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000, b"HTTP/1.1 431 "),
    ],
    ids=["empty", "HTTP/0.9", "binary", "another protocol", "odd fields", "endless fields"],
)
def test_whatever_is_sent_gets_an_answer_or_an_end(port: int, data: bytes, answer: bytes) -> None:
    said = talk(port, data)
    assert said.startswith(answer) or (not said and len(data) > 8192), said[:80]


def test_a_client_that_says_nothing_ends_at_its_deadline(
    served: Served, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "DEADLINE_S", 0.05)
    assert talk(port, b"GET /met") == b""
    eventually(lambda: served.clients() == 0)


def test_idle_clients_are_few_and_never_keep_a_scrape_out(served: Served, port: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3 * CLIENTS_MOST):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
        eventually(lambda: served.clients() == CLIENTS_MOST)
        assert get(port)[0] == 200
        served.answers()
        assert served.clients() <= CLIENTS_MOST


def test_many_scrapes_at_once_are_one_text(served: Served, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "FRESH_S", 3600.0)
    with ThreadPoolExecutor(8) as many:
        found = list(many.map(lambda _: get(port)[0], range(40)))
    assert found == [200] * 40
    assert served.readings == 1


def test_a_text_is_made_anew_after_a_moment(served: Served, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "FRESH_S", 0.0)
    for _ in range(3):
        get(port)
    assert served.readings == 3


def test_a_client_that_does_not_read_its_answer_is_let_go(
    served: Served, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "DEADLINE_S", 3.0)  # the first bytes must get through also where all is slow
    answer = b"x" * 50_000_000

    def huge(_told: Reading, _accept: str) -> tuple[bytes, str]:
        return answer, "text/plain"

    monkeypatch.setattr(metrics_server, "expose", huge)
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert sock.recv(10) == b"HTTP/1.1 2"
        eventually(lambda: served.clients() == 0)
        served.answers()


def test_it_moves_and_ends_as_the_home_says(served: Served) -> None:
    first = served.at(free_address())
    assert get(first)[0] == 200
    second = served.at(free_address())
    assert get(second)[0] == 200
    assert refuses(first)
    served.at(None)
    eventually(lambda: refuses(second), why="uvloop closes a listener in the turn after that in which it is told to")
    assert served.metrics.status() == {"listen": None, "error": None}


def test_a_taken_address_is_said_and_served_once_it_is_free(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address("127.0.0.1", other.getsockname()[1])
        write_scrape(served.home, Wanted(listen=address))
        eventually(lambda: served.metrics.error)
        assert f"the metrics address {address} is in use by pid" in served.metrics.error
    eventually(lambda: served.metrics.address == address)
    assert served.metrics.status() == {"listen": str(address), "error": None}


def test_without_a_thread_to_bind_in_it_goes_on_and_binds_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of this task would end the router, with all that it carries."""
    refused: list[Address] = []

    def refuse(address: Address) -> socket.socket:
        refused.append(address)
        raise OSError(errno.EAGAIN, "no thread can be started")

    address = free_address()
    with monkeypatch.context() as patched:
        patched.setattr(metrics_server, "_bind", refuse)
        write_scrape(served.home, Wanted(listen=address))
        eventually(lambda: len(refused) >= 2)
        assert served.metrics.error == "no thread can be started"
    eventually(lambda: served.metrics.address == address)
    assert served.metrics.error == ""


@pytest.mark.parametrize("text", ["{", '{"listen": {"host": "127.0.0.1", "port": 99999}}', '{"listen": 7}', "\xff"])
def test_a_damaged_file_leaves_it_where_it_is(served: Served, port: int, text: str) -> None:
    served.home.metrics.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError):
        read_scrape(served.home)
    assert get(port)[0] == 200
    served.at(free_address())


def test_a_file_that_could_not_be_read_once_is_read_with_the_next_look(
    served: Served, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [10**6]
    opens = files.open_regular

    def broken(path: Path) -> int:
        if path.name == "metrics.json" and left[0]:
            left[0] -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opens(path)

    address = free_address()
    write_scrape(served.home, Wanted(listen=address))  # which reads it, too
    time.sleep(0.03)  # two ticks of the kernel's clock: nothing hides behind the same time stamp any more
    monkeypatch.setattr(files, "open_regular", broken)
    served.home.metrics.touch()
    eventually(lambda: left[0] < 10**6 - 3, why="it is not read again")
    assert caplog.text.count("Too many open files") == 1
    left[0] = 0
    eventually(lambda: served.metrics.address == address)
    assert get(address.port)[0] == 200
    assert port != address.port


def test_a_server_that_cannot_be_started_for_now_is_started_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2]
    start = asyncio.start_server

    async def short(*args: Any, **more: Any) -> asyncio.Server:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return await start(*args, **more)

    monkeypatch.setattr(asyncio, "start_server", short)
    port = served.at(free_address())
    assert left == [0]
    assert get(port)[0] == 200


def test_the_texts_of_two_services_are_one_scrape(port: int) -> None:
    assert scrape(port).value("turnout_deployment_generation", service="cache") == 3


# -- what a verb writes ----------------------------------------------------------------------------------------------

HERE = Address("127.0.0.1", 9477)
THERE = Address("127.0.0.1", 9478)


def wanted(scrape: Wanted | None) -> Build:
    return Build(settings=Settings(name="cache", listen=(parse_address("127.0.0.1:47777"),)), scrape=scrape)


@pytest.mark.parametrize(
    ("before", "said", "written"),
    [
        (None, None, None),
        (None, Wanted(), None),
        (None, Wanted(source="/a"), None),
        (None, Wanted(listen=HERE), Wanted(listen=HERE)),
        (Wanted(listen=HERE), None, None),
        (Wanted(listen=HERE), Wanted(listen=HERE), None),
        (Wanted(listen=HERE), Wanted(), Wanted()),
        (Wanted(listen=HERE), Wanted(source="/a"), None),
        (Wanted(listen=HERE), Wanted(listen=THERE, source="/a"), Wanted(listen=THERE, source="/a")),
        (Wanted(listen=HERE, source="/a"), Wanted(source="/a"), Wanted(source="/a")),
        (Wanted(listen=HERE, source="/a"), Wanted(source="/b"), None),
        (Wanted(listen=HERE, source="/a"), Wanted(), Wanted()),
    ],
)
def test_who_says_nothing_takes_back_only_what_he_said(
    tmp_path: Path, before: Wanted | None, said: Wanted | None, written: Wanted | None
) -> None:
    home = Home(tmp_path)
    if before:
        write_scrape(home, before)
    assert to_write(home, wanted(said)) == written


def test_a_taken_address_is_refused_before_anything_is_written() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Address("127.0.0.1", other.getsockname()[1])
        with pytest.raises(AddressInUseError, match="in use by pid"):
            check_scrape(wanted(None), Wanted(listen=taken), serves=None)
        check_scrape(wanted(None), Wanted(listen=taken), serves=str(taken))


def test_the_clients_address_is_not_for_metrics() -> None:
    with pytest.raises(UsageError, match="where clients of cache come"):
        check_scrape(wanted(None), Wanted(listen=Address("127.0.0.1", 47777)), serves=None)
