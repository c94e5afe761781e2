"""Membership: daemons register, beat and leave, and clients map workspaces to them.

None of these influences routing. Registering and leaving raise ``revision``; a heartbeat and a mapping do not, for they
come every few seconds, and nothing waits for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from turnout.core.model import Daemon, DrainCause, Snapshot, Workspace
from turnout.core.outcome import Outcome, Reason, already, apply, refuse
from turnout.core.workspaces import http_of

# What turnout knows better of a process that it started than the process itself.
_OURS: Final = ("host", "port", "identity", "start_ts", "build", "owned", "proxy_protocol", "own_port")


def register_daemon(snap: Snapshot, daemon: Daemon) -> Outcome:
    """Insert a daemon, or replace the entry of the same boot; whether it drains, and keys that are not ours, stay."""
    known = snap.daemons.get(daemon.boot_id)
    if known is not None:
        extra = {**known.extra, **daemon.extra}
        daemon = replace(daemon, draining=known.draining, drain_cause=known.drain_cause, extra=extra)
        if daemon == known:
            return already(snap)
    return apply(replace(snap, daemons={**snap.daemons, daemon.boot_id: daemon}), snap.deployment)


def announce_daemon(snap: Snapshot, daemon: Daemon) -> Outcome:
    """A daemon registers itself: it cannot say that turnout started it, nor, if that is so, which process it is."""
    known = snap.daemons.get(daemon.boot_id)
    if known is not None and known.owned:
        return register_daemon(snap, replace(daemon, **{name: getattr(known, name) for name in _OURS}))
    return register_daemon(snap, replace(daemon, build="", owned=False))


def beat(snap: Snapshot, boot: str, *, now: float) -> Outcome:
    """The daemon was seen alive at ``now``, wall-clock seconds; the clock may have gone back."""
    known = snap.daemons.get(boot)
    if known is None:
        return refuse(snap, Reason.UNKNOWN_DAEMON)
    if known.last_seen_ts == now:
        return already(snap)
    return _changed(replace(snap, daemons={**snap.daemons, boot: replace(known, last_seen_ts=now)}))


def map_workspace(snap: Snapshot, root: str, boot: str, *, now: float) -> Outcome:
    """A client's key belongs to that daemon from ``now`` on, with the daemon's ``http_*`` fields."""
    daemon = snap.daemons.get(boot)
    if daemon is None:
        return refuse(snap, Reason.UNKNOWN_DAEMON)
    known = snap.workspaces.get(root, Workspace(root))
    workspace = replace(known, boot_id=boot, last_active_ts=now, **http_of(daemon))
    if snap.workspaces.get(root) == workspace:
        return already(snap)
    return _changed(replace(snap, workspaces={**snap.workspaces, root: workspace}))


def hasten_drain(snap: Snapshot, boot: str, cause: DrainCause = DrainCause.HASTENED) -> Outcome:
    """Do not wait so long with a daemon that drains; STOPPED: not at all."""
    daemon = snap.daemons.get(boot)
    if daemon is None:
        return refuse(snap, Reason.UNKNOWN_DAEMON)
    if not daemon.draining or boot in snap.deployment.named:
        return refuse(snap, Reason.STILL_NAMED)
    if daemon.drain_cause in {cause, DrainCause.STOPPED}:
        return already(snap)
    return apply(replace(snap, daemons={**snap.daemons, boot: replace(daemon, drain_cause=cause)}), snap.deployment)


def forget_daemon(snap: Snapshot, boot: str) -> Outcome:
    """Remove the entry of a daemon that is gone."""
    if boot in snap.deployment.named:
        return refuse(snap, Reason.STILL_NAMED)
    if boot not in snap.daemons:
        return already(snap)
    left = {boot_id: daemon for boot_id, daemon in snap.daemons.items() if boot_id != boot}
    return apply(replace(snap, daemons=left), snap.deployment)


def _changed(snap: Snapshot) -> Outcome:
    return Outcome(applied=True, reason=Reason.APPLIED, snapshot=snap)
