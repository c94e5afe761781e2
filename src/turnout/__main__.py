"""``python -m turnout`` and the command ``turnout``: checks the system before it imports the rest."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

INTERRUPTED: Final = 130  # that of errors.InterruptedByUserError, which is not imported yet
HINT: Final = "turnout status tells how things stand"
FAILED: Final = 1  # that of errors.TurnoutError
LINUX_HINT: Final = "run it on Linux 5.3 or later, with a Python 3.11 or later that was built for it"


def main() -> None:
    """Entry point: import the command line, and hand over to it; it takes these signals as soon as it can."""
    if lacks := _lacking():
        _end("TurnoutError", lacks, LINUX_HINT, FAILED)
    # ignored by the caller, the kernel would reap every child, and a health command that failed would look well
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        # a shell's background job, or nohup, has it ignored (execve(2)), and so it stays
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    # a caller that takes its signals in a thread of its own blocks them in all others, and execve(2) hands that on
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    from turnout.cli import main as command_line  # noqa: PLC0415  # click alone takes longer than all before it

    command_line()


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once. An exception would leave from the middle of some import, with a traceback."""
    _end("InterruptedByUserError", "interrupted", HINT, INTERRUPTED)


def _lacking() -> str:
    """Why turnout cannot run on this system; empty where it can."""
    if sys.platform != "linux":
        return f"turnout runs on Linux alone, and this is {sys.platform}"
    missing = [name for name in ("pidfd_open", "pipe2") if not hasattr(os, name)]
    return f"this Python has no os.{missing[0]}, which the keeper needs" if missing else ""


def _end(kind: str, message: str, hint: str, exit_code: int) -> NoReturn:
    """Report an error as :mod:`turnout.cli.error_output` does, which is not imported yet, and end the process.

    ``message`` and ``hint`` hold no character that JSON escapes.
    """
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        if "--json" in own:
            report = f'"type":"{kind}","message":"{message}","hint":"{hint}","detail":null,"exit_code":{exit_code}'
            os.write(1, f'{{"error":{{{report}}}}}\n'.encode())
        else:
            os.write(2, f"turnout: {message}\nhint: {hint}\n".encode())
    finally:
        os._exit(exit_code)


if __name__ == "__main__":
    main()
