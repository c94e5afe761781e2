"""Keeper, listener and router of a service: found, started, or taken back by a verb."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from turnout.config.settings import Address, Settings
from turnout.control.keeper_client import KeeperClient, bind_error
from turnout.control.keeper_start import ensure_keeper
from turnout.control.keeper_watchdog import SILENT_AFTER_S, end_silent_keeper
from turnout.control.router_client import RouterClient
from turnout.core.addresses import overlap
from turnout.core.model import Identity
from turnout.errors import ConflictError, NotRunningError, TimedOutError, TurnoutError
from turnout.reuseport.recovery import held_by
from turnout.state.home import Home
from turnout.state.keeper_lock import keeper_runs
from turnout.system.files import name_of
from turnout.system.net.listener import bind
from turnout.system.process import is_alive
from turnout.system.spawn_record import read_records

ROUTER_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.02


class Bootstrap:
    """Keeper and router as one verb needs them. Owns the line to the keeper until closed.

    ``starts_keeper``: start one where there is none, or in the place of one that is silent. Verbs that turnout runs by
    itself must not: the operator who ended the keeper would find it running again.
    """

    def __init__(self, home: Home, settings: Settings, *, starts_keeper: bool = True) -> None:
        self._home = home
        self._settings = settings
        self._router = RouterClient(home)
        self._starts_keeper = starts_keeper
        self._line: KeeperClient | None = None
        self._fresh = False
        self._added = False  # the keeper runs, and has not listened for this service
        self._before: dict[str, list[Identity]] = {}  # daemons by service that lived before the verb started anything

    @property
    def keeper(self) -> KeeperClient:
        """The line to the keeper, which is started where there is none.

        Raises:
            NotRunningError: there is none, and it is not to be started.
        """
        if self._line is None:
            self._line = ensure_keeper(self._home) if self._starts_keeper else KeeperClient.connect(self._home)
        return self._line

    def close(self) -> None:
        if self._line:
            self._line.close()
            self._line = None

    def ensure(self) -> None:
        """Have the address bound and a router serving it.

        Raises:
            AddressInUseError: another program has the address.
            TimedOutError: no router came up.
        """
        try:
            self._wait_for_attached()
            self.keeper.listen(self._settings)
            self.wait_for_router()
        except BaseException:
            self.undo()
            raise

    def reconnect(self) -> None:
        """Have another keeper in the place of one that was lost; it adopts daemons and router.

        Raises:
            NotRunningError: none may be started here. Else as :meth:`ensure`.
        """
        self.close()
        self.ensure()

    def stop(self, boot_id: str, *, wait_s: float) -> bool:
        """Have a daemon stopped: its signal, its grace, KILL. A second call only waits ``wait_s`` more for its end.

        Returns:
            Whether it is gone. False too where the keeper was lost over it: then there is another one now.
        """
        settings = self._settings
        try:
            with KeeperClient.connect(self._home) as keeper:  # of its own: one that timed out can ask nothing more
                keeper.stop(
                    settings.name,
                    boot_id,
                    stop_signal=settings.stop_signal,
                    grace_s=settings.stop_grace_s,
                    wait_s=wait_s,
                )
        except NotRunningError:
            self.reconnect()
            return False
        except TimedOutError:
            return False
        return True

    def undo(self) -> None:
        """Close the address, and end keeper and router, where this verb started them.

        A daemon that ran before, and lost its keeper and its router, is served again: the address of its service stays
        open. A keeper that ends stops every daemon, so it stays as long as one of them runs, of whichever service.
        """
        if not (self._fresh or self._added) or not self._line:
            return
        run_on = {name for name, daemons in self._before.items() if any(map(is_alive, daemons))}
        if self._settings.name in run_on:
            return
        # on a line of its own: an interrupted request leaves an answer on the other that is not for this one
        with suppress(TurnoutError, OSError), KeeperClient.connect(self._home) as line:
            if not line.unlisten(self._settings.name) and self._fresh and not run_on:
                line.shutdown()

    def runs(self) -> bool:
        """Whether there is a keeper."""
        try:
            KeeperClient.connect(self._home).close()
        except NotRunningError:
            return keeper_runs(self._home)  # its socket was removed
        return True

    def check(self, *, keeper_answers: bool | None = None) -> None:
        """Find out which address cannot be had before anything is started or changed.

        Args:
            keeper_answers: whether a keeper that runs answers; None: one that does not is ended here.

        Raises:
            AddressInUseError: an address is taken.
            ConflictError: the service runs, and cannot be changed into what is wanted while it does.
        """
        settings = self._settings
        known: Sequence[tuple[str, int]] = ()
        if keeper_answers is False:
            return
        if self._starts_keeper and keeper_answers is None:
            end_silent_keeper(self._home)
        try:
            with KeeperClient.connect(self._home) as keeper:
                services = keeper.hello().services
                known, self._added = services.get(settings.name, ()), settings.name not in services
        except NotRunningError:
            if any(is_alive(router.identity) for router in read_records(self._home.root).values()):
                return  # it outlived its keeper and has the addresses; a new keeper takes them over from it
            self._fresh = True
        if self._fresh or self._added:
            self._before = {
                name: [record.identity for record in read_records(self._home.service(name).records).values()]
                for name in [*self._home.service_names(), *self._home.services_without_settings()]
            }
        records = read_records(self._home.service(settings.name).records).values()
        given_up = {*known} - {(address.host, address.port) for address in settings.listen}
        if given_up and any(is_alive(record.identity) for record in records if record.listener_inode):
            raise ConflictError(
                f"daemons of {settings.name} share {Address(*min(given_up))}: it cannot be given up while they run",
                hint="turnout down, then up again",
            )
        for address in settings.listen:
            if (address.host, address.port) in known:
                continue
            both = overlap([*known, (address.host, address.port)])
            if both:
                raise ConflictError(
                    f"{address} cannot be bound beside {Address(*both[0])}, where {settings.name} listens now",
                    hint="turnout down, then up again",
                )
            if not held_by((address.host, address.port), records):  # keeper and router died, and left the daemons
                try:  # to find a conflict before anything is started
                    bind(address.host, address.port).close()
                except OSError as error:
                    raise bind_error(address, error.errno or 0) from error

    def other_plane(self) -> str:
        """The plane that the service runs on, where its settings name another one: that comes with the next router."""
        settings = self._settings
        try:
            runs = str(self._router.status(timeout_s=1.0)["services"][settings.name]["plane"])
        except (NotRunningError, TimedOutError, OSError, KeyError):
            return ""
        return "" if settings.plane in {"auto", runs} else runs

    def _wait_for_attached(self) -> None:
        """A router that outlived its keeper brings the listeners that it has: before that, they look taken."""

        def attached() -> bool:
            hello = self.keeper.hello()
            return hello.attached or not hello.router_pid

        self._wait_or_replace(attached)

    def wait_for_router(self) -> None:
        """Until a router serves this service.

        Raises:
            TimedOutError: none does within 15 s; the message has the keeper's reason where it knows one.
        """

        def serves() -> bool:
            try:
                return self._settings.name in self._router.status(timeout_s=1.0).get("services", {})
            except (NotRunningError, TimedOutError, OSError):
                return False

        self._wait_or_replace(serves)

    def _wait_or_replace(self, condition: Callable[[], bool]) -> None:
        """Wait for the router to do something; one that is silent for five seconds is replaced, once.

        One whose socket was removed is not silent to its keeper: it keeps its connections, and another one takes over.
        """
        keeper = self.keeper
        began = time.monotonic()
        replaced = False
        trouble = ""
        while not condition():
            if not replaced and time.monotonic() - began > SILENT_AFTER_S:
                replaced = True
                hello = keeper.hello()
                trouble = "" if hello.router_pid else hello.trouble
                if hello.attached and name_of(self._home.router_sock) is None:
                    keeper.replace_router()
                else:
                    keeper.kill_router(hello.router_pid)
            if trouble or time.monotonic() - began > ROUTER_TIMEOUT_S:
                waited_s = SILENT_AFTER_S if trouble else ROUTER_TIMEOUT_S
                why, log = (
                    (f": the router {trouble}", self._home.keeper_log) if trouble else ("", self._home.router_log)
                )
                raise TimedOutError(f"no router within {waited_s:g} s{why}", hint=f"see {log}")
            time.sleep(POLL_S)
