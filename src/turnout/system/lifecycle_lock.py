"""The lock that keeps the lifecycle verbs of one service from interleaving, and the name of the verb that has it."""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from turnout.errors import LockTimeoutError, StateUnwritableError
from turnout.system.files import PRIVATE
from turnout.system.flock import advice, command_of, holder_pid, take
from turnout.system.process import is_suspended, own_identity

if TYPE_CHECKING:
    from filelock import FileLock

LOCK: Final = "lifecycle.lock"
DEFAULT_TIMEOUT_S: Final = 8.0
SHORTEST_TIMEOUT_S: Final = 0.1
_LONGEST_TIMEOUT_S: Final = 86400.0
_SIGNS_WITHIN_S: Final = 0.2
_TRIES_BETWEEN_HOLDERS: Final = 50
_guard = threading.Lock()
_held: set[tuple[int, str]] = set()  # with the pid: a forked child has not got what its parent holds


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the lock. ``verb`` is the command line where the sidecar does not tell; ``since`` is wall-clock seconds.

    ``wish`` is what it will have made so once it is done. What is not known is 0 or empty.
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

    The lock is the kernel's, so it tells of processes that cannot be seen from here, too: in another pid namespace.
    """
    try:
        lock = take(directory / LOCK, timeout_s=0.0)
    except StateUnwritableError:
        return False
    if lock is None:
        return False
    lock.release()
    return True


class LifecycleLock:
    """One service's lock, for a with block; the lock's descriptor is its own, and goes when the process dies.

    Not re-entrant on purpose: a verb is one critical section.

    Args:
        directory: the service's directory; it must exist.
        timeout_s: how long to wait, in seconds, 0.1 or more.
        verb: the name under which those who wait will know this one.
        on_wait: called once, with the holder, when it has to wait.
        wish: what this one is about to make so; empty: nothing that another one could do for it.
        patience_s: how long to wait in all, in seconds, for holders of the same wish: to be refused because somebody
            is just doing it would be absurd. A holder that is stopped (SIGSTOP) does nothing for anybody.
    """

    def __init__(
        self,
        directory: Path,
        *,
        timeout_s: float,
        verb: str,
        on_wait: Callable[[Holder], None] | None = None,
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
        try:
            self._lock = self._acquired()
            self._sign()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            with suppress(OSError):
                self._sidecar.unlink(missing_ok=True)
        self._let_go()

    def _acquired(self) -> FileLock:
        began = time.monotonic()
        lock = take(self.path, timeout_s=self._timeout_s, on_wait=self._waits)
        between_holders = 0
        while lock is None:
            holder = self._signed_holder()
            left_s = began + self._patience_s - time.monotonic()
            if left_s > 0 and self._will_do(holder):
                lock = take(self.path, timeout_s=min(self._timeout_s, left_s))
            elif holder.pid or between_holders == _TRIES_BETWEEN_HOLDERS:
                waited_s = max(self._timeout_s, round(time.monotonic() - began, 1) if self._will_do(holder) else 0.0)
                who = f"{holder} has" if holder.pid else "other verbs have"
                raise LockTimeoutError(
                    f"{who} held the lifecycle lock for the {waited_s:g} s that {self._verb} may wait; "
                    "nothing was changed",
                    hint=advice(holder.pid or None),
                )
            else:  # between two holders nobody is to be named, and it may be free
                between_holders += 1
                lock = take(self.path, timeout_s=0)
        return lock

    def _will_do(self, holder: Holder) -> bool:
        return bool(self._wish) and holder.wish == self._wish and not is_suspended(holder.pid)

    def holder(self) -> Holder:
        """Who has the lock now, as far as that can be found out; ``Holder()`` where nothing is known."""
        pid = holder_pid(self.path)
        with suppress(OSError, ValueError, TypeError, KeyError):
            signed = cast("dict[str, Any]", json.loads(self._sidecar.read_bytes()))
            told = Holder(str(signed["verb"]), int(signed["pid"]), float(signed["since"]), str(signed.get("wish", "")))
            # a killed holder leaves its name behind: the kernel knows better where it says anything
            if pid in {None, told.pid}:
                return told
        return Holder(command_of(pid), pid) if pid else Holder()

    def _signed_holder(self) -> Holder:
        """As :meth:`holder`, but one that took it a moment ago is given the time to say its name."""
        deadline = time.monotonic() + _SIGNS_WITHIN_S
        while True:
            holder = self.holder()
            if holder.since or not holder.pid or time.monotonic() > deadline:
                return holder
            time.sleep(_SIGNS_WITHIN_S / 20)

    def _waits(self) -> None:
        if self._on_wait:
            self._on_wait(self.holder())

    def _sign(self) -> None:
        me = own_identity()
        signed = {
            "verb": self._verb,
            "pid": me.pid,
            "start_ticks": me.start_ticks,
            "since": time.time(),
            "wish": self._wish,
        }
        temp = self._sidecar.with_name(f".{self._sidecar.name}.{secrets.token_hex(4)}.tmp")
        try:  # not synced: after a crash of the machine nobody holds it
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
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

    Args:
        value: a number of seconds; None or empty means the default of 8. Below 0.1 it becomes 0.1.
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
