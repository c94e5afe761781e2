from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from process_support import Started, line_of, open_descriptors
from support import eventually
from turnout.system.net import sock_diag, sockets
from turnout.system.net.sockets import (
    Listener,
    accept_queue,
    accept_queues,
    accepted_at,
    established_to,
    has_any,
    listeners_of,
    listening_at,
    may_be_looked_at,
    unaccepted_at,
    who_listens,
)
from turnout.testing import free_port

LOOPBACK = "127.0.0.1"
NOBODY = 65534


@pytest.fixture
def started() -> Iterator[Started]:
    with Started() as found:
        yield found


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["sock_diag", "/proc/net"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the tables come from; each answer must be the same."""
    if request.param == "/proc/net":

        def refused(*_: object) -> object:
            raise PermissionError

        monkeypatch.setattr(sock_diag, "dump", refused)
    return str(request.param)


def _listen(opened: ExitStack, host: str = LOOPBACK, port: int = 0, **more: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return opened.enter_context(socket.create_server((host, port), family=family, **more))


def _port(sock: socket.socket) -> int:
    found: int = sock.getsockname()[1]
    return found


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.usefixtures("source")
def test_a_listener_is_found_with_its_owner_and_inode(opened: ExitStack) -> None:
    sock = _listen(opened)
    assert Listener(LOOPBACK, _port(sock), os.getpid(), _inode(sock)) in listeners_of({os.getpid()})


@pytest.mark.usefixtures("source")
def test_sockets_that_do_not_listen_are_no_listeners(opened: ExitStack) -> None:
    sock = _listen(opened)
    client = opened.enter_context(socket.create_connection(sock.getsockname()))
    bound = opened.enter_context(socket.socket())
    bound.bind((LOOPBACK, 0))
    ports = {listener.port for listener in listeners_of({os.getpid()})}
    assert _port(sock) in ports
    assert not {_port(client), _port(bound)} & ports


@pytest.mark.usefixtures("source")
def test_the_listeners_of_a_process_that_is_gone_are_none() -> None:
    assert listeners_of({2**22 + 1}) == []


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("bound", "asked", "found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "localhost", True),
        ("0.0.0.0", "::1", False),
        ("::1", "::1", True),
        ("::1", "[::1]", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("::1", "localhost", True),
        ("::1", "127.0.0.1", False),
        ("::1", "0.0.0.0", False),
        ("::", "::1", True),
        ("127.0.0.1", "no.such.name.invalid", False),
    ],
)
def test_a_listener_is_found_by_each_way_to_write_its_address(
    opened: ExitStack, bound: str, asked: str, found: bool
) -> None:
    sock = _listen(opened, bound)
    assert [listener.inode for listener in listening_at(asked, _port(sock))] == ([_inode(sock)] if found else [])
    holder = who_listens(asked, _port(sock))
    assert bool(holder and holder.pid == os.getpid() and holder.listening) is found


@pytest.mark.usefixtures("source")
def test_a_wildcard_of_both_families_gets_ipv4_too(opened: ExitStack) -> None:
    sock = _listen(opened, "::", dualstack_ipv6=True)
    assert [listener.inode for listener in listening_at(LOOPBACK, _port(sock))] == [_inode(sock)]


def test_a_wildcard_of_ipv6_alone_does_not_get_ipv4(opened: ExitStack) -> None:
    sock = _listen(opened, "::")
    assert listening_at(LOOPBACK, _port(sock)) == []


@pytest.mark.usefixtures("source")
def test_the_address_itself_takes_precedence_over_a_wildcard(opened: ExitStack) -> None:
    wide = _listen(opened, "0.0.0.0", reuse_port=True)
    close = _listen(opened, LOOPBACK, _port(wide), reuse_port=True)
    assert [listener.inode for listener in listening_at(LOOPBACK, _port(wide))] == [_inode(close)]
    assert [listener.inode for listener in listening_at("127.0.0.2", _port(wide))] == [_inode(wide)]


@pytest.mark.usefixtures("source")
def test_listeners_that_share_a_port_are_all_found(opened: ExitStack) -> None:
    first = _listen(opened, reuse_port=True)
    second = _listen(opened, port=_port(first), reuse_port=True)
    assert {listener.inode for listener in listening_at(LOOPBACK, _port(first))} == {_inode(first), _inode(second)}


# -- who_listens -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("source")
def test_the_holder_of_a_port_is_named_with_its_command(started: Started) -> None:
    running = started.demo()
    holder = who_listens(LOOPBACK, running.port)
    assert holder
    assert (holder.pid, holder.listening) == (running.process.pid, True)
    assert "turnout.demo.daemon" in holder.command


@pytest.mark.usefixtures("source")
def test_nobody_has_a_free_port(opened: ExitStack) -> None:
    sock = _listen(opened)
    port = _port(sock)
    sock.close()
    assert who_listens(LOOPBACK, port) is None
    assert listening_at(LOOPBACK, port) == []


@pytest.mark.usefixtures("source")
def test_an_outgoing_connection_that_has_the_port_is_named_and_does_not_listen(opened: ExitStack) -> None:
    # two connections of different processes may have one port that the kernel chose (ip(7)), to different peers
    source = (LOOPBACK, free_port())
    client = opened.enter_context(socket.create_connection(_listen(opened).getsockname(), 20, source))
    holder = who_listens(LOOPBACK, _port(client))
    assert holder
    assert (holder.pid, holder.listening) == (os.getpid(), False)


def test_a_socket_that_is_only_bound_is_named_where_the_kernel_tells(opened: ExitStack) -> None:
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 8):
        pytest.skip("sock_diag tells of bound sockets since Linux 6.8")
    sock = opened.enter_context(socket.socket())
    sock.bind((LOOPBACK, 0))
    holder = who_listens(LOOPBACK, _port(sock))
    assert holder
    assert (holder.pid, holder.listening) == (os.getpid(), False)


@pytest.mark.usefixtures("source")
def test_of_a_master_and_its_workers_the_master_is_named(started: Started) -> None:
    code = (
        "import os, socket, time\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "time.sleep(0.05)  # start times are counted in hundredths of a second\n"
        "os.fork() and os.fork() and print(listener.getsockname()[1], flush=True)\n"
        "time.sleep(600)\n"
    )
    master = started.python(code)
    holder = who_listens(LOOPBACK, int(line_of(master)))
    assert holder
    assert holder.pid == master.pid


def test_an_owner_that_may_not_be_seen_is_told_by_its_user(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = _listen(opened)
    monkeypatch.setattr(sockets, "_owners", lambda _: {})
    holder = who_listens(LOOPBACK, _port(sock))
    assert holder
    assert (holder.pid, holder.listening) == (0, True)
    assert "user" in holder.command


# -- connections -------------------------------------------------------------------------------------------------------


def test_the_accept_queue_is_counted_with_its_bound(opened: ExitStack) -> None:
    sock = opened.enter_context(socket.create_server((LOOPBACK, 0), backlog=7))
    assert accept_queue(LOOPBACK, _port(sock)) == (0, 7)
    for _ in range(3):
        opened.enter_context(socket.create_connection(sock.getsockname()))
    eventually(lambda: accept_queue(LOOPBACK, _port(sock)) == (3, 7))
    opened.enter_context(sock.accept()[0])
    assert accept_queue(LOOPBACK, _port(sock)) == (2, 7)


def test_the_accept_queue_of_nobody_is_unknown(opened: ExitStack) -> None:
    sock = _listen(opened)
    port = _port(sock)
    sock.close()
    assert accept_queue(LOOPBACK, port) is None


def test_where_the_system_does_not_tell_the_bound_the_queue_is_unknown(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> object:
        raise OSError("no such protocol family")

    monkeypatch.setattr(sock_diag, "dump", refused)
    assert accept_queue(LOOPBACK, _port(_listen(opened))) is None


@pytest.mark.usefixtures("source")
def test_connections_are_counted_at_the_server_and_only_until_they_are_closed(opened: ExitStack) -> None:
    sock = _listen(opened)
    port = _port(sock)
    # from a port that nothing else is given: connections elsewhere may share one that the kernel chose
    sources = [None, None, None, (LOOPBACK, free_port())]
    clients = [
        opened.enter_context(socket.create_connection(sock.getsockname(), source_address=source)) for source in sources
    ]
    eventually(lambda: established_to(port) == 4, why="waiting ones count")
    assert accepted_at(port) == frozenset()
    assert (unaccepted_at(LOOPBACK, port), unaccepted_at("127.0.0.2", port)) == (4, 0)
    served = [opened.enter_context(sock.accept()[0]) for _ in range(4)]
    assert unaccepted_at(LOOPBACK, port) == 0
    assert accepted_at(port) == {client.getsockname() for client in clients}
    assert established_to(port) == 4
    clients[0].shutdown(socket.SHUT_WR)
    served[1].shutdown(socket.SHUT_WR)
    assert established_to(port) == 4, "half-closed ones count"
    for sock_pair in (clients[2], served[2]):
        sock_pair.close()
    eventually(lambda: established_to(port) == 3)
    assert unaccepted_at(LOOPBACK, port) == 0, "one that its daemon has closed waits for nobody"
    assert established_to(_port(clients[3])) == 1, "at the client's port there is its own end"


@pytest.mark.usefixtures("source")
def test_the_tables_agree_with_psutil(opened: ExitStack) -> None:
    psutil = pytest.importorskip("psutil")
    _listen(opened)
    _listen(opened, "::1")
    here = {
        (conn.laddr.ip, conn.laddr.port)
        for conn in psutil.Process().net_connections("tcp")
        if conn.status == psutil.CONN_LISTEN
    }
    assert {(found.host, found.port) for found in listeners_of({os.getpid()})} == here


def test_a_look_leaves_no_descriptor(opened: ExitStack) -> None:
    port = _port(_listen(opened))
    before = open_descriptors()
    for _ in range(20):
        listening_at(LOOPBACK, port)
        who_listens(LOOPBACK, port)
        listeners_of({os.getpid()})
    assert open_descriptors() == before


def test_many_sockets_come_in_several_messages(opened: ExitStack) -> None:
    mine = {_port(_listen(opened)) for _ in range(400)}
    assert {listener.port for listener in listeners_of({os.getpid()})} >= mine


def test_sockets_of_another_network_namespace_are_not_seen() -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    process = subprocess.Popen(
        [
            "unshare",
            "--user",
            "--net",
            "--map-root-user",
            "sh",
            "-c",
            f'ip link set lo up; exec "{sys.executable}" -c "{code}"',
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        assert process.stderr
        said = process.stdout.readline()
        try:
            if not said:
                pytest.skip(f"no network namespace can be set up here: {process.stderr.read().decode().strip()}")
            assert listening_at(LOOPBACK, int(said)) == []
            assert process.pid not in {found.pid for found in listeners_of({process.pid})}
        finally:
            process.kill()


def test_a_socket_is_found_again_after_it_moved_and_not_found_where_another_took_its_number() -> None:
    """Where it was found last is a hint only."""
    with socket.create_server(("127.0.0.1", 0)) as first:
        (mine,) = listening_at("127.0.0.1", first.getsockname()[1])
        assert has_any(os.getpid(), {mine.inode})
        moved = first.dup()
        number = first.fileno()
    with moved:
        assert has_any(os.getpid(), {mine.inode})
    other = socket.socket().detach()  # the lowest free number, which may be that one
    try:
        os.dup2(other, number)
        assert not has_any(os.getpid(), {mine.inode})
    finally:
        os.closerange(number, number + 1)
        os.closerange(other, other + 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
def test_whether_the_descriptors_of_a_process_may_be_looked_at_is_known() -> None:
    assert may_be_looked_at(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(60)
    assert may_be_looked_at(ended.pid), "it has none any more"
    other = os.getpid() if os.geteuid() == 0 else 1
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        os._exit(may_be_looked_at(other) * 1 + may_be_looked_at(os.getpid()) * 2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2, "nobody may look at its own, and not at another user's"


def test_where_no_descriptor_is_left_nothing_is_taken_for_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, nobody is connected, nobody hides anything: that is what a daemon without clients looks like."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sock_diag, "_netlink", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    for ask in (lambda: listening_at(LOOPBACK, 1), lambda: established_to(1), lambda: accept_queues(LOOPBACK, 1)):
        with pytest.raises(OSError, match="Too many open files"):
            ask()
    assert not may_be_looked_at(os.getpid())


def test_the_user_at_the_other_end_of_a_connection_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, peer = listener.accept()
        with server:
            assert sock_diag.uid_of(server.getsockname(), peer) == os.geteuid()
        port = client.getsockname()[1]
    assert sock_diag.uid_of(("127.0.0.1", 1), ("127.0.0.1", port)) is None, "there is no such connection"


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def _proc_line(local: str, remote: str, state: int, inode: int, queued: int = 0) -> str:
    queues = f"00000000:{queued:08X} 00:00000000 00000000"
    return f"   0: {local} {remote} {state:02X} {queues}  1000        0 {inode} 1 0000000000000000 20 4 30 10 -1\n"


def test_a_socket_that_moved_in_the_table_while_it_was_read_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel hands /proc/net/tcp out in pieces, and goes on by a position that other sockets shift."""
    here, anywhere = "0100007F:1F90", "00000000:0000"
    peers = ("0100007F:9C40", "0100007F:9C41")
    lines = [
        _proc_line(here, anywhere, sock_diag.LISTEN, 11, queued=1),
        _proc_line(here, anywhere, sock_diag.LISTEN, 12),  # of the same address, by SO_REUSEPORT
        _proc_line(here, peers[0], sock_diag.ESTABLISHED, 0),
        _proc_line(here, peers[1], sock_diag.ESTABLISHED, 13),
        _proc_line(here, anywhere, sock_diag.LISTEN, 11, queued=2),
        _proc_line(here, peers[0], sock_diag.ESTABLISHED, 14),  # it was accepted between the two pieces
    ]
    text = {"tcp": HEAD + "".join(lines), "tcp6": HEAD}

    def refused(*_: object) -> object:
        raise PermissionError

    monkeypatch.setattr(sock_diag, "dump", refused)
    monkeypatch.setattr(Path, "read_text", lambda path: text[path.name])
    rows = sock_diag.table(sock_diag.EVERY, 8080)
    assert sorted(row.inode for row in rows) == [11, 12, 13, 14]
    assert [row.queued for row in rows if row.inode == 11] == [2], "the later look counts"
    assert established_to(8080) == 2
