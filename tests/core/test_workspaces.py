"""Workspaces follow a switch, and return with a rollback."""

from __future__ import annotations

from dataclasses import replace

from turnout.core.model import Daemon, Deployment, Snapshot, Workspace
from turnout.core.workspaces import moved, moved_back

OLD, NEW = Daemon("old", http_port=1), Daemon("new", http_host="127.0.0.1", http_port=2, http_pid=3)
BEFORE = {"/a": Workspace("/a", "old", http_port=1), "/b": Workspace("/b", "other", http_port=9)}


def test_the_workspaces_of_the_old_daemon_go_to_the_new_one_with_its_http_address_and_no_others() -> None:
    after, moves = moved(BEFORE, "old", NEW)
    assert after["/a"] == Workspace("/a", "new", http_host="127.0.0.1", http_port=2, http_pid=3)
    assert after["/b"] is BEFORE["/b"]
    assert [(move.root, move.boot_id, move.http_port) for move in moves] == [("/a", "old", 1)]


def test_where_no_daemon_was_active_nothing_moves() -> None:
    assert moved(BEFORE, "", NEW) == (BEFORE, ())


def test_a_rollback_puts_back_what_the_switch_moved_but_not_what_a_client_mapped_since() -> None:
    after, moves = moved({**BEFORE, "/c": Workspace("/c", "old")}, "old", NEW)
    mapped = {**after, "/c": replace(after["/c"], boot_id="other")}
    back = moved_back(Snapshot({}, mapped, Deployment(moves=moves)), "new")
    assert back["/a"] == BEFORE["/a"]
    assert back["/c"].boot_id == "other"
