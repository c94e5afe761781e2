"""The names of signals, and signals as events of a loop: noted when they come, taken when the loop has time."""

from __future__ import annotations

import contextlib
import os
import signal


def undo_inherited() -> None:
    """Block no signal, and have SIGCHLD at its default: both are inherited over execve(2) from the caller.

    Programs that handle signals in a thread of their own (JVM, .NET, sigwait(3) loops) block them in all others. And
    where SIGCHLD is ignored, the kernel reaps every child, and how it ended is lost (wait(2), NOTES).
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def signal_name(number: int) -> str:
    """``SIGTERM``, or ``SIGRTMIN+3``: of the real-time signals Python names the first and the last (signal(7))."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+d}"


class Signals:
    """Owns the pipe by which a signal wakes the loop (signal.set_wakeup_fd). One in a process."""

    def __init__(self) -> None:
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._noted: set[int] = set()

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._wake_read

    def catch(self, *numbers: int) -> None:
        """Note these from here on; only the main thread may ask for it."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def take(self) -> set[int]:
        """Those that came since the last time."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        noted, self._noted = self._noted, set()
        return noted

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _note(self, number: int, _: object) -> None:
        self._noted.add(number)
