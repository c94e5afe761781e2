"""Compares two versions; of some it is unknown which is the later one."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from packaging.version import InvalidVersion, Version

# An abbreviated or whole commit hash. Some would parse: 12345a6 as the sixth alpha of 12345. Mere digits may be a date.
_HASH: Final = re.compile(r"(?=.*[a-f])[0-9a-f]{7,64}\Z", re.IGNORECASE)


class VersionOrder(Enum):
    """How one version stands to another."""

    SAME = "same"
    NEWER = "newer"
    OLDER = "older"
    DIFFERENT = "different"  # it is unknown which is later


def compare(version: str, other: str) -> VersionOrder:
    """How ``version`` stands to ``other``, as versions are ordered (PEP 440): 0.6.10 is newer than 0.6.9.

    What does not parse (a git hash, a word, nothing) is only the same or different. So are two that differ in what
    comes behind a plus sign: that names a build, and has no order.
    """
    if version == other:
        return VersionOrder.SAME
    mine, theirs = _parse(version), _parse(other)
    if mine is None or theirs is None:
        return VersionOrder.DIFFERENT
    if mine == theirs:
        return VersionOrder.SAME
    if Version(mine.public) == Version(theirs.public):
        return VersionOrder.DIFFERENT
    return VersionOrder.NEWER if mine > theirs else VersionOrder.OLDER


def _parse(text: str) -> Version | None:
    if _HASH.match(text):
        return None
    try:
        return Version(text)
    except InvalidVersion:
        return None
