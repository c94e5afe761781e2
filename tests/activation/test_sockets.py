"""Addresses as daemons write them, and the sockets of living daemons, bound for them."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from filtered import Filtered
from support import eventually
from turnout.activation.sockets import (
    BindAddress,
    address_of,
    bind_in_place,
    is_bound_to,
    parse_address,
    process_of,
    socket_of,
)
from turnout.testing import free_port

KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))


def ipv4(host: str, port: int, family: int = socket.AF_INET) -> bytes:
    return struct.pack("=H", family) + struct.pack("!H4s8x", port, socket.inet_pton(socket.AF_INET, host))


def ipv6(host: str, port: int) -> bytes:
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 7)
    return head + socket.inet_pton(socket.AF_INET6, host) + bytes(4)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ipv4("0.0.0.0", 3000), BindAddress("0.0.0.0", 3000)),
        (ipv4("127.0.0.1", 65535).ljust(128, b"\0"), BindAddress("127.0.0.1", 65535)),
        (ipv6("::1", 5432), BindAddress("::1", 5432)),
        (ipv6("::", 0)[:24], BindAddress("::", 0)),
        (ipv6("::ffff:127.0.0.1", 8080), BindAddress("127.0.0.1", 8080)),
        (ipv6("::ffff:0.0.0.0", 8080), BindAddress("0.0.0.0", 8080)),
        (ipv4("0.0.0.0", 80, socket.AF_UNSPEC), BindAddress("0.0.0.0", 80)),
        (ipv4("127.0.0.1", 80, socket.AF_UNSPEC), None),
        (ipv4("127.0.0.1", 80)[:15], None),
        (ipv6("::1", 80)[:23], None),
        (ipv4("127.0.0.1", 80, socket.AF_NETLINK), None),
        (b"", None),
    ],
)
def test_an_address_is_read_as_the_kernel_reads_it(data: bytes, found: BindAddress | None) -> None:
    assert parse_address(data) == found


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::", True), ("0.0.0.0", True), ("192.0.2.1", False)],
)
def test_a_wildcard_is_local_too(host: str, local: bool) -> None:
    assert BindAddress(host, 1).is_local is local


def connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None


@pytest.mark.parametrize(
    ("made", "host"),
    [
        pytest.param("socket.socket()", "0.0.0.0", id="IPv4"),
        pytest.param("socket.socket(socket.AF_INET6)", "::", id="IPv6, dual-stack"),
        pytest.param("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)", "127.0.0.1", id="MPTCP"),
    ],
)
def test_a_daemon_serves_at_the_port_to_which_its_own_socket_was_bound(made: str, host: str) -> None:
    """It had registered the socket before it bound it, as Boost.Asio does: that stands."""
    code = (
        f"import select\ns = {made}\n"
        "s.setblocking(False)\nwaiting = select.epoll(); waiting.register(s, select.EPOLLIN)\n"
        f"s.bind(({host!r}, 3000)); s.listen()\nwaiting.poll(); print(s.accept()[0].recv(5).decode())"
    )
    port = free_port()
    with Filtered(code) as daemon:
        call = daemon.next_call()
        assert address_of(call) == BindAddress(host, 3000)
        sock = socket_of(call)
        assert sock
        with sock:
            bind_in_place(sock, port)
            assert is_bound_to(sock, port)
            assert not is_bound_to(sock, port + 1)
        daemon.notifications.answer(call.id)
        daemon.notifications.proceed(daemon.next_call().id)
        client = eventually(lambda: connected(port), why="it does not listen")
        assert client
        with client:
            client.sendall(b"hello")
            assert daemon.printed() == "hello\n"


def test_a_port_is_bound_by_a_second_worker_and_by_the_next_socket_of_a_daemon() -> None:
    port = free_port()
    with socket.socket() as first, socket.socket() as second, socket.socket(socket.AF_INET6) as third:
        for sock in (first, second, third):
            bind_in_place(sock, port)
            sock.listen()
    with socket.socket() as again:
        bind_in_place(again, port)


def test_a_port_that_another_program_has_is_not_had() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as theirs,
        socket.socket() as ours,
        pytest.raises(OSError, match="in use"),
    ):
        bind_in_place(ours, theirs.getsockname()[1])


@pytest.mark.parametrize(
    "made",
    [
        pytest.param("socket.socket(type=socket.SOCK_DGRAM).fileno()", id="UDP"),
        pytest.param("socket.socket(socket.AF_UNIX).fileno()", id="unix"),
        pytest.param("os.open('/dev/null', 0)", id="a file"),
    ],
)
def test_what_is_no_tcp_socket_is_none(made: str) -> None:
    code = (
        "import ctypes, struct\n"
        f"sock = {made.removesuffix('.fileno()')}\nfd = sock if isinstance(sock, int) else sock.fileno()\n"
        "ctypes.CDLL(None).bind(fd, struct.pack('=H', 2).ljust(16, b'\\0'), 16)"
    )
    with Filtered(code) as daemon:
        call = daemon.next_call()
        assert address_of(call) == BindAddress("0.0.0.0", 0)
        assert socket_of(call) is None
        daemon.notifications.proceed(call.id)
        daemon.printed()


def test_an_address_beyond_the_daemons_memory_is_none_and_a_descriptor_that_it_lacks_an_error() -> None:
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for pointer in (8, 2**63 + 8):\n"
        " assert libc.bind(99, ctypes.c_void_p(pointer), 16) == -1; print(ctypes.get_errno())"
    )
    with Filtered(code) as daemon:
        for _ in range(2):
            call = daemon.next_call()
            assert address_of(call) is None
            with pytest.raises(OSError, match="Bad file descriptor"):
                socket_of(call)
            daemon.notifications.proceed(call.id)
        assert daemon.printed().split() == ["9", "9"]


def test_a_daemon_whose_name_looks_like_a_line_of_its_status_is_itself() -> None:
    """str.splitlines() takes a form feed for the end of a line: the daemon would choose whose socket is bound."""
    code = (
        "import ctypes, os\nctypes.CDLL(None).prctl(15, b'\\x0cTgid: 1', 0, 0, 0)\n"
        "print(os.getpid()); s = socket.socket(); s.bind(('127.0.0.1', 0))"
    )
    with Filtered("import socket\n" + code) as daemon:
        call = daemon.next_call()
        assert process_of(call.thread) == daemon.process.pid
        daemon.notifications.proceed(call.id)
        daemon.printed()


THREAD = "import os, socket, threading, time\ndef serve():\n"


@pytest.mark.skipif(KERNEL < (6, 9), reason="PIDFD_THREAD is Linux 6.9")
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            " while ' Z ' not in open(f'/proc/{os.getpid()}/stat').read(): pass\n"
            " s = socket.socket(); s.bind(('127.0.0.1', 3000)); print(s.getsockname()[1], flush=True); os._exit(0)\n"
            "threading.Thread(target=serve).start(); import ctypes; ctypes.CDLL(None).pthread_exit(0)",
            id="whose first thread has ended",
        ),
        pytest.param(
            " ctypes.CDLL(None).unshare(0x400); s = socket.socket(); fd = os.dup2(s.fileno(), 200)\n"
            " s.close(); s = socket.socket(fileno=fd); s.bind(('127.0.0.1', 3000)); print(s.getsockname()[1])\n"
            "import ctypes; thread = threading.Thread(target=serve); thread.start(); thread.join()",
            id="with descriptors of its own",
        ),
    ],
)
def test_a_thread_binds_its_socket(code: str) -> None:
    port = free_port()
    with Filtered(THREAD + code) as daemon:
        call = daemon.next_call()
        sock = socket_of(call)
        assert sock
        with sock:
            bind_in_place(sock, port)
        daemon.notifications.answer(call.id)
        assert daemon.printed() == f"{port}\n"


def test_a_thread_that_ended_is_an_error() -> None:
    with Filtered("s = socket.socket(); s.bind(('127.0.0.1', 0))") as daemon:
        call = daemon.next_call()
        daemon.process.kill()
        daemon.process.wait()
        with pytest.raises(OSError, match="No such"):
            address_of(call)
        with pytest.raises(OSError, match="No such"):
            socket_of(call)
