"""After a reboot, or a loss of everything: what the records say is stale, and pids belong to others by now."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import Identity
from turnout.system.process import identify, is_alive, own_identity


@pytest.fixture
def innocent() -> Iterator[Identity]:
    """A process that has nothing to do with us, leads a group of its own, and says so when it is signalled."""
    program = (
        "import signal, sys, time\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT, signal.SIGHUP):\n"
        "    signal.signal(number, lambda *_: sys.exit(7))\n"
        "print('there', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield identify(process.pid)
        process.kill()


def changed(told: Any, pids: dict[int, int], boot: str) -> Any:
    """The same JSON as another boot of the machine would find it, with pids that went to others."""
    if isinstance(told, dict):
        new = {key: changed(value, pids, boot) for key, value in told.items()}
        for key, value in new.items():
            if key.endswith("pid") and isinstance(value, int):
                new[key] = pids.get(value, value)
            elif key == "machine_boot_id" and value and boot:
                new[key] = boot
        return new
    return [changed(value, pids, boot) for value in told] if isinstance(told, list) else told


def lose_everything(turnout: Turnout) -> list[int]:
    """SIGKILL to all of it at once, as a power cut does; the pids that were."""
    pids = [turnout.keeper_pid(), *[identity.pid for identity in turnout.processes().values()]]
    gone = [identify(pid) for pid in pids]
    for pid in pids:
        turnout.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(is_alive(one) for one in gone))
    return pids


def rewrite(turnout: Turnout, pids: dict[int, int], boot: str) -> int:
    """Put other pids and another boot into every file of the state directory; answers how many were changed."""
    count = 0
    for path in turnout.home.root.rglob("*.json*"):
        try:
            told = json.loads(path.read_bytes())
        except ValueError:  # the journal has one object a line
            continue
        new = changed(told, pids, boot)
        if new != told:
            path.write_text(json.dumps(new))
            count += 1
    first = next(iter(pids.values()))
    for lock in (turnout.home.keeper_lock, turnout.home.router_lock):
        lock.write_text(f"{first}\n")
    return count


@pytest.mark.parametrize("boot", [str(uuid.uuid4()), ""], ids=["another boot", "the same boot"])
def test_up_brings_the_last_good_version_back_and_kills_nothing_foreign(
    turnout: Turnout, innocent: Identity, boot: str
) -> None:
    turnout.run("up", "--listen", f"127.0.0.1:{turnout.port}", "--", *line_daemon("--version", "v1"))
    good = turnout.run("deploy", "--observe", "300ms", "--", *line_daemon("--version", "v2"))
    assert "switched" in good.stdout
    turnout.run("deploy", "--observe", "300ms", "--", *line_daemon("--version", "v3", "--exit-after", "0"), code=1)
    pids = lose_everything(turnout)
    assert rewrite(turnout, dict.fromkeys(pids, innocent.pid), boot) >= 4, "registry, its good copy, the records"
    turnout.run("up")
    assert ask(turnout.address) == "v2"
    assert turnout.active()["pid"] != innocent.pid
    assert len(turnout.daemons()) == 1
    eventually(lambda: len(turnout.snapshot().daemons) == 1, why="the entry of the dead one goes")
    turnout.run("refresh")
    turnout.run("down")
    assert is_alive(innocent)


def test_a_pid_that_is_ours_by_number_alone_is_never_signalled(turnout: Turnout) -> None:
    """The worst case: the number went to the very process that asks."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    pids = lose_everything(turnout)
    rewrite(turnout, dict.fromkeys(pids, os.getpid()), "")
    turnout.run("up")
    turnout.run("refresh")
    turnout.run("down")
    assert is_alive(own_identity())
    assert turnout.processes() == {}


def test_a_state_directory_with_nothing_but_its_files_is_taken_up_again(turnout: Turnout, tmp_path: Path) -> None:
    """Sockets do not survive a copy of the directory, and a boot finds none that anybody listens on."""
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    lose_everything(turnout)
    for sock in (turnout.home.keeper_sock, turnout.home.router_sock):
        sock.unlink(missing_ok=True)
    turnout.run("up")
    assert ask(turnout.address) == "v1"
