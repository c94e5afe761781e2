"""The stable shape of ``status --json``: put together from the registry and, where one answers, from the router."""

from __future__ import annotations

from typing import Any

from turnout.core.model import Snapshot
from turnout.service import Service
from turnout.system.process import is_alive

ROLE_ORDER = ("active", "candidate", "warm", "draining", "stopped")


def roles(snapshot: Snapshot) -> dict[str, str]:
    """The role of each daemon: active, candidate, warm, draining or stopped."""
    block = snapshot.deployment
    named = {block.candidate_boot_id: "candidate", block.active_boot_id: "active"}
    if snapshot.old and not snapshot.old.draining:  # one that was retired can only be started anew
        named[block.old_boot_id] = "warm"
    return {
        boot_id: named.get(boot_id) or ("draining" if is_alive(daemon.identity) else "stopped")
        for boot_id, daemon in snapshot.daemons.items()
    }


def service_status(service: Service, router: dict[str, Any] | None) -> dict[str, Any]:
    """One entry of ``services``. What cannot be known is None, never 0.

    Args:
        service: the opened service; its registry is read without a lock.
        router: what the router said of itself, or None where none answers.
    """
    snapshot = service.registry.read().snapshot
    block = snapshot.deployment
    said = _section(_section(router, "services"), service.name)
    alive = bool(said)
    role_of = roles(snapshot)
    daemons: list[dict[str, Any]] = []
    for boot_id, daemon in sorted(snapshot.daemons.items(), key=lambda item: ROLE_ORDER.index(role_of[item[0]])):
        # a router that serves and has not seen a connection of this boot has counted none
        counted = {"connections": 0, "bytes_in": 0, "bytes_out": 0} if alive else {}
        counted.update(_section(_section(said, "census"), boot_id))
        elsewhere = _section(said, "elsewhere").get(boot_id, 0)  # what a router that leaves still carries
        daemons.append(
            {
                "boot_id": boot_id,
                "version": daemon.version,
                "pid": daemon.pid,
                "host": daemon.host,
                "port": daemon.port,
                "role": role_of[boot_id],
                "alive": is_alive(daemon.identity),
                "healthy": _section(said, "healthy").get(boot_id),
                "reason": _section(said, "reasons").get(boot_id, ""),
                "connections": counted["connections"] + elsewhere if counted else None,
                "bytes_in": counted.get("bytes_in"),
                "bytes_out": counted.get("bytes_out"),
                "started_ts": daemon.start_ts,
            }
        )
    return {
        "name": service.name,
        "listen": [str(address) for address in service.settings.listen],
        "strategy": service.settings.strategy,
        "desired": block.desired.value,
        "held": said.get("held"),
        "counters": said.get("counters"),
        "troubles": said.get("troubles"),
        "restart": said.get("restart"),
        # what the configuration file says and the router could not take over, None without a router
        "settings": said.get("settings"),
        "unwell": said.get("unwell"),
        "router": {
            "pid": router["pid"] if router and alive else None,
            "alive": alive,
            "plane": said.get("plane"),
            "applied_revision": said.get("applied_revision"),
            "uptime_s": router["uptime_s"] if router and alive else None,
            "leaving": router.get("leaving", []) if router and alive else [],
        },
        "deployment": {
            "generation": block.generation,
            "state": block.state.value,
            "active_boot_id": block.active_boot_id,
            "candidate_boot_id": block.candidate_boot_id,
            "old_boot_id": block.old_boot_id,
            "health_fail_streak": block.health_fail_streak,
            "rollback_reason": block.rollback_reason,
            "switch_ts": block.switch_ts,
            "observe_remaining_s": said.get("observe_remaining_s"),
            "revision": block.revision,
        },
        "daemons": daemons,
    }


def _section(said: dict[str, Any] | None, key: str) -> dict[str, Any]:
    """One object inside what the router said; empty where there is none."""
    found: dict[str, Any] = (said or {}).get(key) or {}
    return found
