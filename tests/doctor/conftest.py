"""One patient for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor_support import Patient
from process_support import Started


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Patient]:
    with Started() as started:
        yield Patient(tmp_path, started)
