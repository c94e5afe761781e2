"""The back-off between the starts of routers, and the interpreter with which the next one is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from turnout.core.model import Identity
from turnout.errors import SpawnError
from turnout.keeper.children import Child, Children
from turnout.keeper.router_child import (
    ROUTER_RESTART_DELAYS_S,
    ROUTER_STEADY_AFTER_S,
    RouterStarts,
)
from turnout.state.home import Home
from turnout.system.interpreters import Interpreters
from turnout.system.spawn import SpawnRequest


class Scene:
    """Notes the pauses and the requests; ``error`` is what a fork ends with."""

    def __init__(self, root: Path, *names: str) -> None:
        self.pauses: list[float] = []
        self.lines: list[str] = []
        self.requests: list[SpawnRequest] = []
        self.error: Exception | None = None
        self.paths = [root / name for name in names]
        for path in self.paths:
            path.symlink_to("/bin/sh")
        interpreters = Interpreters(str(self.paths[0]))
        for path in self.paths[1:]:
            interpreters.add(str(path))
        children = cast("Children", self)
        self.starts = RouterStarts(Home(root), children, self.after, self.lines.append, interpreters)

    def after(self, delay_s: float, _action: Callable[[], None]) -> None:
        self.pauses.append(delay_s)

    def spawn(self, request: SpawnRequest) -> Child:
        self.requests.append(request)
        if self.error:
            raise self.error
        unused: Any = None
        return Child(request.boot_id, "", unused, Path("/r"), Path("/l"), Identity(9), mine=True)


def nothing() -> None:
    pass


def test_pauses_grow_with_the_failures_in_a_row_and_begin_again_after_a_steady_router(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "python")
    for _ in range(len(ROUTER_RESTART_DELAYS_S) + 2):
        scene.starts.retry(nothing, failed=True)
    longest = ROUTER_RESTART_DELAYS_S[-1]
    assert scene.pauses == [*ROUTER_RESTART_DELAYS_S, longest, longest]
    scene.pauses.clear()
    scene.starts.retry(nothing, failed=False)
    scene.starts.retry(nothing, failed=True)
    scene.starts.retry(nothing, failed=True)
    assert scene.pauses == [0.0, 0.0, ROUTER_RESTART_DELAYS_S[1]], "clients are queueing: at once, after a steady life"


def test_a_router_is_steady_once_it_lived_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, "python")
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    router = scene.starts.spawn()
    now[0] += ROUTER_STEADY_AFTER_S
    assert not scene.starts.was_steady(router)
    now[0] += 0.1
    assert scene.starts.was_steady(router)


def test_why_no_router_can_be_forked_is_logged_once_and_kept_until_one_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "python")
    scene.error = SpawnError("no process to be had")
    for _ in range(3):
        with pytest.raises(SpawnError):
            scene.starts.spawn()
    assert scene.starts.trouble == "cannot be started: no process to be had"
    assert scene.lines == ["the router cannot be started: no process to be had"]
    scene.error = SpawnError("no memory")
    with pytest.raises(SpawnError):
        scene.starts.spawn()
    assert len(scene.lines) == 2
    scene.error = None
    assert scene.starts.spawn().pid == 9
    assert scene.starts.trouble == ""


def test_each_router_has_a_boot_id_of_its_own_and_the_hard_limit_of_descriptors(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "python")
    boots = {scene.starts.spawn().child.boot_id for _ in range(3)}
    assert len(boots) == 3
    assert all(boot_id.startswith("router-") for boot_id in boots)
    request = scene.requests[0]
    assert request.argv == (str(scene.paths[0]), "-P", "-m", "turnout.router", str(tmp_path))
    assert request.nofile
    soft, hard = request.nofile
    assert soft >= 1 << 20 or soft == hard
    assert len({request.record_path for request in scene.requests}) == 3


def test_an_interpreter_whose_router_never_attached_is_not_the_first_choice_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "old", "new")
    router = scene.starts.spawn()
    assert router.interpreter == str(scene.paths[1]), "the newest"
    router.has_attached = True
    scene.starts.on_exit(router)
    assert scene.starts.interpreter == str(scene.paths[1]), "it works: the router came up, and died of something else"
    router.has_attached = False
    scene.starts.on_exit(router)
    assert scene.starts.interpreter == str(scene.paths[0])


def test_where_every_interpreter_is_gone_the_newest_is_named(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "old", "new")
    for path in scene.paths:
        path.unlink()
    assert scene.starts.interpreter == str(scene.paths[1])
    with pytest.raises(Exception, match="gone"):
        scene.starts.spawn()
    assert "cannot be started" in scene.starts.trouble
