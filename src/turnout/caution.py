"""What `turnout up --automatic` may do: nobody is there to ask, and clients with different wishes may take turns.

A person's `up` and `deploy` are unlimited; what the configuration named then is noted as considered, too.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from turnout.config import Settings, Wanted
from turnout.core.automatic import Wish, judge
from turnout.core.model import Desired, Snapshot
from turnout.core.versions import Order, compare
from turnout.errors import CandidateError, ConfigError, NotRunningError, SpawnError, TurnoutError, UsageError
from turnout.service import Service, remembered
from turnout.system.builds import Build
from turnout.system.process import is_alive


class Caution:
    """One `up` or `deploy`, under the lifecycle lock: judged before, where it is automatic, and noted at its end.

    Args:
        service: the service as it is asked for.
        wanted: what is asked for.
        automatic: no person asks.
    """

    def __init__(self, service: Service, wanted: Wanted, *, automatic: bool) -> None:
        self._automatic = automatic
        self._builds = service.builds
        self._name = service.name
        self._known = _known(service)
        self._wanted = wanted
        self._build = (
            Build(wanted.command, wanted.cwd or str(Path.cwd()), wanted.env, wanted.version, wanted.watched)
            if wanted.command
            else None
        )

    @property
    def configured(self) -> bool:
        """Whether it stands in the configuration that the service runs on; else some client happens to ask."""
        source = self._wanted.settings.source
        known = self._known is None or self._known.source == source
        return bool(source) and (
            known or not self._automatic
        )  # what a person brings up is what it runs on from then on

    def judge(self, snapshot: Snapshot) -> tuple[Wanted, str]:
        """What to make so, and why that is not what was asked for (empty: it is).

        A client's settings count only together with its build; those of the configuration always, but for what cannot
        change while the service is up.

        Raises:
            NotRunningError: the service was stopped, and stays so.
        """
        if snapshot.deployment.desired is Desired.STOPPED:
            raise NotRunningError(f"{self._name} was stopped, and is not started automatically", hint="turnout start")
        build, wanted = self._build, self._wanted
        if build is None:
            return self._settled(wanted), ""
        active = snapshot.active
        quarantined = self._builds.quarantined(build.id)
        if active is None or not is_alive(active.identity):
            last = self._last_good()
            if last and last.id != build.id and not self._is_better(build, last):
                return self._without_build(last), f"{last.version or last.id} ran last, and is not older"
            return self._settled(wanted), ""
        if not active.owned:
            return self._without_build(), "what is active was attached"
        wish = Wish(build.id, build.version, self.configured, quarantined)
        verdict = judge(wish, build=active.build, version=active.version, considered=self._builds.considered())
        same = active.build == build.id
        if verdict.deploy or (same and self.configured):
            return self._settled(wanted), ""
        return self._without_build(), "" if same else verdict.reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever came of it, what the configuration names is not considered again until it changes.

        But for a conflict with another verb or rollout, a machine that was too slow or too full, and what was broken
        off: then it was not decided.
        """
        decided = error is None or isinstance(error, (CandidateError, SpawnError, UsageError))
        if decided and self._build and self.configured:
            with suppress(TurnoutError):  # a full disk: then it is considered once more
                self._builds.consider(self._build.id)

    def _last_good(self) -> Build | None:
        for rollout in reversed(self._builds.rollouts()):
            build = self._builds.get(rollout.build) if rollout.result == "active" else None
            if build:
                return build
        return None

    def _is_better(self, build: Build, last: Build) -> bool:
        if self.configured and build.id != self._builds.considered():
            return compare(build.version, last.version) is not Order.OLDER
        return compare(build.version, last.version) is Order.NEWER

    def _without_build(self, instead: Build | None = None) -> Wanted:
        """What runs goes on running, or ``instead`` is started; a client's settings are not taken over either."""
        settings = self._settled(self._wanted).settings
        if self._known and not self.configured:
            settings = self._known
        elif self._known:  # the daemon that runs must not be judged by the checks of another
            settings = msgspec.structs.replace(settings, health=self._known.health)
        if instead is None:
            return msgspec.structs.replace(self._wanted, settings=settings, command=(), watched="")
        return Wanted(
            settings=settings,
            command=instead.command,
            cwd=instead.cwd,
            env=dict(instead.env),
            version=instead.version,
            watched=instead.watched,
        )

    def _settled(self, wanted: Wanted) -> Wanted:
        """Where clients connect, and where the registry lies, changes with `down` and `up` by a person."""
        if self._known is None:
            return wanted
        settings = msgspec.structs.replace(
            wanted.settings, listen=self._known.listen, registry=self._known.registry, plane=self._known.plane
        )
        return msgspec.structs.replace(wanted, settings=settings)


def _known(service: Service) -> Settings | None:
    """The settings that are in force; None where there are none, or another version wrote them."""
    try:
        return remembered(service.home)
    except ConfigError:
        return None
