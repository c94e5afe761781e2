"""The home directory of a user, and paths that begin with ``~``. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from turnout.errors import UsageError


def expand_user(path: str, *, setting: str) -> Path:
    """``path`` with a leading ``~`` or ``~user`` replaced.

    Raises UsageError: there is no such user, or the user's directory is not known; ``setting`` names where it stands.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = path.partition("/")[0][1:]
        why = f"there is no user {user!r}" if user else _homeless()
        raise UsageError(f"{setting}: {path!r}: {why}", hint="write the directory's absolute path") from None


def user_directory() -> Path:
    """The home directory of the user who runs this.

    Raises UsageError: HOME is not set, and the user database does not know the user, as in some containers.
    """
    try:
        return Path.home()
    except RuntimeError:
        hint = "export HOME=/a/directory/of/yours; TURNOUT_HOME=DIRECTORY is enough for state alone"
        raise UsageError(_homeless(), hint=hint) from None


def _homeless() -> str:
    return f"HOME is not set, and no user has uid {os.geteuid()}: there is no home directory"
