"""The processes of one service: which there are, and how ``down`` and ``stop`` end them."""

from __future__ import annotations

import time
from contextlib import suppress

from turnout.core.model import Daemon
from turnout.errors import StillRunningError, TimedOutError
from turnout.lifecycle.bootstrap import POLL_S, Bootstrap
from turnout.lifecycle.naming import daemon_name
from turnout.state.service import Service
from turnout.system.process import is_alive
from turnout.system.spawn_record import read_records


class ServiceProcesses:
    """Daemons by the registry, and boots by their records. Owns nothing; ``bootstrap`` has the line to the keeper."""

    def __init__(self, service: Service, bootstrap: Bootstrap) -> None:
        self._service = service
        self._bootstrap = bootstrap

    def owned(self) -> list[Daemon]:
        """The daemons in the registry that turnout started, whether or not they live."""
        return [daemon for daemon in self._service.registry.read().snapshot.daemons.values() if daemon.owned]

    def boots(self) -> list[str]:
        """The boots of which processes are left, whether or not the registry knows them or their daemon lives."""
        return [boot for boot, record in read_records(self._service.home.records).items() if record.has_processes]

    def any_runs(self) -> bool:
        """Whether there is a keeper, a daemon, or a process that a daemon left."""
        return self._bootstrap.runs() or any(is_alive(daemon.identity) for daemon in self.owned()) or bool(self.boots())

    def wait_gone(self, timeout_s: float, *, ended: bool = False) -> None:
        """Wait until the registry has no daemon of ours; ``ended``: until none lives (only a router removes entries).

        Raises:
            TimedOutError: it still has one.
        """
        deadline = time.monotonic() + timeout_s
        while left := [daemon for daemon in self.owned() if not ended or is_alive(daemon.identity)]:
            if time.monotonic() > deadline:
                names = ", ".join(daemon_name(daemon) for daemon in left)
                raise TimedOutError(f"still there after {timeout_s:g} s: {names}", hint="turnout status")
            time.sleep(POLL_S)

    def drain_and_stop(self) -> list[StillRunningError]:
        """Give connections the drain grace, then stop the daemons whatever connections they still have.

        Returns:
            An error for each boot that could not be ended; the others are stopped all the same.
        """
        with suppress(TimedOutError):
            self.wait_gone(self._service.settings.drain_grace_s, ended=True)
        left: list[StillRunningError] = []
        for boot_id in dict.fromkeys([*(daemon.boot_id for daemon in self.owned()), *self.boots()]):
            try:
                self.stop(boot_id)
            except StillRunningError as error:
                left.append(error)
        with suppress(TimedOutError):  # their entries go with the router's next look; they are dead either way
            self.wait_gone(2.0)
        return left

    def stop(self, boot_id: str) -> None:
        """Have the keeper stop a boot. Raises StillRunningError: it cannot be ended."""
        settings = self._service.settings
        self._bootstrap.keeper.stop(
            settings.name, boot_id, stop_signal=settings.stop_signal, grace_s=settings.stop_grace_s
        )

    def close_address(self) -> None:
        """Have the keeper close the fixed address, and end keeper and router with the last service."""
        if not self._bootstrap.keeper.unlisten(self._service.name):
            self._bootstrap.keeper.shutdown()
