"""Finds the processes of one boot: the daemon, its children, and those that left its session. Standard library only.

What proves that a process belongs to a boot is its ancestry: it descends from the boot's shim
(:mod:`turnout.system.shim`), whatever session, title or environment it has by now. Where there is no shim (an earlier
version started the daemon, or the shim was killed), it is the daemon's descendants, the session that it leads, and
those descendants of this keeper whose environment names the boot (``TURNOUT_BOOT_ID``).

Login sessions that were opened through the daemon (sshd) are spared: they have a login of their own (pam_loginuid(8)),
or a session scope (pam_systemd(8)). So are keepers that were started from within it, with all that they run.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout.core.model import Identity
from turnout.system.files import undone_on_error
from turnout.system.process import ProcessHandle, descendants, identify, is_alive, tree_of
from turnout.system.shim import TITLE

LABEL: Final = "TURNOUT_BOOT_ID"
_NO_LOGIN: Final = str(2**32 - 1)  # (uid_t) -1: neither the audit login nor the audit session was ever set
_SESSION_SCOPE: Final = re.compile(r"/session-[^/]+\.scope(?:/|$)")  # systemd-logind(8)
_FED_FROM: Final = ("1", "2")  # stdout and stderr, where a shell's pipeline begins


@dataclass(frozen=True, slots=True)
class Boot:
    """What is known of one boot of a daemon.

    Args:
        boot_id: its name.
        daemon: its leader, where that runs or was seen to end by this process; the session's number is its own then.
        shim: the process to which its orphans come.
    """

    boot_id: str
    daemon: Identity | None = None
    shim: Identity | None = None

    @property
    def has_shim(self) -> bool:
        return self.shim is not None and is_alive(self.shim)


@dataclass(frozen=True, slots=True)
class BootProcesses:
    """The processes of a boot at one moment. ``handles`` are the caller's; ``spared``: some are left out."""

    handles: list[ProcessHandle]
    spared: bool = False

    def close(self) -> None:
        for handle in self.handles:
            handle.close()


def processes_of(boot: Boot) -> BootProcesses:
    """Every living process that is proven to belong to a boot, but its shim. A part of them where descriptors run out.

    Raises OSError: no descriptor is left to look with: nothing is known of the boot's processes.
    """
    handles: list[ProcessHandle] = []
    shimmed = boot.has_shim
    above = boot.shim.pid if boot.shim and shimmed else os.getpid()
    own = tree_of(boot.daemon) if boot.daemon and not shimmed else set[int]()
    pids, spared = _without_keepers(descendants(above) | own, shimmed=shimmed)
    for pid in sorted(pids):
        try:
            handle, login = _member(boot, pid, above, proven=shimmed or pid in own)
        except (ProcessLookupError, PermissionError, FileNotFoundError):  # it has ended, or may not be looked at
            continue
        except OSError:
            if handles:  # end these first, which gives room for the next look
                break
            raise
        spared = spared or login
        if handle:
            handles.append(handle)
    return BootProcesses(handles, spared)


def _without_keepers(pids: set[int], *, shimmed: bool) -> tuple[set[int], bool]:
    """Leave out the keepers that were started from within the daemon, and this process, each with all below it.

    What such a keeper runs is no part of the daemon: it may be all services of another home, or of this home, where the
    keeper before had died. Below a shim its router and its shims are left out as well: they outlive their keeper.

    Returns:
        The processes that remain, and whether any were left out.
    """
    keepers = {pid for pid in pids if pid == os.getpid() or _is_turnout(pid, any_kind=shimmed)}
    for keeper in keepers:
        pids = pids - descendants(keeper) - {keeper}
    return pids, bool(keepers)


def _is_turnout(pid: int, *, any_kind: bool) -> bool:
    """Whether a process is a keeper, or with ``any_kind`` a router or a shim, by its command line."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    except (ProcessLookupError, PermissionError, FileNotFoundError):
        return False
    modules = {after for word, after in itertools.pairwise(line.split(b"\0")) if word == b"-m"}
    return b"turnout.keeper" in modules or (any_kind and (b"turnout.router" in modules or line == TITLE))


def _member(boot: Boot, pid: int, above: int, *, proven: bool) -> tuple[ProcessHandle | None, bool]:
    """The process if it belongs to the boot and is to be ended; and whether it is a login session of the boot.

    Args:
        boot: the boot.
        pid: the process.
        above: the process whose login is not one of its own.
        proven: its ancestry or session proves that it belongs to the boot; else its environment has to.

    Raises:
        OSError: it has ended, may not be looked at, or no descriptor is left.
    """
    identity = identify(pid)
    handle = ProcessHandle.open(identity)
    with undone_on_error(handle.close):
        # looked at after the handle was opened, and believed only if it is that process still
        belongs = proven or _is_labelled(pid, boot.boot_id)
        login = belongs and is_login_session(pid, above)
        if belongs and not login and is_alive(identity):
            return handle, False
    handle.close()
    return None, login


def is_login_session(pid: int, other: int, *, proc: Path = Path("/proc")) -> bool:
    """Whether this process belongs to a login session of its own, another than that of ``other``."""
    for name in ("loginuid", "sessionid"):
        own = _read(proc / str(pid) / name)
        if own not in {"", _NO_LOGIN, _read(proc / str(other) / name)}:
            return True
    scopes = _session_scopes(proc / str(pid) / "cgroup")
    return bool(scopes - _session_scopes(proc / str(other) / "cgroup"))


def _session_scopes(path: Path) -> set[str]:
    return {line for line in _read(path).splitlines() if _SESSION_SCOPE.search(line)}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _is_labelled(pid: int, boot_id: str) -> bool:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    name = f"{LABEL}={boot_id}".encode()
    return any(word == name if boot_id else word.startswith(name) for word in words)


def fed_by_others(pids: Collection[int]) -> set[int]:
    """Those whose standard input is a pipe to which another one of them writes: a filter such as ``| cat``."""
    outputs = {pid: {_target(pid, fd) for fd in _FED_FROM} for pid in pids}
    inputs = {pid: _target(pid, "0") for pid in pids}
    pipes = {pid: source for pid, source in inputs.items() if source.startswith("pipe:")}
    return {pid for pid, pipe in pipes.items() if any(pipe in outputs[other] for other in pids if other != pid)}


def _target(pid: int, fd: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{fd}").readlink())
    except OSError:
        return ""
