"""What the keeper and the router's admin socket take of a peer: a typed record, or a refusal, whatever is sent."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer_messages import HUGE, messages
from turnout.errors import ProtocolError
from turnout.keeper.requests import Attach, Listen, Spawn, Stop, request_of
from turnout.router.admin_server import answer_question
from turnout.system.control_channel import decode, number_of

GOOD: dict[str, dict[str, Any]] = {
    "listen": {"service": "a", "addresses": [["127.0.0.1", 1]]},
    "spawn": {"service": "a", "boot_id": "b", "argv": ["true"], "cwd": "/", "env": {}},
    "stop": {"service": "a", "boot_id": "b", "signal": "TERM", "grace_s": 1},
    "attach": {"pid": 1, "phase": "leads", "listeners": [["a", "::1", 1]], "homes": {"a": 0}, "groups": {}},
    "seen": {"service": "a", "version": 1, "slot": 0},
    "cut": {"service": "a", "boot_id": "b"},
    "kill_router": {"pid": 1},
}


class Router:
    """Serves each service, and has applied each revision."""

    def status(self) -> dict[str, Any]:
        return {}

    def drains(self, service: str) -> list[dict[str, Any]]:
        return [{"service": service}]

    def open_door(self, service: str, source: str, port: int) -> Callable[[], None]:
        raise KeyError(service, source, port)

    def when_applied(self, _service: str, revision: int, reply: Callable[[int], None]) -> None:
        reply(revision)


def replies_to(message: dict[str, Any]) -> list[Mapping[str, Any]]:
    """What the router's admin socket replies to a message."""
    replies: list[Mapping[str, Any]] = []
    answer_question(message, Router(), replies.append)
    return replies


@given(messages())
def test_a_message_is_a_request_or_is_refused(message: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):
        request_of(message)
    assert len(replies_to(message)) == 1
    assert number_of(message) is None or isinstance(number_of(message), int | str)


@given(st.binary() | st.text(st.characters()).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_line_is_an_object_or_is_refused(line: bytes) -> None:
    try:
        assert isinstance(decode(line), dict)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200000,
        b'{"a":' * 200000,
        b"[1]",
        b"hello",
        b"",
        b"\xff\xfe\x00",
        b'{"id":' + b"9" * 5000 + b"}",
        b'{"op":NaN}',
        b'{"op":Infinity}',
        b'"x"',
    ],
)
def test_a_line_that_is_no_object_in_json_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


@pytest.mark.parametrize("op", sorted(GOOD))
def test_a_request_without_one_of_its_fields_is_refused(op: str) -> None:
    request_of({"op": op, **GOOD[op]})
    for field in GOOD[op].keys() - {"phase", "listeners", "homes", "groups"}:  # a router of 0.1.0 may leave these out
        with pytest.raises(ProtocolError):
            request_of({"op": op, **{key: value for key, value in GOOD[op].items() if key != field}})


@pytest.mark.parametrize(
    ("op", "field", "value"),
    [
        ("listen", "addresses", [["127.0.0.1", 99999]]),
        ("listen", "addresses", [["127.0.0.1", True]]),
        ("listen", "addresses", [["a b\0", 1]]),
        ("listen", "addresses", [["localhost", 1]]),
        ("listen", "addresses", 5),
        ("listen", "addresses", []),
        ("listen", "addresses", [["127.0.0.1", 1], ["127.0.0.1", 1]]),
        ("listen", "service", "../../x"),
        ("listen", "interpreter", "python"),
        ("spawn", "argv", [1]),
        ("spawn", "argv", ["\ud800"]),
        ("spawn", "env", {"a": 1}),
        ("spawn", "env", {"a": "\0"}),
        ("spawn", "cwd", 5),
        ("spawn", "boot_id", "../x"),
        ("spawn", "listener", "mine"),
        ("spawn", "listener", ["127.0.0.1", 0]),
        ("stop", "signal", "NOPE"),
        ("stop", "grace_s", math.nan),
        ("stop", "grace_s", math.inf),
        ("stop", "grace_s", HUGE),
        ("stop", "grace_s", True),
        ("attach", "listeners", [["x", "y", 1]]),
        ("attach", "listeners", 5),
        ("attach", "pid", HUGE),
        ("attach", "phase", []),
        ("attach", "homes", {"a": -1}),
        ("attach", "groups", {"a": {"version": 1, "home": 1, "order": [[5, ""]]}}),
        ("attach", "groups", {"a": {"version": 1, "home": 0, "order": [[5]]}}),
        ("attach", "groups", {"a": {"version": 1, "home": 0, "order": [["5", ""]]}}),
        ("attach", "groups", {"a": {"version": 1, "home": 0, "order": [[5, "../x"]]}}),
        ("attach", "groups", {"a": {"version": 1, "home": 0, "order": []}}),
        ("attach", "groups", {"a": []}),
        ("seen", "slots", [-1]),
        ("seen", "slots", 3),
        ("seen", "slot", []),
        ("seen", "version", 1e99),
        ("kill_router", "pid", "x"),
        ("spawn", "program", 5),
        ("spawn", "umask", 0o1000),
        ("spawn", "umask", "022"),
        ("spawn", "limits", {"nofile": 3}),
        ("spawn", "limits", [1]),
        ("spawn", "limits", {"nofile": [math.inf, 1]}),
    ],
)
def test_a_field_of_another_type_or_beyond_its_bounds_is_refused(op: str, field: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=op):
        request_of({"op": op, **GOOD[op], field: value})


def test_what_verbs_and_routers_send_is_read() -> None:
    listen = request_of({"op": "listen", "service": "a", "addresses": [["::1", 1]], "interpreter": "/usr/bin/python3"})
    assert listen == Listen("a", (("::1", 1),), "/usr/bin/python3")
    assert request_of({"op": "listen", **GOOD["listen"]}) == Listen("a", (("127.0.0.1", 1),), ""), "by a 0.1.0 verb"
    spawn = request_of({"op": "spawn", **GOOD["spawn"], "argv": ["\udcff"], "listener": ["127.0.0.1", 2]})
    assert spawn == Spawn("a", "b", ("\udcff",), "/", {}, ("127.0.0.1", 2), "", None, {}), "an argument: no UTF-8"
    more = {"program": "/bin/d", "umask": 0o27, "limits": {"nofile": [1, 2]}}
    assert isinstance(spawn, Spawn)
    assert request_of({"op": "spawn", **GOOD["spawn"], **more}) == replace(
        spawn, argv=tuple(GOOD["spawn"]["argv"]), listener=None, program="/bin/d", umask=0o27, limits={"nofile": (1, 2)}
    )
    assert request_of({"op": "stop", **GOOD["stop"], "boot_id": "any / text", "grace_s": -1}) == Stop(
        "a", "any / text", 15, 0.0
    )
    assert request_of({"op": "attach", "pid": 7}) == Attach(7, None, (), {})
    assert replies_to({"op": "applied", "service": "a", "revision": 3}) == [{"ok": True, "revision": 3}]


@pytest.mark.parametrize("revision", [math.inf, 1e99, True, -1, HUGE, "1", None])
def test_a_revision_that_is_none_is_refused(revision: object) -> None:
    (reply,) = replies_to({"op": "applied", "service": "a", "revision": revision})
    assert reply == {"ok": False, "message": "bad request: applied"}


def test_a_refusal_is_short_whatever_was_sent() -> None:
    for message in ({"op": ["x"] * 100000}, {"op": "listen", "service": "a", "addresses": "x" * 100000}):
        with pytest.raises(ProtocolError) as refused:
            request_of(message)
        assert len(refused.value.message) < 300
        assert len(replies_to(message)[0]["message"]) < 300


def test_an_id_that_is_no_number_and_no_text_is_not_repeated() -> None:
    assert number_of({"id": [json.loads("[" * 10 + "]" * 10)]}) is None
    assert (number_of({"id": True}), number_of({"id": 3}), number_of({})) == (None, 3, None)
