"""Verbs that the router starts by itself: what needs the lifecycle lock runs in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from turnout.errors import ConflictError, TimedOutError
from turnout.system.home import Home

SLACK_S: Final = 60.0  # for the lock, a keeper and a router on their way, and a slow machine


async def run_verb(home: Home, verb: str, service: str, *flags: str, within_s: float) -> int:
    """Run ``turnout VERB --automatic`` for one service; what it says goes to the router's log.

    Args:
        home: the state directory.
        verb: its name.
        service: the service's name.
        flags: further ones of that verb.
        within_s: seconds that the verb's own work may take; it is killed a minute later.

    Returns:
        Its exit code, see :mod:`turnout.errors`; 124 where it was killed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "turnout", verb, "--automatic", "--service", service, *flags),
            env={**os.environ, "TURNOUT_HOME": str(home.root)},
            cwd=home.root,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # it survives this router: its work is half done, and it knows how to end it
        )
    except OSError:  # no process or no descriptor to be had: the same as not getting the lock
        return ConflictError.exit_code
    try:
        async with asyncio.timeout(within_s + SLACK_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        return TimedOutError.exit_code
