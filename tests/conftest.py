"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server_for_tests import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A running Hub without repositories; ``hub.environment(tmp_path / "home")`` points a process at it alone."""
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.stop()
