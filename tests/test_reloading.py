"""A configuration file that changes under a running router."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from support import eventually
from turnout.config import Settings
from turnout.config_file import load_file
from turnout.reloading import Reloading

FILE = """
[service.cache]
listen = "127.0.0.1:{port}"
command = ["server", "{version}"]
observe = "{observe}"
hold = {{ max = {hold} }}
"""


def write(path: Path, *, port: int = 5000, version: str = "1", observe: str = "30s", hold: int = 9) -> Settings:
    text = FILE.format(port=port, version=version, observe=observe, hold=hold)
    path.write_text(text)
    return load_file(path)["cache"].settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "turnout.toml"


def test_what_can_change_is_taken_over_and_what_cannot_is_named_with_what_it_needs(path: Path) -> None:
    settings = write(path)
    reloading = Reloading(settings, time.time_ns())
    write(path, port=5001, version="2", observe="5s", hold=10)
    done = reloading.reload(settings)
    assert done.changed == ("observe_s", "hold_max")
    assert (done.settings.observe_s, done.settings.listen, done.settings.hold_max) == (5.0, settings.listen, 10)
    assert [what.partition(":")[0] for what in done.later] == ["listen", "command, cwd, env or version"]
    assert done.error == ""


def test_a_change_is_noticed(path: Path) -> None:
    settings = write(path)
    reloading = Reloading(settings, time.time_ns())
    write(path, observe="50s")
    assert reloading.is_due()
    eventually(lambda: not reloading.is_due(), why="it is noticed over and over")


def test_checks_that_came_with_another_build_wait_for_it(path: Path) -> None:
    settings = write(path)
    reloading = Reloading(settings, time.time_ns())
    strict = "[service.cache]\nlisten = '127.0.0.1:5000'\nhold = { max = 9 }\ncommand = ['server', '2']\n"
    path.write_text(strict + "health = { failures = 1 }\n")
    done = reloading.reload(settings)
    assert (done.settings.health, len(done.later)) == (settings.health, 2)
    path.write_text(strict + "health = { failures = 1 } # so it is\n")
    assert reloading.reload(settings).settings.health == settings.health, "it is still not deployed"
    path.write_text(strict.replace("'2'", "'1'") + "health = { failures = 1 }\n")
    assert Reloading(settings, time.time_ns()).reload(settings).settings.health.failures == 1


@pytest.mark.parametrize("text", ["no toml [", "[service.other]\n", "[service.cache]\nobserv = '1s'\n", None])
def test_a_file_that_cannot_be_used_changes_nothing_and_says_why(path: Path, text: str | None) -> None:
    settings = write(path)
    reloading = Reloading(settings, time.time_ns())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    done = reloading.reload(settings)
    assert done.settings == settings
    assert str(path) in done.error


def test_a_router_that_starts_after_the_file_changed_takes_it_over(path: Path) -> None:
    settings = write(path)
    assert Reloading(settings, written_ns=0).is_due()
    assert not Reloading(settings, written_ns=time.time_ns() + 10**12).is_due()


def test_a_flag_counts_until_the_file_changes(path: Path) -> None:
    by_flag = msgspec.structs.replace(write(path), observe_s=1.0)
    reloading = Reloading(by_flag, written_ns=time.time_ns() + 10**12)
    assert not reloading.is_due()
    write(path, hold=9, observe="31s")
    assert reloading.reload(by_flag).settings.observe_s == 31.0


def test_without_a_file_there_is_nothing_to_follow(path: Path) -> None:
    settings = msgspec.structs.replace(write(path), source="")
    reloading = Reloading(settings, 0)
    assert (reloading.follows, reloading.is_due(), reloading.reload(settings).changed) == (False, False, ())
