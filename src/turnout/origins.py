"""Where each setting comes from: a flag, the environment, the file, an earlier run, or nobody said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, cast

import msgspec

from turnout.config import DEFAULT_LISTEN, Address, Settings, Wanted, parse_address
from turnout.config_file import keys, keys_in
from turnout.system.builds import Build

Origin = Literal["flag", "environment", "file", "remembered", "derived", "default"]
# keys whose field in Settings is not called as the key is
_RENAMED: Final = {"drain.max_draining": "drain_max", "verify_owner": "health.verify_owner"}
_MASK: Final = "(set)"
_MISSING: Final = object()


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


def configuration(wanted: Wanted, *, given: Mapping[str, tuple[Origin, str]], build: Build | None) -> Configuration:
    """Every setting in force with its origin.

    Args:
        wanted: what the file and the options came to.
        given: for each key that an option set, whether by flag or by variable, and its name.
        build: what an earlier run left of command, directory and environment.
    """
    file_keys = keys_in(Path(wanted.source), wanted.settings.name) if wanted.source else set[str]()
    plain = Settings(name=wanted.settings.name, listen=(parse_address(DEFAULT_LISTEN),))
    found: list[Value] = []
    for key, default in keys().items():
        value, remembered = _build_value(key, wanted, build)
        if value is _MISSING:
            value = _setting(wanted.settings, key, default)
            remembered = not wanted.source and value != _setting(plain, key, default)
        if key in given:
            origin, where = given[key]
        elif key in file_keys:
            origin, where = "file", wanted.source
        elif remembered:
            origin, where = "remembered", "an earlier run"
        elif value != _setting(plain, key, default) and key != "cwd":
            origin, where = "derived", "chosen for this command"
        else:
            origin, where = "default", ""
        found.append(Value(key=key, value=_told(value), origin=origin, where=where))
    return Configuration(schema=1, service=wanted.settings.name, source=wanted.source or None, settings=found)


def _build_value(key: str, wanted: Wanted, build: Build | None) -> tuple[object, bool]:
    """What is run, from the file or, where that names nothing, from an earlier run."""
    if key not in {"command", "version", "cwd", "env"}:
        return _MISSING, False
    if wanted.command or build is None:
        value = {"command": wanted.command, "version": wanted.version, "cwd": wanted.cwd, "env": wanted.env}[key]
        return value, False
    value = {"command": build.command, "version": build.version, "cwd": build.cwd, "env": dict(build.env)}[key]
    return value, bool(value)


def _setting(settings: Settings, key: str, default: object) -> object:
    """What the field of ``key`` holds: drain.grace is drain_grace_s, health.interval is health.interval_s."""
    for name in (_RENAMED.get(key, ""), key, f"{key}_s", key.replace(".", "_"), f"{key.replace('.', '_')}_s"):
        value: object = settings
        for part in name.split("."):
            value = getattr(value, part, _MISSING) if part else _MISSING
        if value is not _MISSING:
            return duration_text(value) if name.endswith("_s") else value
    return default


def duration_text(seconds: object) -> str:
    """Seconds as the file would have them: ``500ms``, ``30s``, ``10m``; None is ``none``."""
    if not isinstance(seconds, (int, float)):
        return "none"
    for unit, factor in (("h", 3600), ("m", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"


def _told(value: object) -> str | int | float | bool | list[str] | dict[str, str] | None:
    if isinstance(value, Mapping):
        return {str(name): _MASK for name in cast("Mapping[object, object]", value)}
    if isinstance(value, (tuple, list)):
        return [str(one) for one in cast("Sequence[object]", value)]
    if isinstance(value, Address):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
