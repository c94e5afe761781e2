from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import msgspec
import pytest

from probe_support import serve
from process_support import Started, entry
from turnout.core.model import Identity
from turnout.system.probes.http import MAX_ANSWER_BYTES, parse_statuses
from turnout.system.probes.probe import ProbeResult, ProbeSpec, probe
from turnout.system.process import identify

TIMEOUT_S = 10.0
HTTP = ProbeSpec("http", path="/healthz")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell"
Say = Callable[[socket.socket], None]


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


def answering(*parts: bytes, waits: bool = False) -> Say:
    """Say this to every request; ``waits``: keep the connection until the client has gone."""

    def talk(client: socket.socket) -> None:
        heard = b""
        while b"\r\n\r\n" not in heard:
            data = client.recv(65536)
            if not data:
                return
            heard += data
        for part in parts:
            client.sendall(part)
        if waits:
            client.recv(1)

    return talk


def check(opened: ExitStack, talk: Say, spec: ProbeSpec = HTTP, *, timeout_s: float = TIMEOUT_S) -> ProbeResult:
    return probe(serve(opened, talk), spec, timeout_s=timeout_s)


def test_a_good_answer_is_well_and_says_which(opened: ExitStack) -> None:
    result = check(opened, answering(OK, waits=True))
    assert result.ok, result
    assert "/healthz" in result.reason
    assert "200" in result.reason


def test_the_request_names_path_and_host(opened: ExitStack) -> None:
    heard: list[bytes] = []

    def talk(client: socket.socket) -> None:
        heard.append(client.recv(65536))
        client.sendall(OK)

    daemon = serve(opened, talk)
    assert probe(daemon, HTTP, timeout_s=TIMEOUT_S).ok
    assert probe(daemon, msgspec.structs.replace(HTTP, host="example.org"), timeout_s=TIMEOUT_S).ok
    assert heard[0].startswith(b"GET /healthz HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{daemon.port}\r\n".encode() in heard[0]
    assert b"\r\nConnection: close\r\n" in heard[0]
    assert b"\r\nHost: example.org\r\n" in heard[1]


@pytest.mark.parametrize(("status", "well"), [(200, True), (204, True), (302, True), (404, False), (503, False)])
def test_the_status_decides(opened: ExitStack, status: int, *, well: bool) -> None:
    result = check(opened, answering(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status))
    assert result.ok is well
    assert str(status) in result.reason


def test_other_statuses_may_be_asked_for(opened: ExitStack) -> None:
    spec = msgspec.structs.replace(HTTP, statuses=parse_statuses("401"))
    assert check(opened, answering(b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n"), spec).ok
    assert not check(opened, answering(OK), spec).ok


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\nup to the end",
        b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwel\r\n1\r\nl\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0;last\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    ],
    ids=["to-the-end", "chunked", "trailer", "early-hints", "no-content", "bare-newlines"],
)
def test_every_form_of_an_answer_is_understood_byte_by_byte(opened: ExitStack, answer: bytes) -> None:
    result = check(opened, answering(*(answer[i : i + 1] for i in range(len(answer)))))
    assert result.ok, result


@pytest.mark.parametrize(
    "half",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwel",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwel\r\n",
        b"HTTP/1.1 103 Early\r\n\r\n",
        b"HTT",
        b"",
    ],
    ids=["body", "head", "chunks", "hints-alone", "status", "nothing"],
)
@pytest.mark.parametrize("ends", [True, False], ids=["closed", "silent"])
def test_half_an_answer_is_unwell_whether_it_ends_or_goes_silent(opened: ExitStack, half: bytes, *, ends: bool) -> None:
    result = check(opened, answering(half, waits=not ends), timeout_s=TIMEOUT_S if ends else 0.3)
    assert not result.ok
    assert ("closed" if ends else "in time") in result.reason


def test_a_slow_answer_is_well_before_the_deadline_and_unwell_after_it(opened: ExitStack) -> None:
    def talk(client: socket.socket) -> None:
        client.recv(65536)
        time.sleep(0.2)
        client.sendall(OK)
        client.recv(1)

    daemon = serve(opened, talk)
    assert probe(daemon, HTTP, timeout_s=TIMEOUT_S).ok
    late = probe(daemon, HTTP, timeout_s=0.05)
    assert not late.ok
    assert "in time" in late.reason


def test_one_deadline_holds_for_an_answer_that_drips(opened: ExitStack) -> None:
    def talk(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:  # ends with the connection: each part comes well within a time-out of its own
            client.sendall(b"X-More: 1\r\n")
            time.sleep(0.02)

    result = check(opened, talk, timeout_s=0.4)
    assert not result.ok
    assert "in time" in result.reason


def test_an_endless_body_is_read_no_further_than_64_kib(opened: ExitStack) -> None:
    result = check(opened, answering(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (4 * MAX_ANSWER_BYTES)))
    assert result.ok, result


def test_an_endless_head_is_no_answer(opened: ExitStack) -> None:
    result = check(opened, answering(b"HTTP/1.1 200 OK\r\nX: ", b"x" * (2 * MAX_ANSWER_BYTES)))
    assert not result.ok
    assert str(MAX_ANSWER_BYTES) in result.reason


def test_something_that_is_not_http_is_shown(opened: ExitStack) -> None:
    result = check(opened, answering(b"-ERR unknown command 'GET'\r\n", waits=True))
    assert not result.ok
    assert "-ERR unknown command" in result.reason


def test_a_match_is_searched_in_the_body(opened: ExitStack) -> None:
    daemon = serve(opened, answering(OK))
    assert probe(daemon, msgspec.structs.replace(HTTP, match=b"^well$"), timeout_s=TIMEOUT_S).ok
    unwell = probe(daemon, msgspec.structs.replace(HTTP, match=b"^ill$"), timeout_s=TIMEOUT_S)
    assert not unwell.ok
    assert "well" in unwell.reason


def test_another_program_that_answers_well_does_not_pass_for_the_daemon(opened: ExitStack, started: Started) -> None:
    stranger = serve(opened, answering(OK))
    sleeper = started.run("sleep", "60")
    claimed = entry(identify(sleeper.pid), stranger.port)
    result = probe(claimed, HTTP, timeout_s=TIMEOUT_S)
    assert not result.ok
    assert "no child of" in result.reason
    assert probe(replace(claimed, identity=Identity()), HTTP, timeout_s=TIMEOUT_S).ok


@pytest.mark.parametrize("text", ["", "20", "200-", "399-200", "600", "99", "200;204", "two hundred", "٢٠٠"])
def test_what_is_no_range_of_statuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="status"):
        parse_statuses(text)
    assert parse_statuses("200,204, 300-399") == ((200, 200), (204, 204), (300, 399))
