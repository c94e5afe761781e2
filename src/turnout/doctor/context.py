"""What the checks look at: one home and one machine, read once and never changed."""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.config.settings import DEFAULT_SERVICE, ServiceRequest, Settings
from turnout.control.keeper_client import KeeperClient, KeeperInfo
from turnout.control.registry_claim import is_others
from turnout.control.router_client import RouterClient
from turnout.core.model import Snapshot
from turnout.errors import NotRunningError, TurnoutError
from turnout.planes.direct.sk_lookup import lacking
from turnout.reuseport.feature_test import group_works
from turnout.reuseport.program import attach
from turnout.state.copied_home import OwnProcesses
from turnout.state.home import Home, ServiceHome
from turnout.state.keeper_lock import keeper_pid
from turnout.state.registry.commit import good_copy
from turnout.state.registry.inspect import read_or_none
from turnout.state.registry.merge import merge
from turnout.state.service import remembered
from turnout.system.process import is_alive, is_suspended
from turnout.system.spawn_record import SpawnRecord, read_records


@dataclass(frozen=True)
class ServiceContext:
    """One service, as far as it can be read.

    Args:
        name: its name.
        home: where its files lie.
        settings: those in force; else those of the configuration file; None where neither can be read.
        unreadable: why the settings in force cannot be read; empty where they can, or there are none.
        configured: it stands in the configuration file.
    """

    name: str
    home: ServiceHome
    settings: Settings | None
    unreadable: str
    configured: ServiceRequest | None = None

    @property
    def registry(self) -> Path:
        """The registry file, a link followed."""
        named = Path(self.settings.registry) if self.settings and self.settings.registry else self.home.registry
        return Path(os.path.realpath(named))

    @functools.cached_property
    def is_taken(self) -> bool:
        """Whether another service has the registry file."""
        return is_others(Home(self.home.root.parent.parent), self.home, self.registry)

    @functools.cached_property
    def snapshot(self) -> Snapshot | None:
        """What the registry says, together with its last good copy; None where neither can be read. Writes nothing.

        None too where another service has that file: nothing in it is of this one.
        """
        if self.is_taken:
            return None
        good, file = read_or_none(good_copy(self.registry)), read_or_none(self.registry)
        snapshot = merge(good, file)[0] if good and file else file or good
        return OwnProcesses(self.home)(snapshot) if snapshot else None

    @property
    def flag(self) -> str:
        """What a command needs to mean this service."""
        return "" if self.name == DEFAULT_SERVICE else f" --service {self.name}"


def _group_lacks() -> str:
    try:
        return group_works(attach)
    except OSError as error:
        return f"a group of listeners cannot be made: {error.strerror or error}"


@dataclass(frozen=True)
class Context:
    """One home and one machine, as the checks ask for them. Tests give other values than the machine's own.

    Args:
        home: the state directory.
        configured: the services of the configuration file.
        misconfigured: why that file cannot be used, and what to do; None where it can.
        only: look at this service alone; empty: at all of them.
        proc: where proc(5) is mounted.
        nofile: RLIMIT_NOFILE, soft and hard.
        uid: whose files they should be.
        sk_lookup_lacks: why the kernel can run no program for new connections here; empty where it can.
        group_lacks: why connections to a group of listeners cannot be placed here; empty where they can.
        clock: wall-clock seconds.
    """

    home: Home
    configured: Mapping[str, ServiceRequest] = field(default_factory=dict[str, ServiceRequest])
    misconfigured: TurnoutError | None = None
    only: str = ""
    proc: Path = Path("/proc")
    nofile: tuple[int, int] = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
    uid: int = field(default_factory=os.geteuid)
    sk_lookup_lacks: Callable[[], str] = lacking
    group_lacks: Callable[[], str] = _group_lacks
    clock: Callable[[], float] = time.time

    @functools.cached_property
    def services(self) -> list[ServiceContext]:
        """The services that have been here or are configured, by name."""
        try:
            names = {entry.name for entry in self.home.services.iterdir() if entry.is_dir()}
        except OSError:
            names = set[str]()
        names |= set(self.configured)
        return [self._service(name) for name in sorted(names) if self.only in {"", name}]

    def _service(self, name: str) -> ServiceContext:
        home, configured = ServiceHome(name, self.home.services / name), self.configured.get(name)
        try:
            settings, why = remembered(home), ""
        except TurnoutError as error:
            settings, why = None, error.message
        return ServiceContext(name, home, settings or (configured.settings if configured else None), why, configured)

    @functools.cached_property
    def keeper(self) -> KeeperInfo | None:
        """What the keeper says of itself; None where none answers. One that is suspended is not waited for."""
        if is_suspended(keeper_pid(self.home, proc=self.proc) or 0):
            return None
        try:
            with KeeperClient.connect(self.home) as keeper:
                return keeper.hello()
        except (TurnoutError, OSError, KeyError):
            return None

    @functools.cached_property
    def asked_router(self) -> tuple[dict[str, Any] | None, str]:
        """What the router says of itself, or None and why it does not."""
        try:
            return RouterClient(self.home).status(), ""
        except NotRunningError:
            return None, "none answers"
        except (TurnoutError, OSError) as error:
            return None, error.message if isinstance(error, TurnoutError) else str(error)

    @property
    def router(self) -> dict[str, Any] | None:
        return self.asked_router[0]

    def routed(self, service: str) -> dict[str, Any]:
        """What the router says of a service; empty where it says nothing."""
        status: dict[str, Any] = (self.router or {}).get("services", {}).get(service, {})
        return status

    @functools.cached_property
    def router_processes(self) -> list[SpawnRecord]:
        """The routers of this home that run, whether they answer or not."""
        return [record for record in read_records(self.home.root).values() if is_alive(record.identity)]

    def sysctl(self, name: str) -> str | None:
        """The value of ``net.core.somaxconn`` and the like; None where this system has no such thing."""
        try:
            return (self.proc / "sys" / name.replace(".", "/")).read_text().strip()
        except OSError:
            return None
