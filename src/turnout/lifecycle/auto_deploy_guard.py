"""Decides what `turnout up --automatic` may do: no person can be asked, and clients with different wishes take turns.

A person's `up` and `deploy` are unlimited; what the configuration named then is noted as considered, too.
"""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from turnout.config.settings import ServiceRequest, Settings
from turnout.core.auto_deploy import BuildRequest, decide
from turnout.core.model import Desired, Snapshot
from turnout.core.versions import VersionOrder, compare
from turnout.errors import ConfigError, NotRunningError, TurnoutError, UsageError
from turnout.lifecycle.build_selection import wanted_build
from turnout.lifecycle.failure_report import blames_build
from turnout.state.builds import Build
from turnout.state.service import Service, remembered
from turnout.system.process import is_alive


class AutoDeployGuard:
    """Decides over one automatic `up`, and notes at the end of any `up` or `deploy` what the configuration named.

    ``service``: as it is asked for, by ``wanted``. Under the lifecycle lock.
    """

    def __init__(self, service: Service, wanted: ServiceRequest, *, automatic: bool) -> None:
        self._automatic = automatic
        self._builds = service.builds
        self._name = service.name
        self._known: Settings | None = None  # the settings that are in force
        with suppress(ConfigError):  # another version wrote them
            self._known = remembered(service.home)
        self._wanted = wanted
        self._build = wanted_build(service, wanted, required=False)

    @property
    def configured(self) -> bool:
        """Whether the configuration asks that the service runs on, or a person's new one; else a client asks."""
        source = self._wanted.settings.source
        return bool(source) and (self._known is None or self._known.source == source or not self._automatic)

    def decide(self, snapshot: Snapshot) -> tuple[ServiceRequest, str]:
        """The settings and the build to bring up, and why those are not the wanted ones (empty: they are).

        A client's settings count only together with its build; those of the configuration always, but for what cannot
        change while the service is up.

        Raises:
            NotRunningError: the service was stopped, and stays so.
        """
        block = snapshot.deployment
        # its first `up` failed, which is no wish of a person; a daemon of another program's may have been stopped
        never_up = not block.switch_ts and block.rollback_reason not in {"stopped", "down"}
        if block.desired is Desired.STOPPED and not never_up:
            raise NotRunningError(f"{self._name} was stopped, and is not started automatically", hint="turnout start")
        build, wanted = self._build, self._wanted
        if build is None:
            return self._settled(wanted), ""
        active = snapshot.active
        quarantined = self._builds.quarantined(build.id)
        if active is None or not is_alive(active.identity):
            last = self._builds.previous("")
            if last and last.id != build.id and not self._is_better(build, last):
                return self._without_build(last), f"{last.version or last.id} ran last, and is not older"
            return self._settled(wanted), ""
        if not active.owned:
            return self._without_build(), "what is active was attached"
        request = BuildRequest(build.id, build.version, self.configured, quarantined)
        decision = decide(request, build=active.build, version=active.version, considered=self._builds.considered())
        same = active.build == build.id
        if decision.deploy or (same and self.configured):
            return self._settled(wanted), ""
        return self._without_build(), "" if same else decision.reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Note the configured build as considered: not again until it changes, whatever came of it.

        A conflict with another verb or rollout, a machine that was too slow or too full, and an interrupt decide
        nothing.
        """
        decided = error is None or blames_build(error) or isinstance(error, UsageError)
        if decided and self._build and self.configured:
            with suppress(TurnoutError):  # a full disk: then it is considered once more
                self._builds.consider(self._build.id)

    def _is_better(self, build: Build, last: Build) -> bool:
        if self.configured and build.id != self._builds.considered():
            return compare(build.version, last.version) is not VersionOrder.OLDER
        return compare(build.version, last.version) is VersionOrder.NEWER

    def _without_build(self, instead: Build | None = None) -> ServiceRequest:
        """Leave the daemon that runs, or start ``instead``; a client's settings are not taken over either."""
        settings = self._settled(self._wanted).settings
        if self._known and not self.configured:
            settings = self._known
        elif self._known:  # the daemon that runs must not be judged by the checks of another
            settings = msgspec.structs.replace(settings, health=self._known.health)
        if instead is None:
            return msgspec.structs.replace(self._wanted, settings=settings, command=(), watched="", version="")
        return ServiceRequest(
            settings=settings,
            command=instead.command,
            cwd=instead.cwd,
            env=dict(instead.env),
            version=instead.version,
            watched=instead.watched,
        )

    def _settled(self, wanted: ServiceRequest) -> ServiceRequest:
        """Keep the addresses, the registry and the plane, which change with `down` and `up` by a person."""
        if self._known is None:
            return wanted
        settings = msgspec.structs.replace(
            wanted.settings, listen=self._known.listen, registry=self._known.registry, plane=self._known.plane
        )
        return msgspec.structs.replace(wanted, settings=settings)
