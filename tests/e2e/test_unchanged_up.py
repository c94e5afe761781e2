"""An `up` that changes nothing writes nothing: with a full disk, too, it brings the address back."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.testing import free_port


def inodes(turnout: Turnout) -> dict[str, int]:
    """Every file that a verb replaces as a whole; sockets, locks, logs and records of processes are made anew."""
    root = turnout.home.root.parent
    skip = {".sock", ".lock", ".log"}
    return {
        str(path.relative_to(root)): path.stat().st_ino
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in skip and not path.name.startswith("router-")
    }


def test_a_verb_that_changes_nothing_replaces_no_file(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    turnout.tune(registry='"shared/registry.json"')
    file = turnout.home.root.parent / "turnout.toml"
    file.write_text(f'{file.read_text()}\n[metrics]\nlisten = "127.0.0.1:{free_port()}"\n')
    turnout.run("up")
    turnout.applied()
    before = inodes(turnout)
    assert "shared/registry.json.claim" in before
    for verb in ("up", "start"):
        turnout.run(verb)
        assert inodes(turnout) == before, verb


def test_the_router_takes_an_up_that_writes_the_same_settings_for_the_word_of_a_verb(turnout: Turnout) -> None:
    """A changed command, which is no setting, is named as not deployed until a verb comes."""
    turnout.configure(line_daemon("--version", "v1"), observe="0s")
    turnout.run("up")

    def pending() -> bool:
        settings = turnout.status()["settings"]
        return bool(settings and settings["later"])

    assert not pending()
    turnout.configure(line_daemon("--version", "v2"), observe="0s")
    eventually(pending)
    turnout.run("up")
    assert ask(turnout.address) == "v2"
    eventually(lambda: not pending())


def test_an_up_on_a_full_disk_brings_keeper_and_router_back(turnout: Turnout) -> None:
    disk = turnout.home.root
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", disk], check=False)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here: it takes root")
    try:
        turnout.configure(line_daemon("--version", "v1"), observe="0s")
        turnout.run("up")
        turnout.applied()
        daemons = turnout.daemons()
        keeper, router = turnout.keeper_pid(), turnout.router_pid()
        fill(disk / "fill")
        turnout.kill(keeper)
        turnout.kill(router)
        turnout.run("up")
        assert ask(turnout.address) == "v1"
        assert turnout.daemons() == daemons
        (disk / "fill").unlink()
    finally:
        turnout.end()
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
