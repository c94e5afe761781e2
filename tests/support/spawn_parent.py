"""What the keeper is to its daemons, and no more: one thread that spawns and waits, told how by lines of JSON.

It has all the inheritance that a daemon must not get: handlers, blocked and ignored signals, a descriptor without
close-on-exec.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from turnout.errors import TurnoutError
from turnout.system import spawn as module
from turnout.system.limits import parse_limits
from turnout.system.shim import set_subreaper
from turnout.system.spawn import SpawnRequest, spawn
from turnout.system.spawn_record import SpawnRecord, record_end, write_record


def die_at(step: str, note: str) -> None:
    """Have this process killed before or after the record of its next daemon is written; who that is goes to a file."""

    def write(path: Path, record: SpawnRecord, **_: bool) -> None:
        Path(note).write_text(str(record.identity.pid))
        if step == "after":
            write_record(path, record)
        os.kill(os.getpid(), signal.SIGKILL)

    module.write_record = write  # type: ignore[attr-defined]  # not part of its interface: that is the point


def answer(told: dict[str, Any], listener: socket.socket) -> dict[str, Any]:
    match told["op"]:
        case "spawn":
            passed = (listener.fileno(),) if told.get("pass") else ()
            nofile = told.get("nofile")
            identity = spawn(
                SpawnRequest(
                    boot_id=told.get("boot_id", "b1"),
                    service="svc",
                    argv=tuple(told["argv"]),
                    cwd=told["cwd"],
                    env=told["env"],
                    log_path=Path(told["log"]),
                    record_path=Path(told["record"]),
                    nofile=tuple(nofile) if nofile else None,
                    limits=parse_limits(told.get("limits", {})),
                    umask=told.get("umask"),
                    program=told.get("program", ""),
                    pass_fds=passed,
                )
            )
            return {"pid": identity.pid, "start_ticks": identity.start_ticks}
        case "wait":
            _, status = os.waitpid(told["pid"], 0)
            record_end(Path(told["record"]), status)
            return {"status": status}
        case "look":
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
            links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # not that of the listing
            fds = sorted(str(link.readlink()) for link in links)
            return {"fds": fds, "children": [int(pid) for pid in children], "blocked": sorted(blocked)}
        case "die":
            die_at(told["step"], told["note"])
            return {}
        case "subreaper":
            set_subreaper()
            return {}
        case "port":
            return {"port": listener.getsockname()[1]}
    raise AssertionError(told)


def main() -> None:
    leaking = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leaking, True)
    os.set_inheritable(0, True)
    listener = socket.create_server(("127.0.0.1", 0))
    signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for line in sys.stdin:
        try:
            reply = {"ok": True, **answer(json.loads(line), listener)}
        except TurnoutError as error:
            reply = {"ok": False, "error": type(error).__name__, "message": error.message, "hint": error.hint}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
