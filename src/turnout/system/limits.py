"""Resource limits (getrlimit(2)): read from this process, set in a child.

Standard library only: the keeper imports this.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, cast

from turnout.system.process import own_status

Limits = Mapping[str, tuple[int, int]]  # by name, "nofile" for one: soft and hard

_CAP_SYS_RESOURCE: Final = 24  # capabilities(7)
_ALIASES: Final = frozenset({"OFILE"})  # the name that BSD gave NOFILE
NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {
        name.removeprefix("RLIMIT_").lower(): int(getattr(resource, name))
        for name in sorted(dir(resource))
        if name.startswith("RLIMIT_") and name.removeprefix("RLIMIT_") not in _ALIASES
    }
)
NO_LIMITS: Final[Limits] = MappingProxyType({})


def own_limits() -> dict[str, tuple[int, int]]:
    """Every limit of this process, by name."""
    return {name: resource.getrlimit(number) for name, number in NUMBERS.items()}


def grantable(wanted: Limits) -> tuple[dict[str, tuple[int, int]], tuple[str, ...]]:
    """The limits that this process can give a child, and the names of those that are lower than ``wanted``.

    setrlimit(2): a hard limit above the own one takes CAP_SYS_RESOURCE.
    """
    granted: dict[str, tuple[int, int]] = {}
    reduced: list[str] = []
    privileged = _may_raise()
    for name, (soft, hard) in wanted.items():
        own_hard = resource.getrlimit(NUMBERS[name])[1]
        if not privileged and _size(hard) > _size(own_hard):
            reduced.append(name)
            hard = own_hard  # noqa: PLW2901  # the reduced one is what is granted
        granted[name] = (min(soft, hard, key=_size), hard)
    return granted, tuple(reduced)


def set_own(limits: Limits) -> None:
    """Set the limits of this process; a hard limit that the kernel refuses stays as it is."""
    for name, (soft, hard) in limits.items():
        number = NUMBERS[name]
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError):  # a user namespace whose capability does not count; above fs.nr_open
            hard = resource.getrlimit(number)[1]  # noqa: PLW2901  # as above
            resource.setrlimit(number, (min(soft, hard, key=_size), hard))


def parse_limits(value: object) -> dict[str, tuple[int, int]]:
    """Limits as they came through JSON; names that this system does not know are left out.

    Raises TypeError, ValueError: anything else than names with two whole numbers each.
    """
    if not isinstance(value, Mapping):
        raise TypeError("limits are no object")
    limits = cast("Mapping[str, tuple[int, int]]", value).items()
    try:
        return {name: (int(soft), int(hard)) for name, (soft, hard) in limits if name in NUMBERS}
    except OverflowError as error:  # 1e999, which JSON reads as infinite
        raise ValueError("a limit is no whole number") from error


def spell_limit(value: tuple[int, int]) -> str:
    """Soft and hard as people read them: ``1024/unlimited``."""
    return "/".join("unlimited" if number == resource.RLIM_INFINITY else str(number) for number in value)


def _size(value: int) -> float:
    return math.inf if value == resource.RLIM_INFINITY else value


def _may_raise() -> bool:
    return bool(int(own_status().get("CapEff", "0"), 16) >> _CAP_SYS_RESOURCE & 1)
