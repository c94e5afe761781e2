"""Starts a daemon from a single-threaded parent, so that none ever runs unrecorded. Standard library only.

    parent: fork ─ read the daemon's pid ─ write the record ─ open the gate ─ read how exec went
    child:  setsid, log, look at the command, directory ─ wait at the gate ─ sync the record, limits ─ exec

A parent that dies before the gate is open closes the pipe, and the child ends without having become the daemon. Between
the keeper and a daemon stands a shim (:mod:`turnout.system.shim`), which forks the child. The parent's steps are a
generator, so that the keeper's loop goes on while a shim or a program hangs. What a file system or a busy disk may hold
up is the child's: it looks at the command and its directory, and syncs the record.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from turnout.core.model import Identity
from turnout.errors import NotBegunError, SpawnError, TurnoutError
from turnout.system.command import FIRST_PASSED_FD, check_words, resolve_command
from turnout.system.files import open_private, or_unwritable, unwritable
from turnout.system.limits import NO_LIMITS, Limits, set_own
from turnout.system.process import ProcessHandle, identify
from turnout.system.shim import Shim, close_others, fork_behind
from turnout.system.spawn_record import SpawnRecord, sync_record, write_record

EXEC_TIMEOUT_S: Final = 5.0
BLOCKED_TIMEOUT_S: Final = 1.0  # instead, where the caller can do nothing else: verbs kill a keeper that is silent
_FORK_TIMEOUT_S: Final = 4.0  # with EXEC_TIMEOUT_S less than a verb waits for the keeper's answer
_END_TIMEOUT_S: Final = 1.0
_SAYS_WITHIN_S: Final = 0.2  # a child that has failed wrote so before it ended; a stopped shim writes nothing
_REFUSED: Final = "refused"  # in the place of a step: the command cannot be run, and why
_FAILURE_CHARS: Final = 5000  # of a path or a message that a child writes of its failure
_PIPE_BYTES: Final = 65536  # pipe(7)


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
        limits: further resource limits, by name; they win over ``nofile``.
        umask: its file mode creation mask (umask(2)); None leaves what the parent has.
        program: the absolute path of its program; where that is empty, or gone, ``argv[0]`` is looked up.
        pass_fds: descriptors that it gets as 3, 4, …, named by LISTEN_FDS and LISTEN_PID. They stay the caller's.
        slot: its place in the group at the fixed address.
        listener_inode: the listener that it has there; 0: it is in none.
        held_fds: descriptors that its shim keeps open for as long as anything of this boot lives, under the numbers
            that they have here; its record names them. They stay the caller's.
        before_exec: called in the child, as the last thing before execve(2), with its copies of ``held_fds``.
    """

    boot_id: str
    service: str
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    log_path: Path
    record_path: Path
    nofile: tuple[int, int] | None = None
    limits: Limits = field(default_factory=lambda: NO_LIMITS)
    umask: int | None = None
    program: str = ""
    pass_fds: tuple[int, ...] = ()
    slot: int = 0
    listener_inode: int = 0
    held_fds: tuple[int, ...] = ()
    before_exec: Callable[[Sequence[int]], None] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until ``fd`` is readable, for at most ``timeout_s`` seconds."""

    fd: int
    timeout_s: float


# Yields each wait, is sent whether the descriptor became readable in time, and returns the daemon (and its shim).
Start = Generator[Wait, bool, tuple[ProcessHandle, Shim | None]]


def spawn(request: SpawnRequest) -> Identity:
    """Fork and exec, from a process without threads; the child leads a session of its own.

    Returns once exec is done, or after 1 s (a cold disk). To wait for the child is the caller's business.

    Raises:
        SpawnError: no such command, not executable, no such directory, no process to be had; nothing of it is left.
        StateUnwritableError: its record or its log cannot be written; nothing runs.
    """
    handle, _ = wait_through(_start(request, shimmed=False))
    with handle:
        return handle.identity


def spawn_behind_shim(request: SpawnRequest) -> Start:
    """As :func:`spawn`, with a shim as the daemon's parent, which is this process' child. Both are the caller's.

    The start is over once exec is done, or after 5 s, when it is the probe that judges. Between two steps the caller
    may wait for its children (wait(2)). Raises as :func:`spawn`.
    """
    return _start(request, shimmed=True)


def wait_through(start: Start) -> tuple[ProcessHandle, Shim | None]:
    """Run a start to its end, and do nothing else meanwhile. Raises as :func:`spawn`."""
    try:
        wait = next(start)
        while True:
            wait = start.send(_is_readable(wait.fd, wait.timeout_s))
    except StopIteration as end:
        started: tuple[ProcessHandle, Shim | None] = end.value
        return started


def _is_readable(fd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(timeout_s * 1000))


def _start(request: SpawnRequest, *, shimmed: bool) -> Start:
    check_words(request.argv, request.cwd, request.env)
    with contextlib.ExitStack() as opened:
        with or_unwritable("write", request.log_path):
            log_fd = open_private(request.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            log = opened.enter_context(io.FileIO(log_fd, "ab"))
        try:
            gate_read, gate_write = _pipe(opened)
            status_read, status_write = _pipe(opened)
            report_read, report_write = _pipe(opened)
            pid = _fork_masked()
        except OSError as error:
            raise _refusal(request, "fork", error.errno or 0) from error
        if pid == 0:
            if shimmed:
                fork_behind(report_write.fileno(), request.held_fds)
            _become(request, log.fileno(), gate_read.fileno(), gate_write.fileno(), status_write.fileno())
        for child_end in (log, gate_read, status_write, report_write):
            child_end.close()
        shim: Shim | None = None
        handle: ProcessHandle | None = None
        try:
            try:
                handle = ProcessHandle.open(identify(pid))
                if shimmed:
                    shim, handle = Shim(handle, os.dup(report_read.fileno())), None
                    yield Wait(shim.report, _FORK_TIMEOUT_S)
                    handle = _daemon_behind(shim)
            except OSError as error:  # it may have failed before the gate, and written why
                gate_write.close()  # else it waits there, and this process for it
                failure = _exec_failure(request, status_read, _SAYS_WITHIN_S)
                raise failure or _refusal(request, "fork", error.errno or 0) from error
            record = SpawnRecord(
                boot_id=request.boot_id,
                service=request.service,
                identity=handle.identity,
                log=str(request.log_path),
                spawned_ts=time.time(),
                slot=request.slot,
                listener_inode=request.listener_inode,
                shim=shim.identity if shim else None,
                held_fds=request.held_fds,
            )
            write_record(request.record_path, record, sync=False)
            with contextlib.suppress(BrokenPipeError):  # it failed before the gate, and says so on the other pipe
                gate_write.write(b"g")
            yield Wait(status_read.fileno(), EXEC_TIMEOUT_S if shimmed else BLOCKED_TIMEOUT_S)
            failure = _exec_failure(request, status_read, 0.0)
            if failure:
                raise failure
        except BaseException as error:
            gate_write.close()  # a child that waits there ends by that alone
            ending = _end_failed(pid, handle, shim)
            if isinstance(error, GeneratorExit):  # the keeper ends, and waits for nothing more
                for _ in ending:
                    pass
            else:
                yield from ending
            with contextlib.suppress(OSError):
                request.record_path.unlink()
            raise
    return handle, shim


def _daemon_behind(shim: Shim) -> ProcessHandle:
    """Raises OSError: the shim could not fork, or has not reported, or what it forked has ended."""
    daemon = shim.daemon(0.0)
    if isinstance(daemon, int):
        raise OSError(daemon or errno.ETIMEDOUT, os.strerror(daemon or errno.ETIMEDOUT))
    return ProcessHandle.open(daemon)


def _end_failed(pid: int, daemon: ProcessHandle | None, shim: Shim | None) -> Iterator[Wait]:
    """Kill what was forked, and wait for our own child ``pid``: the shim, or the daemon where there is none."""
    if daemon:
        with daemon, contextlib.suppress(OSError):
            daemon.signal(signal.SIGKILL)
    if shim is None:
        os.kill(pid, signal.SIGKILL)  # our own child, not waited for: the number is still its own
        os.waitpid(pid, 0)
        return
    yield Wait(shim.handle.fileno(), _END_TIMEOUT_S)  # it ends with the daemon
    with contextlib.suppress(OSError):
        shim.handle.signal(signal.SIGKILL)
    yield Wait(shim.handle.fileno(), _END_TIMEOUT_S)
    with contextlib.suppress(ChildProcessError):  # the keeper may have waited for it between two steps
        os.waitid(os.P_PIDFD, shim.handle.fileno(), os.WEXITED | os.WNOHANG)
    shim.close()


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


def _become(request: SpawnRequest, log: int, gate: int, gate_write: int, status: int) -> NoReturn:
    """In the child: turn into the daemon, or tell the parent why not. Never returns."""
    step, path = "session", ""
    try:
        os.close(gate_write)
        os.setsid()
        step = "descriptors"
        above = FIRST_PASSED_FD + len(request.pass_fds)
        log, gate, status, *others = (
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
            for fd in (log, gate, status, *request.pass_fds, *request.held_fds)
        )
        passed, held = others[: len(request.pass_fds)], others[len(request.pass_fds) :]
        os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
        os.set_inheritable(0, True)  # dup2(2) of 0 onto itself, where the parent has no stdin, leaves the flag
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number, fd in enumerate(passed, FIRST_PASSED_FD):
            os.dup2(fd, number)
        # a listener that leaks, opened without close-on-exec, keeps its port after all others have ended
        close_others({gate, status, *held}, low=above)
        step = "command"
        path = resolve_command(request.argv, request.cwd, request.env, program=request.program)
        step = "directory"
        os.chdir(request.cwd or "/")
        step = "gate"
        if os.read(gate, 1) != b"g":
            os._exit(127)
        step = "record"
        sync_record(request.record_path)
        step = "limits"
        if request.nofile:
            resource.setrlimit(resource.RLIMIT_NOFILE, request.nofile)
        set_own(request.limits)
        if request.umask is not None:
            os.umask(request.umask)
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
        if request.before_exec:
            request.before_exec(held)
        os.execve(path, list(request.argv), env)  # noqa: S606  # no shell: the command is a list of words
    except BaseException as error:  # noqa: BLE001  # nothing may return into the parent's code
        number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
        words = (step, str(number), path)
        if isinstance(error, SpawnError):  # of resolve_command
            words = (_REFUSED, error.message, error.hint or "")
        with contextlib.suppress(OSError):
            os.write(status, "\0".join(word[:_FAILURE_CHARS] for word in words).encode(errors="backslashreplace"))
    os._exit(127)


def _exec_failure(request: SpawnRequest, status: io.FileIO, timeout_s: float) -> TurnoutError | None:
    """None once exec has closed the pipe, or the time is up; else why the child could not run the command."""
    if not _is_readable(status.fileno(), timeout_s):
        return None
    step, _, rest = status.read(_PIPE_BYTES).decode(errors="replace").partition("\0")
    why, _, more = rest.partition("\0")
    if step == _REFUSED:
        return SpawnError(why, hint=more)
    return _refusal(request, step, int(why), more) if step else None


def _refusal(request: SpawnRequest, step: str, number: int, path: str = "") -> TurnoutError:
    """What went wrong with the command, and what to do about it; ``path``: its program; empty: not looked up yet."""
    path, why = path or request.program or request.argv[0], os.strerror(number)
    if step == "record":
        return unwritable("write", request.record_path, OSError(number, why))
    if step == "directory":
        return SpawnError(f"cannot start {path} in {request.cwd}: {why}", hint="check cwd")
    if step == "limits":
        return SpawnError(f"cannot start {path} with open files limited to {request.nofile}: {why}", hint="ulimit -Hn")
    if step == "exec" and number == errno.ENOEXEC:
        return SpawnError(f"cannot run {path}: exec format error", hint="a script begins with a line like #!/bin/sh")
    if step == "exec" and number == errno.ENOENT:
        return SpawnError(f"cannot run {path}: its interpreter does not exist", hint=f"see the first line of {path}")
    if step == "exec" and number == errno.E2BIG:
        return SpawnError(f"cannot run {path}: command and environment are too long", hint="getconf ARG_MAX")
    if step == "exec" and number == errno.EACCES:
        return SpawnError(f"not executable: {path}", hint="it, or its interpreter, or the mount forbids it")
    return NotBegunError(f"cannot start {path}: {step}: {why}", hint="see the limits: ulimit -a")
