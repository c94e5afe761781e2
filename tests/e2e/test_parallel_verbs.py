"""Twenty people at once, with verbs that change the service in any order: it is never half one and half another."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import comes_true, eventually, report, scaled
from turnout.core.model import State
from turnout.system.process import is_alive
from turnout.system.spawn_record import read_records

PEOPLE = 20
VERBS = ("up", "up", "deploy", "stop")
# What an exit code of 6 may say, each with who or what is in the way.
NAMED = re.compile(
    r"turnout: (?:(?:up|deploy|stop) \(pid \d+, since \d\d:\d\d:\d\d\) has held the lifecycle lock"
    r"|.*generation \d+)"
)


class People:
    """Threads that each run one verb after the other, and one that looks on. Owns them all."""

    def __init__(self, turnout: Turnout, seed: int) -> None:
        self._turnout = turnout
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.ended: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self.looks = 0
        self._threads = [threading.Thread(target=self._act, args=(random.Random(seed + n),)) for n in range(PEOPLE)]
        self._threads.append(threading.Thread(target=self._look_on))

    def run(self, verbs: int) -> None:
        """Until so many verbs have ended, and each was done at least once."""
        for thread in self._threads:
            thread.start()
        try:
            eventually(lambda: self.ended.total() >= verbs and self._each_was_done(), timeout_s=250)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(150)
                assert not thread.is_alive(), "a verb hangs"

    def _each_was_done(self) -> bool:
        with self._lock:
            return {verb for verb, code in self.ended if code == 0} == set(VERBS)

    def _act(self, dice: random.Random) -> None:
        while not self._stop.is_set():
            verb = dice.choice(VERBS)
            done = self._turnout.run(verb, "--lock-timeout", dice.choice(("0.3", "2", "8")), code=None, timeout_s=140)
            with self._lock:
                self.ended[verb, done.returncode] += 1
                fine = done.returncode == 0 or (done.returncode == 6 and NAMED.search(done.stderr))
                if not fine:
                    self.wrong.append(f"{verb}: exit {done.returncode}: {done.stderr}")

    def _look_on(self) -> None:
        """Every process is known to the registry, and beside active, candidate and warm one all take no clients."""
        records = self._turnout.home.service("default").records
        while not self._stop.wait(0.02):
            # a candidate is named before it is started, so the processes are listed first
            running = {b for b, record in read_records(records).items() if record.ended is None}
            snap = self._turnout.snapshot()
            block = snap.deployment
            serving = {b for b, daemon in snap.daemons.items() if not daemon.draining}
            if serving - block.named:
                self.wrong.append(f"two actives: {serving} where {block} names {block.named}")
            stray = running - set(snap.daemons) - block.named
            if stray:
                self._strays(stray)
            self.looks += 1

    def _strays(self, stray: set[str]) -> None:
        """One that was forgotten a moment ago may not be recorded as ended yet; one that lives on is an orphan."""
        records = self._turnout.home.service("default").records

        def gone() -> bool:
            found = read_records(records)
            return not any(boot_id in found and is_alive(found[boot_id].identity) for boot_id in stray)

        if not comes_true(gone, timeout_s=20):
            self.wrong.append(f"orphans: {stray}")


@pytest.mark.timeout(400)
def test_twenty_at_once_never_leave_two_actives_an_orphan_or_a_lock_error_without_a_name(turnout: Turnout) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    turnout.configure(line_daemon("--version", "v1"), observe="100ms")
    turnout.tune(stop='{ grace = "2s" }', drain='{ grace = "100ms", deadline = "1s" }')
    turnout.run("up")
    people = People(turnout, seed)
    people.run(scaled(60, 400))
    report(
        "verbs in parallel", seed=seed, looks=people.looks, ended={f"{v} {c}": n for (v, c), n in people.ended.items()}
    )
    assert people.wrong == []
    assert people.looks > 10

    turnout.run("up", "--lock-timeout", "30")
    assert ask(turnout.address) == "v1"
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE, timeout_s=60)
    active = turnout.active()
    eventually(lambda: len(turnout.snapshot().daemons) == 1, timeout_s=60, why="entries are left")
    eventually(lambda: turnout.everything() == {active["pid"], turnout.router_pid()}, timeout_s=60, why="orphans")
    turnout.run("registry", "validate")
