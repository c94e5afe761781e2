"""Messages that a peer of a control socket may send, made by hypothesis: known fields with values of any kind."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

HUGE: Final = 10**4000
OPS: Final = (  # of both sockets
    *("hello", "listen", "unlisten", "spawn", "stop", "replace_router", "kill_router", "shutdown", "attach"),
    *("ready", "heard", "left", "leads", "seen", "cut", "status", "applied", "drains"),
)
FIELDS: Final = (
    *("id", "service", "boot_id", "addresses", "argv", "cwd", "env", "listener", "signal", "grace_s", "pid"),
    *("phase", "listeners", "homes", "groups", "version", "slot", "revision", "interpreter"),
)
SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([HUGE, -HUGE, 99999, -1, 0]),
    st.floats(allow_nan=False, allow_infinity=True),
    st.text(st.characters()),
    st.sampled_from(["default", "../x", "\0", "\ud800", "TERM", "NOPE", "shared", "leads", "127.0.0.1", "a b", "/x"]),
)
VALUES: Final = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def messages(*without: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with an op of either socket, or something else in its place; ``without``: ops that are left out."""
    ops = st.sampled_from([op for op in OPS if op not in without])
    fields = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8)
    return st.builds(lambda fields, op: {**fields, "op": op}, fields, ops | VALUES)
