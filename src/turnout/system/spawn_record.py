"""What the parent of the daemons notes of each: that it runs, before it does so, and how it ended.

Standard library only: the keeper imports this.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from turnout.core.model import Identity
from turnout.errors import StateUnwritableError
from turnout.system.daemon_log import older

MAX_RECORD_BYTES: Final = 65536
KEPT_ENDED: Final = 50
KEPT_LOG_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndRecord:
    """How a daemon ended: the wait status (wait(2)), None where nobody could know it."""

    status: int | None
    ended_ts: float


@dataclass(frozen=True, slots=True)
class SpawnRecord:
    """What the parent wrote of a daemon before it let it run; ``listener_inode`` 0: it shares no address (yet).

    ``joins``: it joins the group at the fixed address by itself, and its place is noted once it is found out.
    """

    boot_id: str
    service: str
    identity: Identity
    log: str
    spawned_ts: float
    ended: EndRecord | None = None
    slot: int = 0
    listener_inode: int = 0
    joins: bool = False


def read_records(directory: Path) -> dict[str, SpawnRecord]:
    """Every record in a directory, by boot id; torn files and files that are something else are passed over."""
    found = (_read_record(path) for path in sorted(directory.glob("*.json")))
    return {record.boot_id: record for record in found if record}


def prune_records(
    directory: Path, *, keep: int = KEPT_ENDED, keep_bytes: int = KEPT_LOG_BYTES, spare: Container[str] = ()
) -> None:
    """Drop the oldest records of ended daemons, each with its log: they are looked through once a second.

    Args:
        directory: where the records lie.
        keep: how many of ended daemons stay, 0 or more.
        keep_bytes: how large their logs may be together; the newest stays, however large.
        spare: boot ids that stay, whatever their age.
    """
    ended = [
        (record.ended.ended_ts, boot_id, record.log)
        for boot_id, record in read_records(directory).items()
        if record.ended and boot_id not in spare
    ]
    total_bytes = 0
    for number, (_, boot_id, log) in enumerate(sorted(ended, reverse=True)):
        files = (Path(log), older(Path(log)))
        total_bytes += sum(_size_bytes(path) for path in files)
        if number < keep and (total_bytes <= keep_bytes or number == 0):
            continue
        with contextlib.suppress(OSError):  # the logs first: without its record nobody would find them again
            for path in files:
                path.unlink(missing_ok=True)
            (directory / f"{boot_id}.json").unlink(missing_ok=True)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def record_end(record_path: Path, status: int | None) -> None:
    """Note how a daemon ended: a wait status (wait(2)), None if nobody knows.

    A record that is gone or cannot be written is no reason to stop reaping, so nothing is raised.
    """
    record = _read_record(record_path)
    if record:
        with contextlib.suppress(StateUnwritableError):
            write_record(record_path, replace(record, ended=EndRecord(status, time.time())))


def write_record(path: Path, record: SpawnRecord) -> None:
    """Put a record in place, whole or not at all, mode 0600.

    Raises:
        StateUnwritableError: no permission, a full disk, an I/O error.
    """
    identity = record.identity
    told: dict[str, Any] = {
        "boot_id": record.boot_id,
        "service": record.service,
        "pid": identity.pid,
        "start_ticks": identity.start_ticks,
        "machine_boot_id": identity.machine_boot_id,
        "pid_ns": identity.pid_ns,
        "log": record.log,
        "spawned_ts": record.spawned_ts,
    }
    if record.listener_inode:
        told |= {"slot": record.slot, "listener_inode": record.listener_inode}
    if record.joins:
        told["joins"] = True
    if record.ended:
        told["ended"] = {"status": record.ended.status, "ended_ts": record.ended.ended_ts}
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed parent left is overwritten
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with io.FileIO(os.open(temporary, flags, 0o600), "wb") as file:
            data = json.dumps(told).encode() + b"\n"
            while data:
                data = data[file.write(data) :]
            # The file, lest a loss of power leave an empty one under the name. Not the directory: who loses the
            # power loses the daemon as well, and no record of a dead one is missed.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StateUnwritableError(
            f"cannot write {path}: {error.strerror}", hint="is the disk full, or the state directory read-only?"
        ) from error


def _read_record(path: Path) -> SpawnRecord | None:
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(MAX_RECORD_BYTES))
        identity = Identity(
            int(told["pid"]), int(told["start_ticks"]), str(told["machine_boot_id"]), int(told["pid_ns"])
        )
        ended = told.get("ended")
        status = ended["status"] if ended else None
        end = EndRecord(None if status is None else int(status), float(ended["ended_ts"])) if ended else None
        return SpawnRecord(
            str(told["boot_id"]),
            str(told["service"]),
            identity,
            str(told["log"]),
            float(told["spawned_ts"]),
            end,
            int(told.get("slot", 0)),
            int(told.get("listener_inode", 0)),
            told.get("joins") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
