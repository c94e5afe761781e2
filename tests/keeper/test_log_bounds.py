"""The logs of daemons that have ended are kept within their bound, too: orphans may go on writing."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from turnout.keeper.log_bounds import LogBounds
from turnout.system.daemon_log import BOUND_BYTES


def test_a_log_of_which_an_earlier_keeper_left_only_orphans_is_cut(tmp_path: Path) -> None:
    lines: list[str] = []
    bounds = LogBounds(cast("Any", SimpleNamespace(all=list)), lines.append)
    log = tmp_path / "b1.log"
    log.touch()
    os.truncate(log, BOUND_BYTES + 1)
    bounds.check()
    assert log.stat().st_size > BOUND_BYTES, "nobody has named its directory"
    bounds.watch(tmp_path)
    bounds.check()
    assert log.stat().st_size <= BOUND_BYTES
    assert lines == ["the log b1.log was cut at its bound"]
