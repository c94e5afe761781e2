"""One suite over every plane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stage import PLANES, Stage


@pytest.fixture(params=list(PLANES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stage(kind: str) -> Iterator[Stage]:
    found = Stage(kind)
    try:
        yield found
    finally:
        found.close()
