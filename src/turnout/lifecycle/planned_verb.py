"""One verb up to its plan: the same for the verb, which carries it out, and for its dry run, which prints it."""

from __future__ import annotations

from typing import Final

import msgspec

from turnout.config.command_check import check_command
from turnout.config.settings import Scrape
from turnout.control.registry_claim import check_claim, is_others
from turnout.core.model import Desired, Snapshot
from turnout.errors import ConflictError, NotRunningError, SpawnError, TurnoutError
from turnout.lifecycle.actions import EndService, Plan
from turnout.lifecycle.auto_deploy_guard import AutoDeployGuard
from turnout.lifecycle.build_selection import has_run, start_hint
from turnout.lifecycle.forecast import Forecast, forecast_registry
from turnout.lifecycle.observation import serving
from turnout.lifecycle.plan import Planner
from turnout.lifecycle.session import Session
from turnout.state.metrics_address import check_scrape, to_write

# Verbs that start or switch something, and end the window of a daemon that has died.
STARTING: Final = frozenset({"up", "start", "deploy"})
# Verbs that need keeper and router, and start them where they are gone.
SERVING: Final = STARTING | {"refresh", "rollback", "attach", "detach", "stop"}
# Verbs of a service of which something must run.
RUNNING: Final = frozenset({"refresh", "rollback", "stop", "pause", "resume", "drain"})


class PlannedVerb(Session):
    """One verb and its plan."""

    _forecast = Forecast(Snapshot())
    _guard: AutoDeployGuard | None = None
    _scrape: Scrape | None = None
    _not_deployed = ""

    def plan(self) -> Plan:
        """The verb's plan by the state of this moment. Read-only, and needs no lock.

        Raises:
            TurnoutError: the verb is refused.
        """
        request, service = self._request, self.service
        snapshot = service.registry.read().snapshot
        generation = snapshot.deployment.generation
        if request.if_generation not in {None, generation}:
            raise ConflictError(
                f"the deployment stands at generation {generation}, not {request.if_generation}; nothing was changed",
                hint="turnout status",
            )
        if request.verb == "up":
            self._decide(snapshot)
            service = self.service
        if request.verb == "down":
            if not self._processes.any_runs():
                keeps = snapshot.deployment.desired is not Desired.STOPPED and service.registry.path.exists()
                return Plan(EndService(runs=False), ("keep it stopped",) if keeps else ())
            if is_others(self.home, service.home, service.registry.path):
                return Plan(EndService(beside=True), (f"stop what is left of {service.name}",))
        else:
            if request.verb in RUNNING and not self._processes.any_runs():
                raise NotRunningError(f"service {service.name} is not running", hint=start_hint(service, "up"))
            check_claim(self.home, service.home, service.registry.path)
        if request.verb in SERVING:
            self._check_command()
        self._forecast = Forecast(snapshot)
        if request.verb in SERVING or request.verb == "down":
            # a rollback by hand is what the router is about to do, and must not go one further
            router_acts = request.verb in SERVING and (request.verb != "rollback" or request.generation is not None)
            self._forecast = forecast_registry(
                service, snapshot, locked=self._lock is not None, router_acts=router_acts
            )
        plan = self._plan_over(self._forecast)
        return msgspec.structs.replace(plan, steps=(*self._forecast.steps, *plan.steps))

    def _decide(self, snapshot: Snapshot) -> None:
        """A person's `up` also says where metrics are served; the guard decides what an automatic one deploys."""
        if self._request.automatic:
            guard = self._guard or AutoDeployGuard(self.service, self.wanted, automatic=True)
            wanted, self._not_deployed = guard.decide(snapshot)
            if wanted is not self.wanted:
                self._bootstrap.close()
                self._open(wanted)
            return
        self._scrape = to_write(self.home, self.wanted)
        if self._scrape:
            check_scrape(self.wanted, self._scrape, serves=self.router.metrics_address())

    def _check_command(self) -> None:
        """Check the configured command, where it is started. A recorded build starts whatever the file says."""
        verb, environ = self._request.verb, self._launches.environ()
        starts_wanted = verb in {"up", "deploy"} or (verb == "start" and not has_run(self.service))
        try:
            check_command(self.wanted, environ, starts_wanted=starts_wanted)
        except SpawnError as error:
            raise self._with_serving(error) from error

    def _plan_over(self, forecast: Forecast) -> Plan:
        try:
            launches, is_dry_run = self._launches, self._lock is None
            return Planner(self.service, self.wanted, self._request, launches, forecast, is_dry_run=is_dry_run).plan()
        except SpawnError as error:
            raise self._with_serving(error) from error

    def _with_serving(self, error: TurnoutError) -> TurnoutError:
        """The same error, whose message also says which daemon serves."""
        message = f"{error.message}; {serving(self.service)}"
        return type(error)(message, hint=error.hint, detail=error.detail)
