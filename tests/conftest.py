"""Fixtures that several test files share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
from hub_server_for_tests import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A running Hub without repositories; ``hub.environment(tmp_path / "home")`` points a process at it alone."""
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.stop()


@pytest.fixture(scope="session", autouse=True)
def template_compiled_once() -> Iterator[None]:
    """Compile the cards' template once a session: huggingface_hub does so at every card, most of a card's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", functools.lru_cache(jinja2.Template))
        yield
