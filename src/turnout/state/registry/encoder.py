"""The registry's JSON as it is written: what :mod:`turnout.state.registry.decoder` reads back as the same snapshot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, cast

import msgspec

from turnout.core.model import Daemon, Deployment, Identity, Move, Snapshot, Workspace

# The fields of a daemon that are always written, and those that are written where they are known.
_ALWAYS: Final = (
    *("host", "port", "identity.pid", "start_ts", "last_seen_ts", "draining", "version"),
    *("http_host", "http_port", "http_pid"),
)
_KNOWN: Final = (
    *("identity.start_ticks", "identity.machine_boot_id", "identity.pid_ns", "drain_cause", "build", "owned"),
    *("proxy_protocol", "own_port", "source"),
)


def _reader(*paths: str) -> Callable[[object], Iterator[tuple[str, Any]]]:
    """A function that yields these fields of an object, each with the last part of its name."""
    names, values = [path.rpartition(".")[2] for path in paths], attrgetter(*paths)
    return lambda entry: zip(names, values(entry), strict=True)


_always, _known = _reader(*_ALWAYS), _reader(*_KNOWN)
_workspace, _deployment, _identity, _move = (
    _reader(*(field.name for field in fields(kind) if field.name not in left_out))
    for kind, left_out in ((Workspace, {"root", "extra"}), (Deployment, {"extra"}), (Identity, ()), (Move, ()))
)


def dumps(snapshot: Snapshot) -> bytes:
    """The file's bytes: UTF-8, indented for people, the same snapshot always the same bytes."""
    raw = encode(snapshot)
    try:
        data = msgspec.json.format(msgspec.json.encode(raw), indent=2)
    except (UnicodeEncodeError, OverflowError):
        # half a surrogate pair, which JSON can escape and UTF-8 cannot hold, or a number beyond 64 bits
        data = json.dumps(raw, indent=2, allow_nan=False).encode()
    return data + b"\n"


def encode(snapshot: Snapshot) -> dict[str, Any]:
    """The JSON object of a snapshot; keys that are not ours come last."""
    block, workspaces = snapshot.deployment, snapshot.workspaces
    owner, moves = dict(_identity(block.owner)), [dict(_move(move)) for move in block.moves]
    return {
        "version": snapshot.version,
        "daemons": {boot_id: _daemon(daemon) for boot_id, daemon in snapshot.daemons.items()},
        "workspaces": {root: {**dict(_workspace(entry)), **_finite(entry.extra)} for root, entry in workspaces.items()},
        "deployment": {**dict(_deployment(block)), "owner": owner, "moves": moves, **_finite(block.extra)},
        **_finite(snapshot.extra),
    }


def _daemon(daemon: Daemon) -> dict[str, Any]:
    known = {key: value for key, value in _known(daemon) if value}
    return {**dict(_always(daemon)), **known, **_finite(daemon.extra)}


def _finite(value: Any) -> Any:  # noqa: ANN401  # another program's JSON
    """Another program's data as JSON can hold it: NaN and Infinity, which Python reads, become null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
