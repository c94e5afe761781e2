"""Which port a daemon's bind gets, with real processes under the filter, also where the keeper dies over it."""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from filtered import DEADLINE_S, Filtered
from turnout.activation.answers import AFTER_LAST, BindAnswers, Memory
from turnout.activation.seccomp import WaitingCall
from turnout.activation.sockets import bind_in_place, socket_of
from turnout.reuseport.group import Group
from turnout.reuseport.program import attach
from turnout.system.net.listener import bind
from turnout.testing import free_port

OWN = "def own(port, family=socket.AF_INET, host='127.0.0.1'):\n"
OWN += " s = socket.socket(family); s.bind((host, port)); s.listen(); print(s.getsockname()[1]); return s\n"


class Fixed:
    """The fixed address of a service. ``group`` None: it cannot be shared."""

    def __init__(self, group: Group | None) -> None:
        self.group = group
        self.backlogs: list[int] = []
        self.error: OSError | None = None

    def get(self) -> tuple[str, int] | None:
        return self.group.address if self.group else None

    def processes(self) -> tuple[()]:
        return ()

    def admit(self, sock: socket.socket, backlog: int) -> None:
        self.backlogs.append(backlog)
        if self.error:
            sock.close()
            raise self.error
        assert self.group
        sock.listen(backlog)
        self.group.add("v1", sock, backlog)


@pytest.fixture
def fixed() -> Iterator[Fixed]:
    group = Group.of(bind("127.0.0.1", 0))
    group.open()
    group.seen(group.version, [group.home])
    yield Fixed(group)
    group.close()


@contextmanager
def answered(
    code: str,
    *,
    given: int,
    serving: int = 0,
    held: tuple[int, ...] = (),
    log: Callable[[str], None] = lambda _line: None,
    fixed: Fixed | None = None,
) -> Iterator[tuple[Filtered, BindAnswers]]:
    """A daemon whose calls are answered, in a thread, until it ends."""
    with Filtered("import socket\n" + OWN + code) as daemon:
        memory = Memory.new(given, serving, shares=fixed is not None)
        answers = BindAnswers(daemon.notifications, memory, held.__contains__, fixed or Fixed(None), log)

        def serve() -> None:
            poller = select.poll()
            poller.register(daemon.notifications.fileno(), select.POLLIN)
            while any(events & select.POLLIN for _, events in poller.poll(DEADLINE_S * 1000)):
                answers.turn()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield daemon, answers
        finally:
            daemon.process.kill()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
            answers.memory.close()


def bound(
    code: str, *, given: int, serving: int = 0, held: tuple[int, ...] = (), fixed: Fixed | None = None
) -> tuple[list[int], BindAnswers]:
    """The ports that a daemon's sockets have in the end, as it prints them."""
    with answered(code, given=given, serving=serving, held=held, fixed=fixed) as (daemon, answers):
        return [int(word) for word in daemon.printed().split()], answers


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", ""])
def test_the_first_port_that_it_binds_is_the_serving_port_and_becomes_the_given_one(host: str) -> None:
    given, own = free_port(), free_port()
    ports, answers = bound(f"a = own({own}, host={host!r})", given=given)
    assert (ports, answers.memory.serving, answers.memory.ports) == ([given], own, ())


def test_a_named_port_is_the_serving_port_and_the_others_are_as_the_daemon_says() -> None:
    given, own, peer = free_port(), free_port(), free_port()
    ports, answers = bound(f"a = own({peer}); b = own({own})", given=given, serving=own)
    assert (ports, answers.memory.serving, answers.memory.ports) == ([peer, given], own, (peer,))


def test_a_worker_and_the_other_family_share_the_given_port() -> None:
    given, own = free_port(), free_port()
    code = (
        f"a = own({own}); b = own({own}); c = own({own}, socket.AF_INET6, '::1'); d = own({own}, socket.AF_INET6, '::')"
    )
    assert bound(code, given=given)[0] == [given] * 4


def test_a_daemon_that_closes_its_listener_and_binds_anew_gets_the_given_port_again() -> None:
    given, own = free_port(), free_port()
    assert bound(f"own({own}).close(); a = own({own})", given=given)[0] == [given, given]


def test_a_bind_that_is_called_again_for_a_signal_finds_its_socket_bound() -> None:
    given, own = free_port(), free_port()
    assert bound(f"a = own({own}); a.bind(('127.0.0.1', {own})); print(7)", given=given)[0] == [given, 7]


def test_a_daemon_that_was_told_its_port_binds_it_itself() -> None:
    given = free_port()
    ports, answers = bound(f"a = own({given})", given=given, serving=given)
    assert (ports, answers.trouble) == ([given], "")


def test_a_port_that_another_daemon_of_the_service_holds_is_replaced_by_a_free_one() -> None:
    """Its metrics port: two releases beside each other would be none."""
    given, own, metrics = free_port(), free_port(), free_port()
    ports, answers = bound(f"a = own({own}); b = own({metrics})", given=given, serving=own, held=(metrics,))
    assert ports[0] == given
    assert ports[1] not in {metrics, given, 0}
    assert answers.memory.ports == ()


def test_port_0_udp_and_an_address_of_the_network_are_as_the_daemon_says() -> None:
    given, own = free_port(), free_port()
    code = (
        "u = socket.socket(type=socket.SOCK_DGRAM)\n"
        f"u.bind(('127.0.0.1', {own})); print(u.getsockname()[1]); a = own(0); assert a.getsockname()[1] != {given}\n"
        "s = socket.socket()\n"
        f"try: s.bind(('192.0.2.1', {own}))\nexcept OSError as error: print(error.errno)"
    )
    ports, answers = bound(code, given=given, serving=own)
    assert (ports[0], ports[2]) == (own, errno.EADDRNOTAVAIL)
    assert answers.memory.serving == own


def test_a_given_port_that_another_program_took_is_said_to_the_daemon() -> None:
    own = free_port()
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        code = f"try: own({own})\nexcept OSError as error: print(error.errno)"
        assert bound(code, given=theirs.getsockname()[1])[0] == [errno.EADDRINUSE]


def test_a_daemon_that_may_not_be_looked_at_binds_as_it_says_and_the_reason_is_known() -> None:
    """PR_SET_DUMPABLE 0; root may look all the same."""
    given, own = free_port(), free_port()
    ports, answers = bound(f"import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\na = own({own})", given=given)
    if os.geteuid() == 0:
        assert (ports, answers.trouble) == ([given], "")
    else:
        assert ports == [own]
        assert "not dumpable" in answers.trouble


def test_a_daemon_in_a_network_of_its_own_binds_as_it_says() -> None:
    given, own = free_port(), free_port()
    unshare = shutil.which("unshare")
    assert unshare
    code = (
        f"import subprocess; subprocess.run(['{unshare}', '-rn', 'sh', '-c', 'ip link set lo up; exec \"$0\" \"$@\"', "
    )
    inner = f"import socket; s = socket.socket(); s.bind(('127.0.0.1', {own})); print(s.getsockname()[1])"
    ports, _ = bound(code + f"'{shutil.which('python3')}', '-c', {inner!r}], check=True)", given=given)
    assert ports == [own]


def test_a_socket_of_another_network_is_bound_as_the_daemon_says() -> None:
    """A thread may change its network (setns(2)): it is the socket's own that counts, not that of the process."""
    given, own = free_port(), free_port()
    code = (
        "import ctypes, threading; libc = ctypes.CDLL(None)\ndef serve():\n"
        " if libc.unshare(0x10000000 | 0x40000000) and libc.unshare(0x40000000): print(0); return\n"
        " s = socket.socket()\n try: s.bind(('127.0.0.1', OWN)); print(s.getsockname()[1])\n"
        " except OSError as error: print(error)\n"
        "thread = threading.Thread(target=serve); thread.start(); thread.join()"
    ).replace("OWN", str(own))
    ports, answers = bound(code, given=given)
    if ports == [0]:
        pytest.skip("a thread may not make a network here")
    assert (ports, answers.memory.serving) == ([own], 0)


def test_a_port_that_is_bound_over_and_over_is_logged_once() -> None:
    given, own = free_port(), free_port()
    lines = list[str]()
    with answered(f"for _ in range(50): own({own}).close()", given=given, log=lines.append) as (daemon, _):
        assert len(daemon.printed().split()) == 50
    assert lines == [f"port {own} of 127.0.0.1 is 127.0.0.1 port {given}"]


def test_a_descriptor_that_a_daemon_does_not_have_is_its_own_error() -> None:
    code = "import ctypes, struct; print(ctypes.CDLL(None).bind(99, struct.pack('=H', 2) + b'\\x0b' * 14, 16))"
    ports, answers = bound(code, given=free_port())
    assert (ports, answers.trouble) == ([-1], "")


def test_a_call_is_executed_whatever_fails_over_it() -> None:
    """A call that was received and is not answered would hang for ever."""
    given, own, other = free_port(), free_port(), free_port()
    code = f"a = own({own}); print(0); b = own({other})"
    with Filtered("import socket\n" + OWN + code) as daemon:

        def fails(_port: int) -> bool:
            raise RuntimeError("broken")

        answers = BindAnswers(daemon.notifications, Memory.new(given, own), fails, Fixed(None), lambda _line: None)
        poller = select.poll()
        poller.register(daemon.notifications.fileno(), select.POLLIN)
        failures = 0
        while any(events & select.POLLIN for _, events in poller.poll(DEADLINE_S * 1000)):
            try:
                answers.turn()
            except RuntimeError:
                failures += 1
        assert daemon.printed().split() == [str(given), "0", str(other)]
        assert failures == 1
        answers.memory.close()


def test_a_successor_executes_the_call_that_its_predecessor_had_received_and_knows_the_serving_port() -> None:
    """A keeper that was killed between two of its steps: nobody is told of that call again."""
    given, first, second = free_port(), free_port(), free_port()
    with Filtered("import socket\n" + OWN + f"a = own({first}); b = own({second})") as daemon:
        before = BindAnswers(
            daemon.notifications, Memory.new(given, 0), lambda _port: False, Fixed(None), lambda _line: None
        )

        def due() -> None:
            poller = select.poll()
            poller.register(daemon.notifications.fileno(), select.POLLIN)
            assert poller.poll(DEADLINE_S * 1000)

        for _ in range(2):  # bind and listen
            due()
            before.turn()
        due()
        lost = daemon.notifications.receive()
        assert lost
        noted = before.memory.call
        assert noted
        assert noted.id < lost.id <= noted.id + AFTER_LAST
        after = BindAnswers(
            daemon.notifications, Memory.of(os.dup(before.memory.fd)), before.held, Fixed(None), before.log
        )
        after.take_over()
        assert after.memory.serving == first
        due()
        after.turn()
        assert daemon.printed().split() == [str(given), str(second)]
        before.memory.close()
        after.memory.close()


@pytest.mark.parametrize("bound_already", [False, True])
def test_a_successor_answers_the_call_that_its_predecessor_had_noted(bound_already: bool) -> None:
    """Executed as it stands, it would be at the daemon's own port, or fail since its socket is bound already."""
    given, own = free_port(), free_port()
    with Filtered("import socket\n" + OWN + f"a = own({own})") as daemon:
        memory = Memory.new(given, own)
        memory.call = daemon.next_call()
        memory.store()
        if bound_already:
            sock = socket_of(memory.call)
            assert sock
            with sock:
                bind_in_place(sock, given)
        after = BindAnswers(
            daemon.notifications, Memory.of(memory.fd), lambda _port: False, Fixed(None), lambda _line: None
        )
        after.take_over()
        daemon.notifications.proceed(daemon.next_call().id)
        assert daemon.printed() == f"{given}\n"
        after.memory.close()


def test_memory_holds_the_first_ports_and_no_more() -> None:
    memory = Memory.new(2, 1)
    memory.ports = tuple(range(1, 100))
    memory.call = WaitingCall(2**64 - 1, 2**31 - 1, 49, (2**64 - 1,) * 6)
    memory.store()
    again = Memory.of(memory.fd)
    assert (again.given, again.serving, again.call, again.ports) == (2, 1, memory.call, tuple(range(1, 65)))
    memory.close()


def test_the_serving_port_is_the_fixed_address_where_daemons_share_it(fixed: Fixed) -> None:
    own = free_port()
    code = f"""
a = socket.socket()
a.bind(('0.0.0.0', {own}))
a.listen(7)
print(a.getsockname()[1])
a.accept()[0].sendall(b'it is me')
"""
    assert fixed.group
    with answered(code, given=free_port(), fixed=fixed) as (daemon, answers):
        assert daemon.process.stdout
        assert int(daemon.process.stdout.readline()) == fixed.group.address[1]
        assert fixed.group.indexes_of("v1") == [0]
        attach(fixed.group.router_listeners[0], [0])
        with socket.create_connection(fixed.group.address, DEADLINE_S) as client:
            client.settimeout(DEADLINE_S)
            assert client.recv(100) == b"it is me"
    assert (fixed.backlogs, answers.memory.serving, answers.trouble) == ([7], own, "")


def test_a_socket_joins_the_group_when_the_daemon_listens_and_once(fixed: Fixed) -> None:
    own = free_port()
    code = f"a = socket.socket(); a.bind(('', {own})); a.listen(70000); a.listen(9); print(5); b = own({own})"
    ports, _ = bound(code, given=free_port(), fixed=fixed)
    assert fixed.group
    assert ports == [5, fixed.group.address[1]]
    assert fixed.backlogs == [65535, 9, 128]
    assert fixed.group.indexes_of("v1") == [0, 1], "each worker has a listener of its own"


def test_what_cannot_join_the_group_is_refused_as_the_kernel_refuses(fixed: Fixed) -> None:
    fixed.error = OSError(errno.ENOBUFS, "enough of them")
    code = f"""
a = socket.socket()
a.bind(('127.0.0.1', {free_port()}))
try:
    a.listen()
except OSError as error:
    print(error.errno)
"""
    ports, answers = bound(code, given=free_port(), fixed=fixed)
    assert ports == [errno.ENOBUFS]
    assert answers.trouble == "enough of them"


@pytest.mark.parametrize("other", ["family=socket.AF_INET6, host='::1'"])
def test_an_ipv6_socket_has_the_given_port_beside_the_fixed_address(fixed: Fixed, other: str) -> None:
    own, given = free_port(), free_port()
    ports, _ = bound(f"a = own({own}); b = own({own}, {other})", given=given, fixed=fixed)
    assert fixed.group
    assert ports == [fixed.group.address[1], given]


DUAL = """
import fcntl, os, select
own_port = {own}
sock = socket.socket(socket.AF_INET6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
"""


def test_a_dual_stack_socket_is_exchanged_for_one_of_the_group_with_its_options(fixed: Fixed) -> None:
    """As Node, Java and Go bind a port without an address."""
    code = (
        DUAL.format(own=free_port())
        + """
sock.setblocking(False)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100000)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
os.set_inheritable(sock.fileno(), True)
size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
number = sock.fileno()
sock.bind(('::', own_port))
sock.listen(7)
print(sock.getsockname()[1])
print(int(sock.fileno() == number))
print(int(not os.get_blocking(number)))
print(int(os.get_inheritable(number)))
print(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
print(int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size))
print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
print(int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0))
"""
    )
    ports, answers = bound(code, given=free_port(), fixed=fixed)
    assert fixed.group
    assert ports == [fixed.group.address[1], *[1] * 7]
    assert (fixed.backlogs, fixed.group.indexes_of("v1"), answers.trouble) == ([7], [0], "")


@pytest.mark.parametrize(
    "use",
    [
        "kept = os.dup(sock.fileno())",
        "poll = select.epoll(); poll.register(sock, select.EPOLLIN)",
        "sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)",
        "pid = os.fork()\nif not pid: os.execvp('sleep', ['sleep', '0'])\nkept = os.fork() or os._exit(0)",
    ],
    ids=["it has a duplicate", "it is watched already", "it is for IPv6 alone", "no other process has it any more"],
)
def test_a_dual_stack_socket_that_is_used_already_stays(fixed: Fixed, use: str) -> None:
    """The daemon would go on with the one that it had; the given port serves it by the relay."""
    given = free_port()
    code = DUAL.format(own=free_port()) + use + "\n"
    code += "os.waitpid(-1, 0)\n" * use.count("fork")
    ports, _ = bound(
        code + "sock.bind(('::', own_port)); sock.listen(); print(sock.getsockname()[1])", given=given, fixed=fixed
    )
    assert fixed.group
    assert ports == [fixed.group.address[1] if "fork" in use else given]


def test_a_descriptor_that_was_replaced_meanwhile_is_not_exchanged(
    fixed: Fixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread of the daemon may have put a file there, and it must not be lost."""
    given = free_port()
    monkeypatch.setattr("turnout.activation.answers.is_still", lambda *_: False)
    code = DUAL.format(own=free_port()) + "sock.bind(('::', own_port)); print(sock.getsockname()[1])"
    assert bound(code, given=given, fixed=fixed)[0] == [given]


def test_where_the_fixed_address_cannot_be_shared_the_given_port_is_bound() -> None:
    given = free_port()
    assert bound(f"a = own({free_port()})", given=given, fixed=Fixed(None))[0] == [given]


def test_what_the_next_keeper_has_to_know_is_in_the_memory() -> None:
    memory = Memory.new(5, 6, shares=True)
    memory.ports = (7, 8)
    memory.store()
    again = Memory.of(memory.fd)
    assert (again.given, again.serving, again.shares, again.ports) == (5, 6, True, (7, 8))
    memory.close()


KINDS = {
    "an address of struct sockaddr_storage": """
import ctypes, struct
sock = socket.socket()
room = ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack("!H", own_port) + bytes(124), 128)
assert ctypes.CDLL(None, use_errno=True).bind(sock.fileno(), room, 128) == 0
""",
    "a duplicate that was made before": """
import os, select
first = socket.socket()
poll = select.epoll()
poll.register(first, select.EPOLLIN)
sock = first.dup()
first.bind(("0.0.0.0", own_port))
""",
    "MPTCP, as Go listens": """
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sock.bind(("127.0.0.1", own_port))
""",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_of_any_kind_is_served_at_the_fixed_address(fixed: Fixed, kind: str) -> None:
    own = free_port()
    code = f"own_port = {own}\n" + KINDS[kind] + "sock.listen()\nprint(7)\nsock.accept()[0].sendall(b'it is me')\n"
    assert fixed.group
    with answered(code, given=free_port(), fixed=fixed) as (daemon, answers):
        assert daemon.process.stdout
        assert daemon.process.stdout.readline() == "7\n"
        assert answers.trouble == ""
        (index,) = fixed.group.indexes_of("v1")
        attach(fixed.group.router_listeners[0], [index])
        with socket.create_connection(fixed.group.address, DEADLINE_S) as client:
            client.settimeout(DEADLINE_S)
            assert client.recv(100) == b"it is me"
