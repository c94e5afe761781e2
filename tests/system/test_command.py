"""Which file a command runs, and what stands in it and in its environment for the port."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.errors import SpawnError
from turnout.system.command import clean_environment, fill_port, resolve_command


def _script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_command_with_a_slash_is_relative_to_its_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    _script(tmp_path / "bin" / "d", "#!/bin/sh\n")
    assert resolve_command(["bin/d"], str(tmp_path), {}) == str(tmp_path / "bin" / "d")


def test_a_command_without_one_is_found_on_the_path_of_its_environment(tmp_path: Path) -> None:
    for name, mode in (("a", 0o644), ("b", 0o755), ("c", 0o755)):
        (tmp_path / name).mkdir()
        _script(tmp_path / name / "d", "#!/bin/sh\n", mode)
    env = {"PATH": f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"}
    assert resolve_command(["d"], "/", env) == f"{tmp_path}/b/d"


def test_a_relative_path_entry_means_the_daemons_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    _script(tmp_path / "bin" / "d", "#!/bin/sh\n")
    assert resolve_command(["d"], str(tmp_path), {"PATH": "/usr/bin:bin"}) == str(tmp_path / "bin" / "d")
    _script(tmp_path / "e", "#!/bin/sh\n")
    assert resolve_command(["e"], str(tmp_path), {"PATH": ""}) == str(tmp_path / "e")


def test_a_directory_is_no_command(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(SpawnError, match="no such command"):
        resolve_command(["./d"], str(tmp_path), {})


def test_what_an_outer_turnout_or_systemd_said_does_not_reach_a_daemon() -> None:
    inherited = {
        "TURNOUT_HOME": "/x",
        "TURNOUT_PORT": "1",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "2",
        "LISTEN_FDNAMES": "a",
        "NOTIFY_SOCKET": "/run/n",
        "WATCHDOG_USEC": "3",
        "WATCHDOG_PID": "4",
        "MAINPID": "5",
    }
    assert clean_environment({**inherited, "HOME": "/h"}, {}, port=None) == {"HOME": "/h"}


def test_the_daemons_own_variables_stay_whatever_they_are_called() -> None:
    own = {"LISTEN_ADDR": "a", "MY_TURNOUT_HOME": "b", "NOTIFY": "c"}
    assert clean_environment(own, {}, port=None) == own


def test_the_port_is_told_and_added_variables_win_over_inherited_ones() -> None:
    env = clean_environment({"A": "1", "PORT": "80"}, {"A": "2", "TURNOUT_X": "asked for"}, port=20001)
    assert env == {"A": "2", "TURNOUT_X": "asked for", "PORT": "20001", "TURNOUT_PORT": "20001"}


def test_a_port_that_the_operator_sets_stays() -> None:
    env = clean_environment({"PORT": "80"}, {"PORT": "kept"}, port=20001)
    assert env == {"PORT": "kept", "TURNOUT_PORT": "20001"}


def test_every_port_word_is_filled_in_and_other_braces_stay() -> None:
    argv = ["{port}", "--at=127.0.0.1:{port}/{port}", "{{port}}", "{PORT}", "${port}", "{}", "{ports}", '{"a": {}}']
    filled = fill_port(argv, 5)
    assert filled == ("5", "--at=127.0.0.1:5/5", "{{port}}", "{PORT}", "$5", "{}", "{ports}", '{"a": {}}')
