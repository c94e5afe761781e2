"""The paths of a home, whatever a shared registry calls its daemons."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import scaled
from turnout.core.model import Identity
from turnout.lifecycle.naming import attached_boot_id, new_boot_id
from turnout.state.home import Home, ServiceHome

NAME_MAX = 255  # bytes, limits.h
boot_ids = st.text(st.characters() | st.sampled_from("./\\\0%~ "), min_size=1, max_size=300)


def at(root: Path) -> ServiceHome:
    return Home(root).service("t")


@pytest.mark.parametrize(
    "boot_id",
    ["../../x", "/etc/passwd", "..", ".", "a/b", "\0", "x\n", "\ud800", "ä" * 200, "x" * 4000, "", ".hidden", "%2e"],
)
def test_a_boot_id_that_another_program_made_up_stays_in_its_directory(tmp_path: Path, boot_id: str) -> None:
    home = at(tmp_path)
    home.create()
    for path, directory in ((home.record(boot_id), home.records), (home.log(boot_id), home.logs)):
        assert not path.exists()
        path.with_name(f".{path.name}.tmp").write_text("as a record is written")  # its longest name
        path.write_text("it can be written")
        assert path in list(directory.iterdir())


@settings(max_examples=scaled(200, 5000))
@given(boot_ids, boot_ids)
def test_every_boot_id_has_a_file_of_its_own_under_a_name_that_any_filesystem_takes(one: str, other: str) -> None:
    home = at(Path("/nowhere"))
    assert home.log(one).parent == home.logs
    assert home.record(one).parent == home.records
    assert "/" not in home.log(one).name
    assert "\0" not in home.log(one).name
    assert len(home.record(one).name.encode()) <= NAME_MAX - len("..tmp")
    assert (home.log(one) == home.log(other)) == (one == other)


@pytest.mark.parametrize(
    "boot_id",
    [new_boot_id(), attached_boot_id(Identity(4194304), 65535), "legacy-4194304-65535", "indexer_1.2"],
    ids=["started", "attached", "of schema 1", "chosen by a program"],
)
def test_the_files_of_turnouts_own_boots_are_called_as_they_are(boot_id: str) -> None:
    home = at(Path("/nowhere"))
    assert home.log(boot_id) == home.logs / f"{boot_id}.log"
    assert home.record(boot_id) == home.records / f"{boot_id}.json"
