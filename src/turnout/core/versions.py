"""Which of two versions is the later one, and where that cannot be said."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from packaging.version import InvalidVersion, Version

# An abbreviated or whole commit hash. Some would parse: 12345a6 as the sixth alpha of 12345. Mere digits may be a date.
_HASH: Final = re.compile(r"(?=.*[a-f])[0-9a-f]{7,64}\Z", re.IGNORECASE)


class Order(Enum):
    """How one version stands to another."""

    SAME = "same"
    NEWER = "newer"
    OLDER = "older"
    DIFFERENT = "different"  # which is later cannot be said


def compare(version: str, other: str) -> Order:
    """How ``version`` stands to ``other``, as versions are ordered (PEP 440): 0.6.10 is newer than 0.6.9.

    What does not parse (a git hash, a word, nothing) is only the same or different. So are two that differ in what
    comes behind a plus sign: that names a build, and has no order.
    """
    if version == other:
        return Order.SAME
    mine, theirs = _parse(version), _parse(other)
    if mine is None or theirs is None:
        return Order.DIFFERENT
    if mine == theirs:
        return Order.SAME
    if Version(mine.public) == Version(theirs.public):
        return Order.DIFFERENT
    return Order.NEWER if mine > theirs else Order.OLDER


def _parse(text: str) -> Version | None:
    if _HASH.match(text):
        return None
    try:
        return Version(text)
    except InvalidVersion:
        return None
