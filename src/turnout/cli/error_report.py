"""What ``--json`` prints in the place of the data when a verb fails."""

from __future__ import annotations

import msgspec


class ErrorReport(msgspec.Struct, frozen=True, kw_only=True):
    """Why a verb failed. ``type``: the class in :mod:`turnout.errors`; ``detail``: further lines, a log's end."""

    type: str
    message: str
    hint: str | None
    detail: str | None
    exit_code: int


class ErrorOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What stands on stdout in the place of the data."""

    error: ErrorReport
