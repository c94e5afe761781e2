"""Watches daemons for their end by pidfd: calls back at once, and answers before a connection is handed over."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from turnout.core.model import Daemon, Identity
from turnout.system.process import ProcessHandle, provably_dead

log = logging.getLogger("turnout.router")


@dataclass(slots=True)
class _Watched:
    """One process. ``poll``: asks its pidfd, None where there is none."""

    identity: Identity
    ended: bool = False
    handle: ProcessHandle | None = None
    poll: Callable[[float], list[tuple[int, int]]] | None = None


class ExitWatch:
    """Watches the processes of some daemons. Owns a pidfd for each of them.

    A pidfd becomes readable when the whole process has ended, a zombie included (pidfd_open(2)). Where there is none to
    be had (an old kernel, no descriptor left) the process table is asked instead. A daemon whose process turnout does
    not know, or cannot see, never counts as ended.

    Args:
        loop: the router's; only its thread may call.
        on_exit: called once with the boot id of each watched daemon whose process ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._watched: dict[str, _Watched] = {}

    def follow(self, daemons: Iterable[Daemon]) -> None:
        """Watch these daemons and no others."""
        wanted = {daemon.boot_id: daemon.identity for daemon in daemons if daemon.pid > 0}
        for boot_id in [boot for boot, found in self._watched.items() if wanted.get(boot) != found.identity]:
            self._drop(self._watched.pop(boot_id))
        for boot_id, identity in wanted.items():
            if boot_id not in self._watched:
                self._watch(boot_id, identity)

    def has_ended(self, boot_id: str) -> bool:
        """Whether this daemon's process has ended: one poll(2) of its pidfd. False for a daemon that is not watched."""
        found = self._watched.get(boot_id)
        if found is None:
            return False
        if not found.ended:
            found.ended = bool(found.poll(0)) if found.poll else provably_dead(found.identity)
        return found.ended

    def close(self) -> None:
        """Close every pidfd."""
        self.follow(())

    def _watch(self, boot_id: str, identity: Identity) -> None:
        found = self._watched[boot_id] = _Watched(identity)
        try:
            handle = ProcessHandle.open(identity)
        except ProcessLookupError:
            found.ended = provably_dead(identity)
            return
        except OSError as error:
            log.warning("cannot get a pidfd of pid %d, and look in /proc for its end instead: %s", identity.pid, error)
            return
        try:
            self._loop.add_reader(handle.fileno(), self._ended, boot_id, found)
        except OSError as error:  # epoll_ctl(2): no memory, or no more watches for this user
            log.warning("cannot watch pid %d, and look in /proc for its end instead: %s", identity.pid, error)
            handle.close()
            return
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        found.handle, found.poll = handle, poller.poll

    def _ended(self, boot_id: str, found: _Watched) -> None:
        """The pidfd is readable, and stays so: it is not watched by the loop any more."""
        found.ended = True
        self._drop(found)
        self._on_exit(boot_id)

    def _drop(self, found: _Watched) -> None:
        found.poll = None
        if found.handle is not None:
            self._loop.remove_reader(found.handle.fileno())
            found.handle.close()
            found.handle = None
