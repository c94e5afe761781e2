"""Where the time of a proxy goes: system calls for each operation, and functions by samples.

    python -m bench profile [--contenders relay,haproxy] [--case "64 B, 1 connection"] [--perf]

System calls are counted by strace, which slows everything down and leaves their number alone. ``--perf`` samples the
first contender with perf instead; from Python 3.12 on, PYTHONPERFSUPPORT=1 gives Python's own functions names there.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Final

from bench.arena import KINDS, Arena, BenchError, Way
from bench.cases import CASES, CONNECTS, EXCHANGES, Case
from bench.contenders import named
from bench.measure import placed
from bench.usage import family

ATTACH_TIMEOUT_S: Final = 10.0
SHOWN: Final = 0.01  # fewer of an operation are somebody else's: timers, checks
CALLED: Final = (EXCHANGES[0], CONNECTS)


def missing() -> str:
    """Why system calls cannot be counted here; empty where they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    done = subprocess.run(["strace", "-c", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip().splitlines()[-1]}"


def calls(arena: Arena, way: Way, case: Case, seconds: float) -> dict[str, float]:
    """System calls for each operation, by name, most frequent first.

    Raises:
        BenchError: strace could not attach.
    """
    report = arena.directory / "strace.txt"
    report.unlink(missing_ok=True)
    pids = [word for pid in family(way.pids) for word in ("-p", str(pid))]
    tracer = arena.start("strace", "-c", "-f", "-o", str(report), *pids)
    try:
        _wait_attached(way, tracer)
        found = arena.apply(way.ports[case.daemon], case.load[0], *case.command(seconds))
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go and writes what it counted
        tracer.wait(ATTACH_TIMEOUT_S)
    counts = parse(report.read_text())
    per = {name: count * case.operation / found["count"] for name, count in counts.items()}
    return dict(sorted(per.items(), key=lambda item: -item[1]))


def _wait_attached(way: Way, tracer: subprocess.Popen[bytes]) -> None:
    """Until every process has a tracer; proc(5): TracerPid."""
    deadline = time.monotonic() + ATTACH_TIMEOUT_S
    while time.monotonic() < deadline and tracer.poll() is None:
        lines = []
        for pid in family(way.pids):
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123  # of /proc
                lines += [line.split()[1] for line in file if line.startswith("TracerPid:")]
        if lines and "0" not in lines:
            return
        time.sleep(0.02)
    raise BenchError(f"strace could not attach to {way.name}")


def parse(text: str) -> dict[str, int]:
    """The table of ``strace -c``: how often each system call was made."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
            found[fields[-1]] = int(fields[3])
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown: a row for each system call, a column for each contender, and the sums below."""
    names = sorted({name for each in found.values() for name, count in each.items() if count >= SHOWN})
    names.sort(key=lambda name: -max(each.get(name, 0.0) for each in found.values()))
    lines = [f"| | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells = (f"{each[name]:.2f}" if each.get(name, 0.0) >= SHOWN else "" for each in found.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| all | {' | '.join(f'{sum(each.values()):.2f}' for each in found.values())} |")
    return lines


def sample(arena: Arena, way: Way, case: Case, seconds: float) -> str:
    """The functions that were found running most often, by perf."""
    if not shutil.which("perf"):
        raise BenchError("perf is not installed")
    data = str(arena.directory / "perf.data")
    pids = ",".join(map(str, family(way.pids)))
    recorder = arena.start("perf", "record", "-F", "997", "-o", data, "-p", pids)
    time.sleep(0.5)
    arena.apply(way.ports[case.daemon], case.load[0], *case.command(seconds))
    recorder.send_signal(signal.SIGINT)
    recorder.wait(ATTACH_TIMEOUT_S)
    argv = ["perf", "report", "--stdio", "-i", data, "--sort", "dso,symbol", "--percent-limit", "0.7"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench profile", description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", default="relay,haproxy")
    parser.add_argument("--case", help="cases whose name has this in it; default: an exchange and a connection")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--perf", action="store_true", help="sample the first contender instead")
    options = parser.parse_args(argv)
    if not options.perf and missing():
        raise BenchError(missing())
    cases = CALLED if options.case is None else [case for case in CASES if options.case in case.name]
    with Arena() as arena:
        contenders = [named(name) for name in options.contenders.split(",")]
        for each in contenders:
            if each.missing():
                raise BenchError(f"{each.name} cannot take part: {each.missing()}")
        ways = {each.name: each.start(arena, KINDS) for each in contenders}
        for case in cases:
            print(f"\n{case.name}\n", flush=True)
            with placed(arena, ways.values(), case.placement):
                if options.perf:
                    print(sample(arena, ways[contenders[0].name], case, options.seconds * 3))
                else:
                    print(
                        *table({name: calls(arena, way, case, options.seconds) for name, way in ways.items()}), sep="\n"
                    )
    return 0
