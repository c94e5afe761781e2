"""One suite over every plane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from programs import missing
from stage import NEEDS, PLANES, Stage


@pytest.fixture(params=list(PLANES))
def kind(request: pytest.FixtureRequest) -> str:
    kind = str(request.param)
    lacks = NEEDS[kind]() if kind in NEEDS else ""
    if lacks:
        missing(kind, f"plane {kind} cannot run here: {lacks}")
    return kind


@pytest.fixture
def stage(kind: str) -> Iterator[Stage]:
    found = Stage(kind)
    try:
        yield found
    finally:
        found.close()
