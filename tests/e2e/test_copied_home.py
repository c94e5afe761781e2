"""A home is copied while everything of it runs (a backup, an experiment): the copy touches nothing of the original."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from e2e_support import Turnout, ask, line_daemon
from turnout.system.process import identify, is_alive
from turnout.testing import free_port


@pytest.fixture
def copy(turnout: Turnout) -> Iterator[Turnout]:
    """The copy of a home that serves."""
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    turnout.run("up", "-q")
    copied = Turnout(turnout.home.root.parent / "elsewhere" / "home", free_port())
    copied.home.root.parent.mkdir()
    shutil.copy(turnout.home.root.parent / "turnout.toml", copied.home.root.parent)
    shutil.copytree(turnout.home.root, copied.home.root, ignore=shutil.ignore_patterns("*.sock"), symlinks=True)
    try:
        yield copied
    finally:
        copied.end()


def test_no_verb_in_a_copy_claims_or_ends_a_process_of_the_original(turnout: Turnout, copy: Turnout) -> None:
    pids = turnout.keeper_pid(), turnout.router_pid(), turnout.active()["pid"]
    before = [identify(pid) for pid in pids]

    status = copy.status()
    assert not any(daemon["alive"] for daemon in status["daemons"])
    assert "nothing runs, and it should" in status["problems"][0]["what"]
    doctor = copy.run("doctor", "--fix", code=1).stdout
    assert "copied" in doctor
    assert not any(f"kill {pid}" in doctor for pid in pids), "nor is a person advised to"
    in_use = copy.run("up", "--take-over", code=1).stderr
    assert "is in use by turnout (pid " in in_use
    assert f"for another home, {turnout.home.root}" in in_use
    assert "stop it" not in in_use
    copy.configure(line_daemon("--version", "v1"), observe="0s")
    up = copy.run("up", "--take-over")
    assert "they are left alone" in up.stderr
    assert ask(copy.address) == "v1"
    assert copy.active()["pid"] != pids[2]
    copy.run("refresh", "-q")
    copy.run("stop", "-q")
    copy.run("start", "-q")
    copy.run("down", "-q")

    assert (turnout.keeper_pid(), turnout.router_pid(), turnout.active()["pid"]) == pids
    assert all(map(is_alive, before))
    assert ask(turnout.address) == "v1"
    assert turnout.status()["problems"] == []


def test_sockets_that_were_linked_into_a_copy_lead_no_verb_to_the_original(turnout: Turnout, copy: Turnout) -> None:
    """As ``cp -al`` does: the socket of the copy is the original keeper's."""
    for name in ("keeper.sock", "router.sock"):
        os.link(turnout.home.root / name, copy.home.root / name)
    refused = copy.run("down", "--take-over", code=6)
    assert "belongs to another home" in refused.stderr
    assert copy.status()["router"]["alive"] is False
    assert ask(turnout.address) == "v1"
