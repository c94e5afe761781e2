"""The lock that keeps the lifecycle verbs of one service from interleaving, and the name of the verb that has it."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

import msgspec

from turnout.errors import LockTimeoutError
from turnout.system import flock
from turnout.system.files import Files, open_private, undone_on_error
from turnout.system.flock import advice, holder_pid, take
from turnout.system.process import command_of, is_suspended, own_identity

if TYPE_CHECKING:
    from filelock import FileLock

LOCK: Final = "lifecycle.lock"
DEFAULT_TIMEOUT_S: Final = 8.0
SHORTEST_TIMEOUT_S: Final = 0.1
_LONGEST_TIMEOUT_S: Final = 86400.0
_SIDECAR_BYTES: Final = 65536
_SIGNS_WITHIN_S: Final = 0.2
_TRIES_BETWEEN_HOLDERS: Final = 50
_guard = threading.Lock()
_held: set[tuple[int, str]] = set()  # with the pid: a forked child has not got what its parent holds


class LockHolder(msgspec.Struct, frozen=True):
    """The verb that has the lock; what is not known is 0 or empty.

    ``verb`` is the command line where the sidecar is missing. ``since`` is wall-clock seconds. ``wish`` is what it will
    have made so once it is done.
    """

    verb: str = ""
    pid: int = 0
    since: float = 0.0
    wish: str = ""

    def __str__(self) -> str:
        details = [f"pid {self.pid}"] if self.pid else []
        if self.since:
            details.append(f"since {time.strftime('%H:%M:%S', time.localtime(self.since))}")
        verb = self.verb or "another verb"
        return f"{verb} ({', '.join(details)})" if details else verb


def is_free(directory: Path) -> bool:
    """Whether no process has this service's lock at the moment; False where that cannot be found out.

    The lock is the kernel's, so it tells of processes that cannot be seen from here, too: in another pid namespace. A
    lock file that is missing is not made: a verb that only looks may run as root in another user's home.
    """
    try:
        return flock.is_free(directory / LOCK)
    except OSError:
        return False


class LifecycleLock:
    """One service's lock, for a with block; the lock's descriptor is its own, and goes when the process dies.

    Not re-entrant on purpose: a verb is one critical section.

    Args:
        directory: the service's directory; it must exist.
        timeout_s: how long to wait, in seconds, 0.1 or more.
        verb: the name that verbs which wait for this one show.
        on_wait: called once, with the holder, when it has to wait.
        wish: what this one is about to make so; empty: nothing that another one could do for it.
        patience_s: how long to wait in all, in seconds, for holders of the same wish, which do
            the same. A holder that is stopped (SIGSTOP) does nothing.
    """

    def __init__(
        self,
        directory: Path,
        *,
        timeout_s: float,
        verb: str,
        on_wait: Callable[[LockHolder], None] | None = None,
        wish: str = "",
        patience_s: float = 0.0,
    ) -> None:
        self.path = directory / LOCK
        self._sidecar = directory / "lifecycle.json"
        self._timeout_s = max(SHORTEST_TIMEOUT_S, timeout_s)
        self._verb = verb
        self._on_wait = on_wait
        self._wish = wish
        self._patience_s = patience_s
        self._key = (0, "")
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            LockTimeoutError: another verb held it all the time; the message names verb, pid and since when.
            StateUnwritableError: the lock file cannot be made or opened.
            RuntimeError: this process holds it already.
        """
        key = (os.getpid(), os.path.realpath(self.path))
        with _guard:
            if key in _held:
                raise RuntimeError(f"{self.path} is held by this process already: it is not re-entrant")
            _held.add(key)
        self._key = key
        with undone_on_error(self._let_go):
            self._lock = self._acquired()
            self._sign()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._lock:
            with suppress(OSError):
                self._sidecar.unlink(missing_ok=True)
        self._let_go()

    def _acquired(self) -> FileLock:
        began = time.monotonic()
        on_wait = self._on_wait
        lock = take(self.path, timeout_s=self._timeout_s, on_wait=on_wait and (lambda: on_wait(self.holder())))
        between_holders = 0
        while lock is None:
            holder = self._signed_holder()
            left_s = began + self._patience_s - time.monotonic()
            if left_s > 0 and self._will_do(holder):
                lock = take(self.path, timeout_s=min(self._timeout_s, left_s))
            elif holder.pid or between_holders == _TRIES_BETWEEN_HOLDERS:
                waited_s = max(self._timeout_s, round(time.monotonic() - began, 1) if self._will_do(holder) else 0.0)
                held = f"{holder} has" if holder.pid else "other verbs have"
                wait = f"{held} held the lifecycle lock for the {waited_s:g} s that {self._verb} may wait"
                raise LockTimeoutError(f"{wait}; nothing was changed", hint=advice(holder.pid or None))
            else:  # between two holders no process is to be named, and it may be free
                between_holders += 1
                lock = take(self.path, timeout_s=0)
        return lock

    def _will_do(self, holder: LockHolder) -> bool:
        return bool(self._wish) and holder.wish == self._wish and not is_suspended(holder.pid)

    def holder(self) -> LockHolder:
        """The holder of the lock now; an empty :class:`LockHolder` where nothing is known."""
        pid = holder_pid(self.path)
        with suppress(OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            signed = cast("dict[str, Any]", json.loads(Files().read(self._sidecar, _SIDECAR_BYTES)[0]))
            verb, since, wish = str(signed["verb"]), float(signed["since"]), str(signed.get("wish", ""))
            # a killed holder leaves its name behind: the kernel knows better where it says anything
            if pid in {None, int(signed["pid"])}:
                return LockHolder(verb, int(signed["pid"]), since, wish)
        return LockHolder(command_of(pid), pid) if pid else LockHolder()

    def _signed_holder(self) -> LockHolder:
        """As :meth:`holder`, but a holder that took it a moment ago gets the time to write its name."""
        deadline = time.monotonic() + _SIGNS_WITHIN_S
        while True:
            holder = self.holder()
            if holder.since or not holder.pid or time.monotonic() > deadline:
                return holder
            time.sleep(_SIGNS_WITHIN_S / 20)

    def _sign(self) -> None:
        me = own_identity()
        signed = {"verb": self._verb, "pid": me.pid, "start_ticks": me.start_ticks}
        signed |= {"since": time.time(), "wish": self._wish}
        temp = self._sidecar.with_name(f".{self._sidecar.name}.{os.urandom(4).hex()}.tmp")
        try:  # not synced: after a crash of the machine no process holds it
            fd = open_private(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(fd, "wb") as file:
                file.write(json.dumps(signed).encode())
            temp.replace(self._sidecar)
        except OSError:  # the lock is what counts, and on a full disk `stop` must still work
            with suppress(OSError):
                temp.unlink(missing_ok=True)
                self._sidecar.unlink(missing_ok=True)

    def _let_go(self) -> None:
        lock, self._lock = self._lock, None
        try:
            if lock:
                lock.release()
        finally:
            with _guard:
                _held.discard(self._key)


def lock_timeout(value: str | None) -> tuple[float, str | None]:
    """Seconds to wait for a lock, from an option or variable, and a warning where the value was not taken as it is.

    ``value``: a number of seconds; None or empty means the default of 8. Below 0.1 it becomes 0.1.
    """
    if value is None or not value.strip():
        return DEFAULT_TIMEOUT_S, None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_TIMEOUT_S:  # NaN is neither
        return DEFAULT_TIMEOUT_S, f"lock timeout {value!r} is no number of seconds; {DEFAULT_TIMEOUT_S:g} s it is"
    if seconds < SHORTEST_TIMEOUT_S:
        return SHORTEST_TIMEOUT_S, f"lock timeout {value!r} is below the least; {SHORTEST_TIMEOUT_S:g} s it is"
    return seconds, None
