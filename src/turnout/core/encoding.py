"""The registry's JSON as it is written: what :mod:`turnout.core.codec` reads back as the same snapshot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from turnout.core.model import Daemon, Deployment, Identity, Move, Snapshot, Workspace


def dumps(snapshot: Snapshot) -> bytes:
    """The file's bytes: UTF-8, indented for people, the same snapshot always the same bytes."""
    raw = encode(snapshot)
    try:
        data = msgspec.json.format(msgspec.json.encode(raw), indent=2)
    except (UnicodeEncodeError, OverflowError):
        # half a surrogate pair, which JSON can escape and UTF-8 cannot hold, or a number beyond 64 bits
        data = json.dumps(raw, indent=2, allow_nan=False).encode()
    return data + b"\n"


def encode(snapshot: Snapshot) -> dict[str, Any]:
    """The JSON object of a snapshot; keys that are not ours come last."""
    return {
        "version": snapshot.version,
        "daemons": {boot_id: _daemon(daemon) for boot_id, daemon in snapshot.daemons.items()},
        "workspaces": {root: _workspace(workspace) for root, workspace in snapshot.workspaces.items()},
        "deployment": _deployment(snapshot.deployment),
        **_finite(snapshot.extra),
    }


def _daemon(daemon: Daemon) -> dict[str, Any]:
    ours = {
        "host": daemon.host,
        "port": daemon.port,
        "pid": daemon.pid,
        "start_ts": daemon.start_ts,
        "last_seen_ts": daemon.last_seen_ts,
        "draining": daemon.draining,
        "version": daemon.version,
        "http_host": daemon.http_host,
        "http_port": daemon.http_port,
        "http_pid": daemon.http_pid,
    }
    proof = _identity(daemon.identity)
    del proof["pid"]
    later = {
        **proof,
        "drain_cause": daemon.drain_cause.value,
        "build": daemon.build,
        "owned": daemon.owned,
        "proxy_protocol": daemon.proxy_protocol,
        "source": daemon.source,
    }
    return {**ours, **{key: value for key, value in later.items() if value}, **_finite(daemon.extra)}


def _workspace(workspace: Workspace) -> dict[str, Any]:
    return {
        "boot_id": workspace.boot_id,
        "last_active_ts": workspace.last_active_ts,
        "http_host": workspace.http_host,
        "http_port": workspace.http_port,
        "http_pid": workspace.http_pid,
        **_finite(workspace.extra),
    }


def _deployment(block: Deployment) -> dict[str, Any]:
    return {
        "generation": block.generation,
        "state": block.state.value,
        "active_boot_id": block.active_boot_id,
        "candidate_boot_id": block.candidate_boot_id,
        "old_boot_id": block.old_boot_id,
        "switch_ts": block.switch_ts,
        "health_fail_streak": block.health_fail_streak,
        "rollback_reason": block.rollback_reason,
        "revision": block.revision,
        "cause": block.cause.value,
        "desired": block.desired.value,
        "owner": _identity(block.owner),
        "owner_holds_lock": block.owner_holds_lock,
        "moves": [_move(move) for move in block.moves],
        **_finite(block.extra),
    }


def _identity(identity: Identity) -> dict[str, Any]:
    return {
        "pid": identity.pid,
        "start_ticks": identity.start_ticks,
        "machine_boot_id": identity.machine_boot_id,
        "pid_ns": identity.pid_ns,
    }


def _move(move: Move) -> dict[str, Any]:
    return {
        "root": move.root,
        "boot_id": move.boot_id,
        "http_host": move.http_host,
        "http_port": move.http_port,
        "http_pid": move.http_pid,
    }


def _finite(value: Any) -> Any:  # noqa: ANN401  # somebody else's JSON
    """Another program's data as JSON can hold it: NaN and Infinity, which Python reads, become null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
