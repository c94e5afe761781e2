"""How a keeper in the foreground has its services brought up: by ``turnout up``, a process for each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from turnout.system.home import Home


def bring_up(commands: Sequence[Sequence[str]], home: Home, say: Callable[[str], None]) -> None:
    """Start the verbs, and leave them to the keeper, which reaps them like any other child.

    What they say goes where the keeper's own words go. One that fails says why, and the keeper goes on: it may serve
    other services, and the next verb finds it.

    Args:
        commands: each the command line of one ``turnout up``, the interpreter first, as an absolute path.
        home: the state directory.
        say: takes a line for the log.
    """
    env = {**os.environ, "TURNOUT_HOME": str(home.root)}
    for argv in commands:
        try:
            # a session of its own: Ctrl-C is the keeper's, which lets no verb start anything from then on
            os.posix_spawn(
                argv[0],
                list(argv),
                env,
                setsid=True,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsigmask=(),
            )
        except OSError as error:
            say(f"cannot run turnout up: {error.strerror}")
