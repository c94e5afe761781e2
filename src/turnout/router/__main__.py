"""``python -m turnout.router HOME``: the command of the router's process, as the keeper starts it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Final

import uvloop

from turnout import __version__
from turnout.planes.selection import lacking
from turnout.router.router import Router, log
from turnout.state.home import Home
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.log_format import log_to_stderr
from turnout.system.signals import undo_inherited

MODULES: Final = ("filelock", "encodings.utf_8_sig")
RELAYS: Final = ("turnout.planes.direct.plane", "turnout.planes.relay")


def preload() -> None:
    """Import the router's lazy modules before its first client, as far as they are installed and can run here.

    The environment that the router was started from may be replaced or removed while it runs: an import that fails then
    would end it with every connection that it carries. tests/e2e/test_installation_gone.py finds what is missing here.
    """
    for name in MODULES if lacking() else MODULES + RELAYS:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


def main(argv: list[str]) -> int:
    undo_inherited()
    preload()
    # the log lies in the home, too: what is logged must not wait for it
    log_to_stderr("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S", threads=DaemonThreads("log"))
    home = Home(Path(argv[0]))
    log.info("router %s of %s, pid %d", __version__, home.root, os.getpid())

    async def serve() -> int:
        return await Router(asyncio.get_running_loop(), home).run()

    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
