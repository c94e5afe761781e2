"""Resource limits that go from a verb to the keeper and from there to a daemon."""

from __future__ import annotations

import json
import resource

import pytest

from turnout.system import limits
from turnout.system.limits import grantable, own_limits, parse_limits, spell_limit

UNLIMITED = resource.RLIM_INFINITY


def test_every_limit_of_this_process_comes_through_json_as_it_is() -> None:
    own = own_limits()
    assert own["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert {"core", "nproc", "memlock", "stack"} <= set(own)
    assert parse_limits(json.loads(json.dumps(own))) == own
    assert grantable(own) == (own, ())


@pytest.mark.parametrize("garbage", [None, [], "x", {"nofile": 5}, {"nofile": ["a", 1]}, {"nofile": [1, 2, 3]}])
def test_what_are_no_limits_is_refused(garbage: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        parse_limits(garbage)


def every_limit(_number: int) -> tuple[int, int]:
    return 100, 200


def test_a_hard_limit_above_the_own_one_is_reduced_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_may_raise", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", every_limit)
    wanted = {"nofile": (150, 300), "core": (0, 0), "nproc": (UNLIMITED, UNLIMITED), "memlock": (150, 200)}
    assert grantable(wanted) == (
        {"nofile": (150, 200), "core": (0, 0), "nproc": (200, 200), "memlock": (150, 200)},
        ("nofile", "nproc"),
    )
    monkeypatch.setattr(limits, "_may_raise", lambda: True)
    assert grantable(wanted) == (wanted, ())


def test_a_limit_is_spelled_for_people() -> None:
    assert spell_limit((1024, UNLIMITED)) == "1024/unlimited"
