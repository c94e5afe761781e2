"""What a service stands on: a keeper, its listener, a router that serves it. Found, started, or taken back."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from turnout.admin import RouterClient
from turnout.config import Address, Wanted, takes_listener
from turnout.core.listen import overlap
from turnout.core.self_loop import names_own_port
from turnout.errors import ConflictError, NotRunningError, TimedOutError, TurnoutError, UsageError
from turnout.keeper_client import KeeperClient, bind_error, ensure_keeper
from turnout.rejoining import held_by
from turnout.silent_keeper import SILENT_AFTER_S, end_silent_keeper
from turnout.system.home import Home
from turnout.system.process import is_alive
from turnout.system.spawn import resolve_command
from turnout.system.spawn_record import read_records

ROUTER_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.02


def check_command(wanted: Wanted) -> None:
    """Find out whether the command that is asked for can run at all; none is asked for: there is nothing to check.

    Raises:
        UsageError: it names the service's own port.
        SpawnError: it cannot be run.
    """
    if not wanted.command:
        return
    own = names_own_port(wanted.command, {address.port for address in wanted.settings.listen})
    if own and not wanted.settings.takes_part:
        raise UsageError(
            f"the command names port {own}, where the service itself listens: it would wait for itself",
            hint="put {port} in its place; the daemon gets a port of its own",
        )
    given = takes_listener(wanted.command, wanted.env, "reuseport")
    if wanted.settings.plane == "reuseport" and not (given or wanted.settings.shares_port):
        raise UsageError(
            "plane reuseport: the command asks for a {port} of its own, and would not listen at the fixed address",
            hint='have it take its listener: {fd} in the command or in env, or LISTEN_FDS; else plane = "relay", or'
            " shares_port = true where the daemon sets SO_REUSEPORT itself",
        )
    resolve_command(wanted.command, wanted.cwd or str(Path.cwd()), os.environ)


class Ground:
    """Keeper and router as one verb needs them. Owns the line to the keeper until closed.

    Args:
        home: the state directory.
        wanted: the service's settings, and the command that is about to be started, if any.
        starts_keeper: start one where there is none, or in the place of one that is silent. What turnout does by itself
            must not: whoever ended the keeper would find it running again.
    """

    def __init__(self, home: Home, wanted: Wanted, *, starts_keeper: bool = True) -> None:
        self._home = home
        self._wanted = wanted
        self._router = RouterClient(home)
        self._starts_keeper = starts_keeper
        self._line: KeeperClient | None = None
        self._fresh = False

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

    def lay(self) -> None:
        """Have the address bound and a router serving it.

        Raises:
            AddressInUseError: somebody else has the address.
            TimedOutError: no router came up.
        """
        try:
            self._wait_for_attached()
            self.keeper.listen(self._wanted.settings)
            self._wait_for_router()
        except BaseException:
            self.take_back()
            raise

    def renew(self) -> None:
        """The keeper was lost in the middle of something: have another, which adopts daemons and router.

        Raises:
            NotRunningError: none may be started here. Else as :meth:`lay`.
        """
        self.close()
        self.lay()

    def stop(self, boot_id: str, *, wait_s: float) -> bool:
        """Have a daemon stopped: its signal, its grace, KILL. Asking again begins nothing anew.

        Args:
            boot_id: which.
            wait_s: seconds to wait for its end.

        Returns:
            Whether it is gone. False too where the keeper was lost over it: then there is another one now.
        """
        settings = self._wanted.settings
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
            self.renew()
            return False
        except TimedOutError:
            return False
        return True

    def take_back(self) -> None:
        """A first start that failed leaves no process behind; what ran before this verb runs on."""
        if self._fresh and self._line:
            # on a line of its own: an interrupted request leaves an answer on the other that is not for this one
            with suppress(TurnoutError, OSError), KeeperClient.connect(self._home) as line:
                if not line.unlisten(self._wanted.settings.name):
                    line.shutdown()

    def runs(self) -> bool:
        """Whether there is a keeper."""
        try:
            KeeperClient.connect(self._home).close()
        except NotRunningError:
            return False
        return True

    def check(self) -> None:
        """Find out what cannot work before anything is started or changed.

        Raises:
            AddressInUseError: an address is taken.
            ConflictError: the service runs, and cannot be changed into what is wanted while it does.
            SpawnError: the command cannot be run.
        """
        check_command(self._wanted)
        settings = self._wanted.settings
        known: Sequence[tuple[str, int]] = ()
        if self._starts_keeper:
            end_silent_keeper(self._home)
        try:
            with KeeperClient.connect(self._home) as keeper:
                known = keeper.hello().services.get(settings.name, ())
        except NotRunningError:
            if any(is_alive(router.identity) for router in read_records(self._home.root).values()):
                return  # it outlived its keeper and has the addresses; a new keeper takes them over from it
            self._fresh = True
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
                _try_bind(address)

    def other_plane(self) -> str:
        """The plane that the service runs on, where its settings name another one: that comes with the next router."""
        settings = self._wanted.settings
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

    def _wait_for_router(self) -> None:
        """Until a router serves this service."""

        def serves() -> bool:
            try:
                return self._wanted.settings.name in self._router.status(timeout_s=1.0).get("services", {})
            except (NotRunningError, TimedOutError, OSError):
                return False

        self._wait_or_replace(serves)

    def _wait_or_replace(self, condition: Callable[[], bool]) -> None:
        """Wait for the router to do something; one that is silent for five seconds is replaced, once."""
        keeper = self.keeper
        began = time.monotonic()
        replaced = False
        while not condition():
            if not replaced and time.monotonic() - began > SILENT_AFTER_S:
                replaced = True
                keeper.kill_router(keeper.hello().router_pid)
            if time.monotonic() - began > ROUTER_TIMEOUT_S:
                raise TimedOutError(f"no router within {ROUTER_TIMEOUT_S:g} s", hint=f"see {self._home.router_log}")
            time.sleep(POLL_S)


def _try_bind(address: Address) -> None:
    """Bind and let go, to be told of a conflict before anything is started."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((address.host, address.port))
            sock.listen(1)
        except OSError as error:
            raise bind_error(address, error.errno or 0) from error
