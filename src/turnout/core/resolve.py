"""Where a client should go: pure, so that everybody who asks gets the same answer."""

from __future__ import annotations

from collections.abc import Callable

from turnout.core.model import Daemon, Snapshot


def upstream(snap: Snapshot, workspace: str | None, is_alive: Callable[[Daemon], bool]) -> Daemon | None:
    """The daemon behind the fixed address.

    That is the active one of the deployment; where there is none, the one that ``workspace`` is mapped to; else the one
    that started last. The latter two must be alive and not draining.
    """
    if snap.active:
        return snap.active
    mapped = snap.workspaces.get(workspace) if workspace is not None else None
    chosen = snap.daemons.get(mapped.boot_id) if mapped else None
    if chosen and not chosen.draining and is_alive(chosen):
        return chosen
    newest_first = sorted(snap.daemons.values(), key=lambda daemon: (daemon.start_ts, daemon.boot_id), reverse=True)
    return next((daemon for daemon in newest_first if not daemon.draining and is_alive(daemon)), None)
