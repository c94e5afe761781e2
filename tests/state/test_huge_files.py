"""Each file that turnout reads whole has a bound: a huge one is refused before it is read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from turnout.config.file import load_file
from turnout.errors import TurnoutError
from turnout.state.builds import Builds
from turnout.state.home import Home
from turnout.state.keeper_lock import read_keeper
from turnout.state.metrics_address import read_scrape
from turnout.state.service import remembered
from turnout.system.spawn_record import read_records

HUGE_BYTES = 1 << 30
HELD_AT_MOST_BYTES = 4 << 20

READERS: dict[str, tuple[Callable[[Home], Path], Callable[[Home], object]]] = {
    "settings.json": (lambda home: home.service("default").settings, lambda home: remembered(home.service("default"))),
    "builds.json": (
        lambda home: home.service("default").builds,
        lambda home: Builds(home.service("default").builds).latest(),
    ),
    "metrics.json": (lambda home: home.metrics, read_scrape),
    "keeper.lock": (lambda home: home.keeper_lock, lambda home: read_keeper(home.keeper_lock)),
    "a spawn record": (lambda home: home.root / "router-1.json", lambda home: read_records(home.root)),
    "turnout.toml": (
        lambda home: home.root / "turnout.toml",
        lambda home: load_file(home.root / "turnout.toml"),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_huge_file_is_refused_unread(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / "home")
    home.create()
    where, read = READERS[name]
    path = where(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)
    path.chmod(0o600)
    said = "MiB, at most"
    tracemalloc.start()
    try:
        assert not read(home), "it is as if the file were not there"
    except TurnoutError as error:
        said = error.message
    finally:
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "MiB, at most" in said
    assert held < HELD_AT_MOST_BYTES
