"""What a process uses: CPU time and memory, with all of its children."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CPUCLOCK_SCHED: Final = 2  # clock_getcpuclockid(3): the clock of a process is (~pid << 3) | 2 on Linux
_TICKS_S: Final = os.sysconf("SC_CLK_TCK")


def family(roots: Iterable[int]) -> list[int]:
    """The processes and all that came out of them, as far as they live."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in (Path("/proc") / str(pid) / "task").iterdir():
                waiting += map(int, task.joinpath("children").read_text().split())
    return found


def cpu_us(roots: Iterable[int]) -> float:
    """CPU time, user and system, in microseconds; that of children that ended and were waited for included."""
    total = 0.0
    for pid in family(roots):
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / 1e3
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) / _TICKS_S * 1e6  # proc(5): cutime, cstime
    return total


def memory_bytes(roots: Iterable[int]) -> int:
    """Proportional set size: what is shared counts once, however many processes share it (proc(5), smaps_rollup)."""
    total = 0
    for pid in family(roots):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
