"""``python -m turnout.keeper HOME [READY_FD]``: the command of the keeper's process, as the command line starts it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from turnout.errors import TurnoutError
from turnout.keeper.keeper import Keeper
from turnout.state.home import Home
from turnout.system.own_log import log_line
from turnout.system.process import identify
from turnout.system.signals import undo_inherited


def main(argv: list[str]) -> int:
    undo_inherited()
    os.chdir("/")  # a working directory that was removed is none to start anything from
    home = Home(Path(argv[0]))
    ready_fd = int(argv[1]) if len(argv) > 1 else -1
    if not identify(os.getpid()).start_ticks:  # said here, not at the first deploy
        log_line("no keeper can run: /proc is not mounted, which tells one process from another (proc(5))")
        return TurnoutError.exit_code
    try:
        home.create()
        keeper = Keeper(home)
    except TurnoutError as error:
        log_line(error.message)
        return error.exit_code

    def ready() -> None:
        if ready_fd >= 0:
            with contextlib.suppress(OSError):  # the verb that waits for it may have ended
                os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    keeper.run(ready)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
