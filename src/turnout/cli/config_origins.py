"""Where each setting comes from: a flag, the environment, the file, an earlier run, or its default."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal

import msgspec

from turnout.config.file import keys_in
from turnout.config.keys import KEYS, VARIABLES, Takes, default
from turnout.config.settings import ServiceRequest
from turnout.state.builds import Build

Origin = Literal["flag", "environment", "file", "remembered", "derived", "default"]
_MASK: Final = "(set)"


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. ``where``: the flag, the variable or the file; empty for a default."""

    key: str
    value: str | int | float | bool | list[str] | dict[str, str] | None
    origin: Origin
    where: str


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All of ``config --json``. Values of ``env`` are masked: they may be secrets."""

    schema: Literal[1]
    service: str
    source: str | None
    settings: list[Value]


def configuration(
    wanted: ServiceRequest, *, given: Mapping[str, tuple[Origin, str]], build: Build | None
) -> Configuration:
    """Every setting in force with its origin.

    ``given``: for each key that an option set, whether by flag or by variable, and its name; ``build``: the command,
    directory and environment of an earlier run.
    """
    file_keys = keys_in(Path(wanted.source), wanted.settings.name) if wanted.source else set[str]()
    remembered = build if not wanted.command else None
    found: list[Value] = []
    for key in KEYS.values():
        holder = (remembered or wanted) if key.takes is Takes.BUILD else wanted.settings
        value = attrgetter(key.field)(holder)
        by_default = value == default(key.name)
        origin: Origin = "default"
        where = ""
        if key.name in given:
            origin, where = given[key.name]
        elif key.name in file_keys:
            origin, where = "file", wanted.source
        elif not by_default and holder is not wanted and (holder is remembered or not wanted.source):
            origin, where = "remembered", "an earlier run"
        elif not by_default and key.name != "cwd":
            origin, where = "derived", "chosen for this command"
        shown = dict.fromkeys(value, _MASK) if key.kind is VARIABLES else key.kind.show(value)
        found.append(Value(key=key.name, value=shown, origin=origin, where=where))
    return Configuration(schema=1, service=wanted.settings.name, source=wanted.source or None, settings=found)
