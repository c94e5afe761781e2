"""The spawn record of a daemon: written by the keeper before the daemon runs, and when it has ended.

A record also names the home of the process. In a copy of that home it is a record of another home's process, which the
copy must neither count as its own nor end (:mod:`turnout.system.home_identity`).

Standard library only: the keeper imports this.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from turnout.core.model import Identity
from turnout.errors import StateUnwritableError
from turnout.system.daemon_log import older
from turnout.system.files import Files, open_private, opened
from turnout.system.flock import holder_pid
from turnout.system.home_identity import HomeIdentity, home_of_records, runs_for
from turnout.system.process import is_alive

MAX_RECORD_BYTES: Final = 65536
KEPT_ENDED: Final = 50
KEPT_LOG_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndRecord:
    """How a daemon ended: the wait status (wait(2)), None where it is not known."""

    status: int | None
    ended_ts: float


@dataclass(frozen=True, slots=True)
class SpawnRecord:
    """What the parent wrote of a daemon before it let it run; ``listener_inode`` 0: it shares no address.

    ``shim``: the process between keeper and daemon, which lives as long as anything of this boot does
    (:mod:`turnout.system.shim`); None: it was started by a version without. ``home``: whose processes these are; None
    in a record of 0.1.0.
    """

    boot_id: str
    service: str
    identity: Identity
    log: str
    spawned_ts: float
    ended: EndRecord | None = None
    slot: int = 0
    listener_inode: int = 0
    shim: Identity | None = None
    home: HomeIdentity | None = field(default=None, compare=False)

    @property
    def has_processes(self) -> bool:
        """Whether the daemon runs, or processes that it left behind do."""
        return (self.ended is None and is_alive(self.identity)) or self.has_remains

    @property
    def has_remains(self) -> bool:
        """Whether any process of this boot is left, the daemon or another: its shim lives as long."""
        return self.shim is not None and is_alive(self.shim)


def read_records(directory: Path) -> dict[str, SpawnRecord]:
    """The records of this home in a directory, by boot id; torn files and files of something else are passed over.

    A process that is recorded as running belongs to this home: see :func:`foreign_records` for the others.
    """
    records: dict[str, SpawnRecord] = {}
    for record in _all(directory):
        if not _is_foreign(record, directory):
            records[record.boot_id] = record
        elif record.ended:
            records[record.boot_id] = replace(record, shim=None)  # what is left of that boot is the other home's
    return records


def foreign_records(directory: Path) -> dict[str, SpawnRecord]:
    """The records of running processes of another home, by boot id: this one was copied from it, or restored."""
    return {record.boot_id: record for record in _all(directory) if not record.ended and _is_foreign(record, directory)}


def names_foreign(path: Path) -> bool | None:
    """Whether a record is that of another home's process, ended or not; None where there is no record."""
    record = _read_record(path)
    return _is_foreign(record, path.parent) if record else None


def _all(directory: Path) -> list[SpawnRecord]:
    return [record for path in sorted(directory.glob("*.json")) if (record := _read_record(path))]


def _is_foreign(record: SpawnRecord, directory: Path) -> bool:
    """Whether processes of that boot live and belong to another home; after their end it does not matter where."""
    if not record.has_processes:
        return False
    root = home_of_records(directory)
    if record.home:
        return record.home != HomeIdentity.of(root)
    log = Path(record.log) if root != directory else root / Path(record.log).name
    return not runs_for(record.identity.pid, root, log, keeper_pid=holder_pid(root / "keeper.lock"))


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
        if record.ended and boot_id not in spare and not record.has_remains
    ]
    total_bytes = 0
    for number, (_, boot_id, log) in enumerate(sorted(ended, reverse=True)):
        files = (Path(log), older(Path(log)))
        total_bytes += sum(_size_bytes(path) for path in files)
        if number < keep and (total_bytes <= keep_bytes or number == 0):
            continue
        with contextlib.suppress(OSError):  # the logs first: without its record they would not be found again
            for path in files:
                path.unlink(missing_ok=True)
            (directory / f"{boot_id}.json").unlink(missing_ok=True)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def record_end(record_path: Path, status: int | None) -> None:
    """Note how a daemon ended: a wait status (wait(2)), None if it is unknown.

    A record that is gone or cannot be written is no reason to stop reaping, so nothing is raised. It is not synced: a
    busy disk would hold the keeper's loop, and after a loss of power every daemon has ended, whatever its record says.
    """
    record = _read_record(record_path)
    if record:
        with contextlib.suppress(StateUnwritableError):
            write_record(record_path, replace(record, ended=EndRecord(status, time.time())), sync=False)


def write_record(path: Path, record: SpawnRecord, *, sync: bool = True) -> None:
    """Put a record in place, whole or not at all, mode 0600. One that names no home gets this one, while it runs.

    ``sync``: whether that holds after a loss of power, too, for which this waits for the disk (fsync(2)).

    Raises StateUnwritableError: no permission, a full disk, an I/O error.
    """
    raw: dict[str, Any] = {"boot_id": record.boot_id, "service": record.service, **asdict(record.identity)}
    raw |= {"log": record.log, "spawned_ts": record.spawned_ts}
    runs = not record.ended or record.shim  # of an ended daemon processes may be left, which its shim stands for
    home = record.home or (HomeIdentity.of(home_of_records(path.parent)) if runs else None)
    if home:
        raw["home"] = home.dumps()
    if record.listener_inode:
        raw |= {"slot": record.slot, "listener_inode": record.listener_inode}
    if record.shim:
        raw |= {"shim_pid": record.shim.pid, "shim_start_ticks": record.shim.start_ticks}
    if record.ended:
        raw["ended"] = asdict(record.ended)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed parent left is overwritten
    try:
        with io.FileIO(open_private(temporary, os.O_WRONLY | os.O_CREAT), "wb") as file:
            os.ftruncate(file.fileno(), 0)
            data = json.dumps(raw).encode() + b"\n"
            while data:
                data = data[file.write(data) :]
            # The file, lest a loss of power leave an empty one under the name. Not the directory: a loss
            # of power ends the daemon as well, and no record of a dead one is missed.
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        hint = "is the disk full, or the state directory read-only?"
        raise StateUnwritableError(f"cannot write {path}: {error.strerror}", hint=hint) from error


def sync_record(path: Path) -> None:
    """Have a record that was put in place outlive a loss of power, for which this waits. Raises OSError."""
    with opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def _seconds(value: str | float) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{value!r} is no time")
    return seconds


def _read_record(path: Path) -> SpawnRecord | None:
    try:
        raw = json.loads(Files().read(path, MAX_RECORD_BYTES)[0])
        identity = Identity(int(raw["pid"]), int(raw["start_ticks"]), str(raw["machine_boot_id"]), int(raw["pid_ns"]))
        ended = raw.get("ended")
        status = ended["status"] if ended else None
        end = EndRecord(None if status is None else int(status), _seconds(ended["ended_ts"])) if ended else None
        return SpawnRecord(
            str(raw["boot_id"]),
            str(raw["service"]),
            identity,
            str(_log_here(path, str(raw["log"]))),
            _seconds(raw["spawned_ts"]),
            end,
            int(raw.get("slot", 0)),
            int(raw.get("listener_inode", 0)),
            _shim_of(raw, identity),
            HomeIdentity.loads(raw.get("home")) or _home_by_path(path, Path(str(raw["log"]))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _shim_of(raw: dict[str, Any], daemon: Identity) -> Identity | None:
    pid = int(raw.get("shim_pid", 0))
    return Identity(pid, int(raw["shim_start_ticks"]), daemon.machine_boot_id, daemon.pid_ns) if pid else None


def _home_by_path(path: Path, log: Path) -> HomeIdentity | None:
    """The home of a record of 0.1.0, which names none but has the log's path: where that still leads here, this home.

    A copy's record leads to the original, and a moved home's to nothing: then the kernel is asked (:func:`runs_for`).
    """
    logs = path.parent.with_name("logs") if path.parent.name == "daemons" else path.parent
    try:
        return HomeIdentity.of(home_of_records(path.parent)) if log.parent.samefile(logs) else None
    except OSError:
        return None


def _log_here(path: Path, recorded: str) -> Path:
    """The log where this home has it: the path that is recorded may be that of the home which was copied or moved."""
    return path.parent.parent / "logs" / Path(recorded).name if path.parent.name == "daemons" else Path(recorded)
