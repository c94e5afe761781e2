"""One service under its lifecycle lock."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

from turnout.config.settings import ServiceRequest
from turnout.control.router_client import RouterClient
from turnout.core.rollout_step import RolloutStep
from turnout.errors import StateUnwritableError, TurnoutError
from turnout.lifecycle.bootstrap import ROUTER_TIMEOUT_S, Bootstrap
from turnout.lifecycle.build_selection import wanted_build
from turnout.lifecycle.launch_context import Launches
from turnout.lifecycle.preparation import Preparation
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.service_processes import ServiceProcesses
from turnout.lifecycle.verb_request import VerbRequest
from turnout.state.definition import check_definition, definition_of, record_definition
from turnout.state.home import Home
from turnout.state.lifecycle_lock import LifecycleLock
from turnout.state.service import Service


class Session:
    """One service in the hands of one verb. Owns the lifecycle lock and the line to the keeper while open.

    Args:
        home: the state directory.
        wanted: the service's settings and build, as configured.
        request: the verb.
        lock_timeout_s: seconds to wait for another verb, 0.1 or more.
        progress: what the verb reports.
    """

    def __init__(
        self,
        home: Home,
        wanted: ServiceRequest,
        request: VerbRequest,
        *,
        lock_timeout_s: float,
        progress: Progress | None = None,
    ) -> None:
        self.home = home
        self.router = RouterClient(home)
        self._request = request
        self._progress = progress or Progress()
        self._lock_timeout_s = lock_timeout_s
        self._lock: LifecycleLock | None = None
        self._definition = None if request.from_router else wanted.definition
        self._preparation: Preparation | None = None
        self._open(wanted)

    def _open(self, wanted: ServiceRequest) -> None:
        """Go on with these settings and this build."""
        self.wanted = wanted
        self.service = Service.open(self.home.service(wanted.settings.name), wanted.settings)
        self._bootstrap = Bootstrap(self.home, wanted.settings, starts_keeper=not self._request.from_router)
        self._processes = ServiceProcesses(self.service, self._bootstrap)

    def __enter__(self) -> Self:
        self.service.home.create()
        lock = LifecycleLock(
            self.service.home.root,
            timeout_s=self._lock_timeout_s,
            verb=self._request.verb,
            on_wait=self._progress.wait,
            wish=self._wish(),
            patience_s=self._patience_s(),
        )
        lock.__enter__()
        self._lock = lock
        try:
            self._check_definition()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error and self._lock and self._preparation:
                with suppress(TurnoutError, OSError):
                    self._preparation.undo(error)
        finally:
            self._bootstrap.close()
            if kind is None:
                self.unlock()
            else:
                self._release()

    def unlock(self) -> None:
        """Record the service's definition, and let other verbs in: the verb changes nothing from here on."""
        if self._lock:
            try:
                self._record_definition()
            finally:
                self._release()

    def _release(self) -> None:
        if self._lock:
            self._progress.step(RolloutStep.UNLOCK, "")
            self._lock.__exit__(None, None, None)
            self._lock = None

    def _wish(self) -> str:
        """What another `up` may have made so when this one gets the lock. The router's is not kept waiting for that."""
        if self._request.verb != "up" or self._request.from_router:
            return ""
        build = wanted_build(self.service, self.wanted, required=False) or self.service.builds.latest()
        return f"up {build.id if build else ''}"

    def _patience_s(self) -> float:
        """The seconds that this `up` may take, for which another `up` of the same build waits."""
        settings = self.service.settings
        return ROUTER_TIMEOUT_S + settings.stop_grace_s + settings.start_timeout_s

    def _check_definition(self) -> None:
        request = self._request
        if not request.take_over:
            check_definition(self.service.home, self._definition, request.verb, automatic=request.automatic)

    def _record_definition(self) -> None:
        """Once a verb has taken effect, and not before: a first `up` that failed defines no service."""
        home, request = self.service.home, self._request
        if self._definition is None or not (self._preparation and self._preparation.has_settings):
            return
        if request.automatic and definition_of(home):
            return  # a client that asks does not say where the service is defined
        try:
            record_definition(home, self._definition, take_over=request.take_over)
        except StateUnwritableError as error:  # the service is as it was asked for, which matters more
            self._progress.slow(f"where {self.service.name} is defined was not recorded: {error.message}")

    @property
    def _launches(self) -> Launches:
        request = self._request
        return Launches(
            self.service, automatic=request.automatic, from_router=request.from_router, recorded=request.recorded
        )

    def _where(self) -> str:
        return ", ".join(map(str, self.service.settings.listen))
