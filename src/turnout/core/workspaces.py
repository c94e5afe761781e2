"""Workspaces follow a switch from the old daemon to the new one, and return with a rollback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from turnout.core.model import Daemon, Move, Snapshot, Workspace


def moved(
    workspaces: Mapping[str, Workspace], old: str, fresh: Daemon
) -> tuple[Mapping[str, Workspace], tuple[Move, ...]]:
    """Every workspace of ``old`` goes to ``fresh``; how it was before is kept for the way back."""
    if not old:
        return workspaces, ()
    after = dict(workspaces)
    moves: list[Move] = []
    for root, workspace in workspaces.items():
        if workspace.boot_id == old:
            moves.append(Move(root, old, workspace.http_host, workspace.http_port, workspace.http_pid))
            after[root] = replace(workspace, boot_id=fresh.boot_id, **http_of(fresh))
    return after, tuple(moves)


def moved_back(snap: Snapshot, failed: str) -> Mapping[str, Workspace]:
    """What this switch moved returns, except what a client mapped elsewhere since."""
    workspaces = dict(snap.workspaces)
    for move in snap.deployment.moves:
        workspace = workspaces.get(move.root)
        if workspace and workspace.boot_id == failed:
            workspaces[move.root] = replace(workspace, boot_id=move.boot_id, **http_of(move))
    return workspaces


def http_of(entry: Daemon | Move) -> dict[str, Any]:
    return {"http_host": entry.http_host, "http_port": entry.http_port, "http_pid": entry.http_pid}
