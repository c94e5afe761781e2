"""Makes the lines that ``--dry-run`` prints: the verb's plan, with what is prepared before it and ended after it."""

from __future__ import annotations

from turnout.config.settings import ServiceRequest, Settings
from turnout.control.keeper_client import KeeperClient, KeeperInfo
from turnout.core.model import Identity
from turnout.errors import NotRunningError, TimedOutError
from turnout.lifecycle.actions import EndService
from turnout.lifecycle.naming import daemon_name
from turnout.lifecycle.planned_verb import SERVING, PlannedVerb
from turnout.lifecycle.verb_request import VerbRequest
from turnout.state.home import Home
from turnout.state.keeper_lock import read_keeper
from turnout.state.service import remembered
from turnout.system.process import is_alive


class DryRun(PlannedVerb):
    """A verb that takes no lock and is not carried out."""

    def __init__(self, home: Home, wanted: ServiceRequest, request: VerbRequest) -> None:
        super().__init__(home, wanted, request, lock_timeout_s=0.0)

    def lines(self) -> list[str]:
        """A line for each thing that the verb would do.

        Raises:
            TurnoutError: as the verb itself would raise it, as far as that can be known before.
        """
        self._check_definition()
        plan = self.plan()
        keeper, silent = _hello(self.home)
        before = self._preparation_steps(keeper, silent) if self._request.verb in SERVING else []
        after: list[str] = []
        if isinstance(plan.action, EndService):
            if not plan.action.runs:
                return [*plan.steps] or [f"do nothing: {self.service.name} is down"]
            before, after = self._end_steps(plan.action, keeper)
        if self._scrape:
            where = self._scrape.listen
            after.append(f"serve metrics on http://{where}/metrics" if where else "serve no metrics any more")
        return [*before, *plan.steps, *after] or ["do nothing: it is so already"]

    def _preparation_steps(self, keeper: KeeperInfo | None, silent: Identity | None) -> list[str]:
        """Settings, keeper, router and listener."""
        settings = self.service.settings
        self._bootstrap.check(keeper_answers=silent is None)
        before = remembered(self.service.home)
        changed = [
            f"{field} {getattr(before, field)} -> {getattr(settings, field)}"
            for field in Settings.__struct_fields__
            if before and field != "source" and getattr(before, field) != getattr(settings, field)
        ]
        steps = [f"take over changed settings: {', '.join(changed)}"] if changed else []
        if silent:
            steps.append(f"replace the keeper (pid {silent.pid}), should it go on saying nothing")
        elif not keeper:
            steps.append(f"start a keeper and a router in {self.home.root}")
        listens = keeper.services.get(settings.name, ()) if keeper else ()
        if {*listens} != {(address.host, address.port) for address in settings.listen}:
            steps.append(f"listen on {self._where()}")
        return steps

    def _end_steps(self, action: EndService, keeper: KeeperInfo | None) -> tuple[list[str], list[str]]:
        """The steps of `down` before those of its plan, and after them."""
        home, name, grace_s = self.home, self.service.name, self.service.settings.drain_grace_s
        services = set(keeper.services) if keeper else set[str]()
        before = [] if keeper else [f"start a keeper in {home.root}, to stop what is left, and end it"]
        after = [
            f"drain {daemon_name(daemon)} for {grace_s:g} s at most, and stop it"
            for daemon in self._processes.owned()
            if is_alive(daemon.identity) and not action.beside
        ]
        if name in services:
            after.append(f"close {self._where()}")
        if keeper and not services - {name}:
            after.append(f"end router (pid {keeper.router_pid}) and keeper (pid {keeper.pid})")
        return before, after


def _hello(home: Home) -> tuple[KeeperInfo | None, Identity | None]:
    """The keeper's hello; where a keeper runs and does not answer, the identity of its process."""
    try:
        with KeeperClient.connect(home) as keeper:
            return keeper.hello(timeout_s=1.0), None
    except NotRunningError:
        return None, None
    except TimedOutError:
        return None, read_keeper(home.keeper_lock)
