"""Starting a daemon from a single-threaded parent, so that none ever runs unrecorded. Standard library only.

    parent: fork ─ write the record ─ open the gate ─ read how exec went
    child:  setsid, log, directory, limits ─ wait at the gate ─ exec

A parent that dies before the gate is open closes the pipe, and the child ends without having become the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import re
import resource
import secrets
import select
import signal
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

from turnout.core.model import Identity
from turnout.errors import SpawnError, StateUnwritableError
from turnout.system.process import identify
from turnout.system.spawn_record import EndRecord, SpawnRecord, read_records, record_end, write_record

__all__ = [
    "EndRecord",
    "ReservedPort",
    "SpawnRecord",
    "SpawnRequest",
    "adopt_subreaper",
    "choose_port",
    "clean_environment",
    "fill_port",
    "read_records",
    "record_end",
    "resolve_command",
    "spawn",
]

EXEC_TIMEOUT_S: Final = 5.0
FIXED_PORT: Final = 47777  # where clients come by default, so never a daemon's own
PORT_TRIES: Final = 200
# What an outer turnout or systemd said to this process alone: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
# Whole names, since LISTEN_ADDR and the like are the daemon's business.
_NOT_FOR_DAEMONS: Final = frozenset({"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "MAINPID"})
_NOR_THESE: Final = ("TURNOUT_", "WATCHDOG_")
_WORD: Final = re.compile(r"(?<!\{)\{(port|fd|listen_port)\}(?!\})")
_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2), Linux 3.4
_FIRST_PASSED_FD: Final = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """What to run.

    Args:
        boot_id: the key of this boot of the daemon.
        service: the service it belongs to.
        argv: the command as the daemon sees it.
        cwd: its directory, absolute; empty is the root.
        env: its whole environment, clean already.
        log_path: its output is appended there; made with mode 0600, refused if it is a symbolic link.
        record_path: says what runs, and is written before it runs.
        nofile: soft and hard RLIMIT_NOFILE (getrlimit(2)); None leaves what the parent has.
        pass_fds: descriptors that it gets as 3, 4, …, told by LISTEN_FDS and LISTEN_PID. They stay the caller's.
        slot: its place in the group at the fixed address.
        listener_inode: the listener that it has there; 0: it is in none.
        joins: it joins that group by itself.
    """

    boot_id: str
    service: str
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    log_path: Path
    record_path: Path
    nofile: tuple[int, int] | None = None
    pass_fds: tuple[int, ...] = ()
    slot: int = 0
    listener_inode: int = 0
    joins: bool = False


def spawn(request: SpawnRequest) -> Identity:
    """Fork and exec, from a process without threads; the daemon leads a session of its own.

    Answers once exec is done, or after 5 s (a cold disk), when it is the probe that judges. To wait for the child is
    the caller's business.

    Raises:
        SpawnError: no such command, not executable, no such directory, no process to be had; nothing of it is left.
        StateUnwritableError: its record or its log cannot be written; nothing runs.
    """
    path = resolve_command(request.argv, request.cwd, request.env)
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(_open_log(request.log_path))
        try:
            gate_read, gate_write = _pipe(opened)
            told_read, told_write = _pipe(opened)
            pid = _fork_masked()
        except OSError as error:
            raise _refusal(request, path, "fork", error.errno or 0) from error
        if pid == 0:
            _become(request, path, log.fileno(), gate_read.fileno(), gate_write.fileno(), told_write.fileno())
        for child_end in (log, gate_read, told_write):
            child_end.close()
        try:
            record = SpawnRecord(
                request.boot_id,
                request.service,
                identify(pid),
                str(request.log_path),
                time.time(),
                slot=request.slot,
                listener_inode=request.listener_inode,
                joins=request.joins,
            )
            write_record(request.record_path, record)
            with contextlib.suppress(BrokenPipeError):  # it failed before the gate, and says so on the other pipe
                gate_write.write(b"g")
            trouble = _exec_trouble(told_read)
            if trouble:
                raise _refusal(request, path, *trouble)
        except BaseException:
            os.kill(pid, signal.SIGKILL)  # our own child, not waited for: the number is still its own
            os.waitpid(pid, 0)
            with contextlib.suppress(OSError):
                request.record_path.unlink()
            raise
    return record.identity


def _pipe(opened: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    read, write = os.pipe2(os.O_CLOEXEC)
    return opened.enter_context(io.FileIO(read, "rb")), opened.enter_context(io.FileIO(write, "wb"))


def _fork_masked() -> int:
    """Fork with every signal blocked, in the child for good: the parent's handlers must not run there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _become(request: SpawnRequest, path: str, log: int, gate: int, gate_write: int, told: int) -> NoReturn:
    """In the child: turn into the daemon, or tell the parent why not. Never returns."""
    step = "session"
    try:
        os.close(gate_write)
        os.setsid()
        step = "descriptors"
        above = _FIRST_PASSED_FD + len(request.pass_fds)
        log, gate, told, *passed = (
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in (log, gate, told, *request.pass_fds)
        )
        os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
        os.set_inheritable(0, True)  # dup2(2) of 0 onto itself, where the parent has no stdin, leaves the flag
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number, fd in enumerate(passed, _FIRST_PASSED_FD):
            os.dup2(fd, number)
        _close_others(above, {gate, told})
        step = "directory"
        os.chdir(request.cwd or "/")
        step = "limits"
        if request.nofile:
            resource.setrlimit(resource.RLIMIT_NOFILE, request.nofile)
        step = "signals"
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):  # KILL and STOP cannot be set, 32 and 33 are the C library's
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        env = dict(request.env)
        if request.pass_fds:
            env |= {"LISTEN_FDS": str(len(request.pass_fds)), "LISTEN_PID": str(os.getpid())}
        step = "exec"
        if os.read(gate, 1) == b"g":
            os.execve(path, list(request.argv), env)  # noqa: S606  # no shell: the command is a list of words
    except BaseException as error:  # noqa: BLE001  # nothing may return into the parent's code
        number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
        with contextlib.suppress(OSError):
            os.write(told, f"{step} {number}".encode())
    os._exit(127)


def _close_others(low: int, keep: Collection[int]) -> None:
    """Close what some code opened without close-on-exec: a listener that leaks keeps its port after everybody died."""
    try:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        numbers = list(range(low, 4096))
    for fd in numbers:
        if fd >= low and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _exec_trouble(told: io.FileIO) -> tuple[str, int] | None:
    """None once exec has closed the pipe, or the time is up; else the step that failed and its errno."""
    poller = select.poll()
    poller.register(told.fileno(), select.POLLIN | select.POLLHUP)
    if not poller.poll(EXEC_TIMEOUT_S * 1000):
        return None
    step, _, number = told.read(64).decode().partition(" ")
    return (step, int(number)) if step else None


def _refusal(request: SpawnRequest, path: str, step: str, number: int) -> SpawnError:
    """What went wrong with the command, and what to do about it."""
    why = os.strerror(number)
    if step == "directory":
        return SpawnError(f"cannot start {path} in {request.cwd}: {why}", hint="check cwd")
    if step == "limits":
        return SpawnError(f"cannot start {path} with open files limited to {request.nofile}: {why}", hint="ulimit -Hn")
    if step == "exec" and number == errno.ENOEXEC:
        return SpawnError(f"cannot run {path}: exec format error", hint="a script begins with a line like #!/bin/sh")
    if step == "exec" and number == errno.ENOENT:
        return SpawnError(f"cannot run {path}: its interpreter does not exist", hint=f"see the first line of {path}")
    if step == "exec" and number == errno.EACCES:
        return SpawnError(f"not executable: {path}", hint="it, or its interpreter, or the mount forbids it")
    return SpawnError(f"cannot start {path}: {step}: {why}", hint="see the limits: ulimit -a")


def _open_log(path: Path) -> io.FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return io.FileIO(os.open(path, flags, 0o600), "ab")
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise StateUnwritableError(f"cannot write {path}: {why}", hint="check the state directory") from error


# -- the command -----------------------------------------------------------------------------------------------------


def resolve_command(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> str:
    """Which file will run: relative to ``cwd`` where it has a slash, else found on the PATH of ``env``.

    Raises:
        SpawnError: there is none, it is not executable, or the directory does not exist. Nothing was started.
    """
    if not argv or not argv[0]:
        raise SpawnError("the command is empty", hint="turnout up -- COMMAND --port {port}")
    if any("\0" in word for word in (*argv, cwd, *env.keys(), *env.values())):
        raise SpawnError(f"the command of {argv[0]!r} or its environment contains a NUL byte", hint="check env")
    if any("=" in key or not key for key in env):
        raise SpawnError("a variable of the environment has an empty name or one with =", hint="check env")
    home = Path(cwd or "/")
    if not home.is_dir():
        raise SpawnError(f"no such directory: {cwd}", hint="check cwd")
    name = argv[0]
    # an empty or relative entry of PATH is taken from the daemon's directory (environ(7)), not from ours
    entries = [""] if "/" in name else env.get("PATH", os.defpath).split(":")
    places = [home / entry / name for entry in entries]
    files = [place for place in places if _is_file(place)]
    for place in files:
        if os.access(place, os.X_OK):
            return str(place)
    if files:
        raise SpawnError(f"not executable: {files[0]}", hint=f"chmod +x {files[0]}")
    if "/" in name:
        raise SpawnError(f"no such command: {places[0]}", hint="check the path")
    raise SpawnError(f"no such command: {name}", hint="is it installed, and on the PATH?")


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # a directory on the way that may not be searched
        return False


def clean_environment(base: Mapping[str, str], extra: Mapping[str, str], *, port: int | None) -> dict[str, str]:
    """The daemon's environment: ``base`` without what an outer turnout or systemd said to us, then ``extra``.

    Args:
        base: what this process has.
        extra: what the service's configuration adds.
        port: where the daemon shall listen, told as PORT and TURNOUT_PORT; None where it gets a socket instead.
    """
    env = {key: value for key, value in base.items() if key not in _NOT_FOR_DAEMONS and not key.startswith(_NOR_THESE)}
    env.update(extra)
    if port is not None:
        env["PORT"] = env["TURNOUT_PORT"] = str(port)
    return env


def fill_port(argv: Sequence[str], port: int, *, listen_port: int | None = None) -> tuple[str, ...]:
    """The command with its words filled in; ``{{port}}`` and other braces are left as they are.

    Args:
        argv: the command.
        port: ``{port}``, where the daemon listens.
        listen_port: ``{listen_port}``, where the service does; None: as ``port``. ``{fd}`` is the first descriptor
            that is passed on (sd_listen_fds(3)).
    """
    told = {"port": port, "fd": _FIRST_PASSED_FD, "listen_port": port if listen_port is None else listen_port}
    return tuple(_WORD.sub(lambda match: str(told[match[1]]), word) for word in argv)


def adopt_subreaper() -> None:
    """Have orphaned grandchildren become our children (prctl(2)), so that a daemon that forks twice is still reaped."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


# -- ports -----------------------------------------------------------------------------------------------------------


class ReservedPort:
    """A port kept free for one daemon. Owns the bound, silent SO_REUSEADDR socket that keeps it.

    A daemon that sets SO_REUSEADDR binds beside it (socket(7)); nobody else can take the port meanwhile.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.port: int = sock.getsockname()[1]

    def release(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def choose_port(host: str = "127.0.0.1", *, avoid: Collection[int] = ()) -> ReservedPort:
    """Reserve a port at random outside the ephemeral range, which any outgoing connection could take.

    Args:
        host: the address that the daemon will bind.
        avoid: ports that must not be chosen, beside 47777.

    Raises:
        SpawnError: none is free.
    """
    low, high = _ephemeral_range()
    barred = {*avoid, FIXED_PORT}
    outside = [port for port in (*range(20000, low), *range(high + 1, 65536)) if port not in barred]
    tries = secrets.SystemRandom().sample(outside, min(len(outside), PORT_TRIES))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in tries or [0] * PORT_TRIES:  # 0: nothing lies outside here, so the kernel chooses
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Bound first without SO_REUSEADDR, so that a port somebody else keeps in this way is refused; from then
            # on with it, so that the daemon is not.
            sock.bind((host, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            sock.close()
            continue
        reserved = ReservedPort(sock)
        if reserved.port not in barred:
            return reserved
        reserved.release()
    raise SpawnError(f"no free port for the daemon on {host}", hint="see: ss -ltn")


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999  # Linux' default, ip(7)
