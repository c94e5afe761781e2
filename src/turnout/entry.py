"""Where the command begins: an interrupt has its exit code from here on, also while the rest is still imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130  # that of errors.InterruptedByUserError, which is not imported yet
HINT: Final = "turnout status tells how things stand"
AS_JSON: Final = (
    f'{{"error":{{"type":"InterruptedByUserError","message":"interrupted","hint":"{HINT}","detail":null,'
    f'"exit_code":{INTERRUPTED}}}}}\n'
)


def main() -> None:
    """Entry point: import the command line, and hand over to it; it takes these signals as soon as it can."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # a shell's background job, or nohup, has it ignored (execve(2)), and so it stays
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from turnout.cli import main as command_line  # noqa: PLC0415  # click alone takes longer than all before it

    command_line()


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once. An exception would leave from the middle of some import, with a traceback."""
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        if "--json" in own:
            os.write(1, AS_JSON.encode())
        else:
            os.write(2, f"turnout: interrupted\nhint: {HINT}\n".encode())
    finally:
        os._exit(INTERRUPTED)
