"""Why a daemon cannot be activated here, found before it is started."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from turnout.activation.seccomp import UnsupportedError, check_supported
from turnout.system.process import own_status

_SYS_ADMIN: Final = 1 << 21  # CAP_SYS_ADMIN, capabilities(7)
_FILE_CAPABILITIES: Final = "security.capability"  # xattr(7)


def is_privileged() -> bool:
    """Whether this process may install a filter without no_new_privs (seccomp(2)): it has CAP_SYS_ADMIN."""
    try:
        return bool(int(own_status().get("CapEff", "0"), 16) & _SYS_ADMIN)
    except ValueError:
        return False


def obstacle(program: str) -> str:
    """What forbids to activate a daemon, in words; empty: nothing that is known before its start.

    Args:
        program: the path of its program; empty: it is not known, and not looked at.
    """
    try:
        check_supported()
    except UnsupportedError as error:
        return error.strerror or str(error)
    if not program or is_privileged():
        return ""
    with suppress(OSError):
        mode = Path(program).stat().st_mode
        if mode & stat.S_ISUID or (mode & stat.S_ISGID and mode & stat.S_IXGRP):
            return f"{program} is setuid or setgid, which no_new_privs would take from it"
        if os.getxattr(program, _FILE_CAPABILITIES):
            return f"{program} has file capabilities, which no_new_privs would take from it"
    return ""
