"""Identifies processes, and signals exactly the process that is meant. Standard library only: the keeper imports this.

A pid is not an identity, it is reused. The start time in field 22 of /proc/PID/stat, together with the machine's boot
id and the pid namespace, is one; a pidfd holds on to it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
from pathlib import Path
from typing import Final, NamedTuple, Self

from turnout.core.model import Identity
from turnout.system.files import undone_on_error

# In the place of a machine's boot id: a process of the home that this one was copied from. As after a reboot, nothing
# that runs here is that process, whatever its pid.
ANOTHER_HOME: Final = "another home"
_STAT_BYTES: Final = 4096  # more than a line of it can have
_PROC: Final = "/proc"
_COMMAND_CHARS: Final = 80
_SHELLS: Final = frozenset({"sh", "ash", "bash", "dash", "ksh", "ksh93", "mksh", "rbash", "yash", "zsh"})
# Python knows no name for it yet. pidfd_send_signal(2), Linux 6.9: signal the group that this process leads or led.
_PIDFD_SIGNAL_PROCESS_GROUP: Final = 1 << 2


class _Stat(NamedTuple):
    """The fields of proc_pid_stat(5) that matter here."""

    state: str
    ppid: int
    pgrp: int
    session: int
    threads: int
    start_ticks: int

    @property
    def ended(self) -> bool:
        """A zombie, unless only its first thread has ended: the others go on serving then (proc_pid_stat(5))."""
        return self.state in "Xx" or (self.state == "Z" and self.threads <= 1)


def _read_stat(pid: int) -> bytes:
    """/proc/PID/stat behind the command name, which may contain blanks and brackets: so it ends with the last one.

    Without :mod:`pathlib`, which takes longer than the kernel: this is asked of an active daemon ten times a second.

    Raises:
        ProcessLookupError: there is no such process, or none that may be seen.
        PermissionError: the system hides other users' processes (hidepid, proc(5)).
    """
    if pid <= 0:
        raise ProcessLookupError(f"no process {pid}")
    try:
        fd = os.open(f"{_PROC}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _STAT_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return data[data.rindex(b")") + 2 :]


def _stat(pid: int) -> _Stat:
    """Those of one process. Raises as :func:`_read_stat`."""
    fields = _read_stat(pid).split()
    return _Stat(
        fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[17]), int(fields[19])
    )  # field N of the manual is index N - 3


def _exists(pid: int) -> bool:
    """Ask without /proc, which may be missing or hide other users' processes: EPERM means that it is there."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # a number that no pid can have
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _has_proc() -> bool:
    return Path(f"{_PROC}/self/stat").exists()


@functools.cache
def machine_boot_id() -> str:
    """What names this boot of the machine; empty where the system has no such thing."""
    try:
        return Path(f"{_PROC}/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> int:
    """The inode number of our pid namespace (namespaces(7)); 0 where there are none."""
    try:
        return Path(f"{_PROC}/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def identify(pid: int) -> Identity:
    """The identity of the process that has ``pid`` now; nothing but the pid where there is no /proc.

    Raises:
        ProcessLookupError: there is none.
        PermissionError: it may not be looked at (hidepid, proc(5)).
    """
    if not _has_proc():
        if pid <= 0 or not _exists(pid):
            raise ProcessLookupError(f"no process {pid}")
        return Identity(pid)
    return Identity(pid, _stat(pid).start_ticks, machine_boot_id(), pid_namespace())


def own_identity() -> Identity:
    return identify(os.getpid())


def state_of(pid: int) -> str:
    """The state letter of proc_pid_stat(5): R, S, D, T (stopped), t (traced), Z, X, I.

    Raises:
        ProcessLookupError: there is no such process.
        PermissionError: it may not be looked at (hidepid, proc(5)).
    """
    return _read_stat(pid)[:1].decode()


def own_status(proc: Path = Path(_PROC)) -> dict[str, str]:
    """The fields of proc_pid_status(5) of this process; empty where they are not known."""
    try:
        lines = (proc / "self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def command_of(pid: int, *, proc: Path = Path(_PROC)) -> str:
    """A process's command line, or its name where that is empty, in one short printable line; empty: it is not seen."""
    try:
        raw = (proc / str(pid) / "cmdline").read_bytes() or (proc / str(pid) / "comm").read_bytes()
    except OSError:
        return ""
    text = raw.replace(b"\0", b" ").decode(errors="replace")
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _COMMAND_CHARS else line[: _COMMAND_CHARS - 1] + "…"


def is_suspended(pid: int) -> bool:
    """Whether it is stopped (T) or traced (t), proc_pid_stat(5); a process that cannot be seen is not known to be."""
    try:
        return pid > 0 and state_of(pid) in {"T", "t"}
    except (ProcessLookupError, PermissionError):
        return False


def is_shell(identity: Identity) -> bool:
    """Whether a process is a shell, which passes no signal on to what it runs. One that cannot be seen is none."""
    try:
        program = Path(f"{_PROC}/{identity.pid}/exe").readlink().name
        if program == "busybox":
            program = Path(f"{_PROC}/{identity.pid}/comm").read_text().strip()
    except OSError:
        return False
    return program in _SHELLS and is_alive(identity)


def is_alive(identity: Identity) -> bool:
    """Whether that very process runs; a zombie does not. Without start ticks the pid has to do."""
    if identity.pid <= 0 or of_another_boot(identity) or out_of_sight(identity):
        return False
    return _runs(identity)


def provably_dead(identity: Identity) -> bool:
    """Whether that process can be shown to have ended; what cannot be seen from here is not proven."""
    if identity.pid <= 0:
        return False
    if of_another_boot(identity):
        return True
    return not out_of_sight(identity) and not _runs(identity)


def of_another_boot(identity: Identity) -> bool:
    """Whether it ran before this machine booted, or on another machine."""
    return bool(identity.machine_boot_id) and identity.machine_boot_id != machine_boot_id()


def of_another_home(identity: Identity) -> bool:
    """Whether it is a process of the home that this one was copied from; then it counts as ended."""
    return identity.machine_boot_id == ANOTHER_HOME


def out_of_sight(identity: Identity) -> bool:
    """Whether its pid counts in another pid namespace, where it says nothing to us."""
    return bool(identity.pid_ns) and identity.pid_ns != pid_namespace()


def _runs(identity: Identity) -> bool:
    try:
        stat = _stat(identity.pid)
    except ProcessLookupError:
        return _exists(identity.pid)
    except PermissionError:
        return True
    if stat.ended:
        return False
    return not identity.start_ticks or stat.start_ticks == identity.start_ticks


class ProcessHandle:
    """A process that was proven to be the expected one, held by a pidfd. Owns that descriptor."""

    __slots__ = ("_fd", "identity")

    def __init__(self, fd: int, identity: Identity) -> None:
        self._fd = fd
        self.identity = identity

    @classmethod
    def open(cls, identity: Identity) -> Self:
        """Open it: first the pidfd, then the comparison, so that the number cannot change hands in between.

        A zombie can be opened, as long as its parent has not waited for it. pidfd_open(2), Linux 5.3.

        Raises:
            ProcessLookupError: it has ended, the pid belongs to another process by now, or that cannot be told.
            OSError: no descriptors are left, or the kernel is too old.
        """
        if identity.pid <= 0 or of_another_boot(identity) or out_of_sight(identity):
            raise ProcessLookupError(f"process {identity.pid} is not one of this machine's boot and pid namespace")
        try:
            fd = os.pidfd_open(identity.pid)  # close-on-exec by itself
        except OverflowError as error:
            raise ProcessLookupError(f"{identity.pid} is no pid") from error
        with undone_on_error(functools.partial(os.close, fd)):  # also where none is left to read /proc with
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if _stat(identity.pid).start_ticks == identity.start_ticks:
                    return cls(fd, identity)
            raise ProcessLookupError(f"pid {identity.pid} is not the process that was meant")

    def fileno(self) -> int:
        return self._fd

    def signal(self, number: int) -> None:
        """Signal this process and no other.

        Raises:
            ProcessLookupError: it has ended and was waited for.
            PermissionError: it belongs to somebody else by now (it changed its user).
        """
        signal.pidfd_send_signal(self._fd, number)

    def signal_group(self, number: int) -> None:
        """Signal the process group that it leads, and no other.

        Linux 6.9 does so by the pidfd, even after the leader is gone. Before, the number is proven to be its own only
        while the leader is not waited for, so it is refused after that.

        Raises:
            ProcessLookupError: it leads no group, or none is left.
            PermissionError: no process of the group may be signalled.
        """
        try:
            signal.pidfd_send_signal(self._fd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: this kernel does not know the flag
                raise
        else:
            return
        stat = _stat(self.identity.pid)
        if stat.start_ticks != self.identity.start_ticks or stat.pgrp != self.identity.pid:
            raise ProcessLookupError(f"process {self.identity.pid} leads no group")
        os.killpg(self.identity.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within ``timeout_s`` seconds, 0 or more (a pidfd becomes readable then, pidfd_open(2))."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def descendants(pid: int) -> set[int]:
    """The children of ``pid``, their children and so on, as they are at this moment."""
    return _below({pid}, _table()) - {pid}


def tree_of(identity: Identity) -> set[int]:
    """The process, its descendants, and the session that it leads (a daemon that forked twice in it).

    Empty when the pid belongs to another process by now. A session outlives its leader, and while it does the kernel
    gives the leader's number to nobody else.
    """
    table = _table()
    leader = table.get(identity.pid)
    if leader and identity.start_ticks and leader.start_ticks != identity.start_ticks:
        return set()
    session = {
        pid
        for pid, stat in table.items()
        if stat.session == identity.pid and stat.start_ticks >= identity.start_ticks and not stat.ended
    }
    return _below({identity.pid} | session if leader else session, table)


def _table() -> dict[int, _Stat]:
    table: dict[int, _Stat] = {}
    if _has_proc():
        for pid in (int(entry.name) for entry in Path(_PROC).iterdir() if entry.name.isdigit()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                table[pid] = _stat(pid)
    return table


def _below(roots: set[int], table: dict[int, _Stat]) -> set[int]:
    below = set(roots)
    fresh = below
    while fresh:
        fresh = {pid for pid, stat in table.items() if stat.ppid in fresh} - below
        below |= fresh
    return below
