"""How a service is: put together from the registry and, where one answers, from the router."""

from __future__ import annotations

from typing import Any

import msgspec

from turnout.admin import RouterClient
from turnout.carrier import is_abandoned
from turnout.core.model import Daemon, Deployment, Snapshot, State
from turnout.errors import TurnoutError
from turnout.problems import problems_of
from turnout.scrape_address import read_scrape
from turnout.service import Service
from turnout.system.home import Home
from turnout.system.process import is_alive, is_suspended
from turnout.telemetry import (
    ROLE_ORDER,
    DaemonStatus,
    DeploymentStatus,
    MetricsStatus,
    RestartStatus,
    Role,
    RouterStatus,
    ServiceStatus,
    SettingsStatus,
    UnwellStatus,
)


def roles(snapshot: Snapshot) -> dict[str, Role]:
    """The role of each daemon: active, candidate, warm, draining or stopped."""
    block = snapshot.deployment
    named: dict[str, Role] = {block.candidate_boot_id: "candidate", block.active_boot_id: "active"}
    if snapshot.old and not snapshot.old.draining:  # one that was retired can only be started anew
        named[block.old_boot_id] = "warm"
    return {
        boot_id: named.get(boot_id) or ("draining" if is_alive(daemon.identity) else "stopped")
        for boot_id, daemon in snapshot.daemons.items()
    }


def deployment_status(block: Deployment, observe_remaining_s: float | None) -> DeploymentStatus:
    """The block as every view tells it; ``observe_remaining_s``: seconds on the router's clock, None where unknown."""
    return DeploymentStatus(
        generation=block.generation,
        state=block.state,
        active_boot_id=block.active_boot_id,
        candidate_boot_id=block.candidate_boot_id,
        old_boot_id=block.old_boot_id,
        health_fail_streak=block.health_fail_streak,
        rollback_reason=block.rollback_reason,
        switch_ts=block.switch_ts,
        observe_remaining_s=observe_remaining_s,
        revision=block.revision,
        cause=block.cause,
    )


def ask_router(home: Home) -> dict[str, Any] | None:
    """What the router says of itself; None where none answers."""
    try:
        return RouterClient(home).status()
    except (TurnoutError, OSError):
        return None


def metrics_status(home: Home, router: dict[str, Any] | None) -> MetricsStatus | None:
    """Where the home has its metrics served, and whether somebody listens there; None: they are off.

    Args:
        home: the state directory.
        router: what the router said of itself, or None where none answers.
    """
    try:
        scrape = read_scrape(home)
    except TurnoutError as error:
        return MetricsStatus(listen=None, served=False, error=error.message)
    if scrape.listen is None:
        return None
    said = _section(router, "metrics")
    if said.get("listen") == str(scrape.listen):
        return MetricsStatus(listen=str(scrape.listen), served=True, error=None)
    why = "no router runs" if router is None else said.get("error") or "the router has not come to it yet"
    return MetricsStatus(listen=str(scrape.listen), served=False, error=why)


def service_status(service: Service, router: dict[str, Any] | None) -> ServiceStatus:
    """One entry of ``services``. What cannot be known is None, never 0.

    Args:
        service: the opened service; its registry is read without a lock.
        router: what the router said of itself, or None where none answers.
    """
    snapshot = service.registry.read().snapshot
    block = snapshot.deployment
    said = _section(_section(router, "services"), service.name)
    role_of = roles(snapshot)
    ordered = sorted(snapshot.daemons.values(), key=lambda daemon: ROLE_ORDER.index(role_of[daemon.boot_id]))
    status = ServiceStatus(
        name=service.name,
        listen=[str(address) for address in service.settings.listen],
        strategy=service.settings.strategy,
        desired=block.desired,
        held=said.get("held"),
        restart=msgspec.convert(said.get("restart"), RestartStatus | None),
        unwell=msgspec.convert(said.get("unwell"), UnwellStatus | None),
        settings=msgspec.convert(said.get("settings"), SettingsStatus | None),
        counters=said.get("counters"),
        troubles=said.get("troubles"),
        router=_router(router if said else None, said),
        deployment=deployment_status(block, said.get("observe_remaining_s") if block.state is State.SWITCHED else None),
        daemons=[_daemon(daemon, role_of[daemon.boot_id], said) for daemon in ordered],
        problems=[],
    )
    abandoned = is_abandoned(block, service.home)
    found = problems_of(status, failures=service.settings.health.failures, abandoned=abandoned)
    return msgspec.structs.replace(status, problems=found)


def _router(router: dict[str, Any] | None, said: dict[str, Any]) -> RouterStatus:
    if router is None:
        return RouterStatus(
            pid=None,
            alive=False,
            plane=None,
            plane_trouble=None,
            applied_revision=None,
            uptime_s=None,
            version=None,
            leaving=[],
        )
    return RouterStatus(
        pid=router["pid"],
        alive=True,
        plane=said.get("plane"),
        plane_trouble=said.get("plane_trouble"),
        applied_revision=said.get("applied_revision"),
        uptime_s=router["uptime_s"],
        version=router.get("version"),
        leaving=router.get("leaving", []),
    )


def _daemon(daemon: Daemon, role: Role, said: dict[str, Any]) -> DaemonStatus:
    boot_id = daemon.boot_id
    # a router that serves and has not seen a connection of this boot has counted none
    counted: dict[str, int | None] = {"connections": 0, "bytes_in": 0, "bytes_out": 0} if said else {}
    counted.update(_section(_section(said, "census"), boot_id))
    connections = counted.get("connections")
    elsewhere = _section(said, "elsewhere").get(boot_id, 0)  # what a router that leaves still carries
    alive = is_alive(daemon.identity)
    return DaemonStatus(
        boot_id=boot_id,
        version=daemon.version,
        pid=daemon.pid,
        host=daemon.host,
        port=daemon.port,
        role=role,
        alive=alive,
        healthy=_section(said, "healthy").get(boot_id),
        reason=_section(said, "reasons").get(boot_id, ""),
        connections=None if connections is None or elsewhere is None else connections + elsewhere,
        bytes_in=counted.get("bytes_in"),
        bytes_out=counted.get("bytes_out"),
        started_ts=daemon.start_ts,
        suspended=alive and is_suspended(daemon.pid),
    )


def _section(said: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """One object inside what the router said; empty where there is none."""
    found: dict[str, Any] = (said or {}).get(key) or {}
    return found
