"""How a service is: put together from the registry and, where one answers, from the router."""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.control.router_client import RouterClient
from turnout.core.model import Daemon, Deployment, Desired, Snapshot, State
from turnout.errors import TurnoutError
from turnout.state.home import Home
from turnout.state.metrics_address import read_scrape
from turnout.state.rollout_owner import is_abandoned
from turnout.state.service import Service
from turnout.status.problems import OF_ANOTHER_HOME, bad, failed_start_of, problems_of, start_with_of, warn
from turnout.status.schema import (
    ROLE_ORDER,
    DaemonStatus,
    DeploymentStatus,
    MetricsStatus,
    Problem,
    RestartStatus,
    Role,
    RouterStatus,
    ServiceStatus,
    SettingsStatus,
    UnwellStatus,
)
from turnout.system.process import is_alive, is_suspended, of_another_home, provably_dead


def roles(snapshot: Snapshot) -> dict[str, Role]:
    """The role of each daemon: active, candidate, warm, draining or stopped."""
    block = snapshot.deployment
    named: dict[str, Role] = {block.candidate_boot_id: "candidate", block.active_boot_id: "active"}
    if snapshot.old and not snapshot.old.draining:  # a retired daemon can only be started again
        named[block.old_boot_id] = "warm"
    return {
        boot_id: named.get(boot_id) or ("draining" if is_alive(daemon.identity) else "stopped")
        for boot_id, daemon in snapshot.daemons.items()
    }


def deployment_status(block: Deployment, observe_remaining_s: float | None) -> DeploymentStatus:
    """The block as every view tells it; ``observe_remaining_s``: seconds on the router's clock, None where unknown."""
    shown = {name: getattr(block, name) for name in DeploymentStatus.__struct_fields__ if hasattr(block, name)}
    return DeploymentStatus(**shown, observe_remaining_s=observe_remaining_s)


def ask_router(home: Home) -> dict[str, Any] | None:
    """The router's status; None where none answers."""
    try:
        return RouterClient(home).status()
    except (TurnoutError, OSError):
        return None


def metrics_status(home: Home, router: dict[str, Any] | None) -> MetricsStatus | None:
    """Where the home has its metrics served, and whether the router listens there; None: they are off.

    ``router``: its status, None where none answers.
    """
    try:
        scrape = read_scrape(home)
    except TurnoutError as error:
        return MetricsStatus(listen=None, served=False, error=error.message)
    if scrape.listen is None:
        return None
    metrics = _section(router, "metrics")
    if metrics.get("listen") == str(scrape.listen):
        return MetricsStatus(listen=str(scrape.listen), served=True, error=None)
    why = "no router runs" if router is None else metrics.get("error") or "the router has not come to it yet"
    return MetricsStatus(listen=str(scrape.listen), served=False, error=why)


def service_status(service: Service, router: dict[str, Any] | None) -> ServiceStatus:
    """One entry of ``services``. What cannot be known is None, never 0.

    Args:
        service: the opened service; its registry is read without a lock.
        router: the router's status, or None where none answers.
    """
    routed = _section(_section(router, "services"), service.name)
    taken = _taken(service, served=bool(routed))
    if taken:  # the file says nothing of this service
        snapshot = Snapshot(deployment=Deployment(desired=Desired.RUNNING if routed else Desired.STOPPED))
    else:
        snapshot = service.registry.read().snapshot
    block = snapshot.deployment
    role_of = roles(snapshot)
    ordered = sorted(snapshot.daemons.values(), key=lambda daemon: ROLE_ORDER.index(role_of[daemon.boot_id]))
    status = ServiceStatus(
        name=service.name,
        listen=[str(address) for address in service.settings.listen],
        strategy=service.settings.strategy,
        desired=block.desired,
        held=routed.get("held"),
        restart=msgspec.convert(routed.get("restart"), RestartStatus | None),
        unwell=msgspec.convert(routed.get("unwell"), UnwellStatus | None),
        settings=msgspec.convert(routed.get("settings"), SettingsStatus | None),
        counters=routed.get("counters"),
        troubles=routed.get("troubles"),
        router=_router(router if routed else None, routed),
        deployment=deployment_status(
            block, routed.get("observe_remaining_s") if block.state is State.SWITCHED else None
        ),
        daemons=[_daemon(daemon, role_of[daemon.boot_id], routed) for daemon in ordered],
        problems=[],
        failed_start=None,
        start_with="",
    )
    if taken:
        return msgspec.structs.replace(status, problems=[taken])
    abandoned = is_abandoned(block, service.home)
    startable = bool(service.settings.source) or service.builds.has_any()
    failures, start_with = service.settings.health.failures, start_with_of(status, startable=startable)
    problems = problems_of(status, failures=failures, abandoned=abandoned, startable=startable)
    return msgspec.structs.replace(
        status, problems=problems, failed_start=failed_start_of(status), start_with=start_with
    )


def _is_unseen(daemon: Daemon) -> bool:
    """Whether an attached daemon may run although no process of it can be seen: another user's, or in a container."""
    return not daemon.owned and not of_another_home(daemon.identity) and not provably_dead(daemon.identity)


def _taken(service: Service, *, served: bool) -> Problem | None:
    """The problem that another service has the registry file; ``served``: the router serves this one all the same."""
    if not service.settings.registry:
        return None
    from turnout.control.registry_claim import other_holder  # noqa: PLC0415  # most services have the file of their own home

    holder = other_holder(Home(service.home.root.parent.parent), service.home, service.registry.path)
    if holder is None:
        return None
    make = bad if served else warn
    return make(
        f"{service.registry.path} is the registry of {holder.whose}, and says nothing of {service.name}",
        f"give {service.name} another registry file, or: {holder.end}",
    )


def _router(router: dict[str, Any] | None, routed: dict[str, Any]) -> RouterStatus:
    if router is None:
        unknown: dict[str, Any] = dict.fromkeys(RouterStatus.__struct_fields__)
        unknown |= {"alive": False, "leaving": []}
        return RouterStatus(**unknown)
    return RouterStatus(
        pid=router["pid"],
        alive=True,
        plane=routed.get("plane"),
        plane_trouble=routed.get("plane_trouble"),
        applied_revision=routed.get("applied_revision"),
        uptime_s=router["uptime_s"],
        version=router.get("version"),
        leaving=router.get("leaving", []),
    )


def _daemon(daemon: Daemon, role: Role, routed: dict[str, Any]) -> DaemonStatus:
    boot_id = daemon.boot_id
    # a router that serves and has not seen a connection of this boot has counted none
    counted: dict[str, int | None] = {"connections": 0, "bytes_in": 0, "bytes_out": 0} if routed else {}
    counted.update(_section(_section(routed, "census"), boot_id))
    connections = counted.get("connections")
    elsewhere = _section(routed, "elsewhere").get(boot_id, 0)  # what a router that leaves still carries
    healthy: bool | None = _section(routed, "healthy").get(boot_id)
    alive = is_alive(daemon.identity) or (healthy is not False and _is_unseen(daemon))
    return DaemonStatus(
        boot_id=boot_id,
        version=daemon.version,
        pid=daemon.pid,
        host=daemon.host,
        port=daemon.port,
        own_port=daemon.own_port,
        role=role,
        alive=alive,
        healthy=healthy,
        reason=OF_ANOTHER_HOME if of_another_home(daemon.identity) else _section(routed, "reasons").get(boot_id, ""),
        connections=None if connections is None or elsewhere is None else connections + elsewhere,
        bytes_in=counted.get("bytes_in"),
        bytes_out=counted.get("bytes_out"),
        started_ts=daemon.start_ts,
        attached=not daemon.owned,
        suspended=alive and is_suspended(daemon.pid),
    )


def _section(status: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """One object inside the router's status; empty where there is none."""
    section: dict[str, Any] = (status or {}).get(key) or {}
    return section
