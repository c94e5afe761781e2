"""Settings that 0.1.0 stored, inside a router of a later version."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from turnout.config.settings import Address, Settings, dump_settings
from turnout.router.follow.settings import OpenedSettings
from turnout.state.home import Home
from turnout.system.files import Files, write_durably

SETTINGS = Settings(name="a", listen=(Address("127.0.0.1", 47000),))


def test_a_setting_that_was_removed_is_ignored_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path).service("a")
    home.create()
    stored = dump_settings(SETTINGS).replace(b'"plane"', b'"shares_port": true, "plane"')
    write_durably(Files(), home.settings, stored, follows_links=False)
    with caplog.at_level(logging.INFO):
        opened = OpenedSettings.read(home)
    assert opened.settings == SETTINGS
    assert caplog.messages == ["a: the setting shares_port was removed in turnout 0.2, and is ignored"]
