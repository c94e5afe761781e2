"""How figures are read out of what tools print, and out of what clients saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import measure
from bench.arena import Arena, BenchError, Way
from bench.cases import BULK, CASES, EXCHANGES, HEADLINES
from bench.compare import idle_lines, verdict
from bench.known import KNOWN
from bench.profile import parse, table
from bench.switching import Seen

STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.001200           3       400           recvfrom
 40.00    0.000800           2       410        10 epoll_wait
------ ----------- ----------- --------- --------- ----------------
100.00    0.002000           2       810        10 total
"""
PRINTED = {
    "wrk": ("Requests/sec:  81140.25\nTransfer/sec: 12MB\n", 81140.25),
    "redis-benchmark": ('"test","rps"\n"GET","55096.42"\n', 55096.42),
    "iperf3": ('{"end": {"sum_received": {"bits_per_second": 8.0e9}}}', 1.0),
    "pgbench": (
        "initial connection time = 11.6 ms\ntps = 52318.264 (without initial connection time)\n",
        52318.264,
    ),
    "pgbench -C": (
        "average connection time = 1.3 ms\ntps = 1503.5 (including reconnection times)\n",
        1503.5,
    ),
    "sockperf": ("sockperf: ---> percentile 50.000 =    3.004\n", 3.004),
}


def test_the_calls_of_strace_are_read_with_and_without_errors_and_the_sum_is_none_of_them() -> None:
    assert parse(STRACE) == {"recvfrom": 400, "epoll_wait": 410}


def test_a_table_of_calls_leaves_out_what_is_too_rare_and_sums_all() -> None:
    lines = table({"relay": {"recvfrom": 2.0, "getpid": 0.001}, "haproxy": {"recvfrom": 2.5}})
    assert lines[2] == "| recvfrom | 2.00 | 2.50 |"
    assert not any("getpid" in line for line in lines)
    assert lines[-1] == "| all | 2.00 | 2.50 |"


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_each_tool_is_understood(known: object) -> None:
    tool = next(each for each in KNOWN if each is known)
    text, figure = PRINTED[tool.name.partition(" (")[0]]
    assert tool.figure(text) == pytest.approx(figure)


@pytest.mark.parametrize(
    ("found", "less_is_better", "expected"),
    [(1.0, True, "aim"), (1.05, True, "must"), (1.2, True, "missed"), (0.9, False, "missed"), (1.1, False, "aim")],
)
def test_a_verdict_is_the_best_bound_that_was_reached(found: float, less_is_better: bool, expected: str) -> None:
    must, aim = (1.10, 1.0) if less_is_better else (1.0, 1.1)
    assert verdict(found, must, aim, less_is_better=less_is_better) == expected


def test_memory_and_idle_cpu_have_their_bounds() -> None:
    mine, theirs = [{"bytes": 1000.0, "cpu_share": 0.006}], [{"bytes": 3000.0, "cpu_share": 0.0}]
    memory, cpu = idle_lines(mine, theirs, 5000)
    assert "0.33" in memory
    assert memory.count("| aim |") == 1
    assert "| 0.60 |" in cpu
    assert "| missed |" in cpu


def seen(tmp_path: Path, text: str) -> Seen:
    (tmp_path / "watch.txt").write_text(text)
    return Seen.read(tmp_path / "watch.txt")


def test_the_first_connection_of_a_switch_is_the_first_that_was_answered_by_the_other_one_after_it(
    tmp_path: Path,
) -> None:
    found = seen(tmp_path, "99.990 2000 B\n100.001 4000 A\n100.002 5000 B\n100.003 1000 B\n")
    assert found.first("B", 100.0) == pytest.approx(4.0)


def test_the_last_of_the_old_one_is_not_taken_from_the_next_switch(tmp_path: Path) -> None:
    found = seen(tmp_path, "100.001 1000 A\n100.004 1000 A\n100.005 1000 B\n100.099 5000 A\n")
    assert found.last("A", 100.0, 100.1) == pytest.approx(4.0)
    assert found.last("C", 100.0, 100.1) == 0.0


def test_every_promise_has_a_case_and_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.load[0] for case in HEADLINES} == {"pingpong", "connects", "bulk"}
    assert {(case.load[1], case.last) for case in BULK} == {
        (streams, (way,)) for streams in ("1", "16", "64") for way in ("up", "down", "both")
    }
    assert {(case.load[1], case.load[2]) for case in EXCHANGES} == {
        (connections, size) for connections in ("1", "50", "500") for size in ("64", "1024", "16384")
    }


class FlakyArena(Arena):
    """No processes: a load that fails as often as it is told to."""

    def __init__(self, *failures: bool) -> None:  # nothing of a real one is made
        self._failures = iter(failures)

    def apply(self, port: int, kind: str, *arguments: object) -> dict[str, float]:
        if next(self._failures, False):
            raise BenchError("read: connection reset")
        return {"count": 1.0, "p50_us": 5.0}


def test_a_peer_that_fails_a_client_is_run_again_and_turnout_is_not() -> None:
    way = Way("any", {"echo": 1}, ())
    found = measure.one_round(FlakyArena(True, True), {"nginx": way}, EXCHANGES[0], 0.1, 0)
    assert found == {"nginx": {"count": 1.0, "p50_us": 5.0, "failed": 2.0}}
    for name, failures in (("relay", (True,)), ("nginx", (True, True, True))):
        with pytest.raises(BenchError, match=f"{EXCHANGES[0].name}, {name}: read"):
            measure.one_round(FlakyArena(*failures), {name: way}, EXCHANGES[0], 0.1, 0)
