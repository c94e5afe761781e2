"""Which router leads: one at a time, and whoever dies lets go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from turnout.system.lead_lock import LeadLock

HOLD = """
import sys
from pathlib import Path
from turnout.system.lead_lock import LeadLock
lock = LeadLock(Path(sys.argv[1]))
print(lock.try_take(), flush=True)
sys.stdin.read()
"""


def test_one_has_it_and_names_itself_the_other_gets_it_after(tmp_path: Path) -> None:
    first, second = LeadLock(tmp_path / "lock"), LeadLock(tmp_path / "lock")
    assert first.try_take()
    assert first.try_take(), "repeating it changes nothing"
    assert not second.try_take()
    assert (second.held, second.holder()) == (False, str(os.getpid()))
    first.release()
    assert second.try_take()
    second.release()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-P", "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        lock = LeadLock(path)
        assert not lock.try_take()
        holder.kill()
        holder.wait()
        assert lock.try_take()
        lock.release()


def test_a_lock_that_cannot_be_made_is_not_taken(tmp_path: Path) -> None:
    lock = LeadLock(tmp_path / "missing" / "lock")
    assert not lock.try_take()
    assert lock.holder() == "unknown"
