"""The filter and its notifications against the kernel that runs the tests."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
from pathlib import Path

import pytest

from filtered import Filtered
from support import eventually
from turnout.activation import seccomp
from turnout.activation.seccomp import X86_64, UnsupportedError, calls_of, program
from turnout.system.process import state_of

NUMBERS = calls_of()

ALARM = 1 << (signal.SIGALRM - 1)

SOCKET = "s = socket.socket()\n"
SILENT = pytest.mark.parametrize(
    "code",
    [
        pytest.param("u = socket.socket(socket.AF_UNIX)\nu.bind('')", id="a unix socket without a name"),
        pytest.param("os.mkdir('d'); u = socket.socket(socket.AF_UNIX); u.bind('d/s')", id="a path"),
        pytest.param("n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); n.bind((0, 0))", id="netlink"),
        pytest.param(SOCKET + "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)", id="another option"),
        pytest.param(SOCKET + "s.connect_ex(('127.0.0.1', 1))", id="another call"),
    ],
)


def status(pid: int | str, name: str, base: int = 10) -> int:
    """A field of proc_pid_status(5)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[name], base)


def due(program: Filtered) -> bool:
    poller = select.poll()
    poller.register(program.notifications.fileno(), select.POLLIN)
    return any(events & select.POLLIN for _, events in poller.poll(0))


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(SOCKET + "s.bind(('127.0.0.1', 0))", id="IPv4"),
        pytest.param("s = socket.socket(socket.AF_INET6); s.bind(('::', 0))", id="IPv6"),
        pytest.param("s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))", id="UDP"),
        pytest.param(
            SOCKET + "import ctypes, struct\n"
            "a = struct.pack('HH4s', 2, 0, bytes((127, 0, 0, 1))).ljust(128, b'\\0')\n"
            "assert ctypes.CDLL(None).bind(s.fileno(), a, 128) == 0",
            id="a sockaddr_storage",
        ),
    ],
)
def test_a_bind_waits_for_its_answer_and_is_executed_when_it_is_to_proceed(code: str) -> None:
    with Filtered(code + "\nprint(s.getsockname()[1], s.fileno(), os.getpid())") as daemon:
        call = daemon.next_call()
        assert call.number == NUMBERS.bind
        assert daemon.notifications.is_valid(call.id)
        assert daemon.notifications.proceed(call.id)
        port, number, pid = map(int, daemon.printed().split())
        assert port != 0
        assert (call.fd, call.thread) == (number, pid)
        assert not daemon.notifications.is_valid(call.id)


def test_a_listen_waits_for_its_answer_too() -> None:
    with Filtered(SOCKET + "s.listen(7); print(s.getsockname()[1])") as daemon:
        call = daemon.next_call()
        assert (call.number, call.arguments[1]) == (NUMBERS.listen, 7)
        daemon.notifications.proceed(call.id)
        assert int(daemon.printed()) != 0


@SILENT
def test_what_is_no_bind_of_ours_is_not_seen(code: str, tmp_path: os.PathLike[str]) -> None:
    with Filtered(f"os.chdir({os.fspath(tmp_path)!r})\n{code}\nprint('went on')") as daemon:
        assert daemon.printed() == "went on\n"
        assert not due(daemon)


def test_an_answer_of_0_executes_nothing_and_an_error_is_raised_in_the_daemon() -> None:
    code = (
        SOCKET + "s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])\n"
        "try: s.bind(('127.0.0.1', 0))\nexcept OSError as error: print(error.errno)"
    )
    with Filtered(code) as daemon:
        assert daemon.notifications.answer(daemon.next_call().id)
        assert daemon.notifications.answer(daemon.next_call().id, error=errno.EADDRINUSE)
        assert daemon.printed().split() == ["0", str(errno.EADDRINUSE)]


def test_the_options_that_direct_a_group_are_answered_0_and_not_executed() -> None:
    """Else any member of the group could send the clients of all others where it likes."""
    program = struct.pack("HBBI", 0x06, 0, 0, 1)
    code = (
        "import ctypes, struct\n"
        "def member():\n s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); return s\n"
        f"held = ctypes.create_string_buffer({program!r}, 8)\n"
        "s = member()\n"
        "s.setsockopt(1, 51, struct.pack('HxxxxxxQ', 1, ctypes.addressof(held)))\n"
        "s.setsockopt(1, 52, 77)\n"  # a descriptor that is none: executed, it would be EBADF
        "s.setsockopt(1, 68, 0)\n"  # no program to detach: executed, it would be ENOENT
        "print('answered')"
    )
    with Filtered(code) as daemon:
        assert daemon.printed() == "answered\n"


def test_signals_end_no_call_that_is_being_answered() -> None:
    """Without WAIT_KILLABLE_RECV each of them does, and a restarted call is a new one."""
    code = (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('alarm'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)\n" + SOCKET + "s.bind(('127.0.0.1', 0))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0); print('bound')"
    )
    with Filtered(code) as daemon:
        call = daemon.next_call()
        eventually(lambda: status(daemon.process.pid, "ShdPnd", 16) & ALARM, why="no alarm came")
        assert daemon.notifications.is_valid(call.id)
        assert daemon.notifications.proceed(call.id)
        assert daemon.printed().splitlines()[-1] == "bound"


def test_a_call_of_a_thread_that_was_killed_is_no_call() -> None:
    with Filtered(SOCKET + "s.bind(('127.0.0.1', 0))") as daemon:
        call = daemon.next_call()
        daemon.process.kill()
        eventually(lambda: state_of(daemon.process.pid) == "Z")
        assert not daemon.notifications.is_valid(call.id)
        assert not daemon.notifications.answer(call.id)
        assert not daemon.notifications.proceed(call.id)


def test_a_call_that_another_process_received_is_answered_by_its_number() -> None:
    """How a new keeper answers what the one before had received when it died: it tries the numbers that may be due."""
    with Filtered(SOCKET + "s.bind(('127.0.0.1', 0)); t = socket.socket(); t.bind(('127.0.0.1', 0))") as daemon:
        first = daemon.next_call()
        daemon.notifications.proceed(first.id)
        lost = daemon.next_call().id
        found = [number for number in range(first.id, first.id + 64) if daemon.notifications.is_valid(number)]
        assert found == [lost]
        assert daemon.notifications.proceed(found[0])
        daemon.printed()


def test_a_daemon_can_still_raise_no_privilege_where_the_filter_needs_that() -> None:
    with Filtered("print(open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0])") as daemon:
        assert daemon.printed() == "1\n"


def test_this_machine_is_supported_and_asking_changes_nothing() -> None:
    before = status("self", "NoNewPrivs")
    seccomp.check_supported()
    assert status("self", "NoNewPrivs") == before


def test_an_architecture_that_is_not_known_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        calls_of("riscv64")


@pytest.mark.parametrize(
    ("code", "why"), [(errno.EINVAL, "Linux 5.19"), (errno.ENOSYS, "seccomp"), (errno.EPERM, "refused")]
)
def test_what_a_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch, code: int, why: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(seccomp, "_syscall", refuse)
    with pytest.raises(UnsupportedError, match=why):
        seccomp.check_supported()


def run_filter(code: bytes, *, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would make of a call: the few instructions that the filter has."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    lines: list[tuple[int, int, int, int]] = list(struct.iter_unpack("HBBI", code))
    at = value = 0
    while True:
        kind, true, false, k = lines[at]
        at += 1
        match kind:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, k)
            case 0x15:
                at += true if value == k else false
            case 0x35:
                at += true if value >= k else false
            case 0x06:
                return k
            case _:
                raise AssertionError(kind)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_both_architectures_have_their_numbers(machine: str) -> None:
    calls = calls_of(machine)

    def run(number: int, *arguments: int) -> int:
        return run_filter(program(calls), arch=calls.arch, number=number, arguments=arguments)

    notify, allow = 0x7FC00000, 0x7FFF0000
    assert [run(calls.bind, 3, 0, length) for length in (12, 15, 16, 28, 109, 110, 111, 128)] == [
        *(allow, allow, notify, notify, notify, allow, notify, notify)
    ]
    assert run(calls.listen, 3, 5) == notify
    assert [
        run(calls.setsockopt, 3, level, option) for level, option in ((1, 51), (1, 52), (1, 68), (1, 15), (6, 51))
    ] == [*(0x50000, 0x50000, 0x50000, allow, allow)]
    assert run(calls.seccomp) == allow
    assert run_filter(program(calls), arch=0x40000003, number=calls.bind, arguments=(3, 0, 16)) == allow
    if calls is X86_64:
        assert run(0x40000000 | calls.bind, 3, 0, 16) == allow, "x32 has numbers of its own"
