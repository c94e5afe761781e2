"""A keeper's children and nothing else of it: one thread starts, stops and adopts daemons, as lines of JSON ask.

Started with a directory, where records and logs lie. What happens is printed, a line of JSON each.
"""

from __future__ import annotations

import io
import json
import os
import sched
import selectors
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from turnout.keeper.children import Child, Children
from turnout.system import spawn
from turnout.system.boot_processes import LABEL
from turnout.system.command import resolve_command
from turnout.system.shim import fork_behind, set_subreaper
from turnout.system.signals import Signals
from turnout.system.spawn import SpawnRequest
from turnout.system.spawn_record import read_records

fsync = os.fsync


def fork_stopped(report: int, held: Collection[int] = ()) -> None:
    """In the place of the shim's own: it is stopped before it has forked the daemon."""
    say("stopped", pid=os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    fork_behind(report, held)


def resolve_once_released(argv: Sequence[str], cwd: str, env: Mapping[str, str], *, program: str = "") -> str:
    """In the place of the look at the command: its file system hangs until something opens the FIFO ``hangs`` there."""
    (Path(cwd) / "hangs").read_bytes()
    return resolve_command(argv, cwd, env, program=program)


def fsync_once_released(fd: Any) -> None:
    """In the place of fsync(2): the disk is busy until something opens the FIFO ``hangs`` beside the record."""
    (Path(os.readlink(f"/proc/self/fd/{fd}")).parent / "hangs").read_bytes()  # noqa: PTH115  # as it is named


def say(what: str, **more: object) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


class Host:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.selector = selectors.DefaultSelector()
        self.timers = sched.scheduler(time.monotonic)
        self.children = Children(
            self.selector,
            self.after,
            lambda child: say("ended", boot_id=child.boot_id),
            lambda _line: None,
        )
        self.lines = io.FileIO(0, "rb", closefd=False)  # unbuffered: what was read ahead would wake no selector
        self.signals = Signals()
        self.selector.register(self.signals.fileno(), selectors.EVENT_READ, self.on_signal)
        self.selector.register(0, selectors.EVENT_READ, self.on_line)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.timers.enter(delay_s, 0, action)

    def on_signal(self) -> None:
        self.signals.take()
        self.children.reap()

    def on_line(self) -> None:
        told = json.loads(self.lines.readline() or b'{"op": "quit"}')
        boot_id = told.get("boot_id", "b1")
        match told["op"]:
            case "spawn":
                spawn.fork_behind = fork_stopped if told.get("stopped") else fork_behind  # type: ignore[attr-defined]
                resolve = resolve_once_released if told.get("hangs") == "command" else resolve_command
                spawn.resolve_command = resolve  # type: ignore[attr-defined]
                os.fsync = fsync_once_released if told.get("hangs") == "disk" else fsync
                spawn.EXEC_TIMEOUT_S = 60.0  # type: ignore[misc]
                spawn._FORK_TIMEOUT_S = told.get("fork_within_s", 60.0)  # type: ignore[misc]
                self.children.spawn_daemon(self.request(boot_id, told), partial(self.started, boot_id))
            case "stop":
                reply = partial(say, "gone", boot_id=boot_id)
                number, grace_s = signal.Signals[f"SIG{told.get('signal', 'TERM')}"], told.get("grace_s", 20.0)
                child_or_none = self.children.get(boot_id)
                if child_or_none:
                    self.children.stop(child_or_none, number, grace_s, lambda _: reply())
                else:
                    self.children.end_orphans(boot_id, number, grace_s, lambda _: reply())
            case "adopt":
                for record in read_records(self.directory).values():
                    self.children.adopt(record, "svc", self.directory / f"{record.boot_id}.json")
                say("adopted")
            case "quit":
                sys.exit(0)
            case op:
                raise AssertionError(op)

    def started(self, boot_id: str, child: Child | Exception) -> None:
        if isinstance(child, Exception):
            say("refused", boot_id=boot_id, message=str(child))
            return
        shim = read_records(self.directory)[boot_id].shim
        say("spawned", boot_id=boot_id, pid=child.identity.pid, shim=shim.pid if shim else 0)

    def request(self, boot_id: str, told: dict[str, Any]) -> SpawnRequest:
        return SpawnRequest(
            boot_id=boot_id,
            service="svc",
            argv=tuple(told["argv"]),
            cwd=str(self.directory),
            env={"PATH": os.environ["PATH"], LABEL: boot_id},
            log_path=self.directory / f"{boot_id}.log",
            record_path=self.directory / f"{boot_id}.json",
        )

    def run(self) -> None:
        set_subreaper()
        self.signals.catch(signal.SIGCHLD)
        while True:
            for key, _ in self.selector.select(self.timers.run(blocking=False)):
                key.data()


if __name__ == "__main__":
    Host(Path(sys.argv[1])).run()
