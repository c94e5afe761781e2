"""A log that is bounded while its process runs, and never somebody else's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITE = """
import os, sys
from pathlib import Path
from turnout.system.own_log import LogFile
log = LogFile(Path(sys.argv[1]), 1000)
for number in range(int(sys.argv[2])):
    os.write(2, b"%d %s\\n" % (number, b"x" * 90))
    log.check(rotates=sys.argv[3] == "rotates")
"""


def write(log: Path, lines: int, how: str, *, into: Path | None = None) -> None:
    with (into or log).open("ab") as file:
        command = [sys.executable, "-P", "-c", WRITE, str(log), str(lines), how]
        subprocess.run(command, stderr=file, check=True, timeout=60)


def test_it_is_moved_aside_while_it_is_written_and_one_earlier_one_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    write(log, 105, "rotates")
    assert log.stat().st_size < 1200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.log", "router.log.1"]
    kept = (tmp_path / "router.log.1").read_text() + log.read_text()
    assert kept.splitlines()[-1].startswith("104 "), "nothing that was written last is lost"


def test_of_two_that_write_it_one_moves_it_and_the_other_follows(tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    write(log, 30, "follows")
    assert log.stat().st_size > 2000
    program = (
        "import os, sys; from pathlib import Path; from turnout.system.own_log import LogFile\n"
        "path = Path(sys.argv[1]); log = LogFile(path, 1000)\n"
        "path.rename(path.with_suffix('.log.1')); path.write_text('new\\n')\n"
        "log.check(rotates=False); os.write(2, b'here\\n')\n"
    )
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-P", "-c", program, str(log)], stderr=file, check=True, timeout=60)
    assert log.read_text() == "new\nhere\n"


def test_a_standard_error_that_is_another_file_is_left_alone(tmp_path: Path) -> None:
    log, other = tmp_path / "keeper.log", tmp_path / "journal"
    log.write_text("y" * 5000)
    write(log, 30, "rotates", into=other)
    assert len(log.read_text()) == 5000
    assert len(other.read_text().splitlines()) == 30
