"""The shim, a small process between the keeper and one daemon, adopts the daemon's orphans. Standard library only.

    keeper ── shim (subreaper, prctl(2)) ── daemon (leads a session of its own) ── workers
                └── whatever the daemon forked twice

A process that forks twice leaves its session and its parents, and one that rewrites its title or starts with a clean
environment loses every label. It cannot choose its ancestors: the kernel gives an orphan to the nearest living
subreaper above it (prctl(2), PR_SET_CHILD_SUBREAPER), so what descends from the shim is this boot's, whatever it did
since. The shim waits for all of it, and ends when the last process of its boot has: while it lives, something is left.

It is forked from the keeper and executes nothing, so it costs no start of an interpreter, and needs no file that an
upgrade may replace. It takes no signal but KILL and STOP, and has nothing open but the pipe on which it reports, and
what it is to hold for the next keeper.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final, NoReturn

from turnout.core.model import Identity
from turnout.system.process import ProcessHandle, identify

TITLE: Final = b"turnout-shim"
_PR_SET_NAME: Final = 15  # prctl(2)
_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2), Linux 3.4
_PR_SET_PTRACER: Final = 0x59616D61  # Yama's, linux/prctl.h
_PTRACER_ANY: Final = 2**64 - 1
_ARG_START: Final = 48 - 3  # proc_pid_stat(5): the fields behind the command name begin with the third
_ARG_END: Final = 49 - 3
_FD_BOUND: Final = 4096
_REPORT_BYTES: Final = 256


class Shim:
    """The shim of one boot, as the keeper knows it. Owns its pidfd and the reading end of its pipe.

    Args:
        handle: the process.
        report: what it writes: the daemon's identity, then its wait status (wait(2)); -1: an earlier keeper has it.
    """

    def __init__(self, handle: ProcessHandle, report: int = -1) -> None:
        self.handle = handle
        self.report = report
        self._said = b""

    @property
    def identity(self) -> Identity:
        return self.handle.identity

    def daemon(self, timeout_s: float) -> Identity | int:
        """The daemon that it forked; an errno (errno(3)) where it could not, 0 where it did not report in time."""
        line = self._line(timeout_s)
        if line is None:
            return 0
        pid, ticks = (int(word) for word in line.split())
        if not pid:
            return ticks
        own = self.handle.identity
        return Identity(pid, ticks, own.machine_boot_id, own.pid_ns)

    def status(self) -> int | None:
        """The daemon's wait status, where it has been reported; does not wait."""
        line = self._line(0.0)
        return int(line) if line is not None else None

    def close(self) -> None:
        self.handle.close()
        self.close_report()

    def close_report(self) -> None:
        if self.report >= 0:
            os.close(self.report)
            self.report = -1

    def _line(self, timeout_s: float) -> bytes | None:
        if self.report < 0:
            return None
        poller = select.poll()
        poller.register(self.report, select.POLLIN)
        while b"\n" not in self._said:
            if not poller.poll(timeout_s * 1000):
                return None
            data = os.read(self.report, _REPORT_BYTES)
            if not data:
                return None
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line


def fork_behind(report: int, held: Collection[int] = ()) -> None:
    """In a forked child of the keeper that has all signals blocked: become the shim, and return in the daemon alone.

    Args:
        report: the writing end of the pipe to the keeper.
        held: descriptors that the shim keeps open. A later keeper may copy them (pidfd_getfd(2)).
    """
    try:
        os.setsid()
        set_subreaper()
        pid = os.fork()
    except OSError as error:
        os.write(report, b"0 %d\n" % (error.errno or 0))
        os._exit(1)
    if pid == 0:
        return
    _watch(pid, report, held)


def set_subreaper() -> None:
    """Have orphans below this process become its children (prctl(2)); a kernel without that is no error."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _watch(daemon: int, report: int, held: Collection[int]) -> NoReturn:
    """Wait for every child there ever is, and report how the daemon ended. Ends with the last of them."""
    try:
        # before it is waited for: the number is its own until then
        os.write(report, b"%d %d\n" % (daemon, identify(daemon).start_ticks))
        close_others({report, *held})  # the keeper's listeners, locks and logs
        if held:  # the next keeper is no ancestor, as Yama demands of a tracer otherwise
            _prctl(_PR_SET_PTRACER, ctypes.c_ulong(_PTRACER_ANY))
        os.chdir("/")
        _rename()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would have the kernel wait in our place: wait(2)
        reported = False
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == daemon and not reported:
                reported = True
                with contextlib.suppress(OSError):  # the keeper that started it is gone: its pidfd tells the next
                    os.write(report, b"%d\n" % status)
    except BaseException:  # noqa: BLE001  # ChildProcessError: nothing is left. Nothing may return into the keeper's code
        os._exit(0)


def close_others(keep: Collection[int], *, low: int = 0) -> None:
    """Close the descriptors of this process from ``low`` on, but those to keep."""
    try:
        numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        numbers = list(range(_FD_BOUND))
    for fd in numbers:
        if fd >= low and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _rename() -> None:
    """Show as ``turnout-shim`` in ps(1), not as a second keeper: written over the command line that it inherited."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        data = Path("/proc/self/stat").read_bytes()
        fields = data[data.rindex(b")") + 2 :].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        if start:
            ctypes.memmove(start, TITLE[: end - start - 1].ljust(end - start, b"\0"), end - start)
    _prctl(_PR_SET_NAME, ctypes.c_char_p(TITLE))


def _prctl(option: int, argument: object) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)
